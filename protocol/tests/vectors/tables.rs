//! Small tables: bundles, salted digests, prices, versions.

use std::collections::BTreeMap;

use allmend_protocol::bundle::Bundle;
use allmend_protocol::ids::Digest;
use allmend_protocol::message::{AnyMessage, Kind, Versions};
use allmend_protocol::units::Rates;
use serde_json::{Value, json};

use crate::support::cbor::Item;
use crate::support::samples::{self, NORD_NODE};
use crate::support::{hex, samples as s, sealed, unhex};

/// Every table by file name.
pub(crate) fn files() -> BTreeMap<String, String> {
    [("bundle", bundles()), ("encoding", encodings()), ("versions", versions())]
        .map(|(name, rows)| {
            (format!("{name}.json"), format!("{}\n", serde_json::to_string_pretty(&rows).unwrap()))
        })
        .into()
}

fn envelope(of: &str) -> Vec<u8> {
    let sample = s::all().into_iter().find(|sample| sample.kind().0.name() == of).unwrap();
    sample.signed().envelope().as_bytes().to_vec()
}

fn bundle(envelopes: &[Vec<u8>]) -> Vec<u8> {
    Item::List(envelopes.iter().cloned().map(Item::Bytes).collect()).to_bytes()
}

fn bundles() -> Value {
    let (offer, probe) = (envelope("offer"), envelope("probe"));
    let good = [
        ("one message", vec![probe.clone()]),
        ("a message and what it refers to", vec![offer.clone(), probe.clone()]),
    ];
    let whole = bundle(std::slice::from_ref(&probe));
    let bad = [
        ("nothing", Vec::new()),
        ("no message", vec![0x80]),
        ("nine messages", bundle(&vec![vec![0xa0]; 9])),
        ("an envelope without its list", probe.clone()),
        ("not an envelope", bundle(&[vec![0xa0]])),
        ("second one not an envelope", bundle(&[probe.clone(), vec![0xa0]])),
        ("text instead of bytes", Item::List(vec![Item::Text("x".into())]).to_bytes()),
        ("trailing byte", [whole.as_slice(), &[0]].concat()),
        ("over-long head", [&[0x98, 1], &whole[1..]].concat()),
        ("list of indefinite length", [&[0x9f], &whole[1..], &[0xff]].concat()),
        ("cut short", whole[..whole.len() - 1].to_vec()),
    ];
    let good = good.map(|(name, envelopes)| {
        let parts: Vec<String> = envelopes.iter().map(|bytes| hex(bytes)).collect();
        json!({ "name": name, "envelopes": parts, "bundle": hex(&bundle(&envelopes)) })
    });
    let bad = bad.map(|(name, bytes)| json!({ "name": name, "bundle": hex(&bytes) }));
    json!({ "good": good, "bad": bad })
}

fn encodings() -> Value {
    let salted = [("00", ""), ("11", "ciphertext"), ("ff", "ciphertext")].map(|(salt, text)| {
        let salt = salt.repeat(32);
        let digest = Digest::salted(&unhex(&salt).try_into().unwrap(), text.as_bytes());
        json!({ "salt": salt, "text": text, "digest": digest })
    });
    let max = u64::MAX;
    let costs = [
        (1, 3, 1, 1),
        (1, 3, 1_000, 1_000),
        (100, 400, 12, 128),
        (0, 0, max, max),
        (max, 0, 1_000, 0),
        (max, 0, 1_001, 0),
        (max, max, max, max),
    ]
    .map(|(prompt, completion, prompt_tokens, completion_tokens)| {
        json!({
            "rates": { "prompt": prompt, "completion": completion },
            "prompt_tokens": prompt_tokens,
            "completion_tokens": completion_tokens,
            "cost": Rates { prompt, completion }.cost(prompt_tokens, completion_tokens),
        })
    });
    json!({ "salted": salted, "costs": costs })
}

