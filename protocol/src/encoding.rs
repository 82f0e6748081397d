//! Strict DAG-CBOR: one value, one encoding (specs/encoding.md §1).

use std::fmt;
use std::marker::PhantomData;

use serde::de::{self, DeserializeOwned, Deserializer, SeqAccess, Visitor};
use serde::{Deserialize, Serialize};

/// The largest signed body, in bytes; larger content travels by digest.
pub const BODY_BYTES_MAX: usize = 32 * 1024;

/// Why bytes are not the one encoding of a value.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// More bytes than this kind of content may have.
    #[error("{found} bytes, at most {limit} are allowed")]
    TooLong {
        /// Bytes received.
        found: usize,
        /// Bytes allowed.
        limit: usize,
    },
    /// Not DAG-CBOR of the expected shape.
    #[error("not strict DAG-CBOR of the expected shape: {0}")]
    Malformed(String),
    /// A decodable value that is not in its one canonical form (e.g. a null for an absent field).
    #[error("not the canonical encoding of its value")]
    NotCanonical,
}

/// Encodes `value` as DAG-CBOR.
///
/// # Panics
/// Never for the types of this crate: their maps have text keys and they hold no floats.
pub fn encode<T: Serialize>(value: &T) -> Vec<u8> {
    serde_ipld_dagcbor::to_vec(value).expect("protocol types always encode")
}

/// Decodes at most `limit` bytes that must be the canonical encoding of a `T`.
///
/// Beyond the decoder's own strictness, the value is encoded again and compared: serde would
/// otherwise take a list for a struct or a null for an absent field.
///
/// # Errors
/// [`DecodeError`] for anything else; never panics and allocates no more than a small multiple of
/// `limit`.
pub fn decode<T: Serialize + DeserializeOwned>(
    bytes: &[u8],
    limit: usize,
) -> Result<T, DecodeError> {
    if bytes.len() > limit {
        return Err(DecodeError::TooLong { found: bytes.len(), limit });
    }
    let value: T = serde_ipld_dagcbor::from_slice(bytes)
        .map_err(|error| DecodeError::Malformed(error.to_string()))?;
    match serde_ipld_dagcbor::to_vec(&value) {
        Ok(again) if again == bytes => Ok(value),
        _ => Err(DecodeError::NotCanonical),
    }
}

/// The most elements of any list in a message: nothing said needs more, and decoding stops at the
/// next one, so that a claimed length or a flood of tiny elements costs a receiver nothing.
pub const LIST_MAX: usize = 64;

/// Reads a list of at most [`LIST_MAX`] elements; for `#[serde(deserialize_with)]` on every list
/// of a message.
pub fn list<'de, D, T>(deserializer: D) -> Result<Vec<T>, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de>,
{
    deserializer.deserialize_seq(ListVisitor(PhantomData))
}

struct ListVisitor<T>(PhantomData<T>);

impl<'de, T: Deserialize<'de>> Visitor<'de> for ListVisitor<T> {
    type Value = Vec<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a list of at most {LIST_MAX} elements")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut elements: A) -> Result<Vec<T>, A::Error> {
        // Grows with what is really there, never with what the list's head claims.
        let mut list = Vec::new();
        while let Some(element) = elements.next_element()? {
            if list.len() == LIST_MAX {
                return Err(de::Error::invalid_length(LIST_MAX + 1, &self));
            }
            list.push(element);
        }
        Ok(list)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Pair {
        a: u64,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        b: Option<u64>,
    }

    fn read(bytes: &[u8]) -> Result<Pair, DecodeError> {
        decode(bytes, 64)
    }

    #[test]
    fn one_encoding_only() {
        assert_eq!(read(&[0xa1, 0x61, b'a', 0x01]), Ok(Pair { a: 1, b: None }));
        let refused: &[(&str, &[u8])] = &[
            ("null for absent", &[0xa2, 0x61, b'a', 0x01, 0x61, b'b', 0xf6]),
            ("list for struct", &[0x82, 0x01, 0x02]),
            ("over-long integer", &[0xa1, 0x61, b'a', 0x18, 0x01]),
            ("unsorted keys", &[0xa2, 0x61, b'b', 0x01, 0x61, b'a', 0x01]),
            ("duplicate key", &[0xa2, 0x61, b'a', 0x01, 0x61, b'a', 0x01]),
            ("indefinite map", &[0xbf, 0x61, b'a', 0x01, 0xff]),
            ("trailing byte", &[0xa1, 0x61, b'a', 0x01, 0x00]),
            ("unknown field", &[0xa2, 0x61, b'a', 0x01, 0x61, b'c', 0x01]),
            ("float", &[0xa1, 0x61, b'a', 0xfb, 0x3f, 0xf0, 0, 0, 0, 0, 0, 0]),
        ];
        for (what, bytes) in refused {
            assert!(read(bytes).is_err(), "{what}");
        }
        assert!(matches!(read(&[0; 65]), Err(DecodeError::TooLong { .. })));
    }
}
