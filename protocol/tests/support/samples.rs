//! Good messages: every kind and version, with as little and as much as it may carry.

mod data;

use std::sync::LazyLock;

use allmend_protocol::advert::{
    AdvertOrder, CapacityAdvert, DeviceCapacity, DeviceKind, ModelHeld,
};
use allmend_protocol::bytes::ByteString;
use allmend_protocol::cert::{
    InstitutionCert, Invitation, JoinRequest, NodeCert, ResearcherCert, Role,
};
use allmend_protocol::charter::{Charter, Member, SKEW_DEFAULT, Timing};
use allmend_protocol::envelope::{Verified, id_of};
use allmend_protocol::grant::{Assign, BrokerRange, Grant};
use allmend_protocol::ids::{
    Digest, FederationId, InstitutionId, MessageId, NodeId, PublicKey, ResearcherId, SealingKey,
};
use allmend_protocol::job::{
    Delegation, InferWork, JobSpec, KeyWrap, Placement, SealedInput, Terms,
};
use allmend_protocol::lease::{Cancel, CancelWhy, Fence, Lease, LeaseRenewal};
use allmend_protocol::log_succession::LogSuccession;
use allmend_protocol::message::{Body, Message, Versions};
use allmend_protocol::offer::{Offer, Pending, Probe, Reason, ReasonClass, Refusal, RefusalV1};
use allmend_protocol::receipt::{Energy, JobOutcome, Outcome, Receipt, Settlement, Share, Usage};
use allmend_protocol::stewardship::{RecallAnswer, RecallDone};
use allmend_protocol::time::{DurationMs, Timestamp};
use allmend_protocol::units::{Credits, Decimal, Jurisdiction, Rates};

pub(crate) use data::*;

use super::{Sample, key, public};

/// Seeds of the keys: institutions, nodes, a researcher, whom she lets submit, who joins.
pub(crate) const ALP: u8 = 1;
pub(crate) const NORD: u8 = 2;
pub(crate) const FJORD: u8 = 3;
pub(crate) const ALP_NODE: u8 = 11;
pub(crate) const NORD_NODE: u8 = 12;
pub(crate) const RESEARCHER: u8 = 21;
pub(crate) const DELEGATE: u8 = 22;
pub(crate) const NEWCOMER: u8 = 31;
/// Somebody whom nobody vouches for.
pub(crate) const STRANGER: u8 = 41;

const START_MS: u64 = 1_795_422_000_000;
const DAY_MS: u64 = 86_400_000;

pub(crate) fn at(ms: u64) -> Timestamp {
    Timestamp::from_ms(START_MS + ms)
}

fn institution(seed: u8) -> InstitutionId {
    InstitutionId::from_bytes(public(seed))
}

fn node(seed: u8) -> NodeId {
    NodeId::from_bytes(public(seed))
}

fn sealing(seed: u8) -> SealingKey {
    SealingKey::from_bytes([seed; 32])
}

fn country(code: &str) -> Jurisdiction {
    Jurisdiction::new(code).unwrap()
}

/// SHA-256 of a file of this name, so to say.
pub(crate) fn digest(name: &str) -> Digest {
    Digest::of(name.as_bytes())
}

pub(crate) fn genesis() -> Charter {
    let mut institutions: Vec<Member> = [
        (ALP, "Alpenhochschule", "CH"),
        (NORD, "Universitetet i Nord", "NO"),
        (FJORD, "Fjordlaboratoriet", "NO"),
    ]
    .map(|(seed, name, code)| Member {
        key: institution(seed),
        name: name.to_owned(),
        jurisdiction: country(code),
    })
    .into();
    institutions.sort_by_key(|member| member.key);
    Charter {
        federation: None,
        signer: institution(ALP),
        name: "Allmend of the vectors".to_owned(),
        version: 1,
        previous: None,
        not_before: at(0),
        expires: at(365 * DAY_MS),
        institutions,
        members_may_sponsor: true,
        sequencer: None,
        skew_ms: SKEW_DEFAULT,
        timing: Timing::default(),
    }
}

pub(crate) fn charter() -> MessageId {
    static GENESIS: LazyLock<MessageId> = LazyLock::new(|| id_of(&genesis()));
    *GENESIS
}

pub(crate) fn federation() -> FederationId {
    charter().into()
}

pub(crate) fn second_charter() -> Charter {
    Charter {
        federation: Some(federation()),
        version: 2,
        previous: Some(charter()),
        not_before: at(30 * DAY_MS),
        members_may_sponsor: false,
        sequencer: Some(node(ALP_NODE)),
        ..genesis()
    }
}

