//! The file itself on a disk that fails.

use std::sync::Arc;

use proptest::prelude::*;

use crate::journal::error::JournalError;
use crate::journal::fault::{Dice, FaultyDisk};
use crate::journal::frame::SEGMENT_HEADER_BYTES;
use crate::journal::record::{Record, StoredRecord};
use crate::journal::scan::Replay;
use crate::journal::store::{Opened, Store};

const LOG: [u8; 12] = [1; 12];
/// Small, so that runs cross many segments.
const SEGMENT: u64 = 2_000;

fn open(disk: &FaultyDisk) -> Result<(Store, Vec<Record>), JournalError> {
    let storage = Arc::new(disk.clone());
    let mut seen = Vec::new();
    let opened = Store::open(storage.clone(), LOG, [2; 16], SEGMENT, |record| {
        seen.extend(record.stored());
        Ok(())
    })?;
    let Opened { store, survived } = opened;
    let replayed: Vec<StoredRecord> =
        Replay::new(storage, survived.segments, 0).collect::<Result<_, _>>().unwrap();
    assert_eq!(replayed, seen, "replay shows what recovery saw");
    Ok((store, seen.into_iter().map(|stored| stored.record).collect()))
}

fn record(n: u64, dice: &mut Dice) -> Record {
    let mut bytes = n.to_be_bytes().to_vec();
    bytes.resize(8 + dice.roll(300) as usize, n as u8);
    if dice.roll(3) == 0 { Record::Leaf(bytes) } else { Record::Private { kind: 9, bytes } }
}

/// Goal: whatever is cut and wherever, recovery gives exactly a prefix of the appends, whole ones,
/// and all that were acknowledged. Method: random appends in random groups, power cuts inside
/// writes, failing syncs, kills; recover; go on with the same disk.
fn survive(seed: u64) {
    let mut dice = Dice(seed);
    let disk = FaultyDisk::default();
    let mut number = 0;
    // What recovery may give: the appends since the start, of which so many records are safe.
    let mut told: Vec<Vec<Record>> = Vec::new();
    let mut safe = 0;
    for round in 0..8 {
        let (mut store, found) = open(&disk).unwrap_or_else(|e| panic!("SEED={seed}: {e}"));
        let ends: Vec<usize> = told
            .iter()
            .scan(0, |sum, append| {
                *sum += append.len();
                Some(*sum)
            })
            .collect();
        let whole = ends.iter().position(|end| *end == found.len());
        let kept = whole.map_or(0, |append| append + 1);
        assert!(found.is_empty() || whole.is_some(), "SEED={seed} round {round}: half an append");
        assert!(kept >= safe, "SEED={seed} round {round}: kept {kept}, acknowledged {safe}");
        told.truncate(kept);
        assert_eq!(found, told.concat(), "SEED={seed} round {round}");
        safe = kept;
        match dice.roll(3) {
            0 => disk.cut_power_after(dice.roll(6_000) as usize),
            1 => disk.fail_sync_after(dice.roll(6) as usize),
            _ => {}
        }
        for _ in 0..dice.roll(12) {
            let mut ok = true;
            for _ in 0..=dice.roll(3) {
                let append: Vec<_> = (0..=dice.roll(3))
                    .map(|_| {
                        number += 1;
                        record(number, &mut dice)
                    })
                    .collect();
                ok &= store.stage(&append).is_ok();
                if ok {
                    told.push(append);
                }
            }
            let durable = dice.roll(2) == 0;
            match store.commit(durable) {
                Ok(()) if ok && durable => safe = told.len(),
                Ok(()) => {}
                Err(_) => {
                    assert!(
                        store.usable().is_err() && store.stage(&[record(0, &mut dice)]).is_err()
                    );
                    break;
                }
            }
        }
        drop(store);
        if dice.roll(3) == 0 {
            disk.kill();
        } else {
            disk.crash(&mut dice);
        }
    }
}

#[test]
fn a_crash_leaves_a_prefix_with_all_that_was_acknowledged() {
    let one = std::env::var("SEED").ok().and_then(|seed| seed.parse().ok());
    match one {
        Some(seed) => survive(seed),
        None => (0..3_000).for_each(survive),
    }
}

fn filled(appends: u64) -> FaultyDisk {
    let disk = FaultyDisk::default();
    let (mut store, _) = open(&disk).unwrap();
    let mut dice = Dice(5);
    for n in 0..appends {
        store
            .stage(&[Record::Leaf(format!("entry {n}").into_bytes()), record(n, &mut dice)])
            .unwrap();
        store.commit(true).unwrap();
    }
    disk
}

proptest! {
    /// Goal: a flipped bit before the last append is an error that names a place, never a loss.
    #[test]
    fn damage_in_the_middle_is_named(at in any::<prop::sample::Index>(), bit in 0_u32..8) {
        let disk = filled(12);
        let before = disk.bytes(0);
        let byte = at.index(before.len());
        disk.flip(0, byte, bit);
        let error = open(&disk).err();
        prop_assert!(
            matches!(error, Some(JournalError::Corrupt { segment: 0, offset, .. }) if offset <= byte as u64),
            "{error:?}"
        );
        prop_assert_eq!(before.len(), disk.bytes(0).len(), "nothing is cut off");
    }

    /// Goal: bytes that are no segment at all are refused in order.
    #[test]
    fn arbitrary_segments_do_not_panic(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        use crate::journal::storage::Storage as _;
        let disk = FaultyDisk::default();
        disk.create(0, &bytes).unwrap();
        prop_assert!(open(&disk).is_err());
        let disk = filled(1);
        disk.open(0).unwrap().append(&bytes).unwrap();
        prop_assert_eq!(open(&disk).unwrap().1.len(), 2);
    }
}

#[test]
fn damage_says_before_which_entry() {
    let disk = filled(6);
    let bytes = disk.bytes(0);
    let place = bytes.windows(7).position(|window| window == b"entry 2").unwrap();
    disk.flip(0, place, 0);
    let error = open(&disk).err().unwrap();
    assert!(matches!(error, JournalError::Corrupt { frame: 2, leaf: 2, .. }), "{error}");
}

#[test]
fn a_missing_segment_is_noticed() {
    for gone in [0, 1] {
        let disk = filled(30);
        disk.remove(gone);
        assert!(matches!(open(&disk).err(), Some(JournalError::Corrupt { .. })));
    }
}

#[test]
fn another_key_is_refused() {
    let disk = filled(2);
    let opened = Store::open(Arc::new(disk), [9; 12], [2; 16], SEGMENT, |_| Ok(()));
    assert!(matches!(opened.err(), Some(JournalError::OtherLog { .. })));
}

#[test]
fn what_was_not_acknowledged_goes_with_a_failed_sync() {
    let disk = filled(2);
    let (mut store, _) = open(&disk).unwrap();
    let before = disk.bytes(0).len();
    disk.fail_sync_after(0);
    store.stage(&[Record::Leaf(b"doubtful".to_vec())]).unwrap();
    assert!(matches!(store.commit(true), Err(JournalError::Io { .. })));
    assert!(matches!(store.commit(true), Err(JournalError::Failed(_))));
    drop(store);
    assert_eq!(disk.bytes(0).len(), before);
    disk.kill();
    assert_eq!(open(&disk).unwrap().1.len(), 4);
    assert!(before > SEGMENT_HEADER_BYTES);
}
