//! Whom to ask and to whom to give an attempt.

use std::collections::BTreeMap;

use allmend_protocol::encoding;
use allmend_protocol::envelope::Verified;
use allmend_protocol::grant::{Assign, BrokerRange, Grant};
use allmend_protocol::ids::{Digest, MessageId, NodeId};
use allmend_protocol::offer::{Offer, Probe, Reason, ReasonClass};
use allmend_protocol::time::Timestamp;

use super::job::{Attempt, Job, Stage};
use super::promised::Promised;
use super::{BACKOFF_MAX, BACKOFF_MIN, Broker};
use crate::ctx::Ctx;
use crate::filter::{Datasets, Has, Needs, may_pass, price_max, unfit};
use crate::io::{Considered, Effect, JobOutcomeRecord};
use crate::ledger::Ledger;
use crate::score::score;
use crate::settings::RESEND_EVERY;

/// The home node is asked first when it scores no worse than this below the best: a prompt that
/// stays in the house is worth a quarter of a second.
const LOCAL_PREFERENCE_MICROS: i64 = 250_000;

/// The best so many are asked, and one more that is not among them: a stale view must not starve
/// the others for ever.
const ASK_BEST: usize = 2;

/// So many different reasons fit into one sentence.
const REASONS_TOLD_MAX: usize = 3;

/// A job's last survey is kept for people up to so many nodes.
const CONSIDERED_MAX: usize = 64;

/// What the view says about each known node for a job: a score, or every reason against it.
pub(crate) fn survey(
    ctx: &Ctx<'_>,
    needs: &Needs<'_>,
    promised: &Promised,
) -> BTreeMap<NodeId, Result<i64, Vec<Reason>>> {
    let mut survey = BTreeMap::new();
    for (node, known) in ctx.view.iter() {
        let Ok(cert) = ctx.roster.node_at(ctx.now, *node) else { continue };
        let verdict = if ctx.view.is_distrusted(*node) {
            let text = "the node has signed two contradicting adverts";
            Err(vec![Reason::new(ReasonClass::Chain, text)])
        } else {
            let mut has = Has::advertised(&known.advert, cert.signer, cert.jurisdiction);
            has.slots_free = promised.left(*node, has.slots_free);
            // What this node holds it need not advertise to itself.
            if *node == ctx.me.node {
                has.datasets = Datasets::All(&ctx.local.datasets);
            }
            let mut reasons = unfit(ctx.now, needs, &has);
            if reasons.is_empty() && !ctx.view.is_reachable(ctx.now, *node) {
                let text = "the node could not be reached";
                reasons.push(Reason::new(ReasonClass::Busy, text));
            }
            let score = || score(&known.advert, needs.spec.model, *node == ctx.me.node);
            if reasons.is_empty() { Ok(score()) } else { Err(reasons) }
        };
        survey.insert(*node, verdict);
    }
    survey
}

