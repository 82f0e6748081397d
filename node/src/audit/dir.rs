//! Reads files beneath one directory that somebody else filled.
//!
//! No symbolic link is followed beneath it, only plain files are read, and never more of them than
//! the caller allows: a copied log must not make an auditor's machine read something else.

use std::fs::{self, File};
use std::io::{self, Read as _};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Mode, OFlags, openat};

/// A directory of unknown contents.
#[derive(Debug)]
pub(super) struct Dir {
    path: PathBuf,
    fd: OwnedFd,
}

/// Why a file has no bytes for us.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Unread {
    /// It is not there.
    Missing,
    /// It is no plain file, or not readable, or a link lies in its path.
    Unreadable,
    /// It is larger than anything that belongs there.
    TooLarge,
}

const DIR_FLAGS: OFlags = OFlags::DIRECTORY.union(OFlags::CLOEXEC).union(OFlags::RDONLY);

impl Dir {
    /// Opens `path`; that itself may be a link, for the person who named it meant it.
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        let fd = openat(CWD, path, DIR_FLAGS, Mode::empty())?;
        Ok(Self { path: path.to_owned(), fd })
    }

    /// Reads the file at `name`, a path of plain components separated by `/`.
    pub(super) fn read(&self, name: &str, bytes_max: usize) -> Result<Vec<u8>, Unread> {
        let mut at: Option<OwnedFd> = None;
        let (dirs, file) = name.rsplit_once('/').unwrap_or(("", name));
        for dir in dirs.split('/').filter(|dir| !dir.is_empty()) {
            let from = at.as_ref().unwrap_or(&self.fd);
            let opened = openat(from, dir, DIR_FLAGS | OFlags::NOFOLLOW, Mode::empty());
            at = Some(opened.map_err(unread)?);
        }
        let from = at.as_ref().unwrap_or(&self.fd);
        // Without NONBLOCK a named pipe would hold us up for ever.
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
        let file = File::from(openat(from, file, flags, Mode::empty()).map_err(unread)?);
        let meta = file.metadata().map_err(|_| Unread::Unreadable)?;
        if !meta.is_file() {
            return Err(Unread::Unreadable);
        }
        if meta.len() > bytes_max as u64 {
            return Err(Unread::TooLarge);
        }
        let mut bytes = Vec::new();
        // The file may grow while it is read.
        let mut limited = file.take(bytes_max as u64 + 1);
        limited.read_to_end(&mut bytes).map_err(|_| Unread::Unreadable)?;
        if bytes.len() > bytes_max { Err(Unread::TooLarge) } else { Ok(bytes) }
    }

    /// Names in the subdirectory `name`, sorted, at most `count_max`; whether there are more.
    pub(super) fn list(&self, name: &str, count_max: usize) -> (Vec<String>, bool) {
        let path = self.path.join(name);
        let plain = fs::symlink_metadata(&path).is_ok_and(|meta| meta.is_dir());
        let Some(entries) = fs::read_dir(&path).ok().filter(|_| plain) else {
            return (Vec::new(), false);
        };
        let mut names = Vec::new();
        for entry in entries.flatten() {
            if names.len() == count_max {
                return (names, true);
            }
            names.extend(entry.file_name().into_string().ok());
        }
        names.sort_unstable();
        (names, false)
    }
}

fn unread(error: rustix::io::Errno) -> Unread {
    if error == rustix::io::Errno::NOENT { Unread::Missing } else { Unread::Unreadable }
}
