//! The three machines together, in a world without delay that a test moves by hand.

mod contracts;
mod data;
mod jobs;
mod replay;
mod rules;
mod versions;

use std::collections::{BTreeMap, VecDeque};

use allmend_protocol::envelope::Verified;
use allmend_protocol::ids::{MessageId, NodeId};
use allmend_protocol::job::JobSpec;
use allmend_protocol::message::AnyMessage;
use allmend_protocol::receipt::{Outcome, Usage};
use allmend_protocol::time::Timestamp;

use super::testing::{Federation, at, federation, local_state, node_id, open_settings};
use super::{Core, Settings};
use crate::io::{Effect, Entry, Input, JobView, Phase, Work, WorkEvent};

type Passes = Box<dyn FnMut(NodeId, NodeId, &AnyMessage) -> bool>;

/// Cores of one federation, joined by a queue.
pub(super) struct World {
    pub(super) federation: Federation,
    pub(super) ms: u64,
    pub(super) cores: BTreeMap<NodeId, Core>,
    pub(super) journals: BTreeMap<NodeId, Vec<Entry>>,
    pub(super) queue: VecDeque<(NodeId, NodeId, AnyMessage, Vec<AnyMessage>)>,
    /// Work begun and not ended.
    pub(super) work: BTreeMap<MessageId, (NodeId, Work)>,
    /// Everything that was sent, for looking at.
    pub(super) sent: Vec<(NodeId, NodeId, AnyMessage)>,
    /// Streams opened by homes.
    pub(super) streams: Vec<(MessageId, u16)>,
    /// Whether a message arrives.
    pub(super) passes: Passes,
}

impl World {
    /// Node 1 is home of the researcher; `slots` of each node in turn.
    pub(super) fn new(slots: &[u16]) -> World {
        World::with(slots, |_| open_settings())
    }

    pub(super) fn with(slots: &[u16], settings: impl Fn(u8) -> Settings) -> World {
        let count = u8::try_from(slots.len()).expect("few nodes");
        let mut world = World {
            federation: federation(count),
            ms: 0,
            cores: BTreeMap::new(),
            journals: BTreeMap::new(),
            queue: VecDeque::new(),
            work: BTreeMap::new(),
            sent: Vec::new(),
            streams: Vec::new(),
            passes: Box::new(|_, _, _| true),
        };
        for n in 1..=count {
            let core = world.federation.recover(n, settings(n), vec![]);
            world.cores.insert(node_id(100 + n), core);
            world.step(node_id(100 + n), Input::Started);
        }
        for (n, slots) in (1..).zip(slots) {
            world.step(node_id(100 + n), Input::Local(local_state(*slots)));
        }
        world.deliver();
        world
    }

    pub(super) fn now(&self) -> Timestamp {
        at(self.ms)
    }

    pub(super) fn home(&self) -> NodeId {
        node_id(101)
    }

    pub(super) fn step(&mut self, node: NodeId, input: Input) {
        let now = self.now();
        let Some(core) = self.cores.get_mut(&node) else { return };
        let mut out = Vec::new();
        core.step(now, input, &mut out);
        for effect in out {
            match effect {
                Effect::Append { entry, .. } => {
                    self.journals.entry(node).or_default().push(entry);
                }
                Effect::Send { to, message, attached } => {
                    self.sent.push((node, to, message.clone()));
                    self.queue.push_back((node, to, message, attached));
                }
                Effect::Publish(advert) => {
                    for to in self.cores.keys().copied().filter(|to| *to != node) {
                        self.queue.push_back((node, to, advert.clone().into(), vec![]));
                    }
                }
                Effect::StartWork(work) => {
                    self.work.insert(work.lease.id(), (node, work));
                }
                Effect::StopWork { lease, outcome } => self.end_work(lease, outcome, 0),
                Effect::OpenStream { job, attempt, .. } => self.streams.push((job, attempt)),
                _ => {}
            }
        }
    }

    /// Delivers everything that is under way, and what that causes.
    pub(super) fn deliver(&mut self) {
        while let Some((from, to, message, attached)) = self.queue.pop_front() {
            if !(self.passes)(from, to, &message) || !self.cores.contains_key(&to) {
                continue;
            }
            self.step(from, Input::Delivered { to });
            self.step(to, Input::Message { from, message, attached });
        }
    }

    /// Lets time pass in ticks.
    pub(super) fn advance(&mut self, ms: u64) {
        for _ in 0..ms.div_ceil(100) {
            self.ms += 100;
            for node in self.cores.keys().copied().collect::<Vec<_>>() {
                self.step(node, Input::Tick);
            }
            self.deliver();
        }
    }

    pub(super) fn submit(&mut self, job: &Verified<JobSpec>) {
        let cert = self.federation.cert.clone();
        self.step(self.home(), Input::Submit { job: job.clone(), cert });
        self.deliver();
    }

    /// Home has seen `tokens`, then the worker ends.
    pub(super) fn end_work(&mut self, lease: MessageId, outcome: Outcome, tokens: u32) {
        let Some((node, work)) = self.work.remove(&lease) else { return };
        let (job, attempt) = (work.lease.job, work.lease.attempt);
        self.step(self.home(), Input::Streamed { job, attempt, tokens });
        let usage =
            Usage { prompt_tokens: 20, completion_tokens: u64::from(tokens), ..Usage::default() };
        let event = WorkEvent::Ended { outcome, usage, output: None, model_licence: None };
        self.step(node, Input::Work { lease, event });
    }

    pub(super) fn finish(&mut self, lease: MessageId, tokens: u32) {
        self.end_work(lease, Outcome::Finished { reason: "stop".into() }, tokens);
        self.deliver();
    }

    /// The only work going on.
    pub(super) fn only_work(&self) -> (MessageId, NodeId) {
        assert_eq!(self.work.len(), 1, "one piece of work");
        let (lease, (node, _)) = self.work.iter().next().expect("one");
        (*lease, *node)
    }

    pub(super) fn kill(&mut self, node: NodeId) -> Core {
        self.work.retain(|_, (at, _)| *at != node);
        self.cores.remove(&node).expect("alive")
    }

    pub(super) fn restart(&mut self, n: u8, slots: u16) {
        let node = node_id(100 + n);
        self.work.retain(|_, (at, _)| *at != node);
        let journal = self.journals.get(&node).cloned().unwrap_or_default();
        let core = self.federation.recover(n, open_settings(), journal);
        self.cores.insert(node, core);
        self.step(node, Input::Started);
        self.step(node, Input::Local(local_state(slots)));
        self.deliver();
    }

    pub(super) fn job(&self, job: &Verified<JobSpec>) -> JobView {
        self.cores[&self.home()].job(job.id()).expect("a job of this home")
    }

    pub(super) fn phase(&self, job: &Verified<JobSpec>) -> Phase {
        self.job(job).phase
    }

    pub(super) fn count(&self, is: impl Fn(&AnyMessage) -> bool) -> usize {
        self.sent.iter().filter(|(_, _, message)| is(message)).count()
    }
}
