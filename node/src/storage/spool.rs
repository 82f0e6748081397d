//! Sealed prompts and results of open and recent jobs.
//!
//! ```text
//! spool/<job>/input.sealed    what the researcher sent
//!             output.sealed   what came back
//!             settled         when the job was settled, in milliseconds
//! ```
//!
//! Directories are 0700 and files 0600. What is stored here is sealed already; this module never
//! sees a key. Only the daemon writes here, so the bytes in use are counted in memory.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::UNIX_EPOCH;

use allmend_protocol::ids::MessageId;
use allmend_protocol::time::Timestamp;

use super::error::StorageError;
use super::plan::SpoolUse;
use crate::config::{create_private_dir, write_private};

const SETTLED_FILE: &str = "settled";

/// Which of a job's contents.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Part {
    /// What the researcher sent.
    Input,
    /// What came back.
    Output,
}

impl Part {
    fn file(self) -> &'static str {
        match self {
            Self::Input => "input.sealed",
            Self::Output => "output.sealed",
        }
    }
}

/// The spool of one node.
#[derive(Debug)]
pub struct Spool {
    dir: PathBuf,
    cap_bytes: u64,
    used_bytes: AtomicU64,
}

impl Spool {
    /// Opens the spool at `dir`, making it if it is missing, and counts what it holds.
    ///
    /// # Errors
    /// [`StorageError::Io`].
    pub fn open(dir: impl Into<PathBuf>, cap_bytes: u64) -> Result<Self, StorageError> {
        let dir = dir.into();
        create_private_dir(&dir).map_err(StorageError::io("create", &dir))?;
        let spool = Self { dir, cap_bytes, used_bytes: AtomicU64::new(0) };
        let used = spool.entries()?.iter().map(|entry| entry.bytes).fold(0, u64::saturating_add);
        spool.used_bytes.store(used, Ordering::Relaxed);
        Ok(spool)
    }

    /// Stores a part of a job, replacing what was there: readers see the old or the new.
    ///
    /// Durable when it returns.
    ///
    /// # Errors
    /// [`StorageError::SpoolFull`], [`StorageError::TooLarge`], [`StorageError::Io`].
    pub fn write(&self, job: &MessageId, part: Part, bytes: &[u8]) -> Result<(), StorageError> {
        let path = self.path(job, part);
        let replaced = fs::metadata(&path).map_or(0, |meta| meta.len());
        let charge = self.charge(bytes.len() as u64, replaced)?;
        self.make_job_dir(job)?;
        write_private(&path, bytes).map_err(StorageError::io("write", &path))?;
        charge.keep();
        Ok(())
    }

    /// Appends to a part of a job, for results that arrive piece by piece. Not durable until
    /// [`Self::sync`].
    ///
    /// # Errors
    /// Those of [`Self::write`].
    pub fn append(&self, job: &MessageId, part: Part, bytes: &[u8]) -> Result<(), StorageError> {
        let path = self.path(job, part);
        let charge = self.charge(bytes.len() as u64, 0)?;
        self.make_job_dir(job)?;
        let file = File::options().create(true).append(true).mode(0o600).open(&path);
        file.and_then(|mut file| file.write_all(bytes))
            .map_err(StorageError::io("write", &path))?;
        charge.keep();
        Ok(())
    }

    /// Makes a part that was appended to durable.
    ///
    /// # Errors
    /// [`StorageError::Absent`], [`StorageError::Io`].
    pub fn sync(&self, job: &MessageId, part: Part) -> Result<(), StorageError> {
        let path = self.path(job, part);
        let synced = File::open(&path).and_then(|file| file.sync_all());
        synced.and_then(|()| sync_dir(&self.job_dir(job))).map_err(absent_or("write", &path))
    }

    /// Reads a part of a job.
    ///
    /// # Errors
    /// [`StorageError::Absent`], [`StorageError::TooLarge`] if it has more than `bytes_max`,
    /// [`StorageError::Io`].
    pub fn read(
        &self,
        job: &MessageId,
        part: Part,
        bytes_max: u64,
    ) -> Result<Vec<u8>, StorageError> {
        let path = self.path(job, part);
        let file = File::open(&path).map_err(absent_or("read", &path))?;
        let mut bytes = Vec::new();
        file.take(bytes_max.saturating_add(1))
            .read_to_end(&mut bytes)
            .map_err(StorageError::io("read", &path))?;
        if bytes.len() as u64 > bytes_max {
            return Err(StorageError::TooLarge { bytes: bytes.len() as u64, max: bytes_max });
        }
        Ok(bytes)
    }

