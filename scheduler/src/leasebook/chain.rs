//! What must hold before a node computes on anybody's prompt (S5).

use allmend_protocol::cert::ResearcherCert;
use allmend_protocol::envelope::Verified;
use allmend_protocol::finetune::Task;
use allmend_protocol::grant::{Assign, Grant};
use allmend_protocol::ids::{MessageId, NodeId};
use allmend_protocol::job::JobSpec;
use allmend_protocol::message::AnyMessage;
use allmend_protocol::offer::{Reason, ReasonClass};
use allmend_protocol::time::{DurationMs, Timestamp};
use allmend_protocol::units::Credits;

use crate::ctx::Ctx;
use crate::filter::{Has, Needs, may_pass, unfit};
use crate::policy::{Denial, Question};
use crate::stewards::{AdapterQuestion, DataQuestion, DataVerdict, Occasion};

/// A busy node is worth asking again after this.
const BUSY_RETRY_AFTER: DurationMs = DurationMs::from_ms(800);
/// A draining or full node is worth asking again after this.
const DRAINING_RETRY_AFTER: DurationMs = DurationMs::from_secs(10);

/// Why a node will not do it, and when to ask again if that helps.
#[derive(Clone, Debug)]
pub(super) struct No {
    pub(super) reasons: Vec<Reason>,
    pub(super) retry_after: Option<DurationMs>,
}

impl No {
    pub(super) fn because(class: ReasonClass, text: &str) -> No {
        No { reasons: vec![Reason::new(class, text)], retry_after: None }
    }
}

/// A job with what vouches for it.
#[derive(Clone, Debug)]
pub(super) struct Asked {
    pub(super) job: Verified<JobSpec>,
    pub(super) cert: Verified<ResearcherCert>,
    pub(super) task: Task,
}

/// Checks that `home` may ask for the job of that id: the spec and certificate travelled beside
/// the question, name each other and `home`, and hold now.
pub(super) fn check_job(
    ctx: &Ctx<'_>,
    home: NodeId,
    id: MessageId,
    attached: &[AnyMessage],
) -> Result<Asked, No> {
    use ReasonClass::Chain;
    let no = |text: &str| No::because(Chain, text);
    let job = attached.iter().find_map(|message| match message {
        AnyMessage::JobSpec(job) if job.id() == id => Some(job.clone()),
        _ => None,
    });
    let job = job.ok_or_else(|| no("the job spec is missing"))?;
    let cert = attached.iter().find_map(|message| match message {
        AnyMessage::ResearcherCert(cert) if cert.id() == job.certificate => Some(cert.clone()),
        _ => None,
    });
    let cert = cert.ok_or_else(|| no("the researcher's certificate is missing"))?;
    let rules = [
        (job.home == home, "the job names another home node"),
        (cert.home == home, "the researcher's certificate names another home node"),
        (job.signer == cert.researcher, "the job is not signed by the certified researcher"),
        (job.delegation.is_none(), "delegations are not accepted yet"),
        (job.charter == ctx.charter(), "the job relies on another charter"),
        (job.issued <= ctx.now.plus(ctx.skew()), "the job claims to be from the future"),
    ];
    if let Some((_, broken)) = rules.iter().find(|(holds, _)| !holds) {
        return Err(no(broken));
    }
    let home_cert = ctx.roster.node_at(ctx.now, home).map_err(|error| no(&error.to_string()))?;
    if home_cert.signer != cert.signer {
        return Err(no("the researcher and the home node are of different institutions"));
    }
    ctx.roster.check_researcher(ctx.now, &cert).map_err(|error| no(&error.to_string()))?;
    ctx.roster
        .node_at(ctx.now, ctx.me.node)
        .map_err(|error| no(&format!("this node's own membership: {error}")))?;
    let task = Task::from_work(&job.work).map_err(|error| {
        No::because(ReasonClass::Version, &format!("work not understood: {error}"))
    })?;
    Ok(Asked { job, cert, task })
}

