//! Jobs that read datasets: who decides, what waits, what is signed around a run.

use std::sync::{Arc, Mutex};

use allmend_protocol::envelope::Verified;
use allmend_protocol::finetune::{FinetuneWork, Lora, LossOn, MixPart, Optimiser, Schedule};
use allmend_protocol::ids::Digest;
use allmend_protocol::job::{InferWork, JobSpec};
use allmend_protocol::message::AnyMessage;
use allmend_protocol::offer::{Probe, Reason, ReasonClass};
use allmend_protocol::receipt::Outcome;
use allmend_protocol::stewardship::PolicyInForce;
use allmend_protocol::units::Decimal;

use super::World;
use crate::core::Settings;
use crate::core::testing::{START, at, infer_work, key, local_state, node_id, open_settings};
use crate::io::{Gated, Input, Phase, Terms, WorkEvent};
use crate::stewards::{AdapterQuestion, DataQuestion, DataVerdict, Stewards};

const DATASET: Digest = Digest::from_bytes([7; 32]);
const ADAPTER: Digest = Digest::from_bytes([8; 32]);

/// Says what the test wants said.
#[derive(Debug)]
struct Said(Mutex<DataVerdict>);

impl Said {
    fn now(&self, verdict: DataVerdict) {
        *self.0.lock().unwrap() = verdict;
    }
}

impl Stewards for Said {
    fn decide(&self, question: &DataQuestion<'_>) -> DataVerdict {
        assert_eq!(question.work.datasets[0].dataset, DATASET);
        self.0.lock().unwrap().clone()
    }

    fn may_use(&self, question: &AdapterQuestion<'_>) -> Result<(), Vec<Reason>> {
        assert_eq!(question.adapter, ADAPTER);
        match self.0.lock().unwrap().clone() {
            DataVerdict::Refuse(reasons) => Err(reasons),
            _ => Ok(()),
        }
    }
}

fn waits() -> DataVerdict {
    let obligations = vec!["approve:data-steward".to_owned()];
    DataVerdict::Pending { obligations, ticket: vec![1], expires: at(100_000) }
}

/// Home is node 1; the data is at node 2, which has the say.
fn world(said: &Arc<Said>) -> World {
    let mut world = World::with(&[1, 1], |n| Settings {
        stewards: (n == 2).then(|| Arc::clone(said) as Arc<dyn Stewards>),
        ..open_settings()
    });
    let mut local = local_state(1);
    local.datasets = vec![DATASET];
    local.datasets_public = vec![DATASET];
    world.step(node_id(102), Input::Local(local));
    // Adverts that follow each other wait for one another.
    world.advance(1_000);
    world
}

fn job(world: &World) -> Verified<JobSpec> {
    let number = |mantissa, exp10| Decimal { mantissa, exp10 };
    let work = FinetuneWork {
        datasets: vec![MixPart { dataset: DATASET, weight: 1 }],
        lora: Lora { rank: 4, alpha: 8, dropout: number(0, 0), targets: vec!["q_proj".into()] },
        optimiser: Optimiser {
            learning_rate: number(1, -3),
            warmup_steps: 0,
            schedule: Schedule::Constant,
            weight_decay: number(0, 0),
            beta1: number(9, -1),
            beta2: number(999, -3),
            epsilon: number(1, -8),
            clip_norm: number(1, 0),
        },
        steps: 10,
        batch: 2,
        accumulate: 1,
        sequence_tokens: 64,
        loss_on: LossOn::All,
        packing: false,
        validation: number(0, 0),
        seed: 1,
        snapshot_every: 5,
        recompute: false,
        clock: START,
        privacy: None,
        plateau_steps: None,
        precision: None,
    };
    world.federation.job(1, |job| job.work = work.to_work())
}

fn terms() -> Terms {
    Terms {
        datasets: vec![DATASET],
        policies: ["institution", "charter", "dataset"]
            .map(|layer| PolicyInForce {
                layer: layer.into(),
                digest: Digest::of(layer.as_bytes()),
            })
            .to_vec(),
        reasons: vec!["dataset/all".into()],
        approvals: vec![],
        model_licence: None,
        output: "adapter".into(),
        room: "sealed-v1".into(),
        room_facts: vec![],
        privacy: None,
    }
}

