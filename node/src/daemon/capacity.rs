//! What this node can do, for its adverts: devices, slots, models on disk, the disk itself.

use std::collections::BTreeMap;
use std::path::PathBuf;

use allmend_protocol::advert::{ADVERT_LIST_MAX, ModelHeld};
use allmend_protocol::ids::{Digest, MessageId};
use allmend_protocol::receipt::Settlement;
use allmend_scheduler::io::{Input, LocalState};
use anyhow::Context as _;

use super::Daemon;
use crate::adapters::AdapterStore;
use crate::config::{Config, Layout};
use crate::device::Device;
use crate::membership::now;
use crate::models::Store;
use crate::storage::{
    Caps, Eviction, ModelUse, SpoolUse, StorageState, Survey, plan, space, tree_bytes,
};
use crate::worker::PoolOptions;

/// What was found when last looked.
#[derive(Debug)]
pub(crate) struct Capacity {
    layout: Layout,
    config: Config,
    device: Device,
    store: Store,
    adapters: AdapterStore,
    addresses: Vec<String>,
    models: BTreeMap<Digest, (ModelHeld, PathBuf)>,
    disk_full: Option<String>,
}

impl Capacity {
    /// Looks at the machine.
    pub(crate) fn survey(
        layout: &Layout,
        config: &Config,
        device: Device,
        addresses: Vec<String>,
    ) -> anyhow::Result<Capacity> {
        let store = Store::open(layout.models_dir()).context("models directory")?;
        let mut capacity = Capacity {
            layout: layout.clone(),
            config: config.clone(),
            device,
            store,
            adapters: AdapterStore::new(layout.adapters_dir()),
            addresses,
            models: BTreeMap::new(),
            disk_full: None,
        };
        capacity.look_for_models();
        Ok(capacity)
    }

    /// The models' store.
    pub(crate) fn store(&self) -> &Store {
        &self.store
    }

    /// Adapters that are served.
    pub(crate) fn adapters(&self) -> &AdapterStore {
        &self.adapters
    }

    /// How many jobs run at once.
    pub(crate) fn slots(&self) -> u16 {
        u16::try_from(self.config.limits.slots).unwrap_or(u16::MAX)
    }

    /// How workers are to be started from `program`.
    pub(crate) fn pool_options(&self, program: PathBuf) -> PoolOptions {
        PoolOptions {
            program,
            arguments: vec!["worker".into()],
            slots: self.slots(),
            models_loaded: u16::try_from(self.config.limits.models_loaded).unwrap_or(u16::MAX),
            threads: self.device.threads_per_worker(&self.config.limits),
            memory_mib: self.device.memory_per_worker_mib(&self.config.limits),
            context_tokens_max: self.config.limits.context_tokens_max,
            gpu: self.device.accelerators.first_usable(),
        }
    }

    /// Reads the models directory again.
    pub(crate) fn look_for_models(&mut self) {
        let listing = match self.store.list() {
            Ok(listing) => listing,
            Err(error) => {
                tracing::warn!(%error, "models cannot be listed");
                return;
            }
        };
        for damaged in &listing.damaged {
            tracing::warn!(path = %damaged.path.display(), why = %damaged.why, "model left out");
        }
        self.models = listing
            .models
            .into_iter()
            .take(ADVERT_LIST_MAX)
            .map(|model| {
                let header = &model.meta.header;
                let context_tokens =
                    header.context_tokens.min(self.config.limits.context_tokens_max);
                let held = ModelHeld {
                    digest: model.meta.digest,
                    memory_mib: memory_mib(header, context_tokens),
                    context_tokens,
                    warm: false,
                };
                (model.meta.digest, (held, model.path))
            })
            .collect();
    }

    /// The file of a model on disk.
    pub(crate) fn model_path(&self, model: Digest) -> Option<PathBuf> {
        self.models.get(&model).map(|(_, path)| path.clone())
    }

    /// Models on disk.
    pub(crate) fn models(&self) -> impl Iterator<Item = &ModelHeld> {
        self.models.values().map(|(held, _)| held)
    }

    /// Licences of the models, as their files say.
    pub(crate) fn licences(&self) -> impl Iterator<Item = (Digest, String)> {
        let models = self.store.list().map_or(Vec::new(), |listing| listing.models);
        models.into_iter().filter_map(|m| Some((m.meta.digest, m.meta.header.licence.clone()?)))
    }

    /// Why the disk can take nothing new, if so.
    pub(crate) fn disk_full(&self) -> Option<&str> {
        self.disk_full.as_deref()
    }

    /// As the core wants it.
    fn state(&self, draining: Option<String>) -> LocalState {
        LocalState {
            devices: self.device.advertised(&self.config.limits),
            slots_total: self.slots(),
            models: self.models().cloned().collect(),
            fetchable: Vec::new(),
            datasets: Vec::new(),
            datasets_public: Vec::new(),
            adapters: self.adapters.list().into_keys().collect(),
            rates: self.config.rates,
            draining,
            disk_full: self.disk_full.clone(),
            addresses: self.addresses.clone(),
        }
    }

    fn caps(&self) -> Caps {
        Caps::from_config(&self.config.storage)
    }
}

