//! The home node's part in a job: ask, assign, follow, and try again elsewhere.
//!
//! A broker proposes and never commits for another node: the lease is the node's own. It holds at
//! most one live attempt per job, never uses an attempt number twice (the `Assign` is durable
//! before it is sent), and does not follow a lease that it has given up.

mod answers;
mod follow;
mod job;
mod plan;
mod promised;
mod replay;
mod show;

use std::collections::{BTreeMap, BTreeSet};

use allmend_protocol::cert::ResearcherCert;
use allmend_protocol::envelope::Verified;
use allmend_protocol::finetune::Task;
use allmend_protocol::ids::{MessageId, NodeId};
use allmend_protocol::job::JobSpec;
use allmend_protocol::lease::{Cancel, CancelWhy};
use allmend_protocol::offer::{Reason, ReasonClass};
use allmend_protocol::time::{DurationMs, Timestamp};

use crate::core::Broken;
use crate::ctx::Ctx;
use crate::io::{Effect, JobOutcomeRecord, Record};
use crate::ledger::Ledger;
pub use job::Job;
use job::{Over, Stage};
pub(crate) use plan::survey;
pub(crate) use promised::Promised;

/// A waiting job is looked at again after this, then after twice as long, and so on…
const BACKOFF_MIN: DurationMs = DurationMs::from_ms(500);
/// …up to this.
const BACKOFF_MAX: DurationMs = DurationMs::from_secs(10);
/// When the view changes, each home looks at its waiting jobs after a time of its own up to this:
/// a freed slot would otherwise be asked for by all homes in the same moment.
const WAKE_SPREAD_MS: u64 = 600;
/// However often the view changes, a waiting job is looked at no more often than this.
const PLAN_GAP_MIN: DurationMs = DurationMs::from_ms(200);

/// All jobs of one home node.
#[derive(Clone, Debug, Default)]
pub struct Broker {
    jobs: BTreeMap<MessageId, Job>,
    /// Jobs that are not over, in the order in which they came: none waits behind a later one.
    open: BTreeMap<u64, MessageId>,
    numbers: u64,
    probes: u64,
    /// Jobs that may be asking or have a live attempt; a superset, tidied when it is read.
    busy: BTreeSet<MessageId>,
    /// Certificates logged already.
    certs: BTreeMap<MessageId, Verified<ResearcherCert>>,
}

impl Broker {
    /// A job.
    pub fn job(&self, id: MessageId) -> Option<&Job> {
        self.jobs.get(&id)
    }

    /// All jobs by id.
    pub fn jobs(&self) -> impl Iterator<Item = (&MessageId, &Job)> {
        self.jobs.iter()
    }

    /// How many jobs are not over.
    pub fn open_count(&self) -> usize {
        self.open.len()
    }

    /// Why `job` would not be taken; nothing when it would, or is known already.
    ///
    /// # Errors
    /// Every reason, in words.
    pub(crate) fn check_submit(
        &self,
        ctx: &Ctx<'_>,
        job: &Verified<JobSpec>,
        cert: &Verified<ResearcherCert>,
    ) -> Result<Task, Vec<Reason>> {
        let mut reasons = check_chain(ctx, job, cert);
        let task = Task::from_work(&job.work);
        if let Err(error) = &task {
            reasons
                .push(Reason::new(ReasonClass::Version, format!("work not understood: {error}")));
        }
        let limits = &ctx.settings.limits;
        if self.open.len() >= limits.jobs_open_max {
            let text = format!("this node has {} jobs open already", self.open.len());
            reasons.push(Reason::new(ReasonClass::Busy, text));
        }
        let of_researcher = self.open.values().filter_map(|id| self.jobs.get(id));
        let of_researcher = of_researcher.filter(|known| known.spec.signer == job.signer).count();
        if of_researcher >= limits.jobs_per_researcher_max {
            let text = format!("this researcher has {of_researcher} jobs open already");
            reasons.push(Reason::new(ReasonClass::Busy, text));
        }
        match task {
            Ok(task) if reasons.is_empty() => Ok(task),
            _ => Err(reasons),
        }
    }

