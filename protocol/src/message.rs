//! What every message has in common: a kind, a version, a federation, a signer, rules of its own.

use std::collections::BTreeMap;
use std::fmt;

use serde::de::{self, DeserializeOwned, Deserializer, MapAccess, Visitor};
use serde::{Deserialize, Serialize};

use crate::envelope::{Envelope, EnvelopeError, Verified};
use crate::ids::{FederationId, MessageId, PublicKey};

/// A body that can be signed.
pub trait Message: Serialize + DeserializeOwned + Clone + fmt::Debug + PartialEq {
    /// Which message this is.
    const KIND: Kind;
    /// Which version of it.
    const VERSION: u16;
    /// Whether several keys sign it (a charter); all others carry exactly one signature.
    const COSIGNED: bool = false;

    /// The federation that the body names; only a genesis charter names none.
    fn federation(&self) -> Option<FederationId>;

    /// The key that must have signed.
    fn signer(&self) -> PublicKey;

    /// The rules that need nothing but the body itself.
    ///
    /// # Errors
    /// The first rule that is broken.
    fn check(&self) -> Result<(), Invalid>;
}

/// A rule of a message's own page in `specs/` that a body breaks.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {rule}")]
pub struct Invalid {
    /// The field.
    pub field: &'static str,
    /// What it must be.
    pub rule: &'static str,
}

/// Checks `holds`, naming the field and the rule when it does not.
pub(crate) fn require(holds: bool, field: &'static str, rule: &'static str) -> Result<(), Invalid> {
    if holds { Ok(()) } else { Err(Invalid { field, rule }) }
}

/// Checks a text's length in bytes and that it holds no control characters.
pub(crate) fn require_text(
    text: &str,
    bytes_max: usize,
    field: &'static str,
) -> Result<(), Invalid> {
    require(text.len() <= bytes_max, field, "too long")?;
    require(!text.chars().any(char::is_control), field, "no control characters")
}

/// The payload type of a kind and version (specs/envelope.md §2).
pub fn payload_type(kind: Kind, version: u16) -> String {
    format!("application/vnd.allmend.{kind}.v{version}+dag-cbor")
}

macro_rules! messages {
    ($( $variant:ident($body:ty) = $name:literal v $version:literal ),* $(,)?) => {
        /// Any message of this release, verified.
        #[derive(Clone, Debug, PartialEq)]
        #[allow(missing_docs, reason = "each variant is named after the message it holds")]
        pub enum AnyMessage { $( $variant(Verified<$body>), )* }

        impl AnyMessage {
            /// Decodes and verifies an envelope of whatever kind and version this release knows.
            ///
            /// # Errors
            /// As [`crate::envelope::Signed::verify`]; an unknown kind or version is
            /// [`EnvelopeError::WrongType`].
            pub fn verify(
                envelope: &Envelope,
                federation: &FederationId,
            ) -> Result<AnyMessage, EnvelopeError> {
                let found = envelope.payload_type();
                $( if found == concat!("application/vnd.allmend.", $name, ".v", $version, "+dag-cbor") {
                    return Ok(AnyMessage::$variant(envelope.open::<$body>()?.verify(federation)?));
                } )*
                Err(EnvelopeError::WrongType {
                    found: found.to_owned(),
                    expected: "a message that this release knows".to_owned(),
                })
            }

            /// The message's id.
            pub fn id(&self) -> MessageId {
                match self { $( AnyMessage::$variant(message) => message.id(), )* }
            }

            /// The envelope.
            pub fn envelope(&self) -> &Envelope {
                match self { $( AnyMessage::$variant(message) => message.envelope(), )* }
            }

            /// The key that signed.
            pub fn signer(&self) -> PublicKey {
                match self { $( AnyMessage::$variant(message) => message.signer(), )* }
            }

            /// Kind and version.
            pub fn kind(&self) -> (Kind, u16) {
                match self { $( AnyMessage::$variant(_) =>
                    (<$body as Message>::KIND, <$body as Message>::VERSION), )* }
            }

            /// Every kind and version that this release can read.
            pub fn known() -> Vec<(Kind, u16)> {
                vec![$( (<$body as Message>::KIND, <$body as Message>::VERSION) ),*]
            }

            /// Serialises the body alone, e.g. as JSON for people and scripts.
            ///
            /// # Errors
            /// Whatever `serializer` reports.
            pub fn serialize_body<S: serde::Serializer>(
                &self,
                serializer: S,
            ) -> Result<S::Ok, S::Error> {
                match self { $( AnyMessage::$variant(message) =>
                    message.body().serialize(serializer), )* }
            }
        }

        $( impl From<Verified<$body>> for AnyMessage {
            fn from(message: Verified<$body>) -> AnyMessage { AnyMessage::$variant(message) }
        } )*

        /// A body that this process has decided on but not signed yet.
        #[derive(Clone, Debug, PartialEq)]
        #[allow(clippy::large_enum_variant, reason = "short-lived, and never kept in numbers")]
        #[allow(missing_docs, reason = "each variant is named after the message it holds")]
        pub enum Body { $( $variant($body), )* }

        impl Body {
            /// The id that the message will have.
            pub fn id(&self) -> MessageId {
                match self { $( Body::$variant(body) => crate::envelope::id_of(body), )* }
            }

            /// Signs the body.
            ///
            /// # Errors
            /// As [`Verified::sign`].
            pub fn sign(self, key: &ed25519_dalek::SigningKey) -> Result<AnyMessage, EnvelopeError> {
                Ok(match self { $( Body::$variant(body) =>
                    AnyMessage::$variant(Verified::sign(key, body)?), )* })
            }

            /// Kind and version.
            pub fn kind(&self) -> (Kind, u16) {
                match self { $( Body::$variant(_) =>
                    (<$body as Message>::KIND, <$body as Message>::VERSION), )* }
            }
        }

        $( impl From<$body> for Body {
            fn from(body: $body) -> Body { Body::$variant(body) }
        } )*
    };
}

