//! One worker process: its pipes, each served by a task of its own so that neither direction can hold
//! up the other.

use std::ffi::OsString;
use std::io;
use std::path::PathBuf;
use std::process::Stdio;

use tokio::io::{AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use tokio::sync::mpsc;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::desk::WorkerId;
use super::dispatch::Note;
use crate::worker::pipe::{self, FromWorker, PIPE_FRAME_BYTES_MAX, ToWorker};

/// How workers are started.
#[derive(Clone, Debug)]
pub struct PoolOptions {
    /// The binary, normally this very one.
    pub program: PathBuf,
    /// Its arguments.
    pub arguments: Vec<OsString>,
    /// Jobs at once, in all workers together.
    pub slots: u16,
    /// Worker processes at once; each has one model.
    pub models_loaded: u16,
    /// Threads of one worker.
    pub threads: u32,
    /// Memory of one worker: its weights and what all of its runs may cache.
    pub memory_mib: u64,
    /// The longest context to plan for.
    pub context_tokens_max: u32,
    /// The NVIDIA GPU that workers compute on, by its number; none for the processor.
    pub gpu: Option<u32>,
}

/// Adapters that may be recalled while a process computes a step; beyond it the process is ended.
const FORGETS_MAX: usize = 64;

/// A worker process. Dropping it kills it.
#[derive(Debug)]
pub(super) struct Process {
    commands: mpsc::Sender<Vec<u8>>,
    pid: Option<u32>,
    kill: DropGuard,
}

impl Process {
    /// Starts a process and has it load the model at `path`. Everything that it says, and its end, is
    /// noted as coming from `id`.
    pub(super) fn start(
        options: &PoolOptions,
        id: WorkerId,
        path: PathBuf,
        memory_mib: u64,
        notes: &mpsc::Sender<Note>,
    ) -> io::Result<Process> {
        let mut child = Command::new(&options.program)
            .args(&options.arguments)
            .env_clear()
            // The engine's matrix products ask for their thread count through this variable.
            .env(allmend_engine::THREADS_ENV, options.threads.to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .kill_on_drop(true)
            .spawn()?;
        let (Some(stdin), Some(stdout)) = (child.stdin.take(), child.stdout.take()) else {
            return Err(io::Error::other("it has no pipes"));
        };
        // The load; and for each slot a run's beginning and cancelling, and the cancelling of the one
        // before, which may have ended without being told.
        let (commands, queue) = mpsc::channel(1 + FORGETS_MAX + 3 * usize::from(options.slots));
        let pid = child.id();
        let kill = CancellationToken::new();
        tokio::spawn(write(stdin, queue));
        tokio::spawn(attend(id, child, stdout, kill.clone(), notes.clone()));
        let process = Process { commands, pid, kill: kill.drop_guard() };
        process.send(&ToWorker::Load {
            path,
            threads: options.threads,
            context_tokens_max: options.context_tokens_max,
            memory_mib,
            slots: options.slots,
            gpu: options.gpu,
        })?;
        Ok(process)
    }

    /// Queues a command.
    ///
    /// # Errors
    /// When it is beyond a frame's limit, or the process reads nothing any more.
    pub(super) fn send(&self, command: &ToWorker) -> io::Result<()> {
        let frame = pipe::encode(command)?;
        self.commands.try_send(frame).map_err(|_| io::Error::other("the worker does not read"))
    }

    /// Kills the process; its end is noted as any other.
    pub(super) fn kill(&self) {
        self.kill.token().cancel();
    }

    /// The process's number with the operating system.
    pub(super) fn pid(&self) -> Option<u32> {
        self.pid
    }
}

async fn write(mut stdin: ChildStdin, mut queue: mpsc::Receiver<Vec<u8>>) {
    while let Some(frame) = queue.recv().await {
        // A pipe that is closed is the end of the process, which its attendant notes.
        if stdin.write_all(&frame).await.is_err() || stdin.flush().await.is_err() {
            return;
        }
    }
}

/// Passes on what the process says until it ends, talks nonsense, or is to be killed.
async fn attend(
    id: WorkerId,
    mut child: Child,
    stdout: ChildStdout,
    kill: CancellationToken,
    notes: mpsc::Sender<Note>,
) {
    let mut stdout = BufReader::new(stdout);
    let nonsense = loop {
        let frame = tokio::select! {
            frame = receive(&mut stdout) => frame,
            () = kill.cancelled() => break None,
        };
        match frame {
            Ok(said) => {
                if notes.send(Note::Said(id, said)).await.is_err() {
                    break None;
                }
            }
            Err(error) if error.kind() == io::ErrorKind::InvalidData => break Some(error),
            Err(_) => break None,
        }
    };
    // It has ended, or must.
    let _ = child.start_kill();
    let why = match (nonsense, child.wait().await) {
        (Some(error), _) => format!("the worker process talked nonsense ({error})"),
        (None, Ok(status)) => format!("the worker process ended ({status})"),
        (None, Err(error)) => format!("the worker process is lost ({error})"),
    };
    let _ = notes.send(Note::Gone(id, why)).await;
}

async fn receive(from: &mut BufReader<ChildStdout>) -> io::Result<FromWorker> {
    let length = from.read_u32().await? as usize;
    if length > PIPE_FRAME_BYTES_MAX {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "frame beyond the limit"));
    }
    let mut bytes = Vec::new();
    from.take(length as u64).read_to_end(&mut bytes).await?;
    if bytes.len() < length {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    pipe::decode(&bytes)
}
