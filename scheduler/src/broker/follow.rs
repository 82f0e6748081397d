//! Following an attempt from its lease to its receipt, and giving it up.

use allmend_protocol::envelope::Verified;
use allmend_protocol::ids::{Digest, MessageId};
use allmend_protocol::lease::{CancelWhy, Lease, LeaseRenewal};
use allmend_protocol::message::AnyMessage;
use allmend_protocol::receipt::{Outcome, Receipt};
use allmend_protocol::time::DurationMs;

use super::job::Stage;
use super::{Broker, PLAN_GAP_MIN, WAKE_SPREAD_MS, send_cancel};
use crate::ctx::Ctx;
use crate::io::{Effect, JobOutcomeRecord, Record};
use crate::ledger::{Ledger, ReceiptNews};
use crate::settings::RESEND_EVERY;

/// Whether a lease is news.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Heard {
    First,
    Again,
}

impl Broker {
    /// A node committed itself.
    pub(crate) fn lease(
        &mut self,
        ctx: &mut Ctx<'_>,
        ledger: &mut Ledger,
        lease: &Verified<Lease>,
    ) {
        let skew = ctx.skew();
        let Some(heard) = self.hear_lease(ctx, ledger, lease) else { return };
        let Some(job) = self.jobs.get_mut(&lease.job) else { return };
        let job_over = job.over.is_some();
        let Some(attempt) = job.attempts.get_mut(&lease.attempt) else { return };
        if heard == Heard::Again {
            if job_over || attempt.over.is_some() {
                let why = CancelWhy::Superseded;
                send_cancel(ctx, lease.job, lease.signer, lease.attempt, why);
            }
            return;
        }
        let in_time = attempt.over.is_none()
            && !job_over
            && lease.issued <= attempt.assign.respond_by.plus(skew)
            && ctx.now <= attempt.assign.respond_by.plus(skew.times(2));
        let dearer = attempt.offered.is_some_and(|offered| {
            lease.rates.prompt > offered.prompt || lease.rates.completion > offered.completion
        });
        let careless = ctx.settings.faults.accept_expired_lease;
        if (in_time && !dearer) || careless {
            attempt.over = None;
            attempt.heard = ctx.now;
            attempt.leased_at = Some(ctx.now);
            job.stage = Stage::Working;
            job.why = format!("running on {}", lease.signer.short());
            ctx.out.push(Effect::OpenStream {
                job: lease.job,
                attempt: lease.attempt,
                node: lease.signer,
                lease: lease.id(),
            });
            ctx.out.push(Effect::JobChanged { job: lease.job });
        } else if attempt.over.is_none() && !job_over {
            let why = if dearer { "asks more than it offered" } else { "answered too late" };
            let why = format!("{} {why}", lease.signer.short());
            self.give_up(ctx, ledger, lease.job, lease.attempt, why);
        } else {
            send_cancel(ctx, lease.job, lease.signer, lease.attempt, CancelWhy::Superseded);
        }
    }

    /// Takes note of a lease that answers an assignment of ours; `None` when it does not.
    fn hear_lease(
        &mut self,
        ctx: &mut Ctx<'_>,
        ledger: &mut Ledger,
        lease: &Verified<Lease>,
    ) -> Option<Heard> {
        let job = self.jobs.get_mut(&lease.job)?;
        let grant = job.grant.as_ref()?;
        let attempt = job.attempts.get_mut(&lease.attempt)?;
        let answers = lease.assign == attempt.assign.id()
            && lease.signer == attempt.node()
            && lease.grant == grant.id();
        if !answers {
            return None;
        }
        if let Some(known) = &attempt.lease {
            // A second, different lease for one attempt is its node's crime, not our business.
            return (known.id() == lease.id()).then_some(Heard::Again);
        }
        if ledger.account(grant.id()).is_none_or(|account| account.settlement().is_some()) {
            send_cancel(ctx, lease.job, lease.signer, lease.attempt, CancelWhy::Superseded);
            return None;
        }
        ctx.heard(&lease.clone().into(), &[], true);
        attempt.lease = Some(lease.clone());
        ledger.enter_lease(lease.clone());
        Some(Heard::First)
    }

