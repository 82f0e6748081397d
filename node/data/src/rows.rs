//! The one file that holds a version's rows (specs/dataset.md §2): written once, read front to end.
//!
//! A worker in the sealed room gets nothing but this file as a read-only descriptor. [`Rows`] reads
//! it from any `Read` and needs nothing else of this crate.

use std::fmt;
use std::io::{self, Read, Write};

use allmend_protocol::encoding;

use crate::row::{ROW_BYTES_MAX, Row, RowFault};
use crate::version::{SUBJECTS_MAX, Salt, Tally, VersionHeader};

/// The first bytes of the file.
pub(crate) const MAGIC: &[u8; 16] = b"allmend-rows-v1\n";
/// A header's encoding has some 130 bytes.
const HEADER_BYTES_MAX: usize = 1024;

/// Why rows cannot be written or read. Never holds what a row holds.
#[derive(Debug, thiserror::Error)]
pub enum RowsError {
    /// The disk or the descriptor says no.
    #[error("rows cannot be read or written")]
    Io(#[from] io::Error),
    /// It does not begin as a file of rows does.
    #[error("this is no file of rows")]
    NotRows,
    /// It ends before its end mark.
    #[error("the file of rows ends after row {0}, before its end mark")]
    Truncated(u64),
    /// A row that may not be in a dataset.
    #[error("row {row}: {fault}")]
    Row {
        /// Which, counted from 1.
        row: u64,
        /// What is wrong.
        fault: RowFault,
    },
    /// The end says something else than the rows.
    #[error("the end of the file does not fit its rows: it was changed or damaged")]
    Mismatch,
    /// Bytes after the end mark.
    #[error("the file goes on after its end mark")]
    Trailing,
    /// More distinct subjects than [`SUBJECTS_MAX`].
    #[error("more than {SUBJECTS_MAX} distinct subjects")]
    TooManySubjects,
}

/// Writes a file of rows.
pub struct RowsWriter<W> {
    out: W,
    tally: Tally,
}

impl<W: Write> RowsWriter<W> {
    /// Begins the file of a version with this salt.
    ///
    /// # Errors
    /// [`RowsError::Io`].
    pub fn new(mut out: W, salt: Salt) -> Result<Self, RowsError> {
        out.write_all(MAGIC)?;
        out.write_all(salt.as_bytes())?;
        Ok(Self { out, tally: Tally::new(salt) })
    }

    /// Appends a row.
    ///
    /// # Errors
    /// [`RowsError::Row`] if it may not be in a dataset, [`RowsError::TooManySubjects`],
    /// [`RowsError::Io`].
    pub fn push(&mut self, row: &Row) -> Result<(), RowsError> {
        let number = self.tally.rows() + 1;
        let bytes = row.encode().map_err(|fault| RowsError::Row { row: number, fault })?;
        self.tally.add(row, &bytes).map_err(|_| RowsError::TooManySubjects)?;
        write_block(&mut self.out, &bytes)
    }

