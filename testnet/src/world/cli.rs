//! The command line of `allmend` on one data directory.

use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use serde_json::Value;

use super::reap::Group;

/// No single command of the demo takes longer, a download apart.
const COMMAND_MAX: Duration = Duration::from_secs(180);
/// Pieces of a stream that wait for whoever reads them.
const PIECES_MAX: usize = 64;

/// Runs commands.
#[derive(Clone, Debug)]
pub struct Cli {
    program: PathBuf,
    dir: PathBuf,
}

/// What a command said and how it ended.
#[derive(Clone, Debug)]
pub struct Output {
    /// Exit code; none if a signal ended it.
    pub code: Option<i32>,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

/// As [`Output`], for a command whose answer was read as it came.
#[derive(Clone, Debug)]
pub struct Streamed {
    /// What it said and how it ended.
    pub output: Output,
    /// From the start of the process to the first byte of its answer.
    pub first_after: Option<Duration>,
    /// To the last piece that was more than the final line break.
    pub last_token_after: Duration,
}

impl Cli {
    /// Commands of `program` on the data directory `dir`.
    pub fn new(program: &Path, dir: &Path) -> Cli {
        Cli { program: program.to_owned(), dir: dir.to_owned() }
    }

    /// Its data directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// A command with these arguments, not started. Of our environment it sees no setting of Allmend's
    /// but the log filter.
    pub fn command<S: AsRef<std::ffi::OsStr>>(&self, arguments: &[S]) -> Command {
        let mut command = Command::new(&self.program);
        for (name, _) in std::env::vars_os() {
            if name
                .to_str()
                .is_some_and(|name| name.starts_with("ALLMEND_") && name != "ALLMEND_LOG")
            {
                command.env_remove(name);
            }
        }
        command.arg("--dir").arg(&self.dir).args(arguments).stdin(Stdio::null());
        command
    }

    /// Runs a command to its end, whatever that is.
    ///
    /// # Errors
    /// When it cannot be run or does not end in time.
    pub fn run(&self, arguments: &[&str]) -> anyhow::Result<Output> {
        Ok(self.stream(arguments, |_, _| Ok(()))?.output)
    }

    /// Runs a command that must succeed.
    ///
    /// # Errors
    /// With what the command said, when it fails.
    pub fn ok(&self, arguments: &[&str]) -> anyhow::Result<String> {
        let output = self.run(arguments)?;
        let said = output.stderr.trim();
        ensure!(
            output.code == Some(0),
            "{} failed ({}): {said}",
            shown(arguments),
            output.ending()
        );
        Ok(output.stdout)
    }

    /// Runs a reading command with `--json`; it must succeed.
    ///
    /// # Errors
    /// As [`Cli::ok`], and when the answer is no JSON.
    pub fn json(&self, arguments: &[&str]) -> anyhow::Result<Value> {
        let with_json: Vec<&str> =
            std::iter::once("--json").chain(arguments.iter().copied()).collect();
        let answer = self.ok(&with_json)?;
        serde_json::from_str(&answer)
            .with_context(|| format!("{} printed no JSON", shown(arguments)))
    }

    /// Runs a command and hands over its answer as it comes: the new piece and all so far.
    ///
    /// # Errors
    /// Those of `on_piece`, which end the command; and when it cannot be run or takes too long.
    pub fn stream(
        &self,
        arguments: &[&str],
        mut on_piece: impl FnMut(&str, &str) -> anyhow::Result<()>,
    ) -> anyhow::Result<Streamed> {
        let mut command = self.command(arguments);
        let begun = Instant::now();
        let mut group = Group::spawn(command.stdout(Stdio::piped()).stderr(Stdio::piped()))
            .with_context(|| format!("cannot run {}", self.program.display()))?;
        let mut stdout = group.child().stdout.take().context("no pipe")?;
        let mut stderr = group.child().stderr.take().context("no pipe")?;
        let errors = std::thread::spawn(move || {
            let mut said = Vec::new();
            let _ = stderr.read_to_end(&mut said);
            said
        });
        let (sender, pieces) = std::sync::mpsc::sync_channel(PIECES_MAX);
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(read @ 1..) = stdout.read(&mut buffer) {
                if sender.send((buffer[..read].to_vec(), Instant::now())).is_err() {
                    return;
                }
            }
        });
        let (mut bytes, mut seen) = (Vec::new(), String::new());
        let (mut first_after, mut last_token_after) = (None, Duration::ZERO);
        loop {
            let left = COMMAND_MAX.saturating_sub(begun.elapsed());
            match pieces.recv_timeout(left) {
                Ok((piece, at)) => {
                    if piece != b"\n" {
                        last_token_after = at - begun;
                    }
                    first_after = first_after.or(Some(at - begun));
                    bytes.extend(piece);
                    let whole = whole_characters(&bytes);
                    let fresh = whole.get(seen.len()..).unwrap_or_default().to_owned();
                    seen.push_str(&fresh);
                    on_piece(&fresh, &seen)?;
                }
                Err(std::sync::mpsc::RecvTimeoutError::Disconnected) => break,
                Err(std::sync::mpsc::RecvTimeoutError::Timeout) => {
                    bail!("{} took more than {} s", shown(arguments), COMMAND_MAX.as_secs())
                }
            }
        }
        let left = COMMAND_MAX.saturating_sub(begun.elapsed());
        let status =
            group.wait(left)?.with_context(|| format!("{} does not end", shown(arguments)))?;
        let stderr = String::from_utf8_lossy(&errors.join().unwrap_or_default()).into_owned();
        let output = Output { code: status.code(), stdout: seen, stderr };
        Ok(Streamed { output, first_after, last_token_after })
    }

    /// Runs a command that talks to the terminal by itself, such as one with a progress bar.
    ///
    /// # Errors
    /// When it fails; it has said why.
    pub fn attended(&self, arguments: &[&str], answer: Stdio) -> anyhow::Result<()> {
        let mut group = Group::spawn(self.command(arguments).stdout(answer))
            .with_context(|| format!("cannot run {}", self.program.display()))?;
        let status = loop {
            if let Some(status) = group.wait(COMMAND_MAX)? {
                break status;
            }
        };
        ensure!(status.success(), "{} failed ({status})", shown(arguments));
        Ok(())
    }
}

impl Output {
    fn ending(&self) -> String {
        self.code.map_or_else(|| "by a signal".to_owned(), |code| format!("exit code {code}"))
    }
}

/// What of `bytes` is complete text: a character may be cut by the end of a piece.
fn whole_characters(bytes: &[u8]) -> String {
    match std::str::from_utf8(bytes) {
        Ok(text) => text.to_owned(),
        Err(error) if error.error_len().is_none() => {
            String::from_utf8_lossy(&bytes[..error.valid_up_to()]).into_owned()
        }
        Err(_) => String::from_utf8_lossy(bytes).into_owned(),
    }
}

/// A command as a person would type it; long arguments, such as invitations, are cut.
fn shown(arguments: &[&str]) -> String {
    let mut words = String::from("allmend");
    for argument in arguments {
        let cut: String = argument.chars().take(60).collect();
        words.push(' ');
        words.push_str(&cut);
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn characters_are_never_cut() {
        let text = "Gletscher überall";
        for end in 0..text.len() {
            assert!(text.starts_with(&whole_characters(&text.as_bytes()[..end])), "{end}");
        }
    }
}
