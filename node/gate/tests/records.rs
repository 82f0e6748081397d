//! Files of records: what a crash leaves, and what it cannot have left.

use allmend_gate::record_file::{
    Found, RECORD_BYTES_MAX, RecordFile, RecordFileError, frame, recover,
};
use proptest::prelude::*;

fn records() -> Vec<Vec<u8>> {
    vec![b"one".to_vec(), vec![], vec![0; 20], vec![7; 300], b"last\0\0\0".to_vec()]
}

fn file(records: &[Vec<u8>]) -> Vec<u8> {
    let mut file = b"ALLMENDRECORDS1\n".to_vec();
    for (number, record) in (0..).zip(records) {
        file.extend(frame(number, record).unwrap());
    }
    file
}

fn read(bytes: &[u8]) -> Result<(Found, Vec<Vec<u8>>), RecordFileError> {
    let mut found = Vec::new();
    let end = recover(bytes, |record| {
        found.push(record.to_vec());
        Ok(())
    })?;
    Ok((end, found))
}

/// Goal: a crash at any byte of an append leaves all records before it, also where the file system has
/// made the file longer and written nothing there.
#[test]
fn every_prefix_is_read() {
    let whole = file(&records());
    let ends: Vec<usize> = (0..=records().len()).map(|n| file(&records()[..n]).len()).collect();
    for len in 0..=whole.len() {
        let expected = ends.iter().filter(|&&end| end <= len).count().saturating_sub(1);
        for zeros in [0, 1, 3, 400, 9_000] {
            let mut bytes = whole[..len].to_vec();
            bytes.resize(len + zeros, 0);
            let (end, found) =
                read(&bytes).unwrap_or_else(|error| panic!("{len} {zeros}: {error}"));
            // Zeros may happen to be what was still to come.
            assert!(found.len() >= expected, "{len} {zeros}");
            assert_eq!(found, records()[..found.len()], "{len} {zeros}");
            let kept = if end.len == 0 { 0 } else { ends[found.len()] };
            assert_eq!(end.len as usize, kept, "{len} {zeros}");
            assert_eq!(end.torn, bytes.len() > kept, "{len} {zeros}");
        }
    }
}

#[test]
fn a_record_is_at_its_place() {
    let [one, two] = [b"one".to_vec(), b"two".to_vec()];
    let mut swapped = b"ALLMENDRECORDS1\n".to_vec();
    swapped.extend(frame(1, &two).unwrap());
    swapped.extend(frame(0, &one).unwrap());
    assert!(matches!(read(&swapped), Err(RecordFileError::Damaged { at: 16, records: 0 })));
    let mut left_out = b"ALLMENDRECORDS1\n".to_vec();
    left_out.extend(frame(1, &two).unwrap());
    assert!(read(&left_out).is_err());
    assert!(read(b"something else entirely").is_err());
}

#[test]
fn a_reader_may_refuse() {
    let bytes = file(&records());
    let refused = recover(bytes.as_slice(), |record| match record.is_empty() {
        true => Err("it is empty".to_owned()),
        false => Ok(()),
    });
    assert!(matches!(refused, Err(RecordFileError::Refused { record: 1, .. })));
}

#[test]
fn what_is_appended_is_there_again() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("privacy");
    let open = || {
        let mut found = Vec::new();
        let file = RecordFile::open(&path, |record| {
            found.push(record.to_vec());
            Ok(())
        });
        file.map(|file| (file, found))
    };
    for (number, record) in records().iter().enumerate() {
        let (mut file, found) = open().unwrap();
        assert_eq!(found, records()[..number]);
        file.append(record).unwrap();
        drop(file);
        // Each time a crash leaves the beginning of another one.
        let mut bytes = std::fs::read(&path).unwrap();
        bytes.extend(&frame(number as u64 + 1, b"never finished").unwrap()[..number + 3]);
        std::fs::write(&path, bytes).unwrap();
    }
    let (mut file, found) = open().unwrap();
    assert_eq!(found, records());
    assert_eq!(file.records(), 5);
    assert_eq!(std::fs::read(&path).unwrap(), self::file(&records()));
    let long = vec![0; RECORD_BYTES_MAX + 1];
    assert!(matches!(file.append(&long), Err(RecordFileError::TooLong(_))));
    file.append(&long[1..]).unwrap();

    // Damage is told, and the file left as it is.
    drop(file);
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[30] ^= 1;
    std::fs::write(&path, &bytes).unwrap();
    assert!(matches!(open(), Err(RecordFileError::Damaged { .. })));
    assert_eq!(std::fs::read(&path).unwrap(), bytes);
}

#[cfg(unix)]
#[test]
fn only_the_owner_reads_it() {
    use std::os::unix::fs::PermissionsExt;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("privacy");
    RecordFile::open(&path, |_| Ok(())).unwrap();
    let mode = std::fs::metadata(&path).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1_024, failure_persistence: None, ..ProptestConfig::default() })]

    /// Goal: a flipped bit is damage, never a file with fewer records.
    #[test]
    fn a_flipped_bit_is_damage(at in any::<prop::sample::Index>(), bit in 0u8..8) {
        let mut bytes = file(&records());
        let at = at.index(bytes.len());
        bytes[at] ^= 1 << bit;
        prop_assert!(matches!(read(&bytes), Err(RecordFileError::Damaged { .. })), "byte {at}");
    }

    /// Goal: no bytes do anything but be read or be refused.
    #[test]
    fn any_bytes_are_harmless(bytes in prop::collection::vec(any::<u8>(), 0..200), magic in any::<bool>()) {
        let mut all = if magic { b"ALLMENDRECORDS1\n".to_vec() } else { vec![] };
        all.extend(bytes);
        if let Ok((end, _)) = read(&all) {
            prop_assert!(end.len as usize <= all.len());
        }
    }
}
