//! Makes the vectors of every kind: the samples, and each way to get one wrong.

use allmend_protocol::envelope::EnvelopeError;
use allmend_protocol::message::{AnyMessage, Kind, payload_type};

use crate::file::{Bad, Good, Place, Vectors};
use crate::splice::{Splice, difference};
use crate::support::broken::{self, WEAK_KEY};
use crate::support::cbor::{Entries, Item};
use crate::support::samples::{self, NORD, STRANGER};
use crate::support::{Sample, encoded, envelope_item, hex, sealed, signature};

/// The order of Ed25519's base point, little-endian: S + L is S in a second encoding.
const GROUP_ORDER: [u8; 32] = [
    0xed, 0xd3, 0xf5, 0x5c, 0x1a, 0x63, 0x12, 0x58, 0xd6, 0x9c, 0xf7, 0xa2, 0xde, 0xf9, 0xde, 0x14,
    0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x10,
];

/// One file per kind, and one for the envelope itself.
pub(crate) fn files() -> Vec<Vectors> {
    let samples = samples::all();
    let broken = broken::all();
    let mut files: Vec<Vectors> = Vec::new();
    for (kind, version) in AnyMessage::known() {
        if files.last().is_none_or(|file| file.kind != kind.name()) {
            let kind = kind.name().to_owned();
            files.push(Vectors { kind, good: Vec::new(), bad: Vec::new() });
        }
        let Some(file) = files.last_mut() else { unreachable!() };
        let own: Vec<&Sample> =
            samples.iter().filter(|sample| sample.kind() == (kind, version)).collect();
        let maker = Maker::new(&own, file.good.len());
        file.good.extend(own.iter().map(|sample| good(sample)));
        file.bad.extend(maker.signatures());
        file.bad.extend(maker.encodings());
        file.bad.extend(maker.rules(&broken));
    }
    files.push(envelope_file(&samples));
    files
}

fn good(sample: &Sample) -> Good {
    let message = sample.signed();
    Good {
        name: sample.name.to_owned(),
        payload_type: message.envelope().payload_type().to_owned(),
        seeds: sample.seeds.clone(),
        federation: sample.federation.to_string(),
        id: message.id().to_string(),
        fields: message.serialize_body(serde_json::value::Serializer).unwrap(),
        body: Place::of(message.envelope().as_bytes(), message.envelope().body()),
        envelope: hex(message.envelope().as_bytes()),
    }
}

struct Maker<'a> {
    sample: &'a Sample,
    /// Envelopes to differ from, and the index of the first.
    bases: Vec<Vec<u8>>,
    of: usize,
    payload_type: String,
    body: Vec<u8>,
    seed: u8,
}

