//! Who is a member (specs/membership.md §4): what honest certificates do, and what dishonest ones
//! must not.

mod support;

use allmend_protocol::cert::{InstitutionCert, NodeCert};
use allmend_protocol::charter::Charter;
use allmend_protocol::envelope::{Verified, id_of};
use allmend_protocol::ids::{InstitutionId, NodeId};
use allmend_protocol::message::Message;
use allmend_protocol::roster::{MembershipError, Roster};
use allmend_protocol::time::{DurationMs, Timestamp};

use support::samples::{self, ALP, ALP_NODE, FJORD, NEWCOMER, NORD, NORD_NODE, at};
use support::{key, public};

/// A second institution that the charter does not list.
const PUPPET: u8 = 32;
const WEEK: u64 = 7 * 86_400_000;

fn signed<T: Message>(seed: u8, body: T) -> Verified<T> {
    Verified::sign(&key(seed), body).unwrap()
}

fn roster_of(charter: Charter) -> Roster {
    Roster::new(signed(ALP, charter))
}

fn roster() -> Roster {
    roster_of(samples::genesis())
}

fn institution(seed: u8) -> InstitutionId {
    InstitutionId::from_bytes(public(seed))
}

/// `sponsor` admits `newcomer` until `expires`.
fn admission(sponsor: u8, newcomer: u8, expires: u64) -> Verified<InstitutionCert> {
    let cert = InstitutionCert {
        signer: institution(sponsor),
        institution: institution(newcomer),
        expires: at(expires),
        ..samples::institution_cert()
    };
    signed(sponsor, cert)
}

/// `owner` certifies `node` until `expires`.
fn node_cert(owner: u8, node: u8, expires: u64) -> Verified<NodeCert> {
    let cert =
        NodeCert { signer: institution(owner), expires: at(expires), ..samples::node_cert(node) };
    signed(owner, cert)
}

fn owner(roster: &Roster, now: Timestamp, node: u8) -> Option<InstitutionId> {
    roster.node_at(now, NodeId::from_bytes(public(node))).ok().map(|cert| cert.signer)
}

#[test]
fn certificates_hold_from_begin_less_skew_to_expiry() {
    let mut roster = roster();
    roster.admit_node(at(0), node_cert(NORD, NORD_NODE, WEEK)).unwrap();
    let begin = at(0);
    let skew = DurationMs::from_ms(2_000);
    for (now, holds) in [
        (begin.minus(DurationMs::from_ms(2_001)), false),
        (begin.minus(skew), true),
        (at(WEEK - 1), true),
        (at(WEEK), false),
    ] {
        assert_eq!(owner(&roster, now, NORD_NODE).is_some(), holds, "{now}");
    }
}

#[test]
fn nobody_claims_the_node_of_another() {
    let mut roster = roster();
    roster.admit_node(at(0), node_cert(ALP, ALP_NODE, WEEK)).unwrap();
    // However long the other certificate would hold.
    roster.admit_node(at(1), node_cert(NORD, ALP_NODE, 50 * WEEK)).unwrap();
    assert_eq!(owner(&roster, at(2), ALP_NODE), Some(institution(ALP)));
    // Its own institution prolongs it, and never shortens it.
    roster.admit_node(at(3), node_cert(ALP, ALP_NODE, 3 * WEEK)).unwrap();
    roster.admit_node(at(4), node_cert(ALP, ALP_NODE, 2 * WEEK)).unwrap();
    assert_eq!(roster.node_expiry(NodeId::from_bytes(public(ALP_NODE))), Some(at(3 * WEEK)));
    // Once it has lapsed, the machine may change hands.
    roster.admit_node(at(3 * WEEK), node_cert(NORD, ALP_NODE, 50 * WEEK)).unwrap();
    assert_eq!(owner(&roster, at(3 * WEEK), ALP_NODE), Some(institution(NORD)));
}

#[test]
fn institutions_admitted_for_a_week_cannot_prolong_each_other() {
    let mut roster = roster();
    roster.admit_institution(at(0), admission(NORD, NEWCOMER, WEEK)).unwrap();
    let outlives = Err(MembershipError::OutlivesSponsor { until: at(WEEK) });
    assert_eq!(roster.admit_institution(at(1), admission(NEWCOMER, PUPPET, WEEK + 1)), outlives);
    roster.admit_institution(at(1), admission(NEWCOMER, PUPPET, WEEK)).unwrap();
    assert_eq!(roster.admit_institution(at(2), admission(PUPPET, NEWCOMER, WEEK + 1)), outlives);
    assert!(roster.institution_at(at(WEEK - 1), institution(PUPPET)).is_ok());
    assert!(roster.institution_at(at(WEEK), institution(PUPPET)).is_err());
    assert!(roster.institution_at(at(WEEK), institution(NEWCOMER)).is_err());
}

