//! A node begins a new log epoch after losing its old log (specs/log-succession.md).

use serde::{Deserialize, Serialize};

use crate::ids::{Digest, FederationId, InstitutionId, NodeId, PublicKey};
use crate::message::{Invalid, Kind, Message, require, require_text};
use crate::offer::node_message;
use crate::time::Timestamp;

/// The institution declares that a node's log goes on in a new epoch; undeclared rollback is the
/// crime.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LogSuccession {
    /// Which federation.
    pub federation: FederationId,
    /// The institution.
    pub signer: InstitutionId,
    /// The node.
    pub node: NodeId,
    /// The epoch that ended.
    pub old_epoch: u32,
    /// The epoch that begins.
    pub new_epoch: u32,
    /// Leaves of the old log that could be saved.
    pub last_size: u64,
    /// Root hash over them.
    pub last_root: Digest,
    /// In words.
    pub why: String,
    /// When.
    pub issued: Timestamp,
}

node_message!(LogSuccession, LogSuccession, 1, |succession| {
    require(succession.old_epoch < succession.new_epoch, "new_epoch", "after old_epoch")?;
    require_text(&succession.why, 240, "why")
});
