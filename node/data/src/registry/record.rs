//! What is written about a dataset: `record.json`, replaced whole (specs/dataset.md §5.2).

use std::fmt;
use std::str::FromStr;

use allmend_protocol::ids::{Digest, MessageId, PublicKey, ResearcherId};
use allmend_protocol::time::Timestamp;
use allmend_protocol::units::Jurisdiction;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::metadata::Metadata;
use crate::version::Counts;

/// The longest name.
const NAME_BYTES_MAX: usize = 64;
/// The longest policy: some hundred rules.
pub(super) const POLICY_BYTES_MAX: usize = 64 * 1024;
/// A steward and some deputies.
pub(super) const STEWARDS_MAX: usize = 16;
/// Versions of one dataset.
pub(super) const VERSIONS_MAX: usize = 1_000;
/// Runs of one dataset.
pub(super) const RUNS_MAX: usize = 20_000;
/// Adapters released from one dataset.
pub(super) const RELEASES_MAX: usize = 20_000;
/// A record with all of that in it.
pub(super) const RECORD_BYTES_MAX: u64 = 32 * 1024 * 1024;

/// Why a text is no name of a dataset.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is no name of a dataset: 1 to 64 lowercase letters, digits, '.', '_' and '-', beginning with a letter or digit"
)]
pub struct NameError(pub String);

/// What a steward calls a dataset. Safe as the name of a directory.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DatasetName(String);

impl DatasetName {
    /// The name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for DatasetName {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        let fits = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "._-".contains(c);
        let first = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
        if text.len() <= NAME_BYTES_MAX && text.starts_with(first) && text.chars().all(fits) {
            Ok(Self(text.to_owned()))
        } else {
            Err(NameError(text.chars().take(NAME_BYTES_MAX).collect()))
        }
    }
}

impl fmt::Display for DatasetName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl fmt::Debug for DatasetName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Serialize for DatasetName {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for DatasetName {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// Why a policy cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PolicyError {
    /// Nothing in it: nobody could ever use the dataset.
    #[error("the policy is empty, which would refuse everybody for ever")]
    Empty,
    /// Too long.
    #[error("the policy has more than {POLICY_BYTES_MAX} bytes")]
    TooLong,
    /// Refused by whoever knows the policy language; in its words.
    #[error("the policy does not hold: {0}")]
    Invalid(String),
}

/// A policy and by what it is recognised.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Policy {
    /// The text, as the steward wrote it.
    pub text: String,
    /// SHA-256 of the text.
    pub digest: Digest,
}

impl Policy {
    /// Takes a policy that `check` finds right; what `check` returns as an error are words for the
    /// steward.
    ///
    /// # Errors
    /// [`PolicyError`].
    pub fn checked(
        text: String,
        check: impl FnOnce(&str) -> Result<(), String>,
    ) -> Result<Self, PolicyError> {
        if text.trim().is_empty() {
            return Err(PolicyError::Empty);
        }
        if text.len() > POLICY_BYTES_MAX {
            return Err(PolicyError::TooLong);
        }
        check(&text).map_err(PolicyError::Invalid)?;
        let digest = Digest::of(text.as_bytes());
        Ok(Self { text, digest })
    }
}

impl fmt::Debug for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Policy({:?})", self.digest)
    }
}

/// When and why a dataset was taken back.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Withdrawal {
    /// When.
    pub when: Timestamp,
    /// Why, in the steward's words, for researchers.
    pub why: String,
}

/// When and for what a version's rows were destroyed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Destroyed {
    /// When.
    pub when: Timestamp,
    /// The version that lacks the forgotten subject, made from the newest version then.
    pub successor: Digest,
}

/// One version of a dataset.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VersionRecord {
    /// By which jobs name it.
    pub digest: Digest,
    /// What is in it.
    pub counts: Counts,
    /// Size of the file of rows.
    pub bytes: u64,
    /// SHA-256 of that file.
    pub file: Digest,
    /// When it was made.
    pub made: Timestamp,
    /// The version of which it is the rest after forgetting.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent: Option<Digest>,
    /// Set when its rows exist no more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub destroyed: Option<Destroyed>,
}

/// A job that was let run on a version.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Run {
    /// The job.
    pub job: MessageId,
    /// For whom, by their pseudonymous key.
    pub requester: ResearcherId,
    /// On which version.
    pub version: Digest,
    /// When.
    pub when: Timestamp,
}

/// An adapter that left the gate.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Release {
    /// Its digest.
    pub adapter: Digest,
    /// The job that made it.
    pub job: MessageId,
    /// For whom, by their pseudonymous key.
    pub requester: ResearcherId,
    /// From which version.
    pub version: Digest,
    /// When.
    pub when: Timestamp,
}

/// A dataset: all that is known about it but its rows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Dataset {
    /// The version of this form, 1.
    pub(super) format: u8,
    /// Its name.
    pub name: DatasetName,
    /// What may be said about it.
    pub metadata: Metadata,
    /// Who may do what with it.
    pub policy: Policy,
    /// The steward's key, then those of deputies.
    pub stewards: Vec<PublicKey>,
    /// Whether its metadata may be advertised.
    pub public: bool,
    /// Where its rows may travel; nowhere when absent.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub portable: Vec<Jurisdiction>,
    /// The fewest distinct subjects from which an adapter may be released.
    pub subjects_min: u64,
    /// How many runs each requester may have; any number when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub runs_max: Option<u32>,
    /// Set when the steward has taken it back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub withdrawn: Option<Withdrawal>,
    /// Oldest first; the last is the present one.
    pub versions: Vec<VersionRecord>,
    /// Jobs that ran, oldest first.
    pub runs: Vec<Run>,
    /// Adapters released, oldest first.
    pub releases: Vec<Release>,
}

impl Dataset {
    /// The present version.
    #[must_use]
    pub fn current(&self) -> Option<&VersionRecord> {
        self.versions.last()
    }

    /// The version of this digest and which it is, counted from 1.
    #[must_use]
    pub fn version(&self, digest: &Digest) -> Option<(u64, &VersionRecord)> {
        (1..).zip(&self.versions).find(|(_, version)| version.digest == *digest)
    }

    /// How many runs a requester has had.
    #[must_use]
    pub fn runs_of(&self, requester: &ResearcherId) -> u64 {
        self.runs.iter().filter(|run| run.requester == *requester).count() as u64
    }

    /// What is wrong with a record that was read; nothing if it may be believed.
    pub(super) fn problem(&self, dir_name: &str) -> Option<String> {
        if self.format != 1 {
            return Some(format!("it is of format {}, this program reads 1", self.format));
        }
        if self.name.as_str() != dir_name {
            return Some("it is of another dataset".to_owned());
        }
        if self.policy.digest != Digest::of(self.policy.text.as_bytes()) {
            return Some("its policy is not the one that was added".to_owned());
        }
        if self.stewards.is_empty() || self.stewards.len() > STEWARDS_MAX {
            return Some("it has no steward, or too many".to_owned());
        }
        if self.current().is_none_or(|version| version.destroyed.is_some()) {
            return Some("it has no present version".to_owned());
        }
        self.metadata.check().err().map(|error| error.to_string())
    }
}
