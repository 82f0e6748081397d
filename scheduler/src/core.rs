//! One node's whole decision state, and the one way to change it: [`Core::step`].
//!
//! The core wires three machines and knows little itself: who may speak, which machine listens,
//! and what this node says of its own capacity.

mod advert;
mod recover;
mod show;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;

use std::fmt;

use allmend_protocol::advert::{AdvertOrder, CapacityAdvert};
use allmend_protocol::cert::ResearcherCert;
use allmend_protocol::envelope::Verified;
use allmend_protocol::ids::{MessageId, NodeId};
use allmend_protocol::job::JobSpec;
use allmend_protocol::message::AnyMessage;
use allmend_protocol::offer::{Reason, Refusal};
use allmend_protocol::receipt::Settlement;
use allmend_protocol::roster::Roster;
use allmend_protocol::time::Timestamp;

use crate::broker::Broker;
use crate::ctx::Ctx;
use crate::io::{Effect, Input, LocalState, Record};
use crate::leasebook::LeaseBook;
use crate::ledger::Ledger;
use crate::policy::OperatorPolicy;
pub use crate::settings::{Faults, Identity, Limits, Settings};
use crate::view::View;
pub use recover::RecoverError;
pub use show::NodeView;

/// One node's decision state: what it believes, brokers, owes and runs.
#[derive(Clone, Debug)]
pub struct Core {
    identity: Identity,
    settings: Settings,
    roster: Roster,
    incarnation: u32,
    started: Option<Timestamp>,
    local: LocalState,
    local_changed: bool,
    view: View,
    own_order: AdvertOrder,
    own_advert: Option<Verified<CapacityAdvert>>,
    broker: Broker,
    ledger: Ledger,
    book: LeaseBook,
    counters: Counters,
}

/// A rule of the design that a state breaks: a fault of this program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Broken {
    /// Which rule, e.g. `S3`.
    pub rule: &'static str,
    /// How.
    pub what: String,
}

impl Broken {
    pub(crate) fn new(rule: &'static str, what: String) -> Broken {
        Broken { rule, what }
    }
}

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.rule, self.what)
    }
}

/// What was dropped without an answer, for metrics.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Messages whose sender is no member, or is not their signer.
    pub not_member: u64,
    /// Messages of a kind or version that this node does not speak.
    pub not_spoken: u64,
    /// Messages and submissions that came before the core was started.
    pub too_early: u64,
    /// Submissions that [`Core::check_submit`] would have refused.
    pub not_submitted: u64,
}

impl Core {
    /// Applies `input` at `now` and appends effects in the order in which they must be performed.
    ///
    /// Equal states and inputs give equal effects. The first input must be [`Input::Started`]; until
    /// then nothing else has any effect.
    pub fn step(&mut self, now: Timestamp, input: Input, out: &mut Vec<Effect>) {
        if self.started.is_none() && !matches!(input, Input::Started) {
            self.counters.too_early = self.counters.too_early.saturating_add(1);
            return;
        }
        match input {
            Input::Started => self.start(now, out),
            Input::Message { from, message, attached } => {
                self.hear(now, from, message, &attached, out);
            }
            Input::PeerVersions { node, versions } => self.view.set_versions(node, versions),
            Input::Delivered { to } => {
                self.view.reached(to);
                self.book.home_heard(now, to);
            }
            Input::Undelivered { to, message } => {
                self.view.unreached(now, to);
                self.with(now, out, |broker, ledger, _, ctx| {
                    broker.undelivered(ctx, ledger, to, message);
                });
            }
            Input::Submit { job, cert } => {
                let before = self.broker.jobs().count();
                self.with(now, out, |broker, ledger, _, ctx| {
                    broker.submit(ctx, ledger, job, cert);
                });
                if self.broker.jobs().count() == before {
                    self.counters.not_submitted = self.counters.not_submitted.saturating_add(1);
                }
            }
            Input::Cancel(cancel) => self.with(now, out, |broker, ledger, _, ctx| {
                broker.cancelled_by_researcher(ctx, ledger, &cancel);
            }),
            Input::Local(local) => self.set_local(now, local, out),
            Input::Work { lease, event } => {
                self.with(now, out, |_, _, book, ctx| book.work(ctx, lease, event));
                self.advertise(now, out);
            }
            Input::Streamed { job, attempt, tokens } => {
                if let Some(grant) = self.broker.grant_of(job) {
                    self.with(now, out, |_, ledger, _, ctx| {
                        ledger.streamed(ctx, grant, attempt, tokens);
                    });
                }
            }
            Input::Note(message) => self.with(now, out, |_, _, _, ctx| ctx.leaf(*message, true)),
            Input::Tick => self.tick(now, out),
        }
        if self.settings.faults == Faults::default() {
            debug_assert_eq!(self.broken_invariant(), None);
        }
    }

    /// Why this home node would not take `job`, in words.
    ///
    /// # Errors
    /// Every reason.
    pub fn check_submit(
        &self,
        now: Timestamp,
        job: &Verified<JobSpec>,
        cert: &Verified<ResearcherCert>,
    ) -> Result<(), Vec<Reason>> {
        let mut nothing = Vec::new();
        let ctx = self.read_only(now, &mut nothing);
        self.broker.check_submit(&ctx, job, cert).map(|_| ())
    }

    /// Who is a member; the daemon admits certificates here as they come in.
    pub fn roster_mut(&mut self) -> &mut Roster {
        &mut self.roster
    }

