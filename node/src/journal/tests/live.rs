//! The whole journal on a real disk.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use allmend_protocol::log::{
    Entries, FullTree, HASH_BYTES, NoteVerifier, SignedCheckpoint, Tile, TileKind, TreeHash,
    root_of,
};
use ed25519_dalek::SigningKey;
use tempfile::TempDir;

use crate::journal::fault::FaultyDisk;
use crate::journal::lock::Lock;
use crate::journal::{
    IndexEntry, Indexer, Journal, JournalError, JournalOptions, MemoryIndex, Position, Priority,
    Record, StoredRecord,
};

/// Finds each record under its contents.
struct ByContents;

impl Indexer for ByContents {
    fn index(&self, record: &StoredRecord, entries: &mut Vec<IndexEntry>) {
        let mut key = b"r/".to_vec();
        key.extend_from_slice(record.record.bytes());
        entries.push((key, record.position.to_bytes().to_vec()));
    }
}

fn options(dir: &Path) -> JournalOptions {
    let key = SigningKey::from_bytes(&[3; 32]);
    let mut options = JournalOptions::new(dir.to_owned(), "node.test/log/0".to_owned(), key);
    options.indexer = Arc::new(ByContents);
    options
}

fn leaf(n: u64) -> Record {
    Record::Leaf(format!("leaf {n}").into_bytes())
}

fn private(text: &str) -> Record {
    Record::Private { kind: 3, bytes: text.as_bytes().to_vec() }
}

fn read_log(dir: &Path) -> (SignedCheckpoint, Vec<Vec<u8>>) {
    let log = dir.join("log");
    let key: NoteVerifier =
        fs::read_to_string(log.join("key")).unwrap().trim_end().parse().unwrap();
    let note = fs::read(log.join("checkpoint")).unwrap();
    let signed = SignedCheckpoint::verify(&note, &key).unwrap();
    let size = signed.checkpoint().size;
    let (mut entries, mut hashes) = (Vec::new(), FullTree::new());
    while (entries.len() as u64) < size {
        let at = entries.len() as u64;
        let tile = Tile::holding(TileKind::Entries, at, size).unwrap();
        let bundle = fs::read(log.join(tile.to_string())).unwrap();
        let row = Tile::holding(TileKind::Hashes(0), at, size).unwrap();
        let row = fs::read(log.join(row.to_string())).unwrap();
        for (entry, hash) in Entries::new(&bundle).zip(row.chunks(HASH_BYTES)) {
            let entry = entry.unwrap();
            assert_eq!(TreeHash::leaf(entry).as_bytes(), hash);
            hashes.append(TreeHash::leaf(entry));
            entries.push(entry.to_vec());
        }
    }
    for level in 1..3 {
        if let Some(edge) = Tile::rightmost(TileKind::Hashes(level), size) {
            let row = fs::read(log.join(edge.to_string())).unwrap();
            let last = row.chunks(HASH_BYTES).next_back().unwrap();
            let index = edge.index() * 256 + u64::from(edge.width()) - 1;
            assert_eq!(hashes.hash(8 * u32::from(level), index).unwrap().as_bytes(), last);
        }
    }
    assert_eq!(root_of(&hashes, size), Ok(signed.checkpoint().root));
    (signed, entries)
}

fn files(dir: &Path) -> BTreeSet<PathBuf> {
    let mut found = BTreeSet::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files(&path));
        } else {
            found.insert(path);
        }
    }
    found
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}

