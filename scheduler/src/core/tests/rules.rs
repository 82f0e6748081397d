//! What nobody gets a core to do.

use allmend_protocol::advert::AdvertOrder;
use allmend_protocol::envelope::Verified;
use allmend_protocol::ids::MessageId;
use allmend_protocol::message::AnyMessage;
use allmend_protocol::offer::{Probe, ReasonClass};
use allmend_protocol::units::Credits;

use super::World;
use crate::core::testing::{MODEL, advert_body, at, key, local_state, node_id};
use crate::io::{Effect, Input, Phase};
use crate::view::Admission;

fn probe(world: &World, signer: u8, job: MessageId, sequence: u64) -> Verified<Probe> {
    let body = Probe {
        federation: world.federation.id(),
        signer: node_id(signer),
        charter: world.federation.charter.id(),
        job,
        attempt: 1,
        sequence,
        issued: world.now(),
    };
    Verified::sign(&key(signer), body).expect("valid")
}

#[test]
fn strangers_and_borrowed_words_are_dropped() {
    let mut world = World::new(&[1, 1]);
    let job = world.federation.job(1, |_| {});
    let attached = vec![job.clone().into(), world.federation.cert.clone().into()];
    let stranger: AnyMessage = probe(&world, 150, job.id(), 1).into();
    let borrowed: AnyMessage = probe(&world, 101, job.id(), 1).into();
    for (from, message) in [(node_id(150), stranger), (node_id(102), borrowed)] {
        world.step(node_id(102), Input::Message { from, message, attached: attached.clone() });
    }
    assert!(world.sent.is_empty());
    assert_eq!(world.cores[&node_id(102)].counters().not_member, 2);
}

/// Goal: only the home that the job and its certificate name may ask for it.
#[test]
fn a_node_that_is_not_the_jobs_home_is_refused() {
    let mut world = World::new(&[1, 1, 1]);
    let job = world.federation.job(1, |_| {});
    let attached = vec![job.clone().into(), world.federation.cert.clone().into()];
    let message = probe(&world, 103, job.id(), 1).into();
    world.step(node_id(102), Input::Message { from: node_id(103), message, attached });
    let Some((_, _, AnyMessage::Refusal(refusal))) = world.sent.last() else {
        panic!("expected a refusal");
    };
    assert_eq!(refusal.reasons[0].class, ReasonClass::Chain);
    assert_eq!(refusal.retry_after_ms, None);
}

#[test]
fn probes_per_second_are_bounded() {
    let mut world = World::new(&[1, 1]);
    let job = world.federation.job(1, |_| {});
    let attached = vec![job.clone().into(), world.federation.cert.clone().into()];
    for sequence in 0..250 {
        let message = probe(&world, 101, job.id(), sequence).into();
        let attached = attached.clone();
        world.step(node_id(102), Input::Message { from: node_id(101), message, attached });
    }
    assert_eq!(world.sent.len(), 200);
    assert_eq!(world.cores[&node_id(102)].lease_book().probes_dropped(), 50);
}

/// Goal: no lease under a grant that says more than the job. Method: change one thing at a time in
/// a grant that is otherwise good.
#[test]
fn grants_that_do_not_follow_from_the_job_are_refused() {
    use allmend_protocol::grant::{Assign, BrokerRange, Grant};
    type Change = fn(&mut Grant, &mut Assign);
    let changes: [(&str, Change); 8] = [
        ("good", |_, _| {}),
        ("cap", |grant, _| grant.cap = Credits::from_micro(1_000_001)),
        ("deadline", |grant, _| grant.deadline = at(120_001)),
        ("range", |grant, assign| {
            grant.attempts = 3;
            grant.brokers = vec![
                BrokerRange { node: node_id(101), first: 1, last: 1 },
                BrokerRange { node: node_id(103), first: 2, last: 3 },
            ];
            assign.attempt = 2;
        }),
        ("attempts", |grant, _| {
            grant.attempts = 4;
            grant.brokers[0].last = 4;
        }),
        ("node", |_, assign| assign.node = node_id(103)),
        ("late", |_, assign| {
            assign.issued = at(0);
            assign.respond_by = at(1);
        }),
        ("future", |_, assign| {
            assign.issued = at(60_000);
            assign.respond_by = at(61_000);
        }),
    ];
    for (what, change) in changes {
        let mut world = World::new(&[1, 1, 1]);
        world.ms = 5_000;
        let job = world.federation.job(1, |_| {});
        let mut grant = Grant {
            federation: world.federation.id(),
            signer: node_id(101),
            charter: world.federation.charter.id(),
            governance: None,
            job: job.id(),
            researcher: job.signer,
            cap: job.cap,
            attempts: 3,
            brokers: vec![BrokerRange { node: node_id(101), first: 1, last: 3 }],
            issued: at(4_000),
            deadline: at(120_000),
            settle_by: at(240_000),
        };
        let mut assign = Assign {
            federation: grant.federation,
            signer: node_id(101),
            charter: grant.charter,
            job: job.id(),
            grant: job.id(),
            attempt: 1,
            node: node_id(102),
            offer: job.id(),
            considered: MODEL,
            issued: at(5_000),
            respond_by: at(8_000),
        };
        change(&mut grant, &mut assign);
        let grant = Verified::sign(&key(101), grant).expect("well-formed");
        assign.grant = grant.id();
        let assign = Verified::sign(&key(101), assign).expect("well-formed");
        let cert = world.federation.cert.clone();
        let attached = vec![grant.into(), job.into(), cert.into()];
        let message = assign.into();
        world.step(node_id(102), Input::Message { from: node_id(101), message, attached });
        assert_eq!(world.work.len(), usize::from(what == "good"), "{what}");
        let refused = world.count(|m| matches!(m, AnyMessage::Refusal(_)));
        assert_eq!(refused, usize::from(what != "good"), "{what}");
    }
}

