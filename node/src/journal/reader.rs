//! Single records by position.

use std::sync::Arc;

use super::error::{JournalError, Tried as _};
use super::frame::{RECORD_HEADER_BYTES, record_checksum, record_header};
use super::record::{KIND_RESERVED_FROM, PRIVATE_BYTES_MAX, Position, Record};
use super::storage::Storage;

/// Reads records that were appended before. Blocks on the disk, mostly on the page cache.
#[derive(Clone)]
pub struct Reader {
    storage: Arc<dyn Storage>,
}

impl Reader {
    pub(super) const fn new(storage: Arc<dyn Storage>) -> Self {
        Self { storage }
    }

    /// Reads the record at a position that an append or the index gave.
    ///
    /// # Errors
    /// `NoRecord` if none starts there, and disk errors.
    pub fn read(&self, position: Position) -> Result<Record, JournalError> {
        let Position { segment, offset } = position;
        let path = self.storage.path(segment);
        let file = self.storage.open(segment).tried("open", &path)?;
        let none = || JournalError::NoRecord { segment, offset };
        let size = file.size().tried("measure", &path)?;
        let mut header = [0; RECORD_HEADER_BYTES];
        let start = offset.saturating_add(RECORD_HEADER_BYTES as u64);
        if start > size {
            return Err(none());
        }
        file.read_exact_at(&mut header, offset).tried("read", &path)?;
        let (checksum, len, kind) = record_header(&header);
        if len > PRIVATE_BYTES_MAX || len as u64 > size - start || kind >= KIND_RESERVED_FROM {
            return Err(none());
        }
        let mut bytes = vec![0; len];
        file.read_exact_at(&mut bytes, start).tried("read", &path)?;
        if record_checksum(kind, &bytes) != checksum {
            return Err(none());
        }
        Ok(Record::of_kind(kind, bytes))
    }
}
