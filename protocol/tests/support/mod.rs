//! What the integration tests share: keys from fixed seeds, one coherent little federation whose
//! messages refer to one another, and envelopes signed without asking the crate under test.
#![allow(dead_code, reason = "each test binary uses its own part")]

pub(crate) mod broken;
pub(crate) mod cbor;
pub(crate) mod draw;
pub(crate) mod samples;

use std::sync::LazyLock;

use allmend_protocol::encoding;
use allmend_protocol::envelope::{Envelope, EnvelopeError, Signed};
use allmend_protocol::ids::{FederationId, MessageId};
use allmend_protocol::message::{AnyMessage, Body, Kind, Message};
use ed25519_dalek::{Signer, SigningKey};

use cbor::Item;

/// The key whose seed is `seed` repeated 32 times.
pub(crate) fn key(seed: u8) -> SigningKey {
    SigningKey::from_bytes(&[seed; 32])
}

/// Its public half, as whichever kind of id is wanted.
pub(crate) fn public(seed: u8) -> [u8; 32] {
    static KEYS: LazyLock<Vec<[u8; 32]>> =
        LazyLock::new(|| (0..64).map(|seed| key(seed).verifying_key().to_bytes()).collect());
    KEYS[usize::from(seed)]
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    data_encoding::HEXLOWER.encode(bytes)
}

pub(crate) fn unhex(text: &str) -> Vec<u8> {
    data_encoding::HEXLOWER.decode(text.as_bytes()).unwrap()
}

/// DSSE v1 pre-authentication bytes, from the specification.
pub(crate) fn pre_authentication(payload_type: &str, body: &[u8]) -> Vec<u8> {
    [format!("DSSEv1 {} {payload_type} {} ", payload_type.len(), body.len()).as_bytes(), body]
        .concat()
}

/// One entry of an envelope's `sigs`.
pub(crate) fn signature(seed: u8, payload_type: &str, body: &[u8]) -> ([u8; 32], [u8; 64]) {
    (public(seed), key(seed).sign(&pre_authentication(payload_type, body)).to_bytes())
}

/// An envelope as an item, its parts taken as they are.
pub(crate) fn envelope_item(
    payload_type: &str,
    body: &[u8],
    signatures: &[([u8; 32], [u8; 64])],
) -> Item {
    let sigs = signatures.iter().map(|(key, sig)| {
        Item::Map(vec![
            ("key".to_owned(), Item::Bytes(key.to_vec())),
            ("sig".to_owned(), Item::Bytes(sig.to_vec())),
        ])
    });
    Item::Map(vec![
        ("body".to_owned(), Item::Bytes(body.to_vec())),
        ("sigs".to_owned(), Item::List(sigs.collect())),
        ("type".to_owned(), Item::Text(payload_type.to_owned())),
    ])
}

/// An envelope over whatever `body` is, well signed by `seed`.
pub(crate) fn sealed(payload_type: &str, body: &[u8], seed: u8) -> Vec<u8> {
    envelope_item(payload_type, body, &[signature(seed, payload_type, body)]).to_bytes()
}

/// Something to do with every kind and version of message.
macro_rules! for_body {
    ($body:expr, $b:ident => $then:expr) => {{
        use allmend_protocol::message::Body::*;
        match $body {
            Charter($b) => $then,
            InstitutionCert($b) => $then,
            NodeCert($b) => $then,
            ResearcherCert($b) => $then,
            Invitation($b) => $then,
            JoinRequest($b) => $then,
            CapacityAdvert($b) => $then,
            JobSpec($b) => $then,
            Delegation($b) => $then,
            Probe($b) => $then,
            Offer($b) => $then,
            RefusalV1($b) => $then,
            Refusal($b) => $then,
            Pending($b) => $then,
            Grant($b) => $then,
            Assign($b) => $then,
            Lease($b) => $then,
            LeaseRenewal($b) => $then,
            Cancel($b) => $then,
            Receipt($b) => $then,
            Settlement($b) => $then,
            LogSuccession($b) => $then,
            Approval($b) => $then,
            Contract($b) => $then,
            GateReport($b) => $then,
            Recall($b) => $then,
            RecallAnswer($b) => $then,
            Deletion($b) => $then,
        }
    }};
}

/// The body's bytes and payload type, its rules not asked.
pub(crate) fn encoded(body: &Body) -> (String, Vec<u8>) {
    let (kind, version) = body.kind();
    let payload_type = allmend_protocol::message::payload_type(kind, version);
    (payload_type, for_body!(body, b => encoding::encode(b)))
}

/// Decodes and verifies `bytes` as the message that `like` is, and nothing else.
pub(crate) fn read_as(
    like: &Body,
    bytes: &[u8],
    federation: &FederationId,
) -> Result<AnyMessage, EnvelopeError> {
    fn read<T: Message>(
        _: &T,
        bytes: &[u8],
        federation: &FederationId,
    ) -> Result<AnyMessage, EnvelopeError>
    where
        AnyMessage: From<allmend_protocol::envelope::Verified<T>>,
    {
        Signed::<T>::from_bytes(bytes)?.verify(federation).map(AnyMessage::from)
    }
    for_body!(like, b => read(b, bytes, federation))
}

/// Decodes and verifies as a daemon does: the envelope first, then whatever it says it is.
pub(crate) fn read_any(
    bytes: &[u8],
    federation: &FederationId,
) -> Result<AnyMessage, EnvelopeError> {
    AnyMessage::verify(&Envelope::from_bytes(bytes)?, federation)
}

/// A good message of the sample federation.
pub(crate) struct Sample {
    /// What is special about it.
    pub(crate) name: &'static str,
    /// What it says.
    pub(crate) body: Body,
    /// Whose key signs, and whose add theirs.
    pub(crate) seeds: Vec<u8>,
    /// In which federation it is to be verified.
    pub(crate) federation: FederationId,
}

impl Sample {
    pub(crate) fn kind(&self) -> (Kind, u16) {
        self.body.kind()
    }

    pub(crate) fn id(&self) -> MessageId {
        self.body.id()
    }

    /// The envelope as the crate under test makes it.
    pub(crate) fn signed(&self) -> AnyMessage {
        let message = self.body.clone().sign(&key(self.seeds[0])).unwrap();
        match message {
            AnyMessage::Charter(mut charter) => {
                for seed in &self.seeds[1..] {
                    charter = charter.cosign(&key(*seed)).unwrap();
                }
                charter.into()
            }
            other => other,
        }
    }
}
