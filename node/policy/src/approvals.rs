//! From signed approvals to what a policy sees: which of them hold for exactly this run, and why the others do not
//! (specs/policy.md §5).
//!
//! Signatures and whether a key has the role that it claims are the caller's; here it is about what was approved.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use allmend_protocol::ids::{Digest, MessageId, NodeId, PublicKey};
use allmend_protocol::time::Timestamp;
use serde_json::{Value, json};

use crate::vocabulary::obligation;

/// What a person decided, bound to exact bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Approval {
    /// The job.
    pub job: MessageId,
    /// The digest of the three policies together ([`crate::Layers::digest`]).
    pub policy: Digest,
    /// The dataset version.
    pub dataset: Digest,
    /// The node.
    pub node: NodeId,
    /// What it meets, e.g. `approve:data-steward`.
    pub obligation: String,
    /// Yes or no.
    pub ruling: Ruling,
    /// The person's key.
    pub by: PublicKey,
    /// When it was given.
    pub issued: Timestamp,
    /// Holds until here, exclusive.
    pub expires: Timestamp,
    /// For how many runs.
    pub runs_max: u32,
    /// How many it has been used for.
    pub runs_used: u32,
    /// Digests of agreements and ethics documents that it names.
    pub documents: Vec<Digest>,
}

/// Yes or no.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ruling {
    /// It may be done.
    Approve,
    /// It may not; why, in the person's words.
    Refuse(String),
}

/// What is about to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Subject {
    /// The job.
    pub job: MessageId,
    /// The digest of the three policies together.
    pub policy: Digest,
    /// The dataset version.
    pub dataset: Digest,
    /// The node.
    pub node: NodeId,
}

/// A thing to which an approval is bound.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bound {
    /// The job.
    Job,
    /// The policies.
    Policy,
    /// The dataset version.
    Dataset,
    /// The node.
    Node,
}

/// Why an approval does not count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// It is for something else.
    For(Bound),
    /// It is not valid yet.
    NotYet,
    /// It is not valid any more.
    Expired,
    /// All its runs have been used.
    UsedUp,
    /// It meets no obligation that anybody knows.
    UnknownObligation,
    /// The same role has decided anew since.
    Superseded,
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Why::For(Bound::Job) => "it is for another job: ask again for this one",
            Why::For(Bound::Policy) => {
                "a policy has changed since: the approval must be given again"
            }
            Why::For(Bound::Dataset) => {
                "it is for another version of the dataset: ask again, or name that version"
            }
            Why::For(Bound::Node) => "it is for another node: run there, or ask again for this one",
            Why::NotYet => "it was issued later than now: check the clocks",
            Why::Expired => "it has expired: ask again",
            Why::UsedUp => "all the runs that it allows have been used: ask again",
            Why::UnknownObligation => "it meets no obligation that this release knows",
            Why::Superseded => "it has been replaced by a later decision",
        })
    }
}

/// An approval that does not count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rejected<'a> {
    /// Which.
    pub approval: &'a Approval,
    /// Why not.
    pub why: Why,
}

/// What holds now.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Approvals {
    given: BTreeMap<String, Given>,
    declined: BTreeMap<String, String>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Given {
    by: PublicKey,
    documents: BTreeSet<Digest>,
}

impl Approvals {
    /// Nobody has decided anything.
    pub fn none() -> Approvals {
        Approvals::default()
    }

    /// Obligations that are met.
    pub fn given(&self) -> impl Iterator<Item = &str> {
        self.given.keys().map(String::as_str)
    }

    /// Obligations that were refused, with the person's reason.
    pub fn declined(&self) -> impl Iterator<Item = (&str, &str)> {
        self.declined.iter().map(|(name, why)| (name.as_str(), why.as_str()))
    }

    /// As policies see it. The reason of a person who refused is not among it: it is for the researcher only.
    pub(crate) fn to_document(&self) -> Value {
        let by: BTreeSet<String> = self
            .given
            .iter()
            .filter_map(|(name, given)| Some(format!("{}:{}", obligation(name)?.role, given.by)))
            .collect();
        let documents: BTreeSet<String> = self
            .given
            .values()
            .flat_map(|given| given.documents.iter().map(Digest::to_string))
            .collect();
        json!({
            "given": self.given.keys().collect::<Vec<_>>(),
            "declined": self.declined.keys().collect::<Vec<_>>(),
            "by": by,
            "documents": documents,
        })
    }
}

/// Sorts approvals into what holds at `now` for `subject` and what does not.
///
/// Of several decisions on one obligation the latest counts, so that a person can change their mind; of two at the
/// same instant the refusal. A refusal counts whatever number of runs it names; it expires like an approval.
pub fn valid_approvals<'a>(
    approvals: &'a [Approval],
    subject: &Subject,
    now: Timestamp,
) -> (Approvals, Vec<Rejected<'a>>) {
    let mut latest: BTreeMap<&str, &Approval> = BTreeMap::new();
    let mut rejected = Vec::new();
    for approval in approvals {
        if let Some(why) = fault(approval, subject, now) {
            rejected.push(Rejected { approval, why });
            continue;
        }
        let order = |decision: &Approval| (decision.issued, decision.ruling != Ruling::Approve);
        match latest.get(approval.obligation.as_str()).copied() {
            Some(other) if order(other) >= order(approval) => {
                rejected.push(Rejected { approval, why: Why::Superseded });
            }
            Some(other) => {
                rejected.push(Rejected { approval: other, why: Why::Superseded });
                latest.insert(&approval.obligation, approval);
            }
            None => {
                latest.insert(&approval.obligation, approval);
            }
        }
    }
    let mut valid = Approvals::default();
    for (name, approval) in latest {
        match &approval.ruling {
            // Looked at last: an older approval with runs left must not outlive a newer one that is used up.
            Ruling::Approve if approval.runs_used >= approval.runs_max => {
                rejected.push(Rejected { approval, why: Why::UsedUp });
            }
            Ruling::Approve => {
                let documents = approval.documents.iter().copied().collect();
                valid.given.insert(name.to_owned(), Given { by: approval.by, documents });
            }
            Ruling::Refuse(why) => {
                valid.declined.insert(name.to_owned(), why.clone());
            }
        }
    }
    (valid, rejected)
}

