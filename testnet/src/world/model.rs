//! The model of worlds: pulled once per target directory, linked into each node from there.

use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::Context as _;
use serde::Serialize;

use super::{Cli, executable, text};

/// The model that worlds run: real, instruct, small.
pub const MODEL: &str = "smollm2-135m";
/// Beside cargo's own directories, so that it survives many worlds and goes with `cargo clean`.
const CACHE: &str = "testnet-models";

/// A model on this machine.
#[derive(Clone, Debug, Serialize)]
pub struct Model {
    /// Its name.
    pub name: String,
    /// SHA-256 of its weights, in hexadecimal.
    pub digest: String,
    /// Their size.
    pub bytes: u64,
    /// Their file.
    #[serde(skip)]
    pub path: PathBuf,
    /// Where it came from.
    pub pulled_from: PulledFrom,
}

/// Where a model came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum PulledFrom {
    /// Fetched now.
    Source,
    /// Fetched by an earlier world.
    Cache,
}

impl Model {
    /// Pulls [`MODEL`] with a progress bar, unless an earlier world has.
    ///
    /// # Errors
    /// When it cannot be fetched, or is not what the catalogue says.
    pub fn pull(program: &Path) -> anyhow::Result<Model> {
        let dir = executable::target_dir()?.join(CACHE);
        std::fs::create_dir_all(&dir)?;
        // One world at a time: tests run side by side.
        let lock = std::fs::File::create(dir.join("lock"))?;
        lock.lock().context("the model cache cannot be locked")?;
        let cli = Cli::new(program, &dir);
        let cached = cli.run(&["--json", "models", "show", MODEL])?.code == Some(0);
        if !cached {
            cli.attended(&["models", "pull", MODEL], Stdio::null())?;
        }
        let shown = cli.json(&["models", "show", MODEL])?;
        Ok(Model {
            name: MODEL.to_owned(),
            digest: text(&shown, "digest").to_owned(),
            bytes: shown["bytes"].as_u64().unwrap_or_default(),
            path: text(&shown, "path").into(),
            pulled_from: if cached { PulledFrom::Cache } else { PulledFrom::Source },
        })
    }

    /// Gives it to the node of `cli`, which verifies its digest anew.
    ///
    /// # Errors
    /// When its bytes are no longer those that were pulled.
    pub fn give(&self, cli: &Cli) -> anyhow::Result<()> {
        let path = self.path.to_str().context("the model's path is no text")?;
        let arguments =
            ["models", "pull", path, "--link", "--name", &self.name, "--digest", &self.digest];
        cli.ok(&arguments).with_context(|| {
            format!("the cached model {path} may be damaged; remove {CACHE} to fetch it anew")
        })?;
        Ok(())
    }
}