#[tokio::test]
async fn appends_come_back_and_are_published() {
    let dir = TempDir::new().unwrap();
    let (journal, recovered) = Journal::open(options(dir.path())).unwrap();
    assert_eq!(recovered.tree_size, 0);
    assert_eq!(read_log(dir.path()).1.len(), 0);
    let committed =
        journal.append(vec![leaf(0), private("a"), leaf(1)], Priority::Ordinary).await.unwrap();
    assert_eq!((&committed.leaf_indices[..], committed.tree_size), (&[0, 1][..], 2));
    assert_eq!(journal.reader().read(committed.positions[1]).unwrap(), private("a"));
    journal.append_lazy(4, b"progress".to_vec()).await.unwrap();
    assert!(journal.append_lazy(0, b"no leaf".to_vec()).await.is_err());
    let signed = journal.publish().await.unwrap();
    assert_eq!(signed.checkpoint().size, 2);
    assert_eq!(journal.publish().await.unwrap(), signed);
    journal.close().await.unwrap();
    assert_eq!(read_log(dir.path()), (signed, vec![b"leaf 0".to_vec(), b"leaf 1".to_vec()]));

    let (journal, recovered) = Journal::open(options(dir.path())).unwrap();
    assert_eq!((recovered.tree_size, recovered.torn_bytes), (2, 0));
    let records: Vec<_> = recovered.records.map(|r| r.unwrap().record).collect();
    let progress = Record::Private { kind: 4, bytes: b"progress".to_vec() };
    assert_eq!(records, [leaf(0), private("a"), leaf(1), progress]);
    let found = journal.index().get(b"r/leaf 1").unwrap().unwrap();
    let found = Position::from_bytes(&found).unwrap();
    assert_eq!(journal.reader().read(found).unwrap(), leaf(1));
    assert!(journal.reader().read(Position { segment: 0, offset: 3 }).is_err());
    assert!(journal.reader().read(Position { segment: 0, offset: u64::MAX }).is_err());
}

/// Goal: tiles of all rows are right at every size that matters, after any number of restarts, and
/// only those that the checkpoint needs remain.
#[tokio::test]
async fn tiles_follow_the_tree_over_restarts() {
    let dir = TempDir::new().unwrap();
    let mut expected = Vec::new();
    for upto in [1, 200, 255, 256, 257, 511, 513, 1_300] {
        let (journal, recovered) = Journal::open(options(dir.path())).unwrap();
        assert_eq!(recovered.tree_size, expected.len() as u64);
        let leaves: Vec<_> = (expected.len() as u64..upto).map(leaf).collect();
        expected.extend(leaves.iter().map(|leaf| leaf.bytes().to_vec()));
        journal.append(leaves, Priority::Ordinary).await.unwrap();
        journal.publish().await.unwrap();
        let (signed, entries) = read_log(dir.path());
        assert_eq!((signed.checkpoint().size, &entries), (upto, &expected));
        journal.close().await.unwrap();
    }
    let before = files(&dir.path().join("log"));
    // Five full tiles and one partial of entries and hashes, one of the second row, and two files.
    assert_eq!(before.len(), 6 + 6 + 1 + 2, "{before:?}");
    fs::remove_dir_all(dir.path().join("log")).unwrap();
    Journal::open(options(dir.path())).unwrap().0.close().await.unwrap();
    assert_eq!(files(&dir.path().join("log")), before);
    assert_eq!(read_log(dir.path()).1, expected);
}

#[tokio::test]
async fn private_files_are_private_and_public_ones_public() {
    let dir = TempDir::new().unwrap();
    let (journal, _) = Journal::open(options(dir.path())).unwrap();
    journal.append(vec![leaf(0)], Priority::Ordinary).await.unwrap();
    journal.publish().await.unwrap();
    journal.put_blob([5; 32], b"charter".to_vec()).await.unwrap();
    journal.put_blob([5; 32], b"charter".to_vec()).await.unwrap();
    let other = journal.put_blob([5; 32], b"another".to_vec()).await;
    assert!(matches!(other, Err(JournalError::Blob { .. })));
    let at = |path: &str| mode(&dir.path().join(path));
    assert_eq!(
        (at("journal"), at("journal/00000000.seg"), at("journal/lock")),
        (0o700, 0o600, 0o600)
    );
    assert_eq!((at("index"), at("log"), at("log/tile/0")), (0o700, 0o755, 0o755));
    let blob = format!("log/blob/{}", "05".repeat(32));
    assert_eq!((at("log/checkpoint"), at("log/key"), at(&blob)), (0o644, 0o644, 0o644));
    let usage = journal.usage();
    assert!(usage.journal_bytes > 64 && usage.log_bytes >= 8 + 32 + 7);
}

