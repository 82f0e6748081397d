//! What is put into the journal, and where it came to lie.

use std::fmt;

use allmend_protocol::log::ENTRY_BYTES_MAX;

use super::error::JournalError;

/// The largest private record. Larger content belongs in a file of its own, by digest.
pub const PRIVATE_BYTES_MAX: usize = 1 << 20;
/// The most records in one append; an append is written and recovered as a whole.
pub const RECORDS_MAX: usize = 1024;
/// The largest append, so that a frame is read in one go.
pub const APPEND_BYTES_MAX: usize = 8 << 20;
/// Private kinds from here up belong to the journal itself.
pub const KIND_RESERVED_FROM: u16 = 0xFF00;

/// One thing to remember.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Record {
    /// An entry of the public log: the exact envelope bytes of a signed message.
    Leaf(Vec<u8>),
    /// Something only this node needs, to rebuild its state.
    Private {
        /// Says to the caller how to read the bytes; 1 to 0xFEFF.
        kind: u16,
        /// The contents.
        bytes: Vec<u8>,
    },
}

impl Record {
    /// Its contents, whatever its kind.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        match self {
            Self::Leaf(bytes) | Self::Private { bytes, .. } => bytes,
        }
    }

    /// The kind on disk: 0 for a leaf.
    pub(super) const fn kind(&self) -> u16 {
        match self {
            Self::Leaf(_) => 0,
            Self::Private { kind, .. } => *kind,
        }
    }

    pub(super) fn of_kind(kind: u16, bytes: Vec<u8>) -> Self {
        if kind == 0 { Self::Leaf(bytes) } else { Self::Private { kind, bytes } }
    }

    /// What the disk will hold more because of it: a leaf also lies in an entry bundle.
    pub(super) fn disk_bytes(&self) -> u64 {
        let len = self.bytes().len() as u64;
        match self {
            Self::Leaf(_) => len.saturating_mul(2).saturating_add(128),
            Self::Private { .. } => len.saturating_add(64),
        }
    }
}

/// Checks what a caller wants to append.
pub(super) fn check(records: &[Record]) -> Result<(), JournalError> {
    if records.is_empty() || records.len() > RECORDS_MAX {
        return Err(JournalError::Count { count: records.len(), max: RECORDS_MAX });
    }
    let mut total = 0_usize;
    for record in records {
        let (len, max) = match record {
            Record::Leaf(bytes) => (bytes.len(), ENTRY_BYTES_MAX),
            Record::Private { kind, bytes } => {
                if *kind == 0 || *kind >= KIND_RESERVED_FROM {
                    return Err(JournalError::ReservedKind(*kind));
                }
                (bytes.len(), PRIVATE_BYTES_MAX)
            }
        };
        if len > max {
            return Err(JournalError::TooLarge { len, max });
        }
        total = total.saturating_add(len);
    }
    if total > APPEND_BYTES_MAX {
        return Err(JournalError::TooLarge { len: total, max: APPEND_BYTES_MAX });
    }
    Ok(())
}

/// Where a record lies; stays valid as long as its segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Position {
    /// Segment file number.
    pub segment: u32,
    /// Byte offset of the record in it.
    pub offset: u64,
}

impl Position {
    /// Twelve bytes, big-endian, so that byte order is journal order.
    #[must_use]
    pub fn to_bytes(self) -> [u8; 12] {
        let mut bytes = [0; 12];
        bytes[..4].copy_from_slice(&self.segment.to_be_bytes());
        bytes[4..].copy_from_slice(&self.offset.to_be_bytes());
        bytes
    }

    /// Reads what [`Position::to_bytes`] wrote.
    #[must_use]
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let (segment, offset) = bytes.split_first_chunk::<4>()?;
        Some(Self {
            segment: u32::from_be_bytes(*segment),
            offset: u64::from_be_bytes(offset.try_into().ok()?),
        })
    }
}

/// A record as the journal holds it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredRecord {
    /// Where it lies.
    pub position: Position,
    /// For a leaf, its index in the log.
    pub leaf_index: Option<u64>,
    /// The record.
    pub record: Record,
}

/// How much of the disk cap a record may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Priority {
    /// New work: refused first.
    Ordinary,
    /// What ends work already promised (receipts, settlements, cancellations): may use the reserve.
    Essential,
}

impl fmt::Display for Priority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ordinary => "ordinary",
            Self::Essential => "essential",
        })
    }
}

/// What a durable append came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Committed {
    /// Log indices of the leaves among the records, in order.
    pub leaf_indices: Vec<u64>,
    /// Positions of all records, in order.
    pub positions: Vec<Position>,
    /// Leaves in the log, these included.
    pub tree_size: u64,
}
