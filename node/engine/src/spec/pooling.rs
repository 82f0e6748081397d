//! How a sentence-transformers model turns hidden states into one vector per text.

use std::path::Path;

use serde_json::Value;

use crate::error::EngineError;
use crate::files::map;
use crate::spec::keys::Keys;

/// `modules.json` and its companions are a few hundred bytes.
const FILE_BYTES_MAX: u64 = 1 << 16;

/// From the hidden states of a text to its embedding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Pooling {
    pub(crate) kind: PoolingKind,
    /// The vector is divided by its Euclidean length.
    pub(crate) normalise: bool,
    /// Longer texts are cut to so many tokens, special ones included, where the model says so.
    pub(crate) tokens_max: Option<usize>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PoolingKind {
    /// The mean over all tokens, special ones included.
    Mean,
    /// The first token's state.
    First,
}

impl Pooling {
    /// One vector from the hidden states of a text.
    ///
    /// # Shapes
    /// `states`: (tokens, width), at least one token. Returns (width).
    pub(crate) fn apply(&self, states: &[f32], width: usize) -> Vec<f32> {
        let rows = states.chunks_exact(width.max(1));
        let tokens = rows.len().max(1) as f64;
        let mut pooled = vec![0f64; width];
        match self.kind {
            PoolingKind::Mean => {
                for row in rows {
                    for (sum, &state) in pooled.iter_mut().zip(row) {
                        *sum += f64::from(state) / tokens;
                    }
                }
            }
            PoolingKind::First => {
                for (first, &state) in pooled.iter_mut().zip(states) {
                    *first = f64::from(state);
                }
            }
        }
        // As torch's `normalize`, which does not divide by less than this.
        let length = pooled.iter().map(|value| value * value).sum::<f64>().sqrt().max(1e-12);
        let divisor = if self.normalise { length } else { 1.0 };
        pooled.into_iter().map(|value| (value / divisor) as f32).collect()
    }

    /// Reads `modules.json` of a folder and what it points to; None where there is none.
    ///
    /// # Errors
    /// Names the module or mode that this build does not know.
    pub(crate) fn read(folder: &Path) -> Result<Option<Self>, EngineError> {
        let path = folder.join("modules.json");
        if !path.exists() {
            return Ok(None);
        }
        let modules = json(&path)?;
        let modules = modules.as_array().map(Vec::as_slice).unwrap_or_default();
        let kinds: Vec<(&str, &str)> = modules
            .iter()
            .map(|module| {
                let text = |key: &str| module.get(key).and_then(Value::as_str).unwrap_or_default();
                (text("type"), text("path"))
            })
            .collect();
        let last = |name: &str| name.rsplit('.').next().unwrap_or_default().to_owned();
        let names: Vec<String> = kinds.iter().map(|(kind, _)| last(kind)).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let normalise = match names.as_slice() {
            ["Transformer", "Pooling"] => false,
            ["Transformer", "Pooling", "Normalize"] => true,
            _ => {
                return Err(EngineError::UnsupportedFeature {
                    key: "modules.json".to_owned(),
                    value: names.join(", ").chars().take(64).collect(),
                    reason: "known is Transformer, Pooling and perhaps Normalize",
                });
            }
        };
        let pooling = kinds.get(1).map_or("", |(_, path)| path);
        let plain = pooling.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
        if !plain {
            return Err(EngineError::metadata("modules.json", "names a folder outside the model"));
        }
        let kind = kind(&json(&folder.join(pooling).join("config.json"))?)?;
        Ok(Some(Self { kind, normalise, tokens_max: tokens_max(folder)? }))
    }
}

fn kind(config: &Value) -> Result<PoolingKind, EngineError> {
    let file = "pooling config.json";
    let map =
        config.as_object().ok_or_else(|| EngineError::metadata(file, "is not a JSON object"))?;
    let keys = Keys::new("pooling ", map);
    let mean = keys.bool_or("pooling_mode_mean_tokens", false)?;
    let first = keys.bool_or("pooling_mode_cls_token", false)?;
    let reason = "known are the mean over tokens and the first token";
    for key in [
        "pooling_mode_max_tokens",
        "pooling_mode_mean_sqrt_len_tokens",
        "pooling_mode_weightedmean_tokens",
        "pooling_mode_lasttoken",
    ] {
        keys.only(key, Value::Bool(false), reason)?;
    }
    keys.only("include_prompt", Value::Bool(true), "prompts are part of the text")?;
    keys.finish(&["word_embedding_dimension"])?;
    match (mean, first) {
        (true, false) => Ok(PoolingKind::Mean),
        (false, true) => Ok(PoolingKind::First),
        _ => Err(keys.unsupported("pooling_mode_mean_tokens", reason)),
    }
}

fn tokens_max(folder: &Path) -> Result<Option<usize>, EngineError> {
    let path = folder.join("sentence_bert_config.json");
    if !path.exists() {
        return Ok(None);
    }
    let config = json(&path)?;
    let Some(map) = config.as_object() else { return Ok(None) };
    Keys::new("sentence_bert_config.json ", map).size("max_seq_length", super::CONTEXT_MAX)
}

fn json(path: &Path) -> Result<Value, EngineError> {
    let text = map::read_small(path, FILE_BYTES_MAX)?;
    serde_json::from_slice(&text).map_err(|error| {
        EngineError::metadata(path.display().to_string(), format!("is not JSON: {error}"))
    })
}
