//! The daemon: one loop that takes an input, steps the pure core, and performs the effects in
//! order. Everything that waits (workers, streams, clients) is a task that talks to the loop
//! through one bounded queue.

mod admit;
mod capacity;
mod documents;
mod effects;
mod index;
mod output;
mod quote;
mod recalls;
mod register;
mod running;
mod serve;
mod start;
mod steward;
mod stream;
mod tap;
mod training;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use allmend_protocol::bundle::Bundle;
use allmend_protocol::envelope::Envelope;
use allmend_protocol::ids::{Digest, FederationId, InstitutionId, MessageId, NodeId, PublicKey};
use allmend_protocol::message::AnyMessage;
use allmend_scheduler::core::Core;
use allmend_scheduler::io::{Effect, Input, TICK_EVERY};
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use self::output::JobOutput;
use self::register::Register;
use self::running::Running;
use crate::client::proto::{Answer, Ask};
use crate::config::{Config, Identity, Layout};
use crate::journal::Journal;
use crate::membership::{Membership, now};
use crate::net::{BulkStream, NetEvent, NetHandle};
use crate::spool::Spool;
use crate::stewards::Stewardship;

pub use self::start::{DaemonInfo, RunOptions, run};

/// Events that may wait for the loop; senders wait when it is full.
const EVENTS_MAX: usize = 1_024;
/// Inputs stepped together, so that their journal entries share one fdatasync.
const BATCH_MAX: usize = 64;
/// How long a receipt waits for the rest of its stream before it is counted without.
const RECEIPT_WAIT: Duration = Duration::from_secs(3);
/// How often new leaves are published to the auditors' directory, at most.
const PUBLISH_EVERY: Duration = Duration::from_secs(1);
/// How often the disk, the models and expired files are looked at.
const HOUSEKEEPING_EVERY: Duration = Duration::from_secs(10);

/// What never changes while the daemon runs.
pub(crate) struct Local {
    pub(crate) node: NodeId,
    pub(crate) institution: InstitutionId,
    pub(crate) federation: FederationId,
    pub(crate) identity: Identity,
    /// Only at the node that admits others.
    pub(crate) institution_key: Option<Identity>,
    pub(crate) config: Config,
    pub(crate) layout: Layout,
    pub(crate) started: Instant,
}

impl std::fmt::Debug for Local {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Local").field("node", &self.node).finish_non_exhaustive()
    }
}

/// Something for the loop.
pub(crate) enum Event {
    /// The core is to be stepped.
    Input(Box<Input>),
    /// A member, or this node itself, opened a stream.
    Bulk { from: NodeId, stream: Box<BulkStream> },
    /// A client asks something.
    Ask {
        caller: PublicKey,
        ask: Box<Ask>,
        payload: Option<Vec<u8>>,
        reply: oneshot::Sender<Response>,
    },
    /// Rows that a job had brought have been deleted.
    Deleted { job: MessageId, input: Digest, bytes: u64 },
    /// Adapters have been released or recalled.
    AdaptersChanged,
    /// Home's stream of an attempt has ended.
    StreamOver { job: MessageId, attempt: u16 },
    /// The daemon is to stop.
    Stop { drain: bool },
}

/// What the loop answers to a client's task.
pub(crate) enum Response {
    /// One answer, and the stream ends.
    Answer(Answer),
    /// A file, in parts.
    Parts(std::fs::File),
    /// An answer, then events of a job.
    Follow { first: Option<Answer>, output: Arc<JobOutput>, from: u32 },
    /// Something that takes its time and needs nothing of the loop.
    Later(std::pin::Pin<Box<dyn Future<Output = Answer> + Send>>),
}

/// The daemon's state, owned by its loop.
pub(crate) struct Daemon {
    local: Arc<Local>,
    core: Core,
    journal: Journal,
    net: NetHandle,
    membership: Arc<Membership>,
    register: Register,
    clients: Arc<serve::KnownClients>,
    spool: Spool,
    running: Running,
    stewards: Arc<Stewardship>,
    recalls: recalls::Recalls,
    capacity: capacity::Capacity,
    events: mpsc::Sender<Event>,
    outputs: BTreeMap<MessageId, Arc<JobOutput>>,
    streams: BTreeMap<(MessageId, u16), CancellationToken>,
    /// Receipts that wait for their stream's last tokens.
    held: BTreeMap<(MessageId, u16), (Instant, Input)>,
    /// Why the owner wants nothing new, if so.
    draining: Option<String>,
    /// Since when the daemon is to stop, if it is.
    stopping: Option<Instant>,
    /// Whether leaves wait to be published, and when that was last done.
    unpublished: bool,
    published: Instant,
    housekeeping: Instant,
}