    /// A node is still at work.
    pub(crate) fn renewal(&mut self, ctx: &mut Ctx<'_>, renewal: &LeaseRenewal) {
        let Some(job) = self.jobs.get_mut(&renewal.job) else { return };
        let job_over = job.over.is_some();
        let leased = job.attempts.values_mut().find(|attempt| {
            attempt
                .lease
                .as_ref()
                .is_some_and(|lease| lease.id() == renewal.lease && lease.signer == renewal.signer)
        });
        let Some(attempt) = leased else { return };
        if job_over || attempt.over.is_some() {
            let number = attempt.assign.attempt;
            send_cancel(ctx, renewal.job, renewal.signer, number, CancelWhy::Superseded);
        } else if renewal.sequence > attempt.renewal {
            attempt.renewal = renewal.sequence;
            attempt.heard = ctx.now;
        }
    }

    /// A node says what it did. It is paid also for an attempt that was given up.
    pub(crate) fn receipt(
        &mut self,
        ctx: &mut Ctx<'_>,
        ledger: &mut Ledger,
        receipt: &Verified<Receipt>,
        attached: &[AnyMessage],
    ) {
        let id = receipt.job;
        for message in attached {
            if let AnyMessage::Lease(lease) = message
                && lease.id() == receipt.lease
                && lease.job == id
                && self.hear_lease(ctx, ledger, lease) == Some(Heard::First)
            {
                // Its lease was lost on the way; the work is done, so there is nothing to follow.
                ctx.out.push(Effect::JobChanged { job: id });
            }
        }
        if ledger.receipt(ctx, receipt) == ReceiptNews::Nothing {
            return;
        }
        ctx.out.push(Effect::JobChanged { job: id });
        self.conclude(ctx, ledger, id, receipt);
    }

    /// Draws the consequence of a receipt for the job, if its attempt is the live one.
    fn conclude(
        &mut self,
        ctx: &mut Ctx<'_>,
        ledger: &mut Ledger,
        id: MessageId,
        receipt: &Verified<Receipt>,
    ) {
        let Some(job) = self.jobs.get(&id) else { return };
        let live = job.live_attempt().is_some_and(|a| a.assign.attempt == receipt.attempt);
        if job.over.is_some() || !live {
            return;
        }
        let node = receipt.signer.short();
        let why = match &receipt.outcome {
            Outcome::Finished { reason } => {
                let why = format!("finished on {node} ({reason})");
                return self.end(ctx, ledger, id, JobOutcomeRecord::Finished, why);
            }
            Outcome::Failed { permanent: true, why } => {
                let why = format!("failed for good on {node}: {why}");
                return self.end(ctx, ledger, id, JobOutcomeRecord::Failed, why);
            }
            Outcome::Failed { permanent: false, why } => format!("failed on {node}: {why}"),
            Outcome::Cancelled => format!("{node} cancelled it"),
            Outcome::Interrupted => format!("{node} was interrupted"),
            Outcome::Lapsed => format!("{node} let its lease lapse"),
        };
        ctx.out.push(Effect::CloseStream { job: id, attempt: receipt.attempt });
        self.attempt_over(ctx, id, receipt.attempt, why);
        self.plan(ctx, ledger, id);
    }

    /// Gives a live attempt up, tells its node, and goes on.
    pub(super) fn give_up(
        &mut self,
        ctx: &mut Ctx<'_>,
        ledger: &mut Ledger,
        id: MessageId,
        number: u16,
        why: String,
    ) {
        let Some(job) = self.jobs.get(&id) else { return };
        let Some(attempt) = job.attempts.get(&number) else { return };
        let (node, leased) = (attempt.node(), attempt.lease.is_some());
        self.attempt_over(ctx, id, number, why);
        send_cancel(ctx, id, node, number, CancelWhy::Superseded);
        if leased {
            ctx.out.push(Effect::CloseStream { job: id, attempt: number });
        }
        self.plan(ctx, ledger, id);
    }

    /// Records that an attempt is over, durable before the next one can be made.
    pub(super) fn attempt_over(&mut self, ctx: &mut Ctx<'_>, id: MessageId, at: u16, why: String) {
        let Some(job) = self.jobs.get_mut(&id) else { return };
        let Some(attempt) = job.attempts.get_mut(&at) else { return };
        ctx.record(Record::AttemptOver { job: id, attempt: at, why: why.clone() }, true);
        attempt.over = Some(why.clone());
        job.stage = Stage::Waiting { until: ctx.now };
        job.why = why;
        ctx.out.push(Effect::JobChanged { job: id });
    }

