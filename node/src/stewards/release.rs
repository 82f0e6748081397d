//! Letting an adapter go: the policies' word on it, a second approval where they ask for one, and the
//! memory of what was released, for recalls.

use std::collections::BTreeMap;
use std::path::Path;

use allmend_gate::Measures;
use allmend_policy::Stage;
use allmend_protocol::finetune::FinetuneWork;
use allmend_protocol::ids::{Digest, MessageId, PublicKey};
use allmend_protocol::stewardship::GateStop;
use allmend_protocol::time::Timestamp;
use allmend_protocol::units::Jurisdiction;
use allmend_scheduler::io::Work;
use allmend_scheduler::stewards::Occasion;
use serde::{Deserialize, Serialize};

use super::Stewardship;
use crate::config::write_private;

const RELEASED: &str = "released.json";

/// What policies say to letting an adapter go.
#[derive(Debug)]
pub(crate) enum ReleaseVerdict {
    /// It may go, on these approvals.
    Release(Vec<MessageId>),
    /// It may not.
    Refuse(GateStop),
    /// A person must look at the results first.
    Wait(String),
}

/// One adapter that was released here.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Released {
    /// The gate's report.
    pub(crate) report: MessageId,
    /// The job.
    pub(crate) job: MessageId,
    /// The stewards of what it was trained on.
    pub(crate) stewards: Vec<PublicKey>,
}

/// What was released, as the file beside the datasets says.
pub(super) fn load(dir: &Path) -> anyhow::Result<BTreeMap<Digest, Released>> {
    use anyhow::Context as _;
    let path = dir.join(RELEASED);
    match std::fs::read(&path) {
        Ok(bytes) => {
            serde_json::from_slice(&bytes).with_context(|| format!("{} is damaged", path.display()))
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(BTreeMap::new()),
        Err(error) => Err(error).with_context(|| format!("cannot read {}", path.display())),
    }
}

impl Stewardship {
    /// An adapter that was released here.
    pub(crate) fn release(&self, adapter: Digest) -> Option<Released> {
        self.lock().released.get(&adapter).cloned()
    }

    /// What policies say to letting `adapter` go. A question to a person is put in their inbox.
    pub(crate) fn release_verdict(
        &self,
        work: &Work,
        jurisdiction: Jurisdiction,
        adapter: Digest,
        measures: &Measures,
        now: Timestamp,
    ) -> ReleaseVerdict {
        let stop =
            |text: String| ReleaseVerdict::Refuse(GateStop { rule: "policy".to_owned(), text });
        let finetune = match FinetuneWork::from_work(&work.job.work) {
            Ok(finetune) => finetune,
            Err(error) => return stop(error.to_string()),
        };
        if finetune.datasets.is_empty() {
            return ReleaseVerdict::Release(Vec::new());
        }
        let mut question = self.asked(work, &finetune, jurisdiction, now);
        question.occasion = Occasion::Renewal;
        let mut state = self.lock();
        let judged =
            match state.judge(self.node, &question, self.room, Stage::Release, Some(adapter)) {
                Ok(judged) => judged,
                Err(reasons) => {
                    let words: Vec<String> =
                        reasons.into_iter().map(|reason| reason.text).collect();
                    return stop(words.join("; "));
                }
            };
        if judged.waits.is_empty() {
            return ReleaseVerdict::Release(judged.approvals);
        }
        if let Err(error) = self.shelf.keep_waiting(question.job, adapter) {
            return ReleaseVerdict::Wait(format!("a disk that works: {error}"));
        }
        let mut who: Vec<String> = Vec::new();
        for mut waiting in judged.waits {
            who.push(waiting.obligation.clone());
            waiting.words.extend(in_words(measures));
            state.inbox.ask(waiting);
        }
        ReleaseVerdict::Wait(who.join(", "))
    }

    /// Whether something may still leave that was made from the job's datasets: they may have been
    /// withdrawn meanwhile.
    ///
    /// # Errors
    /// In words.
    pub(crate) fn may_release(&self, work: &Work) -> Result<(), String> {
        let finetune =
            FinetuneWork::from_work(&work.job.work).map_err(|error| error.to_string())?;
        let registry = self.lock().registry.clone();
        finetune.datasets.iter().try_for_each(|part| {
            registry.version(&part.dataset).map(drop).map_err(|error| error.to_string())
        })
    }

    /// Remembers a release, with every dataset that it was made from.
    ///
    /// # Errors
    /// Those of the file system.
    pub(crate) fn released(
        &self,
        work: &Work,
        adapter: Digest,
        report: MessageId,
        now: Timestamp,
    ) -> std::io::Result<()> {
        let finetune = FinetuneWork::from_work(&work.job.work).map_err(std::io::Error::other)?;
        let job = work.job.id();
        let mut state = self.lock();
        let mut stewards = Vec::new();
        for part in &finetune.datasets {
            if let Ok(held) = state.registry.version(&part.dataset) {
                stewards.extend(held.dataset.stewards.iter().copied());
            }
            state
                .registry
                .record_release(&part.dataset, job, adapter, work.job.signer, now)
                .map_err(std::io::Error::other)?;
        }
        stewards.sort();
        stewards.dedup();
        state.released.insert(adapter, Released { report, job, stewards });
        let bytes = serde_json::to_vec_pretty(&state.released)?;
        write_private(&self.layout.datasets_dir().join(RELEASED), &bytes)
    }
}

/// What was measured, for a person who must decide.
fn in_words(measures: &Measures) -> Vec<String> {
    let (extraction, exposure) = (&measures.extraction, &measures.exposure);
    vec![
        format!(
            "Of {} rows begun, {} come out word for word; the model alone gives {}.",
            extraction.rows_tested, extraction.extracted_adapter, extraction.extracted_base
        ),
        format!(
            "The longest piece of a row that comes out has {} tokens.",
            extraction.longest_run_tokens
        ),
        format!(
            "Planted secrets are exposed by {:.1} bits at most, {:.1} on average.",
            f64::from(exposure.max_milli_bits) / 1e3,
            f64::from(exposure.mean_milli_bits) / 1e3
        ),
    ]
}