    /// Bytes of a part, if it is there.
    #[must_use]
    pub fn len(&self, job: &MessageId, part: Part) -> Option<u64> {
        fs::metadata(self.path(job, part)).ok().map(|meta| meta.len())
    }

    /// Notes that the job was settled at `at`: it is removed when its retention is over.
    ///
    /// Keeps the first time if called again. A job that the spool does not hold is no error.
    ///
    /// # Errors
    /// [`StorageError::Io`].
    pub fn mark_settled(&self, job: &MessageId, at: Timestamp) -> Result<(), StorageError> {
        let path = self.job_dir(job).join(SETTLED_FILE);
        if path.exists() || !self.job_dir(job).is_dir() {
            return Ok(());
        }
        write_private(&path, at.as_ms().to_string().as_bytes())
            .map_err(StorageError::io("write", &path))
    }

    /// Removes everything of a job and gives the bytes freed; none if nothing was there.
    ///
    /// # Errors
    /// [`StorageError::Io`].
    pub fn remove(&self, job: &MessageId) -> Result<u64, StorageError> {
        let dir = self.job_dir(job);
        let bytes = job_bytes(&dir);
        match fs::remove_dir_all(&dir) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(0),
            removed => removed.map_err(StorageError::io("remove", &dir))?,
        }
        sync_dir(&self.dir).map_err(StorageError::io("write", &self.dir))?;
        let less = |used: u64| Some(used.saturating_sub(bytes));
        let _ = self.used_bytes.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less);
        Ok(bytes)
    }

    /// Every job in the spool, by id.
    ///
    /// # Errors
    /// [`StorageError::Io`].
    pub fn entries(&self) -> Result<Vec<SpoolUse>, StorageError> {
        let read = || StorageError::io("read", &self.dir);
        let mut entries = Vec::new();
        for entry in fs::read_dir(&self.dir).map_err(read())? {
            let entry = entry.map_err(read())?;
            let Some(job) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else {
                continue;
            };
            let dir = entry.path();
            entries.push(SpoolUse { job, bytes: job_bytes(&dir), settled_at: settled_at(&dir) });
        }
        entries.sort_by_key(|entry| entry.job);
        Ok(entries)
    }

    /// Bytes in use.
    #[must_use]
    pub fn used_bytes(&self) -> u64 {
        self.used_bytes.load(Ordering::Relaxed)
    }

    /// Takes room for `bytes`, which replace `replaced`; given back unless kept.
    fn charge(&self, bytes: u64, replaced: u64) -> Result<Charge<'_>, StorageError> {
        if bytes > self.cap_bytes {
            return Err(StorageError::TooLarge { bytes, max: self.cap_bytes });
        }
        let more = |used: u64| {
            let after = used.saturating_sub(replaced).checked_add(bytes)?;
            (after <= self.cap_bytes).then_some(after)
        };
        match self.used_bytes.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more) {
            Ok(before) => {
                let after = before.saturating_sub(replaced).saturating_add(bytes);
                Ok(Charge { used: &self.used_bytes, before, after, kept: false })
            }
            Err(used) => Err(StorageError::SpoolFull { used, cap: self.cap_bytes }),
        }
    }

    fn make_job_dir(&self, job: &MessageId) -> Result<(), StorageError> {
        let dir = self.job_dir(job);
        if dir.is_dir() {
            return Ok(());
        }
        create_private_dir(&dir)
            .and_then(|()| sync_dir(&self.dir))
            .map_err(StorageError::io("create", &dir))
    }

    fn job_dir(&self, job: &MessageId) -> PathBuf {
        self.dir.join(job.to_string())
    }

    fn path(&self, job: &MessageId, part: Part) -> PathBuf {
        self.job_dir(job).join(part.file())
    }
}

/// Room that was taken before writing and is given back if writing fails.
struct Charge<'a> {
    used: &'a AtomicU64,
    before: u64,
    after: u64,
    kept: bool,
}

impl Charge<'_> {
    fn keep(mut self) {
        self.kept = true;
    }
}

impl Drop for Charge<'_> {
    fn drop(&mut self) {
        if !self.kept {
            let (before, after) = (self.before, self.after);
            let back = |used: u64| Some(used.saturating_add(before).saturating_sub(after));
            let _ = self.used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, back);
        }
    }
}

