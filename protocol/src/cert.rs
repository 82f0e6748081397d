//! Certificates and the way in: who vouches for whom, until when (specs/membership.md).

use serde::{Deserialize, Serialize};

use crate::bytes::ByteString;
use crate::charter::NAME_BYTES_MAX;
use crate::envelope::is_strong_key;
use crate::ids::{
    FederationId, InstitutionId, MessageId, NodeId, PublicKey, ResearcherId, SealingKey,
    fixed_bytes,
};
use crate::message::{Invalid, Kind, Message, require, require_text};
use crate::time::Timestamp;
use crate::units::Jurisdiction;

/// The most addresses in one message.
pub const ADDRESSES_MAX: usize = 16;
/// The longest address, in bytes.
pub const ADDRESS_BYTES_MAX: usize = 256;

macro_rules! certificate {
    ($body:ty, $kind:ident) => {
        impl Message for $body {
            const KIND: Kind = Kind::$kind;
            const VERSION: u16 = 1;

            fn federation(&self) -> Option<FederationId> {
                Some(self.federation)
            }

            fn signer(&self) -> PublicKey {
                self.signer.into()
            }

            fn check(&self) -> Result<(), Invalid> {
                require(self.not_before < self.expires, "expires", "after not_before")?;
                self.check_rest()
            }
        }

        impl $body {
            /// Whether the certificate holds at `now`, the clocks of others allowed for by `skew`.
            pub fn holds_at(&self, now: Timestamp, skew: crate::time::DurationMs) -> bool {
                self.not_before <= now.plus(skew) && now < self.expires
            }
        }
    };
}

/// A member institution admits another one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct InstitutionCert {
    /// Which federation.
    pub federation: FederationId,
    /// The sponsor.
    pub signer: InstitutionId,
    /// The charter version relied on.
    pub charter: MessageId,
    /// The newcomer's key.
    pub institution: InstitutionId,
    /// The newcomer's name.
    pub name: String,
    /// The law it lives under.
    pub jurisdiction: Jurisdiction,
    /// Counts the signer's certificates; never used twice.
    pub serial: u64,
    /// Holds from here.
    pub not_before: Timestamp,
    /// Holds until here.
    pub expires: Timestamp,
}
certificate!(InstitutionCert, InstitutionCert);

impl InstitutionCert {
    fn check_rest(&self) -> Result<(), Invalid> {
        require_text(&self.name, NAME_BYTES_MAX, "name")?;
        require(self.institution != self.signer, "institution", "not the sponsor itself")?;
        require(is_strong_key(&self.institution.into()), "institution", "a strong Ed25519 key")
    }
}

/// An institution vouches for a node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NodeCert {
    /// Which federation.
    pub federation: FederationId,
    /// The institution.
    pub signer: InstitutionId,
    /// The charter version relied on.
    pub charter: MessageId,
    /// The node's key.
    pub node: NodeId,
    /// The key to which inputs for this node are sealed.
    pub sealing: SealingKey,
    /// The node's name, for people.
    pub name: String,
    /// Where the machine stands.
    pub jurisdiction: Jurisdiction,
    /// Counts the signer's certificates; never used twice.
    pub serial: u64,
    /// Holds from here.
    pub not_before: Timestamp,
    /// Holds until here.
    pub expires: Timestamp,
}
certificate!(NodeCert, NodeCert);

impl NodeCert {
    fn check_rest(&self) -> Result<(), Invalid> {
        require_text(&self.name, NAME_BYTES_MAX, "name")?;
        require(is_strong_key(&self.node.into()), "node", "a strong Ed25519 key")
    }
}

/// An institution vouches for a researcher's pseudonymous key. The name behind it is in the home
/// node's erasable register and in no message.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ResearcherCert {
    /// Which federation.
    pub federation: FederationId,
    /// The institution.
    pub signer: InstitutionId,
    /// The charter version relied on.
    pub charter: MessageId,
    /// The researcher's key.
    pub researcher: ResearcherId,
    /// The key to which the researcher's results are sealed.
    pub sealing: SealingKey,
    /// The node that may broker and pay for this researcher.
    pub home: NodeId,
    /// What the institution says of them, as policies ask, e.g. `ethics-training`; sorted.
    #[serde(
        default,
        skip_serializing_if = "Vec::is_empty",
        deserialize_with = "crate::encoding::list"
    )]
    pub credentials: Vec<String>,
    /// Counts the signer's certificates; never used twice.
    pub serial: u64,
    /// Holds from here.
    pub not_before: Timestamp,
    /// Holds until here.
    pub expires: Timestamp,
}
certificate!(ResearcherCert, ResearcherCert);

