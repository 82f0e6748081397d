//! Adapters as PEFT writes and reads them: `adapter_config.json` and `adapter_model.safetensors`.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::{Value, json};

use super::error::TrainError;
use super::lora::Lora;
use super::recipe::Recipe;
use crate::adapter;
use crate::error::EngineError;
use crate::files::{map, safetensors};

/// Far above any adapter's description.
const CONFIG_BYTES_MAX: u64 = 1 << 18;
/// The largest adapter that a run starts from.
const TENSORS_BYTES_MAX: u64 = 8 << 30;
const PREFIX: &str = "base_model.model.";

/// The two files of an adapter, as bytes. Equal parameters and recipes give equal bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AdapterFiles {
    /// `adapter_config.json`
    pub config_json: Vec<u8>,
    /// `adapter_model.safetensors`
    pub safetensors: Vec<u8>,
}

/// An adapter without its values.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AdapterShape {
    /// Name and shape of each tensor, row-major.
    pub tensors: Vec<(String, [usize; 2])>,
    /// Whether the base stores the changed weights transposed (`fan_in_fan_out`).
    pub fan_in_fan_out: bool,
}

impl AdapterShape {
    pub(crate) fn of(lora: &Lora) -> Self {
        let both = |module: &super::lora::Module| {
            let name = |factor: &str| format!("{PREFIX}{}.{factor}.weight", module.name);
            [
                (name("lora_A"), [lora.rank, module.inputs]),
                (name("lora_B"), [module.outputs, lora.rank]),
            ]
        };
        let tensors = lora.modules.iter().flat_map(both).collect();
        let fan_in_fan_out = lora.modules.iter().any(|module| module.transposed);
        Self { tensors, fan_in_fan_out }
    }
}

impl AdapterFiles {
    /// Reads both files of a folder.
    ///
    /// # Errors
    /// When one is missing or larger than any adapter.
    pub fn read(folder: &Path) -> Result<Self, TrainError> {
        let config_json = map::read_small(&folder.join("adapter_config.json"), CONFIG_BYTES_MAX)?;
        let tensors = folder.join("adapter_model.safetensors");
        let safetensors = map::read_small(&tensors, TENSORS_BYTES_MAX)?;
        Ok(Self { config_json, safetensors })
    }

    pub(crate) fn of(lora: &Lora, parameters: &[f32], recipe: &Recipe) -> Self {
        let mut tensors = BTreeMap::new();
        for module in &lora.modules {
            let a = parameters[module.a.clone()].to_vec();
            let b = &parameters[module.b.clone()];
            let mut turned = vec![0.0; b.len()];
            for (from, &row) in b.chunks_exact(lora.rank).zip(&module.rows) {
                turned[row * lora.rank..(row + 1) * lora.rank].copy_from_slice(from);
            }
            let name = |factor: &str| format!("{PREFIX}{}.{factor}.weight", module.name);
            tensors.insert(name("lora_A"), ([lora.rank, module.inputs], a));
            tensors.insert(name("lora_B"), ([module.outputs, lora.rank], turned));
        }
        let config_json = config(lora, recipe);
        Self { config_json, safetensors: write(&tensors) }
    }