    /// A researcher's job arrives.
    pub(crate) fn submit(
        &mut self,
        ctx: &mut Ctx<'_>,
        ledger: &mut Ledger,
        job: Verified<JobSpec>,
        cert: Verified<ResearcherCert>,
    ) {
        let id = job.id();
        if self.jobs.contains_key(&id) {
            return;
        }
        let Ok(task) = self.check_submit(ctx, &job, &cert) else { return };
        if !self.certs.contains_key(&cert.id()) {
            ctx.leaf(cert.clone(), false);
        }
        ctx.leaf(job.clone(), true);
        self.enter(ctx.settings.limits.jobs_remembered_max, ledger, job, cert, task);
        ctx.out.push(Effect::JobChanged { job: id });
        self.plan(ctx, ledger, id);
    }

    /// The job's researcher wants it to stop.
    pub(crate) fn cancelled_by_researcher(
        &mut self,
        ctx: &mut Ctx<'_>,
        ledger: &mut Ledger,
        cancel: &Verified<Cancel>,
    ) {
        let Some(job) = self.jobs.get(&cancel.job) else { return };
        let may = cancel.signer == job.spec.signer.into() && cancel.attempt.is_none();
        if !may || job.over.is_some() {
            return;
        }
        ctx.heard(&cancel.clone().into(), &[], false);
        self.end(ctx, ledger, cancel.job, JobOutcomeRecord::Cancelled, "cancelled".to_owned());
    }

    /// Adds a job, forgetting the oldest settled ones when there are too many.
    fn enter(
        &mut self,
        remembered_max: usize,
        ledger: &mut Ledger,
        spec: Verified<JobSpec>,
        cert: Verified<ResearcherCert>,
        task: Task,
    ) {
        while self.jobs.len() >= remembered_max {
            let settled = |job: &Job| {
                job.over.is_some()
                    && job.grant.as_ref().is_none_or(|grant| {
                        ledger.account(grant.id()).is_none_or(|a| a.settlement().is_some())
                    })
            };
            let oldest = self.jobs.iter().filter(|(_, job)| settled(job));
            let oldest = oldest.min_by_key(|(_, job)| job.number).map(|(id, _)| *id);
            let Some(id) = oldest else { break };
            if let Some(job) = self.jobs.remove(&id) {
                if let Some(grant) = job.grant {
                    ledger.forget(grant.id());
                }
                let cert = job.cert.id();
                if !self.jobs.values().any(|job| job.cert.id() == cert) {
                    self.certs.remove(&cert);
                }
            }
        }
        self.numbers += 1;
        let id = spec.id();
        self.certs.insert(cert.id(), cert.clone());
        self.open.insert(self.numbers, id);
        self.jobs.insert(id, Job::new(self.numbers, spec, cert, task));
    }

    /// The job is over: whatever still runs is stopped, the ledger may count.
    fn end(
        &mut self,
        ctx: &mut Ctx<'_>,
        ledger: &mut Ledger,
        id: MessageId,
        outcome: JobOutcomeRecord,
        why: String,
    ) {
        let Some(job) = self.jobs.get_mut(&id) else { return };
        if job.over.is_some() {
            return;
        }
        ctx.record(Record::JobOver { job: id, outcome, why: why.clone() }, true);
        let finished = outcome == JobOutcomeRecord::Finished;
        if let Some(attempt) = job.live_attempt() {
            let number = attempt.assign.attempt;
            let (node, leased) = (attempt.node(), attempt.lease.is_some());
            let told = match outcome {
                JobOutcomeRecord::Cancelled => Some(CancelWhy::Researcher),
                JobOutcomeRecord::Expired => Some(CancelWhy::Deadline),
                _ => None,
            };
            if let Some(why) = told {
                send_cancel(ctx, id, node, number, why);
            }
            if leased && !finished {
                ctx.out.push(Effect::CloseStream { job: id, attempt: number });
            }
        }
        ctx.out.push(Effect::JobChanged { job: id });
        self.enter_end(ledger, ctx.skew(), id, outcome, why);
    }

