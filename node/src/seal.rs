//! Sealing of inputs and results (specs/job.md §4): content under a random key, the key under HPKE
//! for each node that may open it, and everything at rest under keys derived from it.
//!
//! HPKE is RFC 9180 base mode with DHKEM(X25519, HKDF-SHA256), HKDF-SHA256, ChaCha20-Poly1305.

use allmend_protocol::ids::{MessageId, NodeId, SealingKey};
use allmend_protocol::job::KeyWrap;
use chacha20poly1305::aead::{Aead, KeyInit};
use chacha20poly1305::{ChaCha20Poly1305, Key, Nonce};
use hpke::aead::ChaCha20Poly1305 as HpkeAead;
use hpke::kdf::HkdfSha256;
use hpke::kem::X25519HkdfSha256;
use hpke::{Deserializable, Kem, OpModeR, OpModeS, Serializable};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use zeroize::Zeroizing;

use crate::config::SealingSecret;

type PrivateKey = <X25519HkdfSha256 as Kem>::PrivateKey;
type PublicKey = <X25519HkdfSha256 as Kem>::PublicKey;
type EncappedKey = <X25519HkdfSha256 as Kem>::EncappedKey;

const WRAP_INFO: &[u8] = b"allmend-input-key-v1";
const RESULT_INFO: &[u8] = b"allmend-result-v1";

/// Why sealed bytes cannot be made or opened. Says nothing of what is inside.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SealError {
    /// The recipient's key is not an X25519 key.
    #[error("the recipient's sealing key is malformed")]
    BadKey,
    /// The bytes were not sealed to this key, or have been changed.
    #[error("sealed bytes do not open with this key")]
    DoesNotOpen,
    /// No randomness from the operating system.
    #[error("the operating system gave no randomness")]
    NoRandomness,
}

/// A random key for one job's input; wiped when dropped.
#[derive(Clone)]
pub struct ContentKey(Zeroizing<[u8; 32]>);

impl std::fmt::Debug for ContentKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ContentKey(..)")
    }
}

impl ContentKey {
    /// A fresh key.
    ///
    /// # Errors
    /// [`SealError::NoRandomness`].
    pub fn random() -> Result<ContentKey, SealError> {
        random_bytes().map(|bytes| ContentKey(Zeroizing::new(bytes)))
    }

    /// Encrypts an input. The key is used for one input only, hence the fixed nonce.
    pub fn seal_input(&self, plain: &[u8]) -> Vec<u8> {
        self.cipher(b"input").encrypt(&Nonce::default(), plain).unwrap_or_default()
    }

    /// Decrypts an input.
    ///
    /// # Errors
    /// [`SealError::DoesNotOpen`].
    pub fn open_input(&self, sealed: &[u8]) -> Result<Zeroizing<Vec<u8>>, SealError> {
        self.cipher(b"input")
            .decrypt(&Nonce::default(), sealed)
            .map(Zeroizing::new)
            .map_err(|_| SealError::DoesNotOpen)
    }

    /// Encrypts the `counter`-th record that `writer` (drawn at random for each opening of the
    /// file) appends to a job's output at rest.
    pub fn seal_record(&self, writer: u32, counter: u64, plain: &[u8]) -> Vec<u8> {
        let nonce = record_nonce(writer, counter);
        self.cipher(b"output").encrypt(&nonce, plain).unwrap_or_default()
    }

    /// Decrypts one record of the output at rest.
    ///
    /// # Errors
    /// [`SealError::DoesNotOpen`].
    pub fn open_record(
        &self,
        writer: u32,
        counter: u64,
        sealed: &[u8],
    ) -> Result<Zeroizing<Vec<u8>>, SealError> {
        self.cipher(b"output")
            .decrypt(&record_nonce(writer, counter), sealed)
            .map(Zeroizing::new)
            .map_err(|_| SealError::DoesNotOpen)
    }

    /// Wraps the key for one node, bound to the job's federation-wide meaning by `aad`.
    ///
    /// # Errors
    /// [`SealError::BadKey`].
    pub fn wrap(&self, node: NodeId, to: &SealingKey) -> Result<KeyWrap, SealError> {
        let (enc, sealed) = hpke_seal(to, WRAP_INFO, &*self.0, node.as_bytes())?;
        let sealed = sealed.try_into().map_err(|_| SealError::BadKey)?;
        Ok(KeyWrap { node, enc, sealed })
    }

    /// Opens a wrap that was made for us.
    ///
    /// # Errors
    /// [`SealError::DoesNotOpen`].
    pub fn unwrap(wrap: &KeyWrap, secret: &SealingSecret) -> Result<ContentKey, SealError> {
        let plain = hpke_open(secret, WRAP_INFO, &wrap.enc, &wrap.sealed, wrap.node.as_bytes())?;
        let key = <[u8; 32]>::try_from(plain.as_slice()).map_err(|_| SealError::DoesNotOpen)?;
        Ok(ContentKey(Zeroizing::new(key)))
    }

