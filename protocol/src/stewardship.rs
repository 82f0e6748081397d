//! What is signed around data that stays where it is: approvals, contracts, what the output gate decided,
//! recalls, deletions (specs/approval.md, specs/contract.md, specs/recall.md, specs/deletion.md).

use serde::{Deserialize, Serialize};

use crate::encoding::LIST_MAX;
use crate::finetune::MIX_MAX;
use crate::ids::{Digest, FederationId, MessageId, NodeId, PublicKey};
use crate::message::{Invalid, Kind, Message, require, require_text};
use crate::offer::{OBLIGATIONS_MAX, REASON_TEXT_BYTES_MAX, node_message};
use crate::time::{DurationMs, Timestamp};

/// The longest an approval may hold: a year.
pub const APPROVAL_LIFETIME_MAX: DurationMs = DurationMs::from_secs(366 * 86_400);
/// The most policies in force for one contract: three layers, and each dataset's own.
pub const POLICIES_MAX: usize = 2 + MIX_MAX;
/// The most approvals that one contract rests on: no list of a message is longer.
pub const APPROVALS_MAX: usize = LIST_MAX;
/// The most facts about a room, or reasons of a gate, in one message.
pub const FACTS_MAX: usize = 32;
/// The layers of policy, each of which must allow a run that reads datasets, in the order of a contract.
pub const LAYERS: [&str; 3] = ["charter", "dataset", "institution"];

/// A person says yes or no to one job on one dataset version under one policy, at one node. Any change
/// of what it names voids it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Approval {
    /// Which federation.
    pub federation: FederationId,
    /// The person's own key, which the dataset names as a steward's.
    pub signer: PublicKey,
    /// The node that holds the dataset.
    pub node: NodeId,
    /// The job.
    pub job: MessageId,
    /// The dataset's version.
    pub dataset: Digest,
    /// The steward's policy, as it was when the person decided.
    pub policy: Digest,
    /// What is fulfilled, e.g. `approve:data-steward`.
    pub obligation: String,
    /// For the approval of an output: the adapter that was shown.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub output: Option<Digest>,
    /// What the person decided.
    pub decision: ApprovalDecision,
    /// How many runs it covers.
    pub runs_max: u16,
    /// Digest of the agreement that it rests on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agreement: Option<Digest>,
    /// Digest of the ethics document that it rests on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ethics: Option<Digest>,
    /// When it was signed.
    pub issued: Timestamp,
    /// Holds until here.
    pub expires: Timestamp,
}

/// What a person decided.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum ApprovalDecision {
    /// Yes.
    Approved {},
    /// No; the researcher is told why.
    Refused {
        /// In words.
        why: String,
    },
}

impl Message for Approval {
    const KIND: Kind = Kind::Approval;
    const VERSION: u16 = 1;

    fn federation(&self) -> Option<FederationId> {
        Some(self.federation)
    }

    fn signer(&self) -> PublicKey {
        self.signer
    }

    fn check(&self) -> Result<(), Invalid> {
        require(!self.obligation.is_empty(), "obligation", "not empty")?;
        require_text(&self.obligation, 64, "obligation")?;
        require(self.runs_max >= 1, "runs_max", "at least 1")?;
        require(self.issued < self.expires, "expires", "after issued")?;
        let latest = self.issued.plus(APPROVAL_LIFETIME_MAX);
        require(self.expires <= latest, "expires", "at most a year after issued")?;
        match &self.decision {
            ApprovalDecision::Approved {} => Ok(()),
            ApprovalDecision::Refused { why } => {
                require(!why.is_empty(), "decision.why", "not empty")?;
                require_text(why, REASON_TEXT_BYTES_MAX, "decision.why")
            }
        }
    }
}

