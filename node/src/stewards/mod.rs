//! What stewards have decided and policies say about the datasets of this node: the daemon's side of
//! [`allmend_scheduler::stewards`]. Three layers of policy, people's approvals, privacy budgets and caps
//! come together here; whatever goes wrong is a refusal with a reason.

mod budget;
mod inbox;
mod judge;
mod notify;
mod prepared;
mod release;
mod shelf;
mod usage;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use allmend_data::{Deleted, Registry};
use allmend_policy::{Decision, Stage};
use allmend_protocol::envelope::Verified;
use allmend_protocol::ids::{Digest, InstitutionId, MessageId, NodeId, PublicKey};
use allmend_protocol::message::AnyMessage;
use allmend_protocol::offer::Reason;
use allmend_protocol::stewardship::{Approval, Contract};
use allmend_protocol::time::{DurationMs, Timestamp};
use allmend_protocol::units::Jurisdiction;
use allmend_room::Strength;
use allmend_scheduler::stewards::{AdapterQuestion, DataQuestion, DataVerdict, Occasion, Stewards};

use self::budget::Budgets;
use self::inbox::{Inbox, Question};
use self::judge::Judged;
pub(crate) use self::prepared::Prepared;
pub(crate) use self::release::{ReleaseVerdict, Released};
use self::shelf::Shelf;
use crate::adapters::AdapterStore;
use crate::config::{Layout, create_private_dir};

/// A question stays as long as its job; a broker that is told so asks again well before.
const TICKET_VALID: DurationMs = DurationMs::from_secs(60);
/// The largest policy file.
const POLICY_BYTES_MAX: u64 = 256 * 1024;

/// Everything that is decided about datasets here.
#[derive(Debug)]
pub(crate) struct Stewardship {
    node: NodeId,
    institution: InstitutionId,
    jurisdiction: Jurisdiction,
    layout: Layout,
    /// The class of rooms that this machine builds, as it found when it started.
    room: Strength,
    /// Started when a question waits.
    notify: Option<PathBuf>,
    shelf: Shelf,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    registry: Registry,
    charter: Option<String>,
    institution: Option<String>,
    inbox: Inbox,
    /// What policies said last about each job, attribute by attribute.
    decisions: BTreeMap<MessageId, Vec<Decision>>,
    budgets: Budgets,
    released: BTreeMap<Digest, Released>,
    /// Licences of models, as their files say, for policies that ask.
    licences: BTreeMap<Digest, String>,
}

