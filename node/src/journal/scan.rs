//! Reading segments back: at start to find what survived, later to replay it.

use std::sync::Arc;

use super::error::{JournalError, Tried as _};
use super::frame::{Frame, SEGMENT_HEADER_BYTES, SegmentHeader, next_whole_frame};
use super::record::{KIND_RESERVED_FROM, Position, Record, StoredRecord};
use super::storage::Storage;

/// The largest segment file read; no setting makes larger ones.
pub(super) const SEGMENT_BYTES_CEILING: u64 = 256 << 20;

/// One record as it lies in a segment, the journal's own included.
pub(super) struct Seen<'a> {
    pub(super) frame: u64,
    pub(super) position: Position,
    /// Leaves before this record.
    pub(super) leaves: u64,
    pub(super) kind: u16,
    pub(super) bytes: &'a [u8],
}

impl Seen<'_> {
    /// Whether the journal wrote it for itself.
    pub(super) const fn is_own(&self) -> bool {
        self.kind >= KIND_RESERVED_FROM
    }

    /// As callers see it; `None` for the journal's own records.
    pub(super) fn stored(&self) -> Option<StoredRecord> {
        (!self.is_own()).then(|| StoredRecord {
            position: self.position,
            leaf_index: (self.kind == 0).then_some(self.leaves),
            record: Record::of_kind(self.kind, self.bytes.to_vec()),
        })
    }

    /// The error that this record's contents cannot be.
    pub(super) fn corrupt(&self, what: &'static str) -> JournalError {
        JournalError::Corrupt {
            segment: self.position.segment,
            offset: self.position.offset,
            frame: self.frame,
            leaf: self.leaves,
            what,
        }
    }
}

/// What [`recover`] found.
#[derive(Clone, Debug)]
pub(super) struct Survived {
    /// Segments and how many bytes of each are good, in order; not empty.
    pub(super) segments: Vec<(u32, u64)>,
    /// Header of the last segment.
    pub(super) last: SegmentHeader,
    /// Frames in all.
    pub(super) frames: u64,
    /// Leaves in all.
    pub(super) leaves: u64,
    /// Bytes behind the last good frame, which a crash left unfinished.
    pub(super) torn_bytes: u64,
}