#[test]
fn only_its_sponsor_changes_an_admission_that_holds() {
    let mut roster = roster();
    roster.admit_institution(at(0), admission(NORD, NEWCOMER, WEEK)).unwrap();
    let sponsor = |roster: &Roster| {
        let entry = roster.institution_at(at(10), institution(NEWCOMER)).unwrap();
        entry.cert.as_ref().map(|cert| (cert.signer, cert.expires))
    };
    roster.admit_institution(at(1), admission(FJORD, NEWCOMER, 9 * WEEK)).unwrap();
    assert_eq!(sponsor(&roster), Some((institution(NORD), at(WEEK))));
    roster.admit_institution(at(2), admission(NORD, NEWCOMER, 2 * WEEK)).unwrap();
    assert_eq!(sponsor(&roster), Some((institution(NORD), at(2 * WEEK))));
    // After it, anybody may sponsor again.
    roster.admit_institution(at(2 * WEEK), admission(FJORD, NEWCOMER, 9 * WEEK)).unwrap();
    let entry = roster.institution_at(at(2 * WEEK), institution(NEWCOMER)).unwrap();
    assert_eq!(entry.cert.as_ref().map(|cert| cert.signer), Some(institution(FJORD)));
}

#[test]
fn no_certificate_changes_what_the_charter_lists() {
    let mut roster = roster();
    let mut cert = admission(NORD, FJORD, WEEK).body().clone();
    cert.name = "Fjord Ltd".to_owned();
    roster.admit_institution(at(0), signed(NORD, cert)).unwrap();
    let entry = roster.institution_at(at(50 * WEEK), institution(FJORD)).unwrap();
    assert_eq!((entry.name.as_str(), entry.cert.is_none()), ("Fjordlaboratoriet", true));
}

#[test]
fn a_node_goes_with_its_institution() {
    let mut roster = roster();
    roster.admit_institution(at(0), admission(NORD, NEWCOMER, WEEK)).unwrap();
    roster.admit_node(at(1), node_cert(NEWCOMER, NORD_NODE, 5 * WEEK)).unwrap();
    assert_eq!(roster.node_expiry(NodeId::from_bytes(public(NORD_NODE))), Some(at(WEEK)));
    assert!(owner(&roster, at(WEEK - 1), NORD_NODE).is_some());
    assert!(owner(&roster, at(WEEK), NORD_NODE).is_none());
}

#[test]
fn strangers_vouch_for_nobody() {
    let mut roster = roster();
    let unknown = Err(MembershipError::UnknownInstitution(institution(PUPPET)));
    assert_eq!(roster.admit_institution(at(0), admission(PUPPET, NEWCOMER, WEEK)), unknown);
    assert_eq!(roster.admit_node(at(0), node_cert(PUPPET, NORD_NODE, WEEK)), unknown);
}

#[test]
fn charters_that_forbid_it_admit_by_a_new_version_only() {
    let closed = Charter { members_may_sponsor: false, ..samples::genesis() };
    let charter = id_of(&closed);
    let mut roster = roster_of(closed);
    let body = InstitutionCert { charter, ..samples::institution_cert() };
    let refused = roster.admit_institution(at(0), signed(NORD, body));
    assert_eq!(refused, Err(MembershipError::NoSponsors));
    // And a certificate under another charter counts for nothing.
    let elsewhere = roster.admit_node(at(0), node_cert(NORD, NORD_NODE, WEEK));
    assert_eq!(elsewhere, Err(MembershipError::OtherCharter(samples::charter())));
}

#[test]
fn an_expired_charter_admits_nobody_and_dismisses_nobody() {
    let mut roster = roster();
    let end = samples::genesis().expires;
    let late = end.since(at(0)).as_ms();
    roster.admit_node(at(0), node_cert(NORD, NORD_NODE, late + WEEK)).unwrap();
    let refused = roster.admit_node(end, node_cert(ALP, ALP_NODE, late + WEEK));
    assert_eq!(refused, Err(MembershipError::CharterExpired(end)));
    assert!(owner(&roster, end, NORD_NODE).is_some());
}
