//! What was found in a source: for the steward, never for a log.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::row::Kind;

/// How many complaints are kept in words; all are counted.
pub const COMPLAINTS_KEPT: usize = 20;
/// How many files are listed; all are counted.
const FILES_KEPT: usize = 100;
/// How many different keys that nobody reads are listed.
const IGNORED_KEYS_KEPT: usize = 32;
/// How much of a key's name is shown.
const KEY_CHARS_KEPT: usize = 40;

/// How a file holds its rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Format {
    /// JSON lines, each a row of this shape.
    Lines(Kind),
    /// The whole file is one text.
    TextFile,
}

impl Format {
    /// The shape of its rows.
    #[must_use]
    pub const fn kind(self) -> Kind {
        match self {
            Self::Lines(kind) => kind,
            Self::TextFile => Kind::Text,
        }
    }

    /// In words.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Lines(Kind::Chat) => "chat JSONL",
            Self::Lines(Kind::Completion) => "prompt/completion JSONL",
            Self::Lines(Kind::Text) => "text JSONL",
            Self::TextFile => "text file",
        }
    }
}

/// One file that was read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct FileReport {
    /// Its path below the source.
    pub name: String,
    /// How it holds its rows.
    pub format: Format,
    /// How many valid rows.
    pub rows: u64,
}

/// Something that must be mended before the rows are a dataset. Quotes no value.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Complaint {
    /// The file's path below the source.
    pub file: String,
    /// The line, counted from 1.
    pub line: u64,
    /// What is wrong.
    pub what: String,
}

/// What was found in a source.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Report {
    /// The first files, in the order in which they were read.
    pub files: Vec<FileReport>,
    /// How many files held rows.
    pub file_count: u64,
    /// How many files of each format, by its name in words.
    pub formats: BTreeMap<&'static str, u64>,
    /// Valid rows.
    pub rows: u64,
    /// Lines with nothing on them, which are passed over.
    pub blank_lines: u64,
    /// Keys that are not part of a row and were left out, with how often.
    pub ignored_keys: BTreeMap<String, u64>,
    /// Files that were passed over because of what they are, with how many, by reason.
    pub skipped: BTreeMap<&'static str, u64>,
    /// The first complaints.
    pub complaints: Vec<Complaint>,
    /// All complaints.
    pub complaint_count: u64,
}

impl Report {
    /// Whether the rows may become a dataset.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        self.complaint_count == 0 && self.rows > 0
    }

    pub(super) fn complain(&mut self, file: &str, line: u64, what: String) {
        self.complaint_count += 1;
        if self.complaints.len() < COMPLAINTS_KEPT {
            self.complaints.push(Complaint { file: file.to_owned(), line, what });
        }
    }

    pub(super) fn complaints_in(&self, file: &str) -> usize {
        // Beyond those kept, nobody is told apart; one more complaint would not be kept either.
        self.complaints.iter().filter(|complaint| complaint.file == file).count()
    }

    pub(super) fn ignore_key(&mut self, key: &str) {
        let shown: String = key
            .chars()
            .map(|c| if c.is_control() { '?' } else { c })
            .take(KEY_CHARS_KEPT)
            .collect();
        let full = self.ignored_keys.len() >= IGNORED_KEYS_KEPT;
        match self.ignored_keys.get_mut(&shown) {
            Some(times) => *times += 1,
            None if full => {}
            None => {
                self.ignored_keys.insert(shown, 1);
            }
        }
    }

    pub(super) fn file(&mut self, name: &str, format: Format, rows: u64) {
        self.file_count += 1;
        self.rows += rows;
        *self.formats.entry(format.as_str()).or_default() += 1;
        if self.files.len() < FILES_KEPT {
            self.files.push(FileReport { name: name.to_owned(), format, rows });
        }
    }

    /// Complains about files of different formats unless they may be mixed.
    pub(super) fn judge_mixture(&mut self, mixed: bool) {
        if mixed || self.formats.len() < 2 {
            return;
        }
        let formats: Vec<String> =
            self.formats.iter().map(|(format, files)| format!("{files} × {format}")).collect();
        let file = self.files.last().map_or_else(String::new, |file| file.name.clone());
        let what = format!(
            "files of different formats ({}); add them as datasets of their own, or say that they may be mixed",
            formats.join(", ")
        );
        self.complain(&file, 1, what);
    }
}
