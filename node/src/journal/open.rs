//! Opening: lock, recover, catch up the index, publish, start the thread.

use std::path::PathBuf;
use std::sync::Arc;

use allmend_protocol::log::{CheckpointError, KeyName, NoteError, NoteSigner, TreeHash};
use ed25519_dalek::SigningKey;
use sha2::{Digest as _, Sha256};
use tokio::sync::mpsc;

use super::Journal;
use super::error::{JournalError, Tried as _};
use super::index::{AppliedThrough, Index, Indexer, SledIndex, Unindexed};
use super::lock::Lock;
use super::public::PublicLog;
use super::reader::Reader;
use super::scan::{Replay, Seen, Survived};
use super::storage::{Disk, Storage, make_dir};
use super::store::{Opened, Store};
use super::writer::{Budget, COMMANDS_MAX, Figures, Writer, recover_own};

/// Segments are read whole at start, so they stay small enough for that.
const SEGMENT_BYTES_MAX: u64 = 64 << 20;
/// What journal and log may take, unless the operator says otherwise.
const CAP_BYTES: u64 = 8 << 30;
/// Kept for receipts and settlements of work already promised.
const RESERVE_BYTES: u64 = 64 << 20;
/// Entries handed to the index at once while it catches up.
const CATCH_UP_ENTRIES: usize = 4096;

/// Where a journal lies and whose it is.
pub struct JournalOptions {
    /// Holds `journal/` (private), `log/` (public) and `index/` (derived).
    pub dir: PathBuf,
    /// Name of the log, which its checkpoints carry as origin.
    pub origin: String,
    /// Signs the checkpoints.
    pub signing_key: SigningKey,
    /// A new segment is begun above this size in bytes.
    pub segment_bytes_max: u64,
    /// What journal and log may take together, in bytes.
    pub cap_bytes: u64,
    /// Part of the cap that only essential records may use, in bytes.
    pub reserve_bytes: u64,
    /// Says under which keys records are found.
    pub indexer: Arc<dyn Indexer>,
}

impl JournalOptions {
    /// The defaults: 64 MiB segments, an 8 GiB cap with 64 MiB in reserve, nothing indexed.
    #[must_use]
    pub fn new(dir: PathBuf, origin: String, signing_key: SigningKey) -> Self {
        Self {
            dir,
            origin,
            signing_key,
            segment_bytes_max: SEGMENT_BYTES_MAX,
            cap_bytes: CAP_BYTES,
            reserve_bytes: RESERVE_BYTES,
            indexer: Arc::new(Unindexed),
        }
    }
}

/// What the journal held when it was opened.
pub struct Recovered {
    /// Leaves in the log.
    pub tree_size: u64,
    /// Root over them.
    pub root: TreeHash,
    /// Bytes of an unfinished append that were cut off; 0 after a clean stop.
    pub torn_bytes: u64,
    /// Whether the index had to be made anew.
    pub index_rebuilt: bool,
    /// All records in order, to rebuild state from. Reads the disk as it is iterated.
    pub records: Replay,
}

impl Journal {
    /// Opens the journal in `options.dir`, or begins one. Blocks until it is recovered: about as
    /// long as reading all of it takes.
    ///
    /// # Errors
    /// `Locked` if a node runs there, `Corrupt` if durable bytes are damaged, `OtherLog` and
    /// `RolledBack` if it is not the journal that signed before, and disk errors.
    pub fn open(options: JournalOptions) -> Result<(Self, Recovered), JournalError> {
        let dir = options.dir.join("journal");
        let storage = Arc::new(Disk::new(&dir).tried("create", &dir)?);
        let lock = Lock::take(&dir)?;
        let index_dir = options.dir.join("index");
        make_dir(&index_dir, 0o700).tried("create", &index_dir)?;
        let index: Arc<dyn Index> = match SledIndex::open(&index_dir) {
            Ok(index) => Arc::new(index),
            Err(error) => {
                let source = std::io::Error::other(error);
                return Err(JournalError::io("open the index in", &index_dir, source));
            }
        };
        Self::open_with(options, storage, index, lock)
    }

    pub(super) fn open_with(
        options: JournalOptions,
        storage: Arc<dyn Storage>,
        index: Arc<dyn Index>,
        lock: Lock,
    ) -> Result<(Self, Recovered), JournalError> {
        let (mut writer, survived) = recover(&options, Arc::clone(&storage), Arc::clone(&index))?;
        let head = writer.log.head();
        let index_rebuilt = catch_up(&mut writer, &survived, &storage);
        writer.publish_recovered()?;
        let figures = Arc::clone(&writer.figures);
        let budget = writer.budget;
        let (commands, receiver) = mpsc::channel(COMMANDS_MAX);
        let thread = std::thread::Builder::new()
            .name("journal".to_owned())
            .spawn(move || writer.run(receiver))
            .tried("start a thread for", &options.dir)?;
        let recovered = Recovered {
            tree_size: head.size,
            root: head.root,
            torn_bytes: survived.torn_bytes,
            index_rebuilt,
            records: Replay::new(Arc::clone(&storage), survived.segments, 0),
        };
        let journal = Self {
            commands: Some(commands),
            thread: Some(thread),
            reader: Reader::new(storage),
            index,
            budget,
            figures,
            _lock: lock,
        };
        Ok((journal, recovered))
    }
}

