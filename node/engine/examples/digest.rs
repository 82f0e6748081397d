//! Shows that answers depend on nothing but the request: computes the same ones in many ways and compares their
//! digests.
//!
//! ```text
//! cargo run --release -p allmend-engine --example digest -- MODEL [--prompts N] [--tokens N] [--json]
//! ```
//! By default 32 prompts with 128 tokens each, once greedily and once with temperature 0.8, top-p 0.95 and a seed per
//! prompt. The ways: one by one and 16 together, one thread and two, prompts whole and in chunks of 7, each set of
//! instructions that the processor has, with a prefix cache and asked twice, with drafts, and with so little cache
//! that requests are computed again. End tokens are banned, so that all answers have the full length.
//!
//! Prints a SHA-256 over all token ids and texts per way and sampling, and exits with 1 when any is different.

#![allow(clippy::print_stdout, reason = "printing is what it is for")]

#[path = "digest/prompts.rs"]
mod prompts;
#[path = "digest/settings.rs"]
mod settings;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use allmend_engine::NUMERICS_VERSION;
use serde_json::json;

use crate::settings::{Failure, Setting, Work};

const USAGE: &str = "usage: digest MODEL [--prompts N] [--tokens N] [--json]";

fn main() -> Result<ExitCode, Failure> {
    let (mut model, mut count, mut tokens, mut json) = (None, prompts::PROMPTS.len(), 128, false);
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        let mut value = || arguments.next().ok_or(USAGE);
        match argument.as_str() {
            "--prompts" => count = value()?.parse()?,
            "--tokens" => tokens = value()?.parse()?,
            "--json" => json = true,
            flag if flag.starts_with('-') => return Err(USAGE.into()),
            _ => model = Some(PathBuf::from(argument)),
        }
    }
    let model = model.ok_or(USAGE)?;
    eprintln!("learning how answers end");
    let work = Work::prepare(&model, count, tokens)?;
    let mut expected = BTreeMap::new();
    let (mut lines, mut all_equal) = (Vec::new(), true);
    for setting in Setting::all() {
        eprintln!("{}", setting.name);
        let begun = Instant::now();
        let outcome = setting.run(&model, &work)?;
        let seconds = begun.elapsed().as_secs_f64();
        for (sampling, digest) in outcome.digests {
            let equal = *expected.entry(sampling).or_insert_with(|| digest.clone()) == digest;
            all_equal &= equal;
            if !json {
                let verdict = if equal { "equal" } else { "DIFFERENT" };
                println!("{digest} {verdict} {sampling} {}", setting.name);
            }
            let name = &setting.name;
            lines.push(
                json!({ "setting": name, "sampling": sampling, "sha256": digest, "equal": equal }),
            );
        }
        let stats = outcome.stats;
        eprintln!(
            "  {seconds:.1} s, {} tokens from the prefix cache, {} of {} guesses right, {} preemptions",
            stats.cached_tokens, stats.accepted, stats.drafted, stats.preemptions
        );
        if let Some(line) = lines.last_mut() {
            line["seconds"] = json!(seconds);
            line["cached_tokens"] = json!(stats.cached_tokens);
            line["drafted"] = json!(stats.drafted);
            line["accepted"] = json!(stats.accepted);
            line["preemptions"] = json!(stats.preemptions);
        }
    }
    let compared = work.answered_tokens();
    if json {
        let told = json!({
            "numerics": NUMERICS_VERSION, "tokens": compared, "equal": all_equal, "digests": lines,
        });
        println!("{told}");
    } else {
        let verdict = if all_equal { "equal" } else { "DIFFERENT" };
        println!("{verdict}: {} digests of {compared} tokens each", lines.len());
    }
    Ok(if all_equal { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