#[test]
fn a_job_that_waits_for_a_person_holds_neither_slot_nor_money() {
    let said = Arc::new(Said(Mutex::new(waits())));
    let mut world = world(&said);
    let job = job(&world);
    world.submit(&job);
    world.advance(20_000);
    assert_eq!(world.phase(&job), Phase::Queued);
    let why = world.job(&job).why;
    assert!(why.contains("approve:data-steward"), "{why}");
    assert_eq!(world.count(|m| matches!(m, AnyMessage::Grant(_))), 0);
    assert_eq!(world.cores[&world.home()].ledger().escrow_micro(), 0);
    assert_eq!(world.cores[&node_id(102)].live_leases_count(), 0);
    assert!(world.count(|m| matches!(m, AnyMessage::Pending(_))) >= 2, "it is asked again");

    said.now(DataVerdict::Allow);
    world.advance(12_000);
    assert_eq!(world.phase(&job), Phase::Running);
    assert_eq!(world.only_work().1, node_id(102));
}

/// Goal: whoever asks beforehand is told who would have to approve, or why not, and nobody is bothered.
#[test]
fn a_quote_names_who_must_approve_and_keeps_nothing() {
    let said = Arc::new(Said(Mutex::new(waits())));
    let mut world = world(&said);
    let job = job(&world);
    let home = world.home();
    let probe = |home| Probe {
        federation: world.federation.id(),
        signer: home,
        charter: job.charter,
        job: job.id(),
        attempt: 1,
        sequence: 1,
        issued: world.now(),
    };
    let asked = Verified::sign(&key(101), probe(home)).unwrap();
    let stranger = Verified::sign(&key(9), probe(node_id(9))).unwrap();
    let attached = [job.clone().into(), world.federation.cert.clone().into()];
    let now = world.now();
    let node = world.cores.get_mut(&node_id(102)).unwrap();
    let quote = node.quote(now, &asked, &attached).unwrap();
    assert_eq!((quote.reasons, quote.obligations), (vec![], vec!["approve:data-steward".into()]));
    assert_eq!(quote.job.unwrap().id(), job.id());
    assert_eq!(node.live_leases_count(), 0);
    said.now(DataVerdict::Allow);
    assert!(node.quote(now, &asked, &attached).unwrap().obligations.is_empty());
    let no = Reason::new(ReasonClass::Policy, "not for this");
    said.now(DataVerdict::Refuse(vec![no.clone()]));
    assert_eq!(node.quote(now, &asked, &attached).unwrap().reasons, [no]);
    let missing = node.quote(now, &asked, &[]).unwrap();
    assert_eq!(missing.reasons[0].class, ReasonClass::Chain);
    // Strangers get no answer, and members not more than as many as they may probe.
    assert!(node.quote(now, &stranger, &attached).is_none());
    assert!((0..10_000).any(|_| node.quote(now, &asked, &attached).is_none()));
}

/// Goal: whoever uses an adapter is asked about at the start and at every renewal, and a node that has nobody
/// to ask serves none.
#[test]
fn an_adapter_is_used_for_as_long_as_its_stewards_say() {
    let said = Arc::new(Said(Mutex::new(DataVerdict::Allow)));
    let mut world = world(&said);
    for node in [world.home(), node_id(102)] {
        let mut local = local_state(1);
        local.adapters = vec![ADAPTER];
        world.step(node, Input::Local(local));
    }
    world.advance(1_000);
    let job = |nonce: u8, world: &World| {
        let work = InferWork { adapter: Some(ADAPTER), ..infer_work() };
        world.federation.job(nonce, |job| job.work = work.to_work())
    };
    let first = job(1, &world);
    world.submit(&first);
    assert_eq!(world.phase(&first), Phase::Running);
    // Home serves it as well, but has no stewards.
    assert_eq!(world.only_work().1, node_id(102));
    said.now(DataVerdict::Refuse(vec![Reason::new(ReasonClass::Policy, "withdrawn")]));
    world.advance(20_000);
    assert_ne!(world.phase(&first), Phase::Running);
    let second = job(2, &world);
    world.submit(&second);
    world.advance(1_000);
    assert!(world.job(&second).why.contains("withdrawn"), "{}", world.job(&second).why);
}

