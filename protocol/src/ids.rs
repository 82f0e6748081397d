//! Identities and digests: 32-byte newtypes that cannot be mistaken for one another.
//!
//! In DAG-CBOR each is a byte string of exactly 32 bytes; in JSON and on a terminal it is
//! lowercase hexadecimal (specs/encoding.md §2).

use std::fmt;
use std::str::FromStr;

use serde::de::{self, Deserializer, Visitor};
use serde::ser::Serializer;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

/// Why a text is not one of our 32-byte values.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParseIdError {
    /// The text does not have 64 hexadecimal digits.
    #[error("expected 64 hexadecimal digits, found {0} characters")]
    Length(usize),
    /// The text has a character outside `0-9a-f`.
    #[error("not lowercase hexadecimal")]
    NotHex,
}

struct BytesVisitor<const N: usize>;

impl<const N: usize> Visitor<'_> for BytesVisitor<N> {
    type Value = [u8; N];

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a byte string of {N} bytes")
    }

    fn visit_bytes<E: de::Error>(self, bytes: &[u8]) -> Result<[u8; N], E> {
        <[u8; N]>::try_from(bytes).map_err(|_| E::invalid_length(bytes.len(), &self))
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<[u8; N], E> {
        let bytes = data_encoding::HEXLOWER
            .decode(text.as_bytes())
            .map_err(|_| E::custom("not lowercase hexadecimal"))?;
        self.visit_bytes(&bytes)
    }
}

pub(crate) mod fixed_bytes {
    //! Serde for `[u8; N]` as a byte string (binary formats) or hexadecimal (text formats).
    use super::{BytesVisitor, Deserializer, Serializer};

    pub(crate) fn serialize<const N: usize, S: Serializer>(
        bytes: &[u8; N],
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        if serializer.is_human_readable() {
            serializer.serialize_str(&data_encoding::HEXLOWER.encode(bytes))
        } else {
            serializer.serialize_bytes(bytes)
        }
    }

    pub(crate) fn deserialize<'de, const N: usize, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<[u8; N], D::Error> {
        if deserializer.is_human_readable() {
            deserializer.deserialize_str(BytesVisitor::<N>)
        } else {
            deserializer.deserialize_bytes(BytesVisitor::<N>)
        }
    }
}

macro_rules! id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name([u8; 32]);

        impl $name {
            /// Wraps 32 bytes; nothing about them is checked here.
            pub const fn from_bytes(bytes: [u8; 32]) -> Self {
                Self(bytes)
            }

            /// The 32 bytes.
            pub const fn as_bytes(&self) -> &[u8; 32] {
                &self.0
            }

            /// The first eight hexadecimal digits: enough for a person to tell two apart.
            pub fn short(&self) -> String {
                data_encoding::HEXLOWER.encode(&self.0[..4])
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&data_encoding::HEXLOWER.encode(&self.0))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), self.short())
            }
        }

        impl FromStr for $name {
            type Err = ParseIdError;

            fn from_str(text: &str) -> Result<Self, ParseIdError> {
                if text.len() != 64 {
                    return Err(ParseIdError::Length(text.chars().count()));
                }
                let bytes = data_encoding::HEXLOWER
                    .decode(text.as_bytes())
                    .map_err(|_| ParseIdError::NotHex)?;
                bytes.try_into().map(Self).map_err(|_| ParseIdError::NotHex)
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                fixed_bytes::serialize(&self.0, serializer)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                fixed_bytes::deserialize(deserializer).map(Self)
            }
        }
    };
}

id! {
    /// An Ed25519 public key, whoever holds it.
    PublicKey
}
id! {
    /// One running daemon: its Ed25519 public key, which is also its libp2p PeerId.
    NodeId
}
id! {
    /// A member of the federation: the Ed25519 public key of its seat.
    InstitutionId
}
id! {
    /// A researcher's pseudonymous Ed25519 public key; the name behind it stays at home.
    ResearcherId
}
id! {
    /// An X25519 public key to which inputs and results are sealed (HPKE, RFC 9180).
    SealingKey
}
id! {
    /// SHA-256 of some bytes: the id of every artifact (model, adapter, dataset version, policy).
    Digest
}
id! {
    /// SHA-256 of a message's pre-authentication bytes (specs/envelope.md §3).
    MessageId
}
id! {
    /// The message id of the genesis charter: which federation this is.
    FederationId
}

macro_rules! key_role {
    ($($name:ident),*) => {$(
        impl From<$name> for PublicKey {
            fn from(id: $name) -> PublicKey { PublicKey(id.0) }
        }
        impl From<PublicKey> for $name {
            fn from(key: PublicKey) -> $name { $name(key.0) }
        }
    )*};
}
key_role!(NodeId, InstitutionId, ResearcherId);

impl From<MessageId> for FederationId {
    fn from(genesis: MessageId) -> FederationId {
        FederationId(genesis.0)
    }
}

impl Digest {
    /// SHA-256 of `bytes`.
    pub fn of(bytes: &[u8]) -> Digest {
        Digest(Sha256::digest(bytes).into())
    }

    /// Digest of private bytes under a random salt, so that a log reader cannot confirm a guess.
    ///
    /// `SHA-256("allmend-salted-v1" || salt || bytes)` (specs/encoding.md §4). Forgetting the salt
    /// erases what the digest says while every log that carries it still verifies.
    pub fn salted(salt: &[u8; 32], bytes: &[u8]) -> Digest {
        let mut hasher = Sha256::new();
        hasher.update(b"allmend-salted-v1");
        hasher.update(salt);
        hasher.update(bytes);
        Digest(hasher.finalize().into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_round_trips_and_refuses_the_rest() {
        let id = NodeId::from_bytes([0xab; 32]);
        assert_eq!(id.to_string().parse::<NodeId>(), Ok(id));
        assert_eq!("ab".parse::<NodeId>(), Err(ParseIdError::Length(2)));
        assert_eq!("AB".repeat(32).parse::<NodeId>(), Err(ParseIdError::NotHex));
        assert_eq!("é".repeat(32).parse::<NodeId>(), Err(ParseIdError::NotHex));
    }

    #[test]
    fn a_salt_changes_the_digest() {
        let plain = Digest::of(b"prompt");
        let salted = Digest::salted(&[1; 32], b"prompt");
        assert_ne!(plain, salted);
        assert_ne!(salted, Digest::salted(&[2; 32], b"prompt"));
    }
}
