//! One room and its order, from outside: hands the order in, passes on what comes out, stops it when it
//! is to stop, ends it when it hangs or idles.
//!
//! Blocking, on threads of its own: a room is a process with pipes, and there are few.

use std::fs::File;
use std::io::{BufReader, Read};
use std::process::ChildStdout;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use allmend_room::{EmptyRoom, Room};
use tokio_util::sync::CancellationToken;

use super::pipe::{self, FromTrainer, ToTrainer};
use super::pulse::{Pulse, Verdict};

/// How long a room that was told to stop may take to make its snapshot.
const STOPPING: Duration = Duration::from_secs(60);
/// How often a silent room is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// Bytes of complaints that are read and thrown away at a time.
const COMPLAINT_BYTES: usize = 4_096;

/// How a room came to its end.
#[derive(Debug)]
pub enum End {
    /// It said a last word, which has been passed on.
    Said,
    /// It was ended from outside for this reason.
    Ended {
        /// `stalled` or `idle`.
        kind: &'static str,
        /// In words.
        why: String,
    },
    /// It died: a crash, or it ran out of memory.
    Died(String),
}

/// Opens `room`, hands `files` and `order` in, and passes everything that it says to `said` until it has
/// said its last. Returns when the process is gone.
///
/// # Errors
/// When the files cannot be handed in.
pub fn supervise(
    room: EmptyRoom,
    files: &[(String, File)],
    order: &ToTrainer,
    stop: &CancellationToken,
    mut said: impl FnMut(FromTrainer),
) -> Result<End, String> {
    let named: Vec<(&str, &File)> =
        files.iter().map(|(name, file)| (name.as_str(), file)).collect();
    let mut room = room.open(&named).map_err(|error| error.to_string())?;
    let (stdin, stdout, stderr) = (room.stdin.take(), room.stdout.take(), room.stderr.take());
    let (Some(mut stdin), Some(stdout)) = (stdin, stdout) else {
        return Err("the room has no pipes".to_owned());
    };
    if let Some(mut stderr) = stderr {
        // Written with the data in view: read so that the room does not wait, kept nowhere.
        std::thread::spawn(move || {
            let mut buffer = [0; COMPLAINT_BYTES];
            while stderr.read(&mut buffer).is_ok_and(|read| read > 0) {}
        });
    }
    let (sender, frames) = mpsc::sync_channel(1);
    std::thread::spawn(move || read_frames(stdout, &sender));
    if pipe::write(&mut stdin, order).is_err() {
        return Ok(End::Died(gone(&mut room)));
    }
    let pid = room.pid();
    let mut pulse = Pulse::new(Instant::now());
    let mut told: Option<Instant> = None;
    loop {
        match frames.recv_timeout(LOOK_EVERY) {
            Ok(Some(frame)) => {
                pulse.heard(Instant::now(), &frame);
                let last = frame.is_last();
                said(frame);
                if last {
                    drop(stdin);
                    let _ = room.wait();
                    return Ok(End::Said);
                }
            }
            Ok(None) | Err(mpsc::RecvTimeoutError::Disconnected) => {
                return Ok(End::Died(gone(&mut room)));
            }
            Err(mpsc::RecvTimeoutError::Timeout) => {}
        }
        if stop.is_cancelled() && told.is_none() {
            told = Some(Instant::now());
            let _ = pipe::write(&mut stdin, &ToTrainer::Stop {});
        }
        if told.is_some_and(|told| told.elapsed() > STOPPING) {
            let _ = room.kill();
            return Ok(End::Died("it did not stop when told to".to_owned()));
        }
        if let Verdict::End { kind, why } = pulse.look(Instant::now(), pid) {
            let _ = room.kill();
            return Ok(End::Ended { kind, why });
        }
    }
}

fn read_frames(stdout: ChildStdout, to: &mpsc::SyncSender<Option<FromTrainer>>) {
    let mut stdout = BufReader::new(stdout);
    loop {
        // Nonsense ends the conversation as silence does: it is not worth a word in a log.
        let frame = pipe::read::<FromTrainer>(&mut stdout).ok().flatten();
        let over = frame.is_none();
        if to.send(frame).is_err() || over {
            return;
        }
    }
}

fn gone(room: &mut Room) -> String {
    match room.kill() {
        Ok(allmend_room::Exit::Code(code)) => format!("the room's process ended (code {code})"),
        Ok(allmend_room::Exit::Signal(9)) => {
            "the room's process was killed (signal 9: it may have run out of memory)".to_owned()
        }
        Ok(allmend_room::Exit::Signal(signal)) => {
            format!("the room's process was ended by signal {signal}")
        }
        Err(error) => format!("the room's process is lost ({error})"),
    }
}

impl FromTrainer {
    /// Whether nothing follows.
    fn is_last(&self) -> bool {
        match self {
            FromTrainer::Adapter { .. }
            | FromTrainer::Stopped { .. }
            | FromTrainer::Aborted { .. } => true,
            FromTrainer::Ready { .. }
            | FromTrainer::Step { .. }
            | FromTrainer::Phase { .. }
            | FromTrainer::Snapshot { .. } => false,
        }
    }
}
