//! Measuring the disk.

use std::fs;
use std::io;
use std::path::Path;

use serde::Serialize;

/// Room on the file system that holds a path, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Space {
    /// Its size.
    pub total_bytes: u64,
    /// What this user may still write.
    pub free_bytes: u64,
}

/// The room at `path`, or at the nearest parent that exists.
///
/// # Errors
/// Those of `statvfs`.
pub fn space(path: &Path) -> io::Result<Space> {
    let existing = path.ancestors().find(|path| path.exists()).unwrap_or(Path::new("."));
    let found = rustix::fs::statvfs(existing)?;
    Ok(Space {
        total_bytes: found.f_blocks.saturating_mul(found.f_frsize),
        free_bytes: found.f_bavail.saturating_mul(found.f_frsize),
    })
}

/// Free bytes at `path`.
///
/// # Errors
/// Those of [`space`].
pub fn free_bytes(path: &Path) -> io::Result<u64> {
    space(path).map(|space| space.free_bytes)
}

/// Our own trees are shallow; deeper ones are not ours, and links are never followed.
const DEPTH_MAX: usize = 8;

/// Bytes that the files below `dir` occupy on disk; a missing directory has none.
///
/// Files that vanish while counting are skipped: the daemon works meanwhile.
///
/// # Errors
/// Those of reading `dir` itself.
pub fn tree_bytes(dir: &Path) -> io::Result<u64> {
    match fs::read_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(0),
        Err(error) => Err(error),
        Ok(entries) => Ok(sum(entries, DEPTH_MAX)),
    }
}

fn sum(entries: fs::ReadDir, depth: usize) -> u64 {
    use std::os::unix::fs::MetadataExt;
    let bytes = entries.flatten().map(|entry| match entry.metadata() {
        Ok(meta) if meta.is_dir() && depth > 0 => {
            fs::read_dir(entry.path()).map_or(0, |inner| sum(inner, depth - 1))
        }
        // Blocks rather than length: a journal is preallocated or sparse. A block is 512 bytes.
        Ok(meta) if meta.is_file() => meta.blocks().saturating_mul(512),
        _ => 0,
    });
    bytes.fold(0, u64::saturating_add)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn space_of_what_does_not_exist_yet_is_that_of_its_parent() {
        let dir = tempfile::tempdir().unwrap();
        let found = space(&dir.path().join("a/b")).unwrap();
        assert!(found.total_bytes >= found.free_bytes && found.total_bytes > 0);
    }

    #[test]
    fn trees_are_summed_without_following_links() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(tree_bytes(&dir.path().join("none")).unwrap(), 0);
        fs::create_dir(dir.path().join("a")).unwrap();
        fs::write(dir.path().join("a/x"), vec![1; 10_000]).unwrap();
        std::os::unix::fs::symlink("/", dir.path().join("root")).unwrap();
        let bytes = tree_bytes(dir.path()).unwrap();
        assert!((10_000..1_000_000).contains(&bytes), "{bytes}");
    }
}
