//! The signed envelope (specs/envelope.md): DSSE pre-authentication bytes around a strict
//! DAG-CBOR body, signed with Ed25519.
//!
//! [`Signed`] has been decoded but not believed; [`Verified`] can only be made by checking (or
//! making) the signature. Bytes are kept as received and never encoded again.

use std::fmt;
use std::ops::Deref;
use std::sync::Arc;

use ed25519_dalek::{Signature, Signer, SigningKey, VerifyingKey};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::encoding::{self, BODY_BYTES_MAX, DecodeError};
use crate::ids::{FederationId, MessageId, PublicKey, fixed_bytes};
use crate::message::{Invalid, Message};

/// The most signatures one envelope may carry: every institution of a federation on its charter.
pub const SIGNATURES_MAX: usize = 64;

/// The largest encoded envelope, in bytes: body, type and signatures with their framing.
pub const ENVELOPE_BYTES_MAX: usize = BODY_BYTES_MAX + SIGNATURES_MAX * 120 + 256;

/// The longest payload type, in bytes.
const TYPE_BYTES_MAX: usize = 96;

/// Why an envelope is not accepted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EnvelopeError {
    /// The bytes are not an envelope, or the body is not what its type says.
    #[error(transparent)]
    Decode(#[from] DecodeError),
    /// The envelope holds another kind or version of message.
    #[error("payload type is {found:?}, expected {expected:?}")]
    WrongType {
        /// As received.
        found: String,
        /// As asked for.
        expected: String,
    },
    /// No signature, too many, two by one key, or not by the signer that the body names.
    #[error("signatures do not fit the message: {0}")]
    Signers(&'static str),
    /// A signing key of small order, which would verify for many messages.
    #[error("weak or malformed signing key")]
    WeakKey,
    /// A signature that strict verification refuses.
    #[error("signature does not verify")]
    BadSignature,
    /// The message belongs to another federation.
    #[error("message of another federation")]
    WrongFederation,
    /// The body decodes but breaks a rule of its own page in `specs/`.
    #[error(transparent)]
    Invalid(#[from] Invalid),
}

/// One signature with the key that made it.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KeySignature {
    /// Who signed.
    pub key: PublicKey,
    /// The Ed25519 signature over the pre-authentication bytes.
    #[serde(with = "fixed_bytes")]
    pub sig: [u8; 64],
}

impl fmt::Debug for KeySignature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "KeySignature({:?})", self.key)
    }
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Wire {
    #[serde(with = "serde_bytes")]
    body: Vec<u8>,
    #[serde(deserialize_with = "crate::encoding::list")]
    sigs: Vec<KeySignature>,
    #[serde(rename = "type")]
    payload_type: String,
}

/// A decoded envelope whose content nobody has looked at yet. Cheap to clone.
#[derive(Clone, PartialEq, Eq)]
pub struct Envelope(Arc<Inner>);

#[derive(PartialEq, Eq)]
struct Inner {
    bytes: Vec<u8>,
    payload_type: String,
    body: Vec<u8>,
    sigs: Vec<KeySignature>,
}

impl Envelope {
    /// Decodes strict envelope bytes; nothing is verified.
    ///
    /// # Errors
    /// [`EnvelopeError::Decode`] or [`EnvelopeError::Signers`] for anything but one canonical
    /// envelope within its bounds.
    pub fn from_bytes(bytes: &[u8]) -> Result<Envelope, EnvelopeError> {
        let wire: Wire = encoding::decode(bytes, ENVELOPE_BYTES_MAX)?;
        if wire.body.len() > BODY_BYTES_MAX {
            return Err(
                DecodeError::TooLong { found: wire.body.len(), limit: BODY_BYTES_MAX }.into()
            );
        }
        if wire.payload_type.len() > TYPE_BYTES_MAX {
            return Err(DecodeError::TooLong {
                found: wire.payload_type.len(),
                limit: TYPE_BYTES_MAX,
            }
            .into());
        }
        if wire.sigs.is_empty() || wire.sigs.len() > SIGNATURES_MAX {
            return Err(EnvelopeError::Signers("between 1 and 64 signatures are allowed"));
        }
        if wire.sigs.windows(2).any(|pair| pair[0].key >= pair[1].key) {
            return Err(EnvelopeError::Signers("signatures must be sorted by key, one per key"));
        }
        Ok(Envelope(Arc::new(Inner {
            bytes: bytes.to_vec(),
            payload_type: wire.payload_type,
            body: wire.body,
            sigs: wire.sigs,
        })))
    }

