//! The node: daemon and command line as a library.

pub mod journal;
