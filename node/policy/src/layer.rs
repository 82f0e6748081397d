//! The three layers that must all allow, and digests of their texts.

use std::fmt;

use allmend_protocol::ids::Digest;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

/// Whose policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LayerName {
    /// The federation's: adopted with its charter.
    Charter,
    /// The institution's: written by the node's operator.
    Institution,
    /// The dataset's: written by its steward.
    Dataset,
}

impl LayerName {
    /// All, from the widest to the narrowest.
    pub const ALL: [LayerName; 3] =
        [LayerName::Charter, LayerName::Institution, LayerName::Dataset];

    /// As written in files.
    pub const fn name(self) -> &'static str {
        match self {
            LayerName::Charter => "charter",
            LayerName::Institution => "institution",
            LayerName::Dataset => "dataset",
        }
    }

    /// As the beginning of a sentence about its policy.
    pub(crate) const fn whose(self) -> &'static str {
        match self {
            LayerName::Charter => "the federation's charter",
            LayerName::Institution => "the node's institution",
            LayerName::Dataset => "the dataset's steward",
        }
    }

    /// Who can change its policy.
    pub(crate) const fn keeper(self) -> &'static str {
        match self {
            LayerName::Charter => "the federation's council",
            LayerName::Institution => "the node's operator",
            LayerName::Dataset => "the dataset's steward",
        }
    }
}

impl fmt::Display for LayerName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// The texts of the three policies. One that is not there refuses everything.
#[derive(Clone, Copy, Debug, Default)]
pub struct Layers<'a> {
    /// The federation's.
    pub charter: Option<&'a str>,
    /// The institution's.
    pub institution: Option<&'a str>,
    /// The dataset's.
    pub dataset: Option<&'a str>,
}

impl<'a> Layers<'a> {
    /// The text of one layer.
    pub const fn text(&self, layer: LayerName) -> Option<&'a str> {
        match layer {
            LayerName::Charter => self.charter,
            LayerName::Institution => self.institution,
            LayerName::Dataset => self.dataset,
        }
    }

    /// One digest for all three texts: [`digest_of_layers`] of theirs.
    pub fn digest(&self) -> Digest {
        digest_of_layers(LayerName::ALL.map(|layer| self.text(layer).map(digest_of_text)))
    }
}

/// One digest for the texts of charter, institution and dataset, given each one's; what an approval and the terms
/// of a job name (specs/policy.md §5).
///
/// SHA-256 over `allmend/policy/v1` and a zero byte, then for each layer from charter to dataset a byte 1 and
/// the SHA-256 of its text, or a byte 0 when there is none. A change of any text is another digest.
pub fn digest_of_layers(layers: [Option<Digest>; 3]) -> Digest {
    let mut hash = Sha256::new();
    hash.update(b"allmend/policy/v1\0");
    for layer in layers {
        match layer {
            Some(digest) => {
                hash.update([1]);
                hash.update(digest.as_bytes());
            }
            None => hash.update([0]),
        }
    }
    Digest::from_bytes(hash.finalize().into())
}

/// The digest of one policy's text: SHA-256 over its bytes.
pub fn digest_of_text(text: &str) -> Digest {
    Digest::from_bytes(Sha256::digest(text.as_bytes()).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_in_another_layer_is_another_policy() {
        let a = Layers { charter: Some("x"), institution: Some("y"), dataset: None };
        let b = Layers { charter: Some("y"), institution: Some("x"), dataset: None };
        let c = Layers { charter: Some("x"), institution: Some("y"), dataset: Some("") };
        assert_ne!(a.digest(), b.digest());
        assert_ne!(a.digest(), c.digest());
        assert_eq!(a.digest(), a.digest());
    }
}