    fn cipher(&self, purpose: &[u8]) -> ChaCha20Poly1305 {
        let mut hasher = Sha256::new();
        hasher.update(b"allmend-content-v1 ");
        hasher.update(purpose);
        hasher.update(*self.0);
        let key = Zeroizing::new(<[u8; 32]>::from(hasher.finalize()));
        ChaCha20Poly1305::new(&Key::from(*key))
    }
}

/// A result sealed to its researcher.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SealedResult {
    /// The encapsulated key.
    #[serde(with = "serde_bytes")]
    pub enc: Vec<u8>,
    /// The ciphertext.
    #[serde(with = "serde_bytes")]
    pub sealed: Vec<u8>,
}

impl SealedResult {
    /// Seals `plain`, the result of `job`, to a researcher.
    ///
    /// # Errors
    /// [`SealError::BadKey`].
    pub fn seal(to: &SealingKey, job: MessageId, plain: &[u8]) -> Result<SealedResult, SealError> {
        let (enc, sealed) = hpke_seal(to, RESULT_INFO, plain, job.as_bytes())?;
        Ok(SealedResult { enc: enc.to_vec(), sealed })
    }

    /// Opens it with the researcher's secret.
    ///
    /// # Errors
    /// [`SealError::DoesNotOpen`].
    pub fn open(
        &self,
        job: MessageId,
        secret: &SealingSecret,
    ) -> Result<Zeroizing<Vec<u8>>, SealError> {
        hpke_open(secret, RESULT_INFO, &self.enc, &self.sealed, job.as_bytes())
    }
}

/// `N` bytes of the operating system's randomness.
///
/// # Errors
/// [`SealError::NoRandomness`].
pub fn random_bytes<const N: usize>() -> Result<[u8; N], SealError> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).map_err(|_| SealError::NoRandomness)?;
    Ok(bytes)
}

fn record_nonce(writer: u32, counter: u64) -> Nonce {
    let mut nonce = [0; 12];
    nonce[..4].copy_from_slice(&writer.to_be_bytes());
    nonce[4..].copy_from_slice(&counter.to_be_bytes());
    Nonce::from(nonce)
}

fn hpke_seal(
    to: &SealingKey,
    info: &[u8],
    plain: &[u8],
    aad: &[u8],
) -> Result<([u8; 32], Vec<u8>), SealError> {
    let to = PublicKey::from_bytes(to.as_bytes()).map_err(|_| SealError::BadKey)?;
    let (enc, sealed) = hpke::single_shot_seal::<HpkeAead, HkdfSha256, X25519HkdfSha256>(
        &OpModeS::Base,
        &to,
        info,
        plain,
        aad,
    )
    .map_err(|_| SealError::BadKey)?;
    let enc = <[u8; 32]>::try_from(enc.to_bytes().as_slice()).map_err(|_| SealError::BadKey)?;
    Ok((enc, sealed))
}

fn hpke_open(
    secret: &SealingSecret,
    info: &[u8],
    enc: &[u8],
    sealed: &[u8],
    aad: &[u8],
) -> Result<Zeroizing<Vec<u8>>, SealError> {
    let secret: PrivateKey = secret.private();
    let enc = EncappedKey::from_bytes(enc).map_err(|_| SealError::DoesNotOpen)?;
    hpke::single_shot_open::<HpkeAead, HkdfSha256, X25519HkdfSha256>(
        &OpModeR::Base,
        &secret,
        &enc,
        info,
        sealed,
        aad,
    )
    .map(Zeroizing::new)
    .map_err(|_| SealError::DoesNotOpen)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Identity;

    #[test]
    fn opens_for_the_recipient_only() {
        let (ours, theirs) = (Identity::generate().unwrap(), Identity::generate().unwrap());
        let node = NodeId::from(ours.public());
        let key = ContentKey::random().unwrap();
        let wrap = key.wrap(node, &ours.sealing().public()).unwrap();
        let sealed = key.seal_input(b"a prompt");
        let opened = ContentKey::unwrap(&wrap, ours.sealing()).unwrap();
        assert_eq!(&*opened.open_input(&sealed).unwrap(), b"a prompt");
        assert!(ContentKey::unwrap(&wrap, theirs.sealing()).is_err());
        let other = KeyWrap { node: NodeId::from(theirs.public()), ..wrap };
        assert!(ContentKey::unwrap(&other, ours.sealing()).is_err(), "bound to the node");
    }

    #[test]
    fn results_are_bound_to_their_job() {
        let researcher = Identity::generate().unwrap();
        let job = MessageId::from_bytes([7; 32]);
        let result = SealedResult::seal(&researcher.sealing().public(), job, b"an answer").unwrap();
        assert_eq!(&*result.open(job, researcher.sealing()).unwrap(), b"an answer");
        let other = MessageId::from_bytes([8; 32]);
        assert!(result.open(other, researcher.sealing()).is_err());
    }

    #[test]
    fn records_differ_by_writer_and_counter() {
        let key = ContentKey::random().unwrap();
        let record = key.seal_record(1, 2, b"token");
        assert_eq!(&*key.open_record(1, 2, &record).unwrap(), b"token");
        assert!(key.open_record(1, 3, &record).is_err());
        assert!(key.open_record(2, 2, &record).is_err());
    }
}
