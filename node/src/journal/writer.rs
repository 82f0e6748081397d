//! The thread that owns the file: takes commands, writes them in groups, answers.
//!
//! Everything that waits while one fdatasync runs is written together and shares the next one.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use allmend_protocol::log::{HASH_BYTES, SignedCheckpoint, TreeHash};
use tokio::sync::{mpsc, oneshot};

use super::error::JournalError;
use super::index::{AppliedThrough, Index, IndexEntry, Indexer};
use super::public::{Head, PublicLog};
use super::record::{Committed, KIND_RESERVED_FROM, Priority, Record, StoredRecord};
use super::scan::Seen;
use super::store::Store;

/// Commands that may wait; whoever sends more waits himself.
pub(super) const COMMANDS_MAX: usize = 256;
/// A group is closed above this, so that its first member does not wait for ever.
const GROUP_BYTES_MAX: usize = 8 << 20;
/// Private record: the head of a checkpoint, made durable before it is signed.
const KIND_HEAD: u16 = KIND_RESERVED_FROM;

type Reply<T> = oneshot::Sender<Result<T, JournalError>>;

pub(super) enum Command {
    Append {
        records: Vec<Record>,
        priority: Priority,
        /// `None`: nobody waits, and nobody asked for the platter.
        reply: Option<Reply<Committed>>,
    },
    Publish(Reply<SignedCheckpoint>),
    Blob {
        digest: [u8; 32],
        bytes: Vec<u8>,
        reply: Reply<()>,
    },
}

/// Figures that others may read while the thread works.
#[derive(Debug, Default)]
pub(super) struct Figures {
    pub(super) journal_bytes: AtomicU64,
    pub(super) log_bytes: AtomicU64,
}

/// How much disk the journal and the log may take together.
#[derive(Clone, Copy, Debug)]
pub(super) struct Budget {
    pub(super) cap_bytes: u64,
    pub(super) reserve_bytes: u64,
}

impl Budget {
    /// What records of this priority may fill.
    pub(super) const fn cap(&self, priority: Priority) -> u64 {
        match priority {
            Priority::Ordinary => self.cap_bytes.saturating_sub(self.reserve_bytes),
            Priority::Essential => self.cap_bytes,
        }
    }
}

pub(super) struct Writer {
    pub(super) store: Store,
    pub(super) log: PublicLog,
    pub(super) signed: Option<Head>,
    pub(super) index: Arc<dyn Index>,
    pub(super) indexer: Arc<dyn Indexer>,
    /// False after the index failed; the next start rebuilds it.
    pub(super) index_good: bool,
    pub(super) budget: Budget,
    /// What the file system has left, if it says.
    pub(super) free_bytes: Box<dyn Fn() -> Option<u64> + Send>,
    pub(super) figures: Arc<Figures>,
}

/// Appends of one group that wait for its commit.
#[derive(Default)]
struct Group {
    durable: bool,
    waiting: Vec<(Reply<Committed>, Committed)>,
    entries: Vec<IndexEntry>,
}

impl Writer {
    /// Works until the last sender is gone, then makes lazy records durable.
    pub(super) fn run(mut self, mut commands: mpsc::Receiver<Command>) {
        while let Some(first) = commands.blocking_recv() {
            let mut group = Group::default();
            let mut publish = Vec::new();
            let mut bytes = 0;
            let mut next = Some(first);
            while let Some(command) = next {
                match command {
                    Command::Append { records, priority, reply } => {
                        bytes += records.iter().map(|r| r.bytes().len()).sum::<usize>();
                        self.append(&records, priority, reply, &mut group);
                    }
                    Command::Publish(reply) => publish.push(reply),
                    Command::Blob { digest, bytes, reply } => {
                        answer(reply, self.put_blob(&digest, &bytes))
                    }
                }
                next = if bytes < GROUP_BYTES_MAX { commands.try_recv().ok() } else { None };
            }
            self.commit(group);
            if !publish.is_empty() {
                let published = self.publish();
                for reply in publish {
                    answer(reply, published.clone());
                }
            }
            self.show_figures();
        }
        if let Err(error) = self.store.commit(true) {
            tracing::error!(%error, "the journal could not be closed cleanly");
        }
    }

    fn append(
        &mut self,
        records: &[Record],
        priority: Priority,
        reply: Option<Reply<Committed>>,
        group: &mut Group,
    ) {
        match self.stage(records, priority, &mut group.entries) {
            Ok(committed) => {
                if let Some(reply) = reply {
                    group.durable = true;
                    group.waiting.push((reply, committed));
                }
            }
            Err(error) => match reply {
                Some(reply) => answer(reply, Err(error)),
                None => tracing::warn!(%error, "a progress record was not written"),
            },
        }
    }

    fn stage(
        &mut self,
        records: &[Record],
        priority: Priority,
        entries: &mut Vec<IndexEntry>,
    ) -> Result<Committed, JournalError> {
        self.store.usable()?;
        self.afford(records, priority)?;
        let staged = self.store.stage(records)?;
        let mut leaves = staged.leaf_indices.iter().copied();
        for (record, position) in records.iter().zip(&staged.positions) {
            let leaf = matches!(record, Record::Leaf(_));
            if leaf {
                self.log.push(record.bytes())?;
            }
            let stored = StoredRecord {
                position: *position,
                leaf_index: if leaf { leaves.next() } else { None },
                record: record.clone(),
            };
            self.indexer.index(&stored, entries);
        }
        self.show_figures();
        Ok(Committed {
            leaf_indices: staged.leaf_indices,
            positions: staged.positions,
            tree_size: self.log.size(),
        })
    }

