//! A seeded simulation of the scheduler crate: 32 nodes of eight institutions on a network that
//! loses, repeats, delays, reorders and splits, with crashes and restarts, checked against S1–S7
//! after every step. The seed decides everything; equal seeds give byte-identical traces.
//!
//! Deliberately without sockets, disks and engines: those have tests of their own. Deliberate
//! faults ([`Faults`]) show that the checker would notice.

mod check;
mod draw;
mod federation;
mod network;
mod scenario;
mod soak;
mod trace;
mod world;

pub use allmend_scheduler::core::Faults;
pub use check::Violation;
pub use soak::{Soaked, soak};

use serde::Serialize;
use world::World;

/// How a seed is run.
#[derive(Clone, Debug, Default)]
pub struct SimOptions {
    /// Deliberate faults in every core.
    pub faults: Faults,
    /// Whether to keep the lines of the trace.
    pub keep_trace: bool,
}

/// What a run came to.
#[derive(Clone, Debug, Serialize)]
pub struct SimReport {
    /// The seed.
    pub seed: u64,
    /// SHA-256 over the trace.
    pub trace_digest: String,
    /// Numbers.
    #[serde(flatten)]
    pub counts: Counts,
    /// The trace, if it was kept.
    #[serde(skip)]
    pub trace: Vec<String>,
}

/// Numbers of one run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Counts {
    /// Steps of cores.
    pub steps: u64,
    /// Simulated milliseconds.
    pub ms: u64,
    /// Jobs that were over in the end: all that any home took.
    pub jobs: u64,
    /// Jobs that finished.
    pub finished: u64,
    /// Jobs that failed.
    pub failed: u64,
    /// Jobs that nobody may or will run.
    pub refused: u64,
    /// Jobs cancelled by their researcher.
    pub cancelled: u64,
    /// Jobs whose deadline passed.
    pub expired: u64,
    /// Jobs whose home was down until their deadline.
    pub never_taken: u64,
    /// Attempts of all jobs.
    pub attempts: u64,
    /// Leases taken.
    pub leases: u64,
    /// Grants settled.
    pub settlements: u64,
    /// Crashes.
    pub crashes: u64,
}

/// A run that broke a rule.
#[derive(Clone, Debug, thiserror::Error)]
#[error("SEED={seed} breaks {violation} after {ms} ms\nlast events:\n{}", last.join("\n"))]
pub struct SimFailure {
    /// The seed; `SEED=n` runs it again.
    pub seed: u64,
    /// When, in simulated milliseconds.
    pub ms: u64,
    /// Which rule and how.
    pub violation: Violation,
    /// The last lines of the trace.
    pub last: Vec<String>,
}

/// How many trace lines a failure shows.
const LAST_LINES: usize = 60;

/// Runs one seed to its end.
///
/// # Errors
/// [`SimFailure`] with the seed, the broken rule and the last trace lines.
pub fn run(seed: u64, options: &SimOptions) -> Result<SimReport, Box<SimFailure>> {
    let mut world = World::new(seed, options);
    let result = world.run();
    let ms = world.ms();
    let counts = world.counts;
    let (trace_digest, trace) = world.trace.finish();
    match result {
        Ok(()) => Ok(SimReport { seed, trace_digest, counts, trace }),
        // The same seed again, this time to be read.
        Err(_) if !options.keep_trace => {
            run(seed, &SimOptions { keep_trace: true, ..options.clone() })
        }
        Err(violation) => {
            // Adverts are most of the lines and least of the story.
            let told = trace.iter().filter(|line| !line.contains(" capacity-advert."));
            let mut last: Vec<String> = told.rev().take(LAST_LINES).cloned().collect();
            last.reverse();
            Err(Box::new(SimFailure { seed, ms, violation, last }))
        }
    }
}

/// The seeds of a test: `0..count`, or the one that the environment variable `SEED` names.
///
/// # Panics
/// When `SEED` is not a number.
pub fn seeds(count: u64) -> std::ops::Range<u64> {
    match std::env::var("SEED") {
        Ok(seed) => {
            let seed: u64 = seed.parse().expect("SEED is a number");
            seed..seed.saturating_add(1)
        }
        Err(_) => 0..count,
    }
}
