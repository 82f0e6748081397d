//! How the command line speaks: failures, tables, sizes, progress, JSON.
//!
//! Answers go to stdout, everything else to stderr, so that a pipe carries data only. Colours and
//! bars appear on a terminal only. This module decides nothing about jobs or nodes and prints no
//! text that it has not made [`printable`] first, since names come from other institutions.

mod curve;
mod failure;
mod human;
mod progress;
mod table;
mod terminal;

pub use curve::sparkline;
pub use failure::{Advice, ExitClass, Explain, Explainer, Explanation, Failure, explainer};
pub use human::{ago, bytes, count, credits, duration, mib, printable, short_id};
pub use progress::Progress;
pub use table::{Align, Cell, Table};
pub use terminal::{Style, Terminal};
