//! The working node's part in a job: answer probes, take leases, keep them alive, say what was
//! done (specs/lease.md).
//!
//! The node that does the work decides: a lease is taken only under a chain that holds and a
//! policy that allows (S5), durably before anybody hears of it, under a fence that no lease ever
//! had (S2), in a slot that no live lease has (S1).

mod chain;
mod contract;
mod probe;
mod replay;
mod take;

use std::collections::{BTreeMap, BTreeSet};

use allmend_protocol::envelope::Verified;
use allmend_protocol::finetune::Task;
use allmend_protocol::ids::{MessageId, NodeId};
use allmend_protocol::lease::{Cancel, Fence, LeaseRenewal};
use allmend_protocol::message::AnyMessage;
use allmend_protocol::receipt::{Outcome, Receipt, Settlement, Usage};
use allmend_protocol::time::{DurationMs, Timestamp};
use allmend_protocol::units::Credits;

use crate::core::Broken;
use crate::ctx::Ctx;
use crate::io::{Effect, Record, Work, WorkEvent};
use crate::settings::{PROGRESS_EVERY_TOKENS, RECEIPT_BACKOFF_MAX, RESEND_EVERY, fit_text};
use crate::stewards::{DataVerdict, Occasion};
pub use probe::{ProbeRates, Quote};
pub(crate) use replay::Assigned;

/// All leases of one working node.
#[derive(Clone, Debug, Default)]
pub struct LeaseBook {
    leases: BTreeMap<MessageId, Held>,
    /// One lease per grant and attempt, ever.
    by_attempt: BTreeMap<(MessageId, u16), MessageId>,
    /// Leases without a receipt.
    live: BTreeSet<MessageId>,
    /// Leases whose receipt still waits for its settlement.
    unsettled: BTreeSet<MessageId>,
    /// Leases taken in this incarnation.
    sequence: u64,
    probes: ProbeRates,
}

/// One lease.
#[derive(Clone, Debug)]
pub struct Held {
    work: Work,
    task: Task,
    receipt: Option<Verified<Receipt>>,
    /// The contract under which others' data were opened.
    contract: Option<MessageId>,
    /// Whether the output gate's decision is signed; a run has one.
    gated: bool,
    settled: bool,
    tokens_recorded: u32,

    // Not journaled.
    tokens: u32,
    renewals: u32,
    renew_at: Timestamp,
    /// When home last showed that it is there.
    home_heard: Timestamp,
    stopping: bool,
    say_again_at: Timestamp,
    say_again_after: DurationMs,
}

impl Held {
    /// The lease with its job, grant and assignment.
    pub fn work(&self) -> &Work {
        &self.work
    }

    /// Tokens written so far.
    pub fn tokens(&self) -> u32 {
        self.tokens
    }

    /// The receipt, once the work has ended.
    pub fn receipt(&self) -> Option<&Verified<Receipt>> {
        self.receipt.as_ref()
    }
}

impl LeaseBook {
    /// Leases without a receipt, by id.
    pub fn live(&self) -> impl Iterator<Item = &Held> {
        self.live.iter().filter_map(|id| self.leases.get(id))
    }

    /// How many leases have no receipt.
    pub fn live_count(&self) -> usize {
        self.live.len()
    }

    /// A lease that is remembered.
    pub fn lease(&self, id: MessageId) -> Option<&Held> {
        self.leases.get(&id)
    }

    /// What this node needed for an attempt of the job, if it ever had one.
    pub fn work_of(&self, job: MessageId) -> Option<&Work> {
        self.leases.values().map(|held| &held.work).find(|work| work.lease.job == job)
    }

    /// How many receipts wait for their settlement.
    pub fn unsettled_count(&self) -> usize {
        self.unsettled.len()
    }

    /// Whether home may still give this node an attempt of the job, or count one.
    pub fn may_go_on(&self, job: MessageId) -> bool {
        let of_job =
            |id: &MessageId| self.leases.get(id).is_some_and(|held| held.work.lease.job == job);
        self.live.iter().chain(&self.unsettled).any(of_job)
    }

    /// Slots that a new lease could take.
    pub(crate) fn slots_free(&self, slots_total: u16) -> u16 {
        slots_total.saturating_sub(u16::try_from(self.live.len()).unwrap_or(u16::MAX))
    }

    /// The process is up again: leases that were live have lost their worker.
    pub(crate) fn started(&mut self, ctx: &mut Ctx<'_>) {
        for id in self.live.iter().copied().collect::<Vec<_>>() {
            let Some(held) = self.leases.get(&id) else { continue };
            let usage =
                Usage { completion_tokens: u64::from(held.tokens_recorded), ..Usage::default() };
            self.finish(ctx, id, Outcome::Interrupted, usage, None, None);
        }
        for id in &self.unsettled {
            if let Some(held) = self.leases.get_mut(id) {
                held.say_again_at = ctx.now;
                held.say_again_after = RESEND_EVERY;
            }
        }
    }

