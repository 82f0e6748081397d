//! Bodies that break one rule of their own page in `specs/`, each named by the field at fault.

pub(crate) mod data;

use allmend_protocol::bytes::ByteString;
use allmend_protocol::cert::Role;
use allmend_protocol::charter::Charter;
use allmend_protocol::ids::{InstitutionId, PublicKey};
use allmend_protocol::message::{Body, Message};
use allmend_protocol::offer::{Reason, ReasonClass};
use allmend_protocol::receipt::{Outcome, Settlement};
use allmend_protocol::time::{DurationMs, Timestamp};
use allmend_protocol::units::Credits;

use super::samples::{self, at};

/// A body that decodes but must be refused.
pub(crate) struct Broken {
    /// What is wrong.
    pub(crate) name: &'static str,
    /// The field that the refusal names.
    pub(crate) field: &'static str,
    /// What it says.
    pub(crate) body: Body,
}

/// The identity point: a key of small order, for which one signature fits every message.
pub(crate) const WEAK_KEY: [u8; 32] = {
    let mut key = [0; 32];
    key[0] = 1;
    key
};

fn long(bytes: usize) -> String {
    "x".repeat(bytes)
}

struct List(Vec<Broken>);

impl List {
    fn add<T: Message + Into<Body>>(
        &mut self,
        name: &'static str,
        field: &'static str,
        mut body: T,
        breaks: impl FnOnce(&mut T),
    ) {
        breaks(&mut body);
        self.0.push(Broken { name, field, body: body.into() });
    }
}

/// One body per rule that needs nothing but the body.
pub(crate) fn all() -> Vec<Broken> {
    let mut list = List(Vec::new());
    charters(&mut list);
    membership(&mut list);
    adverts(&mut list);
    jobs(&mut list);
    answers(&mut list);
    attempts(&mut list);
    accounts(&mut list);
    data::stewardship(&mut list);
    list.0
}

fn charters(list: &mut List) {
    let genesis = samples::genesis;
    let mut add = |name, field, breaks: &dyn Fn(&mut Charter)| {
        list.add(name, field, genesis(), |charter| breaks(charter));
    };
    add("name of 121 bytes", "name", &|c| c.name = long(121));
    add("control character in the name", "name", &|c| c.name = "a\u{7}b".to_owned());
    add("version 0", "version", &|c| c.version = 0);
    add("version 2 without federation", "federation", &|c| c.version = 2);
    add("version 2 without predecessor", "previous", &|c| {
        c.version = 2;
        c.federation = Some(samples::federation());
    });
    add("genesis with predecessor", "previous", &|c| c.previous = Some(samples::charter()));
    add("expires when it begins", "expires", &|c| c.expires = c.not_before);
    add("no institution", "institutions", &|c| c.institutions.clear());
    add("institutions not sorted", "institutions", &|c| c.institutions.reverse());
    add("institution listed twice", "institutions", &|c| {
        c.institutions[1] = c.institutions[0].clone();
    });
    add("institution name of 121 bytes", "institutions.name", &|c| {
        c.institutions[0].name = long(121);
    });
    add("institution with a weak key", "institutions.key", &|c| {
        c.institutions[0].key = InstitutionId::from_bytes(WEAK_KEY);
        c.institutions.sort_by_key(|member| member.key);
    });
    add("signer not listed", "signer", &|c| {
        let signer = c.signer;
        c.institutions.retain(|member| member.key != signer);
    });
    add("skew of more than a minute", "skew_ms", &|c| c.skew_ms = DurationMs::from_ms(60_001));
    add("a time of 0", "timing.probe_wait_ms", &|c| {
        c.timing.probe_wait_ms = DurationMs::from_ms(0);
    });
    add("a time of more than a day", "timing.settle_slack_ms", &|c| {
        c.timing.settle_slack_ms = DurationMs::from_ms(86_400_001);
    });
    add("renewal slower than half the TTL", "timing.renew_every_ms", &|c| {
        c.timing.renew_every_ms = DurationMs::from_ms(3_001);
    });
    add("advert slower than half its TTL", "timing.advert_every_ms", &|c| {
        c.timing.advert_every_ms = DurationMs::from_ms(10_001);
    });
}