/// Why an approval is of no use here, whatever else was decided.
fn fault(approval: &Approval, subject: &Subject, now: Timestamp) -> Option<Why> {
    if obligation(&approval.obligation).is_none() {
        return Some(Why::UnknownObligation);
    }
    let bindings = [
        (approval.job == subject.job, Bound::Job),
        (approval.dataset == subject.dataset, Bound::Dataset),
        (approval.policy == subject.policy, Bound::Policy),
        (approval.node == subject.node, Bound::Node),
    ];
    if let Some((_, bound)) = bindings.into_iter().find(|(holds, _)| !holds) {
        return Some(Why::For(bound));
    }
    if approval.issued > now {
        return Some(Why::NotYet);
    }
    (now >= approval.expires).then_some(Why::Expired)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp::from_ms(1_000_000);

    fn digest(byte: u8) -> Digest {
        Digest::from_bytes([byte; 32])
    }

    fn subject() -> Subject {
        Subject {
            job: MessageId::from_bytes([1; 32]),
            policy: digest(2),
            dataset: digest(3),
            node: NodeId::from_bytes([4; 32]),
        }
    }

    fn approval() -> Approval {
        let Subject { job, policy, dataset, node } = subject();
        Approval {
            job,
            policy,
            dataset,
            node,
            obligation: "approve:data-steward".to_owned(),
            ruling: Ruling::Approve,
            by: PublicKey::from_bytes([5; 32]),
            issued: Timestamp::from_ms(500_000),
            expires: Timestamp::from_ms(2_000_000),
            runs_max: 2,
            runs_used: 1,
            documents: vec![digest(9)],
        }
    }

    /// Goal: any one thing that differs voids an approval, and the reason names that thing.
    #[test]
    fn an_approval_is_for_exactly_one_thing() {
        type Change = fn(&mut Approval);
        let cases: [(Change, Why); 9] = [
            (|a| a.job = MessageId::from_bytes([8; 32]), Why::For(Bound::Job)),
            (|a| a.policy = digest(8), Why::For(Bound::Policy)),
            (|a| a.dataset = digest(8), Why::For(Bound::Dataset)),
            (|a| a.node = NodeId::from_bytes([8; 32]), Why::For(Bound::Node)),
            (|a| a.issued = Timestamp::from_ms(1_000_001), Why::NotYet),
            (|a| a.expires = NOW, Why::Expired),
            (|a| a.runs_used = 2, Why::UsedUp),
            (|a| a.runs_max = 0, Why::UsedUp),
            (|a| a.obligation = "approve:nobody".to_owned(), Why::UnknownObligation),
        ];
        let good = [approval()];
        let (valid, rejected) = valid_approvals(&good, &subject(), NOW);
        assert_eq!(valid.given().collect::<Vec<_>>(), ["approve:data-steward"]);
        assert!(rejected.is_empty());
        for (change, why) in cases {
            let mut changed = approval();
            change(&mut changed);
            let list = [changed];
            let (valid, rejected) = valid_approvals(&list, &subject(), NOW);
            assert_eq!(valid, Approvals::none(), "{why:?}");
            assert_eq!(rejected.iter().map(|r| r.why).collect::<Vec<_>>(), [why]);
        }
    }

    #[test]
    fn the_latest_word_counts_and_a_refusal_breaks_a_tie() {
        let at = |ms, ruling| Approval { issued: Timestamp::from_ms(ms), ruling, ..approval() };
        let no = || Ruling::Refuse("not with this model".to_owned());
        for (list, given) in [
            ([at(1, Ruling::Approve), at(2, no())], false),
            ([at(1, no()), at(2, Ruling::Approve)], true),
            ([at(2, no()), at(2, Ruling::Approve)], false),
            ([at(2, Ruling::Approve), at(2, no())], false),
        ] {
            let (valid, rejected) = valid_approvals(&list, &subject(), NOW);
            assert_eq!(valid.given().count() == 1, given, "{list:?}");
            assert_eq!(valid.declined().count() == 1, !given, "{list:?}");
            assert_eq!(rejected.len(), 1);
        }
    }

    #[test]
    fn policies_see_roles_keys_and_documents() {
        let list = [approval()];
        let (valid, _) = valid_approvals(&list, &subject(), NOW);
        let document = valid.to_document();
        assert_eq!(document["by"], json!([format!("data-steward:{}", "05".repeat(32))]));
        assert_eq!(document["documents"], json!([digest(9).to_string()]));
    }
}
