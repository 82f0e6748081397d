//! Permission to spend, and its use for one attempt (specs/grant.md).

use serde::{Deserialize, Serialize};

use crate::ids::{Digest, FederationId, MessageId, NodeId, PublicKey, ResearcherId};
use crate::job::ATTEMPTS_MAX;
use crate::message::{Invalid, Kind, Message, require};
use crate::offer::node_message;
use crate::time::Timestamp;
use crate::units::Credits;

/// The most brokers of one grant.
pub const BROKERS_MAX: usize = 8;

/// The home node lets named brokers spend on one job, up to a cap.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Grant {
    /// Which federation.
    pub federation: FederationId,
    /// The home node, which pays.
    pub signer: NodeId,
    /// The charter version relied on.
    pub charter: MessageId,
    /// The governance checkpoint relied on, if any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub governance: Option<Digest>,
    /// The job.
    pub job: MessageId,
    /// Who asked.
    pub researcher: ResearcherId,
    /// The most that all attempts may cost together.
    pub cap: Credits,
    /// The most leases over all brokers.
    pub attempts: u16,
    /// Brokers in order, each with its own range of attempt numbers.
    #[serde(deserialize_with = "crate::encoding::list")]
    pub brokers: Vec<BrokerRange>,
    /// When it was granted.
    pub issued: Timestamp,
    /// No lease is taken after this.
    pub deadline: Timestamp,
    /// Receipts that come later do not count.
    pub settle_by: Timestamp,
}

/// One broker's attempt numbers, both ends included; the first attempt is 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BrokerRange {
    /// The broker.
    pub node: NodeId,
    /// Its first attempt.
    pub first: u16,
    /// Its last attempt.
    pub last: u16,
}

impl Grant {
    /// Whether `broker` may make `attempt`.
    pub fn allows(&self, broker: NodeId, attempt: u16) -> bool {
        self.brokers
            .iter()
            .any(|range| range.node == broker && (range.first..=range.last).contains(&attempt))
    }
}

node_message!(Grant, Grant, 1, |grant| {
    require((1..=ATTEMPTS_MAX).contains(&grant.attempts), "attempts", "1 to 64")?;
    require((1..=BROKERS_MAX).contains(&grant.brokers.len()), "brokers", "1 to 8")?;
    let mut next = 1;
    for range in &grant.brokers {
        require(range.first == next && range.last >= range.first, "brokers", "ranges in order")?;
        require(range.last <= ATTEMPTS_MAX, "brokers", "ranges sum to attempts")?;
        next = range.last + 1;
    }
    require(next == grant.attempts + 1, "brokers", "ranges sum to attempts")?;
    require(grant.issued < grant.deadline, "deadline", "after issued")?;
    require(grant.deadline <= grant.settle_by, "settle_by", "not before deadline")
});

/// A broker gives one attempt to a node. Logged before it is sent: a broker that lost its log has
/// spent its range. Grant, job spec and certificate travel beside it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Assign {
    /// Which federation.
    pub federation: FederationId,
    /// The broker.
    pub signer: NodeId,
    /// The charter version relied on.
    pub charter: MessageId,
    /// The job.
    pub job: MessageId,
    /// The grant.
    pub grant: MessageId,
    /// Which attempt, within the broker's range.
    pub attempt: u16,
    /// To whom.
    pub node: NodeId,
    /// The offer that it takes.
    pub offer: MessageId,
    /// Digest of everything that was considered, so that the choice can be replayed.
    pub considered: Digest,
    /// When it was given.
    pub issued: Timestamp,
    /// A lease must be answered by then.
    pub respond_by: Timestamp,
}

node_message!(Assign, Assign, 1, |assign| {
    require((1..=ATTEMPTS_MAX).contains(&assign.attempt), "attempt", "1 to 64")?;
    require(assign.issued < assign.respond_by, "respond_by", "after issued")
});