#[tokio::test]
async fn a_directory_has_one_node() {
    let dir = TempDir::new().unwrap();
    let (journal, _) = Journal::open(options(dir.path())).unwrap();
    let second = Journal::open(options(dir.path())).err().unwrap();
    assert!(
        matches!(second, JournalError::Locked { pid: Some(pid), .. } if pid == std::process::id())
    );
    drop(journal);
    Journal::open(options(dir.path())).unwrap();
}

#[tokio::test]
async fn the_index_is_rebuilt_when_lost_behind_or_ahead() {
    let dir = TempDir::new().unwrap();
    let (journal, _) = Journal::open(options(dir.path())).unwrap();
    journal.append((0..20).map(leaf).collect(), Priority::Ordinary).await.unwrap();
    let all = journal.index().scan(b"r/", None, 100).unwrap();
    assert_eq!(all.len(), 20);
    let page = journal.index().scan(b"r/leaf 1", Some(b"r/leaf 12"), 3).unwrap();
    let keys: Vec<_> = page.into_iter().map(|(key, _)| String::from_utf8(key).unwrap()).collect();
    assert_eq!(keys, ["r/leaf 13", "r/leaf 14", "r/leaf 15"]);
    journal.close().await.unwrap();

    let index = dir.path().join("index");
    fs::remove_dir_all(&index).unwrap();
    let (journal, recovered) = Journal::open(options(dir.path())).unwrap();
    assert!(recovered.index_rebuilt);
    assert_eq!(journal.index().scan(b"r/", None, 100).unwrap(), all);
    journal.close().await.unwrap();

    for path in files(&index) {
        fs::write(path, b"garbage").unwrap();
    }
    let (journal, _) = Journal::open(options(dir.path())).unwrap();
    assert_eq!(journal.index().scan(b"r/", None, 100).unwrap(), all);
    journal.close().await.unwrap();

    // An index of another journal.
    fs::remove_dir_all(dir.path().join("journal")).unwrap();
    fs::remove_dir_all(dir.path().join("log")).unwrap();
    let (journal, _) = Journal::open(options(dir.path())).unwrap();
    assert!(journal.index().scan(b"r/", None, 100).unwrap().is_empty());
}

/// Goal: an older copy of the journal never signs again what its later self has signed.
#[tokio::test]
async fn an_old_backup_is_refused() {
    let dir = TempDir::new().unwrap();
    let segment = dir.path().join("journal/00000000.seg");
    let (journal, _) = Journal::open(options(dir.path())).unwrap();
    journal.append(vec![leaf(0)], Priority::Ordinary).await.unwrap();
    journal.close().await.unwrap();
    let backup = fs::read(&segment).unwrap();
    let (journal, _) = Journal::open(options(dir.path())).unwrap();
    journal.append(vec![leaf(1)], Priority::Ordinary).await.unwrap();
    journal.close().await.unwrap();
    let newest = fs::read(&segment).unwrap();
    fs::write(&segment, backup).unwrap();
    let refused = Journal::open(options(dir.path())).err().unwrap();
    assert!(matches!(refused, JournalError::RolledBack { signed: 2, held: 1 }), "{refused}");
    fs::write(&segment, newest).unwrap();
    Journal::open(options(dir.path())).unwrap();
}

#[tokio::test]
async fn a_full_tile_is_never_overwritten() {
    let dir = TempDir::new().unwrap();
    let (journal, _) = Journal::open(options(dir.path())).unwrap();
    journal.append((0..200).map(leaf).collect(), Priority::Ordinary).await.unwrap();
    fs::create_dir_all(dir.path().join("log/tile/entries")).unwrap();
    fs::write(dir.path().join("log/tile/entries/000"), b"something else").unwrap();
    // The append itself is durable; only the public side has a problem.
    journal.append((200..300).map(leaf).collect(), Priority::Ordinary).await.unwrap();
    let refused = journal.publish().await;
    assert!(matches!(refused, Err(JournalError::TileDiffers { .. })));
}

