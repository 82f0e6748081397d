//! The `allmend` executable under test.

use std::io::BufRead as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, ensure};
use serde::Serialize;

use super::reap::Group;

/// Names an executable to use instead of a built one.
pub const PROGRAM_ENV: &str = "ALLMEND_BIN";
const PROGRAM: &str = "allmend";
const PACKAGE: &str = "allmend-node";

/// A program and where it came from.
#[derive(Clone, Debug)]
pub struct Executable {
    /// Its file.
    pub path: PathBuf,
    /// How it was found.
    pub origin: Origin,
}

/// How the executable was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Origin {
    /// `ALLMEND_BIN` names it.
    Named,
    /// Cargo built it from this workspace.
    Built,
    /// It lies beside this program.
    Beside,
}

impl Executable {
    /// The one that `ALLMEND_BIN` names, else as cargo builds it from this workspace with the profile
    /// of this program, else, where there is no cargo, the one beside this program.
    ///
    /// # Errors
    /// When the build fails, which cargo has then explained, or there is none.
    pub fn find() -> anyhow::Result<Executable> {
        if let Some(path) = std::env::var_os(PROGRAM_ENV).filter(|path| !path.is_empty()) {
            let path = Path::new(&path)
                .canonicalize()
                .with_context(|| format!("{PROGRAM_ENV} names {}", Path::new(&path).display()))?;
            return Ok(Executable { path, origin: Origin::Named });
        }
        let manifest = Path::new(env!("CARGO_MANIFEST_DIR")).join("../Cargo.toml");
        let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        if manifest.exists() {
            let started = build_command(&cargo, &manifest).and_then(|mut c| Ok(Group::spawn(&mut c)?));
            match started {
                Ok(group) => {
                    return Ok(Executable { path: built(group)?, origin: Origin::Built });
                }
                Err(error) if !is_missing(&error) => return Err(error.context("cargo cannot be run")),
                Err(_) => {}
            }
        }
        let path = std::env::current_exe()?.with_file_name(PROGRAM);
        ensure!(path.is_file(), "there is neither cargo nor {}", path.display());
        Ok(Executable { path, origin: Origin::Beside })
    }
}

/// The directory in which cargo put this program's profile: `target`, as a rule.
///
/// # Errors
/// When this program's own file is unknown.
pub fn target_dir() -> anyhow::Result<PathBuf> {
    let own = std::env::current_exe().context("this program's own file is unknown")?;
    let mut profile = own.parent().context("this program lies nowhere")?;
    // Tests and examples lie one level deeper.
    if profile.ends_with("deps") || profile.ends_with("examples") {
        profile = profile.parent().unwrap_or(profile);
    }
    Ok(profile.parent().unwrap_or(profile).to_owned())
}

fn build_command(cargo: &std::ffi::OsStr, manifest: &Path) -> anyhow::Result<Command> {
    let mut command = Command::new(cargo);
    command
        .args(["build", "--locked", "--package", PACKAGE, "--bin", PROGRAM])
        .args(["--message-format", "json-render-diagnostics"])
        .arg("--manifest-path")
        .arg(manifest)
        .arg("--target-dir")
        .arg(target_dir()?);
    if !cfg!(debug_assertions) {
        command.arg("--release");
    }
    // What cargo sets for this program's sake would make it build everything anew.
    for (name, _) in std::env::vars_os() {
        if name.to_str().is_some_and(|name| name.starts_with("CARGO_PKG_")) {
            command.env_remove(name);
        }
    }
    command.stdin(Stdio::null()).stdout(Stdio::piped());
    Ok(command)
}

/// Follows the build to its end; cargo itself says on standard error how it goes.
fn built(mut group: Group) -> anyhow::Result<PathBuf> {
    let stdout = group.child().stdout.take().context("no pipe")?;
    let mut path = None;
    for line in std::io::BufReader::new(stdout).lines() {
        let Ok(message) = serde_json::from_str::<serde_json::Value>(&line?) else { continue };
        if message["target"]["name"] == PROGRAM {
            path = message["executable"].as_str().map(PathBuf::from).or(path);
        }
    }
    let status = loop {
        if let Some(status) = group.wait(std::time::Duration::from_secs(1))? {
            break status;
        }
    };
    ensure!(status.success(), "cargo could not build {PROGRAM}");
    path.context("cargo built no executable")
}

fn is_missing(error: &anyhow::Error) -> bool {
    let io = error.downcast_ref::<std::io::Error>();
    io.is_some_and(|error| error.kind() == std::io::ErrorKind::NotFound)
}
