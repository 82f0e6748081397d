//! What holds for every message: one way to write it, no way to change it, no bytes that panic.

mod support;

use allmend_protocol::bundle::Bundle;
use allmend_protocol::bytes::ByteString;
use allmend_protocol::encoding::{self, BODY_BYTES_MAX};
use allmend_protocol::envelope::Envelope;
use allmend_protocol::finetune::{FinetuneInput, FinetuneWork, Task, WORK_FINETUNE};
use allmend_protocol::ids::FederationId;
use allmend_protocol::job::{InferWork, WORK_INFER, Work};
use allmend_protocol::message::{AnyMessage, Body, Kind};
use proptest::prelude::*;

use support::cbor::Item;
use support::draw::{Draw, SIGNER};
use support::samples;
use support::{encoded, envelope_item, key, read_any, read_as, sealed};

/// The federation in which `body` is to be read.
fn federation_of(body: &Body) -> FederationId {
    match body {
        Body::Charter(charter) => charter.federation.unwrap_or_else(|| body.id().into()),
        _ => {
            let (_, bytes) = encoded(body);
            let Some(Item::Map(entries)) = Item::from_bytes(&bytes) else { unreachable!() };
            let federation = entries.into_iter().find(|(key, _)| key == "federation").unwrap();
            let Item::Bytes(bytes) = federation.1 else { unreachable!() };
            FederationId::from_bytes(bytes.try_into().unwrap())
        }
    }
}

fn flipped(bytes: &[u8], bit: usize) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    bytes[bit / 8] ^= 1 << (bit % 8);
    bytes
}

/// Decodes whatever way there is; the point is that this returns.
fn read_every_way(bytes: &[u8], federation: &FederationId) {
    if let Ok(envelope) = Envelope::from_bytes(bytes) {
        // What is taken is taken in its one encoding, and kept as it came.
        assert_eq!(envelope.as_bytes(), bytes);
        AnyMessage::verify(&envelope, federation).ok();
    }
    if let Ok(bundle) = Bundle::from_bytes(bytes) {
        assert_eq!(bundle.to_bytes(), bytes);
    }
    for kind in [WORK_INFER, WORK_FINETUNE, "pray.v1"] {
        let work = Work { kind: kind.to_owned(), bytes: ByteString(bytes.to_vec()) };
        Task::from_work(&work).ok();
    }
    encoding::decode::<FinetuneInput>(bytes, BODY_BYTES_MAX).ok();
}

/// Replaces something in `item` by something surprising.
fn disturb(item: &mut Item, draw: &mut Draw) {
    let mut count = 0;
    count_items(item, &mut count);
    let mut at = draw.below(count);
    replace(item, &mut at, draw);
}

fn count_items(item: &Item, count: &mut usize) {
    *count += 1;
    match item {
        Item::List(items) => items.iter().for_each(|item| count_items(item, count)),
        Item::Map(entries) => entries.iter().for_each(|(_, item)| count_items(item, count)),
        _ => {}
    }
}

fn replace(item: &mut Item, at: &mut usize, draw: &mut Draw) {
    if *at == 0 {
        *item = surprise(item, draw);
        *at = usize::MAX;
        return;
    }
    *at -= 1;
    let children: Vec<&mut Item> = match item {
        Item::List(items) => items.iter_mut().collect(),
        Item::Map(entries) => entries.iter_mut().map(|(_, item)| item).collect(),
        _ => Vec::new(),
    };
    for child in children {
        if *at == usize::MAX {
            return;
        }
        replace(child, at, draw);
    }
}