impl Broker {
    /// Moves a job without a live attempt on: assigns, asks, waits, or ends it.
    pub(super) fn plan(&mut self, ctx: &mut Ctx<'_>, ledger: &mut Ledger, id: MessageId) {
        let promised = self.promised(ctx, Some(id));
        let Some(job) = self.jobs.get_mut(&id) else { return };
        if job.over.is_some() || job.live_attempt().is_some() {
            return;
        }
        if ctx.now >= job.deadline() {
            let why = format!("its deadline was {}", job.deadline());
            return self.end(ctx, ledger, id, JobOutcomeRecord::Expired, why);
        }
        if job.next_attempt > job.spec.attempts {
            let last = job.attempts.values().next_back().and_then(|attempt| attempt.over.clone());
            let last = last.unwrap_or_default();
            let why = format!("all {} attempts are used up; the last: {last}", job.spec.attempts);
            return self.end(ctx, ledger, id, JobOutcomeRecord::Failed, why);
        }
        job.planned_at = ctx.now;
        job.wake_at = None;
        job.generation = ctx.view.generation();
        let spent = job.grant.as_ref().map(|grant| ledger.spent(grant.id()));
        let budget = job.spec.cap.less(spent.unwrap_or_default());
        let survey = survey(ctx, &job.needs(budget), &promised);
        job.note_considered(ctx.now, &survey);

        if let Some((node, offer)) = job.offer_on_file(ctx.now, &survey) {
            return self.assign(ctx, ledger, id, node, &offer, &survey);
        }
        if let Stage::Asking { until } = job.stage
            && ctx.now < until
            && !job.probes.is_empty()
        {
            return;
        }
        let picks = job.picks(ctx, &survey);
        if !picks.is_empty() {
            return self.ask(ctx, id, &picks);
        }
        let passing = survey.iter().find_map(|(node, verdict)| match verdict {
            Err(reasons) if may_pass(reasons) => Some(format!("{}: {}", node.short(), reasons[0])),
            Err(_) => None,
            Ok(_) => job
                .answers
                .get(node)
                .filter(|answer| answer.passes)
                .map(|answer| format!("{}: {}", node.short(), answer.verdict)),
        });
        let still_learning = ctx.now < ctx.started.plus(ctx.timing().advert_every_ms);
        match passing {
            Some(why) => job.wait(ctx, format!("waiting for a node: {why}")),
            None if still_learning => {
                job.wait(ctx, "waiting to hear from the other nodes".to_owned());
            }
            None => {
                let why = job.no_node(&survey);
                self.end(ctx, ledger, id, JobOutcomeRecord::Refused, why);
            }
        }
    }

    fn ask(&mut self, ctx: &mut Ctx<'_>, id: MessageId, nodes: &[NodeId]) {
        let Some(job) = self.jobs.get_mut(&id) else { return };
        job.probes.clear();
        for node in nodes {
            self.probes += 1;
            let probe = ctx.sign(Probe {
                federation: ctx.me.federation,
                signer: ctx.me.node,
                charter: ctx.charter(),
                job: id,
                attempt: job.next_attempt,
                sequence: (u64::from(ctx.incarnation) << 40) + self.probes,
                issued: ctx.now,
            });
            job.probes.insert(*node, probe.id());
            ctx.send(*node, probe, vec![job.spec.clone().into(), job.cert.clone().into()]);
        }
        let names: Vec<String> = nodes.iter().map(NodeId::short).collect();
        job.why = format!("asking {}", names.join(", "));
        job.stage = Stage::Asking { until: ctx.now.plus(ctx.timing().probe_wait_ms) };
        self.busy.insert(id);
        ctx.out.push(Effect::JobChanged { job: id });
    }

    /// Gives the next attempt to `node`: durable before it is sent, so that no attempt number is
    /// ever used twice (S4).
    fn assign(
        &mut self,
        ctx: &mut Ctx<'_>,
        ledger: &mut Ledger,
        id: MessageId,
        node: NodeId,
        offer: &Verified<Offer>,
        survey: &BTreeMap<NodeId, Result<i64, Vec<Reason>>>,
    ) {
        let Some(job) = self.jobs.get_mut(&id) else { return };
        let grant = match &job.grant {
            Some(grant) => grant.clone(),
            None => {
                let Some(body) = job.new_grant(ctx) else {
                    let why = "a certificate in its chain is about to expire".to_owned();
                    return self.end(ctx, ledger, id, JobOutcomeRecord::Expired, why);
                };
                let grant = ctx.sign(body);
                ctx.leaf(grant.clone(), false);
                ledger.open(grant.clone(), job.task.prompt_tokens_max());
                job.grant = Some(grant.clone());
                grant
            }
        };
        let respond_by = ctx.now.plus(ctx.timing().assign_wait_ms).min(grant.deadline);
        if respond_by <= ctx.now {
            let why = format!("its deadline was {}", grant.deadline);
            return self.end(ctx, ledger, id, JobOutcomeRecord::Expired, why);
        }
        let number = job.next_attempt;
        job.next_attempt += 1;
        let assign = ctx.sign(Assign {
            federation: ctx.me.federation,
            signer: ctx.me.node,
            charter: ctx.charter(),
            job: id,
            grant: grant.id(),
            attempt: number,
            node,
            offer: offer.id(),
            considered: considered_digest(survey),
            issued: ctx.now,
            respond_by,
        });
        ctx.leaf(assign.clone(), true);
        let mut attempt = Attempt::new(assign, ctx.now);
        attempt.resend_at = ctx.now.plus(RESEND_EVERY);
        attempt.offered = Some(offer.rates);
        job.attempts.insert(number, attempt);
        job.probes.clear();
        job.answers.remove(&node);
        job.backoff = BACKOFF_MIN;
        job.stage = Stage::Working;
        job.why = format!("given to {}, waiting for its lease", node.short());
        job.send_assign(ctx, number);
        self.busy.insert(id);
        ctx.out.push(Effect::JobChanged { job: id });
    }
}

