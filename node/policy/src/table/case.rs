//! One case of a table: reading it, and making the request that it describes.

use std::collections::BTreeMap;

use allmend_protocol::ids::{Digest, MessageId, NodeId, PublicKey};
use allmend_protocol::time::{DurationMs, Timestamp};
use serde::Deserialize;
use serde_json::Value;
use toml::Table;

use super::TableError;
use super::requests::merge;
use crate::approvals::{Approval, Ruling, Subject, valid_approvals};
use crate::attributes::at;
use crate::layer::Layers;

/// The most approvals in one case.
const APPROVALS_MAX: usize = 32;
/// Stands for something that is not what the case is about.
const OTHER: [u8; 32] = [0xfe; 32];
/// The job of every case.
const JOB: [u8; 32] = [0x77; 32];
/// Who approves, unless a case says otherwise.
const APPROVER: [u8; 32] = [0x88; 32];

/// One case.
#[derive(Debug)]
pub(super) struct Case {
    /// For error messages.
    pub(super) place: String,
    pub(super) name: String,
    pub(super) layers: Table,
    pub(super) expect: String,
    pub(super) reason: Option<String>,
    pub(super) obligations: Option<Vec<String>>,
    pub(super) at_release: Option<Vec<String>>,
    pub(super) says: Option<String>,
    request: String,
    action: Option<String>,
    set: Table,
    unset: Vec<String>,
    approvals: Vec<GivenApproval>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct CaseText {
    name: String,
    request: Option<String>,
    action: Option<String>,
    #[serde(default)]
    set: Table,
    #[serde(default)]
    unset: Vec<String>,
    #[serde(default)]
    layers: Table,
    #[serde(default)]
    approvals: Vec<GivenApproval>,
    expect: String,
    reason: Option<String>,
    obligations: Option<Vec<String>>,
    at_release: Option<Vec<String>>,
    says: Option<String>,
}

/// An approval as a table writes it; whatever is left out fits the case.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct GivenApproval {
    obligation: String,
    /// `approve` or `refuse`.
    #[serde(default)]
    ruling: Option<String>,
    #[serde(default)]
    why: String,
    /// `other`, or a digest or key in hexadecimal; likewise the next three.
    job: Option<String>,
    policy: Option<String>,
    dataset: Option<String>,
    node: Option<String>,
    by: Option<String>,
    /// Minutes from now; negative lies in the past.
    issued_in: Option<i64>,
    expires_in: Option<i64>,
    runs_max: Option<u32>,
    runs_used: Option<u32>,
    #[serde(default)]
    documents: Vec<Digest>,
}

impl Case {
    pub(super) fn read(
        index: usize,
        value: &toml::Value,
        request: &str,
    ) -> Result<Case, TableError> {
        let name = value.get("name").and_then(toml::Value::as_str).unwrap_or("without a name");
        let place = format!("case {} ({name})", index + 1);
        let text: CaseText = value
            .clone()
            .try_into()
            .map_err(|error: toml::de::Error| TableError::new(&place, error.message()))?;
        if !["allow", "refuse", "pending"].contains(&text.expect.as_str()) {
            return Err(TableError::new(&place, "expect: write allow, refuse or pending"));
        }
        if text.approvals.len() > APPROVALS_MAX {
            return Err(TableError::new(&place, format!("at most {APPROVALS_MAX} approvals")));
        }
        Ok(Case {
            place,
            name: text.name,
            layers: text.layers,
            expect: text.expect,
            reason: text.reason,
            obligations: text.obligations,
            at_release: text.at_release,
            says: text.says,
            request: text.request.unwrap_or_else(|| request.to_owned()),
            action: text.action,
            set: text.set,
            unset: text.unset,
            approvals: text.approvals,
        })
    }

