//! An append-only file of checksummed records, durable before they count (specs/privacy.md §5).
//!
//! For records of which the last must not be lost, as of a privacy budget: a reservation is in the
//! file, and the file on the platter, before the run begins. What a crash left unfinished at the end
//! is cut off. Anything else that is wrong is damage, and damage is never read as a shorter file: a
//! record too few would be a budget too large.

use std::fs::File;
use std::io::{self, BufReader, Read, Seek, SeekFrom, Write};
use std::path::Path;

/// The most bytes of a record.
pub const RECORD_BYTES_MAX: usize = 32 << 10;
/// The most bytes of a file; some hundred thousand runs.
pub const FILE_BYTES_MAX: u64 = 1 << 30;

const MAGIC: &[u8; 16] = b"ALLMENDRECORDS1\n";
/// Length and its checksum.
const HEAD: usize = 8;
/// The record's checksum, and the end.
const TAIL: usize = 5;
/// No zero: blocks that were never written read as zeros.
const END: u8 = 0xa5;

/// Why a file of records cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum RecordFileError {
    /// The disk.
    #[error("the file of records cannot be read or written: {0}")]
    Io(#[from] io::Error),
    /// Bytes that a crash cannot have left.
    #[error(
        "the file of records is damaged at byte {at}, behind {records} good records: restore it \
         from a backup that is not older than the last run"
    )]
    Damaged {
        /// Where.
        at: u64,
        /// Records before it.
        records: u64,
    },
    /// A record that means nothing to its reader.
    #[error("record {record} does not follow from those before it: {why}")]
    Refused {
        /// Which one, from 0.
        record: u64,
        /// What its reader says.
        why: String,
    },
    /// A write failed before; what is in the file is not known.
    #[error("the file of records failed before: restart the node")]
    Failed,
    /// The file has its largest size.
    #[error("the file of records is full")]
    Full,
    /// A record longer than any.
    #[error("a record of {0} bytes is longer than any")]
    TooLong(usize),
}

/// An open file of records.
#[derive(Debug)]
pub struct RecordFile {
    file: File,
    len: u64,
    records: u64,
    failed: bool,
}

/// What was found in a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Found {
    /// Bytes up to the end of the last whole record.
    pub len: u64,
    /// Whole records.
    pub records: u64,
    /// Whether a record behind them was begun.
    pub torn: bool,
}

impl RecordFile {
    /// Opens the file at `path`, or makes it, readable by its owner only; gives each record in order
    /// to `replay`; cuts off what a crash left; and makes what is there durable.
    ///
    /// One process at a time: the node's directory is locked.
    ///
    /// # Errors
    /// [`RecordFileError`]; a damaged file is left as it is.
    pub fn open(
        path: &Path,
        replay: impl FnMut(&[u8]) -> Result<(), String>,
    ) -> Result<RecordFile, RecordFileError> {
        let mut options = File::options();
        options.read(true).write(true).create(true).truncate(false);
        #[cfg(unix)]
        std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
        let mut file = options.open(path)?;
        let found = recover(BufReader::new(&file), replay)?;
        if found.torn {
            file.set_len(found.len)?;
        }
        if found.len == 0 {
            file.rewind()?;
            file.write_all(MAGIC)?;
        }
        file.sync_all()?;
        // The file's name is durable when its directory is.
        if let Some(parent) = path.parent().filter(|parent| !parent.as_os_str().is_empty()) {
            File::open(parent)?.sync_all()?;
        }
        let len = found.len.max(MAGIC.len() as u64);
        Ok(RecordFile { file, len, records: found.records, failed: false })
    }

    /// Appends a record. When this returns, it is durable.
    ///
    /// # Errors
    /// [`RecordFileError`]. After a failed write nothing more is appended: whether the record will be
    /// there after a restart is not known.
    pub fn append(&mut self, record: &[u8]) -> Result<(), RecordFileError> {
        if self.failed {
            return Err(RecordFileError::Failed);
        }
        let frame = frame(self.records, record)?;
        if self.len + frame.len() as u64 > FILE_BYTES_MAX {
            return Err(RecordFileError::Full);
        }
        self.failed = true;
        self.file.seek(SeekFrom::Start(self.len))?;
        self.file.write_all(&frame)?;
        self.file.sync_data()?;
        self.failed = false;
        self.len += frame.len() as u64;
        self.records += 1;
        Ok(())
    }

