//! Many seeds, two at a time.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

use serde::Serialize;

use super::{Counts, SimOptions, run};

/// Seeds run at once; the machines this is tried on have two cores.
const THREADS: usize = 2;

/// Progress is said every so many seeds.
const SAY_EVERY: u64 = 100;

/// What many seeds came to.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Soaked {
    /// The first seed.
    pub start: u64,
    /// Seeds that held.
    pub passed: u64,
    /// Numbers over all of them.
    pub counts: Counts,
    /// Wall-clock time in milliseconds.
    pub took_ms: u64,
    /// The first failure of each thread, in words.
    pub failures: Vec<String>,
}

/// Runs `seeds` seeds from `start`, with progress on standard error, and prints the outcome on
/// standard output: for people, or as one line of JSON. Stops at the first seed that fails.
///
/// Returns what came of it; [`Soaked::failures`] is empty when every seed held.
#[allow(clippy::print_stdout, reason = "a command's result belongs on standard output")]
pub fn soak(seeds: u64, start: u64, json: bool) -> Soaked {
    let begun = Instant::now();
    let next = AtomicU64::new(start);
    let end = start.saturating_add(seeds);
    let stop = AtomicBool::new(false);
    let total = Mutex::new(Soaked { start, ..Soaked::default() });
    std::thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= end || stop.load(Ordering::Relaxed) {
                        return;
                    }
                    // A panic in a core is a failure of its seed like any other.
                    let result = std::panic::catch_unwind(|| run(seed, &SimOptions::default()));
                    let Ok(mut total) = total.lock() else { return };
                    match result {
                        Ok(Ok(report)) => total.add(&report.counts),
                        Ok(Err(failure)) => total.failures.push(failure.to_string()),
                        Err(_) => total.failures.push(format!("SEED={seed} panics")),
                    }
                    if !total.failures.is_empty() {
                        stop.store(true, Ordering::Relaxed);
                    }
                    if total.passed.is_multiple_of(SAY_EVERY) && total.passed > 0 {
                        let seconds = begun.elapsed().as_secs();
                        eprintln!("{} of {seeds} seeds, {seconds} s", total.passed);
                    }
                }
            });
        }
    });
    let mut total = total.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
    total.took_ms = u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX);
    if json {
        println!("{}", serde_json::to_string(&total).unwrap_or_default());
    } else {
        println!("{}", total.words());
    }
    total
}

impl Soaked {
    fn add(&mut self, counts: &Counts) {
        self.passed += 1;
        let sum = &mut self.counts;
        sum.steps += counts.steps;
        sum.ms += counts.ms;
        sum.jobs += counts.jobs;
        sum.finished += counts.finished;
        sum.failed += counts.failed;
        sum.refused += counts.refused;
        sum.cancelled += counts.cancelled;
        sum.expired += counts.expired;
        sum.never_taken += counts.never_taken;
        sum.attempts += counts.attempts;
        sum.leases += counts.leases;
        sum.settlements += counts.settlements;
        sum.crashes += counts.crashes;
    }

    fn words(&self) -> String {
        let Counts { jobs, finished, failed, refused, cancelled, expired, .. } = self.counts;
        let mut words = format!(
            "{} seeds held ({} s): {jobs} jobs ({finished} finished, {failed} failed, \
             {refused} refused, {cancelled} cancelled, {expired} expired), {} leases, \
             {} settlements, {} crashes, {} steps",
            self.passed,
            self.took_ms / 1_000,
            self.counts.leases,
            self.counts.settlements,
            self.counts.crashes,
            self.counts.steps,
        );
        for failure in &self.failures {
            words.push_str("\n\n");
            words.push_str(failure);
        }
        words
    }
}