impl Job {
    /// Sends or repeats an assignment with everything that its receiver must check.
    pub(super) fn send_assign(&self, ctx: &mut Ctx<'_>, number: u16) {
        if let (Some(attempt), Some(grant)) = (self.attempts.get(&number), &self.grant) {
            let attached =
                vec![grant.clone().into(), self.spec.clone().into(), self.cert.clone().into()];
            ctx.send(attempt.node(), attempt.assign.clone(), attached);
        }
    }

    /// Permission to spend on this job; `None` when a certificate of its chain is at its end.
    fn new_grant(&self, ctx: &Ctx<'_>) -> Option<Grant> {
        let mut deadline = self.spec.deadline.min(self.cert.expires);
        deadline = deadline.min(ctx.roster.node_expiry(ctx.me.node)?);
        (ctx.now < deadline).then(|| Grant {
            federation: ctx.me.federation,
            signer: ctx.me.node,
            charter: ctx.charter(),
            governance: None,
            job: self.spec.id(),
            researcher: self.spec.signer,
            cap: self.spec.cap,
            attempts: self.spec.attempts,
            brokers: vec![BrokerRange { node: ctx.me.node, first: 1, last: self.spec.attempts }],
            issued: ctx.now,
            deadline,
            settle_by: deadline.plus(ctx.timing().settle_slack_ms),
        })
    }

    /// The best node whose offer still stands.
    fn offer_on_file(
        &self,
        now: Timestamp,
        survey: &BTreeMap<NodeId, Result<i64, Vec<Reason>>>,
    ) -> Option<(NodeId, Verified<Offer>)> {
        let failed = self.failed_nodes();
        let offers = self.answers.iter().filter_map(|(node, answer)| {
            let offer = answer.offer.as_ref().filter(|offer| now < offer.expires)?;
            let score = survey.get(node)?.as_ref().ok()?;
            Some(((failed.contains(node), -score, *node), offer))
        });
        offers.min_by_key(|(key, _)| *key).map(|((_, _, node), offer)| (node, offer.clone()))
    }

    /// Whom to ask next: the best two, and one other chosen by hash of job, attempt and node.
    fn picks(
        &self,
        ctx: &Ctx<'_>,
        survey: &BTreeMap<NodeId, Result<i64, Vec<Reason>>>,
    ) -> Vec<NodeId> {
        let failed = self.failed_nodes();
        let fits =
            survey.iter().filter_map(|(node, verdict)| Some((*node, *verdict.as_ref().ok()?)));
        let mut fits: Vec<(NodeId, i64)> =
            fits.filter(|(node, _)| self.may_ask(ctx.now, *node)).collect();
        if fits.iter().any(|(node, _)| !failed.contains(node)) {
            fits.retain(|(node, _)| !failed.contains(node));
        }
        fits.sort_by_key(|(node, score)| (-score, *node));
        let best = fits.first().map_or(0, |(_, score)| *score);
        if let Some(home) = fits.iter().position(|(node, _)| *node == ctx.me.node)
            && fits[home].1 + LOCAL_PREFERENCE_MICROS >= best
        {
            let home = fits.remove(home);
            fits.insert(0, home);
        }
        let others = fits.split_off(fits.len().min(ASK_BEST));
        let mut picks: Vec<NodeId> = fits.into_iter().map(|(node, _)| node).collect();
        let draw = |node: &NodeId| {
            let mut bytes = self.spec.id().as_bytes().to_vec();
            bytes.extend_from_slice(&self.next_attempt.to_be_bytes());
            bytes.extend_from_slice(node.as_bytes());
            Digest::of(&bytes)
        };
        picks.extend(others.into_iter().map(|(node, _)| node).min_by_key(draw));
        picks
    }

