//! Asking a node whether it would run a job, and its three answers (specs/offer.md).
//!
//! Asking is free: a probe holds no slot and no money.

use serde::{Deserialize, Serialize};

use crate::advert::AdvertOrder;
use crate::bytes::ByteString;
use crate::ids::{FederationId, MessageId, NodeId, PublicKey};
use crate::message::{Invalid, Kind, Message, require, require_text};
use crate::time::{DurationMs, Timestamp};
use crate::units::Rates;

/// The most reasons in one refusal.
pub const REASONS_MAX: usize = 8;
/// The longest explanation of one reason, in bytes.
pub const REASON_TEXT_BYTES_MAX: usize = 240;
/// The most obligations in one pending answer.
pub const OBLIGATIONS_MAX: usize = 8;

/// A broker asks whether a node would run a job. The job spec and the researcher's certificate
/// travel beside it ([`crate::bundle`]).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Probe {
    /// Which federation.
    pub federation: FederationId,
    /// The broker.
    pub signer: NodeId,
    /// The charter version relied on.
    pub charter: MessageId,
    /// The job.
    pub job: MessageId,
    /// Which attempt this would be.
    pub attempt: u16,
    /// Counts this broker's probes, so that answers to an old one are not taken for a new one's.
    pub sequence: u64,
    /// When it was asked.
    pub issued: Timestamp,
}

/// The node would run it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Offer {
    /// Which federation.
    pub federation: FederationId,
    /// The node.
    pub signer: NodeId,
    /// The charter version relied on.
    pub charter: MessageId,
    /// The probe that it answers.
    pub probe: MessageId,
    /// The job.
    pub job: MessageId,
    /// How long the job would wait before its first token could be computed.
    pub start_in_ms: DurationMs,
    /// What the work would cost.
    pub rates: Rates,
    /// The node's newest advert when it answered.
    pub advert: AdvertOrder,
    /// Until when the node keeps its word.
    pub expires: Timestamp,
}

/// The node will not run it, version 1: without a time to ask again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RefusalV1 {
    /// Which federation.
    pub federation: FederationId,
    /// The node.
    pub signer: NodeId,
    /// The charter version relied on.
    pub charter: MessageId,
    /// The probe or assignment that it answers.
    pub about: MessageId,
    /// The job.
    pub job: MessageId,
    /// Why.
    #[serde(deserialize_with = "crate::encoding::list")]
    pub reasons: Vec<Reason>,
}

/// The node will not run it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Refusal {
    /// Which federation.
    pub federation: FederationId,
    /// The node.
    pub signer: NodeId,
    /// The charter version relied on.
    pub charter: MessageId,
    /// The probe or assignment that it answers.
    pub about: MessageId,
    /// The job.
    pub job: MessageId,
    /// Why.
    #[serde(deserialize_with = "crate::encoding::list")]
    pub reasons: Vec<Reason>,
    /// When asking again could help; absent when it would not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_after_ms: Option<DurationMs>,
}

/// One reason for a refusal: a class for machines and a sentence for people.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Reason {
    /// What sort of reason.
    pub class: ReasonClass,
    /// In words; says what would have to be different.
    pub text: String,
}

/// What sort of reason. Tells a broker whether to ask again, later, or never.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ReasonClass {
    /// The owner's policy says no.
    Policy,
    /// The job may not run in this jurisdiction.
    Jurisdiction,
    /// The job may not run at this institution.
    Institution,
    /// The model is neither here nor fetchable.
    Model,
    /// The dataset is not here.
    Dataset,
    /// Not enough memory.
    Memory,
    /// No such device.
    Device,
    /// The prompt or answer would exceed the context or a limit of the node.
    Size,
    /// No slot is free.
    Busy,
    /// The node takes nothing new at the moment.
    Draining,
    /// The node's disk is full.
    Disk,
    /// The cap is below the price.
    Price,
    /// The deadline cannot be met, or has passed.
    Deadline,
    /// A signature, certificate, grant or charter in the chain does not hold.
    Chain,
    /// The work's type or a message's version is not spoken.
    Version,
    /// The attempt has a lease or receipt already, or is out of the broker's range.
    Attempt,
}

impl ReasonClass {
    /// Whether the same question could be answered differently in a while.
    pub const fn passes(self) -> bool {
        matches!(self, ReasonClass::Busy | ReasonClass::Draining | ReasonClass::Disk)
    }

