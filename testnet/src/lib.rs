//! Worlds to try Allmend in.

pub mod sim;
