//! Two protocol versions together: a node of the first release beside a current one.

use allmend_protocol::message::{AnyMessage, Versions};

use super::World;
use crate::core::Settings;
use crate::core::testing::open_settings;
use crate::io::Phase;

fn first() -> Settings {
    Settings { versions: Versions::first(), ..open_settings() }
}

fn closed(settings: Settings) -> Settings {
    Settings { policy: crate::policy::OperatorPolicy::default(), ..settings }
}

fn v1(message: &AnyMessage) -> bool {
    matches!(message, AnyMessage::RefusalV1(_))
}

fn v2(message: &AnyMessage) -> bool {
    matches!(message, AnyMessage::Refusal(_))
}

/// Goal: a current home understands a refusal of the first release.
#[test]
fn an_old_executor_refuses_a_current_broker() {
    let mut world = World::with(&[0, 1], |n| match n {
        1 => open_settings(),
        _ => closed(first()),
    });
    let job = world.federation.job(1, |_| {});
    world.submit(&job);
    assert_eq!((world.count(v1), world.count(v2)), (1, 0));
    assert!(world.job(&job).why.contains("slot"), "{}", world.job(&job).why);
}

/// Goal: a current executor says no to a broker of the first release in words that it reads.
#[test]
fn a_current_executor_refuses_an_old_broker() {
    let mut world = World::with(&[0, 1], |n| match n {
        1 => first(),
        _ => closed(open_settings()),
    });
    let job = world.federation.job(1, |_| {});
    world.submit(&job);
    assert_eq!((world.count(v1), world.count(v2)), (1, 0));
    let considered = world.job(&job).considered;
    assert!(considered.iter().any(|c| c.verdict.contains("own institution")), "{considered:?}");
}

#[test]
fn current_nodes_use_the_highest_version() {
    let mut world = World::with(&[0, 1], |n| match n {
        1 => open_settings(),
        _ => closed(open_settings()),
    });
    let job = world.federation.job(1, |_| {});
    world.submit(&job);
    assert_eq!((world.count(v1), world.count(v2)), (0, 1));
}

#[test]
fn jobs_run_between_old_and_new_either_way() {
    for old in [1, 2] {
        let settings = |n| if n == old { first() } else { open_settings() };
        let mut world = World::with(&[0, 1], settings);
        let job = world.federation.job(1, |_| {});
        world.submit(&job);
        let (lease, _) = world.only_work();
        world.finish(lease, 5);
        assert_eq!(world.phase(&job), Phase::Finished);
        assert!(world.job(&job).settlement.is_some());
    }
}
