//! Questions that wait for a person, and what people have decided. Rebuilt from the log and from the
//! brokers' asking again; nothing of it is kept on disk besides.

use std::collections::BTreeMap;

use allmend_protocol::encoding;
use allmend_protocol::envelope::Verified;
use allmend_protocol::ids::{Digest, InstitutionId, MessageId, NodeId, PublicKey};
use allmend_protocol::stewardship::{Approval, Contract};
use allmend_protocol::time::{DurationMs, Timestamp};
use serde::Serialize;

/// A question that no broker has asked for so long has lapsed: brokers ask again every few seconds.
pub(crate) const QUESTION_LAPSES: DurationMs = DurationMs::from_secs(120);
/// Questions at once; a steward reads no more, and the brokers of others ask again.
const QUESTIONS_MAX: usize = 1_024;

/// What is asked of a person.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Question {
    /// Names it: the digest of all that an approval binds.
    pub(crate) question: Digest,
    /// This node.
    pub(crate) node: NodeId,
    /// The job.
    pub(crate) job: MessageId,
    /// The dataset's version.
    pub(crate) dataset: Digest,
    /// What its steward calls it.
    pub(crate) dataset_name: String,
    /// The policies in force, all three together.
    pub(crate) policy: Digest,
    /// What is asked for.
    pub(crate) obligation: String,
    /// Why, as the policy says.
    pub(crate) reason: String,
    /// The adapter that was made, when its release is asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) output: Option<Digest>,
    /// Whose researcher asks.
    pub(crate) asker: InstitutionId,
    /// What for.
    pub(crate) purpose: String,
    /// Which model.
    pub(crate) model: String,
    /// The job in plain words, a sentence each.
    pub(crate) words: Vec<String>,
    /// Who may decide.
    pub(crate) stewards: Vec<PublicKey>,
    /// When it was asked first, and until when the job is of use.
    pub(crate) since: Timestamp,
    pub(crate) expires: Timestamp,
    /// When it was asked last.
    #[serde(skip)]
    pub(crate) heard: Timestamp,
}

/// The digest of all that an approval binds.
pub(crate) fn question_id(
    job: MessageId,
    dataset: Digest,
    policy: Digest,
    obligation: &str,
    output: Option<Digest>,
) -> Digest {
    Digest::of(&encoding::encode(&(job, dataset, policy, obligation, output)))
}

/// Questions and decisions.
#[derive(Debug, Default)]
pub(crate) struct Inbox {
    questions: BTreeMap<Digest, Question>,
    decisions: BTreeMap<MessageId, Verified<Approval>>,
    /// Runs that rested on each approval.
    uses: BTreeMap<MessageId, u32>,
}

impl Inbox {
    /// Puts a question, or notes that it is still asked. Says whether it is news.
    pub(crate) fn ask(&mut self, mut question: Question) -> bool {
        if let Some(known) = self.questions.get_mut(&question.question) {
            known.heard = question.heard;
            return false;
        }
        self.tidy(question.heard);
        if self.questions.len() >= QUESTIONS_MAX {
            return false;
        }
        question.since = question.heard;
        self.questions.insert(question.question, question);
        true
    }

    /// What waits for `who`; for everybody when none.
    pub(crate) fn waiting(&mut self, now: Timestamp, who: Option<PublicKey>) -> Vec<&Question> {
        self.tidy(now);
        let theirs = |question: &&Question| {
            who.is_none_or(|who| question.stewards.contains(&who)) && !self.is_decided(question)
        };
        self.questions.values().filter(theirs).collect()
    }

    /// A question that a decision answers.
    pub(crate) fn question(&self, approval: &Approval) -> Option<&Question> {
        let Approval { job, dataset, policy, obligation, output, .. } = approval;
        self.questions.get(&question_id(*job, *dataset, *policy, obligation, *output))
    }

    /// Takes note of a decision; the last one of a person on a question counts.
    pub(crate) fn decide(&mut self, approval: Verified<Approval>) {
        self.decisions.insert(approval.id(), approval);
    }

    /// Takes note of a run.
    pub(crate) fn contracted(&mut self, contract: &Contract) {
        for approval in &contract.approvals {
            *self.uses.entry(*approval).or_default() += 1;
        }
    }

    /// All decisions on a job, the latest last, each with the runs that rested on it.
    pub(crate) fn decisions(&self, job: MessageId) -> Vec<(&Verified<Approval>, u32)> {
        let mut found: Vec<_> = self
            .decisions
            .values()
            .filter(|approval| approval.job == job)
            .map(|approval| (approval, self.uses.get(&approval.id()).copied().unwrap_or(0)))
            .collect();
        found.sort_by_key(|(approval, _)| (approval.issued, approval.id()));
        found
    }

    fn is_decided(&self, question: &Question) -> bool {
        self.decisions.values().any(|approval| {
            approval.job == question.job
                && approval.dataset == question.dataset
                && approval.policy == question.policy
                && approval.obligation == question.obligation
                && approval.output == question.output
                && question.stewards.contains(&approval.signer)
        })
    }

    fn tidy(&mut self, now: Timestamp) {
        self.questions.retain(|_, question| now < question.heard.plus(QUESTION_LAPSES));
    }
}