messages! {
    Charter(crate::charter::Charter) = "charter" v "1",
    InstitutionCert(crate::cert::InstitutionCert) = "institution-cert" v "1",
    NodeCert(crate::cert::NodeCert) = "node-cert" v "1",
    ResearcherCert(crate::cert::ResearcherCert) = "researcher-cert" v "1",
    Invitation(crate::cert::Invitation) = "invitation" v "1",
    JoinRequest(crate::cert::JoinRequest) = "join-request" v "1",
    CapacityAdvert(crate::advert::CapacityAdvert) = "capacity-advert" v "1",
    JobSpec(crate::job::JobSpec) = "job-spec" v "1",
    Delegation(crate::job::Delegation) = "delegation" v "1",
    Probe(crate::offer::Probe) = "probe" v "1",
    Offer(crate::offer::Offer) = "offer" v "1",
    RefusalV1(crate::offer::RefusalV1) = "refusal" v "1",
    Refusal(crate::offer::Refusal) = "refusal" v "2",
    Pending(crate::offer::Pending) = "pending" v "1",
    Grant(crate::grant::Grant) = "grant" v "1",
    Assign(crate::grant::Assign) = "assign" v "1",
    Lease(crate::lease::Lease) = "lease" v "1",
    LeaseRenewal(crate::lease::LeaseRenewal) = "lease-renewal" v "1",
    Cancel(crate::lease::Cancel) = "cancel" v "1",
    Receipt(crate::receipt::Receipt) = "receipt" v "1",
    Settlement(crate::receipt::Settlement) = "settlement" v "1",
    LogSuccession(crate::log_succession::LogSuccession) = "log-succession" v "1",
    Approval(crate::stewardship::Approval) = "approval" v "1",
    Contract(crate::stewardship::Contract) = "contract" v "1",
    GateReport(crate::stewardship::GateReport) = "gate-report" v "1",
    Recall(crate::stewardship::Recall) = "recall" v "1",
    RecallAnswer(crate::stewardship::RecallAnswer) = "recall-answer" v "1",
    Deletion(crate::stewardship::Deletion) = "deletion" v "1",
}

