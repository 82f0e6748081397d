//! Worlds to try Allmend in: real processes on loopback, and a seeded simulation.

pub mod bench;
pub mod demo;
pub mod ordeal;
pub mod sim;
pub mod tuning;
pub mod world;
