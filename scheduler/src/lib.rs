//! What is *decided* in an Allmend federation: which node is asked, who may run what, what counts.
//!
//! Pure: time and entropy come in as arguments, effects go out as values. One [`core::Core`] is a
//! node's whole decision state; it wires three small machines: the [`broker`] and the [`ledger`]
//! of a home node and the [`leasebook`] of a working node.

pub mod broker;
pub mod core;
mod ctx;
pub mod filter;
pub mod io;
pub mod leasebook;
pub mod ledger;
pub mod policy;
pub mod privacy;
pub mod score;
pub mod settings;
pub mod stewards;
pub mod view;
