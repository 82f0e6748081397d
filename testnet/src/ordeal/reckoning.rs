//! After everything has calmed down: does the paper agree with what people were told?

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use allmend_protocol::envelope::Envelope;
use allmend_protocol::ids::{FederationId, MessageId, NodeId};
use allmend_protocol::message::AnyMessage;
use allmend_protocol::receipt::{JobOutcome, Outcome};
use allmend_protocol::time::Timestamp;
use anyhow::{Context as _, ensure};
use serde::Serialize;
use serde_json::Value;

use super::leaves::Leaves;
use crate::world::{World, text, wait_for};

/// The most jobs that a node lists.
const JOBS_MAX: &str = "1000";

/// What researchers were told while it went on.
#[derive(Clone, Debug, Default)]
pub struct Told {
    /// Home's key and the job that it acknowledged.
    pub jobs: Vec<(String, String)>,
    /// Leases shown, by node.
    pub leases: BTreeSet<(NodeId, MessageId)>,
    /// Receipts shown, by node.
    pub receipts: BTreeSet<(NodeId, MessageId)>,
}

/// Leases and receipts that home nodes hold of others.
pub type Heard = Told;

/// What logs say in the end.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Reckoning {
    /// Jobs in the logs of their homes.
    pub jobs: usize,
    /// How they ended.
    pub outcomes: BTreeMap<&'static str, usize>,
    /// Leases.
    pub leases: usize,
    /// Receipts, one for each lease.
    pub receipts: usize,
    /// Of these, of attempts that a crash ended.
    pub interrupted: usize,
    /// Grants.
    pub grants: usize,
    /// Settlements, one for each grant.
    pub settlements: usize,
    /// Micro-credits paid.
    pub paid_micro: u64,
    /// Log entries over all nodes.
    pub entries: usize,
    #[serde(skip)]
    lives: Vec<Life>,
}

/// From when to when a node had a duty.
#[derive(Clone, Debug)]
struct Life {
    node: NodeId,
    home: bool,
    from: Timestamp,
    to: Timestamp,
}

impl Told {
    /// Notes what a job's document names.
    pub fn note(&mut self, shown: &Value) {
        for attempt in shown["attempts"].as_array().into_iter().flatten() {
            let Ok(node) = text(attempt, "node").parse::<NodeId>() else { continue };
            self.leases.extend(text(attempt, "lease").parse().ok().map(|lease| (node, lease)));
            self.receipts.extend(text(attempt, "receipt").parse().ok().map(|id| (node, id)));
        }
    }
}

impl Reckoning {
    /// Whether the node was home of an open job.
    pub(super) fn open_at(&self, node: &str, at_ms: u64) -> bool {
        self.had_duty(node, at_ms, true)
    }

    /// Whether the node worked under a lease.
    pub(super) fn leased_at(&self, node: &str, at_ms: u64) -> bool {
        self.had_duty(node, at_ms, false)
    }

    fn had_duty(&self, node: &str, at_ms: u64, home: bool) -> bool {
        let at = Timestamp::from_ms(at_ms);
        let holds = |life: &&Life| life.node.to_string() == node && life.home == home;
        self.lives.iter().filter(holds).any(|life| life.from <= at && at < life.to)
    }
}

/// Whether a job's document says that it is over.
pub fn is_over(shown: &Value) -> bool {
    let settled = shown["grant"].is_null() || !shown["settlement"].is_null();
    let over =
        ["finished", "failed", "refused", "cancelled", "expired"].contains(&text(shown, "phase"));
    over && settled
}

/// Waits until every job at every home is over and settled.
///
/// # Errors
/// When that takes longer than `limit`; shows one that is not.
pub fn wait_over(world: &World, limit: Duration) -> anyhow::Result<()> {
    let mut open: Option<Value> = None;
    let waited = wait_for("every job to be over and settled", limit, || {
        for member in world.members() {
            let cli = member.cli();
            let jobs = cli.json(&["jobs", "--limit", JOBS_MAX])?;
            for job in jobs.as_array().into_iter().flatten() {
                if text(job, "phase") == "finished" && !job["cost_micro"].is_null() {
                    continue;
                }
                let shown = cli.json(&["show", text(job, "job")])?;
                if !is_over(&shown) {
                    open = Some(shown);
                    return Ok(None);
                }
            }
        }
        Ok(Some(()))
    });
    waited.with_context(|| format!("still open: {}", open.unwrap_or_default()))
}

/// Leases and receipts that home nodes hold of others, as they show them to their operators.
///
/// # Errors
/// When a node does not answer, or shows something that does not verify.
pub fn heard_by_homes(world: &World) -> anyhow::Result<Heard> {
    let mut heard = Heard::default();
    for member in world.members() {
        let cli = member.cli();
        let federation = federation(world)?;
        let jobs = cli.json(&["jobs", "--limit", JOBS_MAX])?;
        for job in jobs.as_array().into_iter().flatten().map(|job| text(job, "job")) {
            heard.jobs.push((member.node_key().to_owned(), job.to_owned()));
            let shown = cli.json(&["show", job, "--signed"])?;
            heard.note(&shown);
            for message in shown["signed"].as_array().into_iter().flatten() {
                let bytes = data_encoding::HEXLOWER.decode(text(message, "envelope").as_bytes())?;
                match AnyMessage::verify(&Envelope::from_bytes(&bytes)?, &federation)? {
                    AnyMessage::Lease(lease) => heard.leases.insert((lease.signer, lease.id())),
                    AnyMessage::Receipt(receipt) => {
                        heard.receipts.insert((receipt.signer, receipt.id()))
                    }
                    _ => false,
                };
            }
        }
    }
    Ok(heard)
}

