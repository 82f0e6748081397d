//! What was done and what counts (specs/receipt.md, specs/settlement.md).

use serde::{Deserialize, Serialize};

use crate::ids::{Digest, FederationId, InstitutionId, MessageId, NodeId, PublicKey};
use crate::job::ATTEMPTS_MAX;
use crate::message::{Invalid, Kind, Message, require, require_text};
use crate::offer::node_message;
use crate::time::{DurationMs, Timestamp};
use crate::units::{Credits, Decimal};

/// What a node did under one lease.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Receipt {
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
    /// The lease; one receipt each.
    pub lease: MessageId,
    /// Which attempt.
    pub attempt: u16,
    /// How it ended.
    pub outcome: Outcome,
    /// What was used.
    pub usage: Usage,
    /// What it costs at the lease's rates.
    pub cost: Credits,
    /// Salted digest of the output, where there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub output: Option<Digest>,
    /// The model that ran.
    pub model: Digest,
    /// Its licence, as its file says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model_licence: Option<String>,
    /// The engine's numerics version: equal versions give equal outputs.
    pub numerics: String,
    /// The contract, for work on others' data.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub contract: Option<MessageId>,
    /// When the work began.
    pub started: Timestamp,
    /// When it ended.
    pub ended: Timestamp,
}

/// How an attempt ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Outcome {
    /// All of the work was done.
    Finished {
        /// `stop`, `stop-string` or `length`.
        reason: String,
    },
    /// The work failed; trying again elsewhere may or may not help.
    Failed {
        /// Whether the same job would fail anywhere (e.g. a prompt beyond the context).
        permanent: bool,
        /// In words, without any of the input.
        why: String,
    },
    /// Somebody cancelled it.
    Cancelled,
    /// The node stopped or crashed while at it.
    Interrupted,
    /// The lease ran out before the work was done.
    Lapsed,
}

/// What an attempt used.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Usage {
    /// Tokens of prompt read.
    pub prompt_tokens: u64,
    /// Tokens written in this attempt.
    pub completion_tokens: u64,
    /// Tokens taken over from earlier attempts; not paid again.
    pub forced_tokens: u64,
    /// Time on the device, over all of its units together.
    pub device_time_ms: DurationMs,
    /// Energy, where it was measured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub energy: Option<Energy>,
}

/// Measured energy and what measured it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Energy {
    /// Joules.
    pub joules: Decimal,
    /// E.g. `rapl`, `nvml`.
    pub source: String,
}

node_message!(Receipt, Receipt, 1, |receipt| {
    require((1..=ATTEMPTS_MAX).contains(&receipt.attempt), "attempt", "1 to 64")?;
    require(receipt.started <= receipt.ended, "ended", "not before started")?;
    require_text(&receipt.numerics, 64, "numerics")?;
    require_text(receipt.model_licence.as_deref().unwrap_or(""), 120, "model_licence")?;
    if let Some(energy) = &receipt.usage.energy {
        require_text(&energy.source, 32, "usage.energy.source")?;
        require(
            energy.joules.exponent_fits() && energy.joules.mantissa >= 0,
            "usage.energy.joules",
            "not negative, exponent within 18",
        )?;
    }
    match &receipt.outcome {
        Outcome::Finished { reason } => require_text(reason, 32, "outcome.reason"),
        Outcome::Failed { why, .. } => require_text(why, 240, "outcome.why"),
        Outcome::Cancelled | Outcome::Interrupted | Outcome::Lapsed => Ok(()),
    }
});

/// The home node counts a grant's receipts, once.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settlement {
    /// Which federation.
    pub federation: FederationId,
    /// The home node.
    pub signer: NodeId,
    /// The charter version relied on.
    pub charter: MessageId,
    /// The job.
    pub job: MessageId,
    /// The grant that is used up by this.
    pub grant: MessageId,
    /// The institution that pays.
    pub payer: InstitutionId,
    /// How the job ended.
    pub outcome: JobOutcome,
    /// Who gets what, sorted by lease.
    #[serde(deserialize_with = "crate::encoding::list")]
    pub shares: Vec<Share>,
    /// Sum of the shares.
    pub total: Credits,
    /// What is left of the cap.
    pub refunded: Credits,
    /// When it was counted.
    pub issued: Timestamp,
}

/// How a whole job ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum JobOutcome {
    /// One attempt finished.
    Finished,
    /// No attempt finished.
    Failed,
    /// The researcher cancelled it.
    Cancelled,
    /// Its deadline passed.
    Expired,
}

impl JobOutcome {
    /// The outcome's name as on the wire.
    pub const fn name(self) -> &'static str {
        match self {
            JobOutcome::Finished => "finished",
            JobOutcome::Failed => "failed",
            JobOutcome::Cancelled => "cancelled",
            JobOutcome::Expired => "expired",
        }
    }
}

/// What one lease is paid.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Share {
    /// The lease.
    pub lease: MessageId,
    /// Its receipt.
    pub receipt: MessageId,
    /// The node.
    pub node: NodeId,
    /// The node's institution, which is paid.
    pub institution: InstitutionId,
    /// How much: at most what the receipt asks.
    pub cost: Credits,
}

node_message!(Settlement, Settlement, 1, |settlement| {
    require(settlement.shares.len() <= usize::from(ATTEMPTS_MAX), "shares", "at most 64")?;
    require(
        settlement.shares.windows(2).all(|pair| pair[0].lease < pair[1].lease),
        "shares",
        "sorted by lease, no repeats",
    )?;
    let sum =
        settlement.shares.iter().try_fold(Credits::ZERO, |sum, share| sum.checked_add(share.cost));
    require(sum == Some(settlement.total), "total", "the sum of the shares")?;
    require(settlement.total.checked_add(settlement.refunded).is_some(), "refunded", "fits")
});
