//! Deciding what to evict and whether to drain: a pure function of what was measured.

use allmend_protocol::ids::{Digest, MessageId};
use allmend_protocol::time::{DurationMs, Timestamp};
use serde::Serialize;

use crate::config;

/// Bounds, in bytes except for the retention.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Caps {
    /// For models.
    pub models_bytes: u64,
    /// For the spool.
    pub spool_bytes: u64,
    /// For the log, the journal and the index.
    pub log_bytes: u64,
    /// Free space to keep for the log.
    pub reserve_bytes: u64,
    /// How long a settled job stays in the spool.
    pub retention: DurationMs,
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

/// A model as far as eviction is concerned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ModelUse {
    /// Which one.
    pub digest: Digest,
    /// What removing it frees.
    pub bytes: u64,
    /// When it was last used.
    pub last_used: Timestamp,
    /// Somebody uses it now; it stays.
    pub pinned: bool,
}

/// A job in the spool as far as eviction is concerned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SpoolUse {
    /// Which job.
    pub job: MessageId,
    /// What removing it frees.
    pub bytes: u64,
    /// When it was settled; an unsettled job is an obligation and stays.
    pub settled_at: Option<Timestamp>,
}

/// What was measured.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Survey {
    /// Every model.
    pub models: Vec<ModelUse>,
    /// Every job in the spool.
    pub spool: Vec<SpoolUse>,
    /// Bytes of the log, the journal and the index.
    pub log_bytes: u64,
    /// Free bytes on the disk.
    pub free_bytes: u64,
}

/// One thing to remove.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Eviction {
    /// A settled job past its retention.
    Spool(MessageId),
    /// A model that nobody uses.
    Model(Digest),
}

/// Why a node must take no more work.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum DrainReason {
    /// The log has reached its cap; it is never cut.
    LogFull,
    /// Jobs that must be kept fill the spool.
    SpoolFull,
    /// The disk has less free space than the reserve, whatever takes it.
    DiskLow,
}

impl DrainReason {
    /// One sentence for a person, with what to do.
    #[must_use]
    pub fn in_words(self) -> &'static str {
        match self {
            Self::LogFull => "the log has reached its cap: raise storage.log_cap_mib",
            Self::SpoolFull => {
                "open and recent jobs fill the spool: raise storage.spool_cap_mib or lower \
                 storage.retention_hours"
            }
            Self::DiskLow => "the disk has less free space than storage.reserve_mib: free some",
        }
    }
}

/// What the daemon must know about the disk; the most pressing of what applies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case", tag = "state")]
pub enum StorageState {
    /// All is well.
    Ok,
    /// Things were removed; all is well again.
    Evicted {
        /// How many.
        items: usize,
        /// Bytes that this freed.
        bytes: u64,
    },
    /// The log is near its cap; an operator should raise it.
    LogFullSoon {
        /// Bytes until the cap.
        left_bytes: u64,
    },
    /// Take no more work.
    MustDrain {
        /// Why.
        why: DrainReason,
    },
}

/// What to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// What to remove, in this order.
    pub evict: Vec<Eviction>,
    /// How things stand once that is done.
    pub state: StorageState,
}

/// Above this part of its cap the log is said to be full soon.
const LOG_SOON_PERCENT: u128 = 90;

/// Decides what to evict and whether to drain.
///
/// Never evicts an unsettled job, a settled one within its retention, or a model in use. Equal
/// surveys give equal plans.
#[must_use]
pub fn plan(survey: &Survey, caps: &Caps, now: Timestamp) -> Plan {
    let mut evict = Vec::new();
    let mut freed = 0u64;

    let expired = |entry: &&SpoolUse| {
        entry.settled_at.is_some_and(|at| now >= at && now.since(at) >= caps.retention)
    };
    let mut gone: Vec<&SpoolUse> = survey.spool.iter().filter(expired).collect();
    gone.sort_by_key(|entry| (entry.settled_at, entry.job));
    let gone_bytes = total(gone.iter().map(|entry| entry.bytes));
    freed = freed.saturating_add(gone_bytes);
    evict.extend(gone.iter().map(|entry| Eviction::Spool(entry.job)));
    let spool = total(survey.spool.iter().map(|entry| entry.bytes)).saturating_sub(gone_bytes);

    let mut idle: Vec<&ModelUse> = survey.models.iter().filter(|model| !model.pinned).collect();
    idle.sort_by_key(|model| (model.last_used, model.digest));
    let mut models = total(survey.models.iter().map(|model| model.bytes));
    for model in idle {
        let disk_low = survey.free_bytes.saturating_add(freed) < caps.reserve_bytes;
        if models <= caps.models_bytes && !disk_low {
            break;
        }
        if model.bytes == 0 {
            continue; // a link: removing it would free nothing
        }
        evict.push(Eviction::Model(model.digest));
        models = models.saturating_sub(model.bytes);
        freed = freed.saturating_add(model.bytes);
    }

    let state = if survey.log_bytes >= caps.log_bytes {
        StorageState::MustDrain { why: DrainReason::LogFull }
    } else if survey.free_bytes.saturating_add(freed) < caps.reserve_bytes {
        StorageState::MustDrain { why: DrainReason::DiskLow }
    } else if spool >= caps.spool_bytes {
        StorageState::MustDrain { why: DrainReason::SpoolFull }
    } else if u128::from(survey.log_bytes) * 100 >= u128::from(caps.log_bytes) * LOG_SOON_PERCENT {
        StorageState::LogFullSoon { left_bytes: caps.log_bytes.saturating_sub(survey.log_bytes) }
    } else if evict.is_empty() {
        StorageState::Ok
    } else {
        StorageState::Evicted { items: evict.len(), bytes: freed }
    };
    Plan { evict, state }
}

