//! The way of one job, with what goes wrong on it.

use allmend_protocol::envelope::Verified;
use allmend_protocol::job::Placement;
use allmend_protocol::lease::{Cancel, CancelWhy};
use allmend_protocol::message::AnyMessage;
use allmend_protocol::receipt::Outcome;
use allmend_protocol::units::Credits;

use super::World;
use crate::core::testing::{key, local_state, node_id, open_settings};
use crate::core::{Faults, Settings};
use crate::io::{Input, Phase};

#[test]
fn a_job_runs_at_home_first_and_is_settled_once() {
    let mut world = World::new(&[1, 1, 1]);
    let job = world.federation.job(1, |_| {});
    world.submit(&job);
    assert_eq!(world.phase(&job), Phase::Running);
    let (lease, node) = world.only_work();
    assert_eq!(node, world.home());

    world.finish(lease, 40);
    assert_eq!(world.phase(&job), Phase::Finished);
    let view = world.job(&job);
    // 20 prompt tokens at 1,000 and 40 written at 2,000 micro-credits per 1,000.
    assert_eq!(view.cost_micro, Some(100));
    assert_eq!(view.attempts[0].paid_micro, Some(100));
    assert_eq!(world.cores[&world.home()].ledger().escrow_micro(), 0);
    world.advance(30_000);
    assert_eq!(world.count(|m| matches!(m, AnyMessage::Settlement(_))), 1);
    assert_eq!(world.count(|m| matches!(m, AnyMessage::Receipt(_))), 1);
}

#[test]
fn a_busy_home_hands_jobs_on_and_queues_the_rest() {
    let mut world = World::new(&[1, 1]);
    let jobs: Vec<_> = (1..=3).map(|n| world.federation.job(n, |_| {})).collect();
    for job in &jobs {
        world.submit(job);
        world.advance(1_000);
    }
    assert_eq!(world.phase(&jobs[0]), Phase::Running);
    assert_eq!(world.phase(&jobs[1]), Phase::Running);
    assert_eq!(world.phase(&jobs[2]), Phase::Queued);
    assert!(world.job(&jobs[2]).why.contains("slot"), "{}", world.job(&jobs[2]).why);

    let first = world.job(&jobs[0]).attempts[0].lease.expect("leased");
    world.finish(first, 10);
    world.advance(3_000);
    assert_eq!(world.phase(&jobs[2]), Phase::Running);
}

/// Goal: many jobs for one slot do not spend their attempts on one another.
#[test]
fn a_crowd_of_jobs_waits_its_turn() {
    let mut world = World::new(&[0, 1]);
    let jobs: Vec<_> = (1..=20).map(|n| world.federation.job(n, |job| job.attempts = 1)).collect();
    for job in &jobs {
        world.submit(job);
    }
    for next in &jobs {
        world.advance(3_000);
        let (lease, _) = world.only_work();
        let running = world.work[&lease].1.lease.job;
        assert_eq!(running, next.id(), "first come, first served");
        world.finish(lease, 1);
    }
    for job in &jobs {
        assert_eq!(world.phase(job), Phase::Finished, "{}", world.job(job).why);
    }
}

#[test]
fn a_killed_node_is_replaced_and_both_are_paid() {
    let mut world = World::new(&[0, 1, 1]);
    let job = world.federation.job(1, |_| {});
    world.submit(&job);
    let (lease, first) = world.only_work();
    let work = world.work[&lease].1.clone();
    for _ in 0..5 {
        world.advance(1_000);
    }
    let (id, attempt) = (job.id(), work.lease.attempt);
    world.step(world.home(), Input::Streamed { job: id, attempt, tokens: 12 });
    let event = crate::io::WorkEvent::Progress { tokens: 40 };
    world.step(first, Input::Work { lease, event });
    world.kill(first);
    world.advance(12_000);
    let (again, second) = world.only_work();
    assert_ne!(first, second);
    assert_eq!(world.phase(&job), Phase::Running);
    world.finish(again, 30);
    assert_eq!(world.phase(&job), Phase::Finished);
    assert_eq!(world.job(&job).cost_micro, None, "the first lease has no receipt yet");

    let n = (101..=103).position(|n| node_id(n) == first).expect("one of them") as u8 + 1;
    world.restart(n, 1);
    world.advance(10_000);
    let view = world.job(&job);
    // The interrupted attempt: 12 tokens arrived, whatever it says; no prompt is charged.
    assert_eq!(view.attempts[0].paid_micro, Some(24));
    assert_eq!(view.attempts[1].paid_micro, Some(80));
    assert_eq!(view.cost_micro, Some(104));
    assert_eq!(world.cores[&first].lease_book().unsettled_count(), 0, "the settlement was heard");
}

