//! The derived index: keys to places in the journal. Always rebuildable, never the truth.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use super::record::StoredRecord;

/// sled's page cache. Its default is a gigabyte, which a GPU host has better use for.
const SLED_CACHE_BYTES: u64 = 16 << 20;
/// The index may lag behind the journal and catches up at start, so it writes at leisure.
const SLED_FLUSH_MS: u64 = 2_000;
/// sled suffers from large values; ours are positions and short facts.
pub const VALUE_BYTES_MAX: usize = 4 * 1024;
/// The longest key.
pub const KEY_BYTES_MAX: usize = 256;

/// A key and its value.
pub type IndexEntry = (Vec<u8>, Vec<u8>);

/// The index cannot be used; the journal can.
#[derive(Clone, Debug, thiserror::Error)]
#[error("the index cannot be used: {0}")]
pub struct IndexError(String);

/// Says what to remember of a record; the journal itself does not know what records mean.
///
/// Must depend on nothing but the record: a rebuilt index equals the one it replaces.
pub trait Indexer: Send + Sync + 'static {
    /// Adds the entries under which `record` shall be found. Entries over the bounds of this module
    /// are left out.
    fn index(&self, record: &StoredRecord, entries: &mut Vec<IndexEntry>);
}

/// Remembers nothing.
#[derive(Clone, Copy, Debug, Default)]
pub struct Unindexed;

impl Indexer for Unindexed {
    fn index(&self, _: &StoredRecord, _: &mut Vec<IndexEntry>) {}
}

/// Which journal the index was made from, and how far it goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AppliedThrough {
    /// Random name of the journal.
    pub journal_id: [u8; 16],
    /// Frames of the journal that are in the index.
    pub frames: u64,
}

impl AppliedThrough {
    fn to_bytes(self) -> Vec<u8> {
        [&self.journal_id[..], &self.frames.to_be_bytes()].concat()
    }

    fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let (journal_id, frames) = bytes.split_first_chunk::<16>()?;
        Some(Self { journal_id: *journal_id, frames: u64::from_be_bytes(frames.try_into().ok()?) })
    }
}

/// An ordered map from short keys to short values.
pub trait Index: Send + Sync + 'static {
    /// The value under `key`.
    ///
    /// # Errors
    /// When the index cannot be read.
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, IndexError>;

    /// Up to `limit` entries whose keys begin with `prefix`, ascending, from behind `after` on.
    ///
    /// # Errors
    /// When the index cannot be read.
    fn scan(
        &self,
        prefix: &[u8],
        after: Option<&[u8]>,
        limit: usize,
    ) -> Result<Vec<IndexEntry>, IndexError>;

    /// Puts entries and the mark that says how far the index goes, all or nothing.
    ///
    /// # Errors
    /// When the index cannot be written.
    fn apply(&self, entries: Vec<IndexEntry>, through: AppliedThrough) -> Result<(), IndexError>;

    /// How far the index goes; `None` if it is empty.
    ///
    /// # Errors
    /// When the index cannot be read.
    fn applied_through(&self) -> Result<Option<AppliedThrough>, IndexError>;

    /// Empties it.
    ///
    /// # Errors
    /// When the index cannot be written.
    fn clear(&self) -> Result<(), IndexError>;

    /// Bytes it takes up on disk.
    fn disk_bytes(&self) -> u64;
}

pub(super) fn within_bounds((key, value): &IndexEntry) -> bool {
    (1..=KEY_BYTES_MAX).contains(&key.len()) && value.len() <= VALUE_BYTES_MAX
}

/// The index on disk.
pub struct SledIndex {
    db: sled::Db,
    entries: sled::Tree,
}

/// Where the mark lies among the entries, so that both change in one batch. No caller's key can
/// be empty.
const MARK_KEY: &[u8] = b"";

impl SledIndex {
    /// Opens the index in `dir`; a damaged one is deleted and begun anew.
    ///
    /// # Errors
    /// When none can be made there.
    pub fn open(dir: &Path) -> Result<Self, IndexError> {
        match Self::try_open(dir) {
            Ok(index) => Ok(index),
            Err(error) => {
                tracing::warn!(%error, "the index is damaged and will be rebuilt");
                std::fs::remove_dir_all(dir).map_err(|error| IndexError(error.to_string()))?;
                Self::try_open(dir)
            }
        }
    }

