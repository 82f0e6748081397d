//! Work on data: one contract per lease and one report per contract, both durable before what they
//! permit, and none that breaks its own rules (specs/contract.md §4).

use std::sync::Arc;

use allmend_protocol::finetune::{FinetuneWork, Lora, LossOn, MixPart, Optimiser, Schedule};
use allmend_protocol::ids::{Digest, MessageId};
use allmend_protocol::message::AnyMessage;
use allmend_protocol::offer::Reason;
use allmend_protocol::receipt::Outcome;
use allmend_protocol::stewardship::{Contract, GateReport, GateStop, PolicyInForce};
use allmend_protocol::units::Decimal;

use super::World;
use crate::core::Settings;
use crate::core::testing::{START, local_state, open_settings};
use crate::io::{Entry, Gated, Input, Phase, Terms, WorkEvent};
use crate::stewards::{AdapterQuestion, DataQuestion, DataVerdict, Stewards};

/// Stewards who allow everything.
#[derive(Debug)]
struct Open;

impl Stewards for Open {
    fn decide(&self, _: &DataQuestion<'_>) -> DataVerdict {
        DataVerdict::Allow
    }

    fn may_use(&self, _: &AdapterQuestion<'_>) -> Result<(), Vec<Reason>> {
        Ok(())
    }
}

fn dataset() -> Digest {
    Digest::of(b"dataset")
}

fn work() -> FinetuneWork {
    let of = Decimal::new;
    FinetuneWork {
        datasets: vec![MixPart { dataset: dataset(), weight: 1 }],
        lora: Lora { rank: 8, alpha: 16, dropout: of(0, 0), targets: vec!["q_proj".to_owned()] },
        optimiser: Optimiser {
            learning_rate: of(1, -4),
            warmup_steps: 0,
            schedule: Schedule::Constant,
            weight_decay: of(0, 0),
            beta1: of(9, -1),
            beta2: of(999, -3),
            epsilon: of(1, -8),
            clip_norm: of(1, 0),
        },
        steps: 2,
        batch: 1,
        accumulate: 1,
        sequence_tokens: 16,
        loss_on: LossOn::All,
        packing: false,
        validation: of(0, 0),
        seed: 1,
        snapshot_every: 1,
        recompute: false,
        clock: START,
        privacy: None,
        plateau_steps: None,
        precision: None,
    }
}

/// One node, which holds the dataset, and a job that trains on it under this lease.
fn training() -> (World, MessageId) {
    let settings = |_| Settings { stewards: Some(Arc::new(Open)), ..open_settings() };
    let mut world = World::with(&[1], settings);
    let mut local = local_state(1);
    local.datasets = vec![dataset()];
    world.step(world.home(), Input::Local(local));
    let own = world.federation.identity(1).institution;
    let job = world.federation.job(1, |job| {
        job.work = work().to_work();
        job.placement.at = vec![own];
    });
    world.submit(&job);
    assert_eq!(world.phase(&job), Phase::Running, "{:?}", world.job(&job));
    let (lease, _) = world.only_work();
    (world, lease)
}

/// Terms in no order at all, with repeats.
fn terms() -> Terms {
    let layer = |layer: &str| PolicyInForce {
        layer: layer.to_owned(),
        digest: Digest::of(layer.as_bytes()),
    };
    let approval = |n: u8| MessageId::from_bytes([n; 32]);
    Terms {
        datasets: vec![dataset()],
        policies: ["charter", "institution", "dataset", "charter"].map(layer).into(),
        reasons: vec!["members".to_owned()],
        approvals: vec![approval(2), approval(1), approval(2)],
        model_licence: None,
        output: "adapter".to_owned(),
        room: "sealed-v1".to_owned(),
        room_facts: Vec::new(),
        privacy: None,
    }
}

fn released() -> Gated {
    Gated { released: Some(Digest::of(b"adapter")), stops: Vec::new(), approvals: Vec::new() }
}

impl World {
    fn contracted(&mut self, lease: MessageId, terms: Terms) {
        let event = WorkEvent::Contracted(Box::new(terms));
        self.step(self.home(), Input::Work { lease, event });
    }

    fn gated(&mut self, lease: MessageId, gated: Gated) {
        let event = WorkEvent::Gated(Box::new(gated));
        self.step(self.home(), Input::Work { lease, event });
    }

