//! The node: what is done.

pub mod config;
pub mod device;
pub mod models;
pub mod storage;
pub mod ui;
