//! A request as the node knows it, and as the policies see it (specs/policy.md §2).

use allmend_protocol::ids::{Digest, InstitutionId, NodeId, ResearcherId};
use allmend_protocol::time::Timestamp;
use allmend_protocol::units::{Decimal, Jurisdiction};
use serde_json::{Map, Value, json};

use crate::approvals::Approvals;

/// What shall be done with a dataset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Adapt a model to it.
    Finetune,
    /// Measure a model on it.
    Evaluate,
    /// Let a model read rows of it.
    Infer,
    /// Use an adapter that was trained on it.
    UseAdapter,
}

impl Action {
    /// All.
    pub const ALL: [Action; 4] =
        [Action::Finetune, Action::Evaluate, Action::Infer, Action::UseAdapter];

    /// As policies write it.
    pub const fn name(self) -> &'static str {
        match self {
            Action::Finetune => "finetune",
            Action::Evaluate => "evaluate",
            Action::Infer => "infer",
            Action::UseAdapter => "use-adapter",
        }
    }

    /// The action of that name.
    pub fn from_name(name: &str) -> Option<Action> {
        Action::ALL.into_iter().find(|action| action.name() == name)
    }
}

/// How sensitive a dataset is, as its steward says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sensitivity {
    /// Anybody may read it.
    Open,
    /// The institution's own, about nobody.
    Internal,
    /// About people.
    Personal,
    /// About people's health, beliefs, origin and the like (special categories of GDPR article 9).
    Special,
}

impl Sensitivity {
    /// All, from the least.
    pub const ALL: [Sensitivity; 4] =
        [Sensitivity::Open, Sensitivity::Internal, Sensitivity::Personal, Sensitivity::Special];

    /// As policies write it.
    pub const fn name(self) -> &'static str {
        match self {
            Sensitivity::Open => "open",
            Sensitivity::Internal => "internal",
            Sensitivity::Personal => "personal",
            Sensitivity::Special => "special",
        }
    }

    /// The one of that name.
    pub fn from_name(name: &str) -> Option<Sensitivity> {
        Sensitivity::ALL.into_iter().find(|known| known.name() == name)
    }
}

/// What comes out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OutputKind {
    /// Weights of an adapter.
    Adapter,
    /// Numbers.
    Evaluation,
    /// Text that a model wrote.
    Text,
}

impl OutputKind {
    /// As policies write it.
    pub const fn name(self) -> &'static str {
        match self {
            OutputKind::Adapter => "adapter",
            OutputKind::Evaluation => "evaluation",
            OutputKind::Text => "text",
        }
    }
}

/// When the question is put.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Before a run, at each attempt and at each renewal.
    Run,
    /// Before an output leaves the node.
    Release,
}

impl Stage {
    /// As policies write it.
    pub const fn name(self) -> &'static str {
        match self {
            Stage::Run => "run",
            Stage::Release => "release",
        }
    }
}

/// Who asks, under a pseudonymous key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Principal {
    /// The requester's key.
    pub key: ResearcherId,
    /// The institution that vouches for it.
    pub institution: InstitutionId,
    /// The law that institution lives under.
    pub jurisdiction: Jurisdiction,
    /// What their certificate says of them.
    pub credentials: Vec<String>,
}

/// The version of a dataset that the job names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dataset {
    /// The version's digest.
    pub digest: Digest,
    /// Its licence, as SPDX writes it.
    pub licence: String,
    /// How sensitive it is.
    pub sensitivity: Sensitivity,
    /// What it may be used for.
    pub consent_purposes: Vec<String>,
    /// Languages with their script, e.g. `deu_Latn`.
    pub languages: Vec<String>,
    /// How many rows it has.
    pub rows: u64,
    /// How many different subjects it is about; as many as rows, when rows name none.
    pub subjects: u64,
    /// Whether its steward has taken it back.
    pub withdrawn: bool,
}

/// The model that is trained, evaluated or asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Model {
    /// The digest of its file.
    pub digest: Digest,
    /// Its licence; a request whose model's licence nobody knows is refused.
    pub licence: Option<String>,
}

/// The node that would compute.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// The node.
    pub key: NodeId,
    /// Its institution.
    pub institution: InstitutionId,
    /// Where it stands.
    pub jurisdiction: Jurisdiction,
}

/// The room in which it would run; the strengths are those of specs/room.md.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Room {
    /// A process like any other.
    Process,
    /// Confined by the kernel, without namespaces of its own.
    Confined,
    /// Sealed and probed.
    Sealed,
}

impl Room {
    /// As contracts name it.
    pub const fn name(self) -> &'static str {
        match self {
            Room::Process => "process-v1",
            Room::Confined => "confined-v1",
            Room::Sealed => "sealed-v1",
        }
    }

    /// The room of that name.
    pub fn from_name(name: &str) -> Option<Room> {
        [Room::Process, Room::Confined, Room::Sealed].into_iter().find(|room| room.name() == name)
    }
}

/// What a differentially private job costs.
///
/// # Units
/// Thousandths of epsilon, rounded up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Privacy {
    /// This job alone.
    pub epsilon_milli: u64,
    /// Everything ever released of the dataset, once this job has run.
    pub epsilon_after_milli: u64,
    /// The least power of ten that is not below delta; see [`delta_exponent`].
    pub delta_exponent: i64,
}

