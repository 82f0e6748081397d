//! Our verification against the 914 edge cases of the C2SP/CCTV Ed25519 vectors
//! (`specs/vectors/ed25519.json`, specs/envelope.md §5).

use allmend_protocol::envelope::{EnvelopeError, verify_strict};
use allmend_protocol::ids::PublicKey;
use ed25519_dalek::{Signature, VerifyingKey};
use serde::Deserialize;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Vector {
    number: u32,
    key: String,
    sig: String,
    msg: String,
    /// Null where nothing is odd.
    flags: Option<Vec<Flag>>,
}

impl Vector {
    fn flags(&self) -> &[Flag] {
        self.flags.as_deref().unwrap_or_default()
    }
}

/// What is odd about a vector. Each holds for some verifier in the world.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
enum Flag {
    #[serde(rename = "low_order_A")]
    LowOrderKey,
    #[serde(rename = "low_order_R")]
    LowOrderNonce,
    #[serde(rename = "low_order_component_A")]
    MixedOrderKey,
    #[serde(rename = "low_order_component_R")]
    MixedOrderNonce,
    #[serde(rename = "low_order_residue")]
    OnlyWithCofactor,
    #[serde(rename = "non_canonical_A")]
    SecondEncodingOfKey,
    #[serde(rename = "non_canonical_R")]
    SecondEncodingOfNonce,
    #[serde(rename = "reencoded_k")]
    HashOfOtherEncoding,
}

impl Flag {
    /// The rule: strict verification puts up with points of mixed order, for which the equation
    /// without cofactor still decides, and with nothing else.
    fn is_refused(self) -> bool {
        !matches!(self, Flag::MixedOrderKey | Flag::MixedOrderNonce)
    }
}

fn vectors() -> Vec<Vector> {
    serde_json::from_str(include_str!("../../specs/vectors/ed25519.json")).unwrap()
}

fn bytes<const N: usize>(hex: &str) -> [u8; N] {
    data_encoding::HEXLOWER.decode(hex.as_bytes()).unwrap().try_into().unwrap()
}

fn verdict(vector: &Vector) -> Result<(), EnvelopeError> {
    let key = PublicKey::from_bytes(bytes(&vector.key));
    verify_strict(&key, vector.msg.as_bytes(), &bytes(&vector.sig))
}

#[test]
fn strict_verification_agrees_with_every_vector() {
    let vectors = vectors();
    assert_eq!(vectors.len(), 914);
    for vector in &vectors {
        let refused = vector.flags().iter().any(|flag| flag.is_refused());
        assert_eq!(verdict(vector).is_err(), refused, "{}: {:?}", vector.number, vector.flags);
    }
    assert_eq!(vectors.iter().filter(|vector| verdict(vector).is_ok()).count(), 43);
}

/// Goal: who sent a weak key is told so, rather than that the signature is wrong.
#[test]
fn keys_of_small_order_are_weak() {
    for vector in vectors() {
        let weak = vector.flags().contains(&Flag::LowOrderKey);
        let found = verdict(&vector) == Err(EnvelopeError::WeakKey);
        assert_eq!(found, weak, "{}: {:?}", vector.number, vector.flags);
    }
}

/// Goal: the vectors tell strict from lax. Method: the lax verifier beneath us takes many of those
/// that we refuse, so a mistaken call of it would show above.
#[test]
fn lax_verification_would_take_more() {
    let lax = |vector: &&Vector| {
        VerifyingKey::from_bytes(&bytes(&vector.key)).is_ok_and(|key| {
            use ed25519_dalek::Verifier;
            key.verify(vector.msg.as_bytes(), &Signature::from_bytes(&bytes(&vector.sig))).is_ok()
        })
    };
    assert_eq!(vectors().iter().filter(lax).count(), 208);
}

/// Goal: no second S. Method: add the group order to the S of a good signature.
#[test]
fn a_second_encoding_of_s_is_refused() {
    let good = vectors().into_iter().find(|vector| vector.flags().is_empty()).unwrap();
    let mut sig: [u8; 64] = bytes(&good.sig);
    let order: [u8; 32] = bytes("edd3f55c1a631258d69cf7a2def9de1400000000000000000000000000000010");
    let mut carry = 0;
    for (byte, add) in sig[32..].iter_mut().zip(order) {
        let sum = u16::from(*byte) + u16::from(add) + carry;
        (*byte, carry) = (sum.to_le_bytes()[0], sum >> 8);
    }
    let key = PublicKey::from_bytes(bytes(&good.key));
    assert_eq!(verdict(&good), Ok(()));
    assert_eq!(verify_strict(&key, good.msg.as_bytes(), &sig), Err(EnvelopeError::BadSignature));
}
