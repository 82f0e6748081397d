//! Good messages around data that stays where it is, and fine-tuning as work.

use allmend_protocol::bytes::ByteString;
use allmend_protocol::envelope::id_of;
use allmend_protocol::finetune::{
    FinetuneInput, FinetuneWork, Lora, LossOn, MixPart, Optimiser, Precision, Privacy, Schedule,
};
use allmend_protocol::ids::{Digest, MessageId, PublicKey};
use allmend_protocol::job::{InferWork, JobSpec, Placement, Terms};
use allmend_protocol::lease::Lease;
use allmend_protocol::stewardship::{
    Approval, ApprovalDecision, Contract, Deletion, GateReport, GateStop, PolicyInForce,
    PrivacyTerms, Recall, RecallAnswer, RecallDone,
};
use allmend_protocol::units::Decimal;

use super::{
    ALP_NODE, DAY_MS, NORD, NORD_NODE, at, charter, digest, federation, infer_work, institution,
    job, lease, node, public,
};

/// Seeds of a steward's key and of the deputy's.
pub(crate) const STEWARD: u8 = 23;
pub(crate) const DEPUTY: u8 = 24;

fn decimal(mantissa: i64, exp10: i8) -> Decimal {
    Decimal { mantissa, exp10 }
}

fn sorted<T: Ord>(mut list: Vec<T>) -> Vec<T> {
    list.sort_unstable();
    list
}

/// One dataset, nothing optional.
pub(crate) fn finetune_work() -> FinetuneWork {
    FinetuneWork {
        datasets: vec![MixPart { dataset: digest("dataset"), weight: 1 }],
        lora: Lora {
            rank: 8,
            alpha: 16,
            dropout: decimal(0, 0),
            targets: vec!["q_proj".to_owned(), "v_proj".to_owned()],
        },
        optimiser: Optimiser {
            learning_rate: decimal(2, -4),
            warmup_steps: 10,
            schedule: Schedule::Cosine,
            weight_decay: decimal(1, -2),
            beta1: decimal(9, -1),
            beta2: decimal(999, -3),
            epsilon: decimal(1, -8),
            clip_norm: decimal(1, 0),
        },
        steps: 200,
        batch: 4,
        accumulate: 2,
        sequence_tokens: 512,
        loss_on: LossOn::Assistant,
        packing: true,
        validation: decimal(5, -2),
        seed: 7,
        snapshot_every: 50,
        recompute: false,
        clock: at(20_000),
        privacy: None,
        plateau_steps: None,
        precision: None,
    }
}

/// A mix of two, with differential privacy.
pub(crate) fn private_work() -> FinetuneWork {
    let mut datasets = vec![
        MixPart { dataset: digest("dataset"), weight: 3 },
        MixPart { dataset: digest("other dataset"), weight: 1 },
    ];
    datasets.sort_by_key(|part| part.dataset);
    FinetuneWork {
        datasets,
        lora: Lora { dropout: decimal(5, -2), ..finetune_work().lora },
        optimiser: Optimiser { schedule: Schedule::Constant, ..finetune_work().optimiser },
        loss_on: LossOn::All,
        packing: false,
        recompute: true,
        privacy: Some(Privacy {
            noise_multiplier: decimal(11, -1),
            clip_norm: decimal(5, -1),
            sampling_rate: decimal(1, -2),
            delta: decimal(1, -5),
        }),
        ..finetune_work()
    }
}

/// On rows that the job brings along.
pub(crate) fn own_rows_work() -> FinetuneWork {
    FinetuneWork {
        datasets: Vec::new(),
        plateau_steps: Some(100),
        precision: Some(Precision::Bf16),
        ..finetune_work()
    }
}

/// Rows that travel sealed.
pub(crate) fn finetune_input() -> FinetuneInput {
    FinetuneInput { portable: Some(ByteString(b"packed rows".to_vec())) }
}

/// An inference that is served with an adapter beside the model.
pub(crate) fn adapter_work() -> InferWork {
    InferWork { adapter: Some(digest("adapter")), ..infer_work() }
}

/// A job that goes to where its dataset is.
pub(crate) fn finetune_job() -> JobSpec {
    JobSpec {
        work: finetune_work().to_work(),
        placement: Placement { at: vec![institution(NORD)], ..Placement::default() },
        deadline: at(7 * DAY_MS),
        terms: Some(Terms {
            dataset: Some(digest("dataset")),
            policy: Some(digest("policy")),
            output: "adapter".to_owned(),
            room: "sealed-v1".to_owned(),
        }),
        ..job()
    }
}

/// A job that reads two datasets.
pub(crate) fn private_job() -> JobSpec {
    let terms = finetune_job().terms.map(|terms| Terms { dataset: None, policy: None, ..terms });
    JobSpec { work: private_work().to_work(), terms, ..finetune_job() }
}

fn finetune_lease() -> Lease {
    Lease { job: id_of(&finetune_job()), ..lease() }
}

pub(crate) fn approval() -> Approval {
    Approval {
        federation: federation(),
        signer: PublicKey::from_bytes(public(STEWARD)),
        node: node(NORD_NODE),
        job: id_of(&finetune_job()),
        dataset: digest("dataset"),
        policy: digest("policy"),
        obligation: "approve:data-steward".to_owned(),
        output: None,
        decision: ApprovalDecision::Approved {},
        runs_max: 1,
        agreement: None,
        ethics: None,
        issued: at(20_150),
        expires: at(30 * DAY_MS),
    }
}