/// Everything about the job that is neither who nor what data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Run {
    /// The job's purpose.
    pub purpose: String,
    /// The job's project.
    pub project: String,
    /// When the question is put.
    pub stage: Stage,
    /// The model.
    pub model: Model,
    /// The adapter to be used, for [`Action::UseAdapter`].
    pub adapter: Option<Digest>,
    /// The node.
    pub node: Node,
    /// What comes out.
    pub output: OutputKind,
    /// Under whose law the result ends up.
    pub result_jurisdiction: Jurisdiction,
    /// Whether anything but the result could get out while it runs.
    pub egress: bool,
    /// The room, if the node knows which it can make; a request without is refused.
    pub room: Option<Room>,
    /// Approvals that hold now: from [`crate::valid_approvals`].
    pub approvals: Approvals,
    /// What it costs in privacy; absent for a job that is not private.
    pub privacy: Option<Privacy>,
    /// How many rows it would read.
    pub rows: u64,
    /// Runs that the requester has had on this dataset, this one not counted, not even at release.
    pub runs: u64,
    /// Now.
    pub now: Timestamp,
}

/// A question to the policies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// What shall be done.
    pub action: Action,
    /// Who asks.
    pub principal: Principal,
    /// With which data.
    pub dataset: Dataset,
    /// Everything else.
    pub run: Run,
}

impl Request {
    /// The request as the policies see it. What is not known is left out, and what is left out refuses.
    pub fn to_document(&self) -> Value {
        let Request { action, principal, dataset, run } = self;
        let seconds = run.now.as_ms() / 1_000;
        let mut context = json!({
            "purpose": run.purpose,
            "project": run.project,
            "stage": run.stage.name(),
            "model": { "digest": run.model.digest.to_string() },
            "adapter": run.adapter.map_or_else(|| "none".to_owned(), |digest| digest.to_string()),
            "node": {
                "key": run.node.key.to_string(),
                "institution": run.node.institution.to_string(),
                "jurisdiction": run.node.jurisdiction.as_str(),
            },
            "result": {
                "kind": run.output.name(),
                "jurisdiction": run.result_jurisdiction.as_str(),
            },
            "egress": run.egress,
            "approvals": run.approvals.to_document(),
            "privacy": privacy(run.privacy),
            "rows": long(run.rows),
            "runs": long(run.runs),
            "time": {
                "epoch_seconds": long(seconds),
                "hour_utc": long(seconds / 3_600 % 24),
            },
        });
        if let Some(licence) = &run.model.licence {
            context["model"]["licence"] = json!(licence);
        }
        if let Some(room) = run.room {
            context["room"] = json!({ "name": room.name(), "strength": room as i64 });
        }
        let mut document = Map::new();
        document.insert("action".to_owned(), json!(action.name()));
        document.insert(
            "principal".to_owned(),
            json!({
                "key": principal.key.to_string(),
                "institution": principal.institution.to_string(),
                "jurisdiction": principal.jurisdiction.as_str(),
                "credentials": principal.credentials,
            }),
        );
        document.insert(
            "resource".to_owned(),
            json!({
                "digest": dataset.digest.to_string(),
                "licence": dataset.licence,
                "sensitivity": dataset.sensitivity.name(),
                "consent_purposes": dataset.consent_purposes,
                "languages": dataset.languages,
                "rows": long(dataset.rows),
                "subjects": long(dataset.subjects),
                "withdrawn": dataset.withdrawn,
            }),
        );
        document.insert("context".to_owned(), context);
        Value::Object(document)
    }
}

/// A job without differential privacy may reveal everything: no upper limit fits it.
fn privacy(privacy: Option<Privacy>) -> Value {
    match privacy {
        Some(privacy) => json!({
            "dp": true,
            "epsilon_milli": long(privacy.epsilon_milli),
            "epsilon_after_milli": long(privacy.epsilon_after_milli),
            "delta_exponent": privacy.delta_exponent,
        }),
        None => json!({
            "dp": false,
            "epsilon_milli": i64::MAX,
            "epsilon_after_milli": i64::MAX,
            "delta_exponent": 0,
        }),
    }
}

/// Cedar counts to 2^63 − 1. A larger number stops there: it is above every limit all the same.
fn long(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

/// The least `k` with `delta ≤ 10^k`; 0 for anything that is no probability below one.
pub fn delta_exponent(delta: Decimal) -> i64 {
    if delta.mantissa <= 0 || !delta.exponent_fits() {
        return 0;
    }
    let mut digits = 0;
    let mut power: i128 = 1;
    while power < i128::from(delta.mantissa) {
        power *= 10;
        digits += 1;
    }
    (digits + i64::from(delta.exp10)).min(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delta_rounds_to_the_weaker_promise() {
        let exponent = |mantissa, exp10| delta_exponent(Decimal { mantissa, exp10 });
        assert_eq!(exponent(1, -5), -5);
        assert_eq!(exponent(10, -6), -5);
        assert_eq!(exponent(2, -6), -5);
        assert_eq!(exponent(9_999, -9), -5);
        assert_eq!(exponent(10_001, -9), -4);
        assert_eq!(exponent(5, 0), 0);
        for odd in [(0, -5), (-1, -5), (i64::MIN, -18), (1, i8::MIN), (i64::MAX, 18)] {
            assert_eq!(exponent(odd.0, odd.1), 0, "{odd:?}");
        }
        assert_eq!(exponent(i64::MAX, -18), 0);
    }
}