impl Daemon {
    /// Runs until asked to stop, then ends in an orderly way.
    async fn run(
        mut self,
        mut net: mpsc::Receiver<NetEvent>,
        mut events: mpsc::Receiver<Event>,
    ) -> anyhow::Result<()> {
        let mut tick = tokio::time::interval(Duration::from_millis(TICK_EVERY.as_ms()));
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut inputs = vec![Input::Started, Input::Local(self.local_state())];
        loop {
            self.step(std::mem::take(&mut inputs)).await?;
            if self.stopping.is_some() && self.core.live_leases_count() == 0 {
                break;
            }
            tokio::select! {
                event = net.recv() => match event {
                    Some(event) => self.on_net(event, &mut inputs).await?,
                    None => anyhow::bail!("the network has stopped"),
                },
                Some(event) = events.recv() => self.on_event(event, &mut inputs).await?,
                _ = tick.tick() => self.on_tick(&mut inputs).await?,
            }
            // Whatever else has arrived shares the same fdatasync.
            while inputs.len() < BATCH_MAX {
                if let Ok(event) = net.try_recv() {
                    self.on_net(event, &mut inputs).await?;
                } else if let Ok(event) = events.try_recv() {
                    self.on_event(event, &mut inputs).await?;
                } else {
                    break;
                }
            }
        }
        tracing::info!("stopping");
        for (_, close) in std::mem::take(&mut self.streams) {
            close.cancel();
        }
        self.net.shutdown().await;
        self.journal.close().await?;
        Ok(())
    }

    /// Steps the core over `inputs` and performs what it wants, until nothing more follows.
    async fn step(&mut self, mut inputs: Vec<Input>) -> anyhow::Result<()> {
        while !inputs.is_empty() {
            let mut wanted: Vec<Effect> = Vec::new();
            for input in inputs.drain(..) {
                self.core.step(now(), input, &mut wanted);
            }
            // Messages to ourselves come back as inputs.
            inputs = self.perform(wanted).await?;
        }
        Ok(())
    }

    async fn on_net(&mut self, event: NetEvent, inputs: &mut Vec<Input>) -> anyhow::Result<()> {
        self.learn(inputs).await?;
        match event {
            NetEvent::Joined(node) => {
                tracing::info!(node = %node.short(), "member connected");
                // Gossip needs a heartbeat or two before it reaches a newcomer; a message does not.
                if let Some(advert) = self.core.own_advert_now().cloned() {
                    self.send(node, &advert.into(), &[]);
                }
                if let Some(versions) = self.membership.peer_versions(node) {
                    inputs.push(Input::PeerVersions { node, versions });
                }
                self.recall_to(node);
            }
            NetEvent::Left(node) => tracing::info!(node = %node.short(), "member disconnected"),
            NetEvent::Gossip(bytes) => {
                let message = Envelope::from_bytes(&bytes)
                    .and_then(|envelope| AnyMessage::verify(&envelope, &self.local.federation));
                if let Ok(message @ AnyMessage::CapacityAdvert(_)) = message {
                    let from = NodeId::from(message.signer());
                    inputs.push(Input::Message { from, message, attached: Vec::new() });
                }
            }
            NetEvent::Request { from, bytes, reply } if bytes.first() == Some(&quote::QUOTE) => {
                self.answer_quote(from, &bytes[1..], reply);
            }
            NetEvent::Request { from, bytes, reply } => match self.unpack(from, &bytes) {
                Ok(input) => {
                    let _ = reply.send(vec![TAKEN]);
                    if let Input::Message { from, message, attached } = &input
                        && self.hear_recall(*from, message, attached).await?
                    {
                        return Ok(());
                    }
                    self.take_message(input, inputs);
                }
                Err(why) => {
                    tracing::warn!(from = %from.short(), %why, "message refused");
                    let _ = reply.send(why.into_bytes());
                }
            },
            NetEvent::Bulk { from, stream } => self.running.serve(from, stream),
            NetEvent::Client { key, remote: _, stream } => {
                let caller = PublicKey::from_bytes(key);
                let limit = self.local.config.limits.prompt_bytes_max;
                let events = self.events.clone();
                tokio::spawn(serve::client(caller, stream, events, limit));
            }
        }
        Ok(())
    }

