//! The node as a library: what the binary `allmend` is made of.

pub mod net;