    /// The class's name as on the wire.
    pub const fn name(self) -> &'static str {
        match self {
            ReasonClass::Policy => "policy",
            ReasonClass::Jurisdiction => "jurisdiction",
            ReasonClass::Institution => "institution",
            ReasonClass::Model => "model",
            ReasonClass::Dataset => "dataset",
            ReasonClass::Memory => "memory",
            ReasonClass::Device => "device",
            ReasonClass::Size => "size",
            ReasonClass::Busy => "busy",
            ReasonClass::Draining => "draining",
            ReasonClass::Disk => "disk",
            ReasonClass::Price => "price",
            ReasonClass::Deadline => "deadline",
            ReasonClass::Chain => "chain",
            ReasonClass::Version => "version",
            ReasonClass::Attempt => "attempt",
        }
    }
}

impl Reason {
    /// A reason in words, cut to the length that a message may carry.
    pub fn new(class: ReasonClass, text: impl Into<String>) -> Reason {
        let mut text: String =
            text.into().chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
        if text.len() > REASON_TEXT_BYTES_MAX {
            let mut end = REASON_TEXT_BYTES_MAX - '…'.len_utf8();
            while !text.is_char_boundary(end) {
                end -= 1;
            }
            text.truncate(end);
            text.push('…');
        }
        Reason { class, text }
    }
}

impl std::fmt::Display for Reason {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.class.name(), self.text)
    }
}

/// A person must decide first; the ticket finds the question again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pending {
    /// Which federation.
    pub federation: FederationId,
    /// The node.
    pub signer: NodeId,
    /// The charter version relied on.
    pub charter: MessageId,
    /// The probe that it answers.
    pub probe: MessageId,
    /// The job.
    pub job: MessageId,
    /// Whose approval is missing, e.g. `approve:data-steward`.
    #[serde(deserialize_with = "crate::encoding::list")]
    pub obligations: Vec<String>,
    /// The node's own handle for the question.
    pub ticket: ByteString,
    /// When the question lapses.
    pub expires: Timestamp,
}

fn check_reasons(reasons: &[Reason]) -> Result<(), Invalid> {
    require(!reasons.is_empty() && reasons.len() <= REASONS_MAX, "reasons", "1 to 8")?;
    reasons
        .iter()
        .try_for_each(|reason| require_text(&reason.text, REASON_TEXT_BYTES_MAX, "reasons.text"))
}

macro_rules! node_message {
    ($body:ty, $kind:ident, $version:literal, $check:expr) => {
        impl Message for $body {
            const KIND: Kind = Kind::$kind;
            const VERSION: u16 = $version;

            fn federation(&self) -> Option<FederationId> {
                Some(self.federation)
            }

            fn signer(&self) -> PublicKey {
                PublicKey::from(self.signer)
            }

            fn check(&self) -> Result<(), Invalid> {
                let check: fn(&$body) -> Result<(), Invalid> = $check;
                check(self)
            }
        }
    };
}
pub(crate) use node_message;

node_message!(Probe, Probe, 1, |probe| require(probe.attempt >= 1, "attempt", "at least 1"));
node_message!(Offer, Offer, 1, |_| Ok(()));
node_message!(RefusalV1, Refusal, 1, |refusal| check_reasons(&refusal.reasons));
node_message!(Refusal, Refusal, 2, |refusal| check_reasons(&refusal.reasons));
node_message!(Pending, Pending, 1, |pending| {
    let count = pending.obligations.len();
    require((1..=OBLIGATIONS_MAX).contains(&count), "obligations", "1 to 8")?;
    require(pending.ticket.0.len() <= 64, "ticket", "at most 64 bytes")?;
    pending.obligations.iter().try_for_each(|who| require_text(who, 64, "obligations"))
});

impl From<Refusal> for RefusalV1 {
    /// For peers of the first release: what version 1 cannot say is left out.
    fn from(refusal: Refusal) -> RefusalV1 {
        let Refusal { federation, signer, charter, about, job, reasons, retry_after_ms: _ } =
            refusal;
        RefusalV1 { federation, signer, charter, about, job, reasons }
    }
}

impl From<RefusalV1> for Refusal {
    /// From peers of the first release: no time to ask again is known.
    fn from(refusal: RefusalV1) -> Refusal {
        let RefusalV1 { federation, signer, charter, about, job, reasons } = refusal;
        Refusal { federation, signer, charter, about, job, reasons, retry_after_ms: None }
    }
}
