//! What is written beside a model, and the stamp that says it was verified.

use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use allmend_protocol::ids::Digest;
use allmend_protocol::time::Timestamp;
use serde::{Deserialize, Serialize};

use super::error::ModelError;
use crate::config::write_private;

/// A meta file has a few hundred bytes; a larger one is none of ours.
const META_BYTES_MAX: u64 = 64 * 1024;

/// What a model's header says; filled in by the engine.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Header {
    /// Model family, such as `llama`.
    pub architecture: String,
    /// Type of most weights, such as `Q4_1`.
    pub quantisation: String,
    /// Number of weights.
    pub parameters: u64,
    /// Longest sequence, prompt and answer together, in tokens.
    pub context_tokens: u32,
    /// Whether it has a chat template.
    pub chat: bool,
    /// Licence according to the file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub licence: Option<String>,
    /// Memory for weights and working buffers, in bytes.
    pub weights_bytes: u64,
    /// Memory that one token of context adds, in bytes.
    pub cache_bytes_per_token: u64,
}

/// A model's `meta.json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Meta {
    /// What people call it.
    pub name: String,
    /// SHA-256 of the weights: its id.
    pub digest: Digest,
    /// Size of the weights.
    pub bytes: u64,
    /// Where it came from, such that pulling it again gives the same.
    pub source: String,
    /// Its licence, if anybody said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub licence: Option<String>,
    /// When it was pulled.
    pub pulled_at: Timestamp,
    /// What its header says.
    pub header: Header,
}

/// Identifies the very file that was hashed; any write to it changes this.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Stamp {
    bytes: u64,
    device: u64,
    inode: u64,
    modified_s: i64,
    modified_ns: i64,
    changed_s: i64,
    changed_ns: i64,
}

impl Stamp {
    /// The stamp of the file at `path`, following links.
    pub(super) fn of(path: &Path) -> Result<Self, ModelError> {
        let meta = fs::metadata(path).map_err(ModelError::io("read", path))?;
        Ok(Self {
            bytes: meta.len(),
            device: meta.dev(),
            inode: meta.ino(),
            modified_s: meta.mtime(),
            modified_ns: meta.mtime_nsec(),
            changed_s: meta.ctime(),
            changed_ns: meta.ctime_nsec(),
        })
    }

    /// Whether nobody has written to the file between the two. A further link to it, such as another
    /// node's, changes a stamp but no content.
    pub(super) fn is_unwritten_since(&self, before: &Stamp) -> bool {
        let unlinked =
            Stamp { changed_s: before.changed_s, changed_ns: before.changed_ns, ..*self };
        unlinked == *before
    }
}

/// Reads a small JSON file; the error says why in words.
pub(super) fn read_json<T: for<'de> Deserialize<'de>>(path: &Path) -> Result<T, String> {
    let mut bytes = Vec::new();
    File::open(path)
        .and_then(|file| file.take(META_BYTES_MAX + 1).read_to_end(&mut bytes))
        .map_err(|error| error.to_string())?;
    if bytes.len() as u64 > META_BYTES_MAX {
        return Err("the file is too large".to_owned());
    }
    serde_json::from_slice(&bytes).map_err(|error| error.to_string())
}

/// Writes a small JSON file, whole or not at all.
pub(super) fn write_json<T: Serialize>(path: &Path, value: &T) -> Result<(), ModelError> {
    let written = serde_json::to_vec_pretty(value)
        .map_err(std::io::Error::other)
        .and_then(|bytes| write_private(path, &bytes));
    written.map_err(ModelError::io("write", path))
}

/// Longest name of a model, in bytes.
const NAME_BYTES_MAX: usize = 64;

/// Why `name` cannot be a model's name; `None` if it can.
pub(super) fn name_problem(name: &str) -> Option<&'static str> {
    let fits = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "._-".contains(c);
    if name.is_empty() || name.len() > NAME_BYTES_MAX {
        Some("a name has 1 to 64 characters")
    } else if !name.chars().all(fits) || name.starts_with(['.', '-']) {
        Some(
            "a name has lowercase letters, digits, '.', '_' and '-' and starts with a letter or digit",
        )
    } else {
        None
    }
}

/// A name made from a file's name: `SmolLM2-135M-Instruct.Q4_1.gguf` → `smollm2-135m-instruct.q4_1`.
pub(super) fn name_from_file(file: &str) -> String {
    let stem = file.rsplit('/').next().unwrap_or(file);
    let stem = stem.strip_suffix(".gguf").or_else(|| stem.strip_suffix(".GGUF")).unwrap_or(stem);
    let name: String = stem
        .to_ascii_lowercase()
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() || "._-".contains(c) { c } else { '-' })
        .take(NAME_BYTES_MAX)
        .collect();
    let name = name.trim_start_matches(['.', '-']);
    if name.is_empty() { "model".to_owned() } else { name.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn names_come_from_files() {
        assert_eq!(
            name_from_file("sub/SmolLM2-135M-Instruct.Q4_1.gguf"),
            "smollm2-135m-instruct.q4_1"
        );
        assert_eq!(name_from_file(".gguf"), "model");
        assert!(name_problem("Apertus").is_some() && name_problem("apertus-8b").is_none());
    }

    #[test]
    fn a_stamp_changes_with_the_content() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("model.gguf");
        fs::write(&path, b"GGUF one").unwrap();
        let before = Stamp::of(&path).unwrap();
        assert_eq!(Stamp::of(&path).unwrap(), before);
        fs::write(&path, b"GGUF three").unwrap();
        assert_ne!(Stamp::of(&path).unwrap(), before);
    }

    proptest! {
        #[test]
        fn any_file_gives_a_valid_name(file: String) {
            prop_assert_eq!(name_problem(&name_from_file(&file)), None);
        }

        #[test]
        fn no_meta_file_panics(bytes: Vec<u8>) {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("meta.json");
            fs::write(&path, &bytes).unwrap();
            let _ = read_json::<Meta>(&path);
        }
    }

    #[test]
    fn a_further_link_is_no_change_of_content() {
        let dir = tempfile::tempdir().unwrap();
        let (path, link) = (dir.path().join("model"), dir.path().join("link"));
        fs::write(&path, b"weights").unwrap();
        let before = Stamp::of(&path).unwrap();
        fs::hard_link(&path, &link).unwrap();
        assert!(Stamp::of(&path).unwrap().is_unwritten_since(&before));
        fs::write(&link, b"heavier weights").unwrap();
        assert!(!Stamp::of(&path).unwrap().is_unwritten_since(&before));
    }
}
