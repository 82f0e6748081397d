//! Every change this crate makes on disk, one step after the other.
//!
//! Each step is durable when it returns. Tests stop after any of them, as a power cut would, and look
//! whether what is left is the state before or the state after.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Seek, SeekFrom, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;

/// How much is overwritten at once.
const WIPE_BYTES: usize = 1 << 20;

/// The way to the disk.
#[derive(Clone, Debug, Default)]
pub(crate) struct Disk {
    #[cfg(test)]
    pub(crate) fuse: Fuse,
}

impl Disk {
    /// Makes a directory, mode 0700; it must not exist.
    pub(crate) fn create_dir(&self, path: &Path) -> io::Result<()> {
        self.step()?;
        fs::DirBuilder::new().mode(0o700).create(path)?;
        sync_parent(path)
    }

    /// Makes an empty file, mode 0600; it must not exist.
    pub(crate) fn create(&self, path: &Path) -> io::Result<File> {
        self.step()?;
        OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(path)
    }

    /// Makes what was written to a file of [`Disk::create`] durable.
    pub(crate) fn finish(&self, path: &Path, file: &File) -> io::Result<()> {
        self.step()?;
        file.sync_all()?;
        sync_parent(path)
    }

    /// Writes a whole small file, mode 0600, over a leftover if there is one.
    pub(crate) fn write(&self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        let mut file =
            OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)?;
        if let Err(cut) = self.step() {
            // A torn write: half of it is there.
            file.write_all(&bytes[..bytes.len() / 2])?;
            return Err(cut);
        }
        file.write_all(bytes)?;
        file.sync_all()
    }

    /// Renames, both within directories of the registry. Never onto a directory that holds something.
    pub(crate) fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.step()?;
        fs::rename(from, to)?;
        sync_parent(from)?;
        sync_parent(to)
    }

    /// Overwrites a file with zeros, cuts it to nothing and removes it.
    pub(crate) fn wipe(&self, path: &Path) -> io::Result<()> {
        let mut file = match OpenOptions::new().write(true).open(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            other => other?,
        };
        let mut left = file.seek(SeekFrom::End(0))?;
        file.seek(SeekFrom::Start(0))?;
        let cut = self.step();
        if cut.is_err() {
            left /= 2;
        }
        let zeros = vec![0; WIPE_BYTES];
        while left > 0 {
            let part = left.min(WIPE_BYTES as u64);
            file.write_all(
                zeros.get(..usize::try_from(part).unwrap_or(WIPE_BYTES)).unwrap_or(&zeros),
            )?;
            left -= part;
        }
        file.sync_all()?;
        cut?;
        self.step()?;
        fs::remove_file(path)?;
        sync_parent(path)
    }

    /// Removes a directory with nothing in it.
    pub(crate) fn remove_dir(&self, path: &Path) -> io::Result<()> {
        self.step()?;
        fs::remove_dir(path)?;
        sync_parent(path)
    }

    #[cfg(not(test))]
    #[allow(clippy::unused_self, clippy::unnecessary_wraps)] // The fuse is there in tests only.
    fn step(&self) -> io::Result<()> {
        Ok(())
    }

    #[cfg(test)]
    fn step(&self) -> io::Result<()> {
        self.fuse.burn()
    }
}

fn sync_parent(path: &Path) -> io::Result<()> {
    match path.parent() {
        Some(dir) => File::open(dir)?.sync_all(),
        None => Ok(()),
    }
}

/// Lets so many steps happen and no more.
#[cfg(test)]
#[derive(Clone, Debug, Default)]
pub(crate) struct Fuse(Option<std::sync::Arc<std::sync::atomic::AtomicI64>>);

#[cfg(test)]
impl Fuse {
    pub(crate) fn after(steps: i64) -> Self {
        Self(Some(std::sync::Arc::new(steps.into())))
    }

    fn burn(&self) -> io::Result<()> {
        use std::sync::atomic::Ordering::Relaxed;
        match &self.0 {
            Some(left) if left.fetch_sub(1, Relaxed) <= 0 => Err(io::Error::other("power cut")),
            _ => Ok(()),
        }
    }
}
