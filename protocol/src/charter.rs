//! The charter: who founded the federation and the times everybody keeps (specs/charter.md).

use serde::{Deserialize, Serialize};

use crate::ids::{FederationId, InstitutionId, MessageId, NodeId, PublicKey};
use crate::message::{Invalid, Kind, Message, require, require_text};
use crate::time::{DurationMs, Timestamp};
use crate::units::Jurisdiction;

/// The most institutions one charter lists.
pub const INSTITUTIONS_MAX: usize = 64;
/// The longest name of an institution or federation, in bytes.
pub const NAME_BYTES_MAX: usize = 120;

/// The rules under which all members work; its genesis version's id names the federation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Charter {
    /// The genesis charter's id; absent in the genesis charter itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub federation: Option<FederationId>,
    /// The institution that wrote this version.
    pub signer: InstitutionId,
    /// The federation's name.
    pub name: String,
    /// 1 for the genesis charter, then one more each time.
    pub version: u32,
    /// The version before; absent in the genesis charter.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub previous: Option<MessageId>,
    /// When it begins to hold.
    pub not_before: Timestamp,
    /// When admissions under it stop; running jobs are not affected.
    pub expires: Timestamp,
    /// Members by key, sorted.
    #[serde(deserialize_with = "crate::encoding::list")]
    pub institutions: Vec<Member>,
    /// Whether any member may admit an institution by its signature alone.
    pub members_may_sponsor: bool,
    /// The one node that orders the governance log, once there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sequencer: Option<NodeId>,
    /// How far two honest clocks may differ.
    pub skew_ms: DurationMs,
    /// The times that all nodes keep.
    pub timing: Timing,
}

/// One institution of the charter.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Member {
    /// Its key.
    pub key: InstitutionId,
    /// Its name.
    pub name: String,
    /// The law it lives under.
    pub jurisdiction: Jurisdiction,
}

/// Times that all nodes keep, in milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Timing {
    /// A node says its capacity at least so often.
    pub advert_every_ms: DurationMs,
    /// An advert is believed for so long.
    pub advert_ttl_ms: DurationMs,
    /// A broker waits so long for answers to a probe.
    pub probe_wait_ms: DurationMs,
    /// A broker waits so long for the lease that answers an assignment.
    pub assign_wait_ms: DurationMs,
    /// A lease lasts so long without a renewal.
    pub lease_ttl_ms: DurationMs,
    /// A working node renews its lease so often.
    pub renew_every_ms: DurationMs,
    /// After a job's deadline, receipts still count for so long.
    pub settle_slack_ms: DurationMs,
}

impl Default for Timing {
    fn default() -> Timing {
        Timing {
            advert_every_ms: DurationMs::from_secs(5),
            advert_ttl_ms: DurationMs::from_secs(20),
            probe_wait_ms: DurationMs::from_ms(1_500),
            assign_wait_ms: DurationMs::from_secs(3),
            lease_ttl_ms: DurationMs::from_secs(6),
            renew_every_ms: DurationMs::from_secs(2),
            settle_slack_ms: DurationMs::from_secs(120),
        }
    }
}

/// The default clock skew of a new charter.
pub const SKEW_DEFAULT: DurationMs = DurationMs::from_secs(2);

/// The longest time that a charter may set, one day: longer ones would overflow nothing but
/// would stall every fail-over.
const TIMING_MAX: DurationMs = DurationMs::from_secs(86_400);

impl Timing {
    fn check(&self) -> Result<(), Invalid> {
        for (ms, field) in [
            (self.advert_every_ms, "timing.advert_every_ms"),
            (self.advert_ttl_ms, "timing.advert_ttl_ms"),
            (self.probe_wait_ms, "timing.probe_wait_ms"),
            (self.assign_wait_ms, "timing.assign_wait_ms"),
            (self.lease_ttl_ms, "timing.lease_ttl_ms"),
            (self.renew_every_ms, "timing.renew_every_ms"),
            (self.settle_slack_ms, "timing.settle_slack_ms"),
        ] {
            require(ms.as_ms() > 0 && ms <= TIMING_MAX, field, "between 1 ms and one day")?;
        }
        require(
            self.renew_every_ms.times(2) <= self.lease_ttl_ms,
            "timing.renew_every_ms",
            "at most half of lease_ttl_ms",
        )?;
        require(
            self.advert_every_ms.times(2) <= self.advert_ttl_ms,
            "timing.advert_every_ms",
            "at most half of advert_ttl_ms",
        )
    }
}

impl Charter {
    /// How long others wait before they take a lease for lapsed: its TTL plus twice the skew,
    /// for the worker's TTL runs on its own monotonic clock (DESIGN "Time").
    pub fn lapse_after(&self) -> DurationMs {
        self.timing.lease_ttl_ms.and(self.skew_ms.times(2))
    }
}

impl Message for Charter {
    const KIND: Kind = Kind::Charter;
    const VERSION: u16 = 1;
    const COSIGNED: bool = true;

    fn federation(&self) -> Option<FederationId> {
        self.federation
    }

    fn signer(&self) -> PublicKey {
        self.signer.into()
    }

    fn check(&self) -> Result<(), Invalid> {
        require_text(&self.name, NAME_BYTES_MAX, "name")?;
        require(self.version >= 1, "version", "at least 1")?;
        let genesis = self.version == 1;
        require(genesis == self.federation.is_none(), "federation", "absent in version 1 only")?;
        require(genesis == self.previous.is_none(), "previous", "absent in version 1 only")?;
        require(self.not_before < self.expires, "expires", "after not_before")?;
        require(
            !self.institutions.is_empty() && self.institutions.len() <= INSTITUTIONS_MAX,
            "institutions",
            "between 1 and 64",
        )?;
        require(
            self.institutions.windows(2).all(|pair| pair[0].key < pair[1].key),
            "institutions",
            "sorted by key, no repeats",
        )?;
        for member in &self.institutions {
            require_text(&member.name, NAME_BYTES_MAX, "institutions.name")?;
            require(
                crate::envelope::is_strong_key(&member.key.into()),
                "institutions.key",
                "a strong Ed25519 key",
            )?;
        }
        require(
            self.institutions.iter().any(|member| member.key == self.signer),
            "signer",
            "a listed institution",
        )?;
        require(self.skew_ms <= DurationMs::from_secs(60), "skew_ms", "at most a minute")?;
        self.timing.check()
    }
}
