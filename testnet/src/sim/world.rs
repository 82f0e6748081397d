//! The simulated federation: cores, their journals, simulated workers, and the queue of what
//! happens next. One thread, one seed, no clock but its own.

mod end;
mod lives;
mod people;
mod work;

use std::collections::{BTreeMap, BTreeSet};

use allmend_protocol::envelope::Verified;
use allmend_protocol::ids::MessageId;
use allmend_protocol::job::JobSpec;
use allmend_protocol::message::{AnyMessage, Versions};
use allmend_protocol::receipt::Outcome;
use allmend_protocol::time::{DurationMs, Timestamp};
use allmend_scheduler::core::Core;
use allmend_scheduler::io::{Effect, Entry, Input, LocalState, TICK_EVERY, Work};
use allmend_scheduler::policy::OperatorPolicy;

use super::check::{Checker, Violation};
use super::draw::Draw;
use super::federation::{Federation, NODES, SKEW_MS, START};
use super::network::{Fate, Network};
use super::scenario;
use super::trace::Trace;
use super::{Counts, SimOptions};

/// From here on the network is whole, nobody crashes and nobody submits.
const HEAL_AT_MS: u64 = 45_000;
/// Everything must be over by then: the last deadline, settlement slack, and repeats.
const OVER_BY_MS: u64 = 160_000;

/// One simulated node.
struct Node {
    core: Option<Core>,
    journal: Vec<Entry>,
    /// So many entries survive any crash.
    durable: usize,
    /// What the journal says must be set aside.
    escrow: u128,
    /// Counts lives; events of an earlier one are void.
    life: u32,
    /// How wrong its clock is.
    clock_off_ms: u64,
    policy: OperatorPolicy,
    versions: Versions,
    local: LocalState,
    workers: BTreeMap<MessageId, Worker>,
    streams: BTreeSet<(MessageId, u16)>,
    /// The process stands still until then, and goes on as if nothing had been.
    frozen_until_ms: u64,
    /// It dies amid the effects of its next step.
    dies_in_step: bool,
    /// The state that a replay of the whole journal must give.
    expected: Option<BTreeMap<&'static str, String>>,
}

/// A worker that writes tokens.
struct Worker {
    work: Work,
    home: usize,
    tokens: u32,
    tokens_total: u32,
    every_ms: u64,
    outcome: Outcome,
    prompt_tokens: u64,
}

/// A researcher waiting for a job.
struct Client {
    job: Verified<JobSpec>,
    institution: usize,
    done: bool,
}

enum Event {
    Tick { node: usize, life: u32 },
    Deliver { from: usize, to: usize, message: AnyMessage, attached: Vec<AnyMessage>, gossip: bool },
    Delivered { at: usize, to: usize },
    Undelivered { at: usize, to: usize, message: MessageId },
    Streamed { home: usize, job: MessageId, attempt: u16, tokens: u32 },
    Works { node: usize, life: u32, lease: MessageId },
    WorkEnds { node: usize, life: u32, lease: MessageId, outcome: Outcome },
    Asks { client: usize },
    Cancels { client: usize },
    Crash { node: usize, in_step: bool },
    Restart { node: usize },
    Freeze { node: usize, ms: u64 },
    Split,
    Join,
    MachineChanges { node: usize },
    PolicyChanges { node: usize },
    Heal,
}

impl Event {
    /// The process that must run for it to happen; none for what happens to a process.
    fn node(&self) -> Option<usize> {
        match *self {
            Event::Tick { node, .. } | Event::Works { node, .. } | Event::WorkEnds { node, .. } => {
                Some(node)
            }
            Event::Deliver { to, .. } => Some(to),
            Event::Delivered { at, .. } | Event::Undelivered { at, .. } => Some(at),
            Event::Streamed { home, .. } => Some(home),
            _ => None,
        }
    }
}

/// The whole world.
pub(super) struct World<'a> {
    federation: &'static Federation,
    options: &'a SimOptions,
    draw: Draw,
    network: Network,
    nodes: Vec<Node>,
    clients: Vec<Client>,
    queue: BTreeMap<(u64, u64), Event>,
    queued: u64,
    ms: u64,
    healed: bool,
    last_start_ms: u64,
    checker: Checker,
    pub(super) trace: Trace,
    pub(super) counts: Counts,
}

