//! What messages say about one another.

use allmend_protocol::ids::{Digest, InstitutionId};
use allmend_protocol::lease::{Fence, Lease, LeaseRenewal};
use allmend_protocol::message::AnyMessage;
use allmend_protocol::receipt::Settlement;
use allmend_protocol::time::DurationMs;
use allmend_protocol::units::Credits;

use super::world::{Twist, World, at, bytes, charter, institution, node, sign, write_log};
use crate::audit::{Fault, Finding, Report, verify_dirs};

#[test]
fn a_federation_in_order_is_found_in_order() {
    let world = World::new();
    let report = world.audit();
    assert!(report.ok(), "{:#?}", report.findings);
    assert_eq!((report.not_checked, report.missing_logs.len()), (0, 0));
    assert_eq!(report.federation, Some(world.federation));
    let count = |kind: &str| report.kinds[kind];
    assert_eq!((count("lease"), count("receipt"), count("settlement")), (2, 2, 1));
    let sizes: Vec<_> = report.logs.iter().map(|log| log.size).collect();
    assert_eq!(sizes, [6, 2, 2]);
    assert_eq!(report.logs[1].institution, Some(institution(2)));
    assert_eq!(report.logs[1].institution_name.as_deref(), Some("Institution 2"));
    let of = |key: InstitutionId| {
        let balance = report.balances.iter().find(|b| b.institution == Some(key)).unwrap();
        (balance.debit_micro, balance.credit_micro)
    };
    assert_eq!((of(institution(1)), of(institution(2))), ((100, 0), (0, 50)));
    let json = serde_json::to_value(&report).unwrap();
    assert_eq!(json["logs"][0]["log"], "node-1.test/log/0");
}

/// The findings of a world with one twist, as (log, entry, fault).
pub(super) fn found(report: &Report) -> Vec<(&str, Option<u64>, Fault)> {
    let short = |finding: &Finding| (finding.entry, finding.what);
    let named = report.findings.iter().map(|finding| {
        let (entry, what) = short(finding);
        (finding.log.strip_suffix(".test/log/0").unwrap_or(&finding.log), entry, what)
    });
    named.collect()
}

pub(super) fn twisted(twist: &Twist, expected: &[(&str, Option<u64>, Fault)]) {
    let report = World::twisted(twist).audit();
    assert_eq!(found(&report), expected, "{:#?}", report.findings);
}

#[test]
fn every_link_of_the_chain_is_checked() {
    let twist = Twist { grant: Some(|g| g.cap = Credits::from_micro(2_000)), ..Twist::default() };
    // Above the job's cap, and what is settled does not add up to it.
    let expected = [("node-1", Some(2), Fault::Inconsistent), ("node-1", Some(5), Fault::Overpaid)];
    twisted(&twist, &expected);
    let twist = Twist { assign: Some(|a| a.attempt = 4), ..Twist::default() };
    let expected = [("node-1", Some(4), Fault::Attempts), ("node-3", Some(0), Fault::Inconsistent)];
    twisted(&twist, &expected);
    let twist = Twist { assign: Some(|a| a.node = node(2)), ..Twist::default() };
    twisted(&twist, &[("node-3", Some(0), Fault::Inconsistent)]);
    let twist = Twist { lease: Some(|l| l.issued = at(500)), ..Twist::default() };
    let late = ("node-3", Some(0), Fault::Inconsistent);
    let report = World::twisted(&Twist { receipt: Some(|r| r.ended = at(501)), ..twist });
    assert_eq!(found(&report.audit()), [late, late], "after respond_by and after the deadline");
    let twist = Twist { receipt: Some(|r| r.model = Digest::of(b"other")), ..Twist::default() };
    twisted(&twist, &[("node-3", Some(1), Fault::Inconsistent)]);
}

#[test]
fn money_is_counted() {
    let more = |settlement: &mut Settlement| {
        settlement.shares[0].cost = Credits::from_micro(51);
        settlement.total = Credits::from_micro(101);
        settlement.refunded = Credits::from_micro(899);
    };
    let twice = [("node-1", Some(5), Fault::Overpaid); 2];
    twisted(&Twist { settlement: Some(more), ..Twist::default() }, &twice);
    let lost = |settlement: &mut Settlement| settlement.refunded = Credits::from_micro(1);
    let expected = [("node-1", Some(5), Fault::Overpaid)];
    twisted(&Twist { settlement: Some(lost), ..Twist::default() }, &expected);
    let elsewhere = |settlement: &mut Settlement| settlement.payer = institution(2);
    let expected = [("node-1", Some(5), Fault::Inconsistent)];
    twisted(&Twist { settlement: Some(elsewhere), ..Twist::default() }, &expected);
}

#[test]
fn signers_must_have_been_members() {
    let ended = |cert: &mut allmend_protocol::cert::NodeCert| cert.expires = at(5);
    let expected = [("node-3", Some(0), Fault::Membership)];
    twisted(&Twist { node_cert: Some(ended), ..Twist::default() }, &expected);
    let ended = |cert: &mut allmend_protocol::cert::ResearcherCert| cert.expires = at(5);
    let expected =
        [("node-1", Some(1), Fault::Membership), ("node-1", Some(2), Fault::Inconsistent)];
    twisted(&Twist { researcher_cert: Some(ended), ..Twist::default() }, &expected);
}

#[test]
fn a_second_settlement_is_found() {
    let mut world = World::new();
    let AnyMessage::Settlement(first) = world.message(1, 5) else { panic!() };
    let mut second = first.body().clone();
    second.issued = at(41);
    world.leaves[0].push(bytes(&sign(1, second)));
    let report = world.audit();
    assert_eq!(found(&report), [("node-1", Some(6), Fault::SettledTwice)]);
    assert!(report.findings[0].to_string().contains("entry 6 (settlement)"));
}