impl<'a> Maker<'a> {
    /// For the first of some samples of one version.
    fn new(samples: &[&'a Sample], of: usize) -> Maker<'a> {
        let sample = samples[0];
        let bases = samples.iter().map(|s| s.signed().envelope().as_bytes().to_vec()).collect();
        let (payload_type, body) = encoded(&sample.body);
        Maker { sample, bases, of, payload_type, body, seed: sample.seeds[0] }
    }

    fn kind(&self) -> Kind {
        self.sample.kind().0
    }

    fn bad(&self, name: &str, class: &str, bytes: &[u8]) -> Bad {
        let length = |splices: &Vec<Splice>| -> usize {
            splices.iter().map(|Splice(_, _, put, _)| put.len() + 20).sum()
        };
        let differences = self.bases.iter().map(|base| difference(base, bytes));
        let nearest = differences.enumerate().min_by_key(|(_, splices)| length(splices));
        let Some((index, splice)) = nearest else { unreachable!() };
        Bad {
            name: name.to_owned(),
            class: class.to_owned(),
            field: None,
            federation: None,
            of: self.of + index,
            splice,
        }
    }

    fn item(&self) -> Item {
        Item::from_bytes(&self.body).unwrap()
    }

    /// With another body that its signer did sign.
    fn body(&self, name: &str, class: &str, body: &[u8]) -> Bad {
        self.bad(name, class, &sealed(&self.payload_type, body, self.seed))
    }

    /// What is wrong about who signed.
    fn signatures(&self) -> Vec<Bad> {
        let (t, body) = (self.payload_type.as_str(), self.body.as_slice());
        let own = signature(self.seed, t, body);
        let with = |sigs: &[_]| envelope_item(t, body, sigs).to_bytes();
        let mut flipped = own;
        flipped.1[0] ^= 1;
        let mut second_s = own;
        let mut carry = 0;
        for (byte, order) in second_s.1[32..].iter_mut().zip(GROUP_ORDER) {
            let sum = u16::from(*byte) + u16::from(order) + carry;
            *byte = sum.to_le_bytes()[0];
            carry = sum >> 8;
        }
        let other_type = payload_type(self.kind(), 9);
        let stranger = signature(STRANGER, t, body);
        let mut both = [own, stranger];
        both.sort_unstable();
        let mut unsorted = both;
        unsorted.reverse();

        let mut list = vec![
            self.bad("one bit of the signature", "bad-signature", &with(&[flipped])),
            self.bad("S not reduced", "bad-signature", &with(&[second_s])),
            self.bad(
                "signature made by a stranger under the signer's key",
                "bad-signature",
                &with(&[(own.0, stranger.1)]),
            ),
            self.bad(
                "signature made for another version",
                "bad-signature",
                &with(&[(own.0, signature(self.seed, &other_type, body).1)]),
            ),
            self.bad("signed by a stranger only", "signers", &with(&[stranger])),
            self.bad("no signature", "signers", &with(&[])),
            self.bad("the same signature twice", "signers", &with(&[own, own])),
            self.bad("signatures not sorted by key", "signers", &with(&unsorted)),
            self.weak_key(),
            self.bad("version 9", "wrong-type", &sealed(&other_type, body, self.seed)),
            self.bad(
                "another kind",
                "wrong-type",
                &sealed(
                    &payload_type(
                        if self.kind() == Kind::Lease { Kind::Offer } else { Kind::Lease },
                        1,
                    ),
                    body,
                    self.seed,
                ),
            ),
        ];
        let mut elsewhere = self.bad("another federation", "wrong-federation", &self.bases[0]);
        elsewhere.federation = Some(hex(&[0xfe; 32]));
        list.push(elsewhere);
        if self.kind() == Kind::Charter {
            let mut one_wrong = [own, signature(NORD, &other_type, body)];
            one_wrong.sort_unstable();
            list.push(self.bad("one of two signatures", "bad-signature", &with(&one_wrong)));
        } else {
            list.push(self.bad("a stranger signs as well", "signers", &with(&both)));
        }
        list
    }

    /// A signer of small order, with the signature that fits every message for lax verifiers.
    fn weak_key(&self) -> Bad {
        let mut item = self.item();
        *item
            .find_mut(&|item| *item == Item::Bytes(signature(self.seed, "", &[]).0.to_vec()))
            .unwrap() = Item::Bytes(WEAK_KEY.to_vec());
        let mut lax = [0; 64];
        lax[..32].copy_from_slice(&WEAK_KEY);
        let bytes =
            envelope_item(&self.payload_type, &item.to_bytes(), &[(WEAK_KEY, lax)]).to_bytes();
        // Two kinds must look at the key before anybody verifies with it.
        let (class, field) = match self.kind() {
            Kind::Charter => ("invalid", Some("signer")),
            Kind::JoinRequest => ("invalid", Some("signer")),
            _ => ("weak-key", None),
        };
        Bad { field: field.map(str::to_owned), ..self.bad("a weak key", class, &bytes) }
    }

    /// What is wrong about how the body is written; the signature is always good.
    fn encodings(&self) -> Vec<Bad> {
        let bytes = |change: &dyn Fn(&mut Entries)| {
            let Item::Map(mut entries) = self.item() else { unreachable!() };
            change(&mut entries);
            Item::Map(entries).to_bytes()
        };
        let replaced = |wanted: &dyn Fn(&Item) -> bool, by: &dyn Fn(&Item) -> Item| {
            let mut item = self.item();
            let found = item.find_mut(wanted)?;
            *found = by(found);
            Some(item.to_bytes())
        };
        let is_id = |item: &Item| matches!(item, Item::Bytes(bytes) if bytes.len() == 32);
        let is_short = |item: &Item| matches!(item, Item::Unsigned(n) if *n < 1 << 32);

        let mut unknown = self.item();
        unknown.insert("zz", Item::Unsigned(0));
        let over_long_head = [&[0xb8, self.body[0] & 31], &self.body[1..]].concat();
        let indefinite = [&[0xbf], &self.body[1..], &[0xff]].concat();
        let mut wrong = vec![
            ("unknown field", Some(unknown.to_bytes())),
            ("missing field", Some(bytes(&|entries| drop(entries.remove(0))))),
            ("keys not sorted", Some(bytes(&|entries| entries.swap(0, 1)))),
            ("duplicate key", Some(bytes(&|entries| entries.insert(0, entries[0].clone())))),
            ("over-long head of the map", Some(over_long_head)),
            ("map of indefinite length", Some(indefinite)),
            ("trailing byte in the body", Some([&self.body, [0].as_slice()].concat())),
            ("body cut short", Some(self.body[..self.body.len() - 1].to_vec())),
            ("list instead of a map", Some(self.as_list())),
            ("over-long integer", replaced(&is_short, &over_long)),
            (
                "float instead of an integer",
                replaced(&is_short, &|_| Item::Raw([&[0xfb][..], &1f64.to_be_bytes()].concat())),
            ),
            ("negative integer", replaced(&is_short, &|_| Item::Negative(0))),
            ("id of 31 bytes", replaced(&is_id, &|_| Item::Bytes(vec![7; 31]))),
            ("id as text", replaced(&is_id, &|_| Item::Text("x".repeat(32)))),
            (
                "tagged id",
                replaced(&is_id, &|id| Item::Raw([&[0xd8, 42][..], &id.to_bytes()].concat())),
            ),
        ];
        if let Some(optional) = self.absent_field() {
            let mut item = self.item();
            item.insert(optional, Item::Null);
            wrong.push(("null for an absent field", Some(item.to_bytes())));
        }
        let list = self.absent_field().filter(|field| ["adapters", "credentials"].contains(field));
        if let Some(list) = list {
            let mut item = self.item();
            item.insert(list, Item::List(Vec::new()));
            wrong.push(("empty list for an absent field", Some(item.to_bytes())));
        }
        let mut list: Vec<Bad> = wrong
            .iter()
            .filter_map(|(name, body)| Some(self.body(name, "malformed", body.as_ref()?)))
            .collect();
        list.push(self.body("body of more than 32 KiB", "too-long", &[0; 32 * 1024 + 1]));
        let trailing = [&self.bases[0], [0].as_slice()].concat();
        list.push(self.bad("trailing byte", "malformed", &trailing));
        list
    }

    /// What serde would take for a struct if nobody looked.
    fn as_list(&self) -> Vec<u8> {
        let values = self.item().entries().iter().map(|(_, value)| value.clone()).collect();
        Item::List(values).to_bytes()
    }

    /// A field that this kind may have and the sample has not.
    fn absent_field(&self) -> Option<&'static str> {
        match (self.kind(), self.sample.kind().1) {
            (Kind::Charter, _) => Some("sequencer"),
            (Kind::JoinRequest, _) => Some("jurisdiction"),
            (Kind::JobSpec, _) => Some("dataset"),
            (Kind::Delegation, _) => Some("project"),
            (Kind::Refusal, 2) => Some("retry_after_ms"),
            (Kind::Grant, _) => Some("governance"),
            (Kind::Cancel, _) => Some("attempt"),
            (Kind::Receipt, _) => Some("contract"),
            (Kind::CapacityAdvert, _) => Some("adapters"),
            (Kind::ResearcherCert | Kind::Invitation, _) => Some("credentials"),
            (Kind::Approval, _) => Some("ethics"),
            (Kind::Contract, _) => Some("privacy"),
            (Kind::GateReport, _) => Some("released"),
            _ => None,
        }
    }

    /// Each rule of the kind's own page broken.
    fn rules(&self, broken: &[broken::Broken]) -> Vec<Bad> {
        let own = |broken: &&broken::Broken| broken.body.kind() == self.sample.kind();
        let make = |broken: &broken::Broken| Bad {
            field: Some(broken.field.to_owned()),
            ..self.body(broken.name, "invalid", &encoded(&broken.body).1)
        };
        broken.iter().filter(own).map(make).collect()
    }
}

/// An integer in the next longer form.
fn over_long(item: &Item) -> Item {
    let Item::Unsigned(n) = item else { unreachable!() };
    let wide = n.to_be_bytes();
    Item::Raw(match n {
        0..=23 => [&[0x18][..], &wide[7..]].concat(),
        24..=0xff => [&[0x19][..], &wide[6..]].concat(),
        0x100..=0xffff => [&[0x1a][..], &wide[4..]].concat(),
        _ => [&[0x1b][..], &wide].concat(),
    })
}

/// What can be wrong about an envelope whatever is in it.
fn envelope_file(samples: &[Sample]) -> Vectors {
    let Some(sample) = samples.iter().find(|sample| sample.kind().0 == Kind::LeaseRenewal) else {
        unreachable!()
    };
    let maker = Maker::new(&[sample], 0);
    let (t, body) = (maker.payload_type.as_str(), maker.body.as_slice());
    let own = signature(maker.seed, t, body);
    let parts = || {
        let Item::Map(entries) = envelope_item(t, body, &[own]) else { unreachable!() };
        entries
    };
    let changed = |change: &dyn Fn(&mut Entries)| {
        let mut entries = parts();
        change(&mut entries);
        Item::Map(entries).to_bytes()
    };
    let with_sig = |change: &dyn Fn(&mut Entries)| {
        let mut sig = vec![
            ("key".to_owned(), Item::Bytes(own.0.to_vec())),
            ("sig".to_owned(), Item::Bytes(own.1.to_vec())),
        ];
        change(&mut sig);
        changed(&|entries| entries[1].1 = Item::List(vec![Item::Map(sig.clone())]))
    };
    let whole = &maker.bases[0];
    // More signatures than a list may hold; none of them is looked at.
    let crowd: Vec<_> = (0..65).map(|n| ([n; 32], [0; 64])).collect();
    let long_type = format!("application/vnd.allmend.{}.v1+dag-cbor", "x".repeat(61));
    let malformed: Vec<(&str, Vec<u8>)> = vec![
        ("nothing", Vec::new()),
        ("cut short", whole[..whole.len() - 1].to_vec()),
        ("unknown field", changed(&|entries| entries.push(("zzzz".into(), Item::Unsigned(0))))),
        ("no type", changed(&|entries| drop(entries.pop()))),
        ("keys not sorted", changed(&|entries| entries.swap(0, 2))),
        ("duplicate key", changed(&|entries| entries.insert(1, entries[0].clone()))),
        ("over-long head of the map", [&[0xb8, 3], &whole[1..]].concat()),
        ("map of indefinite length", [&[0xbf], &whole[1..], &[0xff]].concat()),
        (
            "over-long length of the body",
            changed(&|entries| {
                let wide = (body.len() as u32).to_be_bytes();
                entries[0].1 = Item::Raw([&[0x5a][..], &wide, body].concat());
            }),
        ),
        (
            "body in two chunks",
            changed(&|entries| {
                let (a, b) = body.split_at(20);
                let chunk = |part: &[u8]| Item::Bytes(part.to_vec()).to_bytes();
                entries[0].1 = Item::Raw([&[0x5f][..], &chunk(a), &chunk(b), &[0xff]].concat());
            }),
        ),
        ("body as a map", changed(&|entries| entries[0].1 = maker.item())),
        (
            "body as a list of bytes",
            changed(&|entries| {
                entries[0].1 =
                    Item::List(body.iter().map(|b| Item::Unsigned((*b).into())).collect());
            }),
        ),
        (
            "type as bytes",
            changed(&|entries| {
                entries[2].1 = Item::Bytes(t.as_bytes().to_vec());
            }),
        ),
        ("signature of 63 bytes", with_sig(&|sig| sig[1].1 = Item::Bytes(own.1[..63].to_vec()))),
        ("signature of 65 bytes", with_sig(&|sig| sig[1].1 = Item::Bytes(vec![0; 65]))),
        ("key of 33 bytes", with_sig(&|sig| sig[0].1 = Item::Bytes(vec![0; 33]))),
        (
            "unknown field beside a signature",
            with_sig(&|sig| {
                sig.insert(0, ("alg".into(), Item::Text("ed25519".into())));
            }),
        ),
        (
            "signatures of claimed number",
            changed(&|entries| {
                entries[1].1 = Item::Raw(vec![0x9b, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff]);
            }),
        ),
        ("65 signatures", envelope_item(t, body, &crowd).to_bytes()),
        ("tag before the envelope", [&[0xd9, 0xd9, 0xf7], whole.as_slice()].concat()),
        ("two envelopes", [whole.as_slice(), whole].concat()),
    ];
    let mut bad: Vec<Bad> =
        malformed.iter().map(|(name, bytes)| maker.bad(name, "malformed", bytes)).collect();
    bad.push(maker.bad("type of 97 bytes", "too-long", &sealed(&long_type, body, maker.seed)));
    bad.push(maker.bad("more bytes than any envelope has", "too-long", &[0; 40_705]));
    bad.push(maker.bad(
        "type in capitals",
        "wrong-type",
        &sealed(&t.to_uppercase(), body, maker.seed),
    ));
    bad.push(maker.bad(
        "version with a leading zero",
        "wrong-type",
        &sealed(&t.replace(".v1+", ".v01+"), body, maker.seed),
    ));
    Vectors { kind: "envelope".to_owned(), good: vec![good(sample)], bad }
}

/// The class of a refusal, as the files name it.
pub(crate) fn class(error: &EnvelopeError) -> (&'static str, Option<&'static str>) {
    use allmend_protocol::encoding::DecodeError;
    match error {
        EnvelopeError::Decode(DecodeError::TooLong { .. }) => ("too-long", None),
        // Which of the two is a decoder's own affair.
        EnvelopeError::Decode(DecodeError::Malformed(_) | DecodeError::NotCanonical) => {
            ("malformed", None)
        }
        EnvelopeError::WrongType { .. } => ("wrong-type", None),
        EnvelopeError::Signers(_) => ("signers", None),
        EnvelopeError::WeakKey => ("weak-key", None),
        EnvelopeError::BadSignature => ("bad-signature", None),
        EnvelopeError::WrongFederation => ("wrong-federation", None),
        EnvelopeError::Invalid(invalid) => ("invalid", Some(invalid.field)),
    }
}
