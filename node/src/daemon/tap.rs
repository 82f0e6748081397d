//! `debug.tap_dir`: every application frame in clear, one file per peer, plane, stream and
//! direction. For tests that ask where a byte string travels; never for production.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use allmend_protocol::ids::PublicKey;
use anyhow::Context as _;

use crate::net::{Direction, Tap, TapFrame};

/// Files kept open; further streams open and close theirs for each frame.
const OPEN_MAX: usize = 256;

/// Writes frames to files named `<peer>.<plane>.<stream>.<in|out>`.
#[derive(Debug)]
pub(crate) struct FileTap {
    dir: PathBuf,
    files: Mutex<BTreeMap<String, File>>,
}

impl FileTap {
    pub(crate) fn create(dir: &Path) -> anyhow::Result<Arc<FileTap>> {
        crate::config::create_private_dir(dir)
            .with_context(|| format!("debug.tap_dir {} cannot be made", dir.display()))?;
        Ok(Arc::new(FileTap { dir: dir.to_owned(), files: Mutex::default() }))
    }
}

impl Tap for FileTap {
    fn frame(&self, frame: TapFrame<'_>) {
        let peer = frame
            .peer
            .map_or_else(|| "everybody".to_owned(), |key| PublicKey::from_bytes(key).to_string());
        let direction = match frame.direction {
            Direction::In => "in",
            Direction::Out => "out",
        };
        let name = format!("{peer}.{:?}.{}.{direction}", frame.plane, frame.stream);
        let mut files = self.files.lock().unwrap_or_else(PoisonError::into_inner);
        if !files.contains_key(&name) {
            let path = self.dir.join(&name);
            let opened = OpenOptions::new().append(true).create(true).mode(0o600).open(path);
            let Ok(file) = opened else { return };
            if files.len() >= OPEN_MAX {
                files.pop_first();
            }
            files.insert(name.clone(), file);
        }
        if let Some(file) = files.get_mut(&name) {
            // A tap that fails shows in the test that reads it: its control finds nothing.
            let _ = file.write_all(frame.bytes);
        }
    }
}
