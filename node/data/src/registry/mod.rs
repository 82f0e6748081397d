//! The datasets that a node's stewards keep, on disk (specs/dataset.md §5).
//!
//! ```text
//! datasets/<name>/record.json     all that is known about it but its rows
//!                 <digest>.rows   the rows of one version
//! datasets/.staging/<id>/         a dataset or version being made; <id>.lock is held by its maker
//! datasets/.lock                  held while a record changes
//! ```
//!
//! Directories are 0700, files 0600. A record is replaced whole, and what it does not name does not
//! exist: opening the registry destroys it. So a power cut leaves the state before or the state after,
//! and rows that were to be forgotten are gone at the latest when the registry is next opened.
//!
//! The command line and a running daemon may use one registry at the same time.

mod change;
mod forget;
mod record;
mod stage;

use std::fs::{self, File};
use std::io::{self, BufReader, Read};
use std::path::{Path, PathBuf};

use allmend_protocol::ids::Digest;
use serde::Serialize;

use crate::disk::Disk;
use crate::error::RegistryError;
use crate::metadata::{Croissant, LanguageTag, Licence, Sensitivity};
use crate::rows::{Rows, RowsError};

pub use change::{Added, NewDataset, Withdrawn};
pub use forget::{Affected, Forgotten};
pub use record::{
    Dataset, DatasetName, Destroyed, NameError, Policy, PolicyError, Release, Run, VersionRecord,
    Withdrawal,
};

use record::RECORD_BYTES_MAX;

const RECORD_FILE: &str = "record.json";
const NEW_RECORD_FILE: &str = ".new-record";
const ROWS_SUFFIX: &str = ".rows";
const STAGING_DIR: &str = ".staging";
const LOCK_FILE: &str = ".lock";
/// Shorter prefixes of a digest are likelier names that do not exist.
const PREFIX_DIGITS_MIN: usize = 4;

/// The directory of datasets.
#[derive(Clone, Debug)]
pub struct Registry {
    dir: PathBuf,
    disk: Disk,
}

/// All datasets.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Listing {
    /// Those that can be used, by name.
    pub datasets: Vec<Dataset>,
    /// Those that cannot be read.
    pub damaged: Vec<Damaged>,
}

/// A dataset that cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Damaged {
    /// The name of its directory.
    pub name: String,
    /// What is wrong.
    pub why: String,
}

/// A version whose rows a job may be given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Held {
    /// The dataset it is a version of.
    pub dataset: Dataset,
    /// The version.
    pub version: VersionRecord,
    /// Which version it is, counted from 1.
    pub ordinal: u64,
    /// The file of its rows.
    pub path: PathBuf,
}

/// What others may be told about a dataset that its steward marked public.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Advertised {
    /// Its name.
    pub name: DatasetName,
    /// The present version.
    pub version: Digest,
    /// What people call it.
    pub title: String,
    /// Its licence.
    pub licence: Licence,
    /// Its languages.
    pub languages: Vec<LanguageTag>,
    /// For what it may be used.
    pub purposes: Vec<String>,
    /// How sensitive it is.
    pub sensitivity: Sensitivity,
    /// How many rows it has.
    pub rows: u64,
}

impl Registry {
    /// Opens the registry at `dir`, making it if it is missing, and clears away what a crash left:
    /// half-made datasets, and rows that no record names any more.
    ///
    /// # Errors
    /// [`RegistryError::Io`].
    pub fn open(dir: impl Into<PathBuf>) -> Result<Self, RegistryError> {
        Self::open_with(dir.into(), Disk::default())
    }

    fn open_with(dir: PathBuf, disk: Disk) -> Result<Self, RegistryError> {
        if !dir.is_dir() {
            disk.create_dir(&dir).map_err(RegistryError::io("create", &dir))?;
        }
        let registry = Self { dir, disk };
        let staging = registry.staging_dir();
        let _lock = registry.lock()?;
        if !staging.is_dir() {
            registry.disk.create_dir(&staging).map_err(RegistryError::io("create", &staging))?;
        }
        registry.sweep()?;
        Ok(registry)
    }

    /// The directory.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Lists all datasets. Damaged ones are listed apart rather than failing the rest.
    ///
    /// # Errors
    /// [`RegistryError::Io`] if the directory cannot be read.
    pub fn list(&self) -> Result<Listing, RegistryError> {
        let mut listing = Listing::default();
        for name in self.names()? {
            match self.read(&name) {
                Ok(dataset) => listing.datasets.push(dataset),
                Err(error) => {
                    listing.damaged.push(Damaged { name: name.to_string(), why: error.to_string() })
                }
            }
        }
        Ok(listing)
    }

    /// The dataset of this name.
    ///
    /// # Errors
    /// [`RegistryError::NotFound`], [`RegistryError::Damaged`], [`RegistryError::Io`].
    pub fn show(&self, name: &DatasetName) -> Result<Dataset, RegistryError> {
        self.read(name)
    }

