//! Small worlds for unit tests: one federation, institutions with a node each, one researcher.

use allmend_protocol::advert::{
    AdvertOrder, CapacityAdvert, DeviceCapacity, DeviceKind, ModelHeld,
};
use allmend_protocol::cert::{NodeCert, ResearcherCert};
use allmend_protocol::charter::{Charter, Member, SKEW_DEFAULT, Timing};
use allmend_protocol::envelope::Verified;
use allmend_protocol::ids::{
    Digest, FederationId, InstitutionId, MessageId, NodeId, ResearcherId, SealingKey,
};
use allmend_protocol::job::{InferWork, JobSpec, Placement, SealedInput};
use allmend_protocol::message::Versions;
use allmend_protocol::roster::Roster;
use allmend_protocol::time::{DurationMs, Timestamp};
use allmend_protocol::units::{Credits, Decimal, Jurisdiction, Rates};
use ed25519_dalek::SigningKey;

use crate::core::Core;
use crate::io::{Entry, LocalState};
use crate::policy::OperatorPolicy;
use crate::settings::{Identity, Settings};

pub(crate) const MODEL: Digest = Digest::from_bytes([3; 32]);
pub(crate) const START: Timestamp = Timestamp::from_ms(1_795_422_000_000);

pub(crate) fn at(ms: u64) -> Timestamp {
    START.plus(DurationMs::from_ms(ms))
}

pub(crate) fn key(seed: u8) -> SigningKey {
    SigningKey::from_bytes(&[seed; 32])
}

fn public(key: &SigningKey) -> [u8; 32] {
    key.verifying_key().to_bytes()
}

pub(crate) fn node_id(seed: u8) -> NodeId {
    NodeId::from_bytes(public(&key(seed)))
}

pub(crate) fn institution_id(seed: u8) -> InstitutionId {
    InstitutionId::from_bytes(public(&key(seed)))
}

/// Everyone's keys: institution `n` is key `n`, its node is key `100 + n`, the researcher of
/// institution 1 is key 200.
pub(crate) struct Federation {
    pub(crate) charter: Verified<Charter>,
    pub(crate) roster: Roster,
    pub(crate) cert: Verified<ResearcherCert>,
}

pub(crate) fn federation(institutions: u8) -> Federation {
    let codes = ["CH", "NO", "DE", "FR"];
    let code = |n: u8| Jurisdiction::new(codes[usize::from(n - 1) % codes.len()]).expect("code");
    let mut members: Vec<Member> = (1..=institutions)
        .map(|n| Member {
            key: institution_id(n),
            name: format!("institution {n}"),
            jurisdiction: code(n),
        })
        .collect();
    members.sort_by_key(|member| member.key);
    let charter = Charter {
        federation: None,
        signer: institution_id(1),
        name: "test".into(),
        version: 1,
        previous: None,
        not_before: START.minus(DurationMs::from_secs(60)),
        expires: at(86_400_000),
        institutions: members,
        members_may_sponsor: false,
        sequencer: None,
        skew_ms: SKEW_DEFAULT,
        timing: Timing::default(),
    };
    let charter = Verified::sign(&key(1), charter).expect("valid");
    let mut roster = Roster::new(charter.clone());
    let federation = roster.federation();
    for n in 1..=institutions {
        let cert = NodeCert {
            federation,
            signer: institution_id(n),
            charter: charter.id(),
            node: node_id(100 + n),
            sealing: SealingKey::from_bytes([n; 32]),
            name: format!("node {n}"),
            jurisdiction: code(n),
            serial: 1,
            not_before: START.minus(DurationMs::from_secs(60)),
            expires: at(86_400_000),
        };
        let cert = Verified::sign(&key(n), cert).expect("valid");
        roster.admit_node(START, cert).expect("a member");
    }
    let cert = ResearcherCert {
        federation,
        signer: institution_id(1),
        charter: charter.id(),
        researcher: ResearcherId::from_bytes(public(&key(200))),
        sealing: SealingKey::from_bytes([200; 32]),
        home: node_id(101),
        credentials: Vec::new(),
        serial: 2,
        not_before: START.minus(DurationMs::from_secs(60)),
        expires: at(86_400_000),
    };
    let cert = Verified::sign(&key(1), cert).expect("valid");
    Federation { charter, roster, cert }
}