fn versions() -> Value {
    let rows = [
        (json!({}), json!({}), "lease", Some(1)),
        (json!({}), json!({}), "refusal", Some(1)),
        (json!({ "refusal": [1, 2] }), json!({}), "refusal", Some(1)),
        (json!({ "refusal": [1, 2] }), json!({ "refusal": [1, 2, 3] }), "refusal", Some(2)),
        (json!({ "refusal": [2] }), json!({ "refusal": [1, 2, 3] }), "refusal", Some(2)),
        (json!({ "refusal": [2] }), json!({}), "refusal", None),
        (json!({ "refusal": [1, 4] }), json!({ "refusal": [2, 3] }), "refusal", None),
        (json!({ "refusal": [2] }), json!({ "refusal": [2] }), "lease", Some(1)),
    ];
    rows.map(|(ours, theirs, kind, common)| {
        json!({ "ours": ours, "theirs": theirs, "kind": kind, "common": common })
    })
    .into_iter()
    .collect()
}

fn read(name: &str) -> Value {
    serde_json::from_str(&std::fs::read_to_string(crate::folder().join(name)).unwrap()).unwrap()
}

fn text<'a>(row: &'a Value, field: &str) -> &'a str {
    row[field].as_str().unwrap()
}

#[test]
fn bundles_hold_one_to_eight_envelopes() {
    let table = read("bundle.json");
    for row in table["good"].as_array().unwrap() {
        let bytes = unhex(text(row, "bundle"));
        let bundle = Bundle::from_bytes(&bytes).unwrap();
        let envelopes: Vec<Value> = std::iter::once(&bundle.main)
            .chain(&bundle.attached)
            .map(|envelope| hex(envelope.as_bytes()).into())
            .collect();
        assert_eq!(Value::from(envelopes), row["envelopes"], "{}", row["name"]);
        assert_eq!(bundle.to_bytes(), bytes, "{}", row["name"]);
    }
    for row in table["bad"].as_array().unwrap() {
        assert!(Bundle::from_bytes(&unhex(text(row, "bundle"))).is_err(), "{}", row["name"]);
    }
}

/// Goal: eight of the largest envelopes do not fit, and are refused by their size alone.
#[test]
fn bundles_are_at_most_128_kib() {
    let padded = sealed("x", &[0; 30_000], NORD_NODE);
    assert!(Bundle::from_bytes(&bundle(&vec![padded.clone(); 4])).is_ok());
    assert!(Bundle::from_bytes(&bundle(&vec![padded; 5])).is_err());
}

#[test]
fn digests_and_costs_are_as_in_the_table() {
    use sha2::{Digest as _, Sha256};
    let table = read("encoding.json");
    for row in table["salted"].as_array().unwrap() {
        let (salt, bytes) = (unhex(text(row, "salt")), text(row, "text").as_bytes());
        let by_hand = Sha256::digest([b"allmend-salted-v1", salt.as_slice(), bytes].concat());
        assert_eq!(hex(&by_hand), text(row, "digest"));
        let ours = Digest::salted(&salt.try_into().unwrap(), bytes);
        assert_eq!(ours.to_string(), text(row, "digest"));
    }
    for row in table["costs"].as_array().unwrap() {
        let rates: Rates = serde_json::from_value(row["rates"].clone()).unwrap();
        let tokens = |field: &str| row[field].as_u64().unwrap();
        let cost = rates.cost(tokens("prompt_tokens"), tokens("completion_tokens"));
        assert_eq!(serde_json::to_value(cost).unwrap(), row["cost"], "{row}");
    }
}

#[test]
fn versions_are_agreed_as_in_the_table() {
    for row in read("versions.json").as_array().unwrap() {
        let ours: Versions = serde_json::from_value(row["ours"].clone()).unwrap();
        let theirs: Versions = serde_json::from_value(row["theirs"].clone()).unwrap();
        let kind = Kind::from_name(text(row, "kind")).unwrap();
        let common = row["common"].as_u64();
        assert_eq!(ours.common(&theirs, kind).map(u64::from), common, "{row}");
        assert_eq!(theirs.common(&ours, kind).map(u64::from), common, "{row}");
    }
}

#[test]
fn samples_cover_every_message() {
    for (kind, version) in AnyMessage::known() {
        assert!(
            samples::all().iter().any(|sample| sample.kind() == (kind, version)),
            "{kind} v{version}"
        );
    }
}
