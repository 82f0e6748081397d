//! A command line talking to its home node over quinn: requests, answers, and the calling side.
//!
//! One request per stream, frames of strict DAG-CBOR (specs/client.md). Who asks is the Ed25519
//! key of the connection; nothing in a request says it again.

mod connection;
pub mod proto;
pub mod report;

pub use connection::{Answers, CallError, Caller};
