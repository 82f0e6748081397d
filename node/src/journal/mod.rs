//! The log is the journal: one append-only file that holds what this node has said and done.
//!
//! Public leaves and private records lie in one checksummed sequence (specs/journal.md). Appends
//! are durable when their future resolves, in groups that share one fdatasync. Two things are
//! derived from it and can be deleted at any time: the public log directory for auditors and the
//! index for lookups. The journal does not know what its records mean.

mod error;
mod frame;
mod index;
mod lock;
mod open;
mod public;
mod reader;
mod record;
mod scan;
mod storage;
mod store;
mod writer;

#[cfg(test)]
mod fault;
#[cfg(test)]
mod tests;

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};
use std::thread::JoinHandle;

use allmend_protocol::log::SignedCheckpoint;
use tokio::sync::{mpsc, oneshot};

pub use error::JournalError;
pub use index::{
    AppliedThrough, Index, IndexEntry, IndexError, Indexer, KEY_BYTES_MAX, MemoryIndex, SledIndex,
    Unindexed, VALUE_BYTES_MAX,
};
pub use open::{JournalOptions, Recovered};
pub use public::{BLOB_BYTES_MAX, Head};
pub use reader::Reader;
pub use record::{
    APPEND_BYTES_MAX, Committed, KIND_RESERVED_FROM, PRIVATE_BYTES_MAX, Position, Priority,
    RECORDS_MAX, Record, StoredRecord,
};
pub use scan::Replay;
pub use storage::{Disk, SegmentFile, Storage};

use writer::{Budget, Command, Figures};

/// An open journal. Dropping it makes everything durable and frees the directory.
pub struct Journal {
    commands: Option<mpsc::Sender<Command>>,
    thread: Option<JoinHandle<()>>,
    reader: Reader,
    index: Arc<dyn Index>,
    budget: Budget,
    figures: Arc<Figures>,
    /// Held for as long as the thread may write.
    _lock: lock::Lock,
}

/// Disk space taken and left.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Usage {
    /// Bytes of all segments.
    pub journal_bytes: u64,
    /// Bytes of the public log's files.
    pub log_bytes: u64,
    /// Bytes of the index, as it counts them.
    pub index_bytes: u64,
    /// What journal and log may take together.
    pub cap_bytes: u64,
    /// What is left for ordinary records.
    pub ordinary_left_bytes: u64,
    /// What is left for essential ones.
    pub essential_left_bytes: u64,
}

impl Journal {
    /// Enqueues an append: all of its records become durable together, or none. Appends keep the
    /// order in which this was called and awaited. The ticket resolves when they are durable.
    ///
    /// # Errors
    /// Records over their bounds, or `Closed`. The ticket gives `Full`, `Failed` and disk errors.
    pub async fn submit(
        &self,
        records: Vec<Record>,
        priority: Priority,
    ) -> Result<Ticket, JournalError> {
        record::check(&records)?;
        let (reply, answer) = oneshot::channel();
        self.send(Command::Append { records, priority, reply: Some(reply) }).await?;
        Ok(Ticket(answer))
    }

    /// Appends and waits until it is durable.
    ///
    /// # Errors
    /// As [`Journal::submit`] and its ticket.
    pub async fn append(
        &self,
        records: Vec<Record>,
        priority: Priority,
    ) -> Result<Committed, JournalError> {
        self.submit(records, priority).await?.await
    }

    /// Appends a private record that nobody waits for: it survives the death of the process, and a
    /// power cut only if a durable append follows. It is dropped, with a warning, when the journal
    /// is full.
    ///
    /// # Errors
    /// A record over its bounds, or `Closed`.
    pub async fn append_lazy(&self, kind: u16, bytes: Vec<u8>) -> Result<(), JournalError> {
        let records = vec![Record::Private { kind, bytes }];
        // Kind 0 is refused here, so a leaf cannot be appended lazily.
        record::check(&records)?;
        self.send(Command::Append { records, priority: Priority::Ordinary, reply: None }).await
    }

    /// Publishes tiles and a checkpoint of everything appended before. Costs nothing if that is
    /// published already; call it on a tick, after settlements, and at shutdown.
    ///
    /// # Errors
    /// `TileDiffers`, `Failed` and disk errors; the journal itself may still be in order.
    pub async fn publish(&self) -> Result<SignedCheckpoint, JournalError> {
        let (reply, answer) = oneshot::channel();
        self.send(Command::Publish(reply)).await?;
        answer.await.unwrap_or(Err(JournalError::Closed))
    }

    /// Stores bytes in the public log under the digest by which leaves name them. Do it before
    /// such a leaf is appended.
    ///
    /// # Errors
    /// `Blob` if it is too large or other bytes have that name, and disk errors.
    pub async fn put_blob(&self, digest: [u8; 32], bytes: Vec<u8>) -> Result<(), JournalError> {
        let (reply, answer) = oneshot::channel();
        self.send(Command::Blob { digest, bytes, reply }).await?;
        answer.await.unwrap_or(Err(JournalError::Closed))
    }

    /// Reads single records back by position; may be cloned and used from any thread.
    #[must_use]
    pub const fn reader(&self) -> &Reader {
        &self.reader
    }

    /// The derived index. An append is in it when its ticket resolves.
    #[must_use]
    pub fn index(&self) -> &Arc<dyn Index> {
        &self.index
    }

    /// Disk space taken and left.
    #[must_use]
    pub fn usage(&self) -> Usage {
        let journal_bytes = self.figures.journal_bytes.load(Ordering::Relaxed);
        let log_bytes = self.figures.log_bytes.load(Ordering::Relaxed);
        let left = |priority| {
            let used = journal_bytes.saturating_add(log_bytes);
            self.budget.cap(priority).saturating_sub(used)
        };
        Usage {
            journal_bytes,
            log_bytes,
            index_bytes: self.index.disk_bytes(),
            cap_bytes: self.budget.cap_bytes,
            ordinary_left_bytes: left(Priority::Ordinary),
            essential_left_bytes: left(Priority::Essential),
        }
    }

    /// Publishes, makes everything durable and frees the directory.
    ///
    /// # Errors
    /// As [`Journal::publish`].
    pub async fn close(mut self) -> Result<(), JournalError> {
        let published = self.publish().await;
        self.commands = None;
        if let Some(thread) = self.thread.take() {
            // The thread ends on its own; waiting for it must not hold up other tasks.
            let _ = tokio::task::spawn_blocking(move || thread.join()).await;
        }
        published.map(|_| ())
    }

    async fn send(&self, command: Command) -> Result<(), JournalError> {
        let commands = self.commands.as_ref().ok_or(JournalError::Closed)?;
        commands.send(command).await.map_err(|_| JournalError::Closed)
    }
}

impl Drop for Journal {
    fn drop(&mut self) {
        self.commands = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Resolves when an append is durable, or with the reason why it never will be.
#[must_use = "an append is durable only when its ticket resolves"]
pub struct Ticket(oneshot::Receiver<Result<Committed, JournalError>>);

impl Future for Ticket {
    type Output = Result<Committed, JournalError>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.0)
            .poll(context)
            .map(|answer| answer.unwrap_or(Err(JournalError::Closed)))
    }
}
