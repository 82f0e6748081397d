//! Measures fine-tuning of one model on this machine and prints a line of JSON.
//!
//! ```text
//! cargo run --release -p allmend-engine --example train_bench -- MODEL [--batch N] [--tokens N] [--rank N]
//!     [--targets a,b] [--steps N] [--recompute] [--bf16]
//! ```
//! One optimiser step after the other over `--batch` rows of `--tokens` tokens, all of them labels; the first step does
//! not count. Seconds are wall-clock medians, memory is the most that was resident at any time, in MiB. The number of
//! threads is taken from `RAYON_NUM_THREADS`. Rows are the same numbers in every implementation (see `row`), so losses
//! can be compared.

#![allow(clippy::print_stdout, reason = "printing is what it is for")]

use std::path::PathBuf;
use std::time::Instant;

use allmend_engine::train::{Base, Example, Precision, Recipe, TrainOptions, Trainer};
use serde_json::json;

type Failure = Box<dyn std::error::Error>;

struct Options {
    model: PathBuf,
    batch: u32,
    tokens: u32,
    rank: u32,
    targets: Vec<String>,
    steps: u64,
    recompute: bool,
    bf16: bool,
}

fn main() -> Result<(), Failure> {
    let options = Options::parse(std::env::args().skip(1))?;
    let recipe = Recipe {
        rank: options.rank,
        alpha: f64::from(2 * options.rank),
        targets: options.targets.clone(),
        steps: options.steps + 1,
        batch: options.batch,
        sequence_tokens: options.tokens,
        learning_rate: 1e-3,
        recompute: options.recompute,
        precision: if options.bf16 { Precision::Bf16 } else { Precision::F32 },
        ..Recipe::default()
    };
    let started = Instant::now();
    let base = Base::open(&options.model)?;
    let plan = base.plan(&recipe)?;
    let mut trainer = Trainer::new(&base, &recipe, &TrainOptions::default())?;
    let load = started.elapsed().as_secs_f64();
    let (mut times, mut losses) = (Vec::new(), Vec::new());
    for step in 0..=options.steps {
        let rows: Vec<Example> = (0..options.batch)
            .map(|row| Example::whole(self::row(step, row, options.tokens)))
            .collect();
        let started = Instant::now();
        let report = trainer.step(&[&rows])?;
        times.push(started.elapsed().as_secs_f64());
        losses.push(report.loss);
    }
    let mut counted = times.split_off(1);
    counted.sort_by(f64::total_cmp);
    // What the products alone would take at the speed that this machine multiplies with now.
    let products = base.duration(&recipe, rayon::current_num_threads() as u32)?;
    let told = json!({
        "products_seconds_per_step": products.as_secs_f64() / recipe.steps as f64,
        "seconds_per_step": counted[counted.len() / 2],
        "seconds": counted,
        "load_seconds": load,
        "peak_mib": peak_mib(),
        "planned_mib": plan.total_bytes() >> 20,
        "losses": losses,
        "parameters": trainer.parameter_count(),
        "threads": rayon::current_num_threads(),
        "numerics": trainer.numerics(),
    });
    println!("{told}");
    Ok(())
}

/// Token ids that any language computes alike; all below 49,152.
fn row(step: u64, row: u32, tokens: u32) -> Vec<u32> {
    let place = |at: u32| (step * 1_000 + u64::from(row)) * 7_919 + u64::from(at) * 104_729;
    (0..tokens).map(|at| (100 + place(at) % 40_009) as u32).collect()
}

/// The most that was ever resident; 0 where the operating system does not say.
fn peak_mib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib = line.and_then(|line| line.trim().strip_suffix(" kB")?.parse::<u64>().ok());
    kib.unwrap_or(0) / 1_024
}

impl Options {
    fn parse(mut arguments: impl Iterator<Item = String>) -> Result<Self, Failure> {
        let mut options = Self {
            model: PathBuf::new(),
            batch: 4,
            tokens: 128,
            rank: 8,
            targets: vec!["q_proj".to_owned(), "v_proj".to_owned()],
            steps: 5,
            recompute: false,
            bf16: false,
        };
        while let Some(argument) = arguments.next() {
            let mut value = || arguments.next().ok_or_else(|| format!("{argument} needs a value"));
            match argument.as_str() {
                "--batch" => options.batch = value()?.parse()?,
                "--tokens" => options.tokens = value()?.parse()?,
                "--rank" => options.rank = value()?.parse()?,
                "--steps" => options.steps = value()?.parse()?,
                "--targets" => options.targets = value()?.split(',').map(str::to_owned).collect(),
                "--recompute" => options.recompute = true,
                "--bf16" => options.bf16 = true,
                flag if flag.starts_with("--") => {
                    return Err(format!("unknown option {flag}").into());
                }
                _ => options.model = argument.into(),
            }
        }
        if options.model.as_os_str().is_empty() || options.steps == 0 {
            return Err("usage: train_bench MODEL [--batch N] [--tokens N] [--rank N] [--targets a,b] [--steps N] [--recompute]".into());
        }
        Ok(options)
    }
}