/// The lease of node 2, changed.
fn other_lease(world: &World, change: impl FnOnce(&mut Lease)) -> Vec<u8> {
    let AnyMessage::Lease(lease) = world.message(2, 0) else { panic!() };
    let mut lease = lease.body().clone();
    change(&mut lease);
    bytes(&sign(2, lease))
}

#[test]
fn fences_attempts_and_slots_are_used_once() {
    let mut world = World::new();
    let again = other_lease(&world, |lease| lease.slot = 1);
    world.leaves[1].insert(1, again);
    let expected =
        [("node-2", Some(1), Fault::FenceReused), ("node-2", Some(1), Fault::Equivocation)];
    let mut findings = world.audit();
    findings.findings.sort_by_key(|finding| finding.what);
    assert_eq!(found(&findings), expected);

    let mut world = World::new();
    let overlap = other_lease(&world, |lease| {
        lease.fence = Fence { sequence: 2, ..lease.fence };
    });
    world.leaves[1].insert(1, overlap);
    let report = world.audit();
    assert!(found(&report).contains(&("node-2", Some(1), Fault::SlotTaken)), "{report:#?}");

    let mut world = World::new();
    let AnyMessage::Receipt(receipt) = world.message(2, 1) else { panic!() };
    let mut other = receipt.body().clone();
    other.cost = Credits::from_micro(60);
    world.leaves[1].push(bytes(&sign(2, other)));
    assert_eq!(found(&world.audit()), [("node-2", Some(2), Fault::Equivocation)]);

    let mut world = World::new();
    let AnyMessage::Assign(assign) = world.message(1, 4) else { panic!() };
    let mut other = assign.body().clone();
    other.node = node(2);
    world.leaves[0].push(bytes(&sign(1, other)));
    assert_eq!(found(&world.audit()), [("node-1", Some(6), Fault::Equivocation)]);
}

#[test]
fn what_does_not_belong_into_a_log_is_found() {
    let mut world = World::new();
    let lease = world.message(2, 0);
    let AnyMessage::Lease(body) = &lease else { panic!() };
    let renewal = LeaseRenewal {
        federation: world.federation,
        signer: node(2),
        lease: lease.id(),
        job: body.job,
        sequence: 1,
        tokens_done: 0,
        ttl_ms: DurationMs::from_secs(6),
        issued: at(20),
    };
    let foreign = world.leaves[1][0].clone();
    world.leaves[1].push(bytes(&sign(2, renewal)));
    world.leaves[2].push(foreign);
    world.leaves[2].push(b"not a message".to_vec());
    let twice = world.leaves[0][1].clone();
    world.leaves[0].push(twice);
    let expected = [
        ("node-1", Some(6), Fault::Misplaced),
        ("node-2", Some(2), Fault::Misplaced),
        ("node-3", Some(2), Fault::Misplaced),
        ("node-3", Some(3), Fault::Message),
    ];
    assert_eq!(found(&world.audit()), expected);
}

#[test]
fn a_missing_message_is_found_and_a_missing_log_is_said() {
    let mut world = World::new();
    world.leaves[1].pop();
    assert_eq!(found(&world.audit()), [("node-1", Some(5), Fault::Unmatched)]);
    let mut world = World::new();
    world.leaves[0].remove(3);
    assert_eq!(found(&world.audit()), [("node-2", Some(0), Fault::Unmatched)]);
    let written = World::new().write();
    let report = verify_dirs(&written.dirs()[..2]);
    assert!(report.ok(), "{:#?}", report.findings);
    assert_eq!((report.missing_logs, report.not_checked), (vec![node(3)], 1));
    let report = verify_dirs(&written.dirs()[1..]);
    assert!(report.ok(), "{:#?}", report.findings);
    assert_eq!(report.not_checked, 2);
}

#[test]
fn another_federation_is_found() {
    let world = World::new();
    let written = world.write();
    std::fs::remove_dir_all(written.node_dir(3)).unwrap();
    let blobs = [bytes(&charter("Other")), bytes(&world.certs[2])];
    write_log(&written.node_dir(3), 3, world.leaves[2].clone(), &blobs);
    assert_eq!(found(&written.audit()), [("node-3", None, Fault::Federation)]);
}

#[test]
fn two_histories_of_one_log_convict_its_key() {
    let world = World::new();
    let written = world.write();
    let blobs = [bytes(&world.charter), bytes(&world.certs[1])];
    let mut dirs = written.dirs();
    // An older copy of the same history is no crime.
    let older = written.node_dir(4);
    write_log(&older, 2, world.leaves[1][..1].to_vec(), &blobs);
    dirs.push(older);
    let report = verify_dirs(&dirs);
    assert!(report.ok(), "{:#?}", report.findings);
    assert_eq!(report.logs.len(), 3);
    let forked = written.node_dir(5);
    let mut leaves = vec![other_lease(&world, |lease| lease.slot = 1)];
    write_log(&forked, 2, leaves.clone(), &blobs);
    let mut longer = dirs.clone();
    longer.push(forked);
    assert_eq!(found(&verify_dirs(&longer)), [("node-2", Some(0), Fault::Equivocation)]);
    let forked = written.node_dir(6);
    leaves.push(world.leaves[1][1].clone());
    write_log(&forked, 2, leaves, &blobs);
    dirs.push(forked);
    assert_eq!(found(&verify_dirs(&dirs)), [("node-2", None, Fault::Equivocation)]);
}