    fn afford(&self, records: &[Record], priority: Priority) -> Result<(), JournalError> {
        let wanted: u64 = records.iter().map(Record::disk_bytes).sum();
        let used = self.store.bytes().saturating_add(self.log.bytes());
        let mut cap = self.budget.cap(priority);
        // The file system may be smaller than the cap, or others may have filled it.
        if let Some(free) = (self.free_bytes)() {
            let reach = used.saturating_add(free);
            let kept = match priority {
                Priority::Ordinary => self.budget.reserve_bytes,
                Priority::Essential => 0,
            };
            cap = cap.min(reach.saturating_sub(kept));
        }
        if used.saturating_add(wanted) > cap {
            return Err(JournalError::Full { priority, used, cap });
        }
        Ok(())
    }

    fn commit(&mut self, group: Group) {
        let result = self.store.commit(group.durable);
        if let Err(error) = &result {
            tracing::error!(%error, "the journal cannot be written; restart the node");
        } else {
            self.apply(group.entries);
        }
        for (reply, committed) in group.waiting {
            answer(reply, result.clone().map(|()| committed));
        }
        if group.durable && result.is_ok() {
            // Not part of the answer: tiles are derived, and a failure shows again at publishing.
            if let Err(error) = self.log.write_full_tiles() {
                tracing::warn!(%error, "tiles could not be written");
            }
        }
    }

    fn apply(&mut self, entries: Vec<IndexEntry>) {
        if !self.index_good {
            return;
        }
        let through =
            AppliedThrough { journal_id: self.store.journal_id(), frames: self.store.frames() };
        if let Err(error) = self.index.apply(entries, through) {
            tracing::warn!(%error, "the index fell behind and is rebuilt at the next start");
            self.index_good = false;
        }
    }

    /// Publishes the present head, unless it is published already.
    fn publish(&mut self) -> Result<SignedCheckpoint, JournalError> {
        self.store.usable()?;
        let head = self.log.head();
        match self.log.published() {
            Some(signed) if signed.checkpoint().size == head.size => Ok(signed.clone()),
            _ => {
                self.record_head(head)?;
                self.log.publish()
            }
        }
    }

    /// Ends recovery: records and publishes the head that was found.
    pub(super) fn publish_recovered(&mut self) -> Result<SignedCheckpoint, JournalError> {
        self.record_head(self.log.head())?;
        let signed = self.log.recovered()?;
        self.show_figures();
        Ok(signed)
    }

    /// Makes the head durable before it is signed: the point of no return.
    fn record_head(&mut self, head: Head) -> Result<(), JournalError> {
        if self.signed == Some(head) {
            return Ok(());
        }
        // Leaves are only ever appended, so this holds unless the memory of this process is bad.
        if let Some(signed) = self.signed.filter(|signed| signed.size >= head.size) {
            return Err(JournalError::RolledBack { signed: signed.size, held: head.size });
        }
        let record = Record::Private { kind: KIND_HEAD, bytes: head_bytes(head) };
        self.store.stage(&[record])?;
        self.store.commit(true)?;
        self.apply(Vec::new());
        self.signed = Some(head);
        Ok(())
    }

    fn put_blob(&mut self, digest: &[u8; 32], bytes: &[u8]) -> Result<(), JournalError> {
        self.store.usable()?;
        self.log.put_blob(digest, bytes)?;
        self.show_figures();
        Ok(())
    }

    fn show_figures(&self) {
        let Figures { journal_bytes, log_bytes } = &*self.figures;
        journal_bytes.store(self.store.bytes(), Ordering::Relaxed);
        log_bytes.store(self.log.bytes(), Ordering::Relaxed);
    }
}

/// Whoever asked may have gone away; that is no concern of the journal.
fn answer<T>(reply: Reply<T>, result: Result<T, JournalError>) {
    let _ = reply.send(result);
}

fn head_bytes(head: Head) -> Vec<u8> {
    [&head.size.to_be_bytes()[..], head.root.as_bytes()].concat()
}

/// Applies a record that the journal wrote for itself, while recovering: a head must be the one
/// that the leaves before it lead to.
pub(super) fn recover_own(
    seen: &Seen<'_>,
    log: &PublicLog,
    signed: &mut Option<Head>,
) -> Result<(), JournalError> {
    if seen.kind != KIND_HEAD {
        return Err(seen.corrupt("a record of a kind this version does not know"));
    }
    let head = seen
        .bytes
        .split_first_chunk::<8>()
        .and_then(|(size, root)| {
            let root = <[u8; HASH_BYTES]>::try_from(root).ok()?;
            Some(Head { size: u64::from_be_bytes(*size), root: TreeHash::from_bytes(root) })
        })
        .ok_or_else(|| seen.corrupt("a signed head cannot be read"))?;
    if head != log.head() {
        return Err(seen.corrupt("the entries do not lead to the head that was signed"));
    }
    *signed = Some(head);
    Ok(())
}
