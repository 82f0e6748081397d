//! What can go wrong with the disk.

use std::io;
use std::path::{Path, PathBuf};

use crate::models::ModelError;
use crate::ui::{self, ExitClass, Explain, Explanation};

/// Why something is not stored, or cannot be read back.
#[derive(Debug, thiserror::Error)]
pub enum StorageError {
    /// The spool has reached its cap.
    #[error("the spool is full: {} are used of {}", ui::bytes(*used), ui::bytes(*cap))]
    SpoolFull {
        /// Bytes in the spool.
        used: u64,
        /// Its cap in bytes.
        cap: u64,
    },
    /// One part of a job is larger than the spool accepts.
    #[error("{} are too much for the spool, which takes {} at once", ui::bytes(*bytes), ui::bytes(*max))]
    TooLarge {
        /// Bytes offered or found.
        bytes: u64,
        /// Bytes accepted.
        max: u64,
    },
    /// Nothing is stored for this job and part.
    #[error("the spool holds nothing of this kind for the job")]
    Absent,
    /// A model could not be listed or removed.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// The file system failed us.
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

impl StorageError {
    pub(super) fn io(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self + use<> {
        let path = path.to_owned();
        move |source| Self::Io { doing, path, source }
    }
}

impl Explain for StorageError {
    fn explain(&self) -> Explanation {
        match self {
            Self::SpoolFull { .. } => Explanation::hinting(
                ExitClass::NoRoom,
                "raise storage.spool_cap_mib, or lower storage.retention_hours",
            ),
            Self::TooLarge { .. } => Explanation::of(ExitClass::NoRoom),
            Self::Absent => Explanation::hinting(
                ExitClass::NotFound,
                "it may have been removed after settlement (storage.retention_hours)",
            ),
            Self::Model(error) => error.explain(),
            Self::Io { source, .. } => match source.kind() {
                io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Explanation::hinting(
                    ExitClass::NoRoom,
                    "free some space; `allmend storage show` lists what Allmend uses",
                ),
                io::ErrorKind::PermissionDenied => Explanation::of(ExitClass::Config),
                _ => Explanation::of(ExitClass::Internal),
            },
        }
    }
}
