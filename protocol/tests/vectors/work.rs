//! Fine-tuning as work: what must be read, and what must be refused, with the splices of other vectors.

use allmend_protocol::bytes::ByteString;
use allmend_protocol::encoding::{self, DecodeError};
use allmend_protocol::finetune::{FinetuneWork, Task, WORK_FINETUNE};
use allmend_protocol::job::{InferWork, WORK_BYTES_MAX, Work};
use serde::{Deserialize, Serialize};

use crate::splice::{Splice, apply, difference};
use crate::support::broken;
use crate::support::cbor::Item;
use crate::support::{hex, samples, unhex};

/// The vectors of one type of work.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Works {
    #[serde(rename = "type")]
    kind: String,
    good: Vec<Good>,
    bad: Vec<Bad>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Good {
    name: String,
    fields: serde_json::Value,
    /// The most tokens that are trained on, which is what may be charged.
    tokens_max: u64,
    bytes: String,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Bad {
    name: String,
    class: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    field: Option<String>,
    of: usize,
    splice: Vec<Splice>,
}

impl Works {
    /// One vector per line.
    pub(crate) fn to_text(&self) -> String {
        fn lines<T: Serialize>(list: &[T]) -> String {
            let lines: Vec<String> =
                list.iter().map(|one| serde_json::to_string(one).unwrap()).collect();
            lines.join(",\n")
        }
        let Works { kind, good, bad } = self;
        let (good, bad) = (lines(good), lines(bad));
        format!("{{\n\"type\": {kind:?},\n\"good\": [\n{good}\n],\n\"bad\": [\n{bad}\n]\n}}\n")
    }
}

pub(crate) fn file() -> Works {
    let samples = [
        ("one dataset", samples::finetune_work()),
        ("two datasets, differential privacy", samples::private_work()),
        ("the job's own rows", samples::own_rows_work()),
    ];
    let bytes: Vec<Vec<u8>> = samples.iter().map(|(_, work)| encoding::encode(work)).collect();
    let good = samples.iter().zip(&bytes).map(|((name, work), bytes)| Good {
        name: (*name).to_owned(),
        fields: serde_json::to_value(work).unwrap(),
        tokens_max: work.tokens_max(),
        bytes: hex(bytes),
    });
    let nearest = |wanted: &[u8]| {
        let differences = bytes.iter().map(|base| difference(base, wanted)).enumerate();
        let length = |splices: &[Splice]| -> usize {
            splices.iter().map(|Splice(_, _, put, _)| put.len() + 20).sum()
        };
        differences.min_by_key(|(_, splices)| length(splices)).unwrap()
    };
    let bad = |name: &str, class: &str, field: Option<&str>, wanted: &[u8]| {
        let (of, splice) = nearest(wanted);
        let field = field.map(str::to_owned);
        Bad { name: name.to_owned(), class: class.to_owned(), field, of, splice }
    };
    let mut list: Vec<Bad> = malformed(&bytes[0])
        .iter()
        .map(|(name, bytes)| bad(name, "malformed", None, bytes))
        .collect();
    list.push(bad("more than 8 KiB", "too-long", None, &[0; WORK_BYTES_MAX + 1]));
    for (name, field, work) in broken::data::finetune() {
        list.push(bad(name, "invalid", Some(field), &encoding::encode(&work)));
    }
    Works { kind: WORK_FINETUNE.to_owned(), good: good.collect(), bad: list }
}

/// Second encodings and wrong shapes of one good work.
fn malformed(good: &[u8]) -> Vec<(&'static str, Vec<u8>)> {
    let item = Item::from_bytes(good).unwrap();
    let with = |name: &str, value: Item| {
        let mut item = item.clone();
        item.insert(name, value);
        item.to_bytes()
    };
    let replaced = |name: &str, value: Item| {
        let Item::Map(mut entries) = item.clone() else { unreachable!() };
        entries.iter_mut().find(|(key, _)| key == name).unwrap().1 = value;
        Item::Map(entries).to_bytes()
    };
    let swapped = {
        let Item::Map(mut entries) = item.clone() else { unreachable!() };
        entries.swap(0, 1);
        Item::Map(entries).to_bytes()
    };
    let float = Item::Raw([&[0xfb][..], &0.05f64.to_be_bytes()].concat());
    vec![
        ("nothing", Vec::new()),
        ("unknown field", with("zz", Item::Unsigned(0))),
        ("null for an absent field", with("privacy", Item::Null)),
        ("fields not sorted", swapped),
        ("float instead of a decimal", replaced("validation", float)),
        ("negative steps", replaced("steps", Item::Negative(0))),
        ("steps beyond 32 bits", replaced("steps", Item::Unsigned(1 << 32))),
        ("unknown choice", replaced("loss_on", Item::Text("user".to_owned()))),
        ("boolean as a number", replaced("packing", Item::Unsigned(1))),
        ("trailing byte", [good, &[0]].concat()),
        ("cut short", good[..good.len() - 1].to_vec()),
    ]
}

fn read() -> Works {
    let path = crate::folder().join("finetune.json");
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

#[test]
fn good_work_is_read_by_both_readers() {
    let works = read();
    for good in &works.good {
        let bytes = unhex(&good.bytes);
        let item = Item::from_bytes(&bytes).unwrap();
        assert_eq!((item.to_bytes(), item.to_json()), (bytes.clone(), good.fields.clone()));
        let work = Work { kind: works.kind.clone(), bytes: ByteString(bytes) };
        let Ok(Task::Finetune(finetune)) = Task::from_work(&work) else { panic!("{}", good.name) };
        assert_eq!(finetune.to_work(), work, "{}", good.name);
        assert_eq!(finetune.tokens_max(), good.tokens_max, "{}", good.name);
        // One type's bytes are not another's.
        assert!(InferWork::from_work(&work).is_err());
        let other = Work { kind: "infer.v1".to_owned(), ..work };
        assert!(Task::from_work(&other).is_err() && FinetuneWork::from_work(&other).is_err());
    }
}

#[test]
fn bad_work_is_refused_for_its_reason() {
    let works = read();
    let mut seen = std::collections::BTreeSet::new();
    for bad in &works.bad {
        let bytes = apply(&unhex(&works.good[bad.of].bytes), &bad.splice);
        let found = match encoding::decode::<FinetuneWork>(&bytes, WORK_BYTES_MAX) {
            Err(DecodeError::TooLong { .. }) => ("too-long", None),
            Err(_) => ("malformed", None),
            Ok(work) => match work.check() {
                Err(invalid) => ("invalid", Some(invalid.field)),
                Ok(()) => ("good", None),
            },
        };
        assert_eq!(found, (bad.class.as_str(), bad.field.as_deref()), "{}", bad.name);
        let work = Work { kind: works.kind.clone(), bytes: ByteString(bytes.clone()) };
        assert!(Task::from_work(&work).is_err(), "{}", bad.name);
        let name = (bad.name.clone(), bad.field.clone());
        assert!(seen.insert(bytes), "{name:?} is the same as another");
    }
}