    /// Finds a dataset by name, or by the digest of one of its versions or a prefix of that (four
    /// digits or more).
    ///
    /// # Errors
    /// [`RegistryError::NotFound`], [`RegistryError::Ambiguous`] and those of [`Registry::list`].
    pub fn find(&self, reference: &str) -> Result<Dataset, RegistryError> {
        if let Ok(name) = reference.parse::<DatasetName>()
            && self.record_path(&name).exists()
        {
            return self.read(&name);
        }
        let prefix = reference.to_ascii_lowercase();
        let mut found = Vec::new();
        if prefix.len() >= PREFIX_DIGITS_MIN {
            found = self.list()?.datasets;
            found.retain(|dataset| {
                let fits =
                    |version: &VersionRecord| version.digest.to_string().starts_with(&prefix);
                dataset.versions.iter().any(fits)
            });
        }
        match (found.pop(), found.is_empty()) {
            (None, _) => Err(RegistryError::NotFound(reference.to_owned())),
            (Some(one), true) => Ok(one),
            (Some(one), false) => {
                found.push(one);
                let candidates = found.iter().map(|dataset| dataset.name.to_string()).collect();
                Err(RegistryError::Ambiguous { reference: reference.to_owned(), candidates })
            }
        }
    }

    /// The version with this digest, if a job may be given its rows.
    ///
    /// # Errors
    /// [`RegistryError::NotFound`], [`RegistryError::Withdrawn`], [`RegistryError::Destroyed`],
    /// [`RegistryError::Io`].
    pub fn version(&self, digest: &Digest) -> Result<Held, RegistryError> {
        for dataset in self.list()?.datasets {
            if let Some((ordinal, version)) = dataset.version(digest) {
                usable(&dataset, version)?;
                let version = version.clone();
                let path = self.rows_path(&dataset.name, digest);
                fs::metadata(&path).map_err(RegistryError::io("read", &path))?;
                return Ok(Held { dataset, version, ordinal, path });
            }
        }
        Err(RegistryError::NotFound(digest.to_string()))
    }

    /// What others may be told: of every dataset that is public and not withdrawn, by name.
    ///
    /// # Errors
    /// Those of [`Registry::list`].
    pub fn advertised(&self) -> Result<Vec<Advertised>, RegistryError> {
        let public = |dataset: &Dataset| dataset.public && dataset.withdrawn.is_none();
        let datasets = self.list()?.datasets;
        let advertise = |dataset: Dataset| {
            let version = dataset.current()?;
            Some(Advertised {
                version: version.digest,
                rows: version.counts.rows(),
                name: dataset.name.clone(),
                title: dataset.metadata.title.clone(),
                licence: dataset.metadata.licence.clone(),
                languages: dataset.metadata.languages.clone(),
                purposes: dataset.metadata.purposes.clone(),
                sensitivity: dataset.metadata.sensitivity,
            })
        };
        Ok(datasets.into_iter().filter(public).filter_map(advertise).collect())
    }

    fn names(&self) -> Result<Vec<DatasetName>, RegistryError> {
        let read = || RegistryError::io("read", &self.dir);
        let mut names = Vec::new();
        for entry in fs::read_dir(&self.dir).map_err(read())? {
            let entry = entry.map_err(read())?;
            // What else lies there (.staging, .lock, somebody's notes) is none of ours.
            if let Some(name) = entry.file_name().to_str().and_then(|name| name.parse().ok())
                && entry.path().is_dir()
            {
                names.push(name);
            }
        }
        names.sort();
        Ok(names)
    }