    /// The bytes as received or first made.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0.bytes
    }

    /// The payload type, e.g. `application/vnd.allmend.lease.v1+dag-cbor`.
    pub fn payload_type(&self) -> &str {
        &self.0.payload_type
    }

    /// The body's bytes.
    pub fn body(&self) -> &[u8] {
        &self.0.body
    }

    /// Every signature, sorted by key.
    pub fn signatures(&self) -> &[KeySignature] {
        &self.0.sigs
    }

    /// SHA-256 of the pre-authentication bytes: independent of who signed.
    pub fn id(&self) -> MessageId {
        message_id(&self.0.payload_type, &self.0.body)
    }

    /// Reads the body as a `T` without verifying anything.
    ///
    /// # Errors
    /// [`EnvelopeError::WrongType`], [`EnvelopeError::Decode`] or [`EnvelopeError::Invalid`].
    pub fn open<T: Message>(&self) -> Result<Signed<T>, EnvelopeError> {
        let expected = payload_type::<T>();
        if self.0.payload_type != expected {
            return Err(EnvelopeError::WrongType { found: self.0.payload_type.clone(), expected });
        }
        let body: T = encoding::decode(&self.0.body, BODY_BYTES_MAX)?;
        body.check()?;
        Ok(Signed { envelope: self.clone(), body: Arc::new(body) })
    }

    fn build(payload_type: String, body: Vec<u8>, mut sigs: Vec<KeySignature>) -> Envelope {
        sigs.sort_by_key(|signature| signature.key);
        let wire = Wire { body, sigs, payload_type };
        let bytes = encoding::encode(&wire);
        Envelope(Arc::new(Inner {
            bytes,
            payload_type: wire.payload_type,
            body: wire.body,
            sigs: wire.sigs,
        }))
    }
}

impl fmt::Debug for Envelope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Envelope({}, {:?})", self.0.payload_type, self.id())
    }
}

/// A message whose signature has not been checked.
#[derive(Clone, Debug)]
pub struct Signed<T> {
    envelope: Envelope,
    body: Arc<T>,
}

impl<T: Message> Signed<T> {
    /// Decodes envelope bytes that must hold a `T`.
    ///
    /// # Errors
    /// As [`Envelope::from_bytes`] and [`Envelope::open`].
    pub fn from_bytes(bytes: &[u8]) -> Result<Signed<T>, EnvelopeError> {
        Envelope::from_bytes(bytes)?.open()
    }

    /// The content, not to be believed.
    pub fn unverified(&self) -> &T {
        &self.body
    }

    /// Believes the message if it is of `federation` and every signature on it is strict and good,
    /// one of them by the signer that the body names.
    ///
    /// Whether that signer may say such a thing is the roster's and the machines' question.
    ///
    /// # Errors
    /// [`EnvelopeError::WrongFederation`], [`EnvelopeError::Signers`], [`EnvelopeError::WeakKey`],
    /// [`EnvelopeError::BadSignature`].
    pub fn verify(self, federation: &FederationId) -> Result<Verified<T>, EnvelopeError> {
        let named = self.body.federation().unwrap_or_else(|| self.envelope.id().into());
        if named != *federation {
            return Err(EnvelopeError::WrongFederation);
        }
        let signer = self.body.signer();
        let sigs = self.envelope.signatures();
        if !T::COSIGNED && sigs.len() != 1 {
            return Err(EnvelopeError::Signers("exactly one signature is allowed here"));
        }
        if !sigs.iter().any(|signature| signature.key == signer) {
            return Err(EnvelopeError::Signers("the signer named in the body did not sign"));
        }
        let signed = pre_authentication(self.envelope.payload_type(), self.envelope.body());
        for signature in sigs {
            verify_strict(&signature.key, &signed, &signature.sig)?;
        }
        Ok(Verified { id: self.envelope.id(), envelope: self.envelope, body: self.body })
    }
}

/// A message whose signatures have been checked, or that this process signed itself.
pub struct Verified<T> {
    envelope: Envelope,
    body: Arc<T>,
    id: MessageId,
}

impl<T: Message> Verified<T> {
    /// Signs `body` with `key`. Ed25519 is deterministic: the same body gives the same bytes.
    ///
    /// # Errors
    /// [`EnvelopeError::Invalid`] when the body breaks its own rules,
    /// [`EnvelopeError::Signers`] when it names another signer, [`DecodeError::TooLong`] when it is
    /// too large.
    pub fn sign(key: &SigningKey, body: T) -> Result<Verified<T>, EnvelopeError> {
        body.check()?;
        if body.signer().as_bytes() != key.verifying_key().as_bytes() {
            return Err(EnvelopeError::Signers("the key is not that of the signer in the body"));
        }
        let bytes = encoding::encode(&body);
        if bytes.len() > BODY_BYTES_MAX {
            return Err(DecodeError::TooLong { found: bytes.len(), limit: BODY_BYTES_MAX }.into());
        }
        let payload_type = payload_type::<T>();
        let signature = sign_bytes(key, &payload_type, &bytes);
        let id = message_id(&payload_type, &bytes);
        let envelope = Envelope::build(payload_type, bytes, vec![signature]);
        Ok(Verified { envelope, body: Arc::new(body), id })
    }