    /// Why no node will do, the commonest reason first.
    fn no_node(&self, survey: &BTreeMap<NodeId, Result<i64, Vec<Reason>>>) -> String {
        let mut counts: BTreeMap<String, u32> = BTreeMap::new();
        for (node, verdict) in survey {
            let words = match verdict {
                // What does not pass says more than that a slot is taken.
                Err(reasons) => reasons
                    .iter()
                    .find(|reason| !reason.class.passes())
                    .or(reasons.first())
                    .map_or(String::new(), Reason::to_string),
                Ok(_) => self.answers.get(node).map_or(String::new(), |a| a.verdict.clone()),
            };
            *counts.entry(words).or_default() += 1;
        }
        let mut counts: Vec<(String, u32)> = counts.into_iter().collect();
        counts.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
        let told = counts.iter().take(REASONS_TOLD_MAX).map(|(words, count)| match count {
            1 => format!("1 node: {words}"),
            _ => format!("{count} nodes: {words}"),
        });
        let told: Vec<String> = told.collect();
        if told.is_empty() {
            return "no node is known".to_owned();
        }
        format!("no node may or will run it; {}", told.join("; "))
    }

    fn may_ask(&self, now: Timestamp, node: NodeId) -> bool {
        self.answers.get(&node).is_none_or(|answer| answer.holds_until <= now)
    }

    fn wait(&mut self, ctx: &mut Ctx<'_>, why: String) {
        self.stage = Stage::Waiting { until: ctx.now.plus(self.backoff) };
        self.backoff = self.backoff.times(2).min(BACKOFF_MAX);
        self.probes.clear();
        if self.why != why {
            self.why = why;
            ctx.out.push(Effect::JobChanged { job: self.spec.id() });
        }
    }

    /// Keeps what was thought of each node, for people.
    pub(super) fn note_considered(
        &mut self,
        now: Timestamp,
        survey: &BTreeMap<NodeId, Result<i64, Vec<Reason>>>,
    ) {
        let mut considered = Vec::new();
        for (node, verdict) in survey.iter().take(CONSIDERED_MAX) {
            let verdict = match (verdict, self.answers.get(node)) {
                (Err(reasons), _) => words(reasons),
                (Ok(_), Some(answer)) if now < answer.holds_until => answer.verdict.clone(),
                (Ok(score), _) => format!("fits, about {} ms away", score.unsigned_abs() / 1_000),
            };
            considered.push(Considered { node: *node, verdict });
        }
        self.considered = considered;
    }

    /// Whether an offer's price is within what may still be spent.
    pub(super) fn affords(&self, ledger: &Ledger, offer: &Offer) -> bool {
        let spent = self.grant.as_ref().map(|grant| ledger.spent(grant.id()));
        let budget = self.spec.cap.less(spent.unwrap_or_default());
        price_max(offer.rates, &self.task).is_some_and(|price| price <= budget)
    }
}

/// Reasons as one line.
pub(super) fn words(reasons: &[Reason]) -> String {
    reasons.iter().map(Reason::to_string).collect::<Vec<_>>().join("; ")
}

/// Digest over the canonical list of nodes with score or reasons, in order of node id, so that an
/// auditor can replay the choice (specs/grant.md).
fn considered_digest(survey: &BTreeMap<NodeId, Result<i64, Vec<Reason>>>) -> Digest {
    let entry = |(node, verdict): (&NodeId, &Result<i64, Vec<Reason>>)| match verdict {
        Ok(score) => (*node, Some(*score), vec![]),
        Err(reasons) => {
            (*node, None, reasons.iter().map(|reason| reason.class.name()).collect::<Vec<_>>())
        }
    };
    Digest::of(&encoding::encode(&survey.iter().map(entry).collect::<Vec<_>>()))
}