pub(crate) fn institution_cert() -> InstitutionCert {
    InstitutionCert {
        federation: federation(),
        signer: institution(NORD),
        charter: charter(),
        institution: institution(NEWCOMER),
        name: "Høgskolen på Øya".to_owned(),
        jurisdiction: country("NO"),
        serial: 1,
        not_before: at(0),
        expires: at(90 * DAY_MS),
    }
}

pub(crate) fn node_cert(seed: u8) -> NodeCert {
    let (signer, name, code) = match seed {
        ALP_NODE => (ALP, "alp-gpu-1", "CH"),
        _ => (NORD, "nord-1", "NO"),
    };
    NodeCert {
        federation: federation(),
        signer: institution(signer),
        charter: charter(),
        node: node(seed),
        sealing: sealing(seed),
        name: name.to_owned(),
        jurisdiction: country(code),
        serial: 2,
        not_before: at(0),
        expires: at(90 * DAY_MS),
    }
}

pub(crate) fn researcher_cert() -> ResearcherCert {
    ResearcherCert {
        federation: federation(),
        signer: institution(ALP),
        charter: charter(),
        researcher: ResearcherId::from_bytes(public(RESEARCHER)),
        sealing: sealing(RESEARCHER),
        home: node(ALP_NODE),
        credentials: Vec::new(),
        serial: 3,
        not_before: at(0),
        expires: at(90 * DAY_MS),
    }
}

fn credentials() -> Vec<String> {
    vec!["clinical-data".to_owned(), "ethics-training".to_owned()]
}

pub(crate) fn certified_researcher() -> ResearcherCert {
    ResearcherCert { credentials: credentials(), serial: 3, ..researcher_cert() }
}

pub(crate) fn invitation(role: Role) -> Invitation {
    Invitation {
        federation: federation(),
        signer: institution(ALP),
        charter: charter(),
        role,
        credentials: Vec::new(),
        node: node(ALP_NODE),
        bulk: vec!["alp.example:7702".to_owned()],
        bootstrap: vec!["/dns4/alp.example/udp/7701/quic-v1".to_owned()],
        nonce: [0xa5; 16],
        not_before: at(0),
        expires: at(DAY_MS),
    }
}

pub(crate) fn join_request(role: Role) -> JoinRequest {
    let invitation = Verified::sign(&key(ALP), invitation(role)).unwrap();
    JoinRequest {
        federation: federation(),
        signer: PublicKey::from_bytes(public(NEWCOMER)),
        invitation: ByteString(invitation.envelope().as_bytes().to_vec()),
        sealing: sealing(NEWCOMER),
        name: "Høgskolen på Øya".to_owned(),
        jurisdiction: (role != Role::Researcher).then(|| country("NO")),
        issued: at(1_000),
    }
}

pub(crate) fn advert() -> CapacityAdvert {
    let mut models = vec![
        ModelHeld { digest: digest("model"), memory_mib: 700, context_tokens: 8_192, warm: true },
        ModelHeld {
            digest: digest("other model"),
            memory_mib: 9_000,
            context_tokens: 32_768,
            warm: false,
        },
    ];
    models.sort_by_key(|held| held.digest);
    CapacityAdvert {
        federation: federation(),
        signer: node(NORD_NODE),
        institution: institution(NORD),
        charter: charter(),
        order: AdvertOrder { epoch: 1, incarnation: 4, sequence: 70_000 },
        issued: at(10_000),
        expires: at(30_000),
        versions: Versions::of_this_release(),
        jurisdiction: country("NO"),
        devices: vec![DeviceCapacity {
            kind: DeviceKind::Cpu,
            name: "EPYC 9754".to_owned(),
            memory_mib: 65_536,
            cores: 128,
        }],
        slots_total: 4,
        slots_free: 3,
        queue_ms: DurationMs::from_ms(250),
        models,
        fetches_models: true,
        datasets: vec![digest("dataset")],
        adapters: vec![digest("adapter")],
        rates: Rates { prompt: 100, completion: 400 },
        draining: false,
        addresses: vec!["/dns4/nord.example/udp/7701/quic-v1".to_owned()],
    }
}

/// A node that has nothing and speaks only the first versions.
pub(crate) fn empty_advert() -> CapacityAdvert {
    CapacityAdvert {
        order: AdvertOrder::default(),
        versions: Versions::first(),
        devices: Vec::new(),
        slots_total: 0,
        slots_free: 0,
        models: Vec::new(),
        fetches_models: false,
        datasets: Vec::new(),
        adapters: Vec::new(),
        draining: true,
        addresses: Vec::new(),
        ..advert()
    }
}

