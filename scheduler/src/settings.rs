//! Who a core is and within which bounds it works.

use std::fmt;
use std::sync::Arc;

use allmend_protocol::envelope::Verified;
use allmend_protocol::ids::{FederationId, InstitutionId, NodeId};
use allmend_protocol::message::{Message, Versions};
use allmend_protocol::time::DurationMs;
use allmend_protocol::units::Jurisdiction;
use ed25519_dalek::SigningKey;

use crate::policy::OperatorPolicy;
use crate::stewards::Stewards;

/// The node that a core decides for.
#[derive(Clone)]
pub struct Identity {
    /// The node's key; signing is deterministic, so the core stays pure.
    pub key: SigningKey,
    /// Its public half.
    pub node: NodeId,
    /// The institution that runs the node.
    pub institution: InstitutionId,
    /// Where the machine stands, as its certificate says.
    pub jurisdiction: Jurisdiction,
    /// Which federation.
    pub federation: FederationId,
    /// The node's log epoch.
    pub epoch: u32,
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Identity")
            .field("node", &self.node)
            .field("institution", &self.institution)
            .field("jurisdiction", &self.jurisdiction)
            .field("federation", &self.federation)
            .field("epoch", &self.epoch)
            .finish_non_exhaustive()
    }
}

impl Identity {
    /// Signs a body that this core made.
    ///
    /// # Panics
    /// When the body breaks its own rules: a broken local invariant, for every text that came from
    /// outside was cut to size before.
    pub(crate) fn sign<T: Message>(&self, body: T) -> Verified<T> {
        Verified::sign(&self.key, body).expect("own messages keep their own rules")
    }
}

/// How a core works.
#[derive(Clone, Debug)]
pub struct Settings {
    /// What the operator lets run here.
    pub policy: OperatorPolicy,
    /// What stewards let be done with datasets here; nobody: no dataset is opened to any job.
    pub stewards: Option<Arc<dyn Stewards>>,
    /// The message versions that this node reads and writes.
    pub versions: Versions,
    /// The engine's numerics version, for receipts (at most 64 bytes).
    pub numerics: String,
    /// Bounds.
    pub limits: Limits,
    /// Deliberate faults, for simulations that must catch them.
    #[doc(hidden)]
    pub faults: Faults,
}

impl Default for Settings {
    fn default() -> Settings {
        Settings {
            policy: OperatorPolicy::default(),
            stewards: None,
            versions: Versions::of_this_release(),
            numerics: "unknown".to_owned(),
            limits: Limits::default(),
            faults: Faults::default(),
        }
    }
}

/// Bounds of one core; each with the reason for its default.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Jobs at home that are not settled yet. 4,096 jobs are some 300 MiB of specs at worst and
    /// far more than one institution has in flight.
    pub jobs_open_max: usize,
    /// Jobs at home in all; beyond it the oldest settled ones are forgotten (the log keeps them).
    pub jobs_remembered_max: usize,
    /// Open jobs of one researcher, so that one script cannot fill the node.
    pub jobs_per_researcher_max: usize,
    /// Leases remembered by a working node until their grants can no longer be used.
    pub leases_remembered_max: usize,
    /// Probes answered per peer and second; a broker with a full queue needs fewer.
    pub probes_per_peer_per_second_max: u32,
    /// The most tokens that one job may ask this node to write.
    pub max_tokens_max: u32,
    /// The most tokens of prompt that one job may bring to this node.
    pub prompt_tokens_max: u32,
    /// The most tokens that one job may train on at this node.
    pub train_tokens_max: u32,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            jobs_open_max: 4_096,
            jobs_remembered_max: 8_192,
            jobs_per_researcher_max: 1_024,
            leases_remembered_max: 16_384,
            probes_per_peer_per_second_max: 200,
            max_tokens_max: 131_072,
            prompt_tokens_max: 1_048_576,
            train_tokens_max: 1 << 30,
        }
    }
}

/// Faults that a simulation switches on to see an invariant catch them. Never set by the daemon.
#[doc(hidden)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Faults {
    /// A restarted node counts fences from one again, in the incarnation of its first start.
    pub fence_reused_after_restart: bool,
    /// A grant is settled again although it is settled.
    pub settle_without_compare_and_set: bool,
    /// Leases are taken and followed after their time.
    pub accept_expired_lease: bool,
    /// A restarted broker counts attempts from one again.
    pub attempt_reused_after_restart: bool,
}

/// How often something unanswered is said again.
pub(crate) const RESEND_EVERY: DurationMs = DurationMs::from_ms(700);
/// A repeated receipt waits at most so long for the next time.
pub(crate) const RECEIPT_BACKOFF_MAX: DurationMs = DurationMs::from_secs(15);
/// Progress is journaled every so many tokens: an interrupted lease loses at most these.
pub(crate) const PROGRESS_EVERY_TOKENS: u32 = 4;
/// Adverts that only repeat a change wait at least so long for one another.
pub(crate) const ADVERT_GAP_MIN: DurationMs = DurationMs::from_ms(300);

/// Cuts a text from outside to what a message may carry.
pub(crate) fn fit_text(text: &str, bytes_max: usize) -> String {
    let mut text: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    if text.len() > bytes_max {
        let mut end = bytes_max;
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        text.truncate(end);
    }
    text
}
