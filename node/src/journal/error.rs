//! Why the journal refuses or stops.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use allmend_protocol::log::CheckpointError;

use super::record::Priority;

/// Why an operation on the journal, its public log or its index was not done.
#[derive(Clone, Debug, thiserror::Error)]
pub enum JournalError {
    /// Another process has this directory open.
    #[error("{} is in use by another node{}", dir.display(), by(*pid))]
    Locked {
        /// The directory.
        dir: PathBuf,
        /// The process that wrote the lock file, if it can be read.
        pid: Option<u32>,
    },
    /// The operating system refused.
    #[error("cannot {what} {}: {source}", path.display())]
    Io {
        /// What was tried.
        what: &'static str,
        /// On which file.
        path: PathBuf,
        /// Its answer.
        source: Arc<io::Error>,
    },
    /// Bytes that were durable are damaged; nothing was changed.
    #[error(
        "journal segment {segment:08} is damaged at byte {offset} (frame {frame}, before log entry \
         {leaf}): {what}"
    )]
    Corrupt {
        /// Segment file number.
        segment: u32,
        /// Byte offset in it.
        offset: u64,
        /// Number of the damaged frame.
        frame: u64,
        /// Index of the log entry that would have come next.
        leaf: u64,
        /// What is wrong there.
        what: &'static str,
    },
    /// The directory holds the journal of another log name or key.
    #[error("{} holds the journal of another log or key", dir.display())]
    OtherLog {
        /// The directory.
        dir: PathBuf,
    },
    /// A checkpoint was signed that this journal does not lead to: it is an older copy, or another.
    #[error(
        "a checkpoint of {signed} entries was signed, but the journal holds {held} entries that do \
         not lead to it; it may be an old backup"
    )]
    RolledBack {
        /// Size of the signed checkpoint.
        signed: u64,
        /// Entries in the journal.
        held: u64,
    },
    /// Writing would go over the disk cap of this priority.
    #[error("the journal is full for {priority} records: {used} of {cap} bytes are used")]
    Full {
        /// What was to be written.
        priority: Priority,
        /// Bytes in use by journal and log.
        used: u64,
        /// Bytes that records of this priority may fill.
        cap: u64,
    },
    /// A record or an append is larger than the format allows.
    #[error("a record of {len} bytes is larger than {max}")]
    TooLarge {
        /// Its size in bytes.
        len: usize,
        /// The bound in bytes.
        max: usize,
    },
    /// A private record has a kind that the journal keeps for itself.
    #[error("record kind {0:#06x} is reserved")]
    ReservedKind(u16),
    /// An append has no records, or too many.
    #[error("an append has 1 to {max} records, not {count}")]
    Count {
        /// How many it has.
        count: usize,
        /// The bound.
        max: usize,
    },
    /// No record starts at this position.
    #[error("no record starts at segment {segment:08}, byte {offset}")]
    NoRecord {
        /// Segment file number.
        segment: u32,
        /// Byte offset in it.
        offset: u64,
    },
    /// A full tile on disk holds other bytes than the journal says.
    #[error("{} differs from what the journal says; it was not overwritten", path.display())]
    TileDiffers {
        /// The tile.
        path: PathBuf,
    },
    /// A blob is too large or is there with other bytes.
    #[error("blob {digest} is too large or is there with other bytes")]
    Blob {
        /// Its digest in hexadecimal.
        digest: String,
    },
    /// An earlier failure ended this journal's life; restart the node.
    #[error("the journal stopped after an earlier failure: {0}")]
    Failed(String),
    /// The journal was closed.
    #[error("the journal is closed")]
    Closed,
    /// The log name or key cannot sign.
    #[error("the log cannot be signed: {0}")]
    Checkpoint(#[from] CheckpointError),
}

impl JournalError {
    pub(super) fn io(what: &'static str, path: &Path, source: io::Error) -> Self {
        Self::Io { what, path: path.to_owned(), source: Arc::new(source) }
    }
}

fn by(pid: Option<u32>) -> String {
    pid.map(|pid| format!(" (process {pid})")).unwrap_or_default()
}

/// Turns `io::Result` into ours, naming what was tried on which file.
pub(super) trait Tried<T> {
    fn tried(self, what: &'static str, path: &Path) -> Result<T, JournalError>;
}

impl<T> Tried<T> for io::Result<T> {
    fn tried(self, what: &'static str, path: &Path) -> Result<T, JournalError> {
        self.map_err(|source| JournalError::io(what, path, source))
    }
}
