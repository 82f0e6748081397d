//! Reads the files from their text alone: with the crate, and with a second reader that shares no
//! code with it.

use std::collections::BTreeSet;
use std::fs;

use allmend_protocol::ids::FederationId;
use allmend_protocol::message::AnyMessage;
use ed25519_dalek::{Signature, VerifyingKey};
use sha2::{Digest as _, Sha256};

use crate::bad::class;
use crate::file::{Good, Vectors};
use crate::splice::apply;
use crate::support::cbor::Item;
use crate::support::{encoded, hex, pre_authentication, public, read_any, read_as, samples, unhex};

fn files() -> Vec<Vectors> {
    let mut kinds: BTreeSet<&str> =
        AnyMessage::known().iter().map(|(kind, _)| kind.name()).collect();
    kinds.insert("envelope");
    kinds
        .iter()
        .map(|kind| {
            let path = crate::folder().join(format!("{kind}.json"));
            serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap()
        })
        .collect()
}

fn federation(text: &str) -> FederationId {
    text.parse().unwrap()
}

#[test]
fn every_version_has_good_and_bad_vectors() {
    let files = files();
    for (kind, version) in AnyMessage::known() {
        let file = files.iter().find(|file| file.kind == kind.name()).unwrap();
        let payload_type = allmend_protocol::message::payload_type(kind, version);
        let of = |good: &Good| good.payload_type == payload_type;
        assert!(file.good.iter().any(of), "{payload_type}");
        assert!(
            file.bad.iter().filter(|bad| of(&file.good[bad.of])).count() > 20,
            "{payload_type}"
        );
    }
}

#[test]
fn good_vectors_are_accepted_with_their_content() {
    for file in files() {
        for good in &file.good {
            let what = format!("{}: {}", file.kind, good.name);
            let message =
                read_any(&unhex(&good.envelope), &federation(&good.federation)).expect(&what);
            assert_eq!(message.id().to_string(), good.id, "{what}");
            let envelope = unhex(&good.envelope);
            assert_eq!(message.envelope().body(), good.body.in_bytes(&envelope), "{what}");
            let fields = message.serialize_body(serde_json::value::Serializer).unwrap();
            assert_eq!(fields, good.fields, "{what}");
        }
    }
}

/// Goal: the pages say enough to write another implementation. Method: this test is one, of the
/// reading half: canonical CBOR, ids, signatures, fields.
#[test]
fn a_second_reader_agrees_about_good_vectors() {
    for file in files() {
        for good in &file.good {
            let what = format!("{}: {}", file.kind, good.name);
            let envelope = Item::from_bytes(&unhex(&good.envelope)).expect(&what);
            assert_eq!(hex(&envelope.to_bytes()), good.envelope, "{what}");
            let Item::Bytes(body) = envelope.field("body") else { panic!("{what}") };
            assert_eq!(body, good.body.in_bytes(&unhex(&good.envelope)), "{what}");
            assert_eq!(*envelope.field("type"), Item::Text(good.payload_type.clone()), "{what}");

            let signed = pre_authentication(&good.payload_type, body);
            assert_eq!(hex(&Sha256::digest(&signed)), good.id, "{what}");
            let Item::List(sigs) = envelope.field("sigs") else { panic!("{what}") };
            let mut keys: Vec<[u8; 32]> = good.seeds.iter().map(|seed| public(*seed)).collect();
            keys.sort_unstable();
            assert_eq!(sigs.len(), keys.len(), "{what}");
            for (sig, key) in sigs.iter().zip(keys) {
                assert_eq!(*sig.field("key"), Item::Bytes(key.to_vec()), "{what}");
                let Item::Bytes(sig) = sig.field("sig") else { panic!("{what}") };
                let sig = Signature::from_slice(sig).unwrap();
                let key = VerifyingKey::from_bytes(&key).unwrap();
                key.verify_strict(&signed, &sig).expect(&what);
            }

            let body = Item::from_bytes(body).expect(&what);
            assert_eq!(body.to_json(), good.fields, "{what}");
            // Only a genesis charter names no federation: it is one.
            let named = body
                .to_json()
                .get("federation")
                .map_or(good.id.clone(), |federation| federation.as_str().unwrap().to_owned());
            assert_eq!(named, good.federation, "{what}");
        }
    }
}

#[test]
fn bad_vectors_are_refused_for_their_reason() {
    let samples = samples::all();
    for file in files() {
        for bad in &file.bad {
            let what = format!("{}: {}", file.kind, bad.name);
            let good = &file.good[bad.of];
            let bytes = apply(&unhex(&good.envelope), &bad.splice);
            let federation = federation(bad.federation.as_ref().unwrap_or(&good.federation));
            let like = samples.iter().find(|s| encoded(&s.body).0 == good.payload_type).unwrap();
            let error = read_as(&like.body, &bytes, &federation).expect_err(&what);
            assert_eq!(
                class(&error),
                (bad.class.as_str(), bad.field.as_deref()),
                "{what}: {error}"
            );
            // Whoever lets the envelope say what it is must not be talked into taking it either.
            assert!(read_any(&bytes, &federation).is_err(), "{what}");
        }
    }
}

/// Goal: a bad vector is bad for the one thing that its name says, and really differs.
#[test]
fn bad_vectors_differ_from_good_ones_and_from_each_other() {
    for file in files() {
        let mut seen = BTreeSet::new();
        for bad in &file.bad {
            let bytes = apply(&unhex(&file.good[bad.of].envelope), &bad.splice);
            assert!(
                seen.insert((&file.good[bad.of].payload_type, bytes, bad.federation.clone())),
                "{}: {}",
                file.kind,
                bad.name
            );
        }
        for good in &file.good {
            assert!(
                !seen.contains(&(&good.payload_type, unhex(&good.envelope), None)),
                "{}",
                file.kind
            );
        }
    }
}