#[test]
fn the_view_keeps_the_newest_and_convicts_who_contradicts_itself() {
    let mut world = World::new(&[1, 1]);
    let advert = |sequence: u64, slots_free: u16, ms: u64| {
        let mut body = advert_body();
        body.federation = world.federation.id();
        body.charter = world.federation.charter.id();
        body.signer = node_id(102);
        body.institution = crate::core::testing::institution_id(2);
        body.jurisdiction = allmend_protocol::units::Jurisdiction::new("NO").expect("code");
        body.order = AdvertOrder { epoch: 0, incarnation: 9, sequence };
        body.slots_total = 4;
        body.slots_free = slots_free;
        body.issued = at(ms);
        body.expires = at(ms + 20_000);
        Verified::sign(&key(102), body).expect("valid")
    };
    let adverts = [
        (advert(2, 4, 0), Admission::News),
        (advert(2, 4, 0), Admission::Stale),
        (advert(1, 4, 0), Admission::Stale),
        (advert(3, 4, 0), Admission::Repeated),
        (advert(4, 4, 60_000), Admission::Refused),
        (advert(3, 2, 0), Admission::Equivocation),
    ];
    let core = world.cores.get_mut(&node_id(101)).expect("home");
    let mut view = core.view().clone();
    for (advert, expected) in adverts {
        assert_eq!(view.admit(at(0), core.roster(), advert), expected);
    }
    assert!(view.is_distrusted(node_id(102)));
    let (_, pair) = view.evidence().next().expect("evidence");
    assert_eq!(pair.first.order, pair.second.order);
    assert_ne!(pair.first.id(), pair.second.id());
    let every = core.roster().charter().timing.advert_every_ms;
    view.expire(at(19_999), every);
    assert!(view.known(node_id(102)).is_some());
    let mut unreachable = view.clone();
    view.expire(at(20_000), every);
    assert!(view.known(node_id(102)).is_none());
    unreachable.unreached(at(19_999), node_id(102));
    unreachable.expire(at(19_999), every);
    assert!(unreachable.known(node_id(102)).is_none(), "silent and out of reach");
}

#[test]
fn nothing_happens_before_the_start_is_durable() {
    let world = World::new(&[1]);
    let mut core = world.federation.recover(1, super::open_settings(), vec![]);
    let mut out = Vec::new();
    core.step(at(0), Input::Local(local_state(1)), &mut out);
    core.step(at(0), Input::Tick, &mut out);
    assert!(out.is_empty());
    core.step(at(0), Input::Started, &mut out);
    assert!(matches!(out[0], Effect::Append { durable: true, .. }), "{out:?}");
}

#[test]
fn explains_before_anything_is_submitted() {
    let world = World::new(&[1, 0]);
    let home = &world.cores[&world.home()];
    let verdicts = home.explain(world.now(), &world.federation.job_body(1));
    assert_eq!(verdicts.len(), 2);
    for (node, verdict) in verdicts {
        match verdict {
            Ok(score) => assert!(node == node_id(101) && score <= 0),
            Err(reasons) => assert_eq!(reasons[0].class, ReasonClass::Busy),
        }
    }
}

#[test]
fn an_institution_that_speaks_of_another_home_is_not_submitted() {
    let mut world = World::new(&[1, 1]);
    let job = world.federation.job(1, |job| job.home = node_id(102));
    let cert = world.federation.cert.clone();
    let home = &world.cores[&world.home()];
    let reasons = home.check_submit(world.now(), &job, &cert).expect_err("another home");
    assert_eq!(reasons[0].class, ReasonClass::Chain);
    world.submit(&job);
    assert!(world.cores[&world.home()].job(job.id()).is_none());
    assert_eq!(world.cores[&world.home()].counters().not_submitted, 1);

    let twice = world.federation.job(2, |_| {});
    world.submit(&twice);
    world.submit(&twice);
    assert_eq!(world.phase(&twice), Phase::Running);
}
