use proptest::prelude::*;

use super::*;
use crate::gguf_writer::{GgufWriter, RawTensor};

fn small() -> GgufWriter {
    GgufWriter::default()
        .string("general.architecture", "llama")
        .u32("a.number", 7)
        .f32("a.float", 0.5)
        .bool("a.flag", true)
        .strings("a.strings", &["x", "", "ü"])
        .i32s("a.numbers", &[-1, 2])
        .tensor("first", &[2, 3], &[0.0; 6])
        .tensor("second", &[5], &[1.0; 5])
}

fn parse_error(bytes: &[u8]) -> String {
    Gguf::parse(bytes).unwrap_err().to_string()
}

#[test]
fn reads_what_was_written() {
    let bytes = small().to_bytes();
    let gguf = Gguf::parse(&bytes).unwrap();
    assert_eq!(gguf.string("general.architecture").unwrap(), Some("llama"));
    assert_eq!(gguf.u32("a.number").unwrap(), Some(7));
    assert_eq!(gguf.f64("a.float").unwrap(), Some(0.5));
    assert_eq!(gguf.bool("a.flag").unwrap(), Some(true));
    let strings: Vec<Value<'_>> = gguf.array("a.strings").unwrap().unwrap().iter().collect();
    assert_eq!(strings, [Value::String("x"), Value::String(""), Value::String("ü")]);
    let numbers: Vec<Value<'_>> = gguf.array("a.numbers").unwrap().unwrap().iter().collect();
    assert_eq!(numbers, [Value::Signed(-1), Value::Signed(2)]);
    assert_eq!(gguf.tensors["first"].shape, [2, 3]);
    let second = &gguf.tensors["second"];
    assert_eq!(&bytes[second.range.clone()], [1.0f32; 5].map(f32::to_le_bytes).concat());
}

#[test]
fn every_truncation_is_an_error() {
    let bytes = small().to_bytes();
    for len in 0..bytes.len() {
        assert!(Gguf::parse(&bytes[..len]).is_err(), "{len}");
    }
}

#[test]
fn errors_say_what_is_wrong() {
    let patched = |at: usize, value: &[u8]| {
        let mut bytes = small().to_bytes();
        bytes[at..at + value.len()].copy_from_slice(value);
        parse_error(&bytes)
    };
    assert!(parse_error(b"").contains("not a GGUF file"));
    assert!(parse_error(b"PK\x03\x04 zip").contains("50, 4b, 03, 04"));
    assert!(patched(4, &1u32.to_le_bytes()).contains("version 1"));
    assert!(patched(4, &3u32.to_be_bytes()).contains("version 50331648"));
    assert!(patched(8, &u64::MAX.to_le_bytes()).contains("number of tensors"));
    assert!(patched(16, &u64::MAX.to_le_bytes()).contains("number of metadata keys"));
    assert!(patched(24, &u64::MAX.to_le_bytes()).contains("limit"));
    assert!(patched(32, &[0xff]).contains("UTF-8"));
    let huge = |kind, len| parse_error(&small().array("x", kind, len, &[]).to_bytes());
    assert!(huge(4, u64::MAX).contains("length of an array"));
    assert!(huge(4, 1 << 20).contains("bytes"));
    assert!(huge(13, 0).contains("unknown value type 13"));
    assert!(parse_error(&small().raw("x", 7, &[2]).to_bytes()).contains("boolean"));
    assert!(parse_error(&small().array("x", 7, 1, &[2]).to_bytes()).contains("boolean"));
    for alignment in [0, 1, 4, 24, 1 << 20] {
        let error = parse_error(&small().u32("general.alignment", alignment).to_bytes());
        assert!(error.contains("general.alignment"), "{error}");
    }
}

#[test]
fn arrays_of_arrays_end() {
    let nested = |depth: usize| {
        // Each level is the header of an array of one array; the innermost is an empty one of u8.
        let mut body = [&0u32.to_le_bytes()[..], &0u64.to_le_bytes()].concat();
        for _ in 1..depth {
            body = [&9u32.to_le_bytes()[..], &1u64.to_le_bytes(), &body].concat();
        }
        small().array("x", 9, 1, &body).to_bytes()
    };
    assert!(Gguf::parse(&nested(3)).is_ok());
    assert!(parse_error(&nested(5)).contains("depth of arrays"));
    assert!(parse_error(&nested(50_000)).contains("depth of arrays"));
}

#[test]
fn tensors_that_lie_are_refused() {
    let with = |shape: &[usize], type_id: u32, len: usize| {
        let mut writer = small();
        let (name, shape) = ("third".to_owned(), shape.to_vec());
        writer.tensors.push(RawTensor { name, shape, type_id, bytes: vec![0; len] });
        Gguf::parse(&writer.to_bytes()).map(|_| ()).map_err(|error| error.to_string())
    };
    assert_eq!(with(&[2, 32], 8, 68), Ok(()));
    assert!(with(&[2, 32], 8, 67).unwrap_err().contains("ends at byte"));
    assert!(with(&[2, 31], 8, 68).unwrap_err().contains("blocks of 32"));
    assert!(with(&[usize::MAX, usize::MAX], 0, 0).unwrap_err().contains("too many elements"));
    assert!(with(&[usize::MAX / 2], 0, 0).unwrap_err().contains("overflows"));
    assert!(with(&[1 << 40], 0, 0).unwrap_err().contains("ends at byte"));
    assert!(with(&[0], 0, 0).unwrap_err().contains("empty dimension"));
    assert!(with(&[1; 5], 0, 4).unwrap_err().contains("dimensions"));
    assert!(with(&[], 0, 4).unwrap_err().contains("dimensions"));
    assert!(with(&[256], 16, 66).unwrap_err().contains("IQ2_XXS"));
    assert!(with(&[256], 99, 66).unwrap_err().contains("type number 99"));
    let twice = small().tensor("first", &[1], &[0.0]).to_bytes();
    assert!(parse_error(&twice).contains("twice"));
}

#[test]
fn tensors_may_not_overlap() {
    let mut bytes = small().to_bytes();
    // The offset of "second" is the last field of the header, before padding.
    let name = bytes.windows(6).position(|window| window == b"second").unwrap();
    let offset = name + 6 + 4 + 8 + 4;
    assert_eq!(bytes[offset..offset + 8], 32u64.to_le_bytes());
    bytes[offset..offset + 8].copy_from_slice(&0u64.to_le_bytes());
    assert!(parse_error(&bytes).contains("overlaps"));
    bytes[offset..offset + 8].copy_from_slice(&33u64.to_le_bytes());
    assert!(parse_error(&bytes).contains("aligned"));
    bytes[offset..offset + 8].copy_from_slice(&(u64::MAX - 31).to_le_bytes());
    assert!(parse_error(&bytes).contains("overflows"));
}

proptest! {
    #[test]
    fn random_bytes_do_not_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        let _: Result<_> = Gguf::parse(&bytes);
        let with_magic = [b"GGUF\x03\0\0\0", bytes.as_slice()].concat();
        let _: Result<_> = Gguf::parse(&with_magic);
    }

    #[test]
    fn mutations_do_not_panic(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
    ) {
        let mut bytes = small().to_bytes();
        for (at, value) in changes {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        if let Ok(gguf) = Gguf::parse(&bytes) {
            for info in gguf.tensors.values() {
                prop_assert!(bytes.get(info.range.clone()).is_some());
            }
            for value in gguf.metadata.values() {
                if let Value::Array(array) = value {
                    prop_assert_eq!(array.iter().count(), array.len());
                }
            }
        }
    }
}
