//! A published log, read as an auditor would: checkpoint, then entry bundles (specs/log.md §4).

use std::path::{Path, PathBuf};

use allmend_protocol::envelope::Envelope;
use allmend_protocol::ids::FederationId;
use allmend_protocol::log::{Entries, Tile, TileKind, TreeHash};
use allmend_protocol::message::AnyMessage;
use anyhow::{Context as _, ensure};

/// Entries of a log up to its checkpoint.
#[derive(Clone, Debug, Default)]
pub struct Leaves(Vec<Vec<u8>>);

impl Leaves {
    /// Reads the log in `dir`; one without a checkpoint is empty.
    ///
    /// # Errors
    /// When something that the checkpoint promises is not there.
    pub fn read(dir: &Path) -> anyhow::Result<Leaves> {
        let path = dir.join("checkpoint");
        let note = match std::fs::read_to_string(&path) {
            Ok(note) => note,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return Ok(Leaves::default());
            }
            Err(error) => {
                return Err(error).with_context(|| format!("cannot read {}", path.display()));
            }
        };
        let size = note.lines().nth(1).and_then(|line| line.parse::<u64>().ok());
        let size = size.with_context(|| format!("{} names no size", path.display()))?;
        let mut leaves = Vec::new();
        while (leaves.len() as u64) < size {
            let tile =
                Tile::holding(TileKind::Entries, leaves.len() as u64, size).context("no tile")?;
            let bytes = bundle(dir, &tile)?;
            let before = leaves.len();
            for entry in Entries::new(&bytes).take(usize::from(tile.width())) {
                leaves.push(entry?.to_vec());
            }
            ensure!(leaves.len() > before, "{tile} is empty");
        }
        Ok(Leaves(leaves))
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The place of the first leaf of `self` that `later` does not have in the same place, by its hash.
    #[must_use]
    pub fn lost_in(&self, later: &Leaves) -> Option<usize> {
        let differs = |(at, leaf): (usize, &Vec<u8>)| {
            let kept = later.0.get(at).map(|leaf| TreeHash::leaf(leaf));
            (kept != Some(TreeHash::leaf(leaf))).then_some(at)
        };
        self.0.iter().enumerate().find_map(differs)
    }

    /// The messages, verified.
    ///
    /// # Errors
    /// When an entry is none of this federation.
    pub fn messages(&self, federation: &FederationId) -> anyhow::Result<Vec<AnyMessage>> {
        let verify = |entry: &Vec<u8>| -> anyhow::Result<AnyMessage> {
            Ok(AnyMessage::verify(&Envelope::from_bytes(entry)?, federation)?)
        };
        self.0.iter().map(verify).collect()
    }
}

/// The bundle's bytes. A partial one may have been superseded by a longer one since.
fn bundle(dir: &Path, tile: &Tile) -> anyhow::Result<Vec<u8>> {
    let mut names: Vec<PathBuf> =
        vec![dir.join(tile.to_string()), dir.join(tile.full().to_string())];
    for entry in std::fs::read_dir(dir.join(tile.partial_dir())).into_iter().flatten().flatten() {
        let width = entry.file_name().to_str().and_then(|name| name.parse::<u16>().ok());
        names.extend(width.filter(|width| *width >= tile.width()).map(|_| entry.path()));
    }
    let read = names.iter().find_map(|path| std::fs::read(path).ok());
    read.with_context(|| format!("{tile} is missing in {}", dir.display()))
}
