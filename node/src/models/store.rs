//! What is in the store: listing, finding by name or digest, verifying, removing.

use std::fs::{self, File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use allmend_protocol::ids::Digest;
use allmend_protocol::time::Timestamp;
use serde::Serialize;

use super::error::ModelError;
use super::hashing::hash_watched;
use super::meta::{Meta, Stamp, read_json, write_json};
use super::pull::Job;
use crate::config::create_private_dir;

pub(super) const WEIGHTS_FILE: &str = "model.gguf";
pub(super) const META_FILE: &str = "meta.json";
pub(super) const VERIFIED_FILE: &str = "verified.json";
pub(super) const USE_FILE: &str = "use.lock";
/// An interrupted pull is worth continuing for about this long.
const STAGING_KEPT: Duration = Duration::from_secs(7 * 86_400);
/// Shorter prefixes of a digest are likelier names that do not exist.
const PREFIX_DIGITS_MIN: usize = 4;

/// The directory of models.
#[derive(Clone, Debug)]
pub struct Store {
    dir: PathBuf,
}

/// One model in the store.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Model {
    /// What is known about it.
    #[serde(flatten)]
    pub meta: Meta,
    /// Its weights.
    pub path: PathBuf,
    /// When a worker last began to use it, or when it was pulled.
    pub last_used: Timestamp,
    /// Whether somebody uses it now.
    pub in_use: bool,
    /// Bytes it takes here; none if it is a link to elsewhere.
    pub disk_bytes: u64,
}

/// A directory in the store that is no whole model.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Damaged {
    /// The directory.
    pub path: PathBuf,
    /// What is wrong.
    pub why: String,
}

/// Everything in the store.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Listing {
    /// Models, by name, then digest.
    pub models: Vec<Model>,
    /// What could not be read.
    pub damaged: Vec<Damaged>,
}

impl Store {
    /// Opens the store at `dir`, making the directory if it is missing.
    ///
    /// # Errors
    /// [`ModelError::Io`].
    pub fn open(dir: impl Into<PathBuf>) -> Result<Self, ModelError> {
        let dir = dir.into();
        create_private_dir(&dir).map_err(ModelError::io("create", &dir))?;
        Ok(Self { dir })
    }

    /// The directory.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Lists all models. Damaged entries are listed apart rather than failing the rest.
    ///
    /// # Errors
    /// [`ModelError::Io`] if the directory cannot be read.
    pub fn list(&self) -> Result<Listing, ModelError> {
        let mut listing = Listing::default();
        let read = || ModelError::io("read", &self.dir);
        for entry in fs::read_dir(&self.dir).map_err(read())? {
            let entry = entry.map_err(read())?;
            let Some(digest) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else {
                continue; // .staging, .locks, and what others put here
            };
            match self.model(&digest) {
                Ok(model) => listing.models.push(model),
                Err(error) => {
                    let why = std::error::Error::source(&error)
                        .map_or_else(|| error.to_string(), |source| format!("{error}: {source}"));
                    listing.damaged.push(Damaged { path: entry.path(), why });
                }
            }
        }
        listing
            .models
            .sort_by(|a, b| (&a.meta.name, a.meta.digest).cmp(&(&b.meta.name, b.meta.digest)));
        listing.damaged.sort_by(|a, b| a.path.cmp(&b.path));
        Ok(listing)
    }

    /// Finds a model by name, digest, or unique prefix of its digest (four digits or more).
    ///
    /// # Errors
    /// [`ModelError::NotFound`], [`ModelError::Ambiguous`] with all candidates, [`ModelError::Io`].
    pub fn find(&self, reference: &str) -> Result<Model, ModelError> {
        pick(self.list()?.models, reference)
    }

