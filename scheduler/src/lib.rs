//! What is *decided* in an Allmend federation: which node is asked, who may run what, what counts.
//!
//! Pure: time and entropy come in as arguments, effects go out as values.

pub mod io;
