//! Adapters that are not what was declared: each is stopped with its own reason.

mod support;

use std::io::Read;

use allmend_gate::{AdapterLimits, Declared, Dtype, Inspected, Precision, Rule, Stop, inspect};
use proptest::prelude::*;
use support::{RANK, adapter, declared, filled, tensors, written};

fn look(bytes: &[u8]) -> Result<Inspected, Vec<Stop>> {
    inspect(bytes, bytes.len() as u64, &declared(), &AdapterLimits::default())
}

/// The rules that a file breaks, in order of the rules.
fn broken(bytes: &[u8]) -> Vec<Rule> {
    let mut rules: Vec<Rule> = look(bytes).unwrap_err().iter().map(|stop| stop.rule).collect();
    rules.sort_unstable();
    rules
}

const PT: &[(&str, &str)] = &[("format", "pt")];

/// Goal: what an honest trainer writes passes, and is the one form: that of the reference library.
#[test]
fn the_declared_adapter_passes_unchanged() {
    let bytes = adapter();
    assert_eq!(look(&bytes).unwrap().file(Precision::AsTrained), bytes);
}

#[test]
fn an_extra_tensor() {
    let mut tensors = filled();
    tensors.push(("base_model.model.lm_head.secret".to_owned(), vec![2, 2], vec![0.0; 4]));
    assert_eq!(broken(&written(&tensors, PT))[0], Rule::AdapterExtraTensor);
    let reasons = look(&written(&tensors, PT)).unwrap_err();
    assert!(
        !format!("{reasons:?}").contains("secret"),
        "a name that the worker chose: {reasons:?}"
    );
}

#[test]
fn a_missing_tensor() {
    let mut tensors = filled();
    tensors.pop();
    assert!(broken(&written(&tensors, PT)).contains(&Rule::AdapterMissingTensor));
}

#[test]
fn a_wrong_shape() {
    // The same number of values, turned; and another number.
    let mut tensors = filled();
    tensors[0].1.reverse();
    assert_eq!(broken(&written(&tensors, PT)), [Rule::AdapterWrongShape]);
    let mut tensors = filled();
    tensors[0].1[0] += 1;
    tensors[0].2.extend([0.0; RANK]);
    assert!(broken(&written(&tensors, PT)).contains(&Rule::AdapterWrongShape));
}