    /// `node` has shown that it is there.
    pub(crate) fn home_heard(&mut self, now: Timestamp, node: NodeId) {
        for id in &self.live {
            if let Some(held) = self.leases.get_mut(id)
                && held.work.home == node
            {
                held.home_heard = now;
            }
        }
    }

    /// The broker wants an attempt, or the whole job, to stop.
    pub(crate) fn cancel(&mut self, ctx: &mut Ctx<'_>, cancel: &Cancel) {
        for id in self.live.iter().copied().collect::<Vec<_>>() {
            let Some(held) = self.leases.get_mut(&id) else { continue };
            let meant = held.work.lease.job == cancel.job
                && cancel.attempt.is_none_or(|attempt| attempt == held.work.lease.attempt)
                && cancel.signer == held.work.assign.signer.into();
            if meant {
                held.stop(ctx, Outcome::Cancelled);
            }
        }
    }

    /// The worker or its stream says something.
    pub(crate) fn work(&mut self, ctx: &mut Ctx<'_>, id: MessageId, event: WorkEvent) {
        let Some(held) = self.leases.get_mut(&id) else { return };
        if held.receipt.is_some() {
            return;
        }
        match event {
            WorkEvent::Progress { tokens } => {
                held.tokens = held.tokens.max(tokens.min(held.task.tokens_max()));
                if held.tokens - held.tokens_recorded >= PROGRESS_EVERY_TOKENS {
                    held.tokens_recorded = held.tokens;
                    ctx.record(Record::Progress { lease: id, tokens: held.tokens }, false);
                }
            }
            WorkEvent::Contracted(terms) => held.contract(ctx, *terms),
            WorkEvent::Gated(gated) => held.gated(ctx, *gated),
            WorkEvent::Ended { outcome, usage, output, model_licence } => {
                self.finish(ctx, id, outcome, usage, output, model_licence);
            }
        }
    }

    /// Ends a lease: its receipt is durable before anybody hears of it.
    fn finish(
        &mut self,
        ctx: &mut Ctx<'_>,
        id: MessageId,
        outcome: Outcome,
        mut usage: Usage,
        output: Option<allmend_protocol::ids::Digest>,
        model_licence: Option<String>,
    ) {
        let Some(held) = self.leases.get_mut(&id) else { return };
        let (lease, job) = (&held.work.lease, &held.work.job);
        usage.completion_tokens = usage.completion_tokens.min(u64::from(held.task.tokens_max()));
        let outcome = match outcome {
            Outcome::Finished { reason } => Outcome::Finished { reason: fit_text(&reason, 32) },
            Outcome::Failed { permanent, why } => {
                Outcome::Failed { permanent, why: fit_text(&why, 240) }
            }
            other => other,
        };
        let cost = lease.rates.cost(usage.prompt_tokens, usage.completion_tokens);
        let receipt = ctx.sign(Receipt {
            federation: ctx.me.federation,
            signer: ctx.me.node,
            charter: ctx.charter(),
            job: lease.job,
            grant: lease.grant,
            lease: id,
            attempt: lease.attempt,
            outcome,
            usage,
            // What cannot be counted is above every cap.
            cost: cost.unwrap_or(Credits::from_micro(u64::MAX)),
            output,
            model: job.model,
            model_licence: model_licence.map(|licence| fit_text(&licence, 120)),
            numerics: fit_text(&ctx.settings.numerics, 64),
            contract: held.contract,
            started: lease.issued,
            ended: ctx.now.max(lease.issued),
        });
        ctx.leaf(receipt.clone(), true);
        held.receipt = Some(receipt);
        held.say_again_after = RESEND_EVERY;
        held.say(ctx);
        ctx.out.push(Effect::WorkSettled { lease: id });
        self.live.remove(&id);
        self.unsettled.insert(id);
    }

    /// Home has counted.
    pub(crate) fn settled(&mut self, ctx: &mut Ctx<'_>, settlement: &Verified<Settlement>) {
        let meant: Vec<MessageId> = self
            .unsettled
            .iter()
            .copied()
            .filter(|id| {
                self.leases.get(id).is_some_and(|held| {
                    held.work.lease.grant == settlement.grant
                        && held.work.grant.signer == settlement.signer
                })
            })
            .collect();
        if meant.is_empty() {
            return;
        }
        // If this is lost in a crash, the receipt is repeated and the settlement comes again.
        ctx.heard(&settlement.clone().into(), &[], false);
        for id in meant {
            self.enter_settled(id);
            ctx.out.push(Effect::WorkCounted { lease: id });
        }
    }

    fn enter_settled(&mut self, id: MessageId) {
        if let Some(held) = self.leases.get_mut(&id) {
            held.settled = true;
            self.unsettled.remove(&id);
        }
    }