/// Compares the logs with what was told and heard. The nodes have stopped.
///
/// # Errors
/// With the first thing that is lost or counted twice.
pub fn reckon(world: &World, told: &Told, heard: &Heard) -> anyhow::Result<Reckoning> {
    let federation = federation(world)?;
    let mut reckoning = Reckoning::default();
    let mut paper = Paper::default();
    for member in world.members() {
        let leaves = Leaves::read(&member.log_dir())?;
        reckoning.entries += leaves.len();
        for message in leaves.messages(&federation)? {
            paper.file(message).with_context(|| format!("the log of {}", member.name()))?;
        }
    }
    for (_, job) in told.jobs.iter().chain(&heard.jobs) {
        let known = job.parse().is_ok_and(|job| paper.specs.contains_key(&job));
        ensure!(known, "job {job} was acknowledged and is in no log");
    }
    for (node, lease) in told.leases.iter().chain(&heard.leases) {
        let logged = paper.leases.get(lease).is_some_and(|found| found.node == *node);
        ensure!(logged, "lease {lease} was known elsewhere and is not in the log of {node}");
    }
    for (node, receipt) in told.receipts.iter().chain(&heard.receipts) {
        let logged = paper.receipts.get(receipt) == Some(node);
        ensure!(logged, "receipt {receipt} was known elsewhere and is not in the log of {node}");
    }
    for (lease, found) in &paper.leases {
        let ended = found.ended.with_context(|| format!("lease {lease} has no receipt"))?;
        let life = Life { node: found.node, home: false, from: found.issued, to: ended };
        reckoning.lives.push(life);
    }
    for (grant, home) in &paper.grants {
        ensure!(paper.settled.contains_key(grant), "grant {grant} of {home} was never settled");
    }
    for (job, (home, issued)) in &paper.specs {
        let to = paper.over.get(job).copied().unwrap_or(*issued);
        reckoning.lives.push(Life { node: *home, home: true, from: *issued, to });
    }
    reckoning.jobs = paper.specs.len();
    reckoning.leases = paper.leases.len();
    reckoning.receipts = paper.receipts.len();
    reckoning.interrupted = paper.interrupted;
    reckoning.grants = paper.grants.len();
    reckoning.settlements = paper.settled.len();
    reckoning.paid_micro = paper.paid_micro;
    for outcome in paper.settled.values() {
        *reckoning.outcomes.entry(outcome.name()).or_default() += 1;
    }
    Ok(reckoning)
}

/// All logs together.
#[derive(Debug, Default)]
struct Paper {
    specs: BTreeMap<MessageId, (NodeId, Timestamp)>,
    leases: BTreeMap<MessageId, Leased>,
    receipts: BTreeMap<MessageId, NodeId>,
    grants: BTreeMap<MessageId, NodeId>,
    settled: BTreeMap<MessageId, JobOutcome>,
    over: BTreeMap<MessageId, Timestamp>,
    interrupted: usize,
    paid_micro: u64,
}

#[derive(Debug)]
struct Leased {
    node: NodeId,
    issued: Timestamp,
    ended: Option<Timestamp>,
}

impl Paper {
    fn file(&mut self, message: AnyMessage) -> anyhow::Result<()> {
        match message {
            AnyMessage::JobSpec(spec) => {
                self.specs.insert(spec.id(), (spec.home, spec.issued));
            }
            AnyMessage::Lease(lease) => {
                let leased = Leased { node: lease.signer, issued: lease.issued, ended: None };
                let before = self.leases.insert(lease.id(), leased);
                ensure!(before.is_none(), "lease {} is there twice", lease.id());
            }
            AnyMessage::Receipt(receipt) => {
                let leased = self.leases.get_mut(&receipt.lease);
                let leased =
                    leased.with_context(|| format!("receipt {} without lease", receipt.id()))?;
                ensure!(leased.ended.is_none(), "lease {} has two receipts", receipt.lease);
                leased.ended = Some(receipt.ended);
                self.interrupted += usize::from(receipt.outcome == Outcome::Interrupted);
                self.receipts.insert(receipt.id(), receipt.signer);
            }
            AnyMessage::Grant(grant) => {
                self.grants.insert(grant.id(), grant.signer);
            }
            AnyMessage::Settlement(settlement) => {
                let before = self.settled.insert(settlement.grant, settlement.outcome);
                ensure!(before.is_none(), "grant {} is settled twice", settlement.grant);
                self.over.insert(settlement.job, settlement.issued);
                self.paid_micro = self.paid_micro.saturating_add(settlement.total.as_micro());
            }
            _ => {}
        }
        Ok(())
    }
}

/// Which federation a world is.
///
/// # Errors
/// When its charter cannot be read.
pub fn federation(world: &World) -> anyhow::Result<FederationId> {
    let charter = std::fs::read(world.members()[0].dir().join("charter"))?;
    // A genesis charter's id names the federation.
    Ok(Envelope::from_bytes(&charter)?.id().into())
}
