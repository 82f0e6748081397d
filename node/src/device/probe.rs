//! Has a GPU compute something before it is offered, in a process of its own: drivers hang, and what has
//! once talked to a GPU holds some of its memory until it ends.

use std::ffi::OsStr;
use std::io::Read as _;
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use allmend_engine::GpuProbe;

/// The hidden command of this program that [`probe_here`] answers.
pub const PROBE_COMMAND: &str = "probe-gpu";
/// A driver that wakes up and loads its kernels for the first time takes some seconds.
const DEADLINE: Duration = Duration::from_secs(60);
/// The answer is a line of JSON; whatever else comes is noise.
const ANSWER_BYTES_MAX: u64 = 4096;

/// Probes a GPU in this process and returns what to print: JSON, or why the GPU is not to be used.
///
/// # Errors
/// In words, for the parent to show.
pub fn probe_here(index: usize) -> Result<String, String> {
    let probe = allmend_engine::probe_gpu(index).map_err(|error| error.to_string())?;
    serde_json::to_string(&probe).map_err(|error| error.to_string())
}

/// Probes a GPU in a child process; `index` counts as NVIDIA's management library does.
pub(super) fn probe_apart(index: u32) -> Result<GpuProbe, String> {
    if !allmend_engine::built_with_cuda() {
        return Err("this build of the engine was made without CUDA".to_owned());
    }
    let program = std::env::current_exe().map_err(|error| format!("no program: {error}"))?;
    ask(program.as_os_str(), &[PROBE_COMMAND, &index.to_string()], DEADLINE)
}

fn ask(program: &OsStr, arguments: &[&str], deadline: Duration) -> Result<GpuProbe, String> {
    let mut child = Command::new(program)
        .args(arguments)
        // CUDA's own order is by speed; the management library's is by slot.
        .env("CUDA_DEVICE_ORDER", "PCI_BUS_ID")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .map_err(|error| format!("the probe cannot be started: {error}"))?;
    let stdout = child.stdout.take().ok_or("the probe has no output")?;
    let (sender, answer) = mpsc::sync_channel(1);
    std::thread::spawn(move || {
        let mut text = String::new();
        let read = stdout.take(ANSWER_BYTES_MAX).read_to_string(&mut text).map(|_| text);
        // Nobody listens any more when the deadline has passed.
        let _ = sender.send(read);
    });
    let answer = answer.recv_timeout(deadline);
    // An answer is complete when the pipe closes, so a child that lives on has nothing more to say.
    let _ = child.kill();
    let _ = child.wait();
    match answer {
        Err(_) => Err(format!("the probe did not end within {} s", deadline.as_secs_f32())),
        Ok(Err(error)) => Err(format!("the probe's answer cannot be read: {error}")),
        Ok(Ok(text)) => read(text.trim()),
    }
}

fn read(answer: &str) -> Result<GpuProbe, String> {
    match serde_json::from_str(answer) {
        Ok(probe) => Ok(probe),
        Err(_) if answer.is_empty() => Err("the probe ended without an answer".to_owned()),
        Err(_) => Err(answer.chars().filter(|c| !c.is_control()).take(300).collect()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str, deadline: Duration) -> Result<GpuProbe, String> {
        ask(OsStr::new("/bin/sh"), &["-c", script], deadline)
    }

    #[test]
    fn an_answer_counts_and_words_are_the_reason() {
        let probe = shell("echo '{\"multiprocessors\": 108}'", DEADLINE);
        assert_eq!(probe, Ok(GpuProbe { multiprocessors: Some(108) }));
        let why = shell("echo the driver is too old; exit 1", DEADLINE);
        assert_eq!(why, Err("the driver is too old".to_owned()));
        assert!(
            shell("[ $CUDA_DEVICE_ORDER = PCI_BUS_ID ] && exit 0; echo order", DEADLINE)
                .is_err_and(|why| why.contains("without an answer"))
        );
    }

    #[test]
    fn a_probe_that_dies_or_hangs_or_babbles_is_no_answer() {
        assert!(shell("kill -9 $$", DEADLINE).is_err_and(|why| why.contains("without an answer")));
        // It would sleep for an hour; the deadline ends it.
        let hung = shell("exec sleep 3600", Duration::from_millis(50));
        assert!(hung.is_err_and(|why| why.contains("did not end")));
        let babble = shell("while :; do echo noise; done", DEADLINE);
        assert!(babble.is_err_and(|why| why.len() <= 300));
        assert!(ask(OsStr::new("/nonexistent"), &[], DEADLINE).is_err());
    }

    #[test]
    fn a_build_without_cuda_starts_nothing() {
        if !allmend_engine::built_with_cuda() {
            assert!(probe_apart(0).is_err_and(|why| why.contains("without CUDA")));
            assert!(probe_here(0).is_err_and(|why| why.contains("without CUDA")));
        }
    }
}
