//! SHA-256 of large files, with progress and a way to stop.

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::Path;

use allmend_protocol::ids::Digest;
use sha2::{Digest as _, Sha256};

use super::error::ModelError;
use super::pull::Job;

/// Bytes read at once: large enough for the disk, small enough to notice a stop soon.
const CHUNK_BYTES: usize = 1 << 20;

/// The digest of the file at `path`.
///
/// # Errors
/// [`ModelError::Io`].
pub fn hash_file(path: &Path) -> Result<Digest, ModelError> {
    hash_watched(path, &Job::silent())
}

pub(super) fn hash_watched(path: &Path, job: &Job<'_>) -> Result<Digest, ModelError> {
    let read = || ModelError::io("read", path);
    let mut file = File::open(path).map_err(read())?;
    let total = file.metadata().map_err(read())?.len();
    let (digest, _) = pass(&mut file, &mut io::sink(), Some(total), job, path, path)?;
    Ok(digest)
}

/// Copies everything from `from` to `to` and gives the digest and the number of bytes.
///
/// # Errors
/// [`ModelError::Io`] naming the side that failed, [`ModelError::Cancelled`].
pub(super) fn pass(
    from: &mut dyn Read,
    to: &mut dyn Write,
    total: Option<u64>,
    job: &Job<'_>,
    from_path: &Path,
    to_path: &Path,
) -> Result<(Digest, u64), ModelError> {
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; CHUNK_BYTES];
    let mut done = 0u64;
    loop {
        job.check()?;
        let count = match from.read(&mut buffer) {
            Ok(0) => break,
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(ModelError::io("read", from_path)(error)),
        };
        let chunk = buffer.get(..count).unwrap_or(&buffer);
        hasher.update(chunk);
        to.write_all(chunk).map_err(ModelError::io("write", to_path))?;
        done = done.saturating_add(count as u64);
        job.watch.bytes(done, total);
    }
    Ok((Digest::from_bytes(hasher.finalize().into()), done))
}