/// What a node promises before it opens a dataset to a job: the terms of one run, within those that the
/// researcher accepted beforehand.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Contract {
    /// Which federation.
    pub federation: FederationId,
    /// The node.
    pub signer: NodeId,
    /// The charter version relied on.
    pub charter: MessageId,
    /// The job.
    pub job: MessageId,
    /// The lease under which it runs.
    pub lease: MessageId,
    /// Digest of the work's description.
    pub recipe: Digest,
    /// The dataset versions that are read; empty for a researcher's own portable rows.
    #[serde(deserialize_with = "crate::encoding::list")]
    pub datasets: Vec<Digest>,
    /// The policies in force, sorted by layer and digest; of every layer, when datasets are read.
    #[serde(deserialize_with = "crate::encoding::list")]
    pub policies: Vec<PolicyInForce>,
    /// Why it is allowed: ids of the policies that said yes.
    #[serde(deserialize_with = "crate::encoding::list")]
    pub reasons: Vec<String>,
    /// The approvals that it rests on, sorted.
    #[serde(deserialize_with = "crate::encoding::list")]
    pub approvals: Vec<MessageId>,
    /// The base model.
    pub model: Digest,
    /// Its licence, as its file says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model_licence: Option<String>,
    /// The kind of output, e.g. `adapter`.
    pub output: String,
    /// The room's strength, e.g. `sealed-v1`.
    pub room: String,
    /// What was verified about the room.
    #[serde(deserialize_with = "crate::encoding::list")]
    pub room_facts: Vec<String>,
    /// What it may cost of each dataset's privacy budget; absent: the adapter is not private.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub privacy: Option<PrivacyTerms>,
    /// When it was signed.
    pub issued: Timestamp,
}

/// One policy in force.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PolicyInForce {
    /// `charter`, `institution` or `dataset`.
    pub layer: String,
    /// Digest of its text.
    pub digest: Digest,
}

/// A privacy budget before and after one job: the worst of its datasets, each ε at the δ named here.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PrivacyTerms {
    /// ε of this job alone, in thousandths, rounded up.
    pub milli_epsilon_job: u64,
    /// ε of everything before, in thousandths, rounded up.
    pub milli_epsilon_before: u64,
    /// ε of everything with this job, in thousandths, rounded up.
    pub milli_epsilon_after: u64,
    /// δ = 10^−`delta_exp10`, no larger than the job's δ.
    pub delta_exp10: u8,
}

node_message!(Contract, Contract, 1, |contract| {
    require(contract.datasets.len() <= MIX_MAX, "datasets", "at most 16")?;
    let sorted = contract.datasets.windows(2).all(|pair| pair[0] < pair[1]);
    require(sorted, "datasets", "sorted, no repeats")?;
    check_policies(&contract.policies, !contract.datasets.is_empty())?;
    texts(&contract.reasons, 120, "reasons")?;
    check_approvals(&contract.approvals, APPROVALS_MAX, "sorted, no repeats, at most 64")?;
    require_text(contract.model_licence.as_deref().unwrap_or(""), 120, "model_licence")?;
    require_text(&contract.output, 32, "output")?;
    require_text(&contract.room, 32, "room")?;
    texts(&contract.room_facts, 120, "room_facts")?;
    contract.privacy.as_ref().map_or(Ok(()), PrivacyTerms::check)
});

/// No policy of a layer is no permission of that layer: a contract that opens datasets names one of each.
fn check_policies(policies: &[PolicyInForce], every_layer: bool) -> Result<(), Invalid> {
    require(policies.len() <= POLICIES_MAX, "policies", "at most 18")?;
    let known = policies.iter().all(|used| LAYERS.contains(&used.layer.as_str()));
    require(known, "policies.layer", "charter, dataset or institution")?;
    let sorted = policies
        .windows(2)
        .all(|pair| (&pair[0].layer, pair[0].digest) < (&pair[1].layer, pair[1].digest));
    require(sorted, "policies", "sorted by layer and digest, no repeats")?;
    let has = |layer: &&str| policies.iter().any(|used| used.layer == **layer);
    require(!every_layer || LAYERS.iter().all(has), "policies", "of every layer")
}

fn check_approvals(list: &[MessageId], max: usize, rule: &'static str) -> Result<(), Invalid> {
    let sorted = list.windows(2).all(|pair| pair[0] < pair[1]);
    require(sorted && list.len() <= max, "approvals", rule)
}

impl PrivacyTerms {
    fn check(&self) -> Result<(), Invalid> {
        let least = self.milli_epsilon_job.max(self.milli_epsilon_before);
        // Composition only ever adds: less afterwards is a slip of whoever counted.
        require(
            self.milli_epsilon_after >= least,
            "privacy.milli_epsilon_after",
            "no less than the job's and than before",
        )?;
        let exponent = (1..=18).contains(&self.delta_exp10);
        require(exponent, "privacy.delta_exp10", "1 to 18")
    }
}

