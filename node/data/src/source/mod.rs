//! Reading what a steward hands in: JSONL or text files, each validated line by line
//! (specs/dataset.md §4).
//!
//! Nothing is guessed: the format of a file is that of its first row, everything else in it is a
//! complaint, and files of different formats are mixed only if the steward says so. Complaints name
//! file, line and key, and never quote a value.

mod json;
mod line;
mod report;
mod walk;

use std::fs::File;
use std::io::{self, BufReader, Read};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use crate::row::{Content, ROW_BYTES_MAX, Row};

pub use line::LINE_BYTES_MAX;
pub use report::{COMPLAINTS_KEPT, Complaint, FileReport, Format, Report};

use line::{Line, Lines};
use walk::{Found, Shape};

/// How to read.
#[derive(Default)]
pub struct ReadOptions<'a> {
    /// Whether files of different formats may be in one dataset.
    pub mixed: bool,
    /// Told how many bytes have been read, and of how many.
    pub progress: Option<&'a dyn Fn(u64, u64)>,
    /// Stops reading when it becomes true.
    pub cancel: Option<&'a AtomicBool>,
}

/// Why a source cannot be read at all. What is wrong inside it is in the [`Report`].
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// The file system says no.
    #[error("cannot read {}", path.display())]
    Io {
        /// Which file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Neither a file nor a directory.
    #[error("{} is neither a file nor a directory", .0.display())]
    NotAFile(PathBuf),
    /// A file whose name does not say what it holds.
    #[error("{}: the name of a data file ends in .jsonl, .ndjson, .txt, .text or .md", .0.display())]
    UnknownKind(PathBuf),
    /// A directory without data.
    #[error("{} holds no file that ends in .jsonl, .ndjson, .txt, .text or .md", .0.display())]
    Nothing(PathBuf),
    /// Too many files or too deep.
    #[error("{} holds more than {} files, or lies deeper than {} directories",
        .0.display(), walk::FILES_MAX, walk::DEPTH_MAX)]
    TooMany(PathBuf),
    /// Stopped.
    #[error("stopped")]
    Cancelled,
}

/// Reads the file or directory at `source` and gives every valid row to `take`.
///
/// Reads to the end whatever it finds, so that a steward sees all there is to mend;
/// [`Report::is_clean`] says whether the rows are a dataset.
///
/// # Errors
/// `E` from `take` or from a [`SourceError`].
pub fn read_source<E: From<SourceError>>(
    source: &Path,
    options: &ReadOptions<'_>,
    mut take: impl FnMut(Row) -> Result<(), E>,
) -> Result<Report, E> {
    let found = walk::walk(source)?;
    let mut report = Report { skipped: found.skipped, ..Report::default() };
    let total = found.files.iter().map(|file| file.bytes).sum();
    let mut reading = Reading { options, total, done: 0 };
    for file in &found.files {
        let opened = open(file)?;
        match file.shape {
            Shape::Lines => lines(file, opened, &mut reading, &mut report, &mut take)?,
            Shape::Text => text(file, opened, &mut reading, &mut report, &mut take)?,
        }
    }
    report.judge_mixture(options.mixed);
    Ok(report)
}

struct Reading<'a> {
    options: &'a ReadOptions<'a>,
    total: u64,
    done: u64,
}

impl Reading<'_> {
    fn advance(&mut self, bytes: u64) -> Result<(), SourceError> {
        self.done = self.done.saturating_add(bytes);
        if let Some(progress) = self.options.progress {
            progress(self.done, self.total.max(self.done));
        }
        match self.options.cancel {
            Some(cancel) if cancel.load(Ordering::Relaxed) => Err(SourceError::Cancelled),
            _ => Ok(()),
        }
    }
}

fn open(file: &Found) -> Result<File, SourceError> {
    let failed = |source| SourceError::Io { path: file.path.clone(), source };
    let opened = File::open(&file.path).map_err(failed)?;
    // It may have been replaced since it was found; a pipe would hold us for ever.
    if opened.metadata().map_err(failed)?.is_file() {
        Ok(opened)
    } else {
        Err(SourceError::NotAFile(file.path.clone()))
    }
}

