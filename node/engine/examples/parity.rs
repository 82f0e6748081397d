//! Compares logits with reference values: `parity DIR...` prints `name max_abs_diff greedy_matches` for each
//! folder and each way through a model, for instance `llama/avx2/v4 8.94e-7 24/24`. A second line, such as
//! `llama/avx2/cached 8.94e-7 0/0`, is about the tokens behind a prefix whose pages an earlier request left in the cache.
//!
//! A folder holds `config.json`, `model.safetensors` and `expected.safetensors` with `ids` (sequences,
//! tokens), `logits` (sequences, tokens, vocabulary) and `greedy` (sequences, tokens that follow). With
//! `config.v4.json` in it, the description is read from that file as well; with `lora/start` and
//! `lora/expected.safetensors`, the adapter is compared too. A folder without reference values is named and
//! left out. Exits with 1 when no folder was compared, when any logit is further away than 1e-4, or when a greedy token
//! differs although the two best logits are more than 1e-3 apart.

#![allow(clippy::print_stdout, reason = "a command-line tool")]

use std::collections::HashMap;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use allmend_engine::Compute;
use allmend_engine::EngineError;
use allmend_engine::parity::Model;
use candle_core::{Device, Tensor};

const DIFFERENCE_MAX: f32 = 1e-4;
const GAP_MIN: f32 = 1e-3;

type Failure = Box<dyn std::error::Error>;

/// What was found about one model in one way.
#[derive(Default)]
struct Finding {
    difference: f32,
    greedy_matches: usize,
    greedy_len: usize,
    /// A greedy token differed where the choice was clear.
    wrong: bool,
}

impl Finding {
    fn good(&self) -> bool {
        self.difference <= DIFFERENCE_MAX && !self.wrong
    }
}