    fn read(&self, name: &DatasetName) -> Result<Dataset, RegistryError> {
        let path = self.record_path(name);
        let damaged = |what: String| RegistryError::Damaged { name: name.to_string(), what };
        let mut bytes = Vec::new();
        let read = File::open(&path)
            .and_then(|file| file.take(RECORD_BYTES_MAX + 1).read_to_end(&mut bytes));
        match read {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(RegistryError::NotFound(name.to_string()));
            }
            other => other.map_err(RegistryError::io("read", &path))?,
        };
        if bytes.len() as u64 > RECORD_BYTES_MAX {
            return Err(damaged("it is too large".to_owned()));
        }
        let dataset: Dataset =
            serde_json::from_slice(&bytes).map_err(|error| damaged(error.to_string()))?;
        match dataset.problem(name.as_str()) {
            None => Ok(dataset),
            Some(what) => Err(damaged(what)),
        }
    }

    /// Takes the lock under which records change, until the file is closed.
    fn lock(&self) -> Result<File, RegistryError> {
        let path = self.dir.join(LOCK_FILE);
        let lock = open_lock(&path).map_err(RegistryError::io("open", &path))?;
        lock.lock().map_err(RegistryError::io("lock", &path))?;
        Ok(lock)
    }

    /// Destroys what no record names. The caller holds the lock.
    fn sweep(&self) -> Result<(), RegistryError> {
        self.sweep_staging()?;
        for name in self.names()? {
            // What a damaged record names is not known: nothing of it may be destroyed.
            let Ok(dataset) = self.read(&name) else { continue };
            self.sweep_dataset(&dataset)?;
        }
        Ok(())
    }

    /// Destroys the rows of versions that the record does not name, or names as destroyed.
    fn sweep_dataset(&self, dataset: &Dataset) -> Result<(), RegistryError> {
        let dir = self.dataset_dir(&dataset.name);
        let read = || RegistryError::io("read", &dir);
        for entry in fs::read_dir(&dir).map_err(read())? {
            let path = entry.map_err(read())?.path();
            let Some(file) = path.file_name().and_then(|name| name.to_str()) else { continue };
            let stale = match file.strip_suffix(ROWS_SUFFIX) {
                Some(digest) => digest.parse().is_ok_and(|digest| {
                    dataset.version(&digest).is_none_or(|(_, version)| version.destroyed.is_some())
                }),
                None => file == NEW_RECORD_FILE,
            };
            if stale {
                self.disk.wipe(&path).map_err(RegistryError::io("destroy", &path))?;
            }
        }
        Ok(())
    }

    fn dataset_dir(&self, name: &DatasetName) -> PathBuf {
        self.dir.join(name.as_str())
    }

    fn record_path(&self, name: &DatasetName) -> PathBuf {
        self.dataset_dir(name).join(RECORD_FILE)
    }

    fn rows_path(&self, name: &DatasetName, digest: &Digest) -> PathBuf {
        self.dataset_dir(name).join(rows_file(digest))
    }

    fn staging_dir(&self) -> PathBuf {
        self.dir.join(STAGING_DIR)
    }
}

impl Held {
    /// The rows, read from the disk with all checks.
    ///
    /// # Errors
    /// [`RegistryError::Io`], [`RegistryError::Rows`].
    pub fn rows(&self) -> Result<Rows<BufReader<File>>, RegistryError> {
        open_rows(&self.path, &self.version.digest)
    }

    /// Reads all rows and checks that they are those of the version.
    ///
    /// # Errors
    /// [`RegistryError::Rows`] if they are not, [`RegistryError::Io`].
    pub fn verify(&self) -> Result<(), RegistryError> {
        each_row(self.rows()?, &self.version.digest, |_| Ok(()))
    }

    /// Its description in Croissant.
    #[must_use]
    pub fn croissant(&self) -> serde_json::Value {
        croissant(&self.dataset, self.ordinal, &self.version)
    }
}

impl Dataset {
    /// The description of the present version in Croissant.
    #[must_use]
    pub fn croissant(&self) -> Option<serde_json::Value> {
        let version = self.current()?;
        Some(croissant(self, self.versions.len() as u64, version))
    }
}

fn croissant(dataset: &Dataset, ordinal: u64, version: &VersionRecord) -> serde_json::Value {
    Croissant {
        name: dataset.name.as_str(),
        metadata: &dataset.metadata,
        version: version.digest,
        ordinal,
        counts: version.counts,
        rows_bytes: version.bytes,
        rows_sha256: version.file,
        made: version.made,
    }
    .to_json()
}

/// Refuses a version that no job may use.
fn usable(dataset: &Dataset, version: &VersionRecord) -> Result<(), RegistryError> {
    let name = dataset.name.to_string();
    if let Some(Withdrawal { when, why }) = &dataset.withdrawn {
        return Err(RegistryError::Withdrawn { name, when: *when, why: why.clone() });
    }
    match &version.destroyed {
        None => Ok(()),
        Some(Destroyed { when, .. }) => {
            Err(RegistryError::Destroyed { name, digest: version.digest, when: *when })
        }
    }
}

fn rows_file(digest: &Digest) -> String {
    format!("{digest}{ROWS_SUFFIX}")
}

fn open_rows(path: &Path, digest: &Digest) -> Result<Rows<BufReader<File>>, RegistryError> {
    let file = File::open(path).map_err(RegistryError::io("read", path))?;
    Rows::open(BufReader::with_capacity(1 << 16, file))
        .map_err(|source| RegistryError::Rows { digest: *digest, source })
}

/// Gives every row to `take` and checks at the end that they were those of the version.
fn each_row<R: Read>(
    mut rows: Rows<R>,
    digest: &Digest,
    mut take: impl FnMut(&crate::Row) -> Result<(), RegistryError>,
) -> Result<(), RegistryError> {
    let damaged = |source| RegistryError::Rows { digest: *digest, source };
    for row in rows.by_ref() {
        take(&row.map_err(damaged)?)?;
    }
    match rows.header() {
        Some(header) if header.digest() == *digest => Ok(()),
        _ => Err(damaged(RowsError::Mismatch)),
    }
}

/// Opens a lock file, making it if need be.
fn open_lock(path: &Path) -> io::Result<File> {
    use std::os::unix::fs::OpenOptionsExt as _;
    File::options().write(true).create(true).truncate(false).mode(0o600).open(path)
}

#[cfg(test)]
mod tests;