/// An approval with everything that it may rest on, of an output.
pub(crate) fn output_approval() -> Approval {
    Approval {
        signer: PublicKey::from_bytes(public(DEPUTY)),
        obligation: "approve:output".to_owned(),
        output: Some(digest("adapter")),
        runs_max: u16::MAX,
        agreement: Some(digest("agreement")),
        ethics: Some(digest("ethics vote")),
        ..approval()
    }
}

pub(crate) fn refused_approval() -> Approval {
    let why = "the consent covers teaching, not this purpose".to_owned();
    Approval { decision: ApprovalDecision::Refused { why }, ..approval() }
}

/// For rows that the job brought along: nobody's policy stands in the way.
pub(crate) fn own_rows_contract() -> Contract {
    let job = JobSpec { work: own_rows_work().to_work(), ..finetune_job() };
    Contract {
        federation: federation(),
        signer: node(NORD_NODE),
        charter: charter(),
        job: id_of(&job),
        lease: id_of(&Lease { job: id_of(&job), ..lease() }),
        recipe: Digest::of(&job.work.bytes.0),
        datasets: Vec::new(),
        policies: Vec::new(),
        reasons: Vec::new(),
        approvals: Vec::new(),
        model: digest("model"),
        model_licence: None,
        output: "adapter".to_owned(),
        room: "process-v1".to_owned(),
        room_facts: Vec::new(),
        privacy: None,
        issued: at(20_255),
    }
}

pub(crate) fn contract() -> Contract {
    let layer = |layer: &str, policy: &str| PolicyInForce {
        layer: layer.to_owned(),
        digest: digest(policy),
    };
    Contract {
        job: id_of(&finetune_job()),
        lease: id_of(&finetune_lease()),
        recipe: Digest::of(&finetune_job().work.bytes.0),
        datasets: vec![digest("dataset")],
        policies: vec![
            layer("charter", "policy of the charter"),
            layer("dataset", "policy"),
            layer("institution", "policy of the institution"),
        ],
        reasons: vec!["members".to_owned(), "open-to-research".to_owned()],
        approvals: vec![id_of(&approval())],
        model_licence: Some("apache-2.0".to_owned()),
        room: "sealed-v1".to_owned(),
        room_facts: vec!["network: none, probed".to_owned(), "exec: refused, probed".to_owned()],
        ..own_rows_contract()
    }
}

/// Two datasets, with what the run costs of their privacy budgets.
pub(crate) fn private_contract() -> Contract {
    let (work, job) = (private_work(), private_job());
    let datasets: Vec<Digest> = work.datasets.iter().map(|part| part.dataset).collect();
    let approve = |dataset| id_of(&Approval { job: id_of(&job), dataset, ..approval() });
    Contract {
        job: id_of(&job),
        lease: id_of(&Lease { job: id_of(&job), ..lease() }),
        recipe: Digest::of(&job.work.bytes.0),
        approvals: sorted::<MessageId>(datasets.iter().copied().map(approve).collect()),
        datasets,
        privacy: Some(PrivacyTerms {
            milli_epsilon_job: 1_973,
            milli_epsilon_before: 2_108,
            milli_epsilon_after: 3_304,
            delta_exp10: 5,
        }),
        ..contract()
    }
}

pub(crate) fn gate_report() -> GateReport {
    GateReport {
        federation: federation(),
        signer: node(NORD_NODE),
        charter: charter(),
        job: contract().job,
        contract: id_of(&contract()),
        released: Some(digest("adapter")),
        stops: Vec::new(),
        approvals: vec![id_of(&output_approval())],
        issued: at(23_100),
    }
}

pub(crate) fn stopped_report() -> GateReport {
    let stop = |rule: &str, text: &str| GateStop { rule: rule.to_owned(), text: text.to_owned() };
    GateReport {
        released: None,
        stops: vec![
            stop("tensor-extra", "the adapter holds a tensor that its recipe does not declare"),
            stop("extraction", "12 of 200 rows come out word for word, at most 2 may"),
        ],
        approvals: Vec::new(),
        ..gate_report()
    }
}

pub(crate) fn recall() -> Recall {
    Recall {
        federation: federation(),
        signer: node(NORD_NODE),
        charter: charter(),
        steward: PublicKey::from_bytes(public(STEWARD)),
        adapter: digest("adapter"),
        report: id_of(&gate_report()),
        why: "consent was withdrawn".to_owned(),
        issued: at(DAY_MS),
    }
}

pub(crate) fn recall_answer() -> RecallAnswer {
    RecallAnswer {
        federation: federation(),
        signer: node(ALP_NODE),
        charter: charter(),
        recall: id_of(&recall()),
        adapter: digest("adapter"),
        done: RecallDone::Deleted,
        issued: at(DAY_MS + 50),
    }
}

pub(crate) fn deletion() -> Deletion {
    Deletion {
        federation: federation(),
        signer: node(NORD_NODE),
        charter: charter(),
        job: own_rows_contract().job,
        input: job().input.digest,
        bytes: job().input.bytes,
        issued: at(25_000),
    }
}
