//! Low-rank adapters (LoRA, arXiv:2106.09685): what a fine-tune adds to a base model.
//!
//! Read from folders as PEFT writes them: `adapter_config.json` and `adapter_model.safetensors`.

use std::collections::BTreeMap;
use std::path::Path;

use candle_core::quantized::GgmlDType;
use serde_json::{Value, json};

use crate::error::EngineError;
use crate::files::{checkpoint, map, safetensors};
use crate::spec::keys::Keys;
use crate::spec::names::{self, Layout, Part, Shape};
use crate::spec::{ModelSpec, Pairing};

/// `adapter_config.json` has one or two KiB.
const CONFIG_BYTES_MAX: u64 = 1 << 18;
/// Usual ranks are 4 to 256.
const RANK_MAX: u32 = 4_096;

/// The projections that an adapter may change.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Target {
    Query,
    Key,
    Value,
    AttentionOutput,
    Gate,
    Up,
    Down,
}

/// One changed projection: `y += scale * B (A x)`.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct LowRank {
    pub(crate) rank: usize,
    pub(crate) inputs: usize,
    pub(crate) outputs: usize,
    /// (rank, inputs), row-major.
    pub(crate) a: Vec<f32>,
    /// (outputs, rank), row-major.
    pub(crate) b: Vec<f32>,
    /// `alpha / r`, or `alpha / sqrt(r)` for rank-stabilised adapters.
    pub(crate) scale: f32,
}

/// An adapter, checked against the model that it belongs to.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Adapter {
    /// One map per layer.
    pub(crate) layers: Vec<BTreeMap<Target, LowRank>>,
}

/// Keys of `adapter_config.json` that say how an adapter was trained, or repeat what its tensors say.
const IRRELEVANT: &[&str] = &[
    "arrow_config",
    "auto_mapping",
    "base_model_name_or_path",
    "corda_config",
    "ensure_weight_tying",
    "eva_config",
    "exclude_modules",
    "fan_in_fan_out",
    "inference_mode",
    "layers_pattern",
    "layers_to_transform",
    "lora_dropout",
    "megatron_core",
    "peft_version",
    "qalora_group_size",
    "revision",
    "runtime_config",
    "target_modules",
    "task_type",
];

impl Adapter {
    /// Reads an adapter that was trained on a model of this description, whichever file that model comes
    /// from now.
    ///
    /// # Errors
    /// Names the key, module or tensor that does not fit or is not understood. Memory is bounded by the
    /// size of the adapter's file.
    pub(crate) fn read(folder: &Path, spec: &ModelSpec) -> Result<Self, EngineError> {
        let config = map::read_small(&folder.join("adapter_config.json"), CONFIG_BYTES_MAX)?;
        let path = folder.join("adapter_model.safetensors");
        Self::parse(&config, &map::map(&path)?, &path, spec)
    }