pub(crate) fn infer_work() -> InferWork {
    InferWork {
        max_tokens: 128,
        temperature: Decimal::from_milli(700),
        top_k: 40,
        top_p: Decimal { mantissa: 95, exp10: -2 },
        seed: 7,
        clock: at(20_000),
        prompt_tokens_max: 512,
        adapter: None,
    }
}

pub(crate) fn job() -> JobSpec {
    JobSpec {
        federation: federation(),
        signer: ResearcherId::from_bytes(public(RESEARCHER)),
        certificate: id_of(&researcher_cert()),
        charter: charter(),
        governance: None,
        home: node(ALP_NODE),
        nonce: [0x5a; 16],
        project: "glaciers".to_owned(),
        purpose: "research".to_owned(),
        work: infer_work().to_work(),
        model: digest("model"),
        dataset: None,
        input: SealedInput {
            digest: Digest::salted(&[0x11; 32], b"ciphertext"),
            bytes: 1_234,
            wraps: vec![KeyWrap { node: node(ALP_NODE), enc: [0x21; 32], sealed: [0x22; 48] }],
        },
        placement: Placement::default(),
        cap: Credits::from_micro(2_000_000),
        attempts: 4,
        issued: at(20_000),
        deadline: at(620_000),
        terms: None,
        delegation: None,
    }
}

/// A job with every field that a job may have.
pub(crate) fn full_job() -> JobSpec {
    let mut at_institutions = vec![institution(ALP), institution(NORD)];
    at_institutions.sort_unstable();
    JobSpec {
        signer: ResearcherId::from_bytes(public(DELEGATE)),
        governance: Some(digest("governance checkpoint")),
        dataset: Some(digest("dataset")),
        placement: Placement {
            at: at_institutions,
            not_at: vec![institution(FJORD)],
            jurisdictions: vec![country("CH"), country("NO")],
            not_jurisdictions: vec![country("US")],
            device: Some(DeviceKind::Cuda),
            memory_mib: 24_576,
        },
        terms: Some(Terms {
            dataset: Some(digest("dataset")),
            policy: Some(digest("policy")),
            output: "adapter".to_owned(),
            room: "sealed-v1".to_owned(),
        }),
        delegation: Some(id_of(&delegation())),
        ..job()
    }
}

pub(crate) fn job_id() -> MessageId {
    static JOB: LazyLock<MessageId> = LazyLock::new(|| id_of(&job()));
    *JOB
}

pub(crate) fn delegation() -> Delegation {
    Delegation {
        federation: federation(),
        signer: ResearcherId::from_bytes(public(RESEARCHER)),
        delegate: PublicKey::from_bytes(public(DELEGATE)),
        project: None,
        cap: Credits::from_micro(50_000_000),
        not_before: at(0),
        expires: at(7 * DAY_MS),
    }
}

pub(crate) fn probe() -> Probe {
    Probe {
        federation: federation(),
        signer: node(ALP_NODE),
        charter: charter(),
        job: job_id(),
        attempt: 1,
        sequence: 99,
        issued: at(20_100),
    }
}

pub(crate) fn offer() -> Offer {
    Offer {
        federation: federation(),
        signer: node(NORD_NODE),
        charter: charter(),
        probe: id_of(&probe()),
        job: job_id(),
        start_in_ms: DurationMs::from_ms(40),
        rates: advert().rates,
        advert: advert().order,
        expires: at(25_000),
    }
}

pub(crate) fn refusal() -> Refusal {
    Refusal {
        federation: federation(),
        signer: node(NORD_NODE),
        charter: charter(),
        about: id_of(&probe()),
        job: job_id(),
        reasons: vec![
            Reason::new(ReasonClass::Busy, "all 4 slots are taken"),
            Reason::new(ReasonClass::Memory, "needs 24,576 MiB, the largest device has 8,192 MiB"),
        ],
        retry_after_ms: None,
    }
}

pub(crate) fn pending() -> Pending {
    Pending {
        federation: federation(),
        signer: node(NORD_NODE),
        charter: charter(),
        probe: id_of(&probe()),
        job: job_id(),
        obligations: vec!["approve:data-steward".to_owned()],
        ticket: ByteString(vec![0x42; 16]),
        expires: at(DAY_MS),
    }
}

pub(crate) fn grant() -> Grant {
    Grant {
        federation: federation(),
        signer: node(ALP_NODE),
        charter: charter(),
        governance: None,
        job: job_id(),
        researcher: ResearcherId::from_bytes(public(RESEARCHER)),
        cap: job().cap,
        attempts: 4,
        brokers: vec![BrokerRange { node: node(ALP_NODE), first: 1, last: 4 }],
        issued: at(20_200),
        deadline: job().deadline,
        settle_by: at(740_000),
    }
}