#[test]
fn a_restarted_home_takes_its_jobs_up_again() {
    let mut world = World::new(&[0, 1]);
    let job = world.federation.job(1, |_| {});
    world.submit(&job);
    let (lease, _) = world.only_work();
    world.restart(1, 0);
    assert_eq!(world.phase(&job), Phase::Running);
    assert_eq!(world.streams.len(), 2, "the stream is opened again");
    world.advance(5_000);
    world.finish(lease, 7);
    assert_eq!(world.phase(&job), Phase::Finished);
    assert_eq!(world.job(&job).attempts.len(), 1);
}

#[test]
fn home_out_of_sight_lets_the_lease_lapse() {
    let mut world = World::new(&[0, 1]);
    let job = world.federation.job(1, |_| {});
    world.submit(&job);
    let (_, node) = world.only_work();
    let home = world.home();
    world.passes = Box::new(move |from, to, _| from != home && to != home);
    // No sign of life reaches the node: neither an answer nor a transport acknowledgement.
    for _ in 0..80 {
        world.ms += 100;
        world.step(node, Input::Tick);
        world.step(home, Input::Tick);
        world.queue.clear();
    }
    assert!(world.work.is_empty(), "the work was stopped");
    assert_eq!(world.cores[&node].live_leases_count(), 0);
}

#[test]
fn a_policy_that_allows_nobody_refuses_with_reasons() {
    let mut world = World::with(&[0, 1, 1], |n| match n {
        1 => open_settings(),
        _ => Settings::default(),
    });
    let job = world.federation.job(1, |job| {
        job.placement = Placement { not_at: vec![job_home_institution()], ..job.placement.clone() };
    });
    world.submit(&job);
    world.advance(8_000);
    assert_eq!(world.phase(&job), Phase::Refused);
    let view = world.job(&job);
    assert_eq!(view.considered.len(), 3);
    let policy = view.considered.iter().filter(|c| c.verdict.contains("own institution only"));
    assert_eq!(policy.count(), 2, "{:?}", view.considered);
    assert_eq!(world.count(|m| matches!(m, AnyMessage::Grant(_))), 0);
}

fn job_home_institution() -> allmend_protocol::ids::InstitutionId {
    crate::core::testing::institution_id(1)
}

#[test]
fn without_a_wider_placement_only_the_own_institution_may_read_a_prompt() {
    let mut world = World::new(&[0, 1]);
    let job = world.federation.job(1, |job| job.placement = Placement::default());
    world.submit(&job);
    world.advance(8_000);
    assert_eq!(world.phase(&job), Phase::Queued, "home has no slot but could have one");
    assert_eq!(world.count(|m| matches!(m, AnyMessage::Probe(_))), 0);
}

#[test]
fn a_researcher_cancels() {
    let mut world = World::new(&[0, 1]);
    let job = world.federation.job(1, |_| {});
    world.submit(&job);
    world.only_work();
    let cancel = |signer: u8| Cancel {
        federation: world.federation.id(),
        signer: allmend_protocol::ids::PublicKey::from_bytes(
            key(signer).verifying_key().to_bytes(),
        ),
        job: job.id(),
        attempt: None,
        why: CancelWhy::Researcher,
        issued: world.now(),
    };
    let stranger = Verified::sign(&key(9), cancel(9)).expect("valid");
    let own = Verified::sign(&key(200), cancel(200)).expect("valid");
    world.step(world.home(), Input::Cancel(stranger));
    assert_eq!(world.phase(&job), Phase::Running);
    world.step(world.home(), Input::Cancel(own));
    world.deliver();
    assert_eq!(world.phase(&job), Phase::Cancelled);
    assert!(world.work.is_empty());
    world.advance(1_000);
    let view = world.job(&job);
    assert!(view.settlement.is_some());
    assert_eq!(world.cores[&world.home()].ledger().escrow_micro(), 0);
}

#[test]
fn a_deadline_ends_a_job_wherever_it_is() {
    let mut world = World::new(&[0, 1]);
    let running = world.federation.job(1, |job| job.deadline = crate::core::testing::at(9_000));
    let waiting = world.federation.job(2, |job| job.deadline = crate::core::testing::at(9_000));
    world.submit(&running);
    world.advance(1_000);
    world.submit(&waiting);
    world.advance(9_000);
    assert_eq!(world.phase(&running), Phase::Expired);
    assert_eq!(world.phase(&waiting), Phase::Expired);
    assert!(world.work.is_empty());
    assert!(world.job(&running).settlement.is_some());
    assert!(world.job(&waiting).settlement.is_none(), "nothing granted, nothing to settle");
}