    /// Adds the signature of another key to a message that several sign (a charter).
    ///
    /// # Errors
    /// [`EnvelopeError::Signers`] when this kind takes one signature only, or the key has signed.
    pub fn cosign(self, key: &SigningKey) -> Result<Verified<T>, EnvelopeError> {
        let public = PublicKey::from_bytes(key.verifying_key().to_bytes());
        let sigs = self.envelope.signatures();
        if !T::COSIGNED || sigs.len() >= SIGNATURES_MAX {
            return Err(EnvelopeError::Signers("no further signature is allowed here"));
        }
        if sigs.iter().any(|signature| signature.key == public) {
            return Err(EnvelopeError::Signers("this key has signed already"));
        }
        let mut sigs = sigs.to_vec();
        sigs.push(sign_bytes(key, self.envelope.payload_type(), self.envelope.body()));
        let envelope = Envelope::build(
            self.envelope.payload_type().to_owned(),
            self.envelope.body().to_vec(),
            sigs,
        );
        Ok(Verified { envelope, body: self.body, id: self.id })
    }
}

impl<T> Verified<T> {
    /// The message's id.
    pub fn id(&self) -> MessageId {
        self.id
    }

    /// The envelope with its bytes.
    pub fn envelope(&self) -> &Envelope {
        &self.envelope
    }

    /// The content.
    pub fn body(&self) -> &T {
        &self.body
    }
}

impl<T> Deref for Verified<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.body
    }
}

impl<T> Clone for Verified<T> {
    fn clone(&self) -> Self {
        Verified { envelope: self.envelope.clone(), body: Arc::clone(&self.body), id: self.id }
    }
}

impl<T: PartialEq> PartialEq for Verified<T> {
    fn eq(&self, other: &Self) -> bool {
        self.envelope == other.envelope
    }
}

impl<T: PartialEq> Eq for Verified<T> {}

impl<T: fmt::Debug> fmt::Debug for Verified<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Verified").field("id", &self.id).field("body", &self.body).finish()
    }
}

/// A payload type as text that remembers its message type.
pub fn payload_type<T: Message>() -> String {
    crate::message::payload_type(T::KIND, T::VERSION)
}

/// The id that `body` has or would have once signed: SHA-256 of its pre-authentication bytes.
pub fn id_of<T: Message>(body: &T) -> MessageId {
    message_id(&payload_type::<T>(), &encoding::encode(body))
}

/// DSSE v1 pre-authentication bytes: `"DSSEv1" SP len(type) SP type SP len(body) SP body`.
pub fn pre_authentication(payload_type: &str, body: &[u8]) -> Vec<u8> {
    let head = format!("DSSEv1 {} {} {} ", payload_type.len(), payload_type, body.len());
    let mut bytes = Vec::with_capacity(head.len() + body.len());
    bytes.extend_from_slice(head.as_bytes());
    bytes.extend_from_slice(body);
    bytes
}

/// Whether `key` is a curve point of large order, as every key we admit must be.
pub fn is_strong_key(key: &PublicKey) -> bool {
    VerifyingKey::from_bytes(key.as_bytes()).is_ok_and(|key| !key.is_weak())
}

/// Strict Ed25519: canonical encodings only, no small-order points, no cofactor.
///
/// # Errors
/// [`EnvelopeError::WeakKey`] or [`EnvelopeError::BadSignature`].
pub fn verify_strict(
    key: &PublicKey,
    message: &[u8],
    signature: &[u8; 64],
) -> Result<(), EnvelopeError> {
    let key = VerifyingKey::from_bytes(key.as_bytes()).map_err(|_| EnvelopeError::WeakKey)?;
    if key.is_weak() {
        return Err(EnvelopeError::WeakKey);
    }
    key.verify_strict(message, &Signature::from_bytes(signature))
        .map_err(|_| EnvelopeError::BadSignature)
}

fn sign_bytes(key: &SigningKey, payload_type: &str, body: &[u8]) -> KeySignature {
    KeySignature {
        key: PublicKey::from_bytes(key.verifying_key().to_bytes()),
        sig: key.sign(&pre_authentication(payload_type, body)).to_bytes(),
    }
}

fn message_id(payload_type: &str, body: &[u8]) -> MessageId {
    MessageId::from_bytes(Sha256::digest(pre_authentication(payload_type, body)).into())
}