#[test]
fn another_type() {
    let bytes = adapter();
    let header = String::from_utf8_lossy(&bytes[8..200]).into_owned();
    assert!(header.contains(r#""dtype":"F32""#));
    let at = bytes.windows(5).position(|window| window == b"\"F32\"").unwrap();
    let mut bytes = bytes;
    bytes[at + 1] = b'I';
    assert_eq!(broken(&bytes), [Rule::AdapterWrongType]);
}

#[test]
fn values_that_are_not_numbers() {
    for value in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        for at in [0, tensors().len() - 1] {
            let mut tensors = filled();
            *tensors[at].2.last_mut().unwrap() = value;
            assert_eq!(broken(&written(&tensors, PT)), [Rule::AdapterNotFinite], "{value}");
        }
    }
}

#[test]
fn a_huge_norm() {
    let mut tensors = filled();
    tensors[3].2[0] = 1e6;
    assert_eq!(broken(&written(&tensors, PT)), [Rule::AdapterNorm]);
    // One that is spread: no value is large, the update is.
    let mut tensors = filled();
    tensors.iter_mut().for_each(|(_, _, values)| values.iter_mut().for_each(|v| *v *= 50.0));
    assert_eq!(broken(&written(&tensors, PT)), [Rule::AdapterNorm]);
    // The largest float: its square is no float, but has a norm.
    let mut tensors = filled();
    tensors[3].2[0] = f32::MAX;
    assert_eq!(broken(&written(&tensors, PT)), [Rule::AdapterNorm]);
}

#[test]
fn smuggled_text() {
    let more = &[("format", "pt"), ("note", "row 17 reads: SMUGGLED")];
    for metadata in [more as &[(&str, &str)], &[("format", "SMUGGLED")]] {
        let bytes = written(&filled(), metadata);
        assert_eq!(broken(&bytes), [Rule::AdapterFreeText]);
        assert!(!format!("{:?}", look(&bytes)).contains("SMUGGLED"));
    }
    // Nothing is not text, but not the one form either.
    let bytes = written(&filled(), &[]);
    assert!(!broken(&bytes).is_empty());
}

/// Another header that says the same.
fn with_header(change: impl Fn(String) -> String) -> Vec<u8> {
    let bytes = adapter();
    let len = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let header = change(String::from_utf8(bytes[8..8 + len].to_vec()).unwrap());
    let mut changed = (header.len() as u64).to_le_bytes().to_vec();
    changed.extend_from_slice(header.as_bytes());
    changed.extend_from_slice(&bytes[8 + len..]);
    changed
}

#[test]
fn the_same_in_another_way() {
    let same = |header: String| header;
    assert!(look(&with_header(same)).is_ok());
    let not_canonical: [&dyn Fn(String) -> String; 5] = [
        &|header| header.replace(":{", ": {"),
        &|header| header + "        ",
        &|header| header.trim_end().to_owned(),
        &|header| header.replacen("q_proj", "\\u0071_proj", 1),
        &|header| {
            header.replacen(
                r#""shape":[4,32],"data_offsets":[0,512]"#,
                r#""data_offsets":[0,512],"shape":[4,32]"#,
                1,
            )
        },
    ];
    for (at, change) in not_canonical.iter().enumerate() {
        assert_eq!(broken(&with_header(change)), [Rule::AdapterNotCanonical], "change {at}");
    }
    let twice =
        with_header(|header| header.replacen('{', r#"{"__metadata__":{"format":"pt"},"#, 1));
    assert_eq!(broken(&twice), [Rule::AdapterDamaged]);
    let more = with_header(|header| header.replacen(r#""shape""#, r#""note":"x","shape""#, 1));
    assert_eq!(broken(&more), [Rule::AdapterDamaged]);
    let deep = with_header(|header| header.replacen(r#""pt""#, &"[".repeat(10_000), 1));
    assert_eq!(broken(&deep), [Rule::AdapterDamaged]);
    let long = with_header(|header| header + &" ".repeat(1 << 20));
    assert_eq!(broken(&long), [Rule::AdapterSlack]);
}

#[test]
fn offsets_elsewhere() {
    let gap = with_header(|header| header.replacen("[0,512]", "[4,516]", 1));
    assert_eq!(broken(&gap), [Rule::AdapterOffsets]);
    let overlap = with_header(|header| header.replacen("[512,1024]", "[0,512]", 1));
    assert_eq!(broken(&overlap), [Rule::AdapterOffsets]);
    let huge = with_header(|header| header.replacen("[0,512]", "[0,18446744073709551615]", 1));
    assert_eq!(broken(&huge), [Rule::AdapterOffsets]);
}

#[test]
fn bytes_behind_and_bytes_missing() {
    let bytes = adapter();
    let mut longer = bytes.clone();
    longer.push(0);
    assert_eq!(broken(&longer), [Rule::AdapterSlack]);
    // Longer than announced.
    let limits = AdapterLimits::default();
    let stops = inspect(longer.as_slice(), bytes.len() as u64, &declared(), &limits).unwrap_err();
    assert_eq!(stops[0].rule, Rule::AdapterSlack);
    for len in [0, 7, 8, 100, bytes.len() - 1] {
        assert_eq!(broken(&bytes[..len]), [Rule::AdapterTruncated], "{len}");
        // Shorter than announced.
        let stops = inspect(&bytes[..len], bytes.len() as u64, &declared(), &limits).unwrap_err();
        assert_eq!(stops[0].rule, Rule::AdapterTruncated, "{len}");
    }
    let mut endless = bytes;
    endless[..8].copy_from_slice(&u64::MAX.to_le_bytes());
    assert_eq!(broken(&endless), [Rule::AdapterSlack]);
}

/// A source that must not be touched.
struct Untouched;

impl Read for Untouched {
    fn read(&mut self, _: &mut [u8]) -> std::io::Result<usize> {
        panic!("read although it is too large");
    }
}

/// Goal: 2 GB are stopped without a byte of them being read.
#[test]
fn two_gigabytes() {
    let limits = AdapterLimits::default();
    for len in [2_000_000_000, limits.bytes_max + 1, u64::MAX] {
        let stops = inspect(Untouched, len, &declared(), &limits).unwrap_err();
        assert_eq!(stops.len(), 1);
        assert_eq!(stops[0].rule, Rule::AdapterTooLarge);
    }
    // Nor is one read that should never have been declared.
    let vast = (0..2).map(|half| {
        let name = ["m.lora_A.weight", "m.lora_B.weight"][half].to_owned();
        let shape = if half == 0 { vec![64, 1 << 22] } else { vec![1 << 22, 64] };
        (name, shape, Dtype::F32)
    });
    let vast = Declared::new(64, 64, vast).unwrap();
    let stops = inspect(Untouched, 100, &vast, &limits).unwrap_err();
    assert_eq!(stops[0].rule, Rule::AdapterTooLarge);
}

/// Goal: a file of 2 GB on a disk, sparse, as a worker could leave it.
#[test]
fn two_gigabytes_on_a_disk() {
    let file = tempfile::tempfile().unwrap();
    file.set_len(2_000_000_000).unwrap();
    let len = file.metadata().unwrap().len();
    let stops = inspect(file, len, &declared(), &AdapterLimits::default()).unwrap_err();
    assert_eq!(stops[0].rule, Rule::AdapterTooLarge);
}

#[test]
fn every_reason_is_a_short_sentence() {
    let mut tensors = filled();
    tensors.push(("x".repeat(3_000), vec![2, 2], vec![0.0; 4]));
    tensors[0].1.reverse();
    tensors[1].0 = "a".repeat(5_000);
    for stop in look(&written(&tensors, &[("x", "y")])).unwrap_err() {
        assert!(stop.text.len() <= Stop::TEXT_BYTES_MAX && stop.text.len() > 20, "{stop}");
    }
}

/// What makes a list of tensors none of an adapter.
type Change = &'static dyn Fn(&mut Vec<(String, Vec<usize>, Dtype)>);

#[test]
fn what_is_no_adapter_cannot_be_declared() {
    let with = |change: Change| {
        let mut all: Vec<_> =
            tensors().into_iter().map(|(name, shape)| (name, shape, Dtype::F32)).collect();
        change(&mut all);
        Declared::new(RANK as u32, 8, all)
    };
    assert!(with(&|_| {}).is_ok());
    let none: [Change; 8] = [
        &|all| all.clear(),
        &|all| drop(all.pop()),
        &|all| all[0].2 = Dtype::F16,
        &|all| all[0].1[1] += 1,
        &|all| all[0].1.push(1),
        &|all| all[0].1[0] = 0,
        &|all| all[0].0 = "a\"b".to_owned(),
        &|all| all.push(all[0].clone()),
    ];
    for (at, change) in none.iter().enumerate() {
        assert!(with(*change).is_err(), "change {at}");
    }
    assert!(Declared::new(0, 8, []).is_err());
}

/// Goal: what PEFT itself writes is in the one form. The files are the engine's fixtures.
#[test]
fn what_peft_writes_passes() {
    let engine = concat!(env!("CARGO_MANIFEST_DIR"), "/../engine/tests/fixtures");
    let mut seen = 0;
    for family in std::fs::read_dir(engine).unwrap() {
        let folder = family.unwrap().path().join("lora/start");
        let Ok(bytes) = std::fs::read(folder.join("adapter_model.safetensors")) else { continue };
        let config = std::fs::read_to_string(folder.join("adapter_config.json")).unwrap();
        let number = |key: &str| -> u32 {
            let rest = config.split(&format!("\"{key}\": ")).nth(1).unwrap();
            rest.split(',').next().unwrap().parse().unwrap()
        };
        let read = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        let all = read.tensors().into_iter().map(|(name, tensor)| {
            assert_eq!(tensor.dtype(), safetensors::Dtype::F32);
            (name, tensor.shape().to_vec(), Dtype::F32)
        });
        let declared = Declared::new(number("r"), number("lora_alpha"), all).unwrap();
        let limits = AdapterLimits::default();
        let adapter = inspect(bytes.as_slice(), bytes.len() as u64, &declared, &limits).unwrap();
        assert_eq!(adapter.file(Precision::AsTrained), bytes, "{}", folder.display());
        seen += 1;
    }
    assert!(seen >= 7, "the engine has adapters of {seen} families");
}

/// Goal: rounding is to the nearest, and the rounded file is in the one form.
#[test]
fn values_are_rounded_to_bfloat16() {
    let file = look(&adapter()).unwrap().file(Precision::Bf16);
    let read = safetensors::SafeTensors::deserialize(&file).unwrap();
    for (name, shape, values) in filled() {
        let tensor = read.tensor(&name).unwrap();
        assert_eq!((tensor.dtype(), tensor.shape()), (safetensors::Dtype::BF16, shape.as_slice()));
        for (bytes, value) in tensor.data().chunks_exact(2).zip(values) {
            let rounded = f32::from_bits(u32::from(u16::from_le_bytes([bytes[0], bytes[1]])) << 16);
            assert!((rounded - value).abs() <= value.abs() / 256.0, "{rounded} {value}");
        }
    }
    let all = tensors().into_iter().map(|(name, shape)| (name, shape, Dtype::Bf16));
    let half = Declared::new(RANK as u32, 8, all).unwrap();
    let limits = AdapterLimits::default();
    let again = inspect(file.as_slice(), file.len() as u64, &half, &limits).unwrap();
    assert_eq!(again.file(Precision::Bf16), file);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..ProptestConfig::default() })]

    /// Goal: whatever a worker changes, cuts off or appends, it ends in reasons or in exactly the bytes
    /// that the one form has.
    #[test]
    fn what_passes_is_the_one_form(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
        in_header in any::<bool>(),
        len in prop::option::of(any::<prop::sample::Index>()),
        more in prop::collection::vec(any::<u8>(), 0..3),
    ) {
        let mut bytes = adapter();
        let header = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
        for (at, byte) in changes {
            let at = at.index(if in_header { header } else { bytes.len() });
            bytes[at] = byte;
        }
        if let Some(len) = len {
            let len = len.index(bytes.len());
            bytes.truncate(len);
        }
        bytes.extend(more);
        match look(&bytes) {
            Ok(adapter) => prop_assert_eq!(adapter.file(Precision::AsTrained), bytes),
            Err(stops) => prop_assert!(!stops.is_empty()),
        }
    }
}
