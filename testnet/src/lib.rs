//! Worlds to try Allmend in: real processes on loopback, a seeded simulation, benchmarks.

pub mod world;
