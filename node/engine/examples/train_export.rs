//! Trains a little and writes what came out, for other implementations to compare with.
//!
//! ```text
//! train_export adapter MODEL OUT [--targets a,b] [--steps N]    a few steps: the adapter, and logits with it
//! train_export subjects MODEL OUT [--start ADAPTER]             gradient norms by subject, and the clipped sum
//! ```
//! `adapter` writes `adapter_config.json`, `adapter_model.safetensors` and `logits.json` (`ids`, `logits`).
//! `subjects` reads settings from `ADAPTER/adapter_config.json` (rank, alpha, targets) and writes
//! `subjects.json` (`rows` by subject with `ids` and `labels`, `clip_norm`, `norms`) and `sum.safetensors`, with tensors named
//! as the adapter's.

use std::path::{Path, PathBuf};

use allmend_engine::train::{
    AdapterFiles, Base, Example, NoiseKey, Privacy, Recipe, Subject, TrainOptions, Trainer,
};
use serde_json::{Value, json};

type Failure = Box<dyn std::error::Error>;

const CLIP_NORM: f64 = 0.05;

fn main() -> Result<(), Failure> {
    let mut arguments: Vec<String> = std::env::args().skip(1).collect();
    let mut option = |name: &str| {
        let at = arguments.iter().position(|argument| argument == name)?;
        let value = arguments.get(at + 1).cloned();
        arguments.drain(at..(at + 2).min(arguments.len()));
        value
    };
    let targets = option("--targets").unwrap_or_else(|| "q_proj,v_proj".to_owned());
    let steps = option("--steps").map_or(Ok(4), |steps| steps.parse())?;
    let start = option("--start").map(PathBuf::from);
    let [task, model, out] = arguments.as_slice() else {
        return Err("usage: train_export adapter|subjects MODEL OUT …".into());
    };
    let (model, out) = (Path::new(model), Path::new(out));
    std::fs::create_dir_all(out)?;
    match task.as_str() {
        "adapter" => adapter(model, out, &targets, steps),
        "subjects" => subjects(model, out, &start.ok_or("subjects needs --start")?),
        _ => Err(format!("unknown task {task}").into()),
    }
}

fn adapter(model: &Path, out: &Path, targets: &str, steps: u64) -> Result<(), Failure> {
    let recipe = Recipe {
        rank: 4,
        alpha: 8.0,
        targets: targets.split(',').map(str::to_owned).collect(),
        steps,
        learning_rate: 1e-2,
        sequence_tokens: 64,
        ..Recipe::default()
    };
    let mut trainer = Trainer::new(&Base::open(model)?, &recipe, &TrainOptions::default())?;
    let vocab = trainer.vocabulary_tokens();
    for step in 0..steps {
        let rows: Vec<Example> = (0..4).map(|at| row(100 * step + at, 32, vocab)).collect();
        trainer.step(&[&rows])?;
    }
    let AdapterFiles { config_json, safetensors } = trainer.adapter();
    std::fs::write(out.join("adapter_config.json"), config_json)?;
    std::fs::write(out.join("adapter_model.safetensors"), safetensors)?;
    let ids = row(7, 40, vocab).ids;
    let told = json!({ "ids": ids, "logits": trainer.logits(&ids)? });
    Ok(std::fs::write(out.join("logits.json"), told.to_string())?)
}

fn subjects(model: &Path, out: &Path, start: &Path) -> Result<(), Failure> {
    let files = AdapterFiles::read(start)?;
    let config: Value = serde_json::from_slice(&files.config_json)?;
    let targets = config["target_modules"].as_array().ok_or("no target_modules")?;
    let privacy =
        Privacy { clip_norm: CLIP_NORM, noise_multiplier: 0.0, sampling_rate: 1.0, divisor: 1.0 };
    let recipe = Recipe {
        rank: config["r"].as_u64().ok_or("no r")? as u32,
        alpha: config["lora_alpha"].as_f64().ok_or("no lora_alpha")?,
        targets: targets.iter().filter_map(|target| target.as_str().map(str::to_owned)).collect(),
        batch: 2,
        sequence_tokens: 64,
        privacy: Some(privacy),
        ..Recipe::default()
    };
    // Nothing is drawn from it here.
    let noise = Some(NoiseKey::new([0; 32]));
    let options = TrainOptions { start: Some(files), noise, ..TrainOptions::default() };
    let trainer = Trainer::new(&Base::open(model)?, &recipe, &options)?;
    // Subjects with one row to four, of different lengths; the first tokens are no labels.
    let vocab = trainer.vocabulary_tokens();
    let all: Vec<Vec<Example>> = (0..6u64)
        .map(|subject| {
            (0..=subject % 4)
                .map(|at| {
                    let mut row = row(10 * subject + at, 12 + 7 * at, vocab);
                    row.labels[..4].fill(false);
                    row.subject = Some(Subject([subject as u8; 32]));
                    row
                })
                .collect()
        })
        .collect();
    let slices: Vec<&[Example]> = all.iter().map(Vec::as_slice).collect();
    let found = trainer.clipped_sum(&slices)?;
    let rows: Vec<Vec<Value>> = all
        .iter()
        .map(|rows| {
            let row = |row: &Example| json!({ "ids": row.ids, "labels": row.labels });
            rows.iter().map(row).collect()
        })
        .collect();
    let told = json!({ "rows": rows, "clip_norm": CLIP_NORM, "norms": found.norms });
    std::fs::write(out.join("subjects.json"), told.to_string())?;
    Ok(std::fs::write(out.join("sum.safetensors"), trainer.sum_as_adapter(&found).safetensors)?)
}

/// Token ids from 3 up, different for each number.
fn row(number: u64, len: u64, vocab: usize) -> Example {
    let id =
        |at: u64| 3 + ((number + 1) * 7_919 + at * 104_729 + at * at * 31) % (vocab as u64 - 3);
    Example::whole((0..len).map(|at| id(at) as u32).collect())
}
