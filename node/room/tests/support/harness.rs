//! A harness for tests whose own program is what they seal: the usual one has threads before it begins.

use std::panic::AssertUnwindSafe;
use std::process::{Command, ExitCode};

use allmend_room::Facts;

/// Runs the tests whose names contain one of the arguments, or all, and says how each went.
pub(crate) fn run(tests: &[(&str, fn())]) -> ExitCode {
    let wanted: Vec<String> = std::env::args().skip(1).filter(|a| !a.starts_with('-')).collect();
    let mut failed = 0;
    let chosen = tests
        .iter()
        .filter(|(name, _)| wanted.is_empty() || wanted.iter().any(|w| name.contains(w.as_str())));
    for (name, test) in chosen {
        let outcome = std::panic::catch_unwind(AssertUnwindSafe(test));
        let word = if outcome.is_ok() { "ok" } else { "FAILED" };
        println!("test {name} ... {word}");
        failed += usize::from(outcome.is_err());
    }
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// This very program in another role.
pub(crate) fn this_as(role: &str) -> Command {
    let mut command = Command::new(std::env::current_exe().expect("the test's own program"));
    command.arg(role);
    command
}

/// Prints what a room lacks, so that nobody takes a weaker machine's silence for a pass.
pub(crate) fn say_what_is_missing(facts: &Facts, wanted: allmend_room::Strength) {
    for lacking in facts.lacking(wanted) {
        println!("!!! NOT TESTED HERE, this machine does not offer it: {lacking}");
    }
}