fn absent_or(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> StorageError {
    let path = path.to_owned();
    move |error| match error.kind() {
        io::ErrorKind::NotFound => StorageError::Absent,
        _ => StorageError::Io { doing, path, source: error },
    }
}

fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

/// Bytes of the parts; the note of settlement is too small to count.
fn job_bytes(dir: &Path) -> u64 {
    [Part::Input, Part::Output]
        .into_iter()
        .filter_map(|part| fs::metadata(dir.join(part.file())).ok())
        .map(|meta| meta.len())
        .fold(0, u64::saturating_add)
}

fn settled_at(dir: &Path) -> Option<Timestamp> {
    let path = dir.join(SETTLED_FILE);
    let mut text = String::new();
    let file = File::open(&path).ok()?;
    let modified = file.metadata().and_then(|meta| meta.modified()).ok();
    let _ = file.take(32).read_to_string(&mut text);
    // A note that cannot be read still says that the job is over; its age is the file's.
    let ms = text.trim().parse().ok().or_else(|| {
        let since = modified?.duration_since(UNIX_EPOCH).ok()?;
        u64::try_from(since.as_millis()).ok()
    })?;
    Some(Timestamp::from_ms(ms))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    const JOB: MessageId = MessageId::from_bytes([7; 32]);

    fn spool(cap: u64) -> (tempfile::TempDir, Spool) {
        let dir = tempfile::tempdir().unwrap();
        let spool = Spool::open(dir.path().join("spool"), cap).unwrap();
        (dir, spool)
    }

    #[test]
    fn parts_are_private_and_counted() {
        let (dir, spool) = spool(100);
        spool.write(&JOB, Part::Input, b"sealed prompt").unwrap();
        spool.append(&JOB, Part::Output, b"one ").unwrap();
        spool.append(&JOB, Part::Output, b"two").unwrap();
        spool.sync(&JOB, Part::Output).unwrap();
        assert_eq!(spool.read(&JOB, Part::Output, 100).unwrap(), b"one two");
        assert_eq!((spool.used_bytes(), spool.len(&JOB, Part::Input)), (20, Some(13)));
        let job_dir = dir.path().join("spool").join(JOB.to_string());
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&job_dir), 0o700);
        assert_eq!(mode(&job_dir.join("input.sealed")), 0o600);
        assert_eq!(mode(&job_dir.join("output.sealed")), 0o600);
        let again = Spool::open(dir.path().join("spool"), 100).unwrap();
        assert_eq!(again.used_bytes(), 20);
        assert_eq!(spool.remove(&JOB).unwrap(), 20);
        assert_eq!((spool.used_bytes(), spool.remove(&JOB).unwrap()), (0, 0));
    }

    #[test]
    fn the_cap_holds_and_replacing_counts_once() {
        let (_dir, spool) = spool(10);
        spool.write(&JOB, Part::Input, &[1; 8]).unwrap();
        spool.write(&JOB, Part::Input, &[2; 10]).unwrap();
        let full = spool.append(&JOB, Part::Output, &[1]).unwrap_err();
        assert!(matches!(full, StorageError::SpoolFull { used: 10, cap: 10 }), "{full}");
        let large = spool.write(&JOB, Part::Output, &[0; 11]).unwrap_err();
        assert!(matches!(large, StorageError::TooLarge { bytes: 11, max: 10 }));
        assert_eq!(spool.used_bytes(), 10);
    }

    #[test]
    fn a_failed_write_gives_its_room_back() {
        let (dir, spool) = spool(10);
        // A file where the job's directory should be.
        fs::write(dir.path().join("spool").join(JOB.to_string()), b"x").unwrap();
        assert!(spool.write(&JOB, Part::Input, &[1; 8]).is_err());
        assert_eq!(spool.used_bytes(), 0);
    }

    #[test]
    fn settlement_is_noted_once() {
        let (dir, spool) = spool(100);
        spool.mark_settled(&JOB, Timestamp::from_ms(5)).unwrap();
        assert_eq!(spool.entries().unwrap(), []);
        spool.write(&JOB, Part::Input, b"x").unwrap();
        assert_eq!(spool.entries().unwrap()[0].settled_at, None);
        spool.mark_settled(&JOB, Timestamp::from_ms(5)).unwrap();
        spool.mark_settled(&JOB, Timestamp::from_ms(9)).unwrap();
        assert_eq!(spool.entries().unwrap()[0].settled_at, Some(Timestamp::from_ms(5)));
        let note = dir.path().join("spool").join(JOB.to_string()).join(SETTLED_FILE);
        fs::write(note, b"garbage").unwrap();
        assert!(spool.entries().unwrap()[0].settled_at > Some(Timestamp::from_ms(9)));
    }

    #[test]
    fn what_is_absent_or_too_large_is_said() {
        let (_dir, spool) = spool(100);
        assert!(matches!(spool.read(&JOB, Part::Input, 9), Err(StorageError::Absent)));
        spool.write(&JOB, Part::Input, &[0; 10]).unwrap();
        assert!(matches!(spool.read(&JOB, Part::Input, 9), Err(StorageError::TooLarge { .. })));
    }
}