/// A grant with a standby broker.
pub(crate) fn shared_grant() -> Grant {
    Grant {
        governance: Some(digest("governance checkpoint")),
        brokers: vec![
            BrokerRange { node: node(ALP_NODE), first: 1, last: 3 },
            BrokerRange { node: node(NORD_NODE), first: 4, last: 4 },
        ],
        ..grant()
    }
}

pub(crate) fn assign() -> Assign {
    Assign {
        federation: federation(),
        signer: node(ALP_NODE),
        charter: charter(),
        job: job_id(),
        grant: id_of(&grant()),
        attempt: 1,
        node: node(NORD_NODE),
        offer: id_of(&offer()),
        considered: digest("what was considered"),
        issued: at(20_200),
        respond_by: at(23_200),
    }
}

pub(crate) fn lease() -> Lease {
    Lease {
        federation: federation(),
        signer: node(NORD_NODE),
        charter: charter(),
        job: job_id(),
        grant: id_of(&grant()),
        assign: id_of(&assign()),
        attempt: 1,
        fence: Fence { epoch: 1, incarnation: 4, sequence: 17 },
        slot: 2,
        rates: offer().rates,
        ttl_ms: Timing::default().lease_ttl_ms,
        issued: at(20_250),
    }
}

pub(crate) fn renewal() -> LeaseRenewal {
    LeaseRenewal {
        federation: federation(),
        signer: node(NORD_NODE),
        lease: id_of(&lease()),
        job: job_id(),
        sequence: 1,
        tokens_done: 31,
        ttl_ms: lease().ttl_ms,
        issued: at(22_250),
    }
}

pub(crate) fn cancel() -> Cancel {
    Cancel {
        federation: federation(),
        signer: PublicKey::from_bytes(public(RESEARCHER)),
        job: job_id(),
        attempt: None,
        why: CancelWhy::Researcher,
        issued: at(23_000),
    }
}

pub(crate) fn receipt() -> Receipt {
    let usage = Usage {
        prompt_tokens: 12,
        completion_tokens: 128,
        forced_tokens: 0,
        device_time_ms: DurationMs::from_ms(2_900),
        energy: None,
    };
    Receipt {
        federation: federation(),
        signer: node(NORD_NODE),
        charter: charter(),
        job: job_id(),
        grant: id_of(&grant()),
        lease: id_of(&lease()),
        attempt: 1,
        outcome: Outcome::Finished { reason: "length".to_owned() },
        cost: lease().rates.cost(usage.prompt_tokens, usage.completion_tokens).unwrap(),
        usage,
        output: Some(Digest::salted(&[0x12; 32], b"output")),
        model: digest("model"),
        model_licence: Some("apache-2.0".to_owned()),
        numerics: "candle-0.11.1".to_owned(),
        contract: None,
        started: at(20_260),
        ended: at(23_200),
    }
}

/// A receipt with every field that a receipt may have.
pub(crate) fn full_receipt() -> Receipt {
    let mut receipt = Receipt {
        outcome: Outcome::Failed { permanent: true, why: "the context is full".to_owned() },
        contract: Some(id_of(&contract())),
        ..receipt()
    };
    receipt.usage.forced_tokens = 31;
    receipt.usage.energy =
        Some(Energy { joules: Decimal { mantissa: 12_345, exp10: -2 }, source: "nvml".to_owned() });
    receipt
}

pub(crate) fn interrupted_receipt() -> Receipt {
    Receipt { outcome: Outcome::Interrupted, output: None, model_licence: None, ..receipt() }
}

fn share(receipt: &Receipt, lease: &Lease) -> Share {
    Share {
        lease: id_of(lease),
        receipt: id_of(receipt),
        node: receipt.signer,
        institution: institution(NORD),
        cost: receipt.cost,
    }
}

pub(crate) fn settlement() -> Settlement {
    let second_lease =
        Lease { attempt: 2, fence: Fence { epoch: 1, incarnation: 4, sequence: 18 }, ..lease() };
    let second_receipt = Receipt { lease: id_of(&second_lease), attempt: 2, ..receipt() };
    let mut shares =
        vec![share(&interrupted_receipt(), &lease()), share(&second_receipt, &second_lease)];
    shares.sort_by_key(|share| share.lease);
    let total =
        shares.iter().fold(Credits::ZERO, |sum, share| sum.checked_add(share.cost).unwrap());
    Settlement {
        federation: federation(),
        signer: node(ALP_NODE),
        charter: charter(),
        job: job_id(),
        grant: id_of(&grant()),
        payer: institution(ALP),
        outcome: JobOutcome::Finished,
        shares,
        total,
        refunded: grant().cap.less(total),
        issued: at(24_000),
    }
}