#[test]
fn failures_are_tried_elsewhere_until_the_attempts_are_used_up() {
    let mut world = World::new(&[1, 1, 1]);
    let job = world.federation.job(1, |_| {});
    world.submit(&job);
    let mut seen = vec![];
    for _ in 0..3 {
        let (lease, node) = world.only_work();
        seen.push(node);
        let failed = Outcome::Failed { permanent: false, why: "out of memory".into() };
        world.end_work(lease, failed, 0);
        world.deliver();
        world.advance(1_000);
    }
    assert_eq!(world.phase(&job), Phase::Failed);
    seen.sort();
    seen.dedup();
    assert_eq!(seen.len(), 3, "three different nodes");

    let hopeless = world.federation.job(2, |_| {});
    world.submit(&hopeless);
    let (lease, _) = world.only_work();
    world.end_work(lease, Outcome::Failed { permanent: true, why: "too long".into() }, 0);
    world.deliver();
    assert_eq!(world.phase(&hopeless), Phase::Failed);
    assert_eq!(world.job(&hopeless).attempts.len(), 1);
}

#[test]
fn a_lost_lease_is_asked_for_again_and_is_the_same_lease() {
    let mut world = World::new(&[0, 1]);
    let job = world.federation.job(1, |_| {});
    let mut lost = false;
    world.passes = Box::new(move |_, _, message| {
        let first = matches!(message, AnyMessage::Lease(_)) && !lost;
        lost |= first;
        !first
    });
    world.submit(&job);
    assert_eq!(world.phase(&job), Phase::Assigned);
    world.advance(1_000);
    assert_eq!(world.phase(&job), Phase::Running);
    let mut leases = world.sent.iter().filter(|(_, _, m)| matches!(m, AnyMessage::Lease(_)));
    let first = leases.next().expect("two").2.id();
    assert!(leases.all(|(_, _, lease)| lease.id() == first));
}

/// Goal: a lease that comes after its attempt was given up is not followed, but its node is told
/// and it is paid for what it did in good faith. With the deliberate fault it is followed.
#[test]
fn a_late_lease_is_cancelled() {
    for faulty in [false, true] {
        let faults = Faults { accept_expired_lease: faulty, ..Faults::default() };
        let mut world = World::with(&[0, 1], |_| Settings { faults, ..open_settings() });
        let job = world.federation.job(1, |job| job.attempts = 2);
        world.passes = Box::new(|_, _, message| !matches!(message, AnyMessage::Lease(_)));
        world.submit(&job);
        assert_eq!(world.phase(&job), Phase::Assigned);
        let (lease, node) = world.only_work();
        let late = world.work[&lease].1.lease.clone();
        world.passes = Box::new(|_, _, message| {
            !matches!(message, AnyMessage::Lease(_) | AnyMessage::Cancel(_))
        });
        world.advance(7_500);
        assert_eq!(world.phase(&job), Phase::Queued, "the only node is busy with it");
        world.passes = Box::new(|_, _, _| true);
        let message = late.clone().into();
        world.step(world.home(), Input::Message { from: node, message, attached: vec![] });
        world.deliver();
        assert_eq!(world.streams.len(), usize::from(faulty));
        if !faulty {
            assert!(world.work.is_empty(), "cancelled");
            world.advance(3_000);
            let (second, _) = world.only_work();
            world.finish(second, 5);
            let view = world.job(&job);
            assert_eq!(view.attempts[0].paid_micro, Some(20), "only the prompt, no token came");
            assert_eq!(view.attempts[1].paid_micro, Some(30));
            assert_eq!(world.cores[&node].lease_book().unsettled_count(), 0, "told");
        }
    }
}

#[test]
fn a_price_above_the_cap_is_no_offer() {
    let mut world = World::new(&[1]);
    let job = world.federation.job(1, |job| job.cap = Credits::from_micro(249));
    world.submit(&job);
    world.advance(8_000);
    assert_eq!(world.phase(&job), Phase::Refused);
    assert!(world.job(&job).considered[0].verdict.contains("price"));
}

#[test]
fn a_draining_node_finishes_and_takes_nothing_new() {
    let mut world = World::new(&[1]);
    let first = world.federation.job(1, |_| {});
    let second = world.federation.job(2, |_| {});
    world.submit(&first);
    let mut local = local_state(1);
    local.draining = Some("maintenance until noon".into());
    world.step(world.home(), Input::Local(local));
    world.advance(1_000);
    world.submit(&second);
    world.advance(7_000);
    assert_eq!(world.phase(&first), Phase::Running);
    assert_eq!(world.phase(&second), Phase::Queued);
    let (lease, _) = world.only_work();
    world.finish(lease, 1);
    world.step(world.home(), Input::Local(local_state(1)));
    world.advance(2_000);
    assert_eq!(world.phase(&second), Phase::Running);
}
