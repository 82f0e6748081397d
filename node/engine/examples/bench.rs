//! Measures one model on this machine and prints a line of JSON.
//!
//! ```text
//! RAYON_NUM_THREADS=2 cargo run --release -p allmend-engine --example bench -- MODEL.gguf [RUNS]
//! ```
//! Per run: a prompt of 512 tokens, then 128 greedy tokens. Rates are medians over the runs.
//! Loading in milliseconds, time to first token in milliseconds, rates in tokens per second, memory
//! in MiB.

#![allow(clippy::print_stdout, reason = "printing is what it is for")]

use std::ops::ControlFlow;
use std::path::PathBuf;
use std::time::Instant;

use allmend_engine::{Engine, EngineError, Event, Input, LoadOptions, Request, Sampling};

const PROMPT_TOKENS: usize = 512;
const ANSWER_TOKENS: u32 = 128;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args_os().skip(1);
    let path = PathBuf::from(arguments.next().ok_or("usage: bench MODEL.gguf [RUNS]")?);
    let runs: usize = match arguments.next() {
        Some(runs) => runs.to_str().ok_or("RUNS is not a number")?.parse()?,
        None => 3,
    };
    let begun = Instant::now();
    let mut engine = Engine::load(&path, &LoadOptions::default())?;
    let load_ms = begun.elapsed().as_secs_f64() * 1e3;
    let prompt = prompt_of(&engine, PROMPT_TOKENS)?;
    let (mut first, mut decode) = (Vec::new(), Vec::new());
    for _ in 0..runs.max(1) {
        let (first_s, decode_rate) = measure(&mut engine, &prompt)?;
        first.push(first_s);
        decode.push(decode_rate);
    }
    let first_s = median(&mut first);
    println!(
        "{}",
        serde_json::json!({
            "model": engine.info().name,
            "quantisation": engine.info().quantisation,
            "numerics": allmend_engine::NUMERICS_VERSION,
            "threads": std::env::var(allmend_engine::THREADS_ENV).ok(),
            "load_ms": load_ms,
            "first_token_ms": first_s * 1e3,
            "prefill_tokens_per_s": PROMPT_TOKENS as f64 / first_s,
            "decode_tokens_per_s": median(&mut decode),
            "planned_mib": engine.info().memory_mib(PROMPT_TOKENS as u32 + ANSWER_TOKENS),
            "peak_mib": peak_mib(),
        })
    );
    Ok(())
}

/// Seconds to the first token, and tokens per second after it.
fn measure(engine: &mut Engine, prompt: &str) -> Result<(f64, f64), EngineError> {
    let request = Request {
        input: Input::Prompt(prompt.to_owned()),
        max_tokens: ANSWER_TOKENS,
        sampling: Sampling::GREEDY,
        stop: Vec::new(),
        forced: Vec::new(),
        clock: 0,
    };
    let begun = Instant::now();
    let mut times = Vec::new();
    engine.generate(&request, &mut |event| {
        if let Event::Token(_) = event {
            times.push(begun.elapsed().as_secs_f64());
        }
        ControlFlow::Continue(())
    })?;
    let (first, last) = (times.first().copied(), times.last().copied());
    let (first, last) = (first.unwrap_or(f64::NAN), last.unwrap_or(f64::NAN));
    Ok((first, (times.len() as f64 - 1.0) / (last - first)))
}

/// Prose of exactly the wanted number of tokens.
fn prompt_of(engine: &Engine, tokens: usize) -> Result<String, EngineError> {
    let words = ["The", " common", " land", " of", " a", " village", " feeds", " many", " herds"];
    let mut text = String::new();
    for word in words.iter().cycle() {
        let longer = format!("{text}{word}");
        if engine.count_tokens(&Input::Prompt(longer.clone()), 0)? > tokens {
            break;
        }
        text = longer;
    }
    Ok(text)
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

/// Highest resident memory of this process so far, where the operating system says.
fn peak_mib() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    Some(line.trim().strip_suffix(" kB")?.parse::<u64>().ok()? / 1_024)
}