fn main() -> ExitCode {
    let folders: Vec<PathBuf> = std::env::args_os().skip(1).map(PathBuf::from).collect();
    if folders.is_empty() {
        eprintln!("usage: parity DIR...");
        return ExitCode::from(2);
    }
    let (mut good, mut compared) = (true, 0);
    for folder in &folders {
        if !folder.join("expected.safetensors").exists() {
            println!("{} not compared: it has no expected.safetensors", folder.display());
            continue;
        }
        compared += 1;
        for way in Compute::on_this_processor() {
            good &= report(folder, way);
        }
    }
    if good && compared > 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Prints a line per variant of a folder; false if one is not as expected.
fn report(folder: &Path, way: Compute) -> bool {
    let name = folder.file_name().unwrap_or(folder.as_os_str()).to_string_lossy().into_owned();
    let label = format!("{name}/{}", way.name());
    let mut good = true;
    let mut print = |label: &str, finding: Result<Finding, Failure>| match finding {
        Ok(finding) => {
            let Finding { difference, greedy_matches, greedy_len, .. } = finding;
            println!("{label} {difference:.2e} {greedy_matches}/{greedy_len}");
            good &= finding.good();
        }
        Err(error) => {
            println!("{label} failed: {error}");
            good = false;
        }
    };
    print(&label, compare(folder, way));
    match after_hit(folder, way) {
        // Encoders have no prefixes.
        Ok(None) => {}
        Ok(Some(finding)) => print(&format!("{label}/cached"), Ok(finding)),
        Err(error) => print(&format!("{label}/cached"), Err(error)),
    }
    if folder.join("config.v4.json").exists() {
        print(&format!("{label}/v4"), with_old_config(folder, way));
    }
    if folder.join("lora/expected.safetensors").exists() {
        print(&format!("{label}/lora"), adapted(folder, way));
    }
    good
}

fn compare(folder: &Path, way: Compute) -> Result<Finding, Failure> {
    let expected =
        candle_core::safetensors::load(folder.join("expected.safetensors"), &Device::Cpu)?;
    let ids = ids(&expected)?;
    let mut model = open(folder, way, &ids)?;
    let mut finding = Finding::default();
    let chunks: &[usize] =
        if model.bidirectional() { &[usize::MAX] } else { &[usize::MAX, 16, 7, 1] };
    for &chunk in chunks {
        let difference = difference(&mut model, &ids, &expected, chunk)?;
        finding.difference = finding.difference.max(difference);
    }
    for (ids, greedy) in ids.iter().zip(expected["greedy"].to_vec2::<i64>()?) {
        let ours = model.greedy(ids, greedy.len())?;
        for ((token, logits), expected) in ours.iter().zip(&greedy) {
            finding.greedy_len += 1;
            if i64::from(*token) == *expected {
                finding.greedy_matches += 1;
                continue;
            }
            let mut best = logits.clone();
            best.sort_by(|a, b| b.total_cmp(a));
            finding.wrong |= best[0] - best[1] > GAP_MIN;
            // What follows continues another text.
            break;
        }
    }
    Ok(finding)
}

/// Logits behind cached pages.
fn after_hit(folder: &Path, way: Compute) -> Result<Option<Finding>, Failure> {
    let expected =
        candle_core::safetensors::load(folder.join("expected.safetensors"), &Device::Cpu)?;
    let ids = ids(&expected)?;
    let mut model = open(folder, way, &ids)?;
    if model.bidirectional() {
        return Ok(None);
    }
    let mut finding = Finding::default();
    let logits = expected.get("logits").ok_or("there are no logits")?.to_vec3::<f32>()?;
    for (ids, expected) in ids.iter().zip(logits) {
        let (known, ours) = model.logits_after_hit(ids)?;
        if known == 0 {
            return Err(format!("{} tokens do not fill a page", ids.len()).into());
        }
        if ours.len() != expected.len() - known {
            return Err(format!("{} rows, expected {}", ours.len(), expected.len() - known).into());
        }
        let pairs = ours.iter().flatten().zip(expected[known..].iter().flatten());
        let larger = |a: f32, b: f32| if b <= a { a } else { b };
        finding.difference = pairs.map(|(a, b)| (a - b).abs()).fold(finding.difference, larger);
    }
    Ok(Some(finding))
}

/// The same weights under the other generation of the description.
fn with_old_config(folder: &Path, way: Compute) -> Result<Finding, Failure> {
    let scratch = std::env::temp_dir().join(format!("allmend-parity-{}", std::process::id()));
    std::fs::create_dir_all(&scratch)?;
    let copied = || -> Result<Finding, Failure> {
        std::fs::copy(folder.join("config.v4.json"), scratch.join("config.json"))?;
        for file in ["model.safetensors", "expected.safetensors"] {
            std::fs::copy(folder.join(file), scratch.join(file))?;
        }
        compare(&scratch, way)
    };
    let finding = copied();
    std::fs::remove_dir_all(&scratch)?;
    finding
}

fn adapted(folder: &Path, way: Compute) -> Result<Finding, Failure> {
    let of = |file: &str| candle_core::safetensors::load(folder.join(file), &Device::Cpu);
    let ids = ids(&of("expected.safetensors")?)?;
    let expected = of("lora/expected.safetensors")?;
    let mut model = open(folder, way, &ids)?;
    model.adapt(&folder.join("lora/start"))?;
    let difference = difference(&mut model, &ids, &expected, usize::MAX)?;
    Ok(Finding { difference, ..Finding::default() })
}

fn open(folder: &Path, way: Compute, ids: &[Vec<u32>]) -> Result<Model, EngineError> {
    // Room for the greedy continuation too.
    Model::open(folder, way, ids.iter().map(|ids| ids.len() + 64).sum())
}

fn ids(expected: &HashMap<String, Tensor>) -> Result<Vec<Vec<u32>>, Failure> {
    let rows = expected.get("ids").ok_or("there are no ids")?.to_vec2::<i64>()?;
    let ids = |row: Vec<i64>| row.into_iter().map(u32::try_from).collect::<Result<_, _>>();
    Ok(rows.into_iter().map(ids).collect::<Result<_, _>>()?)
}

fn difference(
    model: &mut Model,
    ids: &[Vec<u32>],
    expected: &HashMap<String, Tensor>,
    chunk: usize,
) -> Result<f32, Failure> {
    let expected = expected.get("logits").ok_or("there are no logits")?.to_vec3::<f32>()?;
    let sequences: Vec<&[u32]> = ids.iter().map(Vec::as_slice).collect();
    let chunk = NonZeroUsize::new(chunk).ok_or("chunks of nothing")?;
    let ours = model.logits(&sequences, chunk)?;
    let ours: Vec<f32> = ours.into_iter().flatten().flatten().collect();
    let expected: Vec<f32> = expected.into_iter().flatten().flatten().collect();
    if ours.len() != expected.len() {
        return Err(format!("{} logits, expected {}", ours.len(), expected.len()).into());
    }
    let pairs = ours.iter().zip(&expected);
    // NaN must not pass for small.
    Ok(pairs.map(|(a, b)| (a - b).abs()).fold(0.0, |a, b| if b <= a { a } else { b }))
}
