//! The public log directory: tiles, entry bundles, blobs and the checkpoint, as plain files.
//!
//! Everything here is derived from the journal. Delete the directory and start the node, and it is
//! there again. Formats: specs/log.md; what is written when: specs/journal.md §4.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use allmend_protocol::log::{
    Checkpoint, NoteSigner, SignedCheckpoint, TILE_WIDTH, Tile, TileKind, Tree, TreeHash, bundle,
    note,
};
use data_encoding::HEXLOWER;

use super::error::{JournalError, Tried as _};
use super::storage::{make_dir, replace};

/// The largest blob: a charter of hundreds of institutions is far below it.
pub const BLOB_BYTES_MAX: usize = 1 << 20;
/// Full tiles that may wait to be written. While recovering they are written as they come.
const WAITING_MAX: usize = 64;

const DIR_MODE: u32 = 0o755;
const FILE_MODE: u32 = 0o644;

/// A log's size and root, as signed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head {
    /// Number of leaves.
    pub size: u64,
    /// Root over them.
    pub root: TreeHash,
}

pub(super) struct PublicLog {
    dir: PathBuf,
    signer: NoteSigner,
    tree: Tree,
    /// Hashes of the unfinished tile of each tile level.
    rows: Vec<Vec<TreeHash>>,
    /// Entries of the unfinished bundle, framed.
    bundle: Vec<u8>,
    /// Full tiles not yet written.
    waiting: Vec<(Tile, Vec<u8>)>,
    /// Partial tiles that the last checkpoint relies on.
    partials: Vec<Tile>,
    published: Option<SignedCheckpoint>,
    recovering: bool,
    /// Set when full tiles could not be written for too long; a restart writes them.
    behind: bool,
    entry_bytes: u64,
    blob_bytes: u64,
}

impl PublicLog {
    /// Begins with an empty tree; recovery pushes the leaves.
    pub(super) fn new(dir: &Path, signer: NoteSigner) -> Result<Self, JournalError> {
        for dir in [dir.to_owned(), dir.join("tile"), dir.join("blob")] {
            make_dir(&dir, DIR_MODE).tried("create", &dir)?;
        }
        let key = dir.join("key");
        let line = format!("{}\n", signer.verifier());
        if fs::read(&key).ok().as_deref() != Some(line.as_bytes()) {
            replace(&key, line.as_bytes(), FILE_MODE, true).tried("write", &key)?;
        }
        Ok(Self {
            blob_bytes: dir_bytes(&dir.join("blob")).tried("read", dir)?,
            dir: dir.to_owned(),
            signer,
            tree: Tree::new(),
            rows: Vec::new(),
            bundle: Vec::new(),
            waiting: Vec::new(),
            partials: Vec::new(),
            published: None,
            recovering: true,
            behind: false,
            entry_bytes: 0,
        })
    }

    /// The head of the checkpoint that lies in the directory, if it is ours.
    pub(super) fn head_on_disk(&self) -> Option<Head> {
        let path = self.dir.join("checkpoint");
        let len = fs::symlink_metadata(&path).ok()?.len();
        if len > note::NOTE_BYTES_MAX as u64 {
            return None;
        }
        let bytes = fs::read(&path).ok()?;
        match SignedCheckpoint::verify(&bytes, self.signer.verifier()) {
            Ok(signed) => Some(head_of(&signed)),
            Err(error) => {
                tracing::warn!(%error, "the published checkpoint is not ours and is replaced");
                None
            }
        }
    }

    pub(super) const fn size(&self) -> u64 {
        self.tree.size()
    }

    pub(super) fn head(&self) -> Head {
        Head { size: self.tree.size(), root: self.tree.root() }
    }

    pub(super) const fn published(&self) -> Option<&SignedCheckpoint> {
        self.published.as_ref()
    }

    /// Bytes of the files, without directory blocks.
    pub(super) fn bytes(&self) -> u64 {
        // Each tile row is a 256th of the one below it.
        let leaves = self.tree.size().saturating_mul(32);
        let hashes = leaves.saturating_add(leaves / 255);
        self.entry_bytes + self.blob_bytes + hashes
    }

    /// Takes the next leaf. Nothing is written before [`PublicLog::write_full_tiles`].
    pub(super) fn push(&mut self, entry: &[u8]) -> Result<(), JournalError> {
        let Self { tree, rows, bundle, waiting, .. } = self;
        bundle::push_entry(bundle, entry).map_err(|_| JournalError::TooLarge {
            len: entry.len(),
            max: bundle::ENTRY_BYTES_MAX,
        })?;
        self.entry_bytes += 2 + entry.len() as u64;
        let last = u64::from(TILE_WIDTH) - 1;
        let index = tree.append_with(TreeHash::leaf(entry), |level, index, hash| {
            if level % 8 != 0 {
                return;
            }
            let row = level as usize / 8;
            if rows.len() <= row {
                rows.resize_with(row + 1, Vec::new);
            }
            rows[row].push(hash);
            if index & last == last {
                let kind = TileKind::Hashes(row as u8);
                let hashes = std::mem::take(&mut rows[row]);
                waiting.extend(full(kind, index).map(|tile| (tile, tile_bytes(&hashes))));
            }
        });
        if index & last == last {
            let entries = std::mem::take(bundle);
            waiting.extend(full(TileKind::Entries, index).map(|tile| (tile, entries)));
        }
        if self.waiting.len() < WAITING_MAX {
            return Ok(());
        }
        if self.recovering {
            return self.write_full_tiles();
        }
        self.behind = true;
        self.waiting.clear();
        Ok(())
    }

    /// Writes the tiles that became full. Their leaves must be durable in the journal.
    pub(super) fn write_full_tiles(&mut self) -> Result<(), JournalError> {
        while let Some((tile, bytes)) = self.waiting.first() {
            self.write_full_tile(*tile, bytes)?;
            self.waiting.remove(0);
        }
        Ok(())
    }