    fn leaves(&self) -> impl Iterator<Item = &AnyMessage> {
        self.journals[&self.home()].iter().filter_map(|entry| match entry {
            Entry::Leaf(message) => Some(message),
            Entry::Private(_) => None,
        })
    }

    fn contracts(&self) -> Vec<(MessageId, &Contract)> {
        self.leaves()
            .filter_map(|message| match message {
                AnyMessage::Contract(contract) => Some((contract.id(), contract.body())),
                _ => None,
            })
            .collect()
    }

    fn reports(&self) -> Vec<&GateReport> {
        self.leaves()
            .filter_map(|message| match message {
                AnyMessage::GateReport(report) => Some(report.body()),
                _ => None,
            })
            .collect()
    }

    /// The contract that the only receipt names, and how the run ended.
    fn receipt(&self) -> (Option<MessageId>, Outcome) {
        let receipts: Vec<_> = self
            .leaves()
            .filter_map(|message| match message {
                AnyMessage::Receipt(receipt) => Some((receipt.contract, receipt.outcome.clone())),
                _ => None,
            })
            .collect();
        assert_eq!(receipts.len(), 1);
        receipts[0].clone()
    }
}

#[test]
fn a_run_has_one_contract_and_one_report() {
    let (mut world, lease) = training();
    world.contracted(lease, terms());
    world.contracted(lease, Terms { room: "process-v1".to_owned(), ..terms() });
    world.gated(lease, released());
    let stop = GateStop { rule: "norm".to_owned(), text: "too large".to_owned() };
    world.gated(lease, Gated { released: None, stops: vec![stop], ..released() });
    world.finish(lease, 32);
    let contracts = world.contracts();
    let [(id, contract)] = contracts[..] else { panic!("{contracts:?}") };
    assert_eq!(contract.room, "sealed-v1");
    // Whatever order they came in, the contract has its own.
    let layers: Vec<_> = contract.policies.iter().map(|used| used.layer.as_str()).collect();
    assert_eq!(layers, ["charter", "dataset", "institution"]);
    assert_eq!(contract.approvals, [1, 2].map(|n| MessageId::from_bytes([n; 32])));
    let reports = world.reports();
    assert_eq!(reports.len(), 1);
    assert_eq!((reports[0].contract, reports[0].released), (id, released().released));
    assert_eq!(world.receipt().0, Some(id));
}

/// Goal: terms that cannot be said are no panic and no contract.
#[test]
fn terms_that_no_contract_can_say_stop_the_work() {
    let crowd = (0..65).map(|n| MessageId::from_bytes([n; 32])).collect();
    let only_charter = terms().policies.into_iter().filter(|used| used.layer == "charter");
    for wrong in [
        Terms { approvals: crowd, ..terms() },
        Terms { policies: only_charter.collect(), ..terms() },
        Terms { reasons: vec!["yes".to_owned(); 33], ..terms() },
    ] {
        let (mut world, lease) = training();
        world.contracted(lease, wrong);
        assert!(world.contracts().is_empty());
        let (contract, outcome) = world.receipt();
        assert_eq!(contract, None);
        assert!(matches!(outcome, Outcome::Failed { permanent: true, .. }), "{outcome:?}");
    }
}

#[test]
fn nothing_is_released_without_a_contract_or_by_work_that_is_stopped() {
    let (mut world, lease) = training();
    world.gated(lease, released());
    assert!(world.reports().is_empty());
    assert!(matches!(world.receipt().1, Outcome::Failed { permanent: true, .. }));

    // A decision that says nothing.
    let (mut world, lease) = training();
    world.contracted(lease, terms());
    world.gated(lease, Gated { released: None, ..released() });
    assert!(world.reports().is_empty());
    assert!(matches!(world.receipt().1, Outcome::Failed { permanent: true, .. }));
}

/// Goal: after a crash the receipt names the contract that the log holds.
#[test]
fn a_restarted_node_names_the_contract_in_its_receipt() {
    let (mut world, lease) = training();
    world.contracted(lease, terms());
    world.restart(1, 1);
    let id = world.contracts()[0].0;
    assert_eq!(world.receipt(), (Some(id), Outcome::Interrupted));
}