impl Federation {
    pub(crate) fn id(&self) -> FederationId {
        self.roster.federation()
    }

    pub(crate) fn identity(&self, n: u8) -> Identity {
        let cert = self.roster.node_at(START, node_id(100 + n)).expect("a member");
        Identity {
            key: key(100 + n),
            node: node_id(100 + n),
            institution: institution_id(n),
            jurisdiction: cert.jurisdiction,
            federation: self.id(),
            epoch: 0,
        }
    }

    pub(crate) fn recover(&self, n: u8, settings: Settings, journal: Vec<Entry>) -> Core {
        Core::recover(self.identity(n), settings, self.roster.clone(), journal)
            .expect("own journal")
    }

    pub(crate) fn job_body(&self, nonce: u8) -> JobSpec {
        JobSpec {
            federation: self.id(),
            signer: self.cert.researcher,
            certificate: self.cert.id(),
            charter: self.charter.id(),
            governance: None,
            home: self.cert.home,
            nonce: [nonce; 16],
            project: "p".into(),
            purpose: "research".into(),
            work: infer_work().to_work(),
            model: MODEL,
            dataset: None,
            input: SealedInput { digest: Digest::from_bytes([1; 32]), bytes: 100, wraps: vec![] },
            placement: Placement {
                jurisdictions: ["CH", "DE", "FR", "NO"]
                    .iter()
                    .map(|code| Jurisdiction::new(code).expect("code"))
                    .collect(),
                ..Placement::default()
            },
            cap: Credits::from_micro(1_000_000),
            attempts: 3,
            issued: START,
            deadline: at(120_000),
            terms: None,
            delegation: None,
        }
    }

    pub(crate) fn job(&self, nonce: u8, change: impl FnOnce(&mut JobSpec)) -> Verified<JobSpec> {
        let mut body = self.job_body(nonce);
        change(&mut body);
        Verified::sign(&key(200), body).expect("valid")
    }
}

pub(crate) fn open_settings() -> Settings {
    let text = "[[allow]]\nname='everybody'\ninstitutions=['*']";
    let policy = OperatorPolicy::from_toml(&text.parse().expect("TOML")).expect("a policy");
    Settings { policy, ..Settings::default() }
}

pub(crate) fn infer_work() -> InferWork {
    InferWork {
        max_tokens: 100,
        temperature: Decimal { mantissa: 0, exp10: 0 },
        top_k: 0,
        top_p: Decimal { mantissa: 1, exp10: 0 },
        seed: 1,
        clock: START,
        prompt_tokens_max: 50,
        adapter: None,
    }
}

pub(crate) fn local_state(slots: u16) -> LocalState {
    LocalState {
        devices: vec![DeviceCapacity {
            kind: DeviceKind::Cpu,
            name: "cpu".into(),
            memory_mib: 4_096,
            cores: 2,
        }],
        slots_total: slots,
        models: vec![ModelHeld {
            digest: MODEL,
            memory_mib: 500,
            context_tokens: 2_048,
            warm: true,
        }],
        rates: Rates { prompt: 1_000, completion: 2_000 },
        ..LocalState::default()
    }
}

pub(crate) fn advert_body() -> CapacityAdvert {
    CapacityAdvert {
        federation: FederationId::from_bytes([0; 32]),
        signer: node_id(101),
        institution: institution_id(1),
        charter: MessageId::from_bytes([0; 32]),
        order: AdvertOrder::default(),
        issued: START,
        expires: at(1),
        versions: Versions::first(),
        jurisdiction: Jurisdiction::new("CH").expect("code"),
        devices: vec![],
        slots_total: 1,
        slots_free: 1,
        queue_ms: DurationMs::default(),
        models: vec![],
        fetches_models: false,
        datasets: vec![],
        adapters: vec![],
        rates: Rates::default(),
        draining: false,
        addresses: vec![],
    }
}
