//! Where everything lies: the data directory.
//!
//! Directories made here are 0700 and files that hold secrets 0600, so that only the user who runs
//! the node reads them. Other modules ask a [`Layout`] for paths and build none of their own.

use std::ffi::OsString;
use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use crate::ui::{ExitClass, Explain, Explanation};

/// Why the data directory is not usable.
#[derive(Debug, thiserror::Error)]
pub enum LayoutError {
    /// Neither `--dir` nor a variable nor a home directory says where it is.
    #[error(
        "there is no data directory: neither --dir, ALLMEND_DIR, XDG_DATA_HOME nor HOME is set"
    )]
    Nowhere,
    /// It has not been made yet.
    #[error("{} is no data directory of Allmend", .0.display())]
    Missing(PathBuf),
    /// A part of it cannot be made or written.
    #[error("cannot write {}", path.display())]
    Unwritable {
        /// The part.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

impl Explain for LayoutError {
    fn explain(&self) -> Explanation {
        match self {
            Self::Nowhere => Explanation::hinting(ExitClass::Config, "name one with --dir DIR"),
            Self::Missing(_) => Explanation::hinting(
                ExitClass::Config,
                "make it with `allmend init` or `allmend join INVITE`, or name another with --dir",
            ),
            Self::Unwritable { .. } => Explanation::of(ExitClass::Config),
        }
    }
}

/// Every path in a data directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    root: PathBuf,
}

