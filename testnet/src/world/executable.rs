//! The `allmend` executable under test.

use std::io::BufRead as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, ensure};
use serde::Serialize;

use super::reap::Group;

/// Names an executable to use instead of a built one.
pub(super) const PROGRAM_ENV: &str = "ALLMEND_BIN";
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
    /// The one that `ALLMEND_BIN` names; else the one beside this program, if it is newer than all of
    /// its sources; else as cargo builds it from this workspace with the profile of this program; else,
    /// where there is no cargo, the one beside this program.
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
        if let Some(path) = built_already() {
            return Ok(Executable { path, origin: Origin::Beside });
        }
        if manifest().exists() {
            match build(PACKAGE, &["--bin", PROGRAM], PROGRAM) {
                Ok(path) => return Ok(Executable { path, origin: Origin::Built }),
                Err(error) if !is_missing(&error) => return Err(error),
                Err(_) => {}
            }
        }
        let path = std::env::current_exe()?.with_file_name(PROGRAM);
        ensure!(path.is_file(), "there is neither cargo nor {}", path.display());
        Ok(Executable { path, origin: Origin::Beside })
    }

    /// Builds the example `name` of `package`, with the profile of this program.
    ///
    /// # Errors
    /// When there is no cargo or the build fails.
    pub fn example(package: &str, name: &str) -> anyhow::Result<PathBuf> {
        build(package, &["--example", name], name)
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

fn manifest() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../Cargo.toml")
}

/// The executable beside this program, if nothing that it is made of has changed since. `cargo test
/// --workspace` has built it already, and asking cargo for one package alone would resolve the features
/// of dependencies anew and build many of them twice.
fn built_already() -> Option<PathBuf> {
    let mut dir = std::env::current_exe().ok()?.parent()?.to_owned();
    if dir.ends_with("deps") || dir.ends_with("examples") {
        dir.pop();
    }
    let path = dir.join(PROGRAM);
    let built = path.metadata().ok()?.modified().ok()?;
    let root = manifest().parent()?.to_owned();
    let sources = ["protocol", "scheduler", "node", "Cargo.toml", "Cargo.lock"];
    sources.iter().all(|part| unchanged_since(&root.join(part), built)).then_some(path)
}

/// Whether no source at or below `path` was changed after `built`.
fn unchanged_since(path: &Path, built: SystemTime) -> bool {
    let Ok(metadata) = path.metadata() else { return false };
    if metadata.is_dir() {
        let Ok(entries) = path.read_dir() else { return false };
        return entries.flatten().all(|entry| unchanged_since(&entry.path(), built));
    }
    let source = path.extension().is_some_and(|ending| ending == "rs" || ending == "toml")
        || path.ends_with("Cargo.lock");
    !source || metadata.modified().is_ok_and(|changed| changed <= built)
}

/// Builds one target of `package` and gives its executable; cargo itself says on standard error how it
/// goes.
fn build(package: &str, target: &[&str], name: &str) -> anyhow::Result<PathBuf> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    command
        .args(["build", "--locked", "--package", package])
        .args(target)
        .args(["--message-format", "json-render-diagnostics"])
        .arg("--manifest-path")
        .arg(manifest())
        .arg("--target-dir")
        .arg(target_dir()?);
    if !cfg!(debug_assertions) {
        command.arg("--release");
    }
    // What cargo has set for this program's sake is not for the other.
    for (name, _) in std::env::vars_os() {
        if name.to_str().is_some_and(|name| name.starts_with("CARGO_PKG_")) {
            command.env_remove(name);
        }
    }
    let mut group = Group::spawn(command.stdin(Stdio::null()).stdout(Stdio::piped()))?;
    let stdout = group.child().stdout.take().context("no pipe")?;
    let mut path = None;
    for line in std::io::BufReader::new(stdout).lines() {
        let Ok(message) = serde_json::from_str::<serde_json::Value>(&line?) else { continue };
        if message["target"]["name"] == name {
            path = message["executable"].as_str().map(PathBuf::from).or(path);
        }
    }
    let status = loop {
        if let Some(status) = group.wait(Duration::from_secs(1))? {
            break status;
        }
    };
    ensure!(status.success(), "cargo could not build {name}");
    path.with_context(|| format!("cargo built no executable {name}"))
}

fn is_missing(error: &anyhow::Error) -> bool {
    let io = error.downcast_ref::<std::io::Error>();
    io.is_some_and(|error| error.kind() == std::io::ErrorKind::NotFound)
}
