//! One job at its home node.

use std::collections::{BTreeMap, BTreeSet};

use allmend_protocol::cert::ResearcherCert;
use allmend_protocol::envelope::Verified;
use allmend_protocol::finetune::Task;
use allmend_protocol::grant::{Assign, Grant};
use allmend_protocol::ids::{InstitutionId, MessageId, NodeId};
use allmend_protocol::job::JobSpec;
use allmend_protocol::lease::Lease;
use allmend_protocol::offer::Offer;
use allmend_protocol::time::{DurationMs, Timestamp};
use allmend_protocol::units::{Credits, Rates};

use super::BACKOFF_MIN;
use crate::filter::Needs;
use crate::io::{Considered, JobOutcomeRecord};

/// One job.
#[derive(Clone, Debug)]
pub struct Job {
    /// Counts this home's jobs in the order in which they came.
    pub(crate) number: u64,
    pub(crate) spec: Verified<JobSpec>,
    pub(crate) cert: Verified<ResearcherCert>,
    pub(crate) task: Task,
    pub(crate) grant: Option<Verified<Grant>>,
    pub(crate) attempts: BTreeMap<u16, Attempt>,
    pub(crate) next_attempt: u16,
    pub(crate) over: Option<Over>,

    // What follows is not journaled: a restart begins it anew.
    pub(crate) stage: Stage,
    pub(crate) why: String,
    /// Probes without an answer so far, by node.
    pub(crate) probes: BTreeMap<NodeId, MessageId>,
    /// What nodes said, newest each; no more than there are members.
    pub(crate) answers: BTreeMap<NodeId, Answer>,
    /// As far as a person wants to read: the last survey with its answers.
    pub(crate) considered: Vec<Considered>,
    pub(crate) backoff: DurationMs,
    pub(crate) planned_at: Timestamp,
    pub(crate) generation: u64,
    /// When to look again after a change of the view.
    pub(crate) wake_at: Option<Timestamp>,
}

/// One attempt.
#[derive(Clone, Debug)]
pub(crate) struct Attempt {
    pub(crate) assign: Verified<Assign>,
    pub(crate) lease: Option<Verified<Lease>>,
    /// Why it is given up or done.
    pub(crate) over: Option<String>,

    // Not journaled.
    /// When the node last showed that it is at work.
    pub(crate) heard: Timestamp,
    /// When its lease was heard of in this life of the process.
    pub(crate) leased_at: Option<Timestamp>,
    /// The last renewal counted.
    pub(crate) renewal: u32,
    pub(crate) resend_at: Timestamp,
    pub(crate) undelivered: u8,
    /// What its offer asked for.
    pub(crate) offered: Option<Rates>,
}

/// How a job ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Over {
    pub(crate) outcome: JobOutcomeRecord,
    pub(crate) why: String,
}

/// What a job without a live attempt waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stage {
    /// Nothing fits: until a change, at the latest until then.
    Waiting { until: Timestamp },
    /// Answers to probes.
    Asking { until: Timestamp },
    /// Nothing; an attempt is live.
    Working,
}

/// A node's answer.
#[derive(Clone, Debug)]
pub(crate) struct Answer {
    /// In words.
    pub(crate) verdict: String,
    /// Whether a later answer could be another one.
    pub(crate) passes: bool,
    /// It is not asked again before.
    pub(crate) holds_until: Timestamp,
    /// The offer, if it was one.
    pub(crate) offer: Option<Verified<Offer>>,
}

impl Job {
    pub(super) fn new(
        number: u64,
        spec: Verified<JobSpec>,
        cert: Verified<ResearcherCert>,
        task: Task,
    ) -> Job {
        Job {
            number,
            spec,
            cert,
            task,
            grant: None,
            attempts: BTreeMap::new(),
            next_attempt: 1,
            over: None,
            stage: Stage::Waiting { until: Timestamp::ZERO },
            why: "just submitted".to_owned(),
            probes: BTreeMap::new(),
            answers: BTreeMap::new(),
            considered: Vec::new(),
            backoff: BACKOFF_MIN,
            planned_at: Timestamp::ZERO,
            generation: 0,
            wake_at: None,
        }
    }

    /// What the researcher signed.
    pub fn spec(&self) -> &Verified<JobSpec> {
        &self.spec
    }

    /// The researcher's certificate.
    pub fn cert(&self) -> &Verified<ResearcherCert> {
        &self.cert
    }

    /// The grant, once there is one.
    pub fn grant(&self) -> Option<&Verified<Grant>> {
        self.grant.as_ref()
    }

    /// Whether nothing more will happen but counting.
    pub fn is_over(&self) -> bool {
        self.over.is_some()
    }

    pub(super) fn live_attempt(&self) -> Option<&Attempt> {
        self.attempts.values().next_back().filter(|attempt| attempt.over.is_none())
    }

    pub(super) fn live_attempt_mut(&mut self) -> Option<&mut Attempt> {
        self.attempts.values_mut().next_back().filter(|attempt| attempt.over.is_none())
    }

    /// Nodes that had an attempt of this job already.
    pub(super) fn failed_nodes(&self) -> BTreeSet<NodeId> {
        let over = self.attempts.values().filter(|attempt| attempt.over.is_some());
        over.map(Attempt::node).collect()
    }

    /// No lease may be taken, or work go on, after this.
    pub(super) fn deadline(&self) -> Timestamp {
        self.grant.as_ref().map_or(self.spec.deadline, |grant| grant.deadline)
    }

    pub(super) fn institution(&self) -> InstitutionId {
        self.cert.signer
    }

    pub(super) fn needs(&self, budget: Credits) -> Needs<'_> {
        Needs {
            spec: &self.spec,
            task: &self.task,
            institution: self.institution(),
            budget,
            deadline: self.deadline(),
        }
    }

    pub(super) fn durable(&self) -> impl PartialEq + std::fmt::Debug + use<> {
        let attempts: Vec<_> = self
            .attempts
            .iter()
            .map(|(n, a)| (*n, a.assign.id(), a.lease.as_ref().map(Verified::id), a.over.clone()))
            .collect();
        (
            (self.number, self.spec.id(), self.cert.id(), self.task.clone()),
            self.grant.as_ref().map(Verified::id),
            (attempts, self.next_attempt),
            self.over.clone(),
        )
    }
}

impl Attempt {
    pub(super) fn new(assign: Verified<Assign>, heard: Timestamp) -> Attempt {
        Attempt {
            assign,
            lease: None,
            over: None,
            heard,
            leased_at: None,
            renewal: 0,
            resend_at: heard,
            undelivered: 0,
            offered: None,
        }
    }

    pub(crate) fn node(&self) -> NodeId {
        self.assign.node
    }
}
