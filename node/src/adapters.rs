//! Adapters that this node serves, one directory each under their ids (specs/adapter.md): what the output
//! gate released here, or what a member brought. Recalled ones are remembered and never taken again.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};

use allmend_protocol::advert::ADVERT_LIST_MAX;
use allmend_protocol::ids::{Digest, MessageId, PublicKey};
use serde::{Deserialize, Serialize};

use crate::config::write_private;

/// What is known of an adapter besides its files.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct About {
    /// The model that it was trained on.
    pub model: Digest,
    /// The report under which it was released, where this node knows it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub report: Option<MessageId>,
    /// Who may use it; empty: whoever may use this node.
    #[serde(default)]
    pub users: Vec<PublicKey>,
    /// Stewards of what it was trained on, where this node knows them.
    #[serde(default)]
    pub stewards: Vec<PublicKey>,
}

/// The names of an adapter's files, as PEFT has them, and its card.
pub const FILES: [&str; 3] = ["adapter_config.json", "adapter_model.safetensors", "README.md"];
const ABOUT: &str = "about.json";
const RECALLED: &str = "recalled";

/// The adapters directory.
#[derive(Clone, Debug)]
pub struct AdapterStore {
    dir: PathBuf,
}

impl AdapterStore {
    /// The store in `dir`, made when something is kept.
    pub fn new(dir: PathBuf) -> AdapterStore {
        AdapterStore { dir }
    }

    /// Keeps an adapter; durable, and never seen in parts. Doing it twice is harmless.
    ///
    /// # Errors
    /// `PermissionDenied` for one that was recalled; those of the file system.
    pub fn put(&self, id: Digest, about: &About, files: &[(&str, &[u8])]) -> io::Result<()> {
        if self.is_recalled(id) {
            let why = "it was recalled by its steward";
            return Err(io::Error::new(io::ErrorKind::PermissionDenied, why));
        }
        let at = self.path(id);
        if at.is_dir() {
            return Ok(());
        }
        create_private_dir(&self.dir)?;
        let making = tempfile::Builder::new().prefix(".new-").tempdir_in(&self.dir)?;
        for (name, bytes) in files {
            write_private(&making.path().join(name), bytes)?;
        }
        write_private(&making.path().join(ABOUT), &serde_json::to_vec_pretty(about)?)?;
        std::fs::rename(making.keep(), at)?;
        std::fs::File::open(&self.dir)?.sync_all()
    }

    /// All adapters, with what is known of them; a directory that is none is left out.
    pub fn list(&self) -> BTreeMap<Digest, About> {
        let entries = std::fs::read_dir(&self.dir).into_iter().flatten().flatten();
        entries
            .filter_map(|entry| {
                let id: Digest = entry.file_name().to_str()?.parse().ok()?;
                Some((id, self.about(id)?))
            })
            .take(ADVERT_LIST_MAX)
            .collect()
    }

    /// What is known of one.
    pub fn about(&self, id: Digest) -> Option<About> {
        serde_json::from_slice(&std::fs::read(self.path(id).join(ABOUT)).ok()?).ok()
    }

    /// Where its files are.
    pub fn path(&self, id: Digest) -> PathBuf {
        self.dir.join(id.to_string())
    }

    /// Deletes one; says whether it was there.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn remove(&self, id: Digest) -> io::Result<bool> {
        match std::fs::remove_dir_all(self.path(id)) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Deletes one for good: remembered before anything is deleted. Says whether it was there.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn recall(&self, id: Digest) -> io::Result<bool> {
        create_private_dir(&self.dir)?;
        let mut recalled = self.recalled();
        if recalled.insert(id) {
            let lines: String = recalled.iter().map(|id| format!("{id}\n")).collect();
            write_private(&self.dir.join(RECALLED), lines.as_bytes())?;
        }
        self.remove(id)
    }

    /// Whether one was recalled.
    pub fn is_recalled(&self, id: Digest) -> bool {
        self.recalled().contains(&id)
    }

    fn recalled(&self) -> BTreeSet<Digest> {
        let text = std::fs::read_to_string(self.dir.join(RECALLED)).unwrap_or_default();
        text.lines().filter_map(|line| line.parse().ok()).collect()
    }
}

fn create_private_dir(path: &Path) -> io::Result<()> {
    crate::config::create_private_dir(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_recalled_never_comes_back() {
        let dir = tempfile::tempdir().unwrap();
        let store = AdapterStore::new(dir.path().join("adapters"));
        let id = Digest::of(b"adapter");
        let about =
            About { model: Digest::of(b"m"), report: None, users: vec![], stewards: vec![] };
        assert!(store.list().is_empty());
        store.put(id, &about, &[("README.md", b"card")]).unwrap();
        store.put(id, &about, &[("README.md", b"card")]).unwrap();
        assert_eq!(store.list(), BTreeMap::from([(id, about.clone())]));
        assert!(store.recall(id).unwrap());
        assert!(!store.recall(id).unwrap());
        assert!(store.list().is_empty() && store.is_recalled(id));
        assert!(store.put(id, &about, &[]).is_err());
    }
}
