//! Compares training with reference runs: `lora_parity DIR...` prints `family logits_diff loss_rel adapter_diff` for each
//! folder, and `ok` or `FAILED`.
//!
//! A folder holds a base model (`config.json`, `model.safetensors`), `expected.safetensors` with `ids` (sequences,
//! tokens), and in `lora/` the adapter that the run began with (`start`) and ended with (`end`), `run.json` (settings
//! and the loss of each step), `batches.safetensors` (`ids` and `mask`, each (steps, rows, tokens)) and
//! `expected.safetensors` (`logits` of base and first adapter). Exits with 1 when a logit is further away than 1e-4,
//! a loss further than 1e-4 of itself, or a number of the last adapter further than 1e-3; folders without `lora/` are
//! passed over, but not all of them.

#![allow(clippy::print_stdout, reason = "a command-line tool")]

mod compare;

use std::path::PathBuf;
use std::process::ExitCode;

use self::compare::{Finding, compare};

fn main() -> ExitCode {
    let folders: Vec<PathBuf> = std::env::args_os().skip(1).map(PathBuf::from).collect();
    if folders.is_empty() {
        eprintln!("usage: lora_parity DIR...");
        return ExitCode::from(2);
    }
    let (mut good, mut compared) = (true, 0);
    for folder in &folders {
        let name = folder.file_name().unwrap_or(folder.as_os_str()).to_string_lossy();
        if folder.is_dir() && !folder.join("lora").exists() {
            println!("{name} not compared: it has no lora/");
            continue;
        }
        compared += 1;
        match compare(folder) {
            Ok(finding) => {
                let ok = finding.good();
                let Finding { logits, loss, adapter } = finding;
                let verdict = if ok { "ok" } else { "FAILED" };
                println!("{name} {logits:.2e} {loss:.2e} {adapter:.2e} {verdict}");
                good &= ok;
            }
            Err(error) => {
                println!("{name} FAILED: {error}");
                good = false;
            }
        }
    }
    if good && compared > 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
