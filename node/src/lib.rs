//! The node: what is *done*. Daemon, worker and command line; the only crate with sockets, clocks
//! and disks.

pub mod adapters;
pub mod audit;
pub mod cli;
pub mod client;
pub mod config;
pub mod daemon;
pub mod device;
pub mod journal;
pub mod membership;
pub mod models;
pub mod net;
pub mod seal;
pub mod spool;
pub mod stewards;
pub mod storage;
pub mod ui;
pub mod worker;
