//! What the transport says to itself on the control plane, beside the application's opaque bytes
//! (`specs/transport.md §5`).

use serde::{Deserialize, Serialize, de::DeserializeOwned};

use super::limits::{
    ADDRESS_BYTES_MAX, ADDRESSES_PER_PEER_MAX, META_PEERS_MAX, PROBE_TARGETS_MAX, REASON_BYTES_MAX,
};

/// First byte of a request.
pub(super) mod kind {
    /// The application's bytes follow.
    pub(in crate::net) const APPLICATION: u8 = 0;
    /// A [`super::Meta`] follows.
    pub(in crate::net) const META: u8 = 1;
    /// A renewed hello follows.
    pub(in crate::net) const HELLO: u8 = 2;
    /// A [`super::ProbeReach`] follows.
    pub(in crate::net) const PROBE: u8 = 3;
}

/// First byte of a reply.
pub(super) mod status {
    /// The answer follows.
    pub(in crate::net) const OK: u8 = 0;
    /// Too much is under way; nothing follows.
    pub(in crate::net) const BUSY: u8 = 1;
    /// The daemon gave no answer; nothing follows.
    pub(in crate::net) const UNANSWERED: u8 = 2;
    /// The request was malformed or of an unknown kind; nothing follows.
    pub(in crate::net) const MALFORMED: u8 = 3;
    /// A renewed hello was refused; nothing follows.
    pub(in crate::net) const REFUSED: u8 = 4;
}

/// A message of the transport itself: strict DAG-CBOR, bounded in every part.
pub(super) trait Body: Serialize + DeserializeOwned {
    /// Whether every list and string is within its bound.
    fn is_bounded(&self) -> bool;

    /// The bytes to send after the kind or status.
    fn encode(&self, first: u8) -> Vec<u8> {
        let mut bytes = vec![first];
        match serde_ipld_dagcbor::to_vec(self) {
            Ok(body) => bytes.extend_from_slice(&body),
            Err(error) => tracing::error!(%error, "cannot encode a transport message"),
        }
        bytes
    }

    /// Parses a body and checks its bounds.
    fn decode(bytes: &[u8]) -> Option<Self> {
        let body: Self = serde_ipld_dagcbor::from_slice(bytes).ok()?;
        body.is_bounded().then_some(body)
    }
}

/// Where a member can be reached, and which other members it knows.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Meta {
    /// Control addresses, as multiaddresses.
    pub(super) control: Vec<String>,
    /// Bulk addresses, as `host:port`.
    pub(super) bulk: Vec<String>,
    /// UDP port of the bulk plane, to be tried at the address we see the sender at.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub(super) bulk_port: Option<u16>,
    /// Other members and their control addresses.
    pub(super) peers: Vec<Known>,
}

/// A member that the sender knows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Known {
    /// Its libp2p name, in base 58.
    pub(super) peer: String,
    /// Its control addresses, as multiaddresses.
    pub(super) control: Vec<String>,
}

impl Body for Meta {
    fn is_bounded(&self) -> bool {
        addresses_bounded(&self.control)
            && addresses_bounded(&self.bulk)
            && self.peers.len() <= META_PEERS_MAX
            && self.peers.iter().all(|known| {
                known.peer.len() <= ADDRESS_BYTES_MAX && addresses_bounded(&known.control)
            })
    }
}

fn addresses_bounded(addresses: &[String]) -> bool {
    addresses.len() <= ADDRESSES_PER_PEER_MAX
        && addresses.iter().all(|address| address.len() <= ADDRESS_BYTES_MAX)
}

/// Asks a member to dial us back.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ProbeReach {
    pub(super) targets: Vec<Target>,
}

/// One address to dial back.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Target {
    pub(super) kind: ReachKind,
    /// `ip:port`; names are not resolved.
    pub(super) address: String,
}

/// Which plane and protocol an address belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ReachKind {
    /// Control plane over TCP.
    ControlTcp,
    /// Control plane over QUIC.
    ControlQuic,
    /// Bulk plane, which clients use too (UDP).
    Bulk,
}

impl Body for ProbeReach {
    fn is_bounded(&self) -> bool {
        self.targets.len() <= PROBE_TARGETS_MAX
            && self.targets.iter().all(|target| target.address.len() <= ADDRESS_BYTES_MAX)
    }
}

/// What the dial-backs gave.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Reached {
    pub(super) results: Vec<ReachResult>,
}

/// What one dial-back gave.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReachResult {
    /// Which plane and protocol.
    pub kind: ReachKind,
    /// The `ip:port` in question.
    pub address: String,
    /// Whether it can be reached from the other member.
    pub outcome: ReachOutcome,
}

/// Whether an address can be reached.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ReachOutcome {
    /// A fresh connection was made and the identity at the other end was ours.
    Reached,
    /// No connection could be made.
    Failed(String),
    /// Not tried: the other member sees us at another IP address, and dials no third party.
    NotTried,
}

impl Body for Reached {
    fn is_bounded(&self) -> bool {
        self.results.len() <= PROBE_TARGETS_MAX
            && self.results.iter().all(|result| {
                result.address.len() <= ADDRESS_BYTES_MAX
                    && match &result.outcome {
                        ReachOutcome::Failed(reason) => reason.len() <= REASON_BYTES_MAX,
                        ReachOutcome::Reached | ReachOutcome::NotTried => true,
                    }
            })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bodies_survive_and_bounds_hold() {
        let meta = Meta {
            control: vec!["/ip4/192.0.2.1/tcp/1".to_owned()],
            bulk: vec!["192.0.2.1:2".to_owned()],
            bulk_port: None,
            peers: vec![Known { peer: "12D3".to_owned(), control: vec![] }],
        };
        let bytes = meta.encode(kind::META);
        assert_eq!(bytes[0], kind::META);
        assert_eq!(Meta::decode(&bytes[1..]), Some(meta));

        let many =
            Meta { bulk: vec![String::new(); ADDRESSES_PER_PEER_MAX + 1], ..Meta::default() };
        assert_eq!(Meta::decode(&many.encode(kind::META)[1..]), None);
        assert_eq!(Meta::decode(b"\xff"), None);
    }

    #[test]
    fn every_outcome_survives() {
        for outcome in [
            ReachOutcome::Reached,
            ReachOutcome::NotTried,
            ReachOutcome::Failed("no route".to_owned()),
        ] {
            let result =
                ReachResult { kind: ReachKind::Bulk, address: "192.0.2.1:2".to_owned(), outcome };
            let reached = Reached { results: vec![result] };
            assert_eq!(Reached::decode(&reached.encode(status::OK)[1..]), Some(reached));
        }
    }
}