/// Checks the grant that travelled beside an assignment, and that the assignment is within it.
pub(super) fn check_grant(
    ctx: &Ctx<'_>,
    assign: &Assign,
    asked: &Asked,
    attached: &[AnyMessage],
) -> Result<Verified<Grant>, No> {
    let grant = attached.iter().find_map(|message| match message {
        AnyMessage::Grant(grant) if grant.id() == assign.grant => Some(grant.clone()),
        _ => None,
    });
    let grant = grant.ok_or_else(|| No::because(ReasonClass::Chain, "the grant is missing"))?;
    let (job, cert) = (&asked.job, &asked.cert);
    let in_range = grant.allows(assign.signer, assign.attempt);
    let home_expiry = ctx.roster.node_expiry(grant.signer).unwrap_or(Timestamp::ZERO);
    let latest = ctx.now.plus(ctx.skew());
    let in_time = ctx.settings.faults.accept_expired_lease
        || (ctx.now < assign.respond_by.plus(ctx.skew()) && ctx.now < grant.deadline);
    use ReasonClass::{Attempt, Chain, Deadline};
    let rules = [
        (grant.signer == job.home, Chain, "the grant is not signed by the job's home node"),
        (grant.job == job.id() && assign.job == job.id(), Chain, "the grant is for another job"),
        (grant.researcher == job.signer, Chain, "the grant names another researcher"),
        (grant.charter == ctx.charter(), Chain, "the grant relies on another charter"),
        (assign.charter == ctx.charter(), Chain, "the assignment relies on another charter"),
        (assign.node == ctx.me.node, Chain, "the assignment is for another node"),
        (grant.cap <= job.cap, Chain, "the grant is above the job's cap"),
        (grant.attempts <= job.attempts, Attempt, "the grant has more attempts than the job"),
        (in_range, Attempt, "the attempt is outside of the broker's range"),
        (grant.deadline <= job.deadline, Chain, "the grant outlives the job's deadline"),
        (grant.deadline <= cert.expires, Chain, "the grant outlives the researcher's certificate"),
        (grant.deadline <= home_expiry, Chain, "the grant outlives the home node's certificate"),
        (
            grant.settle_by <= grant.deadline.plus(ctx.timing().settle_slack_ms),
            Chain,
            "the grant settles later than the charter's slack",
        ),
        (grant.issued <= latest && assign.issued <= latest, Chain, "it claims to be of the future"),
        (in_time, Deadline, "the time to answer the assignment has passed"),
    ];
    match rules.iter().find(|(holds, ..)| !holds) {
        Some((_, class, broken)) => Err(No::because(*class, broken)),
        None => Ok(grant),
    }
}

/// Whether this node can and may run the job now.
pub(super) fn check_fit(
    ctx: &Ctx<'_>,
    asked: &Asked,
    budget: Credits,
    deadline: Timestamp,
    slots_free: u16,
) -> Result<(), No> {
    let needs = Needs {
        spec: &asked.job,
        task: &asked.task,
        institution: asked.cert.signer,
        budget,
        deadline,
    };
    let has = Has::local(ctx.local, ctx.me.institution, ctx.me.jurisdiction, slots_free);
    let mut reasons = unfit(ctx.now, &needs, &has);
    let limits = &ctx.settings.limits;
    let (tokens_max, verb) = match asked.task {
        Task::Infer(_) => (limits.max_tokens_max, "written"),
        Task::Finetune(_) => (limits.train_tokens_max, "trained on"),
    };
    if asked.task.tokens_max() > tokens_max {
        let text = format!("at most {tokens_max} tokens are {verb} here per job");
        reasons.push(Reason::new(ReasonClass::Size, text));
    }
    if asked.task.prompt_tokens_max() > limits.prompt_tokens_max {
        let text = format!("at most {} tokens of prompt are read here", limits.prompt_tokens_max);
        reasons.push(Reason::new(ReasonClass::Size, text));
    }
    let denial = check_policy(ctx, &asked.job, &asked.cert, &asked.task).err();
    let mut retry_after = None;
    if reasons.iter().any(|reason| reason.class == ReasonClass::Busy) {
        retry_after = Some(BUSY_RETRY_AFTER);
    }
    if ctx.local.draining.is_some() || ctx.local.disk_full.is_some() {
        retry_after = Some(DRAINING_RETRY_AFTER);
    }
    // A time to ask again is given only when everything in the way can pass.
    let mut all_pass = may_pass(&reasons);
    if let Some(denial) = denial {
        all_pass &= denial.retry_after.is_some();
        retry_after = retry_after.max(denial.retry_after);
        reasons.push(denial.reason);
    }
    if reasons.is_empty() {
        return Ok(());
    }
    Err(No { reasons: fit(reasons), retry_after: retry_after.filter(|_| all_pass) })
}

