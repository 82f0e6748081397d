//! Throws mutated inputs at everything that reads files of strangers.
//!
//! `cargo run --release -p allmend-engine --example fuzz -- TARGET SECONDS [--seed N]`
//!
//! Targets: gguf, safetensors, config, tokenizer, template. Mutations know the structure of their format
//! (bytes and words, JSON trees, GGUF entries); inputs that make something new happen, by what the
//! target says came of them, are kept as material for more. Each input has a bound of memory
//! (`Target::bytes_max`, counted by the allocator) and of time, which a second thread watches over. An
//! input that breaks one, or panics, is left in `target/fuzz/` and ends the run with a non-zero status;
//! such inputs belong into `fuzz/corpus/`, which `cargo test` replays.

#![allow(clippy::print_stdout, reason = "a command-line tool")]

#[path = "../tests/support/counting.rs"]
mod counting;
#[path = "../tests/support/gguf_writer.rs"]
#[allow(dead_code, reason = "shared with the tests, which use more of it")]
mod gguf_writer;
#[path = "fuzz/grammar.rs"]
mod grammar;
#[path = "fuzz/mutate.rs"]
mod mutate;
#[path = "fuzz/random.rs"]
mod random;
#[path = "fuzz/seeds.rs"]
mod seeds;

use std::collections::HashSet;
use std::fs::File;
use std::io::{Seek, Write};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::process::{ExitCode, abort};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use allmend_engine::fuzzing::Target;

use self::counting::Counting;
use self::random::Random;

/// No input of the size tried here takes a hundredth of it on an idle machine; the interpreter of
/// templates has three renderings of thirty seconds before it gives up.
const SECONDS_MAX: u64 = 120;
/// Inputs kept as material.
const POOL_LEN_MAX: usize = 4_096;
const INPUT_BYTES_MAX: usize = 64 << 10;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Milliseconds since the beginning at which the input now running began; zero between inputs.
static RUNNING_SINCE: AtomicU64 = AtomicU64::new(0);

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match plan(&arguments) {
        Some((target, seconds, seed)) => fuzz(target, Duration::from_secs(seconds), seed),
        None => {
            println!("usage: fuzz TARGET SECONDS [--seed N]");
            ExitCode::FAILURE
        }
    }
}

fn plan(arguments: &[String]) -> Option<(Target, u64, u64)> {
    let (target, seconds, seed) = match arguments {
        [target, seconds] => (target, seconds, 1),
        [target, seconds, flag, seed] if flag == "--seed" => (target, seconds, seed.parse().ok()?),
        _ => return None,
    };
    let target = Target::ALL.into_iter().find(|known| known.name() == target)?;
    Some((target, seconds.parse().ok()?, seed))
}

fn fuzz(target: Target, duration: Duration, seed: u64) -> ExitCode {
    let begun = Instant::now();
    std::thread::spawn(move || watch(begun));
    // Panics are reported below, with the input.
    std::panic::set_hook(Box::new(|_| {}));
    let folder = PathBuf::from("target/fuzz");
    if let Err(error) = std::fs::create_dir_all(&folder) {
        println!("{}: {error}", folder.display());
        return ExitCode::FAILURE;
    }
    // Written before each run: an abort leaves it behind. Kept open, because some file systems flush a
    // file that was emptied when it is closed.
    let current = folder.join(format!("{}-{seed}", target.name()));
    let mut kept = match File::create(&current) {
        Ok(kept) => kept,
        Err(error) => {
            println!("{}: {error}", current.display());
            return ExitCode::FAILURE;
        }
    };
    let mut random = Random::new(seed);
    let mut pool = seeds::all(target);
    let mut seen = HashSet::new();
    let (mut runs, mut slowest, mut thirstiest) = (0u64, Duration::ZERO, 0);
    let mut fresh = pool.clone();
    while begun.elapsed() < duration {
        let mut input = match fresh.pop() {
            Some(input) => input,
            None => mutate::mutate(target, &pool, &mut random),
        };
        input.truncate(INPUT_BYTES_MAX);
        if let Err(error) = keep(&mut kept, &input) {
            println!("{}: {error}", current.display());
            return ExitCode::FAILURE;
        }
        let start = Instant::now();
        RUNNING_SINCE.store(begun.elapsed().as_millis() as u64 + 1, Ordering::Relaxed);
        let bound = target.bytes_max(input.len());
        let run = || catch_unwind(AssertUnwindSafe(|| target.run(&input)));
        let (outcome, bytes) = Counting::peak(bound.saturating_mul(2), run);
        RUNNING_SINCE.store(0, Ordering::Relaxed);
        runs += 1;
        slowest = slowest.max(start.elapsed());
        thirstiest = thirstiest.max(bytes);
        let problem = match &outcome {
            Err(_) => Some("panicked".to_owned()),
            Ok(outcome) if outcome.contains("panicked") => Some(outcome.clone()),
            Ok(_) if bytes > bound => Some(format!("took {bytes} bytes, the bound is {bound}")),
            Ok(_) => None,
        };
        if let Some(problem) = problem {
            println!("{}: {problem}; the input is {}", target.name(), current.display());
            return ExitCode::FAILURE;
        }
        if outcome.is_ok_and(|outcome| seen.insert(signature(&outcome)))
            && pool.len() < POOL_LEN_MAX
        {
            pool.push(input);
        }
    }
    println!(
        "{}: {runs} inputs, {} outcomes, slowest {} ms, {} KiB at most, seed {seed}",
        target.name(),
        seen.len(),
        slowest.as_millis(),
        thirstiest >> 10,
    );
    ExitCode::SUCCESS
}

fn keep(file: &mut File, input: &[u8]) -> std::io::Result<()> {
    file.rewind()?;
    file.write_all(input)?;
    file.set_len(input.len() as u64)
}

/// Ends the process when an input takes too long.
fn watch(begun: Instant) {
    loop {
        std::thread::sleep(Duration::from_millis(500));
        let since = RUNNING_SINCE.load(Ordering::Relaxed);
        let now = begun.elapsed().as_millis() as u64;
        if since > 0 && now.saturating_sub(since) > SECONDS_MAX * 1_000 {
            println!("an input has run for more than {SECONDS_MAX} s; it is in target/fuzz");
            abort();
        }
    }
}

/// An outcome without what varies from input to input: numbers, and what is quoted.
fn signature(outcome: &str) -> String {
    let plain = outcome.split('"').step_by(2);
    plain.flat_map(str::chars).filter(|character| !character.is_ascii_digit()).take(300).collect()
}
