//! A researcher's own data that may travel: declared so, with the jurisdictions in which it may lie
//! (specs/dataset.md §7).
//!
//! [`pack`] makes one string of bytes of it, for sealing to a node; [`unpack`] checks everything
//! again there; [`Placed::destroy`] removes it at settlement and says so in a [`Deleted`] record that
//! the node signs. Data that nobody declared portable has no way through here.

use std::io::{Cursor, Write as _};
use std::path::{Path, PathBuf};

use allmend_protocol::encoding;
use allmend_protocol::ids::{Digest, MessageId, ResearcherId};
use allmend_protocol::time::Timestamp;
use allmend_protocol::units::Jurisdiction;
use serde::{Deserialize, Serialize};

use crate::disk::Disk;
use crate::rows::{Rows, RowsError, RowsWriter};
use crate::source::{ReadOptions, Report, SourceError, read_source};
use crate::version::{Counts, Salt};

/// The largest pack: it is held in memory while it is sealed and opened.
pub const PACK_BYTES_MAX: usize = 256 * 1024 * 1024;
/// The first bytes of a pack.
const MAGIC: &[u8; 20] = b"allmend-portable-v1\n";
/// A manifest has a few hundred bytes.
const MANIFEST_BYTES_MAX: usize = 8 * 1024;
/// The most jurisdictions.
const JURISDICTIONS_MAX: usize = 64;

/// What travels with the rows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// The version of the format, 1.
    pub format: u8,
    /// The digest of the rows: by this the job names them.
    pub dataset: Digest,
    /// What is in it.
    pub counts: Counts,
    /// Where it may lie, sorted, each once, at least one.
    pub jurisdictions: Vec<Jurisdiction>,
    /// Who declared it portable.
    pub researcher: ResearcherId,
    /// When.
    pub declared: Timestamp,
}