/// As many reasons as a refusal may carry.
pub(super) fn fit(mut reasons: Vec<Reason>) -> Vec<Reason> {
    reasons.truncate(allmend_protocol::offer::REASONS_MAX);
    reasons
}

/// What stewards say to a job that would read datasets here.
///
/// Nobody there to decide is a refusal: data are opened by a decision, never by default.
pub(super) fn check_data(
    ctx: &Ctx<'_>,
    job: &Verified<JobSpec>,
    cert: &ResearcherCert,
    task: &Task,
    occasion: Occasion,
) -> DataVerdict {
    let no = |text: String| DataVerdict::Refuse(vec![Reason::new(ReasonClass::Policy, text)]);
    if let Task::Infer(work) = task {
        match (work.adapter, job.dataset) {
            (_, Some(_)) => return no("no dataset is opened to an inference job".to_owned()),
            (None, None) => return DataVerdict::Allow,
            (Some(_), None) => {}
        }
    }
    let Some(stewards) = &ctx.settings.stewards else {
        return no("this node has no stewards to decide about that".to_owned());
    };
    let institution = match ctx.roster.institution_at(ctx.now, cert.signer) {
        Ok(institution) => institution,
        Err(error) => return no(error.to_string()),
    };
    let work = match task {
        Task::Finetune(work) => work,
        Task::Infer(work) => {
            let Some(adapter) = work.adapter else { return DataVerdict::Allow };
            let may_use = stewards.may_use(&AdapterQuestion {
                adapter,
                spec: job,
                cert,
                jurisdiction: institution.jurisdiction,
                node_institution: ctx.me.institution,
                node_jurisdiction: ctx.me.jurisdiction,
                now: ctx.now,
            });
            return may_use.map_or_else(DataVerdict::Refuse, |()| DataVerdict::Allow);
        }
    };
    stewards.decide(&DataQuestion {
        job: job.id(),
        spec: job,
        work,
        cert,
        jurisdiction: institution.jurisdiction,
        node_institution: ctx.me.institution,
        node_jurisdiction: ctx.me.jurisdiction,
        occasion,
        now: ctx.now,
    })
}

/// What the owner says to it.
pub(super) fn check_policy(
    ctx: &Ctx<'_>,
    job: &JobSpec,
    cert: &ResearcherCert,
    task: &Task,
) -> Result<(), Denial> {
    // An institution without an entry fails closed.
    let institution = ctx.roster.institution_at(ctx.now, cert.signer).map_err(|error| Denial {
        reason: Reason::new(ReasonClass::Policy, error.to_string()),
        retry_after: None,
    })?;
    ctx.settings.policy.decide(&Question {
        institution: cert.signer,
        jurisdiction: institution.jurisdiction,
        own: cert.signer == ctx.me.institution,
        purpose: &job.purpose,
        model: job.model,
        max_tokens: task.tokens_max(),
        now: ctx.now,
    })
}