#[tokio::test]
async fn the_reserve_is_kept_for_essential_records() {
    let dir = TempDir::new().unwrap();
    let mut small = options(dir.path());
    (small.cap_bytes, small.reserve_bytes) = (60_000, 30_000);
    let (journal, _) = Journal::open(small).unwrap();
    let big = || vec![Record::Private { kind: 1, bytes: vec![0; 5_000] }];
    let mut count = 0;
    let full = loop {
        match journal.append(big(), Priority::Ordinary).await {
            Ok(_) => count += 1,
            Err(error) => break error,
        }
    };
    assert!(matches!(full, JournalError::Full { priority: Priority::Ordinary, .. }), "{full}");
    assert_eq!(count, 5);
    assert!(journal.usage().ordinary_left_bytes < 5_000);
    for _ in 0..5 {
        journal.append(big(), Priority::Essential).await.unwrap();
    }
    let mut last = Ok(());
    while last.is_ok() {
        last = journal.append(big(), Priority::Essential).await.map(|_| ());
    }
    assert!(matches!(last, Err(JournalError::Full { priority: Priority::Essential, .. })));
    journal.close().await.unwrap();
    assert_eq!(Journal::open(options(dir.path())).unwrap().1.records.count(), 11);
}

fn faulty(dir: &Path, disk: &FaultyDisk) -> Result<Journal, JournalError> {
    let lock = Lock::take(dir)?;
    let index = Arc::new(MemoryIndex::default());
    Ok(Journal::open_with(options(dir), Arc::new(disk.clone()), index, lock)?.0)
}

#[tokio::test]
async fn appends_that_wait_share_one_sync() {
    let dir = TempDir::new().unwrap();
    let disk = FaultyDisk::default();
    let journal = faulty(dir.path(), &disk).unwrap();
    let before = disk.sync_count();
    let mut tickets = Vec::new();
    for n in 0..200 {
        tickets.push(journal.submit(vec![leaf(n)], Priority::Ordinary).await.unwrap());
    }
    for (n, ticket) in tickets.into_iter().enumerate() {
        assert_eq!(ticket.await.unwrap().leaf_indices, [n as u64]);
    }
    let syncs = disk.sync_count() - before;
    assert!((1..200).contains(&syncs), "{syncs} syncs");
}

#[tokio::test]
async fn nothing_is_accepted_after_a_failed_sync() {
    let dir = TempDir::new().unwrap();
    let disk = FaultyDisk::default();
    let journal = faulty(dir.path(), &disk).unwrap();
    journal.append(vec![leaf(0)], Priority::Ordinary).await.unwrap();
    disk.fail_sync_after(0);
    let failed = journal.append(vec![leaf(1)], Priority::Ordinary).await;
    assert!(matches!(failed, Err(JournalError::Io { .. })));
    disk.kill();
    let failed = journal.append(vec![leaf(2)], Priority::Essential).await;
    assert!(matches!(failed, Err(JournalError::Failed(_))));
    assert!(matches!(journal.publish().await, Err(JournalError::Failed(_))));
    drop(journal);
    let journal = faulty(dir.path(), &disk).unwrap();
    let next = journal.append(vec![leaf(1)], Priority::Ordinary).await.unwrap();
    assert_eq!(next.leaf_indices, [1]);
}

#[tokio::test]
async fn a_small_file_system_counts_like_a_small_cap() {
    let dir = TempDir::new().unwrap();
    let disk = FaultyDisk::default();
    let journal = faulty(dir.path(), &disk).unwrap();
    disk.leave_free(1 << 20);
    let full = journal.append(vec![leaf(0)], Priority::Ordinary).await;
    assert!(matches!(full, Err(JournalError::Full { .. })));
    journal.append(vec![leaf(0)], Priority::Essential).await.unwrap();
}

#[tokio::test]
async fn records_over_their_bounds_are_refused() {
    let dir = TempDir::new().unwrap();
    let (journal, _) = Journal::open(options(dir.path())).unwrap();
    let append = |records| journal.append(records, Priority::Ordinary);
    let long = append(vec![Record::Leaf(vec![0; 65_536])]).await;
    assert!(matches!(long, Err(JournalError::TooLarge { .. })));
    assert!(matches!(append(vec![]).await, Err(JournalError::Count { .. })));
    let own = append(vec![Record::Private { kind: 0xFF00, bytes: vec![] }]).await;
    assert!(matches!(own, Err(JournalError::ReservedKind(_))));
    append(vec![Record::Leaf(vec![0; 65_535])]).await.unwrap();
}