macro_rules! paths {
    ($($(#[$doc:meta])* $name:ident = $path:literal;)*) => {
        impl Layout {
            $($(#[$doc])* #[must_use] pub fn $name(&self) -> PathBuf { self.root.join($path) })*
        }
    };
}

paths! {
    /// The configuration.
    config_file = "config.toml";
    /// Key files; nothing else may read them.
    keys_dir = "keys";
    /// The node's identity.
    node_key = "keys/node.key";
    /// The institution's identity, at the one node that admits others.
    institution_key = "keys/institution.key";
    /// A researcher's identity, on the machine of their command line.
    researcher_key = "keys/researcher.key";
    /// The charter in force, as signed bytes.
    charter = "charter";
    /// Certificates, ours and those of peers.
    certs_dir = "certs";
    /// The append-only journal.
    journal_dir = "journal";
    /// Tiles, checkpoints and blobs of the log, as auditors fetch them.
    log_dir = "log";
    /// The index derived from the journal; may be deleted when the node is stopped.
    index_dir = "index";
    /// Sealed prompts and results of open and recent jobs.
    spool_dir = "spool";
    /// Models by digest.
    models_dir = "models";
    /// Adapters that are served, by id.
    adapters_dir = "adapters";
    /// Datasets, their policies and privacy budgets.
    datasets_dir = "datasets";
    /// Snapshots and adapters of trainings under way; as private as the data that they come from.
    training_dir = "datasets/.training";
    /// The institution's policy on datasets.
    institution_policy = "policy/institution.cedar";
    /// The federation's policy on datasets.
    charter_policy = "policy/charter.cedar";
    /// What only a running daemon needs: its lock, its address.
    run_dir = "run";
    /// Locked while a daemon runs on this directory.
    daemon_lock = "run/daemon.lock";
    /// What the running daemon listens on, as JSON, for the command line.
    daemon_file = "run/daemon.json";
    /// Where a researcher's home node is.
    home_file = "home.json";
    /// The erasable register of names and salts.
    register = "register";
}

impl Layout {
    /// The layout below `root`, whether that exists or not.
    pub fn at(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// Finds the directory: `flag` (`--dir`), else `ALLMEND_DIR`, else `$XDG_DATA_HOME/allmend`,
    /// else `~/.local/share/allmend`.
    ///
    /// # Errors
    /// [`LayoutError::Nowhere`] if none of them is set.
    pub fn discover(
        flag: Option<&Path>,
        var: impl Fn(&str) -> Option<OsString>,
    ) -> Result<Self, LayoutError> {
        let set = |name: &str| var(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        // The XDG specification says to ignore a relative path.
        let absolute = |name: &str| set(name).filter(|path| path.is_absolute());
        flag.map(Path::to_owned)
            .or_else(|| set("ALLMEND_DIR"))
            .or_else(|| absolute("XDG_DATA_HOME").map(|base| base.join("allmend")))
            .or_else(|| absolute("HOME").map(|home| home.join(".local/share/allmend")))
            .map(Self::at)
            .ok_or(LayoutError::Nowhere)
    }

    /// The data directory itself.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Makes the directory and its parts where they are missing, each with mode 0700.
    ///
    /// # Errors
    /// [`LayoutError::Unwritable`] with the part that could not be made.
    pub fn create(&self) -> Result<(), LayoutError> {
        let parts = [
            self.root.clone(),
            self.keys_dir(),
            self.certs_dir(),
            self.journal_dir(),
            self.log_dir(),
            self.index_dir(),
            self.spool_dir(),
            self.models_dir(),
            self.run_dir(),
        ];
        for path in parts {
            create_private_dir(&path)
                .map_err(|source| LayoutError::Unwritable { path: path.clone(), source })?;
        }
        Ok(())
    }

    /// Takes the lock that marks a running daemon, held until the file is dropped; `None` if another
    /// process has it.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn lock_daemon(&self) -> io::Result<Option<fs::File>> {
        let lock = fs::OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(self.daemon_lock())?;
        match lock.try_lock() {
            Ok(()) => Ok(Some(lock)),
            Err(fs::TryLockError::WouldBlock) => Ok(None),
            Err(fs::TryLockError::Error(error)) => Err(error),
        }
    }

    /// Whether a daemon runs on this directory.
    #[must_use]
    pub fn daemon_running(&self) -> bool {
        let locked =
            |lock: fs::File| matches!(lock.try_lock_shared(), Err(fs::TryLockError::WouldBlock));
        fs::File::open(self.daemon_lock()).is_ok_and(locked)
    }

    /// Checks that somebody made this directory (`init` or `join`).
    ///
    /// # Errors
    /// [`LayoutError::Missing`] otherwise.
    pub fn require(&self) -> Result<(), LayoutError> {
        if self.keys_dir().is_dir() { Ok(()) } else { Err(LayoutError::Missing(self.root.clone())) }
    }
}

/// Makes `path` and missing parents with mode 0700; an existing directory keeps its mode.
///
/// # Errors
/// Those of the file system.
pub(crate) fn create_private_dir(path: &Path) -> io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(path)
}

/// Replaces the file at `path` by `bytes`, mode 0600: readers see the old or the new, never a part.
///
/// Durable when it returns: the file and its directory have been synced.
///
/// # Errors
/// Those of the file system; the old file is then still there.
pub fn write_private(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut file = tempfile::Builder::new()
        .prefix(".new-")
        .permissions(std::os::unix::fs::PermissionsExt::from_mode(0o600))
        .tempfile_in(dir)?;
    file.write_all(bytes)?;
    file.as_file().sync_all()?;
    file.persist(path).map_err(|error| error.error)?;
    fs::File::open(dir)?.sync_all()
}

/// Creates the file at `path` with mode 0600 and opens it for writing; it must not exist yet.
///
/// # Errors
/// `AlreadyExists`, and those of the file system.
pub(crate) fn create_private(path: &Path) -> io::Result<fs::File> {
    fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn found(flag: Option<&str>, vars: &[(&str, &str)]) -> Result<PathBuf, LayoutError> {
        let var = |name: &str| vars.iter().find(|(n, _)| *n == name).map(|(_, v)| v.into());
        Layout::discover(flag.map(Path::new), var).map(|layout| layout.root)
    }

    #[test]
    fn the_directory_is_discovered_in_order() {
        let all = [("ALLMEND_DIR", "/a"), ("XDG_DATA_HOME", "/x"), ("HOME", "/h")];
        assert_eq!(found(Some("rel"), &all).unwrap(), Path::new("rel"));
        assert_eq!(found(None, &all).unwrap(), Path::new("/a"));
        assert_eq!(found(None, &all[1..]).unwrap(), Path::new("/x/allmend"));
        assert_eq!(found(None, &all[2..]).unwrap(), Path::new("/h/.local/share/allmend"));
        let relative = [("ALLMEND_DIR", ""), ("XDG_DATA_HOME", "x"), ("HOME", "/h")];
        assert_eq!(found(None, &relative).unwrap(), Path::new("/h/.local/share/allmend"));
        assert!(matches!(found(None, &[]), Err(LayoutError::Nowhere)));
    }

    #[test]
    fn directories_are_private_and_made_once() {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::at(dir.path().join("data"));
        assert!(matches!(layout.require(), Err(LayoutError::Missing(_))));
        layout.create().unwrap();
        layout.create().unwrap();
        layout.require().unwrap();
        for path in [layout.root().to_owned(), layout.keys_dir(), layout.spool_dir()] {
            assert_eq!(fs::metadata(path).unwrap().permissions().mode() & 0o777, 0o700);
        }
    }

    #[test]
    fn files_are_replaced_whole_and_private() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("charter");
        write_private(&path, b"one").unwrap();
        write_private(&path, b"two").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"two");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
        assert!(create_private(&path).is_err());
    }
}
