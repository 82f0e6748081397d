//! Making a version out of sight: its rows are written, counted and durable before any record names
//! them.

use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use allmend_protocol::ids::Digest;
use allmend_protocol::time::Timestamp;
use sha2::{Digest as _, Sha256};

use super::record::VersionRecord;
use super::{Registry, open_lock, rows_file};
use crate::disk::Disk;
use crate::error::RegistryError;
use crate::rows::{RowsError, RowsWriter};
use crate::version::Salt;

const UNFINISHED_FILE: &str = "rows";

/// A directory below `.staging` that only its maker touches while it lives; what is in it when it is
/// dropped is destroyed.
pub(super) struct Staging<'a> {
    disk: &'a Disk,
    dir: PathBuf,
    lock_path: PathBuf,
    _lock: File,
}

/// Where rows are written to.
pub(super) type StagedRows = RowsWriter<BufWriter<Hashed>>;

impl Registry {
    /// Begins a version.
    pub(super) fn stage(&self) -> Result<Staging<'_>, RegistryError> {
        let mut id = [0; 8];
        getrandom::fill(&mut id)
            .map_err(io::Error::other)
            .map_err(RegistryError::io("write", &self.dir))?;
        let id = data_encoding::HEXLOWER.encode(&id);
        let (dir, lock_path) =
            (self.staging_dir().join(&id), self.staging_dir().join(format!("{id}.lock")));
        // Under the registry's lock, so that nobody sweeps between the directory and its lock.
        let _registry = self.lock()?;
        let lock = open_lock(&lock_path).map_err(RegistryError::io("create", &lock_path))?;
        lock.lock().map_err(RegistryError::io("lock", &lock_path))?;
        self.disk.create_dir(&dir).map_err(RegistryError::io("create", &dir))?;
        Ok(Staging { disk: &self.disk, dir, lock_path, _lock: lock })
    }

    /// Destroys what makers left that are gone. The caller holds the lock.
    pub(super) fn sweep_staging(&self) -> Result<(), RegistryError> {
        let staging = self.staging_dir();
        let read = || RegistryError::io("read", &staging);
        for entry in fs::read_dir(&staging).map_err(read())? {
            let path = entry.map_err(read())?.path();
            let lock_path = path.with_extension("lock");
            if path == lock_path && path.with_extension("").is_dir() {
                continue; // Its directory comes too.
            }
            let lock = open_lock(&lock_path).map_err(RegistryError::io("open", &lock_path))?;
            match lock.try_lock() {
                Ok(()) => destroy(&self.disk, &path.with_extension(""), &lock_path)?,
                Err(fs::TryLockError::WouldBlock) => {}
                Err(fs::TryLockError::Error(error)) => {
                    return Err(RegistryError::io("lock", &lock_path)(error));
                }
            }
        }
        Ok(())
    }
}

impl Staging<'_> {
    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    /// Opens the file for the version's rows.
    pub(super) fn rows(&self) -> Result<StagedRows, RegistryError> {
        let path = self.dir.join(UNFINISHED_FILE);
        let failed = |error: io::Error| RegistryError::io("write", &path)(error);
        let salt = Salt::draw().map_err(failed)?;
        let file = self.disk.create(&path).map_err(failed)?;
        let out = BufWriter::with_capacity(1 << 18, Hashed { file, hash: Sha256::new(), bytes: 0 });
        RowsWriter::new(out, salt).map_err(|error| failed(io::Error::other(error)))
    }

    /// Makes the rows durable under their digest; what the record will say about them.
    pub(super) fn finish(
        &self,
        rows: StagedRows,
        parent: Option<Digest>,
        made: Timestamp,
    ) -> Result<VersionRecord, RegistryError> {
        let path = self.dir.join(UNFINISHED_FILE);
        let failed = |error: io::Error| RegistryError::io("write", &path)(error);
        let (out, header) = rows.finish().map_err(|error| {
            failed(match error {
                RowsError::Io(error) => error,
                other => io::Error::other(other),
            })
        })?;
        let Hashed { file, hash, bytes } =
            out.into_inner().map_err(|error| failed(error.into_error()))?;
        self.disk.finish(&path, &file).map_err(failed)?;
        let digest = header.digest();
        self.disk.rename(&path, &self.path(&digest)).map_err(failed)?;
        Ok(VersionRecord {
            digest,
            counts: header.counts,
            bytes,
            file: Digest::from_bytes(hash.finalize().into()),
            made,
            parent,
            destroyed: None,
        })
    }

    /// Where the finished rows are.
    pub(super) fn path(&self, digest: &Digest) -> PathBuf {
        self.dir.join(rows_file(digest))
    }
}

impl Drop for Staging<'_> {
    fn drop(&mut self) {
        // Best effort: what stays is destroyed when the registry is next opened.
        let _ = destroy(self.disk, &self.dir, &self.lock_path);
    }
}

/// Destroys a staging directory, if it is still there, and its lock.
fn destroy(disk: &Disk, dir: &Path, lock_path: &Path) -> Result<(), RegistryError> {
    let failed = || RegistryError::io("destroy", dir);
    match fs::read_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(failed()(error)),
        Ok(entries) => {
            for entry in entries {
                let path = entry.map_err(failed())?.path();
                disk.wipe(&path).map_err(RegistryError::io("destroy", &path))?;
            }
            disk.remove_dir(dir).map_err(failed())?;
        }
    }
    disk.wipe(lock_path).map_err(RegistryError::io("remove", lock_path))
}

/// A file of which the digest is known when it has been written.
pub(super) struct Hashed {
    file: File,
    hash: Sha256,
    bytes: u64,
}

impl Write for Hashed {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.file.write(bytes)?;
        self.hash.update(bytes.get(..written).unwrap_or(bytes));
        self.bytes += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}