/// Why data cannot be packed, unpacked or placed.
#[derive(Debug, thiserror::Error)]
pub enum PackError {
    /// The source cannot be read.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// There is something to mend first.
    #[error("{} places in the data must be mended first", .0.complaint_count)]
    Invalid(Box<Report>),
    /// No jurisdiction, or too many.
    #[error("portable data names 1 to {JURISDICTIONS_MAX} jurisdictions in which it may lie")]
    Jurisdictions,
    /// More than a pack may have.
    #[error(
        "portable data has at most {PACK_BYTES_MAX} bytes; larger data stays and is added as a dataset"
    )]
    TooLong,
    /// Bytes that are no pack.
    #[error("these bytes are no pack of portable data")]
    NotAPack,
    /// Rows that are not those of the manifest.
    #[error("the rows are not those that the manifest names")]
    Rows(#[from] RowsError),
    /// It may not lie here.
    #[error("this data may not lie in {here}, only in {}", allowed.join(", "))]
    Elsewhere {
        /// Where this is.
        here: Jurisdiction,
        /// Where it may lie.
        allowed: Vec<String>,
    },
    /// The disk says no.
    #[error("portable data cannot be kept")]
    Io(#[from] std::io::Error),
}

/// A pack, ready to be sealed.
pub struct Packed {
    /// The bytes. Not for any log.
    pub bytes: Vec<u8>,
    /// What is in them.
    pub manifest: Manifest,
    /// What was found in the source.
    pub report: Report,
}

/// Packs the file or directory at `source`.
///
/// # Errors
/// [`PackError::Invalid`] with all that must be mended, [`PackError::Jurisdictions`],
/// [`PackError::TooLong`], [`PackError::Source`].
pub fn pack(
    source: &Path,
    options: &ReadOptions<'_>,
    mut jurisdictions: Vec<Jurisdiction>,
    researcher: ResearcherId,
    now: Timestamp,
) -> Result<Packed, PackError> {
    jurisdictions.sort_unstable();
    jurisdictions.dedup();
    if jurisdictions.is_empty() || jurisdictions.len() > JURISDICTIONS_MAX {
        return Err(PackError::Jurisdictions);
    }
    let mut writer = RowsWriter::new(Bounded(Vec::new()), Salt::draw()?).map_err(writing)?;
    let report = read_source(source, options, |row| writer.push(&row).map_err(writing))?;
    if !report.is_clean() {
        return Err(PackError::Invalid(Box::new(report)));
    }
    let (Bounded(rows), header) = writer.finish().map_err(writing)?;
    let manifest = Manifest {
        format: 1,
        dataset: header.digest(),
        counts: header.counts,
        jurisdictions,
        researcher,
        declared: now,
    };
    let encoded = encoding::encode(&manifest);
    let mut bytes = Vec::with_capacity(MAGIC.len() + 4 + encoded.len() + rows.len());
    bytes.extend_from_slice(MAGIC);
    bytes.extend_from_slice(&u32::try_from(encoded.len()).unwrap_or(u32::MAX).to_be_bytes());
    bytes.extend_from_slice(&encoded);
    bytes.extend_from_slice(&rows);
    if bytes.len() > PACK_BYTES_MAX {
        return Err(PackError::TooLong);
    }
    Ok(Packed { bytes, manifest, report })
}

fn writing(error: RowsError) -> PackError {
    match error {
        RowsError::Io(error) if error.kind() == std::io::ErrorKind::FileTooLarge => {
            PackError::TooLong
        }
        other => PackError::Rows(other),
    }
}

/// Stops growing at the size of a pack.
struct Bounded(Vec<u8>);

impl std::io::Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        if self.0.len() + bytes.len() > PACK_BYTES_MAX {
            return Err(std::io::ErrorKind::FileTooLarge.into());
        }
        self.0.write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// A pack that has been opened and checked.
pub struct Unpacked {
    /// What came with the rows.
    pub manifest: Manifest,
    rows: Vec<u8>,
}

/// Opens a pack at a node that stands in `here`: the manifest, every row, and that they may lie here.
///
/// # Errors
/// [`PackError::Elsewhere`], [`PackError::NotAPack`], [`PackError::Rows`], [`PackError::TooLong`].
pub fn unpack(bytes: &[u8], here: Jurisdiction) -> Result<Unpacked, PackError> {
    if bytes.len() > PACK_BYTES_MAX {
        return Err(PackError::TooLong);
    }
    let rest = bytes.strip_prefix(MAGIC).ok_or(PackError::NotAPack)?;
    let (length, rest) = rest.split_first_chunk().ok_or(PackError::NotAPack)?;
    let length = usize::try_from(u32::from_be_bytes(*length)).map_err(|_| PackError::NotAPack)?;
    let (encoded, rows) = rest.split_at_checked(length).ok_or(PackError::NotAPack)?;
    let manifest: Manifest =
        encoding::decode(encoded, MANIFEST_BYTES_MAX).map_err(|_| PackError::NotAPack)?;
    let ordered = manifest.jurisdictions.is_sorted_by(|a, b| a < b);
    if manifest.format != 1 || manifest.jurisdictions.is_empty() || !ordered {
        return Err(PackError::NotAPack);
    }
    if manifest.jurisdictions.len() > JURISDICTIONS_MAX {
        return Err(PackError::Jurisdictions);
    }
    if !manifest.jurisdictions.contains(&here) {
        let allowed = manifest.jurisdictions.iter().map(Jurisdiction::to_string).collect();
        return Err(PackError::Elsewhere { here, allowed });
    }
    let mut reader = Rows::open(Cursor::new(rows))?;
    for row in reader.by_ref() {
        row?;
    }
    let fits = |header: &crate::VersionHeader| {
        header.digest() == manifest.dataset && header.counts == manifest.counts
    };
    if !reader.header().is_some_and(fits) {
        return Err(PackError::Rows(RowsError::Mismatch));
    }
    Ok(Unpacked { manifest, rows: rows.to_vec() })
}

impl Unpacked {
    /// Places the rows in `dir`, which only this user reads, for a job; durable when it returns.
    ///
    /// # Errors
    /// [`PackError::Io`], also when data of this job lies there already.
    pub fn place(&self, dir: &Path, job: MessageId) -> Result<Placed, PackError> {
        let disk = Disk::default();
        let placed = Placed::of(dir, job, self.manifest.clone());
        // The manifest first: what cannot be accounted for must not lie there.
        for (path, bytes) in [
            (placed.manifest_path(), encoding::encode(&self.manifest)),
            (placed.path.clone(), self.rows.clone()),
        ] {
            let mut file = disk.create(&path)?;
            file.write_all(&bytes)?;
            disk.finish(&path, &file)?;
        }
        Ok(placed)
    }
}

/// Portable data that lies at a node for one job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Placed {
    /// The file of its rows.
    pub path: PathBuf,
    /// For which job.
    pub job: MessageId,
    /// What came with the rows.
    pub manifest: Manifest,
}

/// What a node says when it has deleted portable data; the node signs it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Deleted {
    /// For which job it lay there.
    pub job: MessageId,
    /// The digest of its rows.
    pub dataset: Digest,
    /// How many rows.
    pub rows: u64,
    /// How many bytes were overwritten and removed.
    pub bytes: u64,
    /// When.
    pub deleted: Timestamp,
}

impl Placed {
    fn of(dir: &Path, job: MessageId, manifest: Manifest) -> Self {
        Self { path: dir.join(format!("{job}.rows")), job, manifest }
    }

    fn manifest_path(&self) -> PathBuf {
        self.path.with_extension("manifest")
    }