    /// The model with this digest, without looking at its content.
    ///
    /// # Errors
    /// [`ModelError::NotFound`], [`ModelError::Io`] if it is not whole.
    pub fn model(&self, digest: &Digest) -> Result<Model, ModelError> {
        let dir = self.model_dir(digest);
        if !dir.is_dir() {
            return Err(ModelError::NotFound(digest.to_string()));
        }
        let meta_path = dir.join(META_FILE);
        let meta: Meta = read_json(&meta_path)
            .and_then(|meta: Meta| {
                if meta.digest == *digest { Ok(meta) } else { Err("it is of another model".into()) }
            })
            .map_err(|why| ModelError::io("read", &meta_path)(std::io::Error::other(why)))?;
        let path = dir.join(WEIGHTS_FILE);
        let read = || ModelError::io("read", &path);
        let own = fs::symlink_metadata(&path).map_err(read())?;
        fs::metadata(&path).map_err(read())?;
        let (last_used, in_use) = use_of(&dir.join(USE_FILE), meta.pulled_at)?;
        let disk_bytes = if own.is_symlink() { 0 } else { own.len() };
        Ok(Model { meta, path, last_used, in_use, disk_bytes })
    }

    /// Checks that the weights still have their digest. Hashes them only if the file has changed
    /// since that was last done.
    pub(super) fn verify(&self, digest: &Digest, job: &Job<'_>) -> Result<(), ModelError> {
        let model = self.model(digest)?;
        let stamp_path = self.model_dir(digest).join(VERIFIED_FILE);
        let stamp = Stamp::of(&model.path)?;
        if read_json::<Stamp>(&stamp_path).is_ok_and(|verified| verified == stamp) {
            return Ok(());
        }
        job.watch.step(&format!("checking {}", model.meta.name));
        let whole = hash_watched(&model.path, job)? == *digest;
        if !whole || !Stamp::of(&model.path)?.is_unwritten_since(&stamp) {
            return Err(ModelError::Damaged { name: model.meta.name, digest: *digest });
        }
        write_json(&stamp_path, &stamp)
    }

    /// Removes a model and gives the bytes that were freed.
    ///
    /// With `force` also while it is in use: a worker that has it open keeps it until it ends.
    ///
    /// # Errors
    /// [`ModelError::NotFound`], [`ModelError::InUse`], [`ModelError::Io`].
    pub fn remove(&self, digest: &Digest, force: bool) -> Result<u64, ModelError> {
        let dir = self.model_dir(digest);
        if !dir.is_dir() {
            return Err(ModelError::NotFound(digest.to_string()));
        }
        let known = self.model(digest).ok();
        let lock = open_lock(&dir.join(USE_FILE)).map_err(ModelError::io("lock", &dir))?;
        let unused = try_exclusive(&lock).map_err(ModelError::io("lock", &dir))?;
        if !unused && !force {
            let name = known.map_or_else(|| digest.to_string(), |model| model.meta.name);
            return Err(ModelError::InUse(name));
        }
        // Out of sight in one step; a crash while deleting leaves no half model.
        create_private_dir(&self.staging_dir()).map_err(ModelError::io("create", &self.dir))?;
        let trash = self.staging_dir().join(format!("trash-{}-{}", digest, std::process::id()));
        fs::rename(&dir, &trash).map_err(ModelError::io("remove", &dir))?;
        fs::remove_dir_all(&trash).map_err(ModelError::io("remove", &trash))?;
        Ok(known.map_or(0, |model| model.disk_bytes))
    }

    /// Removes what pulls left behind long ago and nobody works on.
    pub(super) fn sweep_staging(&self) {
        // Best effort: what stays is swept next time.
        for entry in fs::read_dir(self.staging_dir()).into_iter().flatten().flatten() {
            let old = entry
                .metadata()
                .and_then(|meta| meta.modified())
                .is_ok_and(|at| at.elapsed().is_ok_and(|age| age > STAGING_KEPT));
            let name = entry.file_name();
            let lock = self.dir.join(".locks").join(format!("{}.lock", name.to_string_lossy()));
            let free = File::open(lock).map_or(true, |lock| lock.try_lock().is_ok());
            if old && free {
                let _ = fs::remove_dir_all(entry.path());
            }
        }
    }

    pub(super) fn model_dir(&self, digest: &Digest) -> PathBuf {
        self.dir.join(digest.to_string())
    }

    pub(super) fn staging_dir(&self) -> PathBuf {
        self.dir.join(".staging")
    }
}

