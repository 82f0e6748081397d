//! Recalls, answers, work with a recalled adapter, and deletions of rows that a job brought along.

use allmend_protocol::ids::{Digest, NodeId, PublicKey};
use allmend_protocol::job::{InferWork, JobSpec};
use allmend_protocol::message::AnyMessage;
use allmend_protocol::stewardship::{Deletion, Recall, RecallAnswer, RecallDone};
use allmend_protocol::units::Decimal;

use super::data::Data;
use super::meaning::found;
use super::world::{Twist, World, at, bytes, node, public, sign};
use crate::audit::Fault::{Inconsistent, Misplaced, Unmatched, Unpermitted};

/// The gate report's entry in the log of node 3.
const REPORT: usize = 4;

fn world() -> World {
    World::twisted(&Twist { data: Some(Data::default()), ..Twist::default() })
}

fn recall(world: &World) -> Recall {
    let AnyMessage::GateReport(report) = world.message(3, REPORT) else { panic!() };
    Recall {
        federation: world.federation,
        signer: node(3),
        charter: world.charter.id(),
        steward: PublicKey::from_bytes(public(40)),
        adapter: report.released.unwrap(),
        report: report.id(),
        why: "consent was withdrawn".to_owned(),
        issued: at(50),
    }
}

fn answer(world: &World, signer: NodeId, adapter: Digest) -> RecallAnswer {
    RecallAnswer {
        federation: world.federation,
        signer,
        charter: world.charter.id(),
        recall: allmend_protocol::envelope::id_of(&recall(world)),
        adapter,
        done: RecallDone::Deleted,
        issued: at(51),
    }
}

#[test]
fn a_recall_is_by_who_released_and_every_answer_finds_it() {
    let mut world = world();
    let adapter = recall(&world).adapter;
    world.leaves[2].push(bytes(&sign(3, recall(&world))));
    world.leaves[0].push(bytes(&sign(1, answer(&world, node(1), adapter))));
    world.leaves[1].push(bytes(&sign(2, answer(&world, node(2), adapter))));
    assert!(world.audit().ok(), "{:#?}", world.audit().findings);
    // Whoever recalled keeps the answers of others as well.
    world.leaves[2].push(bytes(&sign(1, answer(&world, node(1), adapter))));
    assert!(world.audit().ok(), "{:#?}", world.audit().findings);
    world.leaves[2].pop();
    // Without the recall the answers are to nothing.
    world.leaves[2].pop();
    assert_eq!(
        found(&world.audit()),
        [("node-1", Some(6), Unmatched), ("node-2", Some(4), Unmatched)]
    );
}

#[test]
fn nobody_recalls_what_others_released() {
    let mut world = world();
    let foreign = Recall { signer: node(2), ..recall(&world) };
    world.leaves[1].push(bytes(&sign(2, foreign)));
    let other = Recall { adapter: Digest::of(b"other"), ..recall(&world) };
    world.leaves[2].push(bytes(&sign(3, other)));
    let early = sign(3, Recall { issued: at(29), ..recall(&world) });
    let lost = Recall { report: early.id(), ..recall(&world) };
    world.leaves[2].push(bytes(&sign(3, lost)));
    world.leaves[2].insert(0, bytes(&early));
    let expected = [
        ("node-2", Some(4), Inconsistent),
        ("node-3", Some(0), Inconsistent),
        ("node-3", Some(7), Inconsistent),
        ("node-3", Some(8), Unmatched),
    ];
    assert_eq!(found(&world.audit()), expected);
}

#[test]
fn answers_agree_with_their_recall() {
    let mut world = world();
    world.leaves[2].push(bytes(&sign(3, recall(&world))));
    let other = answer(&world, node(1), Digest::of(b"other"));
    let early = RecallAnswer { issued: at(47), ..answer(&world, node(2), recall(&world).adapter) };
    world.leaves[0].push(bytes(&sign(1, other)));
    world.leaves[1].push(bytes(&sign(2, early)));
    let foreign = bytes(&sign(2, answer(&world, node(2), recall(&world).adapter)));
    world.leaves[0].push(foreign);
    let expected = [
        ("node-1", Some(6), Inconsistent),
        ("node-1", Some(7), Misplaced),
        ("node-2", Some(4), Inconsistent),
    ];
    assert_eq!(found(&world.audit()), expected);
}

/// A job that is served with this adapter.
fn with_adapter(job: &mut JobSpec) {
    let infer = InferWork {
        max_tokens: 20,
        temperature: Decimal::new(0, 0),
        top_k: 0,
        top_p: Decimal::new(1, 0),
        seed: 0,
        clock: at(10),
        prompt_tokens_max: 10,
        adapter: Some(Digest::of(b"adapter")),
    };
    job.work = infer.to_work();
}

/// Goal: a node that said that it serves an adapter no more is held to it; one that has not answered
/// yet is not.
#[test]
fn a_recalled_adapter_is_used_no_more() {
    let mut world = World::twisted(&Twist { job: Some(with_adapter), ..Twist::default() });
    assert!(world.audit().ok());
    let answer = |adapter: &[u8]| RecallAnswer {
        federation: world.federation,
        signer: node(3),
        charter: world.charter.id(),
        recall: allmend_protocol::ids::MessageId::from_bytes([8; 32]),
        adapter: Digest::of(adapter),
        done: RecallDone::NotHeld,
        issued: at(12),
    };
    let (this, other) = (bytes(&sign(3, answer(b"adapter"))), bytes(&sign(3, answer(b"other"))));
    // The recall itself is in a fourth log that nobody gave.
    let of_lease = |world: &World| {
        let report = world.audit();
        found(&report).iter().any(|(_, _, fault)| *fault == Unpermitted)
    };
    let as_it_was = world.leaves[2].clone();
    world.leaves[2].insert(0, this.clone());
    assert!(of_lease(&world));
    world.leaves[2] = as_it_was.clone();
    world.leaves[2].push(this);
    assert!(!of_lease(&world));
    world.leaves[2] = as_it_was;
    world.leaves[2].insert(0, other);
    assert!(!of_lease(&world));
}

#[test]
fn deletions_are_of_what_a_job_brought_along() {
    let mut world = world();
    let AnyMessage::JobSpec(job) = world.message(1, 1) else { panic!() };
    let deletion = Deletion {
        federation: world.federation,
        signer: node(3),
        charter: world.charter.id(),
        job: job.id(),
        input: job.input.digest,
        bytes: job.input.bytes,
        issued: at(45),
    };
    let signed = |body: &Deletion| bytes(&sign(3, body.clone()));
    world.leaves[2].push(signed(&deletion));
    assert!(world.audit().ok(), "{:#?}", world.audit().findings);
    let wrong = Deletion { input: Digest::of(b"other"), bytes: 4, ..deletion.clone() };
    world.leaves[2].push(signed(&wrong));
    // Twice, and another input of another size.
    assert_eq!(found(&world.audit()), [("node-3", Some(7), Inconsistent); 3]);
    world.leaves[2].truncate(6);
    // Before the work ended, and before there was any.
    let receipt = world.leaves[2].pop().unwrap();
    world.leaves[2].extend([signed(&deletion), receipt]);
    assert_eq!(found(&world.audit()), [("node-3", Some(5), Inconsistent)]);
    let deleted = world.leaves[2].remove(5);
    world.leaves[2].insert(0, deleted);
    let expected = [("node-3", Some(0), Unmatched), ("node-3", Some(1), Inconsistent)];
    assert_eq!(found(&world.audit()), expected);
}
