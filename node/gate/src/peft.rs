//! `adapter_config.json` as PEFT reads it, in one form (specs/adapter.md §3).

use serde::{Deserialize, Serialize};

/// The most bytes of the file.
pub(crate) const CONFIG_BYTES_MAX: usize = 16 << 10;
const TEXT_BYTES_MAX: usize = 200;
const TARGETS_MAX: usize = 64;

/// What a plain LoRA adapter says of itself to PEFT.
#[derive(Clone, Debug, PartialEq)]
pub struct PeftConfig {
    /// The base model, for people and for PEFT.
    pub base_model_name_or_path: String,
    /// Whether the base stores the weights that are changed transposed (GPT-2's `Conv1D`).
    pub fan_in_fan_out: bool,
    /// The scale's numerator.
    pub lora_alpha: u32,
    /// Dropout in training, 0 to below 1.
    pub lora_dropout: f64,
    /// The rank.
    pub r: u32,
    /// Names of the modules that are changed.
    pub target_modules: Vec<String>,
}

/// The file's keys, in its order.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    alpha_pattern: Empty,
    base_model_name_or_path: String,
    bias: String,
    fan_in_fan_out: bool,
    inference_mode: bool,
    init_lora_weights: bool,
    lora_alpha: u32,
    lora_dropout: f64,
    peft_type: String,
    r: u32,
    rank_pattern: Empty,
    target_modules: Vec<String>,
    task_type: String,
    use_dora: bool,
    use_rslora: bool,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Empty {}

impl PeftConfig {
    /// The file.
    pub fn file(&self) -> Vec<u8> {
        let mut target_modules = self.target_modules.clone();
        target_modules.sort();
        target_modules.dedup();
        let file = File {
            alpha_pattern: Empty {},
            base_model_name_or_path: self.base_model_name_or_path.clone(),
            bias: "none".to_owned(),
            fan_in_fan_out: self.fan_in_fan_out,
            inference_mode: true,
            init_lora_weights: true,
            lora_alpha: self.lora_alpha,
            lora_dropout: self.lora_dropout,
            peft_type: "LORA".to_owned(),
            r: self.r,
            rank_pattern: Empty {},
            target_modules,
            task_type: "CAUSAL_LM".to_owned(),
            use_dora: false,
            use_rslora: false,
        };
        // Text keys and plain values always serialise.
        let mut bytes = serde_json::to_vec_pretty(&file).unwrap_or_default();
        bytes.push(b'\n');
        bytes
    }

    /// Reads a file that [`PeftConfig::file`] could have written, and no other.
    ///
    /// # Errors
    /// In words, what is wrong.
    pub fn read(bytes: &[u8]) -> Result<PeftConfig, &'static str> {
        if bytes.len() > CONFIG_BYTES_MAX {
            return Err("is longer than any");
        }
        let file: File =
            serde_json::from_slice(bytes).map_err(|_| "is not that of a plain LoRA adapter")?;
        let config = PeftConfig {
            base_model_name_or_path: file.base_model_name_or_path,
            fan_in_fan_out: file.fan_in_fan_out,
            lora_alpha: file.lora_alpha,
            lora_dropout: file.lora_dropout,
            r: file.r,
            target_modules: file.target_modules,
        };
        config.check()?;
        if config.file() != bytes {
            return Err("is not in the one form allowed");
        }
        Ok(config)
    }

    pub(crate) fn check(&self) -> Result<(), &'static str> {
        let text = |text: &str| {
            (1..=TEXT_BYTES_MAX).contains(&text.len()) && !text.chars().any(char::is_control)
        };
        if !text(&self.base_model_name_or_path)
            || !self.target_modules.iter().all(|name| text(name))
        {
            return Err("has a name that is empty, too long, or no name");
        }
        if !(1..=TARGETS_MAX).contains(&self.target_modules.len()) {
            return Err("names no target modules, or too many");
        }
        if self.r == 0 || self.lora_alpha == 0 || !(0.0..1.0).contains(&self.lora_dropout) {
            return Err("has a rank, alpha or dropout out of range");
        }
        Ok(())
    }
}