impl<'a> World<'a> {
    pub(super) fn new(seed: u64, options: &'a SimOptions) -> World<'a> {
        let federation = Federation::shared();
        let mut draw = Draw::new(seed);
        let network = Network::new(draw.fork());
        let mut world = World {
            federation,
            options,
            network,
            nodes: Vec::new(),
            clients: Vec::new(),
            queue: BTreeMap::new(),
            queued: 0,
            ms: 0,
            healed: false,
            last_start_ms: 0,
            checker: Checker::default(),
            trace: Trace::new(options.keep_trace),
            counts: Counts::default(),
            draw,
        };
        for index in 0..NODES {
            let is_home = federation.home_of(federation.institution_of(index)) == index;
            let old = world.draw.per_mille(100);
            let node = Node {
                core: None,
                journal: Vec::new(),
                durable: 0,
                escrow: 0,
                life: 0,
                clock_off_ms: 0,
                policy: scenario::policy(&mut world.draw, federation),
                versions: if old { Versions::first() } else { Versions::of_this_release() },
                local: scenario::machine(&mut world.draw, is_home),
                workers: BTreeMap::new(),
                streams: BTreeSet::new(),
                frozen_until_ms: 0,
                dies_in_step: false,
                expected: None,
            };
            world.nodes.push(node);
            let at = world.draw.below(2_000);
            world.at(at, Event::Restart { node: index });
        }
        world.plan();
        world
    }

    /// Runs until everything is over.
    pub(super) fn run(&mut self) -> Result<(), Violation> {
        while let Some(((ms, _), event)) = self.queue.pop_first() {
            if ms > OVER_BY_MS {
                return Err(self.what_is_left());
            }
            let second = self.ms / 1_000;
            self.ms = ms;
            self.happen(event)?;
            let settled = self.healed && ms / 1_000 != second && self.is_over();
            if settled {
                self.counts.ms = ms;
                (self.counts.leases, self.counts.settlements) = self.checker.counts();
                return self.converged().and_then(|()| self.checker.balance());
            }
        }
        Err(Violation { rule: "liveness", what: "nothing happens any more".into() })
    }

    /// How long it has run.
    pub(super) fn ms(&self) -> u64 {
        self.ms
    }

    fn at(&mut self, ms: u64, event: Event) {
        self.queued += 1;
        self.queue.insert((ms.max(self.ms), self.queued), event);
    }

    fn after(&mut self, ms: u64, event: Event) {
        self.at(self.ms + ms, event);
    }

    /// What the node's own clock says: within half of the skew of the true time, so that any two
    /// are within all of it.
    fn clock(&self, node: usize) -> Timestamp {
        let early = START.minus(DurationMs::from_ms(SKEW_MS / 2));
        early.plus(DurationMs::from_ms(self.ms + self.nodes[node].clock_off_ms))
    }

    fn is_up(&self, node: usize) -> bool {
        self.nodes[node].core.is_some()
    }

    /// Whether somebody who talks to the process gets through.
    fn listens(&self, node: usize) -> bool {
        self.is_up(node) && self.nodes[node].frozen_until_ms <= self.ms
    }

    fn happen(&mut self, event: Event) -> Result<(), Violation> {
        let ms = self.ms;
        if let Some(node) = event.node() {
            let until = self.nodes[node].frozen_until_ms;
            if ms < until {
                self.at(until, event);
                return Ok(());
            }
        }
        match event {
            Event::Tick { node, life } => {
                if self.is_up(node) && self.nodes[node].life == life {
                    self.after(TICK_EVERY.as_ms(), Event::Tick { node, life });
                    self.step(node, Input::Tick)?;
                }
            }
            Event::Deliver { from, to, message, attached, gossip } => {
                let id = message.id();
                if !self.is_up(to) {
                    if !gossip && self.network.loss_is_noticed() {
                        self.after(300, Event::Undelivered { at: from, to, message: id });
                    }
                    return Ok(());
                }
                let (kind, version) = message.kind();
                let short = id.short();
                self.trace.line(format_args!("{ms} {from}>{to} {kind}.{version} {short}"));
                if !gossip {
                    match self.network.fate(to, from) {
                        Fate::Arrives { after, .. } => {
                            self.after(after, Event::Delivered { at: from, to });
                        }
                        Fate::Lost => {}
                    }
                }
                let from = self.federation.nodes[from];
                self.step(to, Input::Message { from, message, attached })?;
            }
            Event::Delivered { at, to } => {
                let to = self.federation.nodes[to];
                self.step(at, Input::Delivered { to })?;
            }
            Event::Undelivered { at, to, message } => {
                self.trace.line(format_args!("{ms} {at} lost {} to {to}", message.short()));
                let to = self.federation.nodes[to];
                self.step(at, Input::Undelivered { to, message })?;
            }
            Event::Streamed { home, job, attempt, tokens } => {
                if self.nodes[home].streams.contains(&(job, attempt)) {
                    self.trace.line(format_args!(
                        "{ms} {home} streamed {}/{attempt} {tokens}",
                        job.short()
                    ));
                    self.step(home, Input::Streamed { job, attempt, tokens })?;
                }
            }
            Event::Works { node, life, lease } => self.works(node, life, lease)?,
            Event::WorkEnds { node, life, lease, outcome } => {
                self.work_ends(node, life, lease, outcome)?;
            }
            Event::Asks { client } => self.asks(client)?,
            Event::Cancels { client } => {
                let Client { job, institution, done } = &self.clients[client];
                let (home, job, done) = (self.federation.home_of(*institution), job.clone(), *done);
                if !self.listens(home) && !done {
                    self.after(1_000, Event::Cancels { client });
                } else if !done {
                    self.trace.line(format_args!("{ms} cancel {}", job.id().short()));
                    let now = self.clock(home);
                    let cancel = scenario::cancel(self.federation, &job, now);
                    self.step(home, Input::Cancel(cancel))?;
                }
            }
            Event::Crash { node, in_step: true } => self.nodes[node].dies_in_step = true,
            Event::Crash { node, in_step: false } => self.crash(node, false),
            Event::Restart { node } => self.restart(node)?,
            Event::Freeze { node, ms: length } => {
                self.trace.line(format_args!("{ms} {node} stands still for {length}"));
                self.nodes[node].frozen_until_ms = ms + length;
            }
            Event::Split => {
                self.trace.line(format_args!("{ms} split"));
                self.network.split();
            }
            Event::Join => {
                self.trace.line(format_args!("{ms} join"));
                self.network.join();
            }
            Event::MachineChanges { node } => {
                scenario::machine_changes(&mut self.draw, &mut self.nodes[node].local);
                self.trace.line(format_args!("{ms} {node} machine changes"));
                let local = self.nodes[node].local.clone();
                self.step(node, Input::Local(local))?;
            }
            Event::PolicyChanges { node } => {
                let policy = scenario::policy(&mut self.draw, self.federation);
                self.trace.line(format_args!("{ms} {node} policy changes"));
                if let Some(core) = &mut self.nodes[node].core {
                    core.set_policy(policy.clone());
                }
                self.nodes[node].policy = policy;
            }
            Event::Heal => {
                self.trace.line(format_args!("{ms} heal"));
                self.network.heal();
                self.healed = true;
                for node in &mut self.nodes {
                    node.dies_in_step = false;
                }
            }
        }
        Ok(())
    }

    /// One step of one core, its effects in order, and every check.
    fn step(&mut self, node: usize, input: Input) -> Result<(), Violation> {
        let clock = self.clock(node);
        let starting = matches!(input, Input::Started);
        let Some(core) = &mut self.nodes[node].core else { return Ok(()) };
        let mut out = Vec::new();
        core.step(clock, input, &mut out);
        self.counts.steps += 1;
        if let Some(broken) = core.broken_invariant() {
            return Err(Violation {
                rule: broken.rule,
                what: format!("node {node}: {}", broken.what),
            });
        }
        let dies = self.nodes[node].dies_in_step && !out.is_empty() && !starting;
        let performed = if dies { self.draw.index(out.len() + 1) } else { out.len() };
        for effect in out.drain(..performed) {
            self.perform(node, clock, effect, starting)?;
        }
        if dies {
            self.crash(node, true);
            return Ok(());
        }
        if let Some(core) = &self.nodes[node].core
            && core.ledger().escrow_micro() != self.nodes[node].escrow
        {
            return Err(Violation {
                rule: "S6",
                what: format!("node {node} sets aside what its journal does not say"),
            });
        }
        Ok(())
    }

    fn perform(
        &mut self,
        node: usize,
        clock: Timestamp,
        effect: Effect,
        starting: bool,
    ) -> Result<(), Violation> {
        let ms = self.ms;
        match effect {
            Effect::Append { entry, durable } => {
                self.trace.line(format_args!("{ms} {node} log {}", Named(&entry)));
                let Node { policy, .. } = &self.nodes[node];
                self.checker.appended(self.federation, node, policy, &entry)?;
                let node = &mut self.nodes[node];
                match &entry {
                    Entry::Leaf(AnyMessage::Grant(grant)) => {
                        node.escrow += u128::from(grant.cap.as_micro());
                    }
                    Entry::Leaf(AnyMessage::Settlement(settlement)) => {
                        let cap = u128::from(
                            settlement.total.as_micro() + settlement.refunded.as_micro(),
                        );
                        node.escrow = node.escrow.saturating_sub(cap);
                    }
                    _ => {}
                }
                node.journal.push(entry);
                if durable {
                    node.durable = node.journal.len();
                }
            }
            Effect::Send { to, message, attached } => {
                if let Some(to) = self.federation.index_of(to) {
                    self.send(node, to, message, attached);
                }
            }
            Effect::Publish(advert) => {
                self.checker.published(&advert)?;
                for to in (0..NODES).filter(|to| *to != node) {
                    if let Fate::Arrives { after, again } = self.network.fate(node, to) {
                        for after in std::iter::once(after).chain(again) {
                            let message = advert.clone().into();
                            let (from, attached) = (node, Vec::new());
                            let deliver =
                                Event::Deliver { from, to, message, attached, gossip: true };
                            self.after(after, deliver);
                        }
                    }
                }
            }
            Effect::StartWork(work) => self.start_work(node, work),
            Effect::StopWork { lease, outcome } => {
                let life = self.nodes[node].life;
                let after = self.draw.below(150);
                self.after(after, Event::WorkEnds { node, life, lease, outcome });
            }
            Effect::OpenStream { job, attempt, .. } => {
                self.checker.followed(clock, job, attempt, starting)?;
                self.nodes[node].streams.insert((job, attempt));
            }
            Effect::CloseStream { job, attempt } => {
                self.nodes[node].streams.remove(&(job, attempt));
            }
            // Jobs of the simulation read no datasets: there is no contract and no gate.
            Effect::WorkContracted { .. }
            | Effect::WorkGated { .. }
            | Effect::WorkSettled { .. }
            | Effect::WorkCounted { .. }
            | Effect::JobChanged { .. } => {}
        }
        Ok(())
    }

    fn send(&mut self, from: usize, to: usize, message: AnyMessage, attached: Vec<AnyMessage>) {
        match self.network.fate(from, to) {
            Fate::Arrives { after, again } => {
                for after in std::iter::once(after).chain(again) {
                    let (message, attached) = (message.clone(), attached.clone());
                    self.after(
                        after,
                        Event::Deliver { from, to, message, attached, gossip: false },
                    );
                }
            }
            Fate::Lost => {
                if self.network.loss_is_noticed() {
                    let after = self.draw.within(100, 2_000);
                    let message = message.id();
                    self.after(after, Event::Undelivered { at: from, to, message });
                }
            }
        }
    }
}

/// A journal entry in few words.
struct Named<'a>(&'a Entry);

impl std::fmt::Display for Named<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0 {
            Entry::Leaf(message) => write!(f, "{} {}", message.kind().0, message.id().short()),
            Entry::Private(record) => {
                use allmend_scheduler::io::Record;
                match record {
                    Record::Started { incarnation, .. } => write!(f, "started {incarnation}"),
                    Record::Heard { envelope, .. } => write!(f, "heard {} bytes", envelope.0.len()),
                    Record::Progress { tokens, .. } => write!(f, "progress {tokens}"),
                    Record::Streamed { tokens, .. } => write!(f, "streamed {tokens}"),
                    Record::AttemptOver { job, attempt, why } => {
                        write!(f, "attempt {}/{attempt} over: {why}", job.short())
                    }
                    Record::JobOver { job, why, .. } => {
                        write!(f, "job {} over: {why}", job.short())
                    }
                }
            }
        }
    }
}
