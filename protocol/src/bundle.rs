//! A message with the messages that it refers to, in one frame (specs/bundle.md).

use serde::{Deserialize, Serialize};

use crate::bytes::ByteString;
use crate::encoding::{self, DecodeError};
use crate::envelope::{Envelope, EnvelopeError};

/// The most envelopes in one bundle.
pub const BUNDLE_MESSAGES_MAX: usize = 8;
/// The largest bundle, in bytes.
pub const BUNDLE_BYTES_MAX: usize = 128 * 1024;

#[derive(Serialize, Deserialize)]
#[serde(transparent)]
struct Wire(#[serde(deserialize_with = "crate::encoding::list")] Vec<ByteString>);

/// Envelopes that travel together, the one that matters first. Nothing is verified.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bundle {
    /// The message itself.
    pub main: Envelope,
    /// What it refers to.
    pub attached: Vec<Envelope>,
}

impl Bundle {
    /// A message on its own.
    pub fn of(main: Envelope) -> Bundle {
        Bundle { main, attached: Vec::new() }
    }

    /// As bytes.
    pub fn to_bytes(&self) -> Vec<u8> {
        let all = std::iter::once(&self.main).chain(&self.attached);
        encoding::encode(&Wire(all.map(|e| ByteString(e.as_bytes().to_vec())).collect()))
    }

    /// From bytes.
    ///
    /// # Errors
    /// [`EnvelopeError`] for anything but 1 to 8 strict envelopes within 128 KiB.
    pub fn from_bytes(bytes: &[u8]) -> Result<Bundle, EnvelopeError> {
        let Wire(all) = encoding::decode(bytes, BUNDLE_BYTES_MAX)?;
        if all.is_empty() || all.len() > BUNDLE_MESSAGES_MAX {
            return Err(DecodeError::Malformed("a bundle has 1 to 8 messages".into()).into());
        }
        let mut envelopes = all.iter().map(|bytes| Envelope::from_bytes(&bytes.0));
        let main = match envelopes.next() {
            Some(main) => main?,
            None => return Err(DecodeError::Malformed("an empty bundle".into()).into()),
        };
        Ok(Bundle { main, attached: envelopes.collect::<Result<_, _>>()? })
    }
}
