//! Telling people that a question waits: a program of the operator's gets it as JSON on its standard input.

use std::io::{self, Write as _};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use super::inbox::Question;

/// A program that takes longer is ended.
const PATIENCE: Duration = Duration::from_secs(60);
/// How often it is looked at meanwhile.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// Runs `program` with the question; waits for its end.
///
/// # Errors
/// When it cannot be started, says that it failed, or takes too long.
pub(super) fn run(program: &Path, question: &Question) -> io::Result<()> {
    let mut child = Command::new(program)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()?;
    if let Some(mut stdin) = child.stdin.take() {
        // A program that does not read is no error of ours.
        let _ = stdin.write_all(&serde_json::to_vec(question)?);
    }
    let began = Instant::now();
    loop {
        match child.try_wait()? {
            Some(status) if status.success() => return Ok(()),
            Some(status) => return Err(io::Error::other(format!("it ended with {status}"))),
            None if began.elapsed() > PATIENCE => {
                child.kill()?;
                child.wait()?;
                return Err(io::Error::other("it took too long and was ended"));
            }
            None => std::thread::sleep(LOOK_EVERY),
        }
    }
}
