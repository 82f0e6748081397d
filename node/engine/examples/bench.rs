//! Measures one model on this machine and prints a line of JSON.
//!
//! ```text
//! RAYON_NUM_THREADS=2 cargo run --release -p allmend-engine --example bench -- MODEL.gguf [RUNS]
//! ```
//! Per run: a prompt of 512 tokens, then 128 greedy tokens. Rates are medians over the runs.
//! Loading in milliseconds, time to first token in milliseconds, rates in tokens per second, memory
//! in MiB. Processor time (`…_cpu_…`, over all threads) tells a busy machine from a slow engine.

#![allow(clippy::print_stdout, reason = "printing is what it is for")]

use std::ops::ControlFlow;
use std::path::PathBuf;
use std::time::Instant;

use allmend_engine::{Engine, EngineError, Event, Input, LoadOptions, Request};

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
    let (mut first_cpu, mut decode_cpu) = (Vec::new(), Vec::new());
    for _ in 0..runs.max(1) {
        let run = measure(&mut engine, &prompt)?;
        first.push(run.first_s);
        decode.push(run.decode_rate);
        first_cpu.push(run.first_cpu_s);
        decode_cpu.push(run.decode_cpu_s);
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
            "first_token_cpu_ms": median(&mut first_cpu) * 1e3,
            "decode_cpu_ms_per_token": median(&mut decode_cpu) * 1e3,
            "planned_mib": engine.info().memory_mib(PROMPT_TOKENS as u32 + ANSWER_TOKENS),
            "peak_mib": peak_mib(),
        })
    );
    Ok(())
}

/// One run: seconds to the first token, tokens per second after it, and processor seconds of both, the
/// latter per token.
struct Run {
    first_s: f64,
    first_cpu_s: f64,
    decode_rate: f64,
    decode_cpu_s: f64,
}

fn measure(engine: &mut Engine, prompt: &str) -> Result<Run, EngineError> {
    let request = Request::new(Input::Prompt(prompt.to_owned()), ANSWER_TOKENS);
    let (begun, cpu_begun) = (Instant::now(), cpu_s());
    let mut times = Vec::new();
    engine.generate(&request, &mut |event| {
        if let Event::Token(_) = event {
            times.push((begun.elapsed().as_secs_f64(), cpu_s() - cpu_begun));
        }
        ControlFlow::Continue(())
    })?;
    let nothing = (f64::NAN, f64::NAN);
    let (first_s, first_cpu_s) = times.first().copied().unwrap_or(nothing);
    let (last_s, last_cpu_s) = times.last().copied().unwrap_or(nothing);
    let decoded = times.len() as f64 - 1.0;
    let decode_rate = decoded / (last_s - first_s);
    Ok(Run {
        first_s,
        first_cpu_s,
        decode_rate,
        decode_cpu_s: (last_cpu_s - first_cpu_s) / decoded,
    })
}

/// Processor seconds of this process so far, in steps of a hundredth, where the operating system says.
fn cpu_s() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    // Fields 14 and 15, counted after the name in parentheses, which may itself hold blanks.
    let fields = stat.rsplit(')').next().unwrap_or_default().split_whitespace().skip(11).take(2);
    let ticks: Vec<f64> = fields.filter_map(|field| field.parse().ok()).collect();
    if ticks.len() == 2 { ticks.iter().sum::<f64>() / 100.0 } else { f64::NAN }
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
