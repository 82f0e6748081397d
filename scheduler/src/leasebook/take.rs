//! Taking a lease: the commit point of a job.

use allmend_protocol::envelope::Verified;
use allmend_protocol::grant::Assign;
use allmend_protocol::ids::MessageId;
use allmend_protocol::lease::{Fence, Lease};
use allmend_protocol::message::AnyMessage;
use allmend_protocol::offer::{Reason, ReasonClass};
use allmend_protocol::time::{DurationMs, Timestamp};

use super::chain::{No, check_data, check_fit, check_grant, check_job, fit};
use super::probe::refuse;
use super::{Held, LeaseBook};
use crate::ctx::Ctx;
use crate::io::{Effect, Work};
use crate::settings::RESEND_EVERY;
use crate::stewards::{DataVerdict, Occasion};

/// A broker that must wait for a person asks again after this.
const ASK_AGAIN_AFTER: DurationMs = DurationMs::from_secs(5);

impl LeaseBook {
    /// A broker gives this node an attempt.
    pub(crate) fn assign(
        &mut self,
        ctx: &mut Ctx<'_>,
        assign: &Verified<Assign>,
        attached: &[AnyMessage],
    ) {
        if let Some(id) = self.by_attempt.get(&(assign.grant, assign.attempt)).copied() {
            return self.repeat(ctx, assign, id);
        }
        let slot = self.free_slot(ctx.local.slots_total);
        let verdict = check_job(ctx, assign.signer, assign.job, attached).and_then(|asked| {
            let grant = check_grant(ctx, assign, &asked, attached)?;
            let slots_free = self.slots_free(ctx.local.slots_total);
            check_fit(ctx, &asked, grant.cap, grant.deadline, slots_free)?;
            match check_data(ctx, &asked.job, &asked.cert, &asked.task, Occasion::Start) {
                DataVerdict::Allow => {}
                DataVerdict::Refuse(reasons) => {
                    return Err(No { reasons: fit(reasons), retry_after: None });
                }
                // An approval may have ended since the offer; asking again puts the question.
                DataVerdict::Pending { obligations, .. } => {
                    let text = format!("a person must decide first: {}", obligations.join(", "));
                    let reasons = vec![Reason::new(ReasonClass::Policy, text)];
                    return Err(No { reasons, retry_after: Some(ASK_AGAIN_AFTER) });
                }
            }
            let slot = slot.ok_or_else(|| No::because(ReasonClass::Busy, "no slot is free"))?;
            Ok((asked, grant, slot))
        });
        let (asked, grant, slot) = match verdict {
            Ok(verdict) => verdict,
            Err(no) => return refuse(ctx, assign.signer, assign.id(), assign.job, no),
        };
        let full = self.leases.len() >= ctx.settings.limits.leases_remembered_max;
        if full && self.old(ctx.now, ctx.skew()).is_empty() {
            let no = No::because(ReasonClass::Busy, "too many leases wait for their settlement");
            return refuse(ctx, assign.signer, assign.id(), assign.job, no);
        }
        self.sequence += 1;
        // The deliberate fault: as if no start were counted.
        let careless = ctx.settings.faults.fence_reused_after_restart;
        let incarnation = if careless { 1 } else { ctx.incarnation };
        let fence = Fence { epoch: ctx.me.epoch, incarnation, sequence: self.sequence };
        let lease = ctx.sign(Lease {
            federation: ctx.me.federation,
            signer: ctx.me.node,
            charter: ctx.charter(),
            job: assign.job,
            grant: assign.grant,
            assign: assign.id(),
            attempt: assign.attempt,
            fence,
            slot,
            rates: ctx.local.rates,
            ttl_ms: ctx.timing().lease_ttl_ms,
            issued: ctx.now,
        });
        let chain = [grant.clone().into(), asked.job.clone().into(), asked.cert.clone().into()];
        ctx.heard(&assign.clone().into(), &chain, false);
        ctx.leaf(lease.clone(), true);
        ctx.send(assign.signer, lease.clone(), vec![]);
        let home = assign.signer;
        let work =
            Work { lease, job: asked.job, grant, assign: assign.clone(), cert: asked.cert, home };
        ctx.out.push(Effect::StartWork(work.clone()));
        let mut held = Held::new(work, asked.task);
        held.home_heard = ctx.now;
        held.renew_at = ctx.now.plus(ctx.timing().renew_every_ms);
        self.enter(held, ctx.skew());
    }

    /// The attempt has a lease: the same assignment is answered by it, or by its receipt.
    fn repeat(&mut self, ctx: &mut Ctx<'_>, assign: &Verified<Assign>, id: MessageId) {
        let Some(held) = self.leases.get_mut(&id) else { return };
        if held.work.assign.id() != assign.id() {
            let no = No::because(ReasonClass::Attempt, "the attempt has another lease already");
            return refuse(ctx, assign.signer, assign.id(), assign.job, no);
        }
        if held.receipt.is_some() {
            held.say(ctx);
        } else {
            ctx.send(assign.signer, held.work.lease.clone(), vec![]);
        }
    }

    /// The lowest slot without a live lease.
    fn free_slot(&self, slots_total: u16) -> Option<u16> {
        (0..slots_total).find(|slot| self.live().all(|held| held.work.lease.slot != *slot))
    }

    /// Leases whose grants can be used no more: an assignment under them is refused for its
    /// deadline, so no attempt could get a second lease if they were forgotten.
    fn old(&self, now: Timestamp, skew: DurationMs) -> Vec<MessageId> {
        let safe = |held: &Held| {
            held.receipt.is_some() && held.work.grant.settle_by.plus(skew.times(4)) < now
        };
        self.leases.iter().filter(|(_, held)| safe(held)).map(|(id, _)| *id).collect()
    }

    /// Adds a lease and forgets old ones; in a replay just as it was live.
    pub(super) fn enter(&mut self, held: Held, skew: DurationMs) {
        for id in self.old(held.work.lease.issued, skew) {
            if let Some(held) = self.leases.remove(&id) {
                self.by_attempt.remove(&(held.work.lease.grant, held.work.lease.attempt));
                self.unsettled.remove(&id);
            }
        }
        let lease = &held.work.lease;
        self.by_attempt.insert((lease.grant, lease.attempt), lease.id());
        self.live.insert(lease.id());
        self.leases.insert(lease.id(), held);
    }
}

impl Held {
    pub(super) fn new(work: Work, task: allmend_protocol::finetune::Task) -> Held {
        Held {
            work,
            task,
            receipt: None,
            contract: None,
            gated: false,
            settled: false,
            tokens_recorded: 0,
            tokens: 0,
            renewals: 0,
            renew_at: Timestamp::ZERO,
            home_heard: Timestamp::ZERO,
            stopping: false,
            say_again_at: Timestamp::ZERO,
            say_again_after: RESEND_EVERY,
        }
    }
}