    /// Writes the end mark and returns what the version's digest is taken over. Does not flush.
    ///
    /// # Errors
    /// [`RowsError::Io`].
    pub fn finish(mut self) -> Result<(W, VersionHeader), RowsError> {
        let header = self.tally.header();
        self.out.write_all(&0_u32.to_be_bytes())?;
        write_block(&mut self.out, &encoding::encode(&header))?;
        Ok((self.out, header))
    }
}

fn write_block<W: Write>(out: &mut W, bytes: &[u8]) -> Result<(), RowsError> {
    // At most `ROW_BYTES_MAX`, which fits.
    let length = u32::try_from(bytes.len()).map_err(io::Error::other)?;
    out.write_all(&length.to_be_bytes())?;
    out.write_all(bytes)?;
    Ok(())
}

/// Reads a file of rows, one after the other, and checks at its end that they are all there.
///
/// Ends after the first error. Whoever trains on the rows must read to the end and compare
/// [`Rows::header`]'s digest with the version that was asked for.
///
/// # Units
/// Holds one row and 28 bytes for each distinct subject, whatever the file says.
pub struct Rows<R> {
    input: R,
    tally: Tally,
    block: Vec<u8>,
    header: Option<VersionHeader>,
    over: bool,
}

impl<R: Read> Rows<R> {
    /// Begins to read. `input` should be buffered.
    ///
    /// # Errors
    /// [`RowsError::NotRows`], [`RowsError::Io`].
    pub fn open(mut input: R) -> Result<Self, RowsError> {
        let (mut magic, mut salt) = ([0; MAGIC.len()], [0; 32]);
        let mut fill = |into: &mut [u8]| match input.read_exact(into) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Err(RowsError::NotRows),
            other => other.map_err(RowsError::Io),
        };
        fill(&mut magic)?;
        if magic != *MAGIC {
            return Err(RowsError::NotRows);
        }
        fill(&mut salt)?;
        let tally = Tally::new(Salt::from_bytes(salt));
        Ok(Self { input, tally, block: Vec::new(), header: None, over: false })
    }

    /// The version's salt, for [`Row::subject_key`].
    #[must_use]
    pub fn salt(&self) -> &Salt {
        self.tally.salt()
    }

    /// What the version's digest is taken over, once every row has been read and they all fit it.
    #[must_use]
    pub const fn header(&self) -> Option<&VersionHeader> {
        self.header.as_ref()
    }

    fn step(&mut self) -> Result<Option<Row>, RowsError> {
        let length = self.length()?;
        if length == 0 {
            return self.end().map(|()| None);
        }
        let number = self.tally.rows() + 1;
        let at = |fault| RowsError::Row { row: number, fault };
        if length > ROW_BYTES_MAX {
            return Err(at(RowFault::TooLong));
        }
        self.block(length)?;
        let row = Row::decode(&self.block).map_err(at)?;
        self.tally.add(&row, &self.block).map_err(|_| RowsError::TooManySubjects)?;
        Ok(Some(row))
    }

    fn end(&mut self) -> Result<(), RowsError> {
        let length = self.length()?;
        if length > HEADER_BYTES_MAX {
            return Err(RowsError::Mismatch);
        }
        self.block(length)?;
        let header: VersionHeader =
            encoding::decode(&self.block, HEADER_BYTES_MAX).map_err(|_| RowsError::Mismatch)?;
        if header != self.tally.header() {
            return Err(RowsError::Mismatch);
        }
        if self.input.by_ref().take(1).read_to_end(&mut self.block)? > 0 {
            return Err(RowsError::Trailing);
        }
        self.header = Some(header);
        Ok(())
    }

    fn length(&mut self) -> Result<usize, RowsError> {
        self.block(4)?;
        let length = self.block.iter().fold(0_u32, |sum, byte| sum << 8 | u32::from(*byte));
        usize::try_from(length).map_err(|_| RowsError::Mismatch)
    }

    /// Reads `length` bytes into the block, which grows with what is really there.
    fn block(&mut self, length: usize) -> Result<(), RowsError> {
        self.block.clear();
        let read = self.input.by_ref().take(length as u64).read_to_end(&mut self.block)?;
        if read == length { Ok(()) } else { Err(RowsError::Truncated(self.tally.rows())) }
    }
}

impl<R: Read> Iterator for Rows<R> {
    type Item = Result<Row, RowsError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.over {
            return None;
        }
        let step = self.step().transpose();
        self.over = !matches!(step, Some(Ok(_)));
        step
    }
}

impl<R> fmt::Debug for Rows<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Rows({} read)", self.tally.rows())
    }
}

