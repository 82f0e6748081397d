//! Bytes that are not what was signed, and directories that mean harm.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use allmend_protocol::log::{
    Checkpoint, FullTree, NoteSigner, Tile, TileKind, TreeHash, bundle::push_entry,
};
use tempfile::TempDir;

use super::world::{World, Written, key};
use crate::audit::{Fault, verify_dirs};

fn flip(path: &Path, at: usize) {
    let mut bytes = fs::read(path).unwrap();
    bytes[at] ^= 1;
    fs::write(path, bytes).unwrap();
}

/// Where each byte of a bundle belongs.
fn owners(leaves: &[Vec<u8>]) -> Vec<u64> {
    let owned = (0..).zip(leaves).flat_map(|(index, leaf)| vec![index; leaf.len() + 2]);
    owned.collect()
}

/// Goal: whichever byte of a bundle is flipped, the audit names its entry, and blames nobody else.
#[test]
fn a_flipped_byte_of_an_entry_is_named() {
    let world = World::new();
    let written = world.write();
    let path = written.log(1, "tile/entries/000.p/6");
    let owners = owners(&world.leaves[0]);
    let kinds: Vec<_> = (0..6).map(|n| world.message(1, n).kind().0.name()).collect();
    let (mut named, mut tried) = (0, 0);
    assert_eq!(owners.len(), fs::read(&path).unwrap().len());
    let mut starts: Vec<usize> = (0..owners.len()).step_by(197).collect();
    starts.extend((1..owners.len()).filter(|at| owners[*at] != owners[at - 1]));
    starts.extend([0, 1, owners.len() - 1]);
    for at in starts.into_iter().flat_map(|at| [at, at + 1]).filter(|at| *at < owners.len()) {
        flip(&path, at);
        let report = written.audit();
        let findings: Vec<_> = report.findings.iter().map(|f| (f.entry, f.what)).collect();
        assert_eq!(findings, [(Some(owners[at]), Fault::EntryChanged)], "byte {at}: {report:#?}");
        assert_eq!(report.findings[0].log, "node-1.test/log/0");
        let kind = report.findings[0].kind.as_deref();
        assert!(kind.is_none_or(|kind| kind == kinds[owners[at] as usize]), "byte {at}: {kind:?}");
        named += usize::from(kind.is_some());
        tried += 1;
        flip(&path, at);
    }
    // Only where the flip hits the name of the type is the kind unknown.
    assert!(named * 10 > tried * 8, "{named} of {tried}");
    assert!(written.audit().ok());
}

fn first_fault(written: &Written) -> (Option<u64>, Fault) {
    let report = written.audit();
    let first = report.findings.first().expect("something is wrong");
    (first.entry, first.what)
}

/// Goal: a copy whose checkpoint is a little older than its tiles is in order.
#[test]
fn a_log_that_grew_while_it_was_copied_is_in_order() {
    let mut world = World::new();
    let written = world.write();
    let older = fs::read(written.log(1, "checkpoint")).unwrap();
    let cert = world.leaves[0][0].clone();
    world.leaves[0].extend(vec![cert; 300]);
    let written = world.write();
    fs::write(written.log(1, "checkpoint"), older).unwrap();
    let report = written.audit();
    assert!(report.ok(), "{:#?}", report.findings);
    assert_eq!(report.logs[0].size, 6);
}

#[test]
fn other_files_that_were_changed_are_named() {
    let written = World::new().write();
    let tile = written.log(1, "tile/0/000.p/6");
    flip(&tile, 32 * 2 + 5);
    assert_eq!(first_fault(&written), (Some(2), Fault::TileChanged));
    flip(&tile, 32 * 2 + 5);
    for path in ["checkpoint", "key"] {
        let path = written.log(2, path);
        let middle = fs::read(&path).unwrap().len() / 2;
        flip(&path, middle);
        assert_eq!(first_fault(&written), (None, Fault::Checkpoint));
        flip(&path, middle);
    }
    let blob = fs::read_dir(written.log(3, "blob")).unwrap().next().unwrap().unwrap().path();
    flip(&blob, 40);
    assert_eq!(first_fault(&written), (None, Fault::File));
    flip(&blob, 40);
    fs::remove_file(&tile).unwrap();
    assert_eq!(first_fault(&written), (None, Fault::File));
    fs::write(&tile, b"short").unwrap();
    assert_eq!(first_fault(&written), (None, Fault::TileChanged));
}

/// A log that was signed by somebody who writes what he likes.
fn forged(dir: &Path, size: u64, entries: &[&[u8]]) {
    let name = "forged.test/log/0".parse().unwrap();
    let signer = NoteSigner::new(name, key(9)).unwrap();
    let tree: FullTree = entries.iter().map(|entry| TreeHash::leaf(entry)).collect();
    let origin = signer.verifier().name().clone();
    let signed = Checkpoint { origin, size, root: tree.root() }.sign(&signer).unwrap();
    fs::write(dir.join("key"), format!("{}\n", signer.verifier())).unwrap();
    fs::write(dir.join("checkpoint"), signed.note().to_string()).unwrap();
    let mut bundle = Vec::new();
    for entry in entries {
        push_entry(&mut bundle, entry).unwrap();
    }
    let hashes: Vec<u8> = entries.iter().flat_map(|e| *TreeHash::leaf(e).as_bytes()).collect();
    for (kind, bytes) in [(TileKind::Entries, bundle), (TileKind::Hashes(0), hashes)] {
        let tile = dir.join(Tile::new(kind, 0, 256).unwrap().to_string());
        fs::create_dir_all(tile.parent().unwrap()).unwrap();
        fs::write(tile, bytes).unwrap();
    }
}

#[test]
fn claims_of_any_size_are_bounded() {
    for size in [1, 2, 3, 255, 256, 257, 4_000_000, 4_000_001, i64::MAX as u64] {
        let dir = TempDir::new().unwrap();
        forged(dir.path(), size, &[b"one", b"two"]);
        let report = verify_dirs(&[dir.path().to_owned()]);
        assert!(!report.ok(), "{size}");
    }
}

/// Goal: nothing outside the directory is read, and nothing in it holds the audit up.
#[test]
fn links_and_pipes_are_not_followed() {
    let outside = TempDir::new().unwrap();
    forged(outside.path(), 2, &[b"one", b"two"]);
    let copy = |dir: &Path| {
        for name in ["key", "checkpoint"] {
            fs::copy(outside.path().join(name), dir.join(name)).unwrap();
        }
    };
    let linked_dir = TempDir::new().unwrap();
    copy(linked_dir.path());
    symlink(outside.path().join("tile"), linked_dir.path().join("tile")).unwrap();
    symlink(outside.path(), linked_dir.path().join("blob")).unwrap();
    let linked_file = TempDir::new().unwrap();
    symlink(outside.path().join("key"), linked_file.path().join("key")).unwrap();
    let pipe = TempDir::new().unwrap();
    let made = std::process::Command::new("mkfifo").arg(pipe.path().join("key")).status();
    assert!(made.unwrap().success());
    let dirs = [&linked_dir, &linked_file, &pipe].map(|dir| dir.path().to_owned());
    for dir in dirs {
        let report = verify_dirs(&[dir]);
        assert!(report.findings.iter().any(|f| f.what == Fault::File), "{report:#?}");
        assert_eq!(report.kinds.len(), 0);
    }
    assert!(!verify_dirs(&[outside.path().join("nowhere")]).ok());
    assert!(verify_dirs(&[]).ok());
}