/// The model that `reference` means. A whole digest or an exact name comes before a prefix.
fn pick(models: Vec<Model>, reference: &str) -> Result<Model, ModelError> {
    let exact =
        |model: &&Model| model.meta.name == reference || model.meta.digest.to_string() == reference;
    let prefixed = |model: &&Model| {
        reference.len() >= PREFIX_DIGITS_MIN
            && model.meta.digest.to_string().starts_with(&reference.to_ascii_lowercase())
    };
    let mut found: Vec<&Model> = models.iter().filter(exact).collect();
    if found.is_empty() {
        found = models.iter().filter(prefixed).collect();
    }
    match found.as_slice() {
        [] => Err(ModelError::NotFound(reference.to_owned())),
        [one] => Ok((*one).clone()),
        many => {
            let shown = |model: &&Model| format!("{} ({:.12})", model.meta.name, model.meta.digest);
            Err(ModelError::Ambiguous {
                reference: reference.to_owned(),
                candidates: many.iter().map(shown).collect(),
            })
        }
    }
}

/// When the model was last used, and whether it is now.
fn use_of(path: &Path, pulled_at: Timestamp) -> Result<(Timestamp, bool), ModelError> {
    let Ok(file) = File::open(path) else { return Ok((pulled_at, false)) };
    let used = file.metadata().and_then(|meta| meta.modified()).map_or(pulled_at, timestamp);
    let unused = try_exclusive(&file).map_err(ModelError::io("lock", path))?;
    Ok((used.max(pulled_at), !unused))
}

/// Opens a lock file, making it if need be, without touching its time.
pub(super) fn open_lock(path: &Path) -> io::Result<File> {
    File::options().write(true).create(true).truncate(false).open(path)
}

/// Takes the exclusive lock until `file` is closed, or finds that somebody uses the model.
///
/// Whoever lists models holds these locks for an instant too, so one failure proves nothing.
fn try_exclusive(file: &File) -> io::Result<bool> {
    const TRIES: usize = 5;
    for _ in 0..TRIES {
        match file.try_lock() {
            Ok(()) => return Ok(true),
            Err(TryLockError::WouldBlock) => thread::sleep(Duration::from_micros(200)),
            Err(TryLockError::Error(error)) => return Err(error),
        }
    }
    Ok(false)
}

pub(super) fn timestamp(at: SystemTime) -> Timestamp {
    let ms = at.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis());
    Timestamp::from_ms(u64::try_from(ms).unwrap_or(u64::MAX))
}

pub(super) fn now() -> Timestamp {
    timestamp(SystemTime::now())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn model(name: &str, digest: [u8; 32]) -> Model {
        Model {
            meta: Meta {
                name: name.to_owned(),
                digest: Digest::from_bytes(digest),
                bytes: 1,
                source: "x".to_owned(),
                licence: None,
                pulled_at: Timestamp::from_ms(0),
                header: super::super::Header::default(),
            },
            path: PathBuf::new(),
            last_used: Timestamp::from_ms(0),
            in_use: false,
            disk_bytes: 1,
        }
    }

    #[test]
    fn references_resolve_by_name_then_digest_then_prefix() {
        let mut other = [0xab; 32];
        other[31] = 0;
        let models = vec![
            model("a", [0xab; 32]),
            model("b", other),
            model("b", [1; 32]),
            model("0101", [2; 32]),
        ];
        let find = |reference: &str| pick(models.clone(), reference);
        assert_eq!(find("a").unwrap().meta.name, "a");
        assert_eq!(find(&"ab".repeat(32)).unwrap().meta.name, "a");
        assert_eq!(find("0101").unwrap().meta.digest, Digest::from_bytes([2; 32]));
        assert_eq!(find("01010").unwrap().meta.digest, Digest::from_bytes([1; 32]));
        assert_eq!(find("ABAB").unwrap_err().to_string().matches("abababababab").count(), 2);
        let Err(ModelError::Ambiguous { candidates, .. }) = find("b") else { panic!("not told") };
        assert_eq!(candidates, ["b (abababababab)", "b (010101010101)"]);
        assert!(matches!(find("010"), Err(ModelError::NotFound(_))));
        assert!(matches!(find(""), Err(ModelError::NotFound(_))));
    }

    proptest! {
        #[test]
        fn no_reference_panics(reference: String) {
            let _ = pick(vec![model("a", [0xab; 32])], &reference);
        }
    }
}
