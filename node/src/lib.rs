//! The node: what is done.

pub mod audit;
pub mod config;
pub mod device;
pub mod journal;
pub mod models;
pub mod storage;
pub mod ui;