macro_rules! kinds {
    ($( $(#[$doc:meta])* $variant:ident = $name:literal ),* $(,)?) => {
        /// Every kind of message, by its name on the wire.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Kind { $( $(#[$doc])* $variant ),* }

        impl Kind {
            /// The kind's name in payload types.
            pub const fn name(self) -> &'static str {
                match self { $( Kind::$variant => $name ),* }
            }

            /// The kind of that name.
            pub fn from_name(name: &str) -> Option<Kind> {
                match name { $( $name => Some(Kind::$variant), )* _ => None }
            }
        }
    };
}

kinds! {
    /// The federation's rules and founding members.
    Charter = "charter",
    /// A sponsor admits an institution.
    InstitutionCert = "institution-cert",
    /// An institution vouches for a node.
    NodeCert = "node-cert",
    /// An institution vouches for a researcher's pseudonymous key.
    ResearcherCert = "researcher-cert",
    /// A single-use permission to join.
    Invitation = "invitation",
    /// A new key presents an invitation.
    JoinRequest = "join-request",
    /// A node's capacity.
    CapacityAdvert = "capacity-advert",
    /// What a researcher asks for.
    JobSpec = "job-spec",
    /// A researcher lets another key submit.
    Delegation = "delegation",
    /// A broker asks whether a node would run a job.
    Probe = "probe",
    /// It would.
    Offer = "offer",
    /// It will not.
    Refusal = "refusal",
    /// A person must decide first.
    Pending = "pending",
    /// The home node's permission to spend.
    Grant = "grant",
    /// A broker gives an attempt to a node.
    Assign = "assign",
    /// The node commits itself.
    Lease = "lease",
    /// It is still at work.
    LeaseRenewal = "lease-renewal",
    /// Stop.
    Cancel = "cancel",
    /// What was done.
    Receipt = "receipt",
    /// What counts.
    Settlement = "settlement",
    /// A node begins a new log after losing its old one.
    LogSuccession = "log-succession",
    /// A person says yes or no to one job on one dataset.
    Approval = "approval",
    /// A node's terms of one run on others' data.
    Contract = "contract",
    /// What the output gate decided.
    GateReport = "gate-report",
    /// A released adapter is taken back.
    Recall = "recall",
    /// What a node did about a recall.
    RecallAnswer = "recall-answer",
    /// What a job brought along is deleted.
    Deletion = "deletion",
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// The message versions that somebody reads, by kind (specs/versions.md).
///
/// A kind that is not listed is spoken in version 1 only, so that the list stays short.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Versions(#[serde(deserialize_with = "bounded")] BTreeMap<String, Vec<u16>>);

/// Kinds that one advert may list versions for.
pub const VERSION_KINDS_MAX: usize = 64;

impl Versions {
    /// Everything that this release reads.
    pub fn of_this_release() -> Versions {
        let mut map: BTreeMap<String, Vec<u16>> = BTreeMap::new();
        for (kind, version) in AnyMessage::known() {
            map.entry(kind.name().to_owned()).or_default().push(version);
        }
        map.retain(|_, versions| {
            versions.sort_unstable();
            versions.as_slice() != [1]
        });
        Versions(map)
    }

    /// The first version of everything: what a peer of the first release speaks.
    pub fn first() -> Versions {
        Versions::default()
    }

    /// Whether `version` of `kind` is read.
    pub fn speaks(&self, kind: Kind, version: u16) -> bool {
        match self.0.get(kind.name()) {
            Some(versions) => versions.contains(&version),
            None => version == 1,
        }
    }

    /// The highest version of `kind` that both read, if there is one.
    pub fn common(&self, other: &Versions, kind: Kind) -> Option<u16> {
        const FIRST: &[u16] = &[1];
        let ours = self.0.get(kind.name()).map_or(FIRST, Vec::as_slice);
        ours.iter().copied().filter(|version| other.speaks(kind, *version)).max()
    }

    /// Whether lists are sorted, non-empty and few.
    pub(crate) fn check(&self) -> Result<(), Invalid> {
        require(self.0.len() <= VERSION_KINDS_MAX, "versions", "too many kinds")?;
        for (kind, versions) in &self.0 {
            require_text(kind, 32, "versions")?;
            require(!versions.is_empty() && versions.len() <= 16, "versions", "1 to 16 versions")?;
            require(versions.windows(2).all(|w| w[0] < w[1]), "versions", "sorted, no repeats")?;
        }
        Ok(())
    }
}

/// Reads at most [`VERSION_KINDS_MAX`] kinds, each with a bounded list.
fn bounded<'de, D: Deserializer<'de>>(d: D) -> Result<BTreeMap<String, Vec<u16>>, D::Error> {
    #[derive(Deserialize)]
    #[serde(transparent)]
    struct Numbers(#[serde(deserialize_with = "crate::encoding::list")] Vec<u16>);

    struct KindsVisitor;

    impl<'de> Visitor<'de> for KindsVisitor {
        type Value = BTreeMap<String, Vec<u16>>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            write!(f, "versions of at most {VERSION_KINDS_MAX} kinds")
        }

        fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
            let mut kinds = BTreeMap::new();
            while let Some((kind, Numbers(numbers))) = map.next_entry::<String, Numbers>()? {
                if kinds.len() == VERSION_KINDS_MAX {
                    return Err(de::Error::invalid_length(VERSION_KINDS_MAX + 1, &self));
                }
                kinds.insert(kind, numbers);
            }
            Ok(kinds)
        }
    }

    d.deserialize_map(KindsVisitor)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn payload_types_match_the_kind_table() {
        for (kind, version) in AnyMessage::known() {
            assert_eq!(Kind::from_name(kind.name()), Some(kind));
            assert!(payload_type(kind, version).len() < 96);
        }
    }

    #[test]
    fn peers_use_the_highest_common_version() {
        let new = Versions::of_this_release();
        let old = Versions::first();
        assert_eq!(new.common(&new, Kind::Refusal), Some(2));
        assert_eq!(new.common(&old, Kind::Refusal), Some(1));
        assert_eq!(old.common(&new, Kind::Refusal), Some(1));
        assert_eq!(new.common(&old, Kind::Lease), Some(1));
    }
}