    /// The request that it describes.
    pub(super) fn document(
        &self,
        requests: &BTreeMap<String, Value>,
        layers: &Layers<'_>,
    ) -> Result<Value, TableError> {
        let mut document = requests.get(&self.request).cloned().ok_or_else(|| {
            let known: Vec<&str> = requests.keys().map(String::as_str).collect();
            self.error(format!("request {:?}: known are {}", self.request, known.join(", ")))
        })?;
        if let Some(action) = &self.action {
            document["action"] = Value::String(action.clone());
        }
        for (key, value) in &self.set {
            merge(&mut document, key, value).map_err(|error| self.error(error.to_string()))?;
        }
        if !self.approvals.is_empty() {
            let approvals = self.approvals(&document, layers)?;
            document["context"]["approvals"] = approvals;
        }
        for path in &self.unset {
            let (record, key) = path.rsplit_once('.').unwrap_or(("", path));
            let pointer = if record.is_empty() {
                String::new()
            } else {
                format!("/{}", record.replace('.', "/"))
            };
            document
                .pointer_mut(&pointer)
                .and_then(Value::as_object_mut)
                .and_then(|record| record.remove(key))
                .ok_or_else(|| self.error(format!("unset: there is no {path}")))?;
        }
        Ok(document)
    }

    fn error(&self, problem: impl Into<String>) -> TableError {
        TableError::new(&self.place, problem)
    }

    /// What the case's approvals come to, by the same function as in a node.
    fn approvals(&self, document: &Value, layers: &Layers<'_>) -> Result<Value, TableError> {
        let id = |path: &str| {
            let text = at(document, path).and_then(Value::as_str).unwrap_or_default();
            text.parse::<Digest>()
                .map_err(|error| self.error(format!("approvals need {path}: {error}")))
        };
        let seconds = at(document, "context.time.epoch_seconds")
            .and_then(Value::as_u64)
            .ok_or_else(|| self.error("approvals need context.time.epoch_seconds"))?;
        let now = Timestamp::from_ms(seconds.saturating_mul(1_000));
        let subject = Subject {
            job: MessageId::from_bytes(JOB),
            policy: layers.digest(),
            dataset: id("resource.digest")?,
            node: NodeId::from_bytes(*id("context.node.key")?.as_bytes()),
        };
        let given: Vec<Approval> = self
            .approvals
            .iter()
            .map(|given| given.approval(&subject, now).map_err(|problem| self.error(problem)))
            .collect::<Result<_, _>>()?;
        let (valid, _rejected) = valid_approvals(&given, &subject, now);
        Ok(valid.to_document())
    }
}

impl GivenApproval {
    fn approval(&self, subject: &Subject, now: Timestamp) -> Result<Approval, String> {
        let id = |key: &str, text: &Option<String>, fits: [u8; 32]| match text.as_deref() {
            None => Ok(fits),
            Some("other") => Ok(OTHER),
            Some(text) => text
                .parse::<Digest>()
                .map(|digest| *digest.as_bytes())
                .map_err(|error| format!("approvals.{key}: {error}, or write \"other\"")),
        };
        let minutes = |minutes: i64| {
            let length = DurationMs::from_secs(minutes.unsigned_abs().saturating_mul(60));
            if minutes < 0 { now.minus(length) } else { now.plus(length) }
        };
        let ruling = match self.ruling.as_deref() {
            None | Some("approve") => Ruling::Approve,
            Some("refuse") => Ruling::Refuse(self.why.clone()),
            Some(_) => return Err("approvals.ruling: write approve or refuse".to_owned()),
        };
        Ok(Approval {
            job: MessageId::from_bytes(id("job", &self.job, *subject.job.as_bytes())?),
            policy: Digest::from_bytes(id("policy", &self.policy, *subject.policy.as_bytes())?),
            dataset: Digest::from_bytes(id("dataset", &self.dataset, *subject.dataset.as_bytes())?),
            node: NodeId::from_bytes(id("node", &self.node, *subject.node.as_bytes())?),
            obligation: self.obligation.clone(),
            ruling,
            by: PublicKey::from_bytes(id("by", &self.by, APPROVER)?),
            issued: minutes(self.issued_in.unwrap_or(-60)),
            expires: minutes(self.expires_in.unwrap_or(1_440)),
            runs_max: self.runs_max.unwrap_or(1),
            runs_used: self.runs_used.unwrap_or(0),
            documents: self.documents.clone(),
        })
    }
}