    /// Time has passed: renewals, leases that may not go on, receipts to be repeated.
    pub(crate) fn tick(&mut self, ctx: &mut Ctx<'_>) {
        for id in self.live.iter().copied().collect::<Vec<_>>() {
            if let Some(held) = self.leases.get_mut(&id) {
                held.keep(ctx);
            }
        }
        let mut given_up = Vec::new();
        for id in &self.unsettled {
            let Some(held) = self.leases.get_mut(id) else { continue };
            if ctx.now > held.work.grant.settle_by.plus(ctx.skew().times(2)) {
                given_up.push(*id);
            } else if ctx.now >= held.say_again_at {
                held.say(ctx);
            }
        }
        for id in given_up {
            self.unsettled.remove(&id);
            ctx.out.push(Effect::WorkCounted { lease: id });
        }
    }

    /// The first rule that the leases break.
    pub(crate) fn broken_invariant(&self) -> Option<Broken> {
        let mut slots = BTreeSet::new();
        let mut fences = BTreeSet::new();
        for held in self.live() {
            let Fence { epoch, .. } = held.work.lease.fence;
            if !slots.insert((epoch, held.work.lease.slot)) {
                return Some(Broken::new("S1", format!("slot {} twice", held.work.lease.slot)));
            }
            if !fences.insert(held.work.lease.fence) {
                return Some(Broken::new("S2", format!("fence {} twice", held.work.lease.fence)));
            }
            if held.receipt.is_some() {
                return Some(Broken::new("S1", "a live lease has a receipt".to_owned()));
            }
        }
        None
    }

    /// What the journal keeps, for comparing a replay with the live state.
    pub(crate) fn durable(&self) -> impl PartialEq + std::fmt::Debug + use<> {
        let leases: Vec<_> = self
            .leases
            .iter()
            .map(|(id, held)| {
                let receipt = held.receipt.as_ref().map(Verified::id);
                let work = &held.work;
                let chain = (work.job.id(), work.grant.id(), work.assign.id(), work.cert.id());
                (*id, chain, work.home, receipt, held.contract, held.settled, held.tokens_recorded)
            })
            .collect();
        (leases, self.by_attempt.clone(), self.live.clone())
    }
}

impl Held {
    /// Renews the lease, or stops the work that may not go on.
    fn keep(&mut self, ctx: &mut Ctx<'_>) {
        if self.stopping {
            return;
        }
        let ttl = self.work.lease.ttl_ms;
        let own = self.work.home == ctx.me.node;
        if !own && ctx.now >= self.home_heard.plus(ttl) {
            return self.stop(ctx, Outcome::Lapsed);
        }
        if ctx.now >= self.work.grant.deadline {
            return self.stop(ctx, Outcome::Lapsed);
        }
        if ctx.now < self.renew_at {
            return;
        }
        // The owner may change policy at any minute, and certificates end.
        if let Err(refused) = chain::check_policy(ctx, &self.work.job, &self.work.cert, &self.task)
        {
            let why = fit_text(&refused.reason.text, 240);
            return self.stop(ctx, Outcome::Failed { permanent: false, why });
        }
        let data =
            chain::check_data(ctx, &self.work.job, &self.work.cert, &self.task, Occasion::Renewal);
        let why = match data {
            DataVerdict::Allow => None,
            DataVerdict::Refuse(reasons) => {
                Some(reasons.first().map_or(String::new(), |r| r.text.clone()))
            }
            DataVerdict::Pending { obligations, .. } => {
                Some(format!("an approval has ended: {}", obligations.join(", ")))
            }
        };
        if let Some(why) = why {
            let why = fit_text(&why, 240);
            return self.stop(ctx, Outcome::Failed { permanent: false, why });
        }
        if let Err(error) = ctx.roster.node_at(ctx.now, ctx.me.node) {
            let why = fit_text(&error.to_string(), 240);
            return self.stop(ctx, Outcome::Failed { permanent: false, why });
        }
        self.renewals = self.renewals.saturating_add(1);
        self.renew_at = ctx.now.plus(ctx.timing().renew_every_ms);
        let renewal = ctx.sign(LeaseRenewal {
            federation: ctx.me.federation,
            signer: ctx.me.node,
            lease: self.work.lease.id(),
            job: self.work.lease.job,
            sequence: self.renewals,
            tokens_done: self.tokens,
            ttl_ms: ttl,
            issued: ctx.now,
        });
        ctx.send(self.work.home, renewal, vec![]);
    }

    fn stop(&mut self, ctx: &mut Ctx<'_>, outcome: Outcome) {
        if !self.stopping {
            self.stopping = true;
            ctx.out.push(Effect::StopWork { lease: self.work.lease.id(), outcome });
        }
    }

    /// Sends the receipt, with the lease in case home never had it.
    fn say(&mut self, ctx: &mut Ctx<'_>) {
        if let Some(receipt) = &self.receipt {
            let lease: AnyMessage = self.work.lease.clone().into();
            ctx.send(self.work.home, receipt.clone(), vec![lease]);
            self.say_again_at = ctx.now.plus(self.say_again_after);
            self.say_again_after = self.say_again_after.times(2).min(RECEIPT_BACKOFF_MAX);
        }
    }
}