    /// The same from the contents of both files; `path` names the second in errors.
    ///
    /// # Errors
    /// As [`Self::read`].
    pub(crate) fn parse(
        config: &[u8],
        file: &[u8],
        path: &Path,
        spec: &ModelSpec,
    ) -> Result<Self, EngineError> {
        let (rank, scale) = settings_of(config)?;
        let tensors = safetensors::parse(file)
            .map_err(|source| EngineError::Safetensors { path: path.to_owned(), source })?;
        let factor = |name: &str, shape: [usize; 2]| -> Result<Vec<f32>, EngineError> {
            let entry = tensors.get(name).ok_or_else(|| EngineError::tensor(name, "is missing"))?;
            if entry.shape != shape {
                let problem = format!("has shape {:?}, expected {shape:?}", entry.shape);
                return Err(EngineError::tensor(name, problem));
            }
            let bytes = file.get(entry.range.clone()).unwrap_or_default();
            floats(&entry.dtype, bytes).ok_or_else(|| {
                EngineError::tensor(name, format!("is stored as {}, not as floats", entry.dtype))
            })
        };
        let Some((names, pairing)) = names::reference(spec.family) else {
            return Err(EngineError::UnsupportedArchitecture {
                name: format!("an adapter for {}", spec.family),
                supported: "adapters for decoders".to_owned(),
            });
        };
        let mut layers = vec![BTreeMap::new(); spec.layers.len()];
        for name in tensors.keys() {
            let bare = name.strip_prefix("base_model.model.").unwrap_or(name);
            let (module, is_a) = match bare.strip_suffix(".lora_A.weight") {
                Some(module) => (module, true),
                None => (bare.strip_suffix(".lora_B.weight").unwrap_or(bare), false),
            };
            let unknown =
                || EngineError::tensor(name, "changes nothing that this build can change");
            let (index, layout, parts) = names.module(module).ok_or_else(unknown)?;
            let layer: &mut BTreeMap<Target, LowRank> =
                layers.get_mut(index).ok_or_else(unknown)?;
            if !is_a {
                // Read together with its other half; alone it is an error there.
                let other = name.replace(".lora_B.", ".lora_A.");
                if !tensors.contains_key(&other) {
                    return Err(EngineError::tensor(other, "is missing"));
                }
                continue;
            }
            let shape = |part| match spec.shape(part) {
                Shape::Matrix { rows, columns } => (rows, columns),
                Shape::Vector(_) => (0, 0),
            };
            let inputs = parts.first().map_or(0, |&part| shape(part).1);
            let total = parts.iter().map(|&part| shape(part).0).sum();
            let a = factor(name, [rank, inputs])?;
            let b = factor(&name.replace(".lora_A.", ".lora_B."), [total, rank])?;
            for &part in parts {
                let (target, outputs) = (target(part).ok_or_else(unknown)?, shape(part).0);
                let rows = reference_rows(spec, pairing, layout, parts, part);
                let b = rows
                    .into_iter()
                    .flat_map(|row| b.get(row * rank..(row + 1) * rank).unwrap_or_default())
                    .copied()
                    .collect();
                let low = LowRank { rank, inputs, outputs, a: a.clone(), b, scale };
                layer.insert(target, low);
            }
        }
        Ok(Self { layers })
    }

    /// Whether it was made for a model of this shape.
    pub(crate) fn fits(&self, spec: &ModelSpec) -> bool {
        self.layers.len() == spec.layers.len()
            && self.layers.iter().flatten().all(|(target, low)| {
                let shape = spec.shape(target.part());
                shape == Shape::Matrix { rows: low.outputs, columns: low.inputs }
            })
    }
}

impl Target {
    /// The matrix that it changes.
    pub(crate) fn part(self) -> Part {
        match self {
            Self::Query => Part::Query,
            Self::Key => Part::Key,
            Self::Value => Part::Value,
            Self::AttentionOutput => Part::AttentionOutput,
            Self::Gate => Part::Gate,
            Self::Up => Part::Up,
            Self::Down => Part::Down,
        }
    }
}

fn target(part: Part) -> Option<Target> {
    let all = [
        Target::Query,
        Target::Key,
        Target::Value,
        Target::AttentionOutput,
        Target::Gate,
        Target::Up,
        Target::Down,
    ];
    all.into_iter().find(|target| target.part() == part)
}

/// For each output of a part, in the engine's order, the row of the reference module's `B` that changes it.
pub(crate) fn reference_rows(
    spec: &ModelSpec,
    pairing: Pairing,
    layout: Layout,
    parts: &[Part],
    part: Part,
) -> Vec<usize> {
    let outputs = |part| match spec.shape(part) {
        Shape::Matrix { rows, .. } => rows,
        Shape::Vector(_) => 0,
    };
    let start: usize = parts.iter().take_while(|&&other| other != part).map(|&p| outputs(p)).sum();
    let rows = own_rows(layout, parts.len(), spec.head_dim, start..start + outputs(part));
    let turned = matches!(part, Part::Query | Part::Key)
        && spec.ropes.first().is_some_and(|rope| rope.pairing != pairing);
    rows.map(|row| if turned { unpermuted(row, spec.head_dim) } else { row }).collect()
}

/// Rows of a fused module's `B` that belong to the part with these rows, were the parts apart.
fn own_rows(
    layout: Layout,
    parts: usize,
    head_dim: usize,
    apart: std::ops::Range<usize>,
) -> Box<dyn Iterator<Item = usize>> {
    match layout {
        // `B` has a row per output also where the base stores its weight transposed.
        Layout::Rows | Layout::Columns => Box::new(apart),
        Layout::PerHead => {
            let (len, at) = (apart.len(), apart.start / apart.len().max(1));
            Box::new((0..len).map(move |row| {
                let (head, inner) = (row / head_dim, row % head_dim);
                (head * parts + at) * head_dim + inner
            }))
        }
    }
}