/// Reads all segments, shows each record to `visit`, and says where the good bytes end.
///
/// Changes nothing. `None` if there is no journal yet.
///
/// # Errors
/// `Corrupt` for damage to bytes that had been durable, and what `visit` returns.
pub(super) fn recover(
    storage: &dyn Storage,
    mut visit: impl FnMut(&Seen<'_>) -> Result<(), JournalError>,
) -> Result<Option<Survived>, JournalError> {
    let numbers = storage.segments().tried("list", &storage.path(0))?;
    let Some(last_number) = numbers.last().copied() else {
        return Ok(None);
    };
    let mut cursor = Cursor::default();
    let mut survived = None;
    for (expected, number) in (0_u32..).zip(numbers) {
        if number != expected {
            return Err(cursor.corrupt(expected, 0, "the segment is missing"));
        }
        let bytes = load(storage, number)?;
        let header = cursor.header(number, &bytes)?;
        let good = cursor.frames(number, &bytes, &mut visit)?;
        let rest = &bytes[good..];
        if !rest.is_empty() {
            // A segment is made only when the one before it is durable to its end.
            if number != last_number || durable_later(rest, cursor.frames) {
                return Err(cursor.corrupt(
                    number,
                    good,
                    "bytes that were durable are not a frame",
                ));
            }
        }
        let survived = survived.get_or_insert_with(|| Survived {
            segments: Vec::new(),
            last: header,
            frames: 0,
            leaves: 0,
            torn_bytes: 0,
        });
        survived.segments.push((number, good as u64));
        survived.last = header;
        survived.torn_bytes = rest.len() as u64;
    }
    Ok(survived.map(|survived: Survived| Survived {
        frames: cursor.frames,
        leaves: cursor.leaves,
        ..survived
    }))
}

/// Whether a whole frame in `rest` says that frame `missing` had been durable.
fn durable_later(mut rest: &[u8], missing: u64) -> bool {
    while let Some((at, frame)) = next_whole_frame(rest) {
        if frame.durable > missing {
            return true;
        }
        rest = &rest[at + frame.len()..];
    }
    false
}

/// Counts frames and leaves over all segments.
#[derive(Default)]
struct Cursor {
    frames: u64,
    leaves: u64,
    journal_id: Option<[u8; 16]>,
}

impl Cursor {
    fn corrupt(&self, segment: u32, offset: usize, what: &'static str) -> JournalError {
        JournalError::Corrupt {
            segment,
            offset: offset as u64,
            frame: self.frames,
            leaf: self.leaves,
            what,
        }
    }

    fn header(&mut self, number: u32, bytes: &[u8]) -> Result<SegmentHeader, JournalError> {
        // A segment appears under its name with its header durable: no crash leaves a torn one.
        let header = SegmentHeader::from_bytes(bytes)
            .ok_or_else(|| self.corrupt(number, 0, "the segment header is damaged"))?;
        let id = *self.journal_id.get_or_insert(header.journal_id);
        let follows = header.number == number
            && header.first_frame == self.frames
            && header.first_leaf == self.leaves
            && header.journal_id == id;
        if !follows {
            return Err(self.corrupt(number, 0, "the segment does not follow the one before"));
        }
        Ok(header)
    }

    /// Walks the good frames of a segment and returns the offset at which they end.
    fn frames(
        &mut self,
        segment: u32,
        bytes: &[u8],
        visit: &mut impl FnMut(&Seen<'_>) -> Result<(), JournalError>,
    ) -> Result<usize, JournalError> {
        let mut at = SEGMENT_HEADER_BYTES;
        while let Some(frame) = Frame::at_start(&bytes[at..]) {
            if frame.number != self.frames {
                break;
            }
            for record in frame.records() {
                let (offset, kind, bytes) =
                    record.ok_or_else(|| self.corrupt(segment, at, "a record is damaged"))?;
                visit(&Seen {
                    frame: frame.number,
                    position: Position { segment, offset: (at + offset) as u64 },
                    leaves: self.leaves,
                    kind,
                    bytes,
                })?;
                self.leaves += u64::from(kind == 0);
            }
            at += frame.len();
            self.frames += 1;
        }
        Ok(at)
    }
}

fn load(storage: &dyn Storage, number: u32) -> Result<Vec<u8>, JournalError> {
    let path = storage.path(number);
    let file = storage.open(number).tried("open", &path)?;
    let size = file.size().tried("measure", &path)?;
    if size > SEGMENT_BYTES_CEILING {
        return Err(JournalError::Corrupt {
            segment: number,
            offset: SEGMENT_BYTES_CEILING,
            frame: 0,
            leaf: 0,
            what: "the segment is larger than any that is written",
        });
    }
    let mut bytes = vec![0; size as usize];
    file.read_exact_at(&mut bytes, 0).tried("read", &path)?;
    Ok(bytes)
}

/// All records that the journal held when it was opened, in order; holds one segment in memory.
pub struct Replay {
    storage: Arc<dyn Storage>,
    segments: std::vec::IntoIter<(u32, u64)>,
    from_frame: u64,
    cursor: Cursor,
    loaded: std::vec::IntoIter<StoredRecord>,
}

impl Replay {
    /// Gives the records of frame `from_frame` and later ones.
    pub(super) fn new(
        storage: Arc<dyn Storage>,
        segments: Vec<(u32, u64)>,
        from_frame: u64,
    ) -> Self {
        Self {
            storage,
            from_frame,
            segments: segments.into_iter(),
            cursor: Cursor::default(),
            loaded: Vec::new().into_iter(),
        }
    }

    fn load_segment(&mut self, number: u32, good: u64) -> Result<(), JournalError> {
        let mut bytes = load(&*self.storage, number)?;
        bytes.truncate(good as usize);
        self.cursor.header(number, &bytes)?;
        let mut loaded = Vec::new();
        let from = self.from_frame;
        let end = self.cursor.frames(number, &bytes, &mut |seen| {
            if seen.frame >= from {
                loaded.extend(seen.stored());
            }
            Ok(())
        })?;
        if end != bytes.len() {
            let what = "the segment changed since it was opened";
            return Err(self.cursor.corrupt(number, end, what));
        }
        self.loaded = loaded.into_iter();
        Ok(())
    }
}

impl Iterator for Replay {
    type Item = Result<StoredRecord, JournalError>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some(record) = self.loaded.next() {
                return Some(Ok(record));
            }
            let (number, good) = self.segments.next()?;
            if let Err(error) = self.load_segment(number, good) {
                self.segments = Vec::new().into_iter();
                return Some(Err(error));
            }
        }
    }
}