fn lines<E: From<SourceError>>(
    file: &Found,
    opened: File,
    reading: &mut Reading<'_>,
    report: &mut Report,
    take: &mut impl FnMut(Row) -> Result<(), E>,
) -> Result<(), E> {
    let failed = |source| SourceError::Io { path: file.path.clone(), source };
    let mut lines = Lines::new(BufReader::with_capacity(1 << 16, opened));
    let mut format = None;
    let (mut rows, mut number) = (0_u64, 0_u64);
    while let Some((line, bytes)) = lines.next_line().map_err(failed)? {
        number += 1;
        reading.advance(bytes)?;
        let bytes = match line {
            Line::Whole(bytes) if bytes.iter().all(u8::is_ascii_whitespace) => {
                report.blank_lines += 1;
                continue;
            }
            Line::Whole(bytes) => bytes,
            Line::TooLong => {
                let what = format!("the line has more than {LINE_BYTES_MAX} bytes; split the row");
                report.complain(&file.name, number, what);
                continue;
            }
        };
        match json::parse(bytes) {
            Err(fault) => report.complain(&file.name, number, fault.to_string()),
            Ok(parsed) => {
                for key in &parsed.ignored {
                    report.ignore_key(key);
                }
                let kind = parsed.row.kind();
                let first = *format.get_or_insert(kind);
                if kind == first {
                    take(parsed.row)?;
                    rows += 1;
                } else {
                    let (kind, first) = (kind.as_str(), first.as_str());
                    let what = format!(
                        "a {kind} row in a file that began with {first} rows; keep them in files of their own"
                    );
                    report.complain(&file.name, number, what);
                }
            }
        }
    }
    match format {
        Some(kind) => report.file(&file.name, Format::Lines(kind), rows),
        None if report.complaints_in(&file.name) == 0 => {
            report.complain(&file.name, 1, "the file holds no row".to_owned());
        }
        None => {}
    }
    Ok(())
}

fn text<E: From<SourceError>>(
    file: &Found,
    opened: File,
    reading: &mut Reading<'_>,
    report: &mut Report,
    take: &mut impl FnMut(Row) -> Result<(), E>,
) -> Result<(), E> {
    let failed = |source| SourceError::Io { path: file.path.clone(), source };
    let mut bytes = Vec::new();
    opened.take(ROW_BYTES_MAX as u64 + 1).read_to_end(&mut bytes).map_err(failed)?;
    reading.advance(bytes.len() as u64)?;
    let without_mark = bytes.strip_prefix(line::BYTE_ORDER_MARK).unwrap_or(&bytes);
    let row = match std::str::from_utf8(without_mark) {
        _ if bytes.len() > ROW_BYTES_MAX => {
            Err((1, format!("the file has more than {ROW_BYTES_MAX} bytes; split it")))
        }
        Err(error) => {
            let line = line_of(without_mark, error.valid_up_to());
            Err((line, "not UTF-8".to_owned()))
        }
        Ok(text) => {
            let row = Row { content: Content::Text { text: text.to_owned() }, subject: None };
            match row.check() {
                Ok(()) => Ok(row),
                Err(fault) => {
                    let nul = without_mark.iter().position(|byte| *byte == 0).unwrap_or(0);
                    Err((line_of(without_mark, nul), fault.to_string()))
                }
            }
        }
    };
    match row {
        Ok(row) => {
            take(row)?;
            report.file(&file.name, Format::TextFile, 1);
        }
        Err((line, what)) => report.complain(&file.name, line, what),
    }
    Ok(())
}

/// The number of the line, counted from 1, in which the byte at `at` is.
fn line_of(bytes: &[u8], at: usize) -> u64 {
    let before = bytes.get(..at).unwrap_or(bytes);
    before.iter().filter(|byte| **byte == b'\n').count() as u64 + 1
}

#[cfg(test)]
mod tests;