    fn try_open(dir: &Path) -> Result<Self, IndexError> {
        let open = || {
            let db = sled::Config::new()
                .path(dir)
                .cache_capacity(SLED_CACHE_BYTES)
                .flush_every_ms(Some(SLED_FLUSH_MS))
                .open()?;
            let entries = db.open_tree("entries")?;
            // Touches the pages that lookups start from.
            entries.first()?;
            entries.last()?;
            Ok::<_, sled::Error>(Self { db, entries })
        };
        // On some damage sled panics instead of returning its error.
        match catch_unwind(AssertUnwindSafe(open)) {
            Ok(opened) => opened.map_err(broken),
            Err(_) => Err(IndexError("it cannot be opened".to_owned())),
        }
    }
}

impl Index for SledIndex {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, IndexError> {
        let value = self.entries.get(key).map_err(broken)?;
        Ok(value.map(|value| value.to_vec()))
    }

    fn scan(
        &self,
        prefix: &[u8],
        after: Option<&[u8]>,
        limit: usize,
    ) -> Result<Vec<IndexEntry>, IndexError> {
        use std::ops::Bound;
        let start = match after {
            Some(after) if after >= prefix => Bound::Excluded(after.to_vec()),
            _ => Bound::Included(prefix.to_vec()),
        };
        let mut found = Vec::new();
        for entry in self.entries.range((start, Bound::Unbounded)) {
            let (key, value) = entry.map_err(broken)?;
            if found.len() == limit || !key.starts_with(prefix) {
                break;
            }
            if !key.is_empty() {
                found.push((key.to_vec(), value.to_vec()));
            }
        }
        Ok(found)
    }

    fn apply(&self, entries: Vec<IndexEntry>, through: AppliedThrough) -> Result<(), IndexError> {
        let mut batch = sled::Batch::default();
        for (key, value) in entries.into_iter().filter(within_bounds) {
            batch.insert(key, value);
        }
        batch.insert(MARK_KEY, through.to_bytes());
        self.entries.apply_batch(batch).map_err(broken)
    }

    fn applied_through(&self) -> Result<Option<AppliedThrough>, IndexError> {
        let mark = self.entries.get(MARK_KEY).map_err(broken)?;
        Ok(mark.and_then(|mark| AppliedThrough::from_bytes(&mark)))
    }

    fn clear(&self) -> Result<(), IndexError> {
        self.entries.clear().map_err(broken)
    }

    fn disk_bytes(&self) -> u64 {
        self.db.size_on_disk().unwrap_or(0)
    }
}

fn broken(error: sled::Error) -> IndexError {
    IndexError(error.to_string())
}

/// An index that is gone with the process.
#[derive(Clone, Debug, Default)]
pub struct MemoryIndex(Arc<Mutex<Contents>>);

#[derive(Debug, Default)]
struct Contents {
    entries: BTreeMap<Vec<u8>, Vec<u8>>,
    through: Option<AppliedThrough>,
}

impl MemoryIndex {
    fn contents(&self) -> std::sync::MutexGuard<'_, Contents> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Index for MemoryIndex {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, IndexError> {
        Ok(self.contents().entries.get(key).cloned())
    }

    fn scan(
        &self,
        prefix: &[u8],
        after: Option<&[u8]>,
        limit: usize,
    ) -> Result<Vec<IndexEntry>, IndexError> {
        let contents = self.contents();
        let entries = contents.entries.range(prefix.to_vec()..);
        Ok(entries
            .take_while(|(key, _)| key.starts_with(prefix))
            .filter(|(key, _)| after.is_none_or(|after| key.as_slice() > after))
            .take(limit)
            .map(|(key, value)| (key.clone(), value.clone()))
            .collect())
    }

    fn apply(&self, entries: Vec<IndexEntry>, through: AppliedThrough) -> Result<(), IndexError> {
        let mut contents = self.contents();
        contents.entries.extend(entries.into_iter().filter(within_bounds));
        contents.through = Some(through);
        Ok(())
    }

    fn applied_through(&self) -> Result<Option<AppliedThrough>, IndexError> {
        Ok(self.contents().through)
    }

    fn clear(&self) -> Result<(), IndexError> {
        *self.contents() = Contents::default();
        Ok(())
    }

    fn disk_bytes(&self) -> u64 {
        0
    }
}