    /// How many records there are.
    pub fn records(&self) -> u64 {
        self.records
    }
}

/// The bytes of the record with this number.
///
/// # Errors
/// [`RecordFileError::TooLong`].
pub fn frame(number: u64, record: &[u8]) -> Result<Vec<u8>, RecordFileError> {
    let len = u32::try_from(record.len()).ok().filter(|_| record.len() <= RECORD_BYTES_MAX);
    let len = len.ok_or(RecordFileError::TooLong(record.len()))?.to_le_bytes();
    let mut frame = Vec::with_capacity(HEAD + record.len() + TAIL);
    frame.extend_from_slice(&len);
    frame.extend_from_slice(&checksum(number, &len).to_le_bytes());
    frame.extend_from_slice(record);
    frame.extend_from_slice(&checksum(number, record).to_le_bytes());
    frame.push(END);
    Ok(frame)
}

/// Reads a whole file of records from its beginning, giving each to `replay`. Memory: one record.
///
/// # Errors
/// [`RecordFileError`] for anything that a crash during an append cannot have left.
pub fn recover(
    mut source: impl Read,
    mut replay: impl FnMut(&[u8]) -> Result<(), String>,
) -> Result<Found, RecordFileError> {
    let mut found = Found { len: 0, records: 0, torn: false };
    let magic = up_to(&mut source, MAGIC.len())?;
    if magic != MAGIC {
        // A crash while it was made: nothing was ever appended.
        found.torn = !magic.is_empty();
        let written = magic.iter().rposition(|&byte| byte != 0).map_or(0, |last| last + 1);
        let begun = magic.get(..written).is_some_and(|written| MAGIC.starts_with(written));
        return if begun && only_zeros(&mut source)? { Ok(found) } else { Err(found.damaged()) };
    }
    found.len = MAGIC.len() as u64;
    loop {
        let head = up_to(&mut source, HEAD)?;
        let Ok([a, b, c, d, e, f, g, h]) = <[u8; HEAD]>::try_from(head.as_slice()) else {
            found.torn = !head.is_empty();
            return Ok(found);
        };
        let (len, sum) = ([a, b, c, d], u32::from_le_bytes([e, f, g, h]));
        let size = u32::from_le_bytes(len) as usize;
        if checksum(found.records, &len) != sum || size > RECORD_BYTES_MAX {
            // Zeros may stand for the end of a head that was not written any more.
            let zeros = head.ends_with(&[0]) && only_zeros(&mut source)?;
            found.torn = true;
            return if zeros { Ok(found) } else { Err(found.damaged()) };
        }
        let mut record = up_to(&mut source, size + TAIL)?;
        if record.len() < size + TAIL {
            found.torn = true;
            return Ok(found);
        }
        let tail = record.split_off(size);
        let good = tail[..4] == checksum(found.records, &record).to_le_bytes();
        if !good || tail[4] != END {
            found.torn = true;
            let zeros = tail[4] == 0 && only_zeros(&mut source)?;
            return if zeros { Ok(found) } else { Err(found.damaged()) };
        }
        replay(&record).map_err(|why| RecordFileError::Refused { record: found.records, why })?;
        found.len += (HEAD + size + TAIL) as u64;
        found.records += 1;
        if found.len > FILE_BYTES_MAX {
            return Err(RecordFileError::Full);
        }
    }
}

impl Found {
    fn damaged(&self) -> RecordFileError {
        RecordFileError::Damaged { at: self.len, records: self.records }
    }
}

/// CRC-32C of the record's number and its bytes, so that a record at another place is none.
fn checksum(number: u64, bytes: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&number.to_le_bytes()), bytes)
}

fn up_to(source: &mut impl Read, len: usize) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    source.take(len as u64).read_to_end(&mut bytes)?;
    Ok(bytes)
}

fn only_zeros(source: &mut impl Read) -> io::Result<bool> {
    let mut block = [0; 4_096];
    loop {
        match source.read(&mut block)? {
            0 => return Ok(true),
            read if block[..read].iter().all(|&byte| byte == 0) => {}
            _ => return Ok(false),
        }
    }
}