/// The least memory of a worker, with room for one sequence of that length, in MiB. More runs than fit
/// at once take turns, so more slots need no more.
fn memory_mib(header: &crate::models::Header, context_tokens: u32) -> u64 {
    let cache = header.cache_bytes_per_token.saturating_mul(u64::from(context_tokens));
    header.weights_bytes.saturating_add(cache).div_ceil(1 << 20)
}

impl Daemon {
    /// What this node can do and holds now.
    pub(super) fn local_state(&self) -> LocalState {
        let (datasets, datasets_public) = self.stewards.datasets();
        LocalState { datasets, datasets_public, ..self.capacity.state(self.draining.clone()) }
    }

    /// Has workers load the models most likely asked for: those used last.
    pub(super) fn warm_models(&self) {
        if self.capacity.slots() == 0 {
            return;
        }
        let mut models = self.capacity.store.list().map_or(Vec::new(), |listing| listing.models);
        models.sort_by_key(|model| std::cmp::Reverse(model.last_used));
        let models_loaded = self.capacity.config.limits.models_loaded;
        models.truncate(usize::try_from(models_loaded).unwrap_or(usize::MAX));
        for model in models {
            self.running.warm(model.meta.digest, model.path);
        }
    }

    /// Owner's wish to take nothing new, or the end of it.
    pub(super) async fn set_draining(&mut self, why: Option<String>) -> anyhow::Result<()> {
        tracing::info!(draining = why.is_some(), "drain");
        self.draining = why;
        let state = self.local_state();
        self.step(vec![Input::Local(state)]).await
    }

    /// Looks at disk and models, evicts what is over its cap, drains before the log is hurt.
    pub(super) async fn keep_house(&mut self, inputs: &mut Vec<Input>) -> anyhow::Result<()> {
        self.capacity.look_for_models();
        match self.survey_disk() {
            Ok(survey) => {
                let decided = plan(&survey, &self.capacity.caps(), now());
                for eviction in decided.evict {
                    self.evict(eviction);
                }
                if let StorageState::LogFullSoon { left_bytes } = &decided.state {
                    tracing::warn!(
                        left_bytes,
                        "the log is near its cap: raise storage.log_cap_mib"
                    );
                }
                let full = match &decided.state {
                    StorageState::MustDrain { why } => Some(why.in_words().to_owned()),
                    _ => None,
                };
                if full != self.capacity.disk_full {
                    tracing::warn!(why = full.as_deref().unwrap_or("room again"), "disk");
                    self.capacity.disk_full = full;
                }
            }
            Err(error) => tracing::warn!(%error, "disk not surveyed"),
        }
        inputs.push(Input::Local(self.local_state()));
        self.journal.publish().await?;
        // Outputs of jobs long over are read from the spool again when asked for.
        let core = &self.core;
        self.outputs.retain(|job, output| {
            std::sync::Arc::strong_count(output) > 1
                || core.job(*job).is_some_and(|view| !view.phase.is_over())
        });
        Ok(())
    }

    /// What the disk holds now.
    pub(super) fn survey_disk(&self) -> anyhow::Result<Survey> {
        let layout = &self.capacity.layout;
        let models = self
            .capacity
            .store
            .list()?
            .models
            .into_iter()
            .map(|model| ModelUse {
                digest: model.meta.digest,
                bytes: model.disk_bytes,
                last_used: model.last_used,
                pinned: model.in_use,
            })
            .collect();
        let mut spool = Vec::new();
        for (job, ..) in self.spool.jobs()? {
            let bytes = tree_bytes(&layout.spool_dir().join(job.to_string()))?;
            let settled_at = match self.core.job(job) {
                // A job that this node no longer remembers was settled long ago.
                None => Some(allmend_protocol::time::Timestamp::ZERO),
                Some(_) => self.settled_at(job),
            };
            spool.push(SpoolUse { job, bytes, settled_at });
        }
        let usage = self.journal.usage();
        Ok(Survey {
            models,
            spool,
            log_bytes: usage.journal_bytes.saturating_add(usage.log_bytes),
            free_bytes: space(layout.root())?.free_bytes,
        })
    }

    fn settled_at(&self, job: MessageId) -> Option<allmend_protocol::time::Timestamp> {
        let view = self.core.job(job)?;
        if !view.phase.is_over() {
            return None;
        }
        // Refused before any grant: nothing to settle, over is over.
        let settlement = self.core.settlement(job).map(|s| Settlement::clone(s.body()));
        match settlement {
            Some(settlement) => Some(settlement.issued),
            None if self.core.grant(job).is_none() => {
                self.core.job_spec(job).map(|spec| spec.issued)
            }
            None => None,
        }
    }

    fn evict(&mut self, eviction: Eviction) {
        match eviction {
            Eviction::Spool(job) => {
                tracing::info!(job = %job.short(), "kept input and result removed");
                if let Err(error) = self.spool.remove(job) {
                    tracing::warn!(job = %job.short(), %error, "not removed");
                }
            }
            Eviction::Model(digest) => {
                tracing::info!(model = %digest.short(), "model evicted");
                if let Err(error) = self.capacity.store.remove(&digest, false) {
                    tracing::warn!(model = %digest.short(), %error, "not evicted");
                }
                self.capacity.look_for_models();
            }
        }
    }
}