fn membership(list: &mut List) {
    let cert = samples::institution_cert;
    list.add("expires when it begins", "expires", cert(), |c| c.expires = c.not_before);
    list.add("name of 121 bytes", "name", cert(), |c| c.name = long(121));
    list.add("its own sponsor", "institution", cert(), |c| c.institution = c.signer);
    list.add("weak key", "institution", cert(), |c| {
        c.institution = InstitutionId::from_bytes(WEAK_KEY);
    });

    let cert = || samples::node_cert(samples::NORD_NODE);
    list.add("expires when it begins", "expires", cert(), |c| c.expires = c.not_before);
    list.add("name of 121 bytes", "name", cert(), |c| c.name = long(121));
    list.add("weak key", "node", cert(), |c| c.node = PublicKey::from_bytes(WEAK_KEY).into());

    let cert = samples::researcher_cert;
    list.add("expires when it begins", "expires", cert(), |c| c.expires = c.not_before);
    list.add("weak key", "researcher", cert(), |c| {
        c.researcher = PublicKey::from_bytes(WEAK_KEY).into();
    });

    let cert = samples::certified_researcher;
    list.add("credentials not sorted", "credentials", cert(), |c| c.credentials.reverse());
    list.add("credential named twice", "credentials", cert(), |c| {
        c.credentials[1] = c.credentials[0].clone();
    });
    list.add("credential without a name", "credentials", cert(), |c| c.credentials[0].clear());
    list.add("credential of 65 bytes", "credentials", cert(), |c| c.credentials[1] = long(65));
    list.add("17 credentials", "credentials", cert(), |c| {
        c.credentials = (b'a'..).take(17).map(|letter| char::from(letter).to_string()).collect();
    });

    let invitation = || samples::invitation(Role::Institution);
    list.add("an institution with credentials", "credentials", invitation(), |i| {
        i.credentials = vec!["ethics-training".to_owned()];
    });
    list.add("expires when it begins", "expires", invitation(), |i| i.expires = i.not_before);
    list.add("no address to ask", "bulk", invitation(), |i| i.bulk.clear());
    list.add("17 addresses", "bulk", invitation(), |i| i.bulk = vec!["a:1".to_owned(); 17]);
    list.add("address of 257 bytes", "bootstrap", invitation(), |i| i.bootstrap = vec![long(257)]);

    let request = || samples::join_request(Role::Researcher);
    list.add("name of 121 bytes", "name", request(), |r| r.name = long(121));
    list.add("invitation of more than 12 KiB", "invitation", request(), |r| {
        r.invitation = ByteString(vec![0; 12 * 1024 + 1]);
    });
}