pub(crate) fn empty_settlement() -> Settlement {
    Settlement {
        outcome: JobOutcome::Cancelled,
        shares: Vec::new(),
        total: Credits::ZERO,
        refunded: grant().cap,
        ..settlement()
    }
}

pub(crate) fn succession() -> LogSuccession {
    LogSuccession {
        federation: federation(),
        signer: institution(NORD),
        node: node(NORD_NODE),
        old_epoch: 1,
        new_epoch: 2,
        last_size: 4_711,
        last_root: digest("root"),
        why: "disk lost, restored from the witnesses' copies".to_owned(),
        issued: at(DAY_MS),
    }
}

/// Every kind and version, the plainest sample of each first.
pub(crate) fn all() -> Vec<Sample> {
    fn seed_of(signer: &PublicKey) -> u8 {
        (1..=STRANGER).find(|seed| public(*seed) == *signer.as_bytes()).unwrap()
    }
    fn sample<T: Message + Into<Body>>(name: &'static str, body: T) -> Sample {
        let seeds = vec![seed_of(&body.signer())];
        let federation = body.federation().unwrap_or_else(|| id_of(&body).into());
        Sample { name, body: body.into(), seeds, federation }
    }
    let mut charters = [
        sample("genesis, signed by its three members", genesis()),
        sample("second version", second_charter()),
    ];
    charters[0].seeds = vec![ALP, NORD, FJORD];
    let others = [
        sample("admitted by a member", institution_cert()),
        sample("a node", node_cert(NORD_NODE)),
        sample("a researcher", researcher_cert()),
        sample("a researcher with credentials", certified_researcher()),
        sample("for an institution", invitation(Role::Institution)),
        sample(
            "for a researcher, without bootstrap addresses",
            Invitation { bootstrap: Vec::new(), ..invitation(Role::Researcher) },
        ),
        sample(
            "for a researcher with credentials",
            Invitation { credentials: credentials(), ..invitation(Role::Researcher) },
        ),
        sample("as a researcher", join_request(Role::Researcher)),
        sample("as an institution", join_request(Role::Institution)),
        sample("a node with nothing", empty_advert()),
        sample("a node with everything", advert()),
        sample("at home, nothing optional", job()),
        sample("everything optional", full_job()),
        sample("inference with an adapter", JobSpec { work: adapter_work().to_work(), ..job() }),
        sample("fine-tuning where the dataset is", finetune_job()),
        sample("fine-tuning with differential privacy, on two datasets", private_job()),
        sample("for every project", delegation()),
        sample(
            "for one project",
            Delegation { project: Some("glaciers".to_owned()), ..delegation() },
        ),
        sample("a first attempt", probe()),
        sample("an offer", offer()),
        sample("two reasons", RefusalV1::from(refusal())),
        sample("without a time to ask again", refusal()),
        sample(
            "with a time to ask again",
            Refusal { retry_after_ms: Some(DurationMs::from_secs(30)), ..refusal() },
        ),
        sample("a steward must approve", pending()),
        sample("one broker", grant()),
        sample("a standby broker", shared_grant()),
        sample("a first attempt", assign()),
        sample("a lease", lease()),
        sample("a first renewal", renewal()),
        sample("the whole job, by the researcher", cancel()),
        sample(
            "one attempt, by the broker",
            Cancel {
                signer: PublicKey::from_bytes(public(ALP_NODE)),
                attempt: Some(2),
                why: CancelWhy::Superseded,
                ..cancel()
            },
        ),
        sample("interrupted", interrupted_receipt()),
        sample("finished", receipt()),
        sample("failed, everything optional", full_receipt()),
        sample("nothing to pay", empty_settlement()),
        sample("two shares", settlement()),
        sample("a new epoch", succession()),
        sample("a yes to a run", approval()),
        sample("a no", refused_approval()),
        sample("a yes to an output, everything optional", output_approval()),
        sample("on the job's own rows", own_rows_contract()),
        sample("on a dataset", contract()),
        sample("with a privacy budget", private_contract()),
        sample("stopped", stopped_report()),
        sample("released", gate_report()),
        sample("consent withdrawn", recall()),
        sample("held, and deleted", recall_answer()),
        sample("not held", RecallAnswer { done: RecallDone::NotHeld, ..recall_answer() }),
        sample("a job's own rows", deletion()),
    ];
    charters.into_iter().chain(others).collect()
}
