//! What may lie on this disk, for how long, and what happens when it fills up.
//!
//! Three kinds have caps: models, spool, log. Evict first (spool entries that were settled and are
//! past retention, then models unused for longest), then drain, before the journal could fill the
//! disk: a node that cannot write its log cannot keep a promise. [`plan`] decides and touches
//! nothing; the daemon measures and removes.

mod disk;
mod plan;

pub use disk::{Space, free_bytes, space, tree_bytes};
pub use plan::{Caps, DrainReason, Eviction, ModelUse, Plan, SpoolUse, StorageState, Survey, plan};