    fn write_full_tile(&self, tile: Tile, bytes: &[u8]) -> Result<(), JournalError> {
        let path = self.dir.join(tile.to_string());
        if self.recovering {
            // The audit compares contents; at start a look at the lengths has to do.
            let same_len = fs::symlink_metadata(&path)
                .is_ok_and(|meta| meta.is_file() && meta.len() == bytes.len() as u64);
            if !same_len {
                write(&path, bytes, true)?;
            }
            return remove_dir(&self.dir.join(tile.partial_dir()));
        }
        match fs::read(&path) {
            Ok(there) if there == bytes => Ok(()),
            Ok(_) => Err(JournalError::TileDiffers { path }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => write(&path, bytes, true),
            Err(error) => Err(JournalError::io("read", &path, error)),
        }
    }

    /// Ends recovery: all leaves of the journal have been pushed. Publishes, then deletes partial
    /// tiles that were left over from before.
    pub(super) fn recovered(&mut self) -> Result<SignedCheckpoint, JournalError> {
        self.write_full_tiles()?;
        self.recovering = false;
        let signed = self.publish()?;
        for tile in &self.partials {
            let dir = self.dir.join(tile.partial_dir());
            for entry in fs::read_dir(&dir).tried("read", &dir)? {
                let path = entry.tried("read", &dir)?.path();
                if path != self.dir.join(tile.to_string()) {
                    gone(fs::remove_file(&path)).tried("delete", &path)?;
                }
            }
        }
        Ok(signed)
    }

    /// Signs and publishes the present head, which the journal must have recorded durably.
    ///
    /// Order: tiles, then the checkpoint that relies on them, then the tiles nobody needs any more
    /// are deleted. A reader who follows the newest checkpoint finds all of its tiles.
    pub(super) fn publish(&mut self) -> Result<SignedCheckpoint, JournalError> {
        self.write_full_tiles()?;
        if self.behind {
            let why = "full tiles of the public log could not be written";
            return Err(JournalError::Failed(why.to_owned()));
        }
        let edge = self.right_edge();
        for tile in &edge {
            let bytes = match tile.kind() {
                TileKind::Entries => self.bundle.clone(),
                TileKind::Hashes(level) => {
                    tile_bytes(self.rows.get(usize::from(level)).map_or(&[], Vec::as_slice))
                }
            };
            write(&self.dir.join(tile.to_string()), &bytes, false)?;
        }
        let Head { size, root } = self.head();
        let origin = self.signer.verifier().name().clone();
        let signed = Checkpoint { origin, size, root }.sign(&self.signer)?;
        let path = self.dir.join("checkpoint");
        replace(&path, signed.note().to_string().as_bytes(), FILE_MODE, true)
            .tried("write", &path)?;
        for old in std::mem::replace(&mut self.partials, edge) {
            self.retire(old)?;
        }
        self.published = Some(signed.clone());
        Ok(signed)
    }

    /// Partial tiles of the present size.
    fn right_edge(&self) -> Vec<Tile> {
        let levels = (0..self.rows.len() as u8).map(TileKind::Hashes);
        levels
            .chain([TileKind::Entries])
            .filter_map(|kind| Tile::rightmost(kind, self.tree.size()))
            .filter(Tile::is_partial)
            .collect()
    }

    fn retire(&self, old: Tile) -> Result<(), JournalError> {
        if self.partials.contains(&old) {
            return Ok(());
        }
        if self.partials.iter().any(|new| new.full() == old.full()) {
            let path = self.dir.join(old.to_string());
            return gone(fs::remove_file(&path)).tried("delete", &path);
        }
        remove_dir(&self.dir.join(old.partial_dir()))
    }

    /// Stores bytes that leaves name by digest.
    pub(super) fn put_blob(&mut self, digest: &[u8; 32], bytes: &[u8]) -> Result<(), JournalError> {
        let digest = HEXLOWER.encode(digest);
        let path = self.dir.join("blob").join(&digest);
        match fs::read(&path) {
            Ok(there) if there == bytes => return Ok(()),
            Ok(_) => return Err(JournalError::Blob { digest }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(JournalError::io("read", &path, error)),
        }
        if bytes.len() > BLOB_BYTES_MAX {
            return Err(JournalError::Blob { digest });
        }
        write(&path, bytes, true)?;
        self.blob_bytes += bytes.len() as u64;
        Ok(())
    }
}

pub(super) fn head_of(signed: &SignedCheckpoint) -> Head {
    Head { size: signed.checkpoint().size, root: signed.checkpoint().root }
}

fn full(kind: TileKind, last: u64) -> Option<Tile> {
    Tile::new(kind, last / u64::from(TILE_WIDTH), TILE_WIDTH).ok()
}

fn tile_bytes(hashes: &[TreeHash]) -> Vec<u8> {
    hashes.iter().flat_map(|hash| *hash.as_bytes()).collect()
}

fn write(path: &Path, bytes: &[u8], durable: bool) -> Result<(), JournalError> {
    if let Some(dir) = path.parent() {
        make_dir(dir, DIR_MODE).tried("create", dir)?;
    }
    replace(path, bytes, FILE_MODE, durable).tried("write", path)
}

fn remove_dir(dir: &Path) -> Result<(), JournalError> {
    gone(fs::remove_dir_all(dir)).tried("delete", dir)
}

fn gone(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

fn dir_bytes(dir: &Path) -> io::Result<u64> {
    let mut bytes = 0_u64;
    for entry in fs::read_dir(dir)? {
        bytes = bytes.saturating_add(entry?.metadata()?.len());
    }
    Ok(bytes)
}
