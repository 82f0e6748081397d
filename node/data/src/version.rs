//! What a version of a dataset is: a digest over its rows in their order (specs/dataset.md §3).

use std::collections::HashSet;
use std::fmt;

use allmend_protocol::encoding;
use allmend_protocol::ids::Digest;
use allmend_protocol::log::{Tree, TreeHash};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::row::{Kind, Row};

/// The most distinct subjects of one version: counting them takes some 28 bytes of memory each.
pub const SUBJECTS_MAX: usize = 1 << 22;
/// Separates version digests from every other use of SHA-256.
const DOMAIN: &[u8] = b"allmend-dataset-v1";
/// The version of the format.
const FORMAT: u8 = 1;

/// 32 random bytes drawn for one version and kept in its rows file only.
///
/// Without it nobody can confirm a guess of what a version holds from its digest, which stands in
/// public logs; destroying the rows destroys it too.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Salt([u8; 32]);

impl Salt {
    /// Takes 32 bytes.
    #[must_use]
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// Draws one from the operating system.
    ///
    /// # Errors
    /// When the system has no randomness to give.
    pub fn draw() -> std::io::Result<Self> {
        let mut bytes = [0; 32];
        getrandom::fill(&mut bytes).map_err(std::io::Error::other)?;
        Ok(Self(bytes))
    }

    /// The bytes.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// The salted digest of `bytes` (specs/encoding.md §4).
    #[must_use]
    pub fn digest(&self, bytes: &[u8]) -> Digest {
        Digest::salted(&self.0, bytes)
    }
}

impl fmt::Debug for Salt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Salt(…)")
    }
}

/// How many rows there are, of what shape, of how many people.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Counts {
    /// Conversations.
    pub chat: u64,
    /// Prompts with their completion.
    pub completion: u64,
    /// Plain texts.
    pub text: u64,
    /// Distinct subjects named by rows.
    pub subjects: u64,
    /// Rows that name no subject.
    pub unattributed: u64,
}

impl Counts {
    /// All rows.
    #[must_use]
    pub const fn rows(&self) -> u64 {
        self.chat.saturating_add(self.completion).saturating_add(self.text)
    }

    /// The shapes that occur, in order.
    #[must_use]
    pub fn kinds(&self) -> Vec<Kind> {
        [(self.chat, Kind::Chat), (self.completion, Kind::Completion), (self.text, Kind::Text)]
            .into_iter()
            .filter_map(|(rows, kind)| (rows > 0).then_some(kind))
            .collect()
    }
}

/// What a version's digest is taken over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VersionHeader {
    /// The version of the format, 1.
    pub format: u8,
    /// What is in it.
    pub counts: Counts,
    /// The root of the tree over the rows' salted digests.
    pub root: TreeHash,
}

impl VersionHeader {
    /// The version's digest: by this a job names it.
    #[must_use]
    pub fn digest(&self) -> Digest {
        let mut hasher = Sha256::new();
        hasher.update(DOMAIN);
        hasher.update(encoding::encode(self));
        Digest::from_bytes(hasher.finalize().into())
    }
}

/// Takes the rows of a version one by one and knows its header at the end.
#[derive(Debug)]
pub(crate) struct Tally {
    salt: Salt,
    tree: Tree,
    counts: Counts,
    // The first half of a salted digest: 2^22 subjects collide with probability 2^-85.
    subjects: HashSet<u128>,
}

/// More distinct subjects than [`SUBJECTS_MAX`].
#[derive(Debug)]
pub(crate) struct TooManySubjects;

impl Tally {
    pub(crate) fn new(salt: Salt) -> Self {
        Self { salt, tree: Tree::new(), counts: Counts::default(), subjects: HashSet::new() }
    }

    pub(crate) fn salt(&self) -> &Salt {
        &self.salt
    }

    /// Counts a row, given with its encoding.
    pub(crate) fn add(&mut self, row: &Row, encoded: &[u8]) -> Result<(), TooManySubjects> {
        match row.subject_key(&self.salt) {
            None => self.counts.unattributed += 1,
            Some(key) => {
                let (half, _) = key.as_bytes().split_at(16);
                let half = half.iter().fold(0, |key, byte| key << 8 | u128::from(*byte));
                if self.subjects.insert(half) {
                    if self.subjects.len() > SUBJECTS_MAX {
                        return Err(TooManySubjects);
                    }
                    self.counts.subjects += 1;
                }
            }
        }
        match row.kind() {
            Kind::Chat => self.counts.chat += 1,
            Kind::Completion => self.counts.completion += 1,
            Kind::Text => self.counts.text += 1,
        }
        self.tree.append(TreeHash::leaf(self.salt.digest(encoded).as_bytes()));
        Ok(())
    }

    pub(crate) fn rows(&self) -> u64 {
        self.counts.rows()
    }

    pub(crate) fn header(&self) -> VersionHeader {
        VersionHeader { format: FORMAT, counts: self.counts, root: self.tree.root() }
    }
}