    /// Who is a member.
    pub fn roster(&self) -> &Roster {
        &self.roster
    }

    /// The owner has changed the rules; leases that they no longer allow end at their next renewal.
    pub fn set_policy(&mut self, policy: OperatorPolicy) {
        self.settings.policy = policy;
    }

    /// The first rule of the design that the state breaks.
    pub fn broken_invariant(&self) -> Option<Broken> {
        self.book
            .broken_invariant()
            .or_else(|| self.ledger.broken_invariant())
            .or_else(|| self.broker.broken_invariant())
    }

    fn start(&mut self, now: Timestamp, out: &mut Vec<Effect>) {
        if self.started.is_some() {
            return;
        }
        self.started = Some(now);
        let record = Record::Started { epoch: self.identity.epoch, incarnation: self.incarnation };
        self.with(now, out, |broker, ledger, book, ctx| {
            ctx.record(record, true);
            book.started(ctx);
            broker.started(ctx, ledger);
        });
    }

    fn tick(&mut self, now: Timestamp, out: &mut Vec<Effect>) {
        self.view.expire(now, self.roster.charter().timing.advert_every_ms);
        self.with(now, out, |broker, ledger, book, ctx| {
            book.tick(ctx);
            broker.tick(ctx, ledger);
            ledger.tick(ctx);
        });
        self.advertise(now, out);
    }

    fn hear(
        &mut self,
        now: Timestamp,
        from: NodeId,
        message: AnyMessage,
        attached: &[AnyMessage],
        out: &mut Vec<Effect>,
    ) {
        let (kind, version) = message.kind();
        if !self.settings.versions.speaks(kind, version) {
            self.counters.not_spoken = self.counters.not_spoken.saturating_add(1);
            return;
        }
        if let AnyMessage::CapacityAdvert(advert) = message {
            // Gossip: whoever passed it on, its signer is the one who must be a member. Our own
            // words come from nowhere but here.
            if advert.signer != self.identity.node {
                self.view.admit(now, &self.roster, advert);
            }
            return;
        }
        let ours = message.signer() == from.into();
        if !ours || self.roster.node_at(now, from).is_err() {
            self.counters.not_member = self.counters.not_member.saturating_add(1);
            return;
        }
        self.view.reached(from);
        self.book.home_heard(now, from);
        self.with(now, out, |broker, ledger, book, ctx| match &message {
            AnyMessage::Probe(probe) => book.probe(ctx, probe, attached),
            AnyMessage::Assign(assign) => book.assign(ctx, assign, attached),
            AnyMessage::Cancel(cancel) => book.cancel(ctx, cancel),
            AnyMessage::Settlement(settlement) => book.settled(ctx, settlement),
            AnyMessage::Offer(offer) => broker.offer(ctx, ledger, offer),
            AnyMessage::Refusal(refusal) => broker.refusal(ctx, ledger, refusal),
            AnyMessage::RefusalV1(refusal) => {
                broker.refusal(ctx, ledger, &Refusal::from(refusal.body().clone()));
            }
            AnyMessage::Pending(pending) => broker.pending(ctx, ledger, pending),
            AnyMessage::Lease(lease) => broker.lease(ctx, ledger, lease),
            AnyMessage::LeaseRenewal(renewal) => broker.renewal(ctx, renewal),
            AnyMessage::Receipt(receipt) => {
                broker.receipt(ctx, ledger, receipt, attached);
                ledger.tick(ctx);
            }
            // Certificates, charters and invitations are the daemon's; the rest is not sent alone.
            _ => {}
        });
        self.advertise(now, out);
    }

    /// Runs `action` with the three machines and what they may know.
    fn with(
        &mut self,
        now: Timestamp,
        out: &mut Vec<Effect>,
        action: impl FnOnce(&mut Broker, &mut Ledger, &mut LeaseBook, &mut Ctx<'_>),
    ) {
        let mut ctx = Ctx {
            now,
            me: &self.identity,
            settings: &self.settings,
            roster: &self.roster,
            view: &self.view,
            local: &self.local,
            incarnation: self.incarnation,
            own_order: self.own_order,
            started: self.started.unwrap_or(now),
            out,
        };
        action(&mut self.broker, &mut self.ledger, &mut self.book, &mut ctx);
    }

    fn read_only<'a>(&'a self, now: Timestamp, nothing: &'a mut Vec<Effect>) -> Ctx<'a> {
        Ctx {
            now,
            me: &self.identity,
            settings: &self.settings,
            roster: &self.roster,
            view: &self.view,
            local: &self.local,
            incarnation: self.incarnation,
            own_order: self.own_order,
            started: self.started.unwrap_or(now),
            out: nothing,
        }
    }

    /// The job, if this node is its home.
    pub fn job_spec(&self, id: MessageId) -> Option<&Verified<JobSpec>> {
        self.broker.job(id).map(crate::broker::Job::spec)
    }

    /// The certificate of the job's researcher, if this node is its home.
    pub fn job_cert(&self, id: MessageId) -> Option<&Verified<ResearcherCert>> {
        self.broker.job(id).map(crate::broker::Job::cert)
    }

    /// The settlement of a job, once there is one.
    pub fn settlement(&self, id: MessageId) -> Option<&Verified<Settlement>> {
        let grant = self.broker.job(id)?.grant()?;
        self.ledger.account(grant.id())?.settlement()
    }
}