fn surprise(item: &Item, draw: &mut Draw) -> Item {
    let numbers = [0, 1, 23, 24, 63, 64, 65, 127, 128, 255, 256, 32_767, 65_535, 65_536];
    let large = [u64::from(u32::MAX), 1 << 32, (1 << 53) + 1, i64::MAX as u64, 1 << 63, u64::MAX];
    match (draw.below(8), item) {
        (0..=2, Item::Unsigned(_) | Item::Negative(_)) => {
            let number =
                if draw.below(2) == 0 { draw.one_of(&numbers) } else { draw.one_of(&large) };
            if draw.below(2) == 0 { Item::Unsigned(number) } else { Item::Negative(number) }
        }
        (0..=2, Item::Bytes(bytes)) => {
            let mut bytes = bytes.clone();
            match draw.below(3) {
                0 => bytes.truncate(draw.below(bytes.len() + 1)),
                1 => bytes.push(0),
                _ => bytes.fill(draw.one_of(&[0, 1, 0xff])),
            }
            Item::Bytes(bytes)
        }
        (0..=2, Item::Text(text)) => {
            Item::Text(draw.one_of(&["", "\0", "finished", "CH", "zz", "🦙"]).to_owned() + text)
        }
        (0..=2, Item::List(items)) => {
            let mut items = items.clone();
            match draw.below(3) {
                0 => items.clear(),
                1 => items.reverse(),
                _ => items.extend(items.clone()),
            }
            Item::List(items)
        }
        (3, _) => Item::Null,
        (4, _) => Item::List(vec![item.clone()]),
        (5, _) => Item::Map(vec![("a".to_owned(), item.clone())]),
        (6, _) => Item::Unsigned(draw.one_of(&large)),
        _ => Item::Raw(draw.bytes(12).0),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1_000, failure_persistence: None, ..ProptestConfig::default() })]

    /// Sign, write, read, verify: the same message, and bytes that a second writer would make.
    #[test]
    fn every_body_comes_back_as_it_was_signed(seed in any::<u64>()) {
        let body = Draw(seed).any_body();
        let federation = federation_of(&body);
        let message = body.clone().sign(&key(SIGNER)).unwrap();
        let bytes = message.envelope().as_bytes();
        let read = read_any(bytes, &federation);
        prop_assert_eq!(read.as_ref(), Ok(&message));
        prop_assert_eq!(message.id(), body.id());
        prop_assert_eq!(message.kind(), body.kind());

        let (payload_type, encoded) = encoded(&body);
        prop_assert_eq!(sealed(&payload_type, &encoded, SIGNER), bytes);
        let item = Item::from_bytes(&encoded).unwrap();
        prop_assert_eq!(item.to_bytes(), encoded);
        // JSON says the same.
        let json = message.serialize_body(serde_json::value::Serializer).unwrap();
        prop_assert_eq!(item.to_json(), json);
    }

    #[test]
    fn a_changed_bit_anywhere_is_refused(seed in any::<u64>()) {
        let mut draw = Draw(seed);
        let body = draw.any_body();
        let federation = federation_of(&body);
        let message = body.clone().sign(&key(SIGNER)).unwrap();
        let bytes = message.envelope().as_bytes();
        for _ in 0..16 {
            let changed = flipped(bytes, draw.below(bytes.len() * 8));
            prop_assert!(read_as(&body, &changed, &federation).is_err());
            prop_assert!(read_any(&changed, &federation).is_err());
        }
    }

    #[test]
    fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..512)) {
        let federation = samples::federation();
        read_every_way(&bytes, &federation);
        for (kind, version) in AnyMessage::known() {
            let payload_type = allmend_protocol::message::payload_type(kind, version);
            let key = ([7; 32], [0; 64]);
            let envelope = envelope_item(&payload_type, &bytes, &[key]).to_bytes();
            prop_assert!(read_any(&envelope, &federation).is_err());
        }
    }

    /// Goal: bodies that are nearly right reach every rule, and none of them panics.
    #[test]
    fn disturbed_bodies_never_panic(seed in any::<u64>()) {
        let mut draw = Draw(seed);
        let body = draw.any_body();
        let federation = federation_of(&body);
        let (payload_type, bytes) = encoded(&body);
        let mut item = Item::from_bytes(&bytes).unwrap();
        for _ in 0..4 {
            disturb(&mut item, &mut draw);
            let disturbed = item.to_bytes();
            let read = read_any(&sealed(&payload_type, &disturbed, SIGNER), &federation);
            // What is taken none the less is another valid body in its one encoding.
            if let Ok(message) = read {
                prop_assert_eq!(message.envelope().body(), disturbed);
            }
            if let Some(again) = Item::from_bytes(&item.to_bytes()) {
                item = again;
            } else {
                break;
            }
        }
    }

    #[test]
    fn disturbed_envelopes_and_bundles_never_panic(seed in any::<u64>()) {
        let mut draw = Draw(seed);
        let body = draw.any_body();
        let federation = federation_of(&body);
        let envelope = body.sign(&key(SIGNER)).unwrap().envelope().clone();
        let bundle =
            Bundle { main: envelope.clone(), attached: vec![envelope.clone(); draw.below(3)] };
        for bytes in [envelope.as_bytes().to_vec(), bundle.to_bytes()] {
            read_every_way(&bytes[..draw.below(bytes.len())], &federation);
            let mut changed = bytes.clone();
            for _ in 0..=draw.below(4) {
                let at = draw.below(changed.len());
                changed[at] = draw.number() as u8;
            }
            read_every_way(&changed, &federation);
            let mut item = Item::from_bytes(&bytes).unwrap();
            disturb(&mut item, &mut draw);
            read_every_way(&item.to_bytes(), &federation);
        }
    }

    #[test]
    fn inference_work_comes_back_and_never_panics(seed in any::<u64>()) {
        let mut draw = Draw(seed);
        let infer = draw.infer_work();
        let mut work = infer.to_work();
        prop_assert_eq!(InferWork::from_work(&work), Ok(infer));
        let mut item = Item::from_bytes(&work.bytes.0).unwrap();
        disturb(&mut item, &mut draw);
        work.bytes.0 = item.to_bytes();
        if let Ok(read) = InferWork::from_work(&work) {
            prop_assert_eq!(read.to_work(), work);
        }
    }

    #[test]
    fn fine_tuning_work_comes_back_and_never_panics(seed in any::<u64>()) {
        let mut draw = Draw(seed);
        let finetune = draw.finetune_work();
        let mut work = finetune.to_work();
        let task = Task::from_work(&work);
        // What it may cost is counted without loss.
        prop_assert_eq!(task.as_ref().map(Task::tokens_max), Ok(finetune.tokens_max() as u32));
        prop_assert!(finetune.tokens_max() <= u64::from(u32::MAX));
        prop_assert_eq!(task, Ok(Task::Finetune(Box::new(finetune))));
        let mut item = Item::from_bytes(&work.bytes.0).unwrap();
        disturb(&mut item, &mut draw);
        work.bytes.0 = item.to_bytes();
        if let Ok(read) = FinetuneWork::from_work(&work) {
            prop_assert_eq!(read.to_work(), work);
        }
    }
}

/// Goal: no bit of an envelope is without meaning. Method: all of them, for six messages that
/// between them have every sort of field and one to three signatures.
#[test]
fn every_single_bit_matters() {
    use Kind::{Approval, Charter, GateReport, Lease, Receipt, Refusal};
    let kinds = [Charter, Lease, Refusal, Receipt, Approval, GateReport];
    for wanted in kinds {
        let all = samples::all();
        let sample = all.iter().rfind(|s| s.kind().0 == wanted && s.name != "second version");
        let sample = sample.unwrap();
        let message = sample.signed();
        let bytes = message.envelope().as_bytes();
        assert_eq!(read_any(bytes, &sample.federation).as_ref(), Ok(&message));
        for bit in 0..bytes.len() * 8 {
            let changed = flipped(bytes, bit);
            assert!(read_any(&changed, &sample.federation).is_err(), "{wanted}: bit {bit}");
        }
    }
}