/// The reference's row for a row of a GGUF file, whose converter brings the two halves of each head
/// together: row `2 i + half` of a head was row `half * head_dim / 2 + i`.
fn unpermuted(row: usize, head_dim: usize) -> usize {
    let (head, inner) = (row / head_dim, row % head_dim);
    head * head_dim + (inner % 2) * (head_dim / 2) + inner / 2
}

/// Rank and scale in the text of an `adapter_config.json`, after refusing what is more than plain LoRA.
pub(crate) fn settings_of(text: &[u8]) -> Result<(usize, f32), EngineError> {
    let wrong = |problem: String| EngineError::metadata("adapter_config.json", problem);
    let value: Value =
        serde_json::from_slice(text).map_err(|error| wrong(format!("is not JSON: {error}")))?;
    let Value::Object(map) = value else { return Err(wrong("is not a JSON object".to_owned())) };
    let keys = Keys::new("adapter_config.json ", &map);
    if keys.string("peft_type")? != Some("LORA") {
        return Err(keys.unsupported("peft_type", "only LORA is known"));
    }
    let rank = keys.required("r", RANK_MAX)?;
    let alpha = keys.number("lora_alpha", -1e6..=1e6)?;
    let alpha = alpha.ok_or_else(|| keys.wrong("lora_alpha", "is missing"))?;
    let plain = "only plain LoRA is known";
    for key in ["use_dora", "lora_bias", "use_qalora"] {
        keys.only(key, json!(false), plain)?;
    }
    for key in ["rank_pattern", "alpha_pattern", "loftq_config", "megatron_config"] {
        keys.only(key, json!({}), plain)?;
    }
    keys.only("bias", json!("none"), plain)?;
    // Other ways to begin change the base model's weights as well.
    match keys.value("init_lora_weights") {
        None | Some(Value::Bool(_)) => {}
        Some(Value::String(name)) if name == "gaussian" => {}
        Some(_) => return Err(keys.unsupported("init_lora_weights", plain)),
    }
    let divisor = match keys.bool_or("use_rslora", false)? {
        true => (rank as f64).sqrt(),
        false => rank as f64,
    };
    keys.finish(IRRELEVANT)?;
    Ok((rank, (alpha / divisor) as f32))
}

pub(crate) fn floats(dtype: &str, bytes: &[u8]) -> Option<Vec<f32>> {
    let dtype = match dtype {
        "F32" => GgmlDType::F32,
        "F16" => GgmlDType::F16,
        "BF16" => GgmlDType::BF16,
        _ => return None,
    };
    checkpoint::floats(dtype, bytes)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::spec::config;

    /// Goal: rows of `B` follow the base's rows through the converter's permutation.
    #[test]
    fn rows_are_permuted_as_the_converter_does() {
        // The converter: (heads, 2, half) becomes (heads, half, 2).
        let converted: Vec<usize> = (0..16).map(|row| unpermuted(row, 8)).collect();
        assert_eq!(converted, [0, 4, 1, 5, 2, 6, 3, 7, 8, 12, 9, 13, 10, 14, 11, 15]);
    }

    #[test]
    fn fused_rows_are_found() {
        let per_head: Vec<usize> = own_rows(Layout::PerHead, 3, 2, 4..8).collect();
        assert_eq!(per_head, [2, 3, 8, 9]);
        let stacked: Vec<usize> = own_rows(Layout::Columns, 3, 2, 4..8).collect();
        assert_eq!(stacked, [4, 5, 6, 7]);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(128))]

        /// Goal: changed bytes of either file end in an adapter that fits, or in an error.
        #[test]
        fn changed_bytes_are_harmless(
            family in prop::sample::select(vec!["llama", "gpt2", "apertus"]),
            file in prop::sample::select(vec!["adapter_config.json", "adapter_model.safetensors"]),
            changes in prop::collection::vec((0usize..2_048, any::<u8>()), 1..4),
        ) {
            let base = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(family);
            let (spec, _) = config::read(&std::fs::read(base.join("config.json")).unwrap()).unwrap();
            let folder = tempfile::tempdir().unwrap();
            for name in ["adapter_config.json", "adapter_model.safetensors"] {
                let mut bytes = std::fs::read(base.join("lora/start").join(name)).unwrap();
                if name == file {
                    for &(at, byte) in &changes {
                        let at = at % bytes.len();
                        bytes[at] = byte;
                    }
                }
                std::fs::write(folder.path().join(name), bytes).unwrap();
            }
            if let Ok(adapter) = Adapter::read(folder.path(), &spec) {
                prop_assert!(adapter.fits(&spec));
            }
        }
    }
}