    /// The process is up again: what was live is taken up, what was half concluded is concluded.
    pub(crate) fn started(&mut self, ctx: &mut Ctx<'_>, ledger: &mut Ledger) {
        for id in self.open.values().copied().collect::<Vec<_>>() {
            let Some(job) = self.jobs.get_mut(&id) else { continue };
            let receipts = job.attempts.keys().filter_map(|number| {
                let grant = job.grant.as_ref()?.id();
                ledger.account(grant)?.line(*number)?.receipt.clone()
            });
            let receipts: Vec<_> = receipts.collect();
            for receipt in &receipts {
                self.conclude(ctx, ledger, id, receipt);
            }
            let Some(job) = self.jobs.get_mut(&id) else { continue };
            if job.over.is_some() {
                continue;
            }
            let Some(attempt) = job.live_attempt_mut() else { continue };
            attempt.heard = ctx.now;
            attempt.resend_at = ctx.now;
            attempt.leased_at = attempt.lease.as_ref().map(|_| ctx.now);
            let (number, node) = (attempt.assign.attempt, attempt.node());
            let lease = attempt.lease.as_ref().map(Verified::id);
            self.busy.insert(id);
            job.stage = Stage::Working;
            job.why = match lease {
                Some(_) => format!("running on {}", node.short()),
                None => format!("given to {}, waiting for its lease", node.short()),
            };
            if let Some(lease) = lease {
                ctx.out.push(Effect::OpenStream { job: id, attempt: number, node, lease });
            }
        }
    }

    /// Time has passed: deadlines, lapsed leases, unanswered questions, waiting jobs.
    pub(crate) fn tick(&mut self, ctx: &mut Ctx<'_>, ledger: &mut Ledger) {
        for id in self.open.values().copied().collect::<Vec<_>>() {
            self.tick_job(ctx, ledger, id);
        }
    }

    fn tick_job(&mut self, ctx: &mut Ctx<'_>, ledger: &mut Ledger, id: MessageId) {
        let (skew, lapse_after) = (ctx.skew(), ctx.roster.charter().lapse_after());
        let Some(job) = self.jobs.get_mut(&id) else { return };
        if ctx.now >= job.deadline() {
            let why = format!("its deadline was {}", job.deadline());
            return self.end(ctx, ledger, id, JobOutcomeRecord::Expired, why);
        }
        if let Some(attempt) = job.live_attempt_mut() {
            let number = attempt.assign.attempt;
            let respond_by = attempt.assign.respond_by;
            if attempt.lease.is_some() {
                if ctx.now >= attempt.heard.plus(lapse_after) {
                    let why = format!("the lease of {} lapsed", attempt.node().short());
                    self.give_up(ctx, ledger, id, number, why);
                }
            } else if ctx.now > respond_by.plus(skew.times(2)) {
                let why = format!("{} did not answer the assignment", attempt.node().short());
                self.give_up(ctx, ledger, id, number, why);
            } else if ctx.now >= attempt.resend_at && ctx.now < respond_by {
                attempt.resend_at = ctx.now.plus(RESEND_EVERY);
                job.send_assign(ctx, number);
            }
            return;
        }
        match job.stage {
            Stage::Asking { until } if ctx.now >= until => self.answers_are_due(ctx, ledger, id),
            Stage::Waiting { until } => {
                let generation = ctx.view.generation();
                if job.wake_at.is_none() && job.generation != generation {
                    let wake_at = ctx.now.plus(wake_after(ctx, generation));
                    job.wake_at = Some(wake_at.max(job.planned_at.plus(PLAN_GAP_MIN)));
                }
                if ctx.now >= until || job.wake_at.is_some_and(|wake_at| ctx.now >= wake_at) {
                    self.plan(ctx, ledger, id);
                }
            }
            Stage::Asking { .. } | Stage::Working => {}
        }
    }
}

/// A time of this home's own for looking at its waiting jobs, drawn by hash.
fn wake_after(ctx: &Ctx<'_>, generation: u64) -> DurationMs {
    let mut bytes = ctx.me.node.as_bytes().to_vec();
    bytes.extend_from_slice(&generation.to_be_bytes());
    let digest = Digest::of(&bytes);
    let [a, b, ..] = *digest.as_bytes();
    DurationMs::from_ms(u64::from(u16::from_be_bytes([a, b])) % WAKE_SPREAD_MS)
}
