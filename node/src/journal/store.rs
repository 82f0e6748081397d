//! The append-only file itself: stages frames, writes them, makes them durable.
//!
//! Knows nothing of trees, tiles or indexes. After the first error of the disk it refuses
//! everything: what an fsync that failed left on the platter cannot be known.

use std::sync::Arc;

use super::error::{JournalError, Tried as _};
use super::frame::{FRAME_BYTES_MAX, SEGMENT_HEADER_BYTES, SegmentHeader, encode};
use super::record::{Position, Record};
use super::scan::{SEGMENT_BYTES_CEILING, Seen, Survived, recover};
use super::storage::{SegmentFile, Storage};

pub(super) struct Store {
    storage: Arc<dyn Storage>,
    file: Box<dyn SegmentFile>,
    header: SegmentHeader,
    segment_bytes_max: u64,
    /// Bytes of the segments before the current one.
    earlier_bytes: u64,
    /// Bytes in the current file, and how many of them are known to be on the platter.
    written: u64,
    durable: u64,
    frames: u64,
    durable_frames: u64,
    leaves: u64,
    staged: Vec<u8>,
    failed: Option<String>,
}

/// Where a staged append will lie.
#[derive(Debug)]
pub(super) struct Staged {
    pub(super) positions: Vec<Position>,
    pub(super) leaf_indices: Vec<u64>,
}

/// What opening found.
pub(super) struct Opened {
    pub(super) store: Store,
    pub(super) survived: Survived,
}

impl Store {
    /// Opens or begins a journal; cuts off a torn tail. `fresh_id` names it if it is new.
    pub(super) fn open(
        storage: Arc<dyn Storage>,
        log_id: [u8; 12],
        fresh_id: [u8; 16],
        segment_bytes_max: u64,
        visit: impl FnMut(&Seen<'_>) -> Result<(), JournalError>,
    ) -> Result<Opened, JournalError> {
        let survived = match recover(&*storage, visit)? {
            Some(survived) => survived,
            None => begin(&*storage, log_id, fresh_id)?,
        };
        let path = storage.path(survived.last.number);
        if survived.last.log_id != log_id {
            let dir = path.parent().unwrap_or(&path).to_owned();
            return Err(JournalError::OtherLog { dir });
        }
        let mut file = storage.open(survived.last.number).tried("open", &path)?;
        let mut sizes = survived.segments.iter().map(|(_, good)| *good);
        let written = sizes.next_back().unwrap_or_default();
        if survived.torn_bytes > 0 {
            file.truncate(written).tried("truncate", &path)?;
        }
        // What a killed process left in the page cache becomes durable before we build on it.
        file.sync().tried("sync", &path)?;
        let ceiling = SEGMENT_BYTES_CEILING - FRAME_BYTES_MAX as u64;
        let store = Self {
            file,
            header: survived.last,
            segment_bytes_max: segment_bytes_max.min(ceiling),
            earlier_bytes: sizes.sum(),
            written,
            durable: written,
            frames: survived.frames,
            durable_frames: survived.frames,
            leaves: survived.leaves,
            staged: Vec::new(),
            failed: None,
            storage,
        };
        Ok(Opened { store, survived })
    }

    pub(super) const fn journal_id(&self) -> [u8; 16] {
        self.header.journal_id
    }

    /// Frames staged or written so far.
    pub(super) const fn frames(&self) -> u64 {
        self.frames
    }

    /// Bytes of all segments, staged ones included.
    pub(super) const fn bytes(&self) -> u64 {
        self.earlier_bytes + self.written + self.staged.len() as u64
    }

    pub(super) fn usable(&self) -> Result<(), JournalError> {
        self.failed.as_ref().map_or(Ok(()), |why| Err(JournalError::Failed(why.clone())))
    }

    /// Puts one append behind those already staged. It is one frame: it survives whole or not at all.
    pub(super) fn stage(&mut self, records: &[Record]) -> Result<Staged, JournalError> {
        self.usable()?;
        let used = self.written + self.staged.len() as u64;
        if used >= self.segment_bytes_max && used > SEGMENT_HEADER_BYTES as u64 {
            self.commit(true)?;
            self.rotate()?;
        }
        let start = self.written + self.staged.len() as u64;
        let offsets = encode(&mut self.staged, self.frames, self.durable_frames, records);
        self.frames += 1;
        let mut staged =
            Staged { positions: Vec::with_capacity(records.len()), leaf_indices: Vec::new() };
        for (record, offset) in records.iter().zip(offsets) {
            staged
                .positions
                .push(Position { segment: self.header.number, offset: start + offset as u64 });
            if matches!(record, Record::Leaf(_)) {
                staged.leaf_indices.push(self.leaves);
                self.leaves += 1;
            }
        }
        Ok(staged)
    }

    /// Writes what is staged; with `durable`, waits until it is on the platter.
    pub(super) fn commit(&mut self, durable: bool) -> Result<(), JournalError> {
        self.usable()?;
        let path = self.storage.path(self.header.number);
        if !self.staged.is_empty() {
            let written = self.file.append(&self.staged).tried("write", &path);
            self.fatal(written)?;
            self.written += self.staged.len() as u64;
            self.staged.clear();
        }
        if durable && self.durable < self.written {
            let synced = self.file.sync().tried("sync", &path);
            self.fatal(synced)?;
            self.durable = self.written;
            self.durable_frames = self.frames;
        }
        Ok(())
    }

    fn rotate(&mut self) -> Result<(), JournalError> {
        let header = SegmentHeader {
            number: self.header.number.saturating_add(1),
            first_frame: self.frames,
            first_leaf: self.leaves,
            ..self.header
        };
        let path = self.storage.path(header.number);
        let created = self.storage.create(header.number, &header.to_bytes());
        self.file = self.fatal(created.tried("create", &path))?;
        self.header = header;
        self.earlier_bytes += self.written;
        self.written = SEGMENT_HEADER_BYTES as u64;
        self.durable = self.written;
        Ok(())
    }

    /// After an error of the disk: takes back what nobody was promised, and refuses from now on.
    fn fatal<T>(&mut self, result: Result<T, JournalError>) -> Result<T, JournalError> {
        if let Err(error) = &result {
            self.failed = Some(error.to_string());
            // Otherwise pages that never reached the platter could be read back from the cache
            // by the next process and be taken for durable. If this fails too, all is said already.
            if self.file.truncate(self.durable).is_ok() {
                let _ = self.file.sync();
            }
        }
        result
    }
}

fn begin(
    storage: &dyn Storage,
    log_id: [u8; 12],
    journal_id: [u8; 16],
) -> Result<Survived, JournalError> {
    let header = SegmentHeader { number: 0, first_frame: 0, first_leaf: 0, journal_id, log_id };
    storage.create(0, &header.to_bytes()).tried("create", &storage.path(0))?;
    Ok(Survived {
        segments: vec![(0, SEGMENT_HEADER_BYTES as u64)],
        last: header,
        frames: 0,
        leaves: 0,
        torn_bytes: 0,
    })
}