    /// Finds the data of a job again, as after a start; `None` if none lies in `dir`.
    ///
    /// # Errors
    /// [`PackError::Io`]; [`PackError::NotAPack`] if its manifest is damaged.
    pub fn find(dir: &Path, job: MessageId) -> Result<Option<Self>, PackError> {
        let bytes = match std::fs::read(dir.join(format!("{job}.manifest"))) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            other => other?,
        };
        let manifest =
            encoding::decode(&bytes, MANIFEST_BYTES_MAX).map_err(|_| PackError::NotAPack)?;
        Ok(Some(Self::of(dir, job, manifest)))
    }

    /// Overwrites and removes it, and says so. To be done again after a crash on the way.
    ///
    /// # Errors
    /// [`PackError::Io`]; it may then still lie there.
    pub fn destroy(&self, now: Timestamp) -> Result<Deleted, PackError> {
        let disk = Disk::default();
        let bytes = std::fs::metadata(&self.path).map_or(0, |meta| meta.len());
        disk.wipe(&self.path)?;
        disk.wipe(&self.manifest_path())?;
        Ok(Deleted {
            job: self.job,
            dataset: self.manifest.dataset,
            rows: self.manifest.counts.rows(),
            bytes,
            deleted: now,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::fs;

    fn places(codes: &[&str]) -> Vec<Jurisdiction> {
        codes.iter().map(|code| Jurisdiction::new(code).unwrap()).collect()
    }

    fn packed(codes: &[&str]) -> Result<Packed, PackError> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("mine.jsonl");
        fs::write(
            &path,
            "{\"text\":\"my own MARKER\",\"subject_id\":\"me\"}\n{\"text\":\"two\"}\n",
        )
        .unwrap();
        let researcher = ResearcherId::from_bytes([5; 32]);
        pack(&path, &ReadOptions::default(), places(codes), researcher, Timestamp::from_ms(7))
    }

    #[test]
    fn it_travels_only_where_it_may_and_is_gone_afterwards() {
        let packed = packed(&["DE", "CH", "DE"]).unwrap();
        assert_eq!(packed.manifest.jurisdictions, places(&["CH", "DE"]));
        let refused = unpack(&packed.bytes, Jurisdiction::new("US").unwrap());
        assert!(matches!(refused, Err(PackError::Elsewhere { .. })));

        let dir = tempfile::tempdir().unwrap();
        let job = MessageId::from_bytes([9; 32]);
        let unpacked = unpack(&packed.bytes, Jurisdiction::new("CH").unwrap()).unwrap();
        let placed = unpacked.place(dir.path(), job).unwrap();
        let mut rows = Rows::open(fs::File::open(&placed.path).unwrap()).unwrap();
        assert_eq!(rows.by_ref().map(Result::unwrap).count(), 2);
        assert_eq!(rows.header().unwrap().digest(), packed.manifest.dataset);
        assert!(unpacked.place(dir.path(), job).is_err(), "never over another");

        // After a start only the directory is known.
        let mut held_open = fs::File::open(&placed.path).unwrap();
        let found = Placed::find(dir.path(), job).unwrap().unwrap();
        assert_eq!(found, placed);
        let deleted = found.destroy(Timestamp::from_ms(8)).unwrap();
        assert_eq!((deleted.rows, deleted.dataset), (2, packed.manifest.dataset));
        assert!(deleted.bytes > 0);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
        assert_eq!(Placed::find(dir.path(), job).unwrap(), None);
        let mut left = Vec::new();
        std::io::Read::read_to_end(&mut held_open, &mut left).unwrap();
        assert!(left.iter().all(|byte| *byte == 0), "who has it open reads nothing");
        found.destroy(Timestamp::from_ms(9)).expect("again is harmless");
    }

    #[test]
    fn undeclared_data_does_not_move() {
        assert!(matches!(packed(&[]), Err(PackError::Jurisdictions)));
    }

    #[test]
    fn a_changed_pack_is_refused() {
        let packed = packed(&["CH"]).unwrap();
        let here = Jurisdiction::new("CH").unwrap();
        for at in 0..packed.bytes.len() {
            let mut changed = packed.bytes.clone();
            changed[at] ^= 1;
            match unpack(&changed, here) {
                Err(_) => {}
                // The declaration itself is covered by whoever seals and signs, not by the rows.
                Ok(unpacked) => assert_ne!(unpacked.manifest, packed.manifest, "byte {at}"),
            }
            assert!(unpack(&packed.bytes[..at], here).is_err(), "cut at {at}");
        }
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes: Vec<u8>) {
            let here = Jurisdiction::new("CH").unwrap();
            prop_assert!(unpack(&bytes, here).is_err());
            prop_assert!(unpack(&[MAGIC.as_slice(), &bytes].concat(), here).is_err());
        }
    }
}