    /// Decodes and verifies a bundle; its main message must be the neighbour's own.
    fn unpack(&self, from: NodeId, bytes: &[u8]) -> Result<Input, String> {
        let verify = |envelope: &Envelope| {
            AnyMessage::verify(envelope, &self.local.federation).map_err(|e| e.to_string())
        };
        let bundle = Bundle::from_bytes(bytes).map_err(|error| error.to_string())?;
        let message = verify(&bundle.main)?;
        if NodeId::from(message.signer()) != from {
            return Err("the message is not its sender's".to_owned());
        }
        let attached = bundle.attached.iter().map(verify).collect::<Result<Vec<_>, _>>()?;
        Ok(Input::Message { from, message, attached })
    }

    /// A receipt is counted after the last tokens of its stream have arrived, or a while later.
    fn take_message(&mut self, input: Input, inputs: &mut Vec<Input>) {
        if let Input::Message { message: AnyMessage::Receipt(receipt), .. } = &input {
            let key = (receipt.job, receipt.attempt);
            if self.streams.contains_key(&key) {
                self.held.entry(key).or_insert((Instant::now(), input));
                return;
            }
        }
        inputs.push(input);
    }

    async fn on_event(&mut self, event: Event, inputs: &mut Vec<Input>) -> anyhow::Result<()> {
        match event {
            Event::Input(input) => inputs.push(*input),
            Event::Bulk { from, stream } => self.running.serve(from, *stream),
            Event::Ask { caller, ask, payload, reply } => {
                // Earlier inputs first: an answer must see their effects.
                self.step(std::mem::take(inputs)).await?;
                let response = self.answer(caller, *ask, payload).await?;
                let _ = reply.send(response);
            }
            Event::Deleted { job, input, bytes } => self.note_deletion(job, input, bytes).await?,
            Event::AdaptersChanged => inputs.push(Input::Local(self.local_state())),
            Event::StreamOver { job, attempt } => {
                self.streams.remove(&(job, attempt));
                if let Some((_, input)) = self.held.remove(&(job, attempt)) {
                    inputs.push(input);
                }
            }
            Event::Stop { drain } => {
                if !drain || self.stopping.is_some() {
                    // A second request means now.
                    self.interrupt_work();
                }
                self.stopping.get_or_insert_with(Instant::now);
                self.draining.get_or_insert_with(|| "the node is stopping".to_owned());
                inputs.push(Input::Local(self.local_state()));
            }
        }
        Ok(())
    }

    async fn on_tick(&mut self, inputs: &mut Vec<Input>) -> anyhow::Result<()> {
        self.learn(inputs).await?;
        let overdue: Vec<_> = self
            .held
            .iter()
            .filter(|(_, (since, _))| since.elapsed() > RECEIPT_WAIT)
            .map(|(key, _)| *key)
            .collect();
        for key in overdue {
            inputs.extend(self.held.remove(&key).map(|(_, input)| input));
        }
        let patience = Duration::from_secs(self.local.config.timing.drain_timeout_s);
        if self.stopping.is_some_and(|since| since.elapsed() > patience) {
            self.interrupt_work();
        }
        if self.unpublished && self.published.elapsed() > PUBLISH_EVERY {
            self.unpublished = false;
            self.published = Instant::now();
            self.journal.publish().await?;
        }
        if self.housekeeping.elapsed() > HOUSEKEEPING_EVERY {
            self.housekeeping = Instant::now();
            self.keep_house(inputs).await?;
        }
        self.recall_again();
        inputs.push(Input::Tick);
        Ok(())
    }

    /// Ends everything that runs here; each lease gets an `interrupted` receipt.
    fn interrupt_work(&self) {
        for lease in self.core.leases().map(|held| held.work().lease.id()) {
            self.running.stop(lease, allmend_protocol::receipt::Outcome::Interrupted);
        }
    }

    /// Tells the core of certificates that the network has accepted since.
    async fn learn(&mut self, inputs: &mut Vec<Input>) -> anyhow::Result<()> {
        let fresh = self.membership.take_fresh();
        if fresh.is_empty() {
            return Ok(());
        }
        *self.core.roster_mut() = self.membership.roster();
        for message in fresh {
            if let AnyMessage::NodeCert(cert) = &message
                && let Some(versions) = self.membership.peer_versions(cert.node)
            {
                inputs.push(Input::PeerVersions { node: cert.node, versions });
            }
            start::put_blob(&self.journal, message.envelope().as_bytes()).await?;
        }
        Ok(())
    }
}

/// The transport's acknowledgement that a message was decoded and verified.
pub(crate) const TAKEN: u8 = 1;