/// Reads the journal through, rebuilding the tree and checking every head that was signed.
fn recover(
    options: &JournalOptions,
    storage: Arc<dyn Storage>,
    index: Arc<dyn Index>,
) -> Result<(Writer, Survived), JournalError> {
    let origin: KeyName = options.origin.parse().map_err(refused)?;
    let signer = NoteSigner::new(origin, options.signing_key.clone()).map_err(refused)?;
    let log_id = log_id(&signer);
    let mut log = PublicLog::new(&options.dir.join("log"), signer)?;
    let on_disk = log.head_on_disk();
    // The root the leaves had at the size of the published checkpoint, once we come past it.
    let mut passed = on_disk.filter(|head| *head == log.head());
    let mut signed = None;
    let visit = |seen: &Seen<'_>| {
        if seen.is_own() {
            return recover_own(seen, &log, &mut signed);
        }
        if seen.kind == 0 {
            log.push(seen.bytes)?;
            if on_disk.is_some_and(|head| head.size == log.size()) {
                passed = Some(log.head());
            }
        }
        Ok(())
    };
    let opened =
        Store::open(Arc::clone(&storage), log_id, fresh_id(), options.segment_bytes_max, visit)?;
    let Opened { store, survived } = opened;
    if let Some(head) = on_disk.filter(|head| passed != Some(*head)) {
        return Err(JournalError::RolledBack { signed: head.size, held: survived.leaves });
    }
    if survived.torn_bytes > 0 {
        let bytes = survived.torn_bytes;
        tracing::info!(bytes, "cut off an append that a crash left unfinished");
    }
    let writer = Writer {
        store,
        log,
        signed,
        index,
        indexer: Arc::clone(&options.indexer),
        index_good: true,
        budget: Budget {
            cap_bytes: options.cap_bytes,
            reserve_bytes: options.reserve_bytes.min(options.cap_bytes),
        },
        free_bytes: Box::new(move || storage.free_bytes().ok()),
        figures: Arc::new(Figures::default()),
    };
    Ok((writer, survived))
}

/// Brings the index up to the journal; makes it anew if it is of another journal or ahead of this
/// one. Returns whether it was made anew. An index that fails here is left alone until the next
/// start.
fn catch_up(writer: &mut Writer, survived: &Survived, storage: &Arc<dyn Storage>) -> bool {
    let journal_id = writer.store.journal_id();
    let (index, indexer) = (Arc::clone(&writer.index), Arc::clone(&writer.indexer));
    let mut rebuilt = false;
    let mut run = || -> Result<(), Box<dyn std::error::Error>> {
        let usable =
            |at: &AppliedThrough| at.journal_id == journal_id && at.frames <= survived.frames;
        let from = match index.applied_through()?.filter(usable) {
            Some(at) => at.frames,
            None => {
                rebuilt = survived.frames > 0;
                index.clear()?;
                0
            }
        };
        if from == survived.frames {
            return Ok(());
        }
        // Entries depend on records alone, so putting some again after an interruption is harmless.
        let mut entries = Vec::new();
        let through = |frames| AppliedThrough { journal_id, frames };
        for record in Replay::new(Arc::clone(storage), survived.segments.clone(), from) {
            indexer.index(&record?, &mut entries);
            if entries.len() >= CATCH_UP_ENTRIES {
                index.apply(std::mem::take(&mut entries), through(from))?;
            }
        }
        index.apply(entries, through(survived.frames))?;
        Ok(())
    };
    if let Err(error) = run() {
        tracing::warn!(%error, "the index could not be brought up to date");
        writer.index_good = false;
    }
    rebuilt
}

fn refused(error: NoteError) -> JournalError {
    CheckpointError::from(error).into()
}

fn log_id(signer: &NoteSigner) -> [u8; 12] {
    let digest: [u8; 32] = Sha256::digest(signer.verifier().to_string()).into();
    let mut id = [0; 12];
    id.copy_from_slice(&digest[..12]);
    id
}

fn fresh_id() -> [u8; 16] {
    let mut id = [0; 16];
    // Without entropy two journals could be taken for one by the index, no more than that.
    if getrandom::fill(&mut id).is_err() {
        id[..4].copy_from_slice(&std::process::id().to_be_bytes());
    }
    id
}