impl<W> fmt::Debug for RowsWriter<W> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RowsWriter({} written)", self.tally.rows())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::row::tests::{any_row, of, text};
    use proptest::prelude::*;

    fn written(salt: u8, rows: &[Row]) -> (Vec<u8>, VersionHeader) {
        let mut writer = RowsWriter::new(Vec::new(), Salt::from_bytes([salt; 32])).unwrap();
        for row in rows {
            writer.push(row).unwrap();
        }
        writer.finish().unwrap()
    }

    fn read(bytes: &[u8]) -> Result<(Vec<Row>, VersionHeader), RowsError> {
        let mut rows = Rows::open(bytes)?;
        let all = rows.by_ref().collect::<Result<Vec<Row>, RowsError>>()?;
        Ok((all, *rows.header().expect("read to the end")))
    }

    #[test]
    fn order_salt_and_every_row_decide_the_digest() {
        let digest = |salt, rows: &[Row]| written(salt, rows).1.digest();
        let (a, b) = (of("anna", "a"), of("anna", "b"));
        let one = digest(1, &[a.clone(), b.clone()]);
        assert_eq!(one, digest(1, &[a.clone(), b.clone()]));
        assert_ne!(one, digest(1, &[b.clone(), a.clone()]));
        assert_ne!(one, digest(2, &[a.clone(), b.clone()]));
        assert_ne!(one, digest(1, std::slice::from_ref(&a)));
        assert_ne!(one, digest(1, &[a, of("berta", "b")]));
        let header = written(1, &[b, text("c")]).1;
        assert_eq!((header.counts.subjects, header.counts.unattributed), (1, 1));
    }

    #[test]
    fn hostile_files_are_refused() {
        let (good, _) = written(1, &[text("one"), text("two")]);
        let spliced = |at: usize, bytes: &[u8]| {
            let mut changed = good.clone();
            changed[at..at + bytes.len()].copy_from_slice(bytes);
            read(&changed)
        };
        assert!(matches!(spliced(0, b"X"), Err(RowsError::NotRows)));
        assert!(matches!(read(&good[..20]), Err(RowsError::NotRows)));
        // Another salt: every leaf differs.
        assert!(matches!(spliced(16, &[9]), Err(RowsError::Mismatch)));
        // A length of 4 GiB costs nothing.
        assert!(matches!(
            spliced(48, &[0xff; 4]),
            Err(RowsError::Row { row: 1, fault: RowFault::TooLong })
        ));
        // The first row left out, or the second twice: the end does not fit.
        let row = 4 + text("one").encode().unwrap().len();
        let mut fewer = good.clone();
        fewer.drain(48..48 + row);
        assert!(matches!(read(&fewer), Err(RowsError::Mismatch)));
        let mut more = good.clone();
        more.push(0);
        assert!(matches!(read(&more), Err(RowsError::Trailing)));
        for end in 48..good.len() {
            assert!(matches!(read(&good[..end]), Err(RowsError::Truncated(_))), "{end}");
        }
        let zeroed = [&good[..16], &vec![0; good.len() - 16]].concat();
        assert!(read(&zeroed).is_err(), "an overwritten file reads as nothing");
    }

    #[test]
    fn it_ends_after_an_error() {
        let (good, _) = written(1, &[text("one")]);
        let mut rows = Rows::open(&good[..good.len() - 1]).unwrap();
        assert!(rows.next().unwrap().is_ok());
        assert!(rows.next().unwrap().is_err());
        assert!(rows.next().is_none() && rows.header().is_none());
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(rows in prop::collection::vec(any_row(), 0..8), salt: u8) {
            let (bytes, header) = written(salt, &rows);
            let (again, read_header) = read(&bytes).unwrap();
            prop_assert_eq!(again, rows);
            prop_assert_eq!(read_header, header);
        }

        #[test]
        fn any_changed_byte_is_noticed(
            rows in prop::collection::vec(any_row(), 1..4), at: prop::sample::Index, by in 1_u8..,
        ) {
            let (mut bytes, _) = written(3, &rows);
            let at = at.index(bytes.len());
            bytes[at] ^= by;
            prop_assert!(read(&bytes).is_err());
        }

        #[test]
        fn no_bytes_panic(tail: Vec<u8>) {
            let bytes = [MAGIC.as_slice(), &[7; 32], &tail].concat();
            let _ = read(&bytes);
        }
    }
}
