use proptest::prelude::*;

use super::*;

/// A file with the given header text and bytes of data.
fn file(header: &str, data: usize) -> Vec<u8> {
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.as_bytes());
    bytes.resize(bytes.len() + data, 7);
    bytes
}

fn entry(name: &str, dtype: &str, shape: &str, start: u64, end: u64) -> String {
    format!(r#""{name}":{{"dtype":"{dtype}","shape":{shape},"data_offsets":[{start},{end}]}}"#)
}

fn message(entries: &[String], data: usize) -> String {
    parse(&file(&format!("{{{}}}", entries.join(",")), data)).unwrap_err().to_string()
}

#[test]
fn reads_what_was_written() {
    let header = [
        r#""__metadata__":{"format":"pt","deep":[[[]]]}"#.to_owned(),
        entry("b", "BF16", "[2,3]", 4, 16),
        entry("a", "F32", "[]", 0, 4),
        entry("none", "F32", "[0]", 16, 16),
    ];
    let bytes = file(&format!("{{{}}}", header.join(",")), 16);
    let tensors = parse(&bytes).unwrap();
    assert_eq!(tensors.len(), 3);
    let start = bytes.len() - 16;
    assert_eq!(tensors["a"].range, start..start + 4);
    assert_eq!(tensors["b"].shape, [2, 3]);
    assert_eq!(tensors["b"].dtype, "BF16");
}

#[test]
fn every_truncation_is_an_error() {
    let bytes = file(&format!("{{{}}}", entry("a", "F32", "[3]", 0, 12)), 12);
    assert!(parse(&bytes).is_ok());
    for len in 0..bytes.len() {
        assert!(parse(&bytes[..len]).is_err(), "{len}");
    }
}

#[test]
fn lies_are_refused() {
    let a = || entry("a", "F32", "[1]", 0, 4);
    let cases = [
        (vec![a(), entry("b", "F32", "[1]", 2, 6)], 6, "overlaps another"),
        (vec![a(), entry("b", "F32", "[1]", 5, 9)], 9, "follows a gap"),
        (vec![a()], 5, "1 bytes of data belong to no tensor"),
        (vec![a(), a()], 4, "a appears twice"),
        (vec![entry("a", "F32", "[2]", 0, 4)], 4, "4 bytes for F32 [2]"),
        (vec![entry("a", "F32", "[1]", 4, 0)], 4, "bytes 4..0"),
        (vec![entry("a", "F32", "[1]", 0, 8)], 4, "of 4 bytes of data"),
        (vec![entry("a", "Q9", "[1]", 0, 4)], 4, "is not known"),
        (vec![entry("a", "F32", "[4294967296,4294967296,4294967296]", 0, 4)], 4, "overflows"),
        (vec![entry("a", "F32", "[1,1,1,1,1,1,1,1,1]", 0, 4)], 4, "9 dimensions"),
        (vec![entry("a", "F32", "[-1]", 0, 4)], 4, "damaged header"),
        (vec![entry("a", "F32", "[1.5]", 0, 4)], 4, "damaged header"),
        (vec![entry(&"n".repeat(300), "F32", "[1]", 0, 4)], 4, "a name of 300 bytes"),
        (vec![r#""a":{"dtype":"F32","shape":[1]}"#.to_owned()], 4, "missing field"),
        (vec![r#""a":7"#.to_owned()], 4, "damaged header"),
    ];
    for (entries, data, part) in cases {
        let message = message(&entries, data);
        assert!(message.contains(part), "{message:?} lacks {part:?}");
    }
    let error = |bytes: &[u8]| parse(bytes).unwrap_err().to_string();
    assert!(error(&u64::MAX.to_le_bytes()).contains("exceeds the limit"));
    assert!(error(&(1u64 << 20).to_le_bytes()).contains("truncated"));
    assert!(error(&file("[]", 0)).contains("damaged header"));
    // Nesting ends in an error, not on the stack.
    let deep = format!(r#"{{"a":{}"#, "[".repeat(1 << 20));
    assert!(error(&file(&deep, 0)).contains("damaged header"));
}

proptest! {
    #[test]
    fn changed_bytes_do_not_panic(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
    ) {
        let entries = [entry("a", "F32", "[3]", 0, 12), entry("b", "BF16", "[2,3]", 12, 24)];
        let mut bytes = file(&format!("{{{}}}", entries.join(",")), 24);
        for (at, byte) in changes {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        if let Ok(tensors) = parse(&bytes) {
            for entry in tensors.values() {
                prop_assert!(bytes.get(entry.range.clone()).is_some());
            }
        }
    }

    #[test]
    fn random_headers_do_not_panic(text in r#"[\{\}\[\]",:a-z0-9]{0,200}"#) {
        let _: Result<_, _> = parse(&file(&text, 8));
    }
}