fn total(bytes: impl Iterator<Item = u64>) -> u64 {
    bytes.fold(0, u64::saturating_add)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const NOW: Timestamp = Timestamp::from_ms(1_000_000);

    fn caps() -> Caps {
        Caps {
            models_bytes: 100,
            spool_bytes: 50,
            log_bytes: 1000,
            reserve_bytes: 10,
            retention: DurationMs::from_ms(1000),
        }
    }

    fn model(id: u8, bytes: u64, last_used: u64, pinned: bool) -> ModelUse {
        let last_used = Timestamp::from_ms(last_used);
        ModelUse { digest: Digest::from_bytes([id; 32]), bytes, last_used, pinned }
    }

    fn job(id: u8, bytes: u64, settled_at: Option<u64>) -> SpoolUse {
        let settled_at = settled_at.map(Timestamp::from_ms);
        SpoolUse { job: MessageId::from_bytes([id; 32]), bytes, settled_at }
    }

    fn survey() -> Survey {
        Survey { free_bytes: 1000, ..Survey::default() }
    }

    #[test]
    fn an_empty_disk_is_fine() {
        assert_eq!(plan(&survey(), &caps(), NOW), Plan { evict: vec![], state: StorageState::Ok });
    }

    #[test]
    fn the_spool_keeps_what_is_open_or_recent() {
        let spool = vec![
            job(1, 10, None),
            job(2, 10, Some(999_500)),
            job(3, 10, Some(999_000)),
            job(4, 10, Some(5_000_000)),
        ];
        let plan = plan(&Survey { spool, ..survey() }, &caps(), NOW);
        assert_eq!(plan.evict, [Eviction::Spool(MessageId::from_bytes([3; 32]))]);
        assert_eq!(plan.state, StorageState::Evicted { items: 1, bytes: 10 });
    }

    #[test]
    fn models_go_by_last_use_until_they_fit() {
        let models = vec![
            model(1, 60, 30, false),
            model(2, 60, 10, true),
            model(3, 20, 20, false),
            model(4, 0, 5, false),
        ];
        let plan = plan(&Survey { models, ..survey() }, &caps(), NOW);
        let evicted = |id| Eviction::Model(Digest::from_bytes([id; 32]));
        assert_eq!(plan.evict, [evicted(3), evicted(1)]);
    }

    #[test]
    fn a_low_disk_costs_models_before_it_drains() {
        let models = vec![model(1, 8, 1, false)];
        let low = Survey { models, free_bytes: 5, ..survey() };
        assert_eq!(plan(&low, &caps(), NOW).state, StorageState::Evicted { items: 1, bytes: 8 });
        let lower = Survey { free_bytes: 1, ..low };
        let why = DrainReason::DiskLow;
        assert_eq!(plan(&lower, &caps(), NOW).state, StorageState::MustDrain { why });
    }

    #[test]
    fn the_log_warns_and_then_drains() {
        let at = |log_bytes| plan(&Survey { log_bytes, ..survey() }, &caps(), NOW).state;
        assert_eq!(at(899), StorageState::Ok);
        assert_eq!(at(900), StorageState::LogFullSoon { left_bytes: 100 });
        assert_eq!(at(1000), StorageState::MustDrain { why: DrainReason::LogFull });
    }

    #[test]
    fn a_spool_of_open_jobs_drains() {
        let spool = vec![job(1, 50, None)];
        let state = plan(&Survey { spool, ..survey() }, &caps(), NOW).state;
        assert_eq!(state, StorageState::MustDrain { why: DrainReason::SpoolFull });
    }

    fn surveys() -> impl Strategy<Value = Survey> {
        let models = proptest::collection::vec((0u8..9, 0u64..200, 0u64..99, any::<bool>()), 0..9);
        let spool = proptest::collection::vec(
            (0u8..9, 0u64..90, proptest::option::of(0u64..2_000_000)),
            0..9,
        );
        (models, spool, 0u64..2000, 0u64..2000).prop_map(
            |(models, spool, log_bytes, free_bytes)| {
                // Digests are unique, so are these ids.
                let models = (0u8..).zip(models).map(|(i, (_, b, u, p))| model(i, b, u, p));
                let spool = (0u8..).zip(spool).map(|(i, (_, b, s))| job(i, b, s));
                Survey { models: models.collect(), spool: spool.collect(), log_bytes, free_bytes }
            },
        )
    }

    proptest! {
        #[test]
        fn nothing_needed_is_ever_evicted(survey in surveys(), shuffled: u64) {
            let made = plan(&survey, &caps(), NOW);
            for eviction in &made.evict {
                match eviction {
                    Eviction::Model(digest) => prop_assert!(
                        survey.models.iter().any(|m| m.digest == *digest && !m.pinned)
                    ),
                    Eviction::Spool(job) => {
                        let over = |at: Timestamp| NOW.since(at).as_ms() >= 1000;
                        let settled = |s: &SpoolUse| s.job == *job && s.settled_at.is_some_and(over);
                        prop_assert!(survey.spool.iter().any(settled));
                    }
                }
            }
            let mut other = survey.clone();
            if !other.models.is_empty() {
                let by = shuffled as usize % other.models.len();
                other.models.rotate_left(by);
            }
            prop_assert_eq!(plan(&other, &caps(), NOW).state, made.state);
        }

        #[test]
        fn an_ok_state_respects_every_cap(survey in surveys()) {
            let made = plan(&survey, &caps(), NOW);
            if made.state == StorageState::Ok {
                prop_assert!(survey.log_bytes < 900 && survey.free_bytes >= 10);
                prop_assert!(total(survey.spool.iter().map(|s| s.bytes)) < 50);
            }
        }
    }
}