    /// The parameters, in the engine's order.
    ///
    /// # Errors
    /// When the files are damaged, or belong to another recipe or model.
    pub(crate) fn parameters(&self, lora: &Lora) -> Result<Vec<f32>, TrainError> {
        let (rank, scale) = adapter::settings_of(&self.config_json)?;
        if rank != lora.rank || (scale - lora.scale).abs() > 1e-6 * lora.scale.abs() {
            let problem = format!(
                "rank {rank} and scale {scale}, but the recipe has {} and {}",
                lora.rank, lora.scale
            );
            return Err(EngineError::metadata("adapter_config.json", problem).into());
        }
        let file = &self.safetensors;
        let entries = safetensors::parse(file).map_err(|source| EngineError::Safetensors {
            path: "adapter_model.safetensors".into(),
            source,
        })?;
        if let Some(name) = entries.keys().find(|name| {
            let bare = name.strip_prefix(PREFIX).unwrap_or(name);
            let known = |factor| {
                let module = bare.strip_suffix(factor);
                module.is_some_and(|module| lora.modules.iter().any(|known| known.name == module))
            };
            !known(".lora_A.weight") && !known(".lora_B.weight")
        }) {
            let problem = "changes a module that is no target of the recipe";
            return Err(EngineError::tensor(name, problem).into());
        }
        let factor = |name: String, shape: [usize; 2]| -> Result<Vec<f32>, EngineError> {
            let entry =
                entries.get(&name).ok_or_else(|| EngineError::tensor(&name, "is missing"))?;
            if entry.shape != shape {
                let problem = format!("has shape {:?}, expected {shape:?}", entry.shape);
                return Err(EngineError::tensor(name, problem));
            }
            let bytes = file.get(entry.range.clone()).unwrap_or_default();
            adapter::floats(&entry.dtype, bytes).ok_or_else(|| {
                EngineError::tensor(name, format!("is stored as {}, not as floats", entry.dtype))
            })
        };
        let mut parameters = vec![0.0; lora.len()];
        for module in &lora.modules {
            let name = |factor: &str| format!("{PREFIX}{}.{factor}.weight", module.name);
            let a = factor(name("lora_A"), [lora.rank, module.inputs])?;
            parameters[module.a.clone()].copy_from_slice(&a);
            let b = factor(name("lora_B"), [module.outputs, lora.rank])?;
            let rows = parameters[module.b.clone()].chunks_exact_mut(lora.rank);
            for (to, &row) in rows.zip(&module.rows) {
                to.copy_from_slice(&b[row * lora.rank..(row + 1) * lora.rank]);
            }
        }
        if parameters.iter().any(|value| !value.is_finite()) {
            let problem = "an element is not finite";
            return Err(EngineError::tensor("adapter_model.safetensors", problem).into());
        }
        Ok(parameters)
    }
}

/// What PEFT needs to load the adapter; keys it may leave out have their defaults there.
fn config(lora: &Lora, recipe: &Recipe) -> Vec<u8> {
    // Whole numbers are written as such, as PEFT does.
    let alpha = match recipe.alpha.fract() == 0.0 {
        true => json!(recipe.alpha as i64),
        false => json!(recipe.alpha),
    };
    let value = json!({
        "alpha_pattern": {},
        "base_model_name_or_path": Value::Null,
        "bias": "none",
        "fan_in_fan_out": lora.modules.iter().any(|module| module.transposed),
        "inference_mode": true,
        "init_lora_weights": true,
        "lora_alpha": alpha,
        "lora_dropout": recipe.dropout,
        "modules_to_save": Value::Null,
        "peft_type": "LORA",
        "r": lora.rank,
        "rank_pattern": {},
        "target_modules": recipe.targets,
        "task_type": "CAUSAL_LM",
        "use_dora": false,
        "use_rslora": false,
    });
    // A value without keys of its own always serialises.
    let mut text = serde_json::to_vec_pretty(&value).unwrap_or_default();
    text.push(b'\n');
    text
}

/// A safetensors file of F32 tensors, in order of their names; the data begins at a multiple of eight.
fn write(tensors: &BTreeMap<String, ([usize; 2], Vec<f32>)>) -> Vec<u8> {
    let mut header = serde_json::Map::new();
    header.insert("__metadata__".to_owned(), json!({ "format": "pt" }));
    let mut start = 0;
    for (name, (shape, values)) in tensors {
        let end = start + 4 * values.len();
        let entry = json!({ "dtype": "F32", "shape": shape, "data_offsets": [start, end] });
        header.insert(name.clone(), entry);
        start = end;
    }
    let mut header = Value::Object(header).to_string().into_bytes();
    header.resize(header.len().next_multiple_of(8), b' ');
    let mut file = Vec::with_capacity(8 + header.len() + start);
    file.extend_from_slice(&(header.len() as u64).to_le_bytes());
    file.extend_from_slice(&header);
    for (_, values) in tensors.values() {
        file.extend(values.iter().flat_map(|value| value.to_le_bytes()));
    }
    file
}