    fn enter_end(
        &mut self,
        ledger: &mut Ledger,
        skew: DurationMs,
        id: MessageId,
        outcome: JobOutcomeRecord,
        why: String,
    ) {
        let Some(job) = self.jobs.get_mut(&id) else { return };
        if let Some(attempt) = job.live_attempt_mut() {
            attempt.over = Some(why.clone());
        }
        // An assignment without an answer may have become a lease that is still on its way.
        let unanswered = job.attempts.values().filter(|attempt| attempt.lease.is_none());
        let possible = unanswered.map(|attempt| attempt.assign.respond_by.plus(skew.times(2)));
        let possible = possible.max().unwrap_or(Timestamp::ZERO);
        if let Some(grant) = &job.grant {
            ledger.close(grant.id(), outcome.into(), possible);
        }
        job.why.clone_from(&why);
        job.over = Some(Over { outcome, why });
        job.probes.clear();
        job.answers.clear();
        job.stage = Stage::Waiting { until: Timestamp::ZERO };
        self.open.remove(&job.number);
    }

    /// The first rule that the jobs break.
    pub(crate) fn broken_invariant(&self) -> Option<Broken> {
        for id in self.open.values() {
            let Some(job) = self.jobs.get(id) else {
                return Some(Broken::new("jobs", format!("open job {id} is unknown")));
            };
            if job.over.is_some() {
                return Some(Broken::new("jobs", format!("job {id} is open and over")));
            }
            let live = job.attempts.values().filter(|attempt| attempt.over.is_none()).count();
            if live > 1 {
                return Some(Broken::new("one-attempt", format!("job {id} has {live} live")));
            }
            if job.attempts.len() > usize::from(job.spec.attempts) {
                return Some(Broken::new("S4", format!("job {id} has too many attempts")));
            }
        }
        None
    }

    /// What the journal keeps, for comparing a replay with the live state.
    pub(crate) fn durable(&self) -> impl PartialEq + std::fmt::Debug + use<> {
        let jobs: BTreeMap<_, _> = self.jobs.iter().map(|(id, job)| (*id, job.durable())).collect();
        (jobs, self.open.clone(), self.numbers, self.certs.keys().copied().collect::<BTreeSet<_>>())
    }
}

/// Tells `node` to stop an attempt.
fn send_cancel(ctx: &mut Ctx<'_>, job: MessageId, node: NodeId, attempt: u16, why: CancelWhy) {
    let cancel = ctx.sign(Cancel {
        federation: ctx.me.federation,
        signer: ctx.me.node.into(),
        job,
        attempt: Some(attempt),
        why,
        issued: ctx.now,
    });
    ctx.send(node, cancel, vec![]);
}

/// What does not hold in a job's chain as far as its home can see.
fn check_chain(
    ctx: &Ctx<'_>,
    job: &Verified<JobSpec>,
    cert: &Verified<ResearcherCert>,
) -> Vec<Reason> {
    let mut reasons = Vec::new();
    let mut rule = |holds: bool, class, text: &str| {
        if !holds {
            reasons.push(Reason::new(class, text));
        }
    };
    use ReasonClass::{Chain, Deadline};
    rule(job.home == ctx.me.node, Chain, "the job names another home node");
    rule(cert.home == ctx.me.node, Chain, "the researcher's certificate names another home node");
    rule(job.certificate == cert.id(), Chain, "the job relies on another certificate");
    rule(job.signer == cert.researcher, Chain, "the job is not signed by the certified researcher");
    rule(job.delegation.is_none(), Chain, "delegations are not accepted yet");
    rule(job.charter == ctx.charter(), Chain, "the job relies on another charter");
    rule(cert.signer == ctx.me.institution, Chain, "the certificate is of another institution");
    rule(job.issued <= ctx.now.plus(ctx.skew()), Chain, "the job claims to be from the future");
    rule(ctx.now < job.deadline, Deadline, "the job's deadline has passed");
    if let Err(error) = ctx.roster.check_researcher(ctx.now, cert) {
        reasons.push(Reason::new(Chain, error.to_string()));
    }
    reasons
}
