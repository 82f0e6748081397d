//! What nodes answer to probes and assignments.

use allmend_protocol::envelope::Verified;
use allmend_protocol::ids::{MessageId, NodeId};
use allmend_protocol::offer::{Offer, Pending, Refusal};
use allmend_protocol::time::{DurationMs, Timestamp};

use super::Broker;
use super::job::{Answer, Job};
use super::plan::words;
use crate::ctx::Ctx;
use crate::filter::may_pass;
use crate::io::Effect;
use crate::ledger::Ledger;

/// A refusal for good is believed for so long; owners change their policy at any minute.
const REFUSAL_KEPT: DurationMs = DurationMs::from_secs(60);
/// A refusal that passes and names no time is believed for so long.
const BUSY_KEPT: DurationMs = DurationMs::from_secs(1);
/// No refusal is believed for longer than this, whatever time it names.
const RETRY_AFTER_MAX: DurationMs = DurationMs::from_secs(600);
/// A node that did not answer is not asked again for so long.
const SILENCE_KEPT: DurationMs = DurationMs::from_secs(4);
/// A node where a person must decide is asked again after this.
const PENDING_KEPT: DurationMs = DurationMs::from_secs(5);

impl Broker {
    /// A node would run a job: the first offer to an inference job is taken.
    pub(crate) fn offer(
        &mut self,
        ctx: &mut Ctx<'_>,
        ledger: &mut Ledger,
        offer: &Verified<Offer>,
    ) {
        let node = offer.signer;
        let Some(job) = self.jobs.get_mut(&offer.job) else { return };
        if job.probes.get(&node) != Some(&offer.probe) || ctx.now >= offer.expires {
            return;
        }
        job.probes.remove(&node);
        let affordable = job.affords(ledger, offer);
        let answer = Answer {
            verdict: if affordable {
                "offered".into()
            } else {
                "its price is above the cap".into()
            },
            passes: false,
            holds_until: if affordable { offer.expires } else { ctx.now.plus(REFUSAL_KEPT) },
            offer: affordable.then(|| offer.clone()),
        };
        job.answers.insert(node, answer);
        self.plan(ctx, ledger, offer.job);
    }

    /// A node will not run a job, asked by a probe or by an assignment.
    pub(crate) fn refusal(&mut self, ctx: &mut Ctx<'_>, ledger: &mut Ledger, refusal: &Refusal) {
        let node = refusal.signer;
        let id = refusal.job;
        let Some(job) = self.jobs.get_mut(&id) else { return };
        let assigned = job.live_attempt().filter(|attempt| {
            attempt.assign.id() == refusal.about
                && attempt.node() == node
                && attempt.lease.is_none()
        });
        let assigned = assigned.map(|attempt| attempt.assign.attempt);
        let probed = job.probes.get(&node) == Some(&refusal.about);
        if assigned.is_none() && !probed {
            return;
        }
        job.probes.remove(&node);
        let passes = refusal.retry_after_ms.is_some() || may_pass(&refusal.reasons);
        let kept = match refusal.retry_after_ms {
            Some(after) => after.min(RETRY_AFTER_MAX),
            None if passes => BUSY_KEPT,
            None => REFUSAL_KEPT,
        };
        let verdict = words(&refusal.reasons);
        job.answer(node, verdict.clone(), passes, ctx.now.plus(kept));
        match assigned {
            Some(attempt) => {
                self.attempt_over(ctx, id, attempt, format!("{} refused: {verdict}", node.short()));
                self.plan(ctx, ledger, id);
            }
            None => self.plan(ctx, ledger, id),
        }
    }

    /// A person must decide first.
    pub(crate) fn pending(&mut self, ctx: &mut Ctx<'_>, ledger: &mut Ledger, pending: &Pending) {
        let node = pending.signer;
        let Some(job) = self.jobs.get_mut(&pending.job) else { return };
        if job.probes.get(&node) != Some(&pending.probe) {
            return;
        }
        job.probes.remove(&node);
        let verdict = format!("waits for {}", pending.obligations.join(", "));
        job.answer(node, verdict, true, ctx.now.plus(PENDING_KEPT));
        self.plan(ctx, ledger, pending.job);
    }

    /// A message of ours did not reach its node.
    pub(crate) fn undelivered(
        &mut self,
        ctx: &mut Ctx<'_>,
        ledger: &mut Ledger,
        to: NodeId,
        message: MessageId,
    ) {
        let found = self.open.values().copied().find(|id| {
            self.jobs.get(id).is_some_and(|job| {
                job.probes.get(&to) == Some(&message)
                    || job.live_attempt().is_some_and(|a| a.assign.id() == message)
            })
        });
        let Some(id) = found else { return };
        let Some(job) = self.jobs.get_mut(&id) else { return };
        if job.probes.get(&to) == Some(&message) {
            job.silent(ctx.now, to, "could not be reached");
            return self.plan(ctx, ledger, id);
        }
        let Some(attempt) = job.live_attempt_mut() else { return };
        attempt.undelivered = attempt.undelivered.saturating_add(1);
        // Once may be an accident; the repeated assignment will show.
        if attempt.undelivered >= 2 && attempt.lease.is_none() {
            let number = attempt.assign.attempt;
            job.silent(ctx.now, to, "could not be reached");
            self.give_up(ctx, ledger, id, number, format!("{} could not be reached", to.short()));
        }
    }

    /// The wait for answers is over.
    pub(super) fn answers_are_due(
        &mut self,
        ctx: &mut Ctx<'_>,
        ledger: &mut Ledger,
        id: MessageId,
    ) {
        if let Some(job) = self.jobs.get_mut(&id) {
            for node in std::mem::take(&mut job.probes).into_keys() {
                job.silent(ctx.now, node, "did not answer");
            }
            ctx.out.push(Effect::JobChanged { job: id });
            self.plan(ctx, ledger, id);
        }
    }
}

impl Job {
    fn silent(&mut self, now: Timestamp, node: NodeId, verdict: &str) {
        self.probes.remove(&node);
        self.answer(node, verdict.to_owned(), true, now.plus(SILENCE_KEPT));
    }

    pub(super) fn answer(
        &mut self,
        node: NodeId,
        verdict: String,
        passes: bool,
        holds_until: Timestamp,
    ) {
        self.answers.insert(node, Answer { verdict, passes, holds_until, offer: None });
    }
}
