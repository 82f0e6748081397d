//! What comes out: the verdict, why, and what was looked at. Strings, integers and truth values only, so that a
//! contract can carry it in strict DAG-CBOR and `show JOB --json` can print it.

use allmend_protocol::ids::Digest;
use serde::{Deserialize, Serialize};

use crate::layer::LayerName;

/// The answer to a request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Decision {
    /// Yes, no, or not before somebody has said yes.
    pub verdict: Verdict,
    /// Each layer's own answer, from the widest to the narrowest.
    pub layers: Vec<LayerReport>,
    /// Which texts were asked.
    pub policies: PolicyDigests,
    /// The whole request, attribute by attribute.
    pub attributes: Vec<AttributeLine>,
    /// What will have to be approved before an output leaves, as far as can be said before the run.
    pub at_release: Vec<Obligation>,
}

/// Yes, no, or not yet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// Every layer allows it.
    Allow,
    /// It may not be; why.
    Refuse(Vec<Reason>),
    /// It may be once these people have approved.
    Pending(Vec<Obligation>),
}

impl Verdict {
    /// Whether it may be done now.
    pub const fn is_allow(&self) -> bool {
        matches!(self, Verdict::Allow)
    }

    /// The word for it.
    pub const fn name(&self) -> &'static str {
        match self {
            Verdict::Allow => "allow",
            Verdict::Refuse(_) => "refuse",
            Verdict::Pending(_) => "pending",
        }
    }

    /// Both must hold: for a job that reads several datasets. Refusals outweigh what is pending.
    #[must_use]
    pub fn and(self, other: Verdict) -> Verdict {
        match (self, other) {
            (Verdict::Refuse(mut left), Verdict::Refuse(right)) => {
                left.extend(right);
                Verdict::Refuse(left)
            }
            (refuse @ Verdict::Refuse(_), _) | (_, refuse @ Verdict::Refuse(_)) => refuse,
            (Verdict::Pending(mut left), Verdict::Pending(right)) => {
                left.extend(right);
                Verdict::Pending(left)
            }
            (pending @ Verdict::Pending(_), Verdict::Allow)
            | (Verdict::Allow, pending @ Verdict::Pending(_)) => pending,
            (Verdict::Allow, Verdict::Allow) => Verdict::Allow,
        }
    }
}

/// Why not.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Reason {
    /// Whose policy, if it is one's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub layer: Option<LayerName>,
    /// The policy's `@id`; for other reasons the kind's name.
    pub id: String,
    /// What sort of reason.
    pub kind: ReasonKind,
    /// Why, in a sentence without its full stop.
    pub text: String,
    /// What would have to be different, likewise.
    pub change: String,
    /// Where in that policy's text, if it is one's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub line: Option<u32>,
}

/// What sort of reason.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ReasonKind {
    /// A rule forbids it.
    Forbidden,
    /// No rule permits it.
    NotPermitted,
    /// A person was asked and said no.
    Declined,
    /// The layer has no policy.
    NoPolicy,
    /// The layer's policy cannot be read, or does not fit the schema.
    BadPolicy,
    /// A policy could not be evaluated to the end.
    Evaluation,
    /// The request lacks an attribute.
    MissingAttribute,
    /// An attribute is not of its kind.
    TypeMismatch,
    /// The request has something that no policy knows.
    UnknownAttribute,
    /// The request's values contradict each other, or what the schema says.
    BadRequest,
    /// The dataset has been taken back.
    Withdrawn,
    /// Something besides the result could get out.
    Egress,
}

impl ReasonKind {
    /// As on the wire.
    pub const fn name(self) -> &'static str {
        match self {
            ReasonKind::Forbidden => "forbidden",
            ReasonKind::NotPermitted => "not-permitted",
            ReasonKind::Declined => "declined",
            ReasonKind::NoPolicy => "no-policy",
            ReasonKind::BadPolicy => "bad-policy",
            ReasonKind::Evaluation => "evaluation",
            ReasonKind::MissingAttribute => "missing-attribute",
            ReasonKind::TypeMismatch => "type-mismatch",
            ReasonKind::UnknownAttribute => "unknown-attribute",
            ReasonKind::BadRequest => "bad-request",
            ReasonKind::Withdrawn => "withdrawn",
            ReasonKind::Egress => "egress",
        }
    }
}

impl Reason {
    /// A reason that lies in the request, not in a policy.
    pub(crate) fn about_request(
        kind: ReasonKind,
        text: impl Into<String>,
        change: impl Into<String>,
    ) -> Reason {
        let (text, change) = (text.into(), change.into());
        Reason { layer: None, id: kind.name().to_owned(), kind, text, change, line: None }
    }

    /// A reason that lies in a layer as a whole.
    pub(crate) fn about_layer(
        layer: LayerName,
        kind: ReasonKind,
        text: impl Into<String>,
        change: impl Into<String>,
    ) -> Reason {
        Reason { layer: Some(layer), ..Reason::about_request(kind, text, change) }
    }

    /// The whole reason for a person: whose rule, why, what to change.
    pub fn sentence(&self) -> String {
        let whose = match (self.layer, self.kind) {
            (Some(layer), ReasonKind::Forbidden) => format!("{layer} rule \"{}\": ", self.id),
            (Some(layer), ReasonKind::Declined) => format!("{layer} rule \"{}\": ", self.id),
            _ => String::new(),
        };
        format!("{whose}{}; {}", self.text, self.change)
    }
}

/// What a person would have to do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Obligation {
    /// E.g. `approve:data-steward`.
    pub name: String,
    /// Whose policy asks for it.
    pub layer: LayerName,
    /// That policy's `@id`.
    pub policy: String,
    /// Why, in words.
    pub reason: String,
}

/// One layer's answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LayerReport {
    /// Which.
    pub layer: LayerName,
    /// Its answer alone.
    pub outcome: LayerOutcome,
    /// The `@id`s of the rules that settled it.
    pub decided_by: Vec<String>,
}

/// What one layer says by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LayerOutcome {
    /// Yes.
    Allow,
    /// No.
    Refuse,
    /// Not before somebody has approved.
    Pending,
    /// It was not asked: the request itself is not in order.
    NotAsked,
}

/// Digests of what was asked. Absent: there was no text.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PolicyDigests {
    /// The three together; what approvals and contracts name.
    pub all: Digest,
    /// The charter's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub charter: Option<Digest>,
    /// The institution's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub institution: Option<Digest>,
    /// The dataset's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dataset: Option<Digest>,
}

/// One attribute of the request and who looked at it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AttributeLine {
    /// E.g. `context.purpose`.
    pub path: String,
    /// As people write it.
    pub value: String,
    /// The rules whose conditions name it, as `layer/id`.
    pub read_by: Vec<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_outweighs_not_yet_outweighs_yes() {
        let no = || {
            Verdict::Refuse(vec![Reason::about_request(ReasonKind::Withdrawn, "withdrawn", "ask")])
        };
        let wait = || {
            Verdict::Pending(vec![Obligation {
                name: "approve:data-steward".into(),
                layer: LayerName::Dataset,
                policy: "ask-me".into(),
                reason: "ask me".into(),
            }])
        };
        assert_eq!(Verdict::Allow.and(Verdict::Allow), Verdict::Allow);
        assert_eq!(Verdict::Allow.and(wait()).name(), "pending");
        assert_eq!(wait().and(no()), no());
        assert_eq!(no().and(Verdict::Allow), no());
        assert!(matches!(no().and(no()), Verdict::Refuse(reasons) if reasons.len() == 2));
        assert!(matches!(wait().and(wait()), Verdict::Pending(list) if list.len() == 2));
    }
}