impl ResearcherCert {
    fn check_rest(&self) -> Result<(), Invalid> {
        require(is_strong_key(&self.researcher.into()), "researcher", "a strong Ed25519 key")?;
        check_credentials(&self.credentials)
    }
}

/// As what somebody is invited.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// A person who submits jobs.
    Researcher,
    /// A further node of the inviting institution.
    Node,
    /// A new institution with its first node.
    Institution,
}

/// A single-use, expiring permission to join, handed over by word of mouth.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Invitation {
    /// Which federation.
    pub federation: FederationId,
    /// The inviting institution.
    pub signer: InstitutionId,
    /// The charter that the newcomer will be shown and can check.
    pub charter: MessageId,
    /// As what.
    pub role: Role,
    /// For a researcher: what their certificate will say of them; sorted.
    #[serde(
        default,
        skip_serializing_if = "Vec::is_empty",
        deserialize_with = "crate::encoding::list"
    )]
    pub credentials: Vec<String>,
    /// The node to ask.
    pub node: NodeId,
    /// That node's bulk addresses, `host:port`, where the question is asked.
    #[serde(deserialize_with = "crate::encoding::list")]
    pub bulk: Vec<String>,
    /// Control addresses (multiaddr) of members, to begin with.
    #[serde(deserialize_with = "crate::encoding::list")]
    pub bootstrap: Vec<String>,
    /// Random; makes the invitation single-use.
    #[serde(with = "fixed_bytes")]
    pub nonce: [u8; 16],
    /// Holds from here.
    pub not_before: Timestamp,
    /// Holds until here.
    pub expires: Timestamp,
}
certificate!(Invitation, Invitation);

impl Invitation {
    fn check_rest(&self) -> Result<(), Invalid> {
        require(!self.bulk.is_empty(), "bulk", "at least one address")?;
        check_addresses(&self.bulk, "bulk")?;
        check_addresses(&self.bootstrap, "bootstrap")?;
        let for_them = self.credentials.is_empty() || self.role == Role::Researcher;
        require(for_them, "credentials", "a researcher's only")?;
        check_credentials(&self.credentials)
    }
}

/// A newcomer presents an invitation and the keys it made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JoinRequest {
    /// Which federation.
    pub federation: FederationId,
    /// The newcomer's key: the researcher's or the institution's; for a further node, the node's.
    pub signer: PublicKey,
    /// The invitation's envelope.
    pub invitation: ByteString,
    /// The key to seal to.
    pub sealing: SealingKey,
    /// Name of the institution or node; for a researcher it goes into the erasable register only,
    /// for a join request is never logged.
    pub name: String,
    /// Of the institution; absent for a researcher.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub jurisdiction: Option<Jurisdiction>,
    /// When it was asked.
    pub issued: Timestamp,
}

impl Message for JoinRequest {
    const KIND: Kind = Kind::JoinRequest;
    const VERSION: u16 = 1;

    fn federation(&self) -> Option<FederationId> {
        Some(self.federation)
    }

    fn signer(&self) -> PublicKey {
        self.signer
    }

    fn check(&self) -> Result<(), Invalid> {
        require_text(&self.name, NAME_BYTES_MAX, "name")?;
        require(self.invitation.0.len() <= 12 * 1024, "invitation", "at most 12 KiB")?;
        require(is_strong_key(&self.signer), "signer", "a strong Ed25519 key")
    }
}

/// The most credentials of one researcher.
pub const CREDENTIALS_MAX: usize = 16;

fn check_credentials(list: &[String]) -> Result<(), Invalid> {
    require(list.len() <= CREDENTIALS_MAX, "credentials", "at most 16")?;
    let sorted = list.windows(2).all(|pair| pair[0] < pair[1]);
    require(sorted, "credentials", "sorted, no repeats")?;
    list.iter().try_for_each(|credential| {
        require(!credential.is_empty(), "credentials", "not empty")?;
        require_text(credential, 64, "credentials")
    })
}

/// Checks a list of addresses for number and size; what they mean is the transport's business.
pub(crate) fn check_addresses(list: &[String], field: &'static str) -> Result<(), Invalid> {
    require(list.len() <= ADDRESSES_MAX, field, "at most 16 addresses")?;
    list.iter().try_for_each(|address| require_text(address, ADDRESS_BYTES_MAX, field))
}