/// What the output gate decided about one run's adapter.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GateReport {
    /// Which federation.
    pub federation: FederationId,
    /// The node.
    pub signer: NodeId,
    /// The charter version relied on.
    pub charter: MessageId,
    /// The job.
    pub job: MessageId,
    /// The contract under which it ran.
    pub contract: MessageId,
    /// The adapter's id when it was released.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub released: Option<Digest>,
    /// Why it was not; empty when it was.
    #[serde(deserialize_with = "crate::encoding::list")]
    pub stops: Vec<GateStop>,
    /// The approvals of the output, sorted.
    #[serde(deserialize_with = "crate::encoding::list")]
    pub approvals: Vec<MessageId>,
    /// When it was decided.
    pub issued: Timestamp,
}

/// One reason of the gate: an id for machines and a sentence for people.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GateStop {
    /// The rule, by its id.
    pub rule: String,
    /// In words, without any of the data.
    pub text: String,
}

node_message!(GateReport, GateReport, 1, |report| {
    let either = report.released.is_some() == report.stops.is_empty();
    require(either, "stops", "empty exactly when released")?;
    require(report.stops.len() <= FACTS_MAX, "stops", "at most 32")?;
    check_approvals(&report.approvals, OBLIGATIONS_MAX, "sorted, no repeats, at most 8")?;
    report.stops.iter().try_for_each(|stop| {
        require(!stop.rule.is_empty(), "stops.rule", "not empty")?;
        require(!stop.text.is_empty(), "stops.text", "not empty")?;
        require_text(&stop.rule, 64, "stops.rule")?;
        require_text(&stop.text, REASON_TEXT_BYTES_MAX, "stops.text")
    })
});

/// A steward takes a released adapter back: every node is to stop serving it and delete it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recall {
    /// Which federation.
    pub federation: FederationId,
    /// The node that released the adapter and speaks for its steward.
    pub signer: NodeId,
    /// The charter version relied on.
    pub charter: MessageId,
    /// The steward's key, in whose name.
    pub steward: PublicKey,
    /// The adapter's id.
    pub adapter: Digest,
    /// The report under which it was released.
    pub report: MessageId,
    /// Why, in words.
    pub why: String,
    /// When.
    pub issued: Timestamp,
}

node_message!(Recall, Recall, 1, |recall| {
    require(!recall.why.is_empty(), "why", "not empty")?;
    require_text(&recall.why, REASON_TEXT_BYTES_MAX, "why")
});

/// A node has heard a recall.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RecallAnswer {
    /// Which federation.
    pub federation: FederationId,
    /// The node.
    pub signer: NodeId,
    /// The charter version relied on.
    pub charter: MessageId,
    /// The recall.
    pub recall: MessageId,
    /// The adapter's id.
    pub adapter: Digest,
    /// What the node did.
    pub done: RecallDone,
    /// When.
    pub issued: Timestamp,
}

/// What a node did about a recall.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RecallDone {
    /// It held the adapter, serves it no more and has deleted it.
    Deleted,
    /// It did not hold it, and will not take it.
    NotHeld,
}

node_message!(RecallAnswer, RecallAnswer, 1, |_| Ok(()));

/// A node has deleted what a job brought along.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Deletion {
    /// Which federation.
    pub federation: FederationId,
    /// The node.
    pub signer: NodeId,
    /// The charter version relied on.
    pub charter: MessageId,
    /// The job.
    pub job: MessageId,
    /// Salted digest of what was deleted, as in the job's `input`.
    pub input: Digest,
    /// Bytes of it.
    pub bytes: u64,
    /// When.
    pub issued: Timestamp,
}

node_message!(Deletion, Deletion, 1, |_| Ok(()));

fn texts(list: &[String], bytes_max: usize, field: &'static str) -> Result<(), Invalid> {
    require(list.len() <= FACTS_MAX, field, "at most 32")?;
    list.iter().try_for_each(|text| require_text(text, bytes_max, field))
}
