//! Which files a source consists of, in an order that every machine agrees on.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use super::SourceError;

/// The most files of one source: their names are held in memory.
pub(super) const FILES_MAX: usize = 1_000_000;
/// How deep directories may lie.
pub(super) const DEPTH_MAX: usize = 16;

/// How a file is to be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Shape {
    Lines,
    Text,
}

pub(super) struct Found {
    pub(super) path: PathBuf,
    /// The path below the source, for people.
    pub(super) name: String,
    pub(super) bytes: u64,
    pub(super) shape: Shape,
}

pub(super) struct Walk {
    pub(super) files: Vec<Found>,
    pub(super) skipped: BTreeMap<&'static str, u64>,
}

/// Lists the data files at `source`: itself, or all below it, sorted by the bytes of their paths.
///
/// Links are not followed below `source`: what a dataset holds must not depend on what somebody
/// puts elsewhere.
pub(super) fn walk(source: &Path) -> Result<Walk, SourceError> {
    let meta = fs::metadata(source).map_err(failed(source))?;
    let mut walk = Walk { files: Vec::new(), skipped: BTreeMap::new() };
    if meta.is_file() {
        let shape = shape(source).ok_or_else(|| SourceError::UnknownKind(source.to_owned()))?;
        let name = source.file_name().unwrap_or_default().to_string_lossy().into_owned();
        walk.files.push(Found { path: source.to_owned(), name, bytes: meta.len(), shape });
        return Ok(walk);
    }
    if !meta.is_dir() {
        return Err(SourceError::NotAFile(source.to_owned()));
    }
    walk.directory(source, source, 0)?;
    if walk.files.is_empty() {
        return Err(SourceError::Nothing(source.to_owned()));
    }
    walk.files.sort_by(|a, b| a.path.as_os_str().cmp(b.path.as_os_str()));
    Ok(walk)
}

impl Walk {
    fn directory(&mut self, root: &Path, dir: &Path, depth: usize) -> Result<(), SourceError> {
        if depth > DEPTH_MAX {
            return Err(SourceError::TooMany(root.to_owned()));
        }
        for entry in fs::read_dir(dir).map_err(failed(dir))? {
            let path = entry.map_err(failed(dir))?.path();
            let meta = fs::symlink_metadata(&path).map_err(failed(&path))?;
            let hidden = path.file_name().is_some_and(|name| name.as_encoded_bytes()[0] == b'.');
            if hidden {
                self.skip("hidden");
            } else if meta.is_symlink() {
                self.skip("link");
            } else if meta.is_dir() {
                self.directory(root, &path, depth + 1)?;
            } else if !meta.is_file() {
                self.skip("no regular file");
            } else if let Some(shape) = shape(&path) {
                if self.files.len() == FILES_MAX {
                    return Err(SourceError::TooMany(root.to_owned()));
                }
                let name = path.strip_prefix(root).unwrap_or(&path).to_string_lossy().into_owned();
                self.files.push(Found { path, name, bytes: meta.len(), shape });
            } else {
                self.skip("not .jsonl, .ndjson, .txt, .text or .md");
            }
        }
        Ok(())
    }

    fn skip(&mut self, why: &'static str) {
        *self.skipped.entry(why).or_default() += 1;
    }
}

fn shape(path: &Path) -> Option<Shape> {
    let extension = path.extension()?.to_str()?.to_ascii_lowercase();
    match extension.as_str() {
        "jsonl" | "ndjson" => Some(Shape::Lines),
        "txt" | "text" | "md" => Some(Shape::Text),
        _ => None,
    }
}

fn failed(path: &Path) -> impl FnOnce(std::io::Error) -> SourceError + '_ {
    move |source| SourceError::Io { path: path.to_owned(), source }
}