impl Stewardship {
    /// Opens what is on disk, and takes note of what the log says was decided and run.
    ///
    /// # Errors
    /// When something on disk is damaged or cannot be read.
    pub(crate) fn open<'a>(
        layout: &Layout,
        here: (NodeId, InstitutionId, Jurisdiction),
        room: Strength,
        notify: Option<PathBuf>,
        leaves: impl IntoIterator<Item = &'a AnyMessage>,
    ) -> anyhow::Result<Stewardship> {
        let (node, institution, jurisdiction) = here;
        create_private_dir(&layout.datasets_dir())?;
        let mut state = State {
            registry: Registry::open(layout.datasets_dir())?,
            charter: policy_text(&layout.charter_policy())?,
            institution: policy_text(&layout.institution_policy())?,
            inbox: Inbox::default(),
            decisions: BTreeMap::new(),
            budgets: Budgets::open(&layout.datasets_dir().join("budgets"))?,
            released: BTreeMap::new(),
            licences: BTreeMap::new(),
        };
        for leaf in leaves {
            match leaf {
                AnyMessage::Approval(approval) => state.inbox.decide(approval.clone()),
                AnyMessage::Contract(contract) if contract.signer == node => {
                    state.inbox.contracted(contract);
                }
                _ => {}
            }
        }
        state.released = release::load(&layout.datasets_dir())?;
        let shelf = Shelf::new(layout.training_dir());
        Ok(Stewardship {
            node,
            institution,
            jurisdiction,
            layout: layout.clone(),
            room,
            notify,
            shelf,
            state: Mutex::new(state),
        })
    }

    /// Reads datasets and policies again.
    pub(crate) fn reload(&self) -> anyhow::Result<()> {
        let registry = Registry::open(self.layout.datasets_dir())?;
        let charter = policy_text(&self.layout.charter_policy())?;
        let institution = policy_text(&self.layout.institution_policy())?;
        let mut state = self.lock();
        (state.registry, state.charter, state.institution) = (registry, charter, institution);
        Ok(())
    }

    /// Every dataset version here, and those that may be advertised.
    pub(crate) fn datasets(&self) -> (Vec<Digest>, Vec<Digest>) {
        let registry = self.lock().registry.clone();
        let all = registry.list().map_or(Vec::new(), |listing| listing.datasets);
        let versions = all.iter().flat_map(|dataset| &dataset.versions);
        let held = versions.filter(|version| version.destroyed.is_none());
        let public = registry.advertised().unwrap_or_default();
        (held.map(|version| version.digest).collect(), public.iter().map(|d| d.version).collect())
    }

    /// The licence of a model, as its file says.
    pub(crate) fn learn_licence(&self, model: Digest, licence: String) {
        self.lock().licences.insert(model, licence);
    }

    /// What waits for `who`; for everybody when none.
    pub(crate) fn waiting(&self, now: Timestamp, who: Option<PublicKey>) -> Vec<Question> {
        self.lock().inbox.waiting(now, who).into_iter().cloned().collect()
    }

    /// Whether a decision answers a question that was put to its signer.
    ///
    /// # Errors
    /// In words, when it does not.
    pub(crate) fn may_decide(&self, approval: &Approval) -> Result<(), String> {
        let state = self.lock();
        let question = state.inbox.question(approval).ok_or_else(|| {
            "nothing like that is asked here now: the job, the dataset or the policy has changed, \
             or nobody asks any more"
                .to_owned()
        })?;
        if question.stewards.contains(&approval.signer) {
            Ok(())
        } else {
            Err("the dataset names other people as its stewards".to_owned())
        }
    }

    /// What policies said last about a job, one decision for each dataset.
    pub(crate) fn decisions(&self, job: MessageId) -> Vec<Decision> {
        self.lock().decisions.get(&job).cloned().unwrap_or_default()
    }

    /// Takes note of a decision that is in the log.
    pub(crate) fn decided(&self, approval: Verified<Approval>) {
        self.lock().inbox.decide(approval);
    }

    /// Takes note of a contract that is in the log.
    pub(crate) fn contracted(&self, contract: &Contract) {
        self.lock().inbox.contracted(contract);
    }

    /// Where the next attempt of a job goes on.
    pub(crate) fn snapshot(&self, job: MessageId) -> Option<Vec<u8>> {
        self.shelf.snapshot(job)
    }

    /// Keeps a snapshot.
    pub(crate) fn keep_snapshot(&self, job: MessageId, bytes: &[u8]) -> std::io::Result<()> {
        self.shelf.keep_snapshot(job, bytes)
    }

    /// An adapter that waits for its release.
    pub(crate) fn finished(&self, job: MessageId) -> Option<Vec<u8>> {
        self.shelf.finished(job)
    }

    /// Keeps an adapter that waits for its release.
    pub(crate) fn keep_finished(&self, job: MessageId, bytes: &[u8]) -> std::io::Result<()> {
        self.shelf.keep_finished(job, bytes)
    }

    /// Jobs that have left something of training here.
    pub(crate) fn training(&self) -> Vec<MessageId> {
        self.shelf.jobs()
    }

    /// Removes what a job that is over has left; says what of its own rows that was.
    pub(crate) fn forget_training(&self, job: MessageId, now: Timestamp) -> Option<Deleted> {
        self.shelf.remove(job, now).unwrap_or_else(|error| {
            tracing::warn!(job = %job.short(), %error, "what the training left is not removed");
            None
        })
    }

    /// Charges a job's run for the steps it has made.
    pub(crate) fn account(&self, job: MessageId, steps: u64) {
        if let Err(error) = self.lock().budgets.settle(job, steps) {
            tracing::warn!(job = %job.short(), %error, "the privacy budget stays reserved");
        }
    }

    /// Has whoever the operator names for it tell the stewards; nothing waits for that.
    fn tell(&self, question: Question) {
        let id = question.question;
        tracing::info!(question = %id.short(), obligation = question.obligation, "waits for a person");
        let Some(program) = self.notify.clone() else { return };
        std::thread::spawn(move || {
            let said = notify::run(&program, &question);
            if let Err(error) = said {
                tracing::warn!(question = %id.short(), %error, "stewards.notify");
            }
        });
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Stewards for Stewardship {
    fn decide(&self, question: &DataQuestion<'_>) -> DataVerdict {
        let mut state = self.lock();
        // An adapter that is made already waits for its release, not for another run.
        let output = self.shelf.waiting(question.job);
        let stage = if output.is_some() { Stage::Release } else { Stage::Run };
        match state.judge(self.node, question, self.room, stage, output) {
            Err(reasons) => DataVerdict::Refuse(reasons),
            Ok(Judged { waits, .. }) if waits.is_empty() => DataVerdict::Allow,
            Ok(Judged { waits, .. }) => {
                let obligations =
                    waits.iter().map(|question| question.obligation.clone()).collect();
                let ticket = waits[0].question.as_bytes().to_vec();
                for waiting in waits {
                    if question.occasion == Occasion::Quote {
                        continue;
                    }
                    if state.inbox.ask(waiting.clone()) {
                        self.tell(waiting);
                    }
                }
                let expires = question.spec.deadline.min(question.now.plus(TICKET_VALID));
                DataVerdict::Pending { obligations, ticket, expires }
            }
        }
    }

    fn may_use(&self, question: &AdapterQuestion<'_>) -> Result<(), Vec<Reason>> {
        let about = AdapterStore::new(self.layout.adapters_dir()).about(question.adapter);
        self.lock().may_use(self.node, question, about.as_ref())
    }
}

fn policy_text(path: &Path) -> anyhow::Result<Option<String>> {
    use anyhow::Context as _;
    let read = || format!("cannot read the policy {}", path.display());
    let size = match std::fs::metadata(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        other => other.with_context(read)?.len(),
    };
    anyhow::ensure!(size <= POLICY_BYTES_MAX, "{} is too large for a policy", path.display());
    Ok(Some(std::fs::read_to_string(path).with_context(read)?))
}
