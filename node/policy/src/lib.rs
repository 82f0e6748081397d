//! What stewards, operators and the federation's charter allow (specs/policy.md): Cedar policies judged in
//! three layers that must all allow, with reasons in words.
//!
//! Text and values go in, decisions come out: no disk, no clock, no network. What no policy may permit
//! (a withdrawn dataset, a way out of the room) is decided here in Rust, after the policies have been asked.
//! Deliberately not about prompts on a node without a dataset: those are `allmend_scheduler::policy`'s.

mod approvals;
mod ask;
mod attributes;
pub mod check;
mod decide;
mod decision;
mod layer;
mod load;
pub mod questionnaire;
mod reads;
mod render;
mod request;
pub mod shipped;
mod statements;
pub mod table;
mod vocabulary;

pub use approvals::{Approval, Approvals, Bound, Rejected, Ruling, Subject, Why, valid_approvals};
pub use attributes::{ATTRIBUTES, Attribute, Kind as AttributeKind};
pub use decide::{decide, decide_document};
pub use decision::{
    AttributeLine, Decision, LayerOutcome, LayerReport, Obligation, PolicyDigests, Reason,
    ReasonKind, Verdict,
};
pub use layer::{LayerName, Layers, digest_of_layers, digest_of_text};
pub use render::explain;
pub use request::{
    Action, Dataset, Model, Node, OutputKind, Principal, Privacy, Request, Room, Run, Sensitivity,
    Stage, delta_exponent,
};
pub use vocabulary::{OBLIGATIONS, ObligationKind, obligation};

/// The Cedar schema against which every policy and every request is validated.
pub const SCHEMA_TEXT: &str = include_str!("../schema.cedarschema");
