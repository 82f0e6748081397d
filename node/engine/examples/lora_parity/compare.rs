//! One reference run against ours.

use std::collections::HashMap;
use std::path::Path;

use allmend_engine::train::{AdapterFiles, Base, Example, Recipe, Schedule, TrainOptions, Trainer};
use candle_core::{Device, Tensor};
use serde::Deserialize;

const LOGITS_MAX: f64 = 1e-4;
const LOSS_MAX: f64 = 1e-4;
const ADAPTER_MAX: f64 = 1e-3;

pub(crate) type Failure = Box<dyn std::error::Error>;

/// `run.json`
#[derive(Deserialize)]
struct Run {
    lr: f64,
    betas: [f64; 2],
    eps: f64,
    weight_decay: f64,
    max_grad_norm: f64,
    steps: u64,
    batch: u32,
    length: u32,
    targets: Vec<String>,
    r: u32,
    alpha: f64,
    losses: Vec<f64>,
}

/// The largest differences found.
pub(crate) struct Finding {
    pub(crate) logits: f64,
    /// Relative.
    pub(crate) loss: f64,
    pub(crate) adapter: f64,
}

impl Finding {
    pub(crate) fn good(&self) -> bool {
        // NaN must not pass for small.
        self.logits <= LOGITS_MAX && self.loss <= LOSS_MAX && self.adapter <= ADAPTER_MAX
    }
}

/// Trains as the reference did, from its first adapter on.
pub(crate) fn compare(folder: &Path) -> Result<Finding, Failure> {
    let run: Run = serde_json::from_slice(&std::fs::read(folder.join("lora/run.json"))?)?;
    let recipe = Recipe {
        rank: run.r,
        alpha: run.alpha,
        targets: run.targets.clone(),
        steps: run.steps,
        batch: run.batch,
        // Of the logits' rows, which are longer.
        sequence_tokens: run.length.max(64),
        learning_rate: run.lr,
        schedule: Schedule::Constant,
        weight_decay: run.weight_decay,
        beta1: run.betas[0],
        beta2: run.betas[1],
        epsilon: run.eps,
        clip_norm: Some(run.max_grad_norm),
        ..Recipe::default()
    };
    let start = AdapterFiles::read(&folder.join("lora/start"))?;
    let options = TrainOptions { start: Some(start), ..TrainOptions::default() };
    let mut trainer = Trainer::new(&Base::open(folder)?, &recipe, &options)?;
    let logits = logits(folder, &trainer)?;
    let batches = load(&folder.join("lora/batches.safetensors"))?;
    let (ids, masks) = (rows(&batches, "ids")?, rows(&batches, "mask")?);
    let mut loss = 0.0;
    for ((ids, masks), expected) in ids.iter().zip(&masks).zip(&run.losses) {
        let batch: Vec<Example> = ids
            .iter()
            .zip(masks)
            .map(|(ids, mask)| Example {
                ids: ids.iter().map(|&id| id as u32).collect(),
                labels: mask.iter().map(|&label| label == 1).collect(),
                subject: None,
            })
            .collect();
        let report = trainer.step(&[&batch])?;
        loss = worse(loss, (report.loss - expected).abs() / expected.abs());
    }
    let ours = tensors(&trainer.adapter().safetensors)?;
    let expected = load(&folder.join("lora/end/adapter_model.safetensors"))?;
    if ours.len() != expected.len() {
        return Err(format!("{} tensors, expected {}", ours.len(), expected.len()).into());
    }
    let mut adapter = 0.0;
    for (name, expected) in expected {
        let ours = ours.get(&name).ok_or_else(|| format!("there is no {name}"))?;
        adapter = worse(adapter, difference(ours, &expected)?);
    }
    Ok(Finding { logits, loss, adapter })
}

/// The largest difference of logits with the first adapter.
fn logits(folder: &Path, trainer: &Trainer) -> Result<f64, Failure> {
    let ids = load(&folder.join("expected.safetensors"))?;
    let ids = ids.get("ids").ok_or("there are no ids")?.to_vec2::<i64>()?;
    let expected = load(&folder.join("lora/expected.safetensors"))?;
    let expected = expected.get("logits").ok_or("there are no logits")?.to_vec3::<f32>()?;
    let mut worst = 0.0;
    for (ids, expected) in ids.iter().zip(expected) {
        let ids: Vec<u32> = ids.iter().map(|&id| id as u32).collect();
        let ours = trainer.logits(&ids)?;
        for (ours, expected) in ours.iter().flatten().zip(expected.iter().flatten()) {
            worst = worse(worst, f64::from(ours - expected).abs());
        }
    }
    Ok(worst)
}

fn rows(file: &HashMap<String, Tensor>, name: &str) -> Result<Vec<Vec<Vec<i64>>>, Failure> {
    Ok(file.get(name).ok_or_else(|| format!("there is no {name}"))?.to_vec3::<i64>()?)
}

fn load(path: &Path) -> Result<HashMap<String, Tensor>, Failure> {
    Ok(candle_core::safetensors::load(path, &Device::Cpu)?)
}

fn tensors(bytes: &[u8]) -> Result<HashMap<String, Tensor>, Failure> {
    Ok(candle_core::safetensors::load_buffer(bytes, &Device::Cpu)?)
}

fn difference(a: &Tensor, b: &Tensor) -> Result<f64, Failure> {
    Ok((a - b)?.abs()?.flatten_all()?.max(0)?.to_scalar::<f32>()?.into())
}

/// The larger, where what is no number is the largest.
fn worse(a: f64, b: f64) -> f64 {
    if b <= a { a } else { b }
}