fn adverts(list: &mut List) {
    let advert = samples::advert;
    list.add("expires when issued", "expires", advert(), |a| a.expires = a.issued);
    list.add("more slots free than there are", "slots_free", advert(), |a| a.slots_free = 5);
    list.add("device name of 121 bytes", "devices.name", advert(), |a| {
        a.devices[0].name = long(121);
    });
    list.add("models not sorted", "models", advert(), |a| a.models.reverse());
    list.add("model listed twice", "models", advert(), |a| a.models[1] = a.models[0].clone());
    list.add("dataset listed twice", "datasets", advert(), |a| {
        a.datasets = vec![a.datasets[0]; 2];
    });
    list.add("adapters not sorted", "adapters", advert(), |a| {
        a.adapters = vec![samples::digest("adapter"), samples::digest("other adapter")];
        a.adapters.sort_unstable_by(|a, b| b.cmp(a));
    });
    list.add("adapter listed twice", "adapters", advert(), |a| {
        a.adapters = vec![a.adapters[0]; 2];
    });
    list.add("17 addresses", "addresses", advert(), |a| a.addresses = vec!["/a".to_owned(); 17]);
    let versions = |json: &str| serde_json::from_str(json).unwrap();
    list.add("kind without versions", "versions", advert(), |a| {
        a.versions = versions(r#"{"lease":[]}"#);
    });
    list.add("versions not sorted", "versions", advert(), |a| {
        a.versions = versions(r#"{"lease":[2,1]}"#);
    });
    list.add("kind name of 33 bytes", "versions", advert(), |a| {
        a.versions = versions(&format!(r#"{{"{}":[1]}}"#, long(33)));
    });
}

fn jobs(list: &mut List) {
    let job = samples::job;
    list.add("project of 121 bytes", "project", job(), |j| j.project = long(121));
    list.add("line break in the purpose", "purpose", job(), |j| j.purpose = "a\nb".to_owned());
    list.add("work type of 33 bytes", "work.type", job(), |j| j.work.kind = long(33));
    list.add("work of more than 8 KiB", "work.bytes", job(), |j| {
        j.work.bytes = ByteString(vec![0; 8 * 1024 + 1]);
    });
    list.add("17 wraps", "input.wraps", job(), |j| {
        j.input.wraps = vec![j.input.wraps[0].clone(); 17];
    });
    list.add("no attempt", "attempts", job(), |j| j.attempts = 0);
    list.add("65 attempts", "attempts", job(), |j| j.attempts = 65);
    list.add("deadline when issued", "deadline", job(), |j| j.deadline = j.issued);
    list.add("deadline after more than thirty days", "deadline", job(), |j| {
        j.deadline = Timestamp::from_ms(j.issued.as_ms() + 30 * 86_400_000 + 1);
    });
    let job = samples::full_job;
    list.add("institutions not sorted", "placement.at", job(), |j| j.placement.at.reverse());
    list.add("institution excluded twice", "placement.not_at", job(), |j| {
        j.placement.not_at = vec![j.placement.not_at[0]; 2];
    });
    list.add("jurisdictions not sorted", "placement.jurisdictions", job(), |j| {
        j.placement.jurisdictions.reverse();
    });
    list.add("jurisdiction excluded twice", "placement.not_jurisdictions", job(), |j| {
        j.placement.not_jurisdictions = vec![j.placement.not_jurisdictions[0]; 2];
    });
    list.add("kind of output of 33 bytes", "terms.output", job(), |j| {
        j.terms.as_mut().unwrap().output = long(33);
    });
    list.add("room of 33 bytes", "terms.room", job(), |j| {
        j.terms.as_mut().unwrap().room = long(33);
    });

    let delegation = samples::delegation;
    list.add("expires when it begins", "expires", delegation(), |d| d.expires = d.not_before);
    list.add("weak key", "delegate", delegation(), |d| {
        d.delegate = PublicKey::from_bytes(WEAK_KEY);
    });
    list.add("project of 121 bytes", "project", delegation(), |d| d.project = Some(long(121)));
}

fn answers(list: &mut List) {
    list.add("attempt 0", "attempt", samples::probe(), |p| p.attempt = 0);

    let refusal = samples::refusal;
    list.add("no reason", "reasons", refusal(), |r| r.reasons.clear());
    list.add("9 reasons", "reasons", refusal(), |r| {
        r.reasons = vec![Reason::new(ReasonClass::Busy, ""); 9];
    });
    list.add("text of 241 bytes", "reasons.text", refusal(), |r| r.reasons[0].text = long(241));
    let first = || allmend_protocol::offer::RefusalV1::from(refusal());
    list.add("no reason", "reasons", first(), |r| r.reasons.clear());
    list.add("control character in a text", "reasons.text", first(), |r| {
        r.reasons[0].text = "\u{1b}[31mred".to_owned();
    });

    let pending = samples::pending;
    list.add("no obligation", "obligations", pending(), |p| p.obligations.clear());
    list.add("9 obligations", "obligations", pending(), |p| {
        p.obligations = vec!["approve:council".to_owned(); 9];
    });
    list.add("obligation of 65 bytes", "obligations", pending(), |p| {
        p.obligations = vec![long(65)]
    });
    list.add("ticket of 65 bytes", "ticket", pending(), |p| p.ticket = ByteString(vec![0; 65]));
}

fn attempts(list: &mut List) {
    let grant = samples::shared_grant;
    list.add("no attempt", "attempts", grant(), |g| g.attempts = 0);
    list.add("65 attempts", "attempts", grant(), |g| {
        g.attempts = 65;
        g.brokers[1].last = 65;
    });
    list.add("no broker", "brokers", grant(), |g| g.brokers.clear());
    list.add("9 brokers", "brokers", grant(), |g| g.brokers = vec![g.brokers[0]; 9]);
    list.add("ranges overlap", "brokers", grant(), |g| g.brokers[1].first = 3);
    list.add("gap between ranges", "brokers", grant(), |g| {
        g.brokers[1].first = 5;
        g.brokers[1].last = 5;
    });
    list.add("range ends before it begins", "brokers", grant(), |g| g.brokers[1].last = 3);
    list.add("ranges do not start at 1", "brokers", grant(), |g| g.brokers[0].first = 0);
    list.add("ranges beyond the attempts", "brokers", grant(), |g| g.brokers[1].last = 5);
    list.add("range to the largest number", "brokers", grant(), |g| {
        g.brokers[1].last = u16::MAX;
    });
    list.add("deadline when issued", "deadline", grant(), |g| g.deadline = g.issued);
    list.add("settled before the deadline", "settle_by", grant(), |g| {
        g.settle_by = Timestamp::from_ms(g.deadline.as_ms() - 1);
    });

    let assign = samples::assign;
    list.add("attempt 0", "attempt", assign(), |a| a.attempt = 0);
    list.add("attempt 65", "attempt", assign(), |a| a.attempt = 65);
    list.add("answer due when issued", "respond_by", assign(), |a| a.respond_by = a.issued);

    let lease = samples::lease;
    list.add("attempt 0", "attempt", lease(), |l| l.attempt = 0);
    list.add("attempt 65", "attempt", lease(), |l| l.attempt = 65);
    list.add("TTL of 0", "ttl_ms", lease(), |l| l.ttl_ms = DurationMs::from_ms(0));

    let renewal = samples::renewal;
    list.add("renewal 0", "sequence", renewal(), |r| r.sequence = 0);
    list.add("TTL of 0", "ttl_ms", renewal(), |r| r.ttl_ms = DurationMs::from_ms(0));

    list.add("attempt 0", "attempt", samples::cancel(), |c| c.attempt = Some(0));
}

fn accounts(list: &mut List) {
    let receipt = samples::full_receipt;
    list.add("attempt 0", "attempt", receipt(), |r| r.attempt = 0);
    list.add("attempt 65", "attempt", receipt(), |r| r.attempt = 65);
    list.add("ended before it started", "ended", receipt(), |r| r.ended = at(0));
    list.add("numerics of 65 bytes", "numerics", receipt(), |r| r.numerics = long(65));
    list.add("licence of 121 bytes", "model_licence", receipt(), |r| {
        r.model_licence = Some(long(121));
    });
    list.add("energy source of 33 bytes", "usage.energy.source", receipt(), |r| {
        r.usage.energy.as_mut().unwrap().source = long(33);
    });
    for (name, mantissa, exp10) in [
        ("negative energy", -1, 0),
        ("exponent 19", 1, 19),
        ("exponent -19", 1, -19),
        ("exponent -128", 1, -128),
    ] {
        list.add(name, "usage.energy.joules", receipt(), |r| {
            let joules = &mut r.usage.energy.as_mut().unwrap().joules;
            joules.mantissa = mantissa;
            joules.exp10 = exp10;
        });
    }
    list.add("reason of 33 bytes", "outcome.reason", receipt(), |r| {
        r.outcome = Outcome::Finished { reason: long(33) };
    });
    list.add("explanation of 241 bytes", "outcome.why", receipt(), |r| {
        r.outcome = Outcome::Failed { permanent: false, why: long(241) };
    });

    let settlement = samples::settlement;
    list.add("shares not sorted", "shares", settlement(), |s| s.shares.reverse());
    list.add("lease paid twice", "shares", settlement(), |s: &mut Settlement| {
        s.shares[1] = s.shares[0].clone();
    });
    list.add("total not the sum", "total", settlement(), |s| {
        s.total = Credits::from_micro(s.total.as_micro() + 1);
    });
    list.add("sum does not fit", "total", settlement(), |s| {
        s.shares[0].cost = Credits::from_micro(u64::MAX);
    });
    list.add("total and refund do not fit", "refunded", settlement(), |s| {
        s.refunded = Credits::from_micro(u64::MAX);
    });

    let succession = samples::succession;
    list.add("epochs not rising", "new_epoch", succession(), |s| s.new_epoch = s.old_epoch);
    list.add("explanation of 241 bytes", "why", succession(), |s| s.why = long(241));
}