#[test]
fn a_contract_comes_before_the_receipt_that_names_it() {
    let said = Arc::new(Said(Mutex::new(DataVerdict::Allow)));
    let mut world = world(&said);
    let job = job(&world);
    world.submit(&job);
    let (lease, node) = world.only_work();
    let event = WorkEvent::Contracted(Box::new(terms()));
    world.step(node, Input::Work { lease, event: event.clone() });
    // A second one is no second contract.
    world.step(node, Input::Work { lease, event });
    let gated = Gated { released: Some(Digest::of(b"adapter")), stops: vec![], approvals: vec![] };
    world.step(node, Input::Work { lease, event: WorkEvent::Gated(Box::new(gated)) });
    world.step(world.home(), Input::Streamed { job: job.id(), attempt: 1, tokens: 1_280 });
    world.finish(lease, 1_280);
    assert_eq!(world.phase(&job), Phase::Finished);
    // 1,280 tokens trained on at 2,000 micro-credits per 1,000, and a prompt of none.
    assert_eq!(world.job(&job).cost_micro, Some(2_560));

    let leaves: Vec<&AnyMessage> = world.journals[&node]
        .iter()
        .filter_map(|entry| match entry {
            crate::io::Entry::Leaf(message) => Some(message),
            crate::io::Entry::Private(_) => None,
        })
        .collect();
    let contracts: Vec<_> = leaves
        .iter()
        .filter_map(|m| match m {
            AnyMessage::Contract(contract) => Some(contract),
            _ => None,
        })
        .collect();
    let [contract] = contracts.as_slice() else { panic!("{} contracts", contracts.len()) };
    assert_eq!((contract.job, contract.lease), (job.id(), lease));
    let at =
        |wanted: fn(&AnyMessage) -> bool| leaves.iter().position(|m| wanted(m)).expect("a leaf");
    let contract_at = at(|m| matches!(m, AnyMessage::Contract(_)));
    let report_at = at(|m| matches!(m, AnyMessage::GateReport(_)));
    let receipt_at = at(|m| matches!(m, AnyMessage::Receipt(_)));
    assert!(contract_at < report_at && report_at < receipt_at);
    let AnyMessage::Receipt(receipt) = leaves[receipt_at] else { unreachable!() };
    assert_eq!(receipt.contract, Some(contract.id()));
}

#[test]
fn an_interrupted_run_names_its_contract_all_the_same() {
    let said = Arc::new(Said(Mutex::new(DataVerdict::Allow)));
    let mut world = world(&said);
    let job = job(&world);
    world.submit(&job);
    let (lease, node) = world.only_work();
    let event = WorkEvent::Contracted(Box::new(terms()));
    world.step(node, Input::Work { lease, event });
    world.kill(node);
    world.restart(2, 1);
    world.advance(3_000);
    let receipt = world.journals[&node].iter().find_map(|entry| match entry {
        crate::io::Entry::Leaf(AnyMessage::Receipt(receipt)) => Some(receipt.clone()),
        _ => None,
    });
    let receipt = receipt.expect("a receipt of the interrupted lease");
    assert_eq!(receipt.outcome, Outcome::Interrupted);
    assert!(receipt.contract.is_some());
}

#[test]
fn who_takes_a_dataset_back_stops_what_runs_on_it() {
    let said = Arc::new(Said(Mutex::new(DataVerdict::Allow)));
    let mut world = world(&said);
    let job = job(&world);
    world.submit(&job);
    assert_eq!(world.phase(&job), Phase::Running);
    let text = "the dataset has been withdrawn";
    said.now(DataVerdict::Refuse(vec![Reason::new(ReasonClass::Policy, text)]));
    world.advance(10_000);
    assert_eq!(world.phase(&job), Phase::Refused);
    assert!(world.job(&job).why.contains(text), "{}", world.job(&job).why);
    assert_eq!(world.cores[&node_id(102)].live_leases_count(), 0);
}

#[test]
fn without_stewards_no_dataset_is_opened() {
    let said = Arc::new(Said(Mutex::new(DataVerdict::Allow)));
    let mut world = world(&said);
    let mut local = local_state(1);
    local.datasets = vec![DATASET];
    local.datasets_public = vec![DATASET];
    // Home claims to have it, too, and has nobody to decide.
    world.step(node_id(101), Input::Local(local));
    world.step(node_id(102), Input::Local(local_state(1)));
    world.advance(1_000);
    let job = job(&world);
    world.submit(&job);
    world.advance(5_000);
    assert_eq!(world.phase(&job), Phase::Refused);
    assert!(world.job(&job).why.contains("no stewards"), "{}", world.job(&job).why);
}
