//! A node's commitment to one attempt, its renewal, and the wish to stop (specs/lease.md).

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::ids::{FederationId, MessageId, NodeId, PublicKey};
use crate::job::ATTEMPTS_MAX;
use crate::message::{Invalid, Kind, Message, require};
use crate::offer::node_message;
use crate::time::{DurationMs, Timestamp};
use crate::units::Rates;

/// Numbers a node's leases; never used twice, not even after a crash or a lost log
/// (specs/lease.md §2).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, Default)]
#[serde(deny_unknown_fields)]
pub struct Fence {
    /// The node's log epoch.
    pub epoch: u32,
    /// Counts the node's starts within the epoch.
    pub incarnation: u32,
    /// Counts leases within the incarnation.
    pub sequence: u64,
}

impl fmt::Display for Fence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.epoch, self.incarnation, self.sequence)
    }
}

impl fmt::Debug for Fence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Fence({self})")
    }
}

/// A node's durable commitment to run one attempt: the commit point of a job.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Lease {
    /// Which federation.
    pub federation: FederationId,
    /// The node.
    pub signer: NodeId,
    /// The charter version relied on.
    pub charter: MessageId,
    /// The job.
    pub job: MessageId,
    /// The grant.
    pub grant: MessageId,
    /// The assignment that it answers.
    pub assign: MessageId,
    /// Which attempt.
    pub attempt: u16,
    /// The fence.
    pub fence: Fence,
    /// The slot that it takes.
    pub slot: u16,
    /// What the work costs.
    pub rates: Rates,
    /// How long it lasts without renewal, on the node's monotonic clock.
    pub ttl_ms: DurationMs,
    /// When it was taken.
    pub issued: Timestamp,
}

node_message!(Lease, Lease, 1, |lease| {
    require((1..=ATTEMPTS_MAX).contains(&lease.attempt), "attempt", "1 to 64")?;
    require(lease.ttl_ms.as_ms() > 0, "ttl_ms", "more than 0")
});

/// The node is still at work. Not a leaf of any log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LeaseRenewal {
    /// Which federation.
    pub federation: FederationId,
    /// The node.
    pub signer: NodeId,
    /// The lease.
    pub lease: MessageId,
    /// The job.
    pub job: MessageId,
    /// Counts the lease's renewals from 1.
    pub sequence: u32,
    /// Tokens written so far in this attempt, those taken over from earlier attempts left out.
    pub tokens_done: u32,
    /// How long the lease lasts from here.
    pub ttl_ms: DurationMs,
    /// When it was renewed.
    pub issued: Timestamp,
}

node_message!(LeaseRenewal, LeaseRenewal, 1, |renewal| {
    require(renewal.sequence >= 1, "sequence", "at least 1")?;
    require(renewal.ttl_ms.as_ms() > 0, "ttl_ms", "more than 0")
});

/// The researcher or the broker wants an attempt, or the whole job, to stop.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cancel {
    /// Which federation.
    pub federation: FederationId,
    /// The researcher (to home), or the broker (to the node).
    pub signer: PublicKey,
    /// The job.
    pub job: MessageId,
    /// One attempt only; absent for the whole job.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attempt: Option<u16>,
    /// Why.
    pub why: CancelWhy,
    /// When.
    pub issued: Timestamp,
}

/// Why something is to stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CancelWhy {
    /// The researcher asked.
    Researcher,
    /// The attempt's lease came too late or lapsed, and another attempt goes on.
    Superseded,
    /// The job's deadline has passed.
    Deadline,
}

node_message!(Cancel, Cancel, 1, |cancel| {
    require(cancel.attempt.is_none_or(|attempt| attempt >= 1), "attempt", "at least 1")
});
