//! Why the registry does not do what it is asked. No words here hold what a row or a subject id holds.

use std::io;
use std::path::{Path, PathBuf};

use allmend_protocol::ids::Digest;
use allmend_protocol::time::Timestamp;

use crate::metadata::MetadataError;
use crate::registry::{NameError, PolicyError};
use crate::rows::RowsError;
use crate::source::{Report, SourceError};

/// Why the registry does not serve.
#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    /// The disk says no.
    #[error("cannot {doing} {}", path.display())]
    Io {
        /// What was being done.
        doing: &'static str,
        /// To what.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A record that is not what was written.
    #[error("the record of the dataset {name} is damaged: {what}")]
    Damaged {
        /// Of which dataset.
        name: String,
        /// What is wrong.
        what: String,
    },
    /// Rows that are not what was written.
    #[error("the rows of version {digest} are damaged")]
    Rows {
        /// Of which version.
        digest: Digest,
        /// What is wrong.
        #[source]
        source: RowsError,
    },
    /// Nothing of that name or digest.
    #[error("there is no dataset {0:?}")]
    NotFound(String),
    /// A prefix of several digests.
    #[error("{reference:?} may be any of {}", candidates.join(", "))]
    Ambiguous {
        /// As it was given.
        reference: String,
        /// What it may mean.
        candidates: Vec<String>,
    },
    /// A dataset of that name exists.
    #[error("there is a dataset {0} already")]
    Exists(String),
    /// Taken back by its steward.
    #[error("the dataset {name} was withdrawn at {when}: {why}")]
    Withdrawn {
        /// Which.
        name: String,
        /// When.
        when: Timestamp,
        /// Why, in the steward's words.
        why: String,
    },
    /// A version whose rows exist no more.
    #[error("version {digest} of the dataset {name} was destroyed at {when}")]
    Destroyed {
        /// Of which dataset.
        name: String,
        /// Which.
        digest: Digest,
        /// When.
        when: Timestamp,
    },
    /// Somebody else changed the dataset meanwhile.
    #[error("the dataset {0} was changed meanwhile")]
    Changed(String),
    /// No row of any version names the subject.
    #[error("no row of the dataset {0} names this subject")]
    NoSuchSubject(String),
    /// All runs that a requester may have.
    #[error("this requester has had all {max} runs that the dataset {name} grants each of them")]
    RunsUsed {
        /// Of which dataset.
        name: String,
        /// How many that is.
        max: u32,
    },
    /// More of something than is kept.
    #[error("the dataset {name} has {max} {what}, the most that are kept")]
    Full {
        /// Which.
        name: String,
        /// Of what.
        what: &'static str,
        /// How many.
        max: usize,
    },
}

impl RegistryError {
    pub(crate) fn io(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { doing, path, source }
    }

    /// What to do about it.
    #[must_use]
    pub fn hint(&self) -> Option<&'static str> {
        Some(match self {
            Self::NotFound(_) => "`allmend data ls` lists what there is",
            Self::Ambiguous { .. } => "write more of the digest",
            Self::Exists(_) => "choose another name, or add a new version of it with --new-version",
            Self::Changed(_) => "do it again",
            Self::NoSuchSubject(_) => {
                "subject ids are compared to the letter; is it written as in \"subject_id\"?"
            }
            Self::Damaged { .. } | Self::Rows { .. } => {
                "restore it from a backup, or withdraw it and add it anew"
            }
            Self::Withdrawn { .. } => "ask its steward",
            Self::Destroyed { .. } => "name the dataset's present version instead",
            Self::RunsUsed { .. } => "ask the steward for more runs",
            Self::Full { .. } => "start a dataset of a new name",
            Self::Io { .. } => return None,
        })
    }
}

/// Why a dataset is not added.
#[derive(Debug, thiserror::Error)]
pub enum AddError {
    /// The source cannot be read.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// Rows of it cannot be kept.
    #[error(transparent)]
    Rows(#[from] RowsError),
    /// There is something to mend first.
    #[error("{} places in the data must be mended first", .0.complaint_count)]
    Invalid(Box<Report>),
    /// The metadata does not hold.
    #[error(transparent)]
    Metadata(#[from] MetadataError),
    /// The name cannot be one.
    #[error(transparent)]
    Name(#[from] NameError),
    /// The policy cannot be used.
    #[error(transparent)]
    Policy(#[from] PolicyError),
    /// No steward's key.
    #[error("a dataset needs the key of at least one steward, and at most {0}")]
    Stewards(usize),
    /// The registry does not serve.
    #[error(transparent)]
    Registry(#[from] RegistryError),
}
