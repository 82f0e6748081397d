//! Keeping a model in place while it is used.

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::SystemTime;

use allmend_protocol::ids::Digest;

use super::error::ModelError;
use super::pull::{Job, Watch};
use super::store::{Model, Store, USE_FILE, open_lock};

/// A verified model that `rm` and eviction leave alone until this is dropped.
///
/// The kernel drops it with the process, however that ends.
#[derive(Debug)]
pub struct Pin {
    model: Model,
    _lock: File,
}

impl Pin {
    /// The model.
    #[must_use]
    pub fn model(&self) -> &Model {
        &self.model
    }

    /// Its weights.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.model.path
    }
}

impl Store {
    /// Verifies a model and keeps it in place; counts as a use of it.
    ///
    /// Blocks while the weights are hashed, which happens only if the file changed since last time.
    ///
    /// # Errors
    /// [`ModelError::NotFound`], [`ModelError::Damaged`], [`ModelError::Io`].
    pub fn pin(&self, digest: &Digest, watch: &dyn Watch) -> Result<Pin, ModelError> {
        let gone = || ModelError::NotFound(digest.to_string());
        let path = self.model_dir(digest).join(USE_FILE);
        if !self.model_dir(digest).is_dir() {
            return Err(gone());
        }
        let io = || ModelError::io("lock", &path);
        let lock = open_lock(&path).map_err(io())?;
        // Only a removal holds it otherwise, and only for one rename.
        lock.lock_shared().map_err(io())?;
        // A removal may have come first; then the locked file is no longer the one in the store.
        let ours = lock.metadata().map_err(io())?.ino();
        if fs::metadata(&path).map(|meta| meta.ino()).ok() != Some(ours) {
            return Err(gone());
        }
        self.verify(digest, &Job::watched(watch))?;
        lock.set_modified(SystemTime::now()).map_err(io())?;
        Ok(Pin { model: self.model(digest)?, _lock: lock })
    }
}
