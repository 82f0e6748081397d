//! Two releases together (specs/versions.md): a node of the first release, which has never heard of
//! refusal version 2, and one of this release.

mod support;

use allmend_protocol::envelope::{Envelope, EnvelopeError, Signed};
use allmend_protocol::ids::FederationId;
use allmend_protocol::message::{AnyMessage, Body, Kind, Versions};
use allmend_protocol::offer::{Refusal, RefusalV1};
use allmend_protocol::time::DurationMs;

use support::cbor::Item;
use support::samples::{self, NORD_NODE};
use support::{key, sealed};

/// A release: what it reads, and so what it can be told.
struct Release {
    reads: Versions,
}

impl Release {
    fn first() -> Release {
        Release { reads: Versions::first() }
    }

    fn this() -> Release {
        Release { reads: Versions::of_this_release() }
    }

    /// Says `refusal` to `peer` in the highest version that both know.
    fn say(&self, peer: &Release, refusal: &Refusal) -> Option<Envelope> {
        let body: Body = match self.reads.common(&peer.reads, Kind::Refusal)? {
            2 => refusal.clone().into(),
            1 => RefusalV1::from(refusal.clone()).into(),
            _ => return None,
        };
        Some(body.sign(&key(NORD_NODE)).unwrap().envelope().clone())
    }

    /// Reads a refusal as far as this release can.
    fn hear(&self, envelope: &Envelope) -> Result<Refusal, EnvelopeError> {
        let federation = samples::federation();
        if self.reads.speaks(Kind::Refusal, 2)
            && let Ok(signed) = envelope.open::<Refusal>()
        {
            return Ok(signed.verify(&federation)?.body().clone());
        }
        let first = envelope.open::<RefusalV1>()?.verify(&federation)?;
        Ok(first.body().clone().into())
    }
}

fn refusal() -> Refusal {
    Refusal { retry_after_ms: Some(DurationMs::from_secs(30)), ..samples::refusal() }
}

#[test]
fn two_releases_understand_each_other() {
    let (old, new) = (Release::first(), Release::this());
    let without_time = Refusal { retry_after_ms: None, ..refusal() };
    for (from, to, heard) in [
        (&new, &new, &refusal()),
        (&new, &old, &without_time),
        (&old, &new, &without_time),
        (&old, &old, &without_time),
    ] {
        let envelope = from.say(to, &refusal()).unwrap();
        assert_eq!(to.hear(&envelope).as_ref(), Ok(heard));
        // Class, words and what it answers survive every version.
        assert_eq!(heard.reasons, refusal().reasons);
    }
}

/// Goal: negotiation is needed: the older release cannot read the newer version.
#[test]
fn the_first_release_refuses_what_it_does_not_know() {
    let (old, new) = (Release::first(), Release::this());
    let envelope = new.say(&new, &refusal()).unwrap();
    assert!(envelope.payload_type().contains(".refusal.v2+"));
    assert!(matches!(old.hear(&envelope), Err(EnvelopeError::WrongType { .. })));
}

/// Goal: a version is part of what is signed. Method: the same bytes under the other type.
#[test]
fn a_version_cannot_be_exchanged_for_another() {
    let said = |body: Body| body.sign(&key(NORD_NODE)).unwrap();
    let second = said(samples::refusal().into());
    let first = said(RefusalV1::from(samples::refusal()).into());
    // Without a time to ask again both bodies are the same bytes, and yet…
    assert_eq!(first.envelope().body(), second.envelope().body());
    assert_ne!(first.id(), second.id());
    let sig = |message: &AnyMessage| {
        let signature = &message.envelope().signatures()[0];
        (*signature.key.as_bytes(), signature.sig)
    };
    let swapped = support::envelope_item(
        first.envelope().payload_type(),
        first.envelope().body(),
        &[sig(&second)],
    );
    let read = Signed::<RefusalV1>::from_bytes(&swapped.to_bytes()).unwrap();
    assert!(matches!(read.verify(&samples::federation()), Err(EnvelopeError::BadSignature)));
}

/// Goal: a later release can talk to this one. Method: versions, kinds and messages that this
/// release has never heard of.
#[test]
fn later_releases_are_put_up_with() {
    let later: Versions =
        serde_json::from_str(r#"{"refusal":[1,2,3],"lease":[1,2],"swarm-vote":[1]}"#).unwrap();
    let ours = Versions::of_this_release();
    assert_eq!(ours.common(&later, Kind::Refusal), Some(2));
    assert_eq!(ours.common(&later, Kind::Lease), Some(1));
    assert_eq!(Kind::from_name("swarm-vote"), None);

    let mut advert = samples::advert();
    advert.versions = later;
    let advert = Body::from(advert).sign(&key(NORD_NODE)).unwrap();
    let federation: FederationId = samples::federation();
    assert!(AnyMessage::verify(advert.envelope(), &federation).is_ok());

    let unknown = sealed("application/vnd.allmend.swarm-vote.v1+dag-cbor", &[0xa0], NORD_NODE);
    let unknown = Envelope::from_bytes(&unknown).unwrap();
    assert!(matches!(
        AnyMessage::verify(&unknown, &federation),
        Err(EnvelopeError::WrongType { .. })
    ));
}

/// Goal: nothing in common is nothing said, rather than a guess.
#[test]
fn without_a_common_version_nothing_is_said() {
    let future = Release { reads: serde_json::from_str(r#"{"refusal":[3]}"#).unwrap() };
    assert!(Release::this().say(&future, &refusal()).is_none());
    assert!(Release::first().say(&future, &refusal()).is_none());
}

/// Goal: a field that is absent by default is no second encoding, and what was said before it was
/// thought of is still said in the same bytes (specs/versions.md §1.3).
#[test]
fn fields_that_are_absent_by_default_change_nothing_where_they_are_absent() {
    let fields = |body: Body| {
        let (_, bytes) = support::encoded(&body);
        let item = Item::from_bytes(&bytes).unwrap();
        item.entries().iter().map(|(name, _)| name.clone()).collect::<Vec<_>>()
    };
    assert!(!fields(samples::empty_advert().into()).contains(&"adapters".to_owned()));
    assert!(fields(samples::advert().into()).contains(&"adapters".to_owned()));
    let work = |adapter: bool| {
        let work = if adapter { samples::adapter_work() } else { samples::infer_work() };
        Item::from_bytes(&work.to_work().bytes.0).unwrap()
    };
    assert!(!work(false).entries().iter().any(|(name, _)| name == "adapter"));
    let mut with = work(false);
    with.insert("adapter", work(true).field("adapter").clone());
    assert_eq!(with, work(true));
}
