//! Measuring what is stored, carrying out the plan, reporting for `storage show`.

use std::sync::Arc;

use allmend_protocol::time::{DurationMs, Timestamp};
use serde::Serialize;

use super::disk::{Space, space, tree_bytes};
use super::error::StorageError;
use super::plan::{Caps, Eviction, ModelUse, StorageState, Survey, plan};
use super::spool::Spool;
use crate::config::{self, Layout};
use crate::models::{ModelError, Store};
use crate::ui::{self, Align, Table};

/// Keeps the disk within bounds.
#[derive(Clone, Debug)]
pub struct Storage {
    layout: Layout,
    caps: Caps,
    models: Store,
    spool: Arc<Spool>,
}

/// One kind of content in a [`StorageReport`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct KindReport {
    /// `models`, `spool` or `log`.
    pub kind: &'static str,
    /// Bytes in use.
    pub used_bytes: u64,
    /// Its cap.
    pub cap_bytes: u64,
    /// How many models or jobs; none for the log.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub items: Option<usize>,
    /// What happens at the cap, in a few words.
    pub at_cap: &'static str,
}

/// What `storage show` shows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct StorageReport {
    /// The data directory.
    pub root: std::path::PathBuf,
    /// How things stand, before anything is evicted.
    pub state: StorageState,
    /// Room on the disk.
    pub disk: Space,
    /// Free space kept for the log.
    pub reserve_bytes: u64,
    /// How long settled jobs stay.
    pub retention_ms: u64,
    /// Models, spool and log.
    pub kinds: Vec<KindReport>,
}

impl Caps {
    /// The bounds that the configuration sets.
    #[must_use]
    pub fn from_config(storage: &config::Storage) -> Self {
        let bytes = |mib: u64| mib.saturating_mul(1024 * 1024);
        Self {
            models_bytes: bytes(storage.models_cap_mib),
            spool_bytes: bytes(storage.spool_cap_mib),
            log_bytes: bytes(storage.log_cap_mib),
            reserve_bytes: bytes(storage.reserve_mib),
            retention: DurationMs::from_secs(storage.retention_hours.saturating_mul(3600)),
        }
    }
}

impl Storage {
    /// Opens the stores of a data directory.
    ///
    /// # Errors
    /// [`StorageError::Io`], [`StorageError::Model`].
    pub fn open(layout: &Layout, settings: &config::Storage) -> Result<Self, StorageError> {
        let caps = Caps::from_config(settings);
        Ok(Self {
            layout: layout.clone(),
            caps,
            models: Store::open(layout.models_dir())?,
            spool: Arc::new(Spool::open(layout.spool_dir(), caps.spool_bytes)?),
        })
    }

    /// The store of models.
    #[must_use]
    pub fn models(&self) -> &Store {
        &self.models
    }

    /// The spool.
    #[must_use]
    pub fn spool(&self) -> &Arc<Spool> {
        &self.spool
    }

    /// The bounds.
    #[must_use]
    pub fn caps(&self) -> &Caps {
        &self.caps
    }

    /// Measures everything. Blocks on the disk.
    ///
    /// # Errors
    /// [`StorageError`] of whatever could not be measured.
    pub fn survey(&self) -> Result<Survey, StorageError> {
        let models = self.models.list()?.models.into_iter().map(|model| ModelUse {
            digest: model.meta.digest,
            bytes: model.disk_bytes,
            last_used: model.last_used,
            pinned: model.in_use,
        });
        let root = self.layout.root();
        let mut log_bytes = 0u64;
        for dir in [self.layout.journal_dir(), self.layout.log_dir(), self.layout.index_dir()] {
            let bytes = tree_bytes(&dir).map_err(StorageError::io("measure", &dir))?;
            log_bytes = log_bytes.saturating_add(bytes);
        }
        Ok(Survey {
            models: models.collect(),
            spool: self.spool.entries()?,
            log_bytes,
            free_bytes: space(root).map_err(StorageError::io("measure", root))?.free_bytes,
        })
    }

    /// Evicts what the plan says and tells how things stand. Blocks on the disk.
    ///
    /// # Errors
    /// Those of [`Self::survey`] and of removing; what was removed by then stays removed.
    pub fn tend(&self, now: Timestamp) -> Result<StorageState, StorageError> {
        let planned = plan(&self.survey()?, &self.caps, now);
        if planned.evict.is_empty() {
            return Ok(planned.state);
        }
        let (mut items, mut bytes) = (0usize, 0u64);
        for eviction in &planned.evict {
            let freed = match eviction {
                Eviction::Spool(job) => self.spool.remove(job)?,
                Eviction::Model(digest) => match self.models.remove(digest, false) {
                    // Somebody began to use it, or removed it, meanwhile: fine.
                    Err(ModelError::InUse(_) | ModelError::NotFound(_)) => continue,
                    removed => removed?,
                },
            };
            items = items.saturating_add(1);
            bytes = bytes.saturating_add(freed);
            tracing::info!(?eviction, freed, "evicted");
        }
        // Measured anew: the disk is shared, and what was in use could not go.
        let after = plan(&self.survey()?, &self.caps, now);
        Ok(match after.state {
            StorageState::Ok | StorageState::Evicted { .. } if items > 0 => {
                StorageState::Evicted { items, bytes }
            }
            state => state,
        })
    }

    /// What `storage show` shows. Changes nothing.
    ///
    /// # Errors
    /// Those of [`Self::survey`].
    pub fn report(&self, now: Timestamp) -> Result<StorageReport, StorageError> {
        let survey = self.survey()?;
        let root = self.layout.root();
        let used = |bytes: &mut dyn Iterator<Item = u64>| bytes.fold(0, u64::saturating_add);
        let kind = |kind, used_bytes, cap_bytes, items, at_cap| KindReport {
            kind,
            used_bytes,
            cap_bytes,
            items,
            at_cap,
        };
        Ok(StorageReport {
            root: root.to_owned(),
            state: plan(&survey, &self.caps, now).state,
            disk: space(root).map_err(StorageError::io("measure", root))?,
            reserve_bytes: self.caps.reserve_bytes,
            retention_ms: self.caps.retention.as_ms(),
            kinds: vec![
                kind(
                    "models",
                    used(&mut survey.models.iter().map(|model| model.bytes)),
                    self.caps.models_bytes,
                    Some(survey.models.len()),
                    "removes the longest unused",
                ),
                kind(
                    "spool",
                    used(&mut survey.spool.iter().map(|entry| entry.bytes)),
                    self.caps.spool_bytes,
                    Some(survey.spool.len()),
                    "drains the node",
                ),
                kind("log", survey.log_bytes, self.caps.log_bytes, None, "drains the node"),
            ],
        })
    }
}

impl StorageReport {
    /// One row per kind.
    #[must_use]
    pub fn table(&self) -> Table {
        let mut table = Table::new()
            .column("KIND", Align::Left)
            .column("ITEMS", Align::Right)
            .column("USED", Align::Right)
            .column("CAP", Align::Right)
            .squeezable("AT THE CAP");
        for kind in &self.kinds {
            table.row([
                kind.kind.to_owned(),
                kind.items.map_or_else(|| "–".to_owned(), |items| items.to_string()),
                ui::bytes(kind.used_bytes),
                ui::bytes(kind.cap_bytes),
                kind.at_cap.to_owned(),
            ]);
        }
        table
    }
}
