//! What a dataset has revealed, and may still reveal (specs/privacy.md).
//!
//! [`accountant`] turns the parameters of a differentially private run into an upper bound of what
//! it reveals, an [`RdpVector`]; [`ledger`] adds these up per dataset, over all jobs and requesters,
//! and lets no run begin that would pass the dataset's privacy budget.
//!
//! Nothing else in this crate computes with floats. Here they cannot be avoided, since ε is made of
//! logarithms and exponentials, and they are fenced in: floats are born and die within one call of
//! the accountant, its elementary functions are the same software on every machine (`libm`, not the
//! machine's own), and what comes out is rounded up to integers. Only those integers are added,
//! compared, recorded and replayed.

pub mod accountant;
pub mod ledger;
mod orders;
mod rdp;
#[cfg(test)]
mod tests;

pub use accountant::{Mechanism, ParameterError};
pub use ledger::{
    Budget, Charge, LedgerRecord, PrivacyLedger, Quote, Refused, Reservation, Reserved,
};
pub use orders::ORDERS;
pub use rdp::{Delta, MILLI_EPSILON_INFINITE, RdpVector};

use allmend_protocol::ids::Digest;
use serde::{Deserialize, Serialize};

/// What a privacy budget belongs to: a dataset through all of its versions, so that a new version
/// does not begin with a fresh budget (specs/privacy.md §4.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Lineage(Digest);

impl Lineage {
    /// The lineage of all versions of the dataset that this node keeps under `name`.
    ///
    /// `SHA-256("allmend-lineage-v1" || name)`. Whoever renames a dataset keeps the old lineage with
    /// it: see [`Lineage::from_digest`].
    pub fn of_name(name: &str) -> Lineage {
        Lineage(Digest::of(&[b"allmend-lineage-v1", name.as_bytes()].concat()))
    }

    /// A lineage as it was kept.
    pub const fn from_digest(digest: Digest) -> Lineage {
        Lineage(digest)
    }

    /// As it is kept.
    pub const fn digest(&self) -> &Digest {
        &self.0
    }
}

impl std::fmt::Display for Lineage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}
