//! The sealed room (specs/room.md): a process that reads sovereign data and can tell nobody but the pipe
//! it was given. It probes what it claims and reports only what it has verified.
//!
//! The node calls [`EmptyRoom::build`], reads the [`Facts`], decides, and only then hands descriptors in
//! with [`EmptyRoom::open`]. The program that it starts calls [`seal`] before anything else in `main`.
//!
//! ```no_run
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! // In the program, before anything else:
//! let mut sealed = allmend_room::seal()?;
//! let rows = sealed.take("rows").ok_or("no rows were handed in")?;
//!
//! // In the node, on a thread that may block:
//! use allmend_room::{EmptyRoom, Spec};
//! let mut command = std::process::Command::new("allmend");
//! let empty = EmptyRoom::build(command.args(["worker", "--sealed"]), &Spec::default())?;
//! println!("{}", empty.strength()); // decide, and sign
//! let rows = std::fs::File::open("rows.jsonl")?;
//! let mut room = empty.open(&[("rows", &rows)])?;
//! room.wait()?;
//! # Ok(())
//! # }
//! ```
//!
//! What it is not: a defence against a kernel that is broken, against hardware, or against whoever
//! administers the machine.

mod error;
mod facts;
mod layer;
mod probe;
mod spec;
mod strength;
mod survey;

#[cfg(target_os = "linux")]
mod inside;
#[cfg(target_os = "linux")]
mod outside;
#[cfg(target_os = "linux")]
mod sys;
#[cfg(target_os = "linux")]
mod wire;

pub use self::error::RoomError;
pub use self::facts::{Facts, LayerFact, ProbeFact};
pub use self::layer::Layer;
pub use self::probe::Probe;
pub use self::spec::Spec;
pub use self::strength::Strength;
pub use self::survey::{Surveyed, survey};

#[cfg(target_os = "linux")]
pub use self::inside::{Sealed, seal};
#[cfg(target_os = "linux")]
pub use self::outside::{EmptyRoom, Exit, Room, delegated_cgroup};
