//! Reads a [`ModelSpec`] from GGUF metadata, for the architectures whose conversion we know: which rows the
//! usual converter permutes, what it adds to norms, and which numbers its readers have built in.

use crate::error::EngineError;
use crate::files::gguf::{Gguf, Value};
use crate::files::metadata::missing;
use crate::spec::names::{self, Names};
use crate::spec::rope::{Pairing, Rope, RopeParameters, Scaling};
use crate::spec::{
    Activation, Attention, Biases, CONTEXT_MAX, Embedding, HEADS_MAX, Head, Kind, LAYERS_MAX,
    LayerSpec, ModelSpec, Norm, NormKind, Output, Placement, Positions, QkNorm, VOCAB_MAX,
    WIDTH_MAX, Xielu,
};

type Result<T> = std::result::Result<T, EngineError>;

/// Architectures that this build describes, as `general.architecture` names them.
const FAMILIES: [&str; 10] =
    ["llama", "qwen2", "qwen3", "gemma2", "gemma3", "olmo2", "glm4", "gpt2", "bloom", "apertus"];

/// Keys below the architecture's name that say nothing about the arithmetic.
const IRRELEVANT: [&str; 4] = [
    "vocab_size",
    "tensor_data_layout",
    "rope.scaling.original_context_length",
    "rope.scaling.finetuned",
];

/// Keys below the architecture's name that are read here.
const UNDERSTOOD: [&str; 23] = [
    "block_count",
    "context_length",
    "embedding_length",
    "feed_forward_length",
    "attention.head_count",
    "attention.head_count_kv",
    "attention.key_length",
    "attention.value_length",
    "attention.layer_norm_epsilon",
    "attention.layer_norm_rms_epsilon",
    "attention.sliding_window",
    "attention.sliding_window_pattern",
    "attention.causal",
    "attn_logit_softcapping",
    "final_logit_softcapping",
    "rope.dimension_count",
    "rope.freq_base",
    "rope.freq_base_swa",
    "rope.scaling.type",
    "rope.scaling.factor",
    "expert_count",
    "expert_used_count",
    "use_parallel_residual",
];

/// Reads the description of the model, and how its tensors are called, from the header.
///
/// # Errors
/// Names the architecture, key or value that this build does not understand.
pub(crate) fn read(gguf: &Gguf<'_>) -> Result<(ModelSpec, Names)> {
    let key = "general.architecture";
    let name = gguf.string(key)?.ok_or_else(|| missing(key))?;
    let Some(family) = FAMILIES.into_iter().find(|family| *family == name) else {
        return Err(EngineError::UnsupportedArchitecture {
            name: name.chars().take(64).collect(),
            supported: FAMILIES.join(", "),
        });
    };
    let keys = Architecture { gguf, name: family };
    keys.refuse_unknown()?;
    let mut spec = base(&keys, norm_kind(family))?;
    match family {
        "llama" => rotate(&keys, &mut spec, Pairing::Adjacent)?,
        "qwen2" => rotate(&keys, &mut spec, Pairing::Halves)?,
        "qwen3" => {
            spec.qk_norm = QkNorm::PerHead;
            rotate(&keys, &mut spec, Pairing::Halves)?;
        }
        "gemma2" | "gemma3" => gemma(&keys, &mut spec)?,
        "olmo2" => olmo2(&keys, &mut spec)?,
        "glm4" => {
            spec.placement = Placement::Both;
            rotate(&keys, &mut spec, Pairing::Adjacent)?;
        }
        "gpt2" => {
            spec.embedding.positions = Some(Positions { rows: spec.context, offset: 0 });
        }
        "bloom" => {
            spec.embedding.norm = true;
            spec.attention.alibi = true;
        }
        _ => apertus(&keys, &mut spec)?,
    }
    let spec = spec.checked()?;
    let names = names::gguf(&spec);
    Ok((spec, names))
}

fn norm_kind(family: &str) -> NormKind {
    match family {
        "gpt2" | "bloom" => NormKind::Layer,
        // Converters add the one to Gemma's weights.
        _ => NormKind::Rms,
    }
}

/// Metadata below the name of the architecture.
struct Architecture<'a> {
    gguf: &'a Gguf<'a>,
    name: &'static str,
}

impl Architecture<'_> {
    fn key(&self, key: &str) -> String {
        format!("{}.{key}", self.name)
    }

    fn size(&self, key: &str, max: u32) -> Result<usize> {
        self.gguf.size(&self.key(key), max)
    }

    /// A size that need not be there; 0 counts as absent where it means "none".
    fn optional(&self, key: &str, max: u32) -> Result<Option<usize>> {
        match self.gguf.u32(&self.key(key))? {
            None => Ok(None),
            Some(_) => Ok(Some(self.size(key, max)?)),
        }
    }

    fn number(&self, key: &str, range: std::ops::RangeInclusive<f64>) -> Result<Option<f64>> {
        let key = self.key(key);
        match self.gguf.f64(&key)? {
            Some(number) if !range.contains(&number) => {
                let (low, high) = (range.start(), range.end());
                let problem = format!("{number} is not in {low}..={high}");
                Err(EngineError::metadata(key, problem))
            }
            other => Ok(other),
        }
    }

    fn unsupported(&self, key: &str, reason: &'static str) -> EngineError {
        unsupported(self.gguf, self.key(key), reason)
    }

    fn has(&self, tensor: &str) -> bool {
        self.gguf.tensors.contains_key(tensor)
    }

    fn refuse_unknown(&self) -> Result<()> {
        for key in ["expert_count", "expert_used_count"] {
            if self.gguf.u32(&self.key(key))?.is_some_and(|experts| experts > 0) {
                return Err(self.unsupported(key, "mixture of experts"));
            }
        }
        for (key, supported) in [("attention.causal", true), ("use_parallel_residual", false)] {
            if self.gguf.bool(&self.key(key))?.is_some_and(|value| value != supported) {
                return Err(self.unsupported(key, "the architecture is known otherwise"));
            }
        }
        for key in self.gguf.metadata.keys() {
            let below = key.strip_prefix(self.name).and_then(|rest| rest.strip_prefix('.'));
            if let Some(below) = below
                && !UNDERSTOOD.contains(&below)
                && !IRRELEVANT.contains(&below)
            {
                let reason = "this build does not know what the key changes";
                return Err(unsupported(self.gguf, (*key).to_owned(), reason));
            }
        }
        Ok(())
    }
}

fn unsupported(gguf: &Gguf<'_>, key: String, reason: &'static str) -> EngineError {
    let value = match gguf.metadata.get(key.as_str()) {
        Some(Value::Array(array)) => format!("an array of {}", array.len()),
        Some(value) => format!("{value:?}"),
        None => String::new(),
    };
    EngineError::UnsupportedFeature { key, value: value.chars().take(64).collect(), reason }
}

fn base(keys: &Architecture<'_>, norm: NormKind) -> Result<ModelSpec> {
    let width = keys.size("embedding_length", WIDTH_MAX)?;
    let heads = keys.size("attention.head_count", HEADS_MAX)?;
    let kv_heads = keys.optional("attention.head_count_kv", HEADS_MAX)?.unwrap_or(heads);
    if !heads.is_multiple_of(kv_heads) {
        return Err(EngineError::metadata(
            keys.key("attention.head_count_kv"),
            format!("{kv_heads} does not divide the {heads} heads"),
        ));
    }
    let head_dim = head_dim(keys, width, heads)?;
    let layers = keys.size("block_count", LAYERS_MAX)?;
    let gpt = norm == NormKind::Layer;
    let activation = match keys.name {
        "gpt2" | "bloom" | "gemma2" | "gemma3" => Activation::GeluTanh,
        _ => Activation::Silu,
    };
    let layer = LayerSpec { rope: None, window: None, activation };
    let biased = |tensor: &str| keys.has(&format!("blk.0.{tensor}.bias"));
    Ok(ModelSpec {
        family: keys.name,
        kind: Kind::Decoder,
        width,
        heads,
        kv_heads,
        head_dim,
        mlp_width: keys.size("feed_forward_length", WIDTH_MAX)?,
        vocab: vocab(keys.gguf)?,
        context: keys.size("context_length", CONTEXT_MAX)?,
        embedding: Embedding { scale: 1.0, positions: None, token_types: None, norm: false },
        norm: Norm { kind: norm, epsilon: epsilon(keys, norm)? },
        placement: Placement::Before,
        qk_norm: QkNorm::None,
        ropes: Vec::new(),
        layers: vec![layer; layers],
        attention: Attention {
            scale: 1.0 / (head_dim as f32).sqrt(),
            soft_cap: None,
            alibi: false,
        },
        gated: !gpt && keys.name != "apertus",
        // Older files do not say; what the first layer has, every layer must have.
        biases: Biases {
            query_key_value: gpt || biased("attn_q"),
            attention_output: gpt || biased("attn_output"),
            mlp: gpt || biased("ffn_down"),
            norm: gpt,
            output: keys.has("output.bias"),
        },
        output: Output { tied: !keys.has("output.weight"), soft_cap: None, head: Head::Lm },
    })
}

fn head_dim(keys: &Architecture<'_>, width: usize, heads: usize) -> Result<usize> {
    let head_dim = match keys.optional("attention.key_length", HEADS_MAX)? {
        Some(head_dim) => head_dim,
        None if width.is_multiple_of(heads) => width / heads,
        None => {
            let problem = format!("{heads} heads do not divide the width {width}");
            return Err(EngineError::metadata(keys.key("attention.head_count"), problem));
        }
    };
    let key = "attention.value_length";
    if keys.optional(key, HEADS_MAX)?.is_some_and(|value| value != head_dim) {
        return Err(keys.unsupported(key, "values must be as long as keys"));
    }
    Ok(head_dim)
}

fn epsilon(keys: &Architecture<'_>, norm: NormKind) -> Result<f32> {
    let key = match norm {
        NormKind::Layer => "attention.layer_norm_epsilon",
        NormKind::Rms | NormKind::RmsPlusOne => "attention.layer_norm_rms_epsilon",
    };
    let epsilon = keys.number(key, 0.0..=0.1)?.ok_or_else(|| missing(&keys.key(key)))?;
    Ok(epsilon as f32)
}

/// One rotation for all layers.
fn rotate(keys: &Architecture<'_>, spec: &mut ModelSpec, pairing: Pairing) -> Result<()> {
    let (base, scaling) = (base_of(keys)?, scaling(keys)?);
    let parameters = RopeParameters { base, dims: rotated(keys, spec.head_dim)?, scaling };
    spec.ropes = vec![Rope::new(&parameters, pairing)];
    for layer in &mut spec.layers {
        layer.rope = Some(0);
    }
    Ok(())
}

fn base_of(keys: &Architecture<'_>) -> Result<f64> {
    // The format's documented default.
    Ok(keys.number("rope.freq_base", 1.0..=1e12)?.unwrap_or(10_000.0))
}

fn rotated(keys: &Architecture<'_>, head_dim: usize) -> Result<usize> {
    let key = "rope.dimension_count";
    let dims = keys.optional(key, HEADS_MAX)?.unwrap_or(head_dim);
    if dims > head_dim || !dims.is_multiple_of(2) {
        let problem = format!("{dims} of {head_dim} dimensions cannot be rotated in pairs");
        return Err(EngineError::metadata(keys.key(key), problem));
    }
    Ok(dims)
}

fn scaling(keys: &Architecture<'_>) -> Result<Scaling> {
    let key = "rope.scaling.type";
    match keys.gguf.string(&keys.key(key))? {
        None | Some("none") => Ok(Scaling::None),
        Some("linear") => {
            let key = "rope.scaling.factor";
            let factor = keys.number(key, 1.0..=1e6)?.ok_or_else(|| missing(&keys.key(key)))?;
            Ok(Scaling::Linear { factor })
        }
        Some(_) => Err(keys.unsupported(key, "known are none and linear")),
    }
}

/// Windows in all but every `pattern`th layer, where the file names a window.
fn windows(keys: &Architecture<'_>, spec: &mut ModelSpec, pattern: usize) -> Result<()> {
    let key = "attention.sliding_window_pattern";
    if keys.gguf.metadata.contains_key(keys.key(key).as_str())
        && keys.gguf.u32(&keys.key(key))? != Some(pattern as u32)
    {
        return Err(keys.unsupported(key, "the architecture is known with another pattern"));
    }
    let Some(window) = keys.optional("attention.sliding_window", CONTEXT_MAX)? else {
        return Ok(());
    };
    for (index, layer) in spec.layers.iter_mut().enumerate() {
        layer.window = ((index + 1) % pattern != 0).then_some(window);
    }
    Ok(())
}

fn gemma(keys: &Architecture<'_>, spec: &mut ModelSpec) -> Result<()> {
    spec.placement = Placement::Both;
    spec.embedding.scale = (spec.width as f32).sqrt();
    // The largest of each family scales queries by the width per head; no key says so, and readers know
    // it by its number of layers.
    let largest = if keys.name == "gemma2" { 46 } else { 62 };
    if spec.layers.len() == largest {
        spec.attention.scale = 1.0 / ((spec.width / spec.heads) as f32).sqrt();
    }
    let cap = |key: &str| Ok::<_, EngineError>(keys.number(key, 1e-3..=1e6)?.map(|cap| cap as f32));
    if keys.name == "gemma2" {
        spec.attention.soft_cap = cap("attn_logit_softcapping")?.or(Some(50.0));
        spec.output.soft_cap = cap("final_logit_softcapping")?.or(Some(30.0));
        rotate(keys, spec, Pairing::Halves)?;
        return windows(keys, spec, 2);
    }
    spec.qk_norm = QkNorm::PerHead;
    spec.output.soft_cap = cap("final_logit_softcapping")?;
    rotate(keys, spec, Pairing::Halves)?;
    windows(keys, spec, 6)?;
    // Layers with a window turn faster and are never stretched.
    let base = keys.number("rope.freq_base_swa", 1.0..=1e12)?.unwrap_or(10_000.0);
    let dims = rotated(keys, spec.head_dim)?;
    let local = RopeParameters { base, dims, scaling: Scaling::None };
    spec.ropes.push(Rope::new(&local, Pairing::Halves));
    for layer in &mut spec.layers {
        layer.rope = Some(usize::from(layer.window.is_some()));
    }
    Ok(())
}

/// OLMo 2, and OLMo 3 as far as it is not stretched.
fn olmo2(keys: &Architecture<'_>, spec: &mut ModelSpec) -> Result<()> {
    spec.placement = Placement::After;
    spec.qk_norm = QkNorm::Whole;
    rotate(keys, spec, Pairing::Halves)?;
    windows(keys, spec, 4)
}

fn apertus(keys: &Architecture<'_>, spec: &mut ModelSpec) -> Result<()> {
    spec.qk_norm = QkNorm::PerHead;
    rotate(keys, spec, Pairing::Halves)?;
    let layers = spec.layers.len();
    // One number for each layer, or one for all.
    let numbers = |key: &str| -> Result<Vec<f32>> {
        let wrong = |problem: String| EngineError::metadata(key, problem);
        let numbers = match keys.gguf.metadata.get(key) {
            None => return Err(missing(key)),
            Some(Value::Array(array)) if array.len() == layers => array.iter().collect(),
            Some(Value::Array(array)) => {
                return Err(wrong(format!("{} numbers for {layers} layers", array.len())));
            }
            Some(value) => vec![*value; layers],
        };
        let number = |value: &Value<'_>| match value {
            Value::Float(number) if number.is_finite() => Ok(*number as f32),
            _ => Err(wrong("holds something else than finite numbers".to_owned())),
        };
        numbers.iter().map(number).collect()
    };
    let (alpha_p, alpha_n) = (numbers("xielu.alpha_p")?, numbers("xielu.alpha_n")?);
    let (beta, epsilon) = (numbers("xielu.beta")?, numbers("xielu.eps")?);
    let scalars = alpha_p.iter().zip(&alpha_n).zip(beta.iter().zip(&epsilon));
    for (layer, ((p, n), (beta, epsilon))) in spec.layers.iter_mut().zip(scalars) {
        layer.activation = Activation::Xielu(Xielu::from_stored(*p, *n, *beta, *epsilon));
    }
    Ok(())
}

/// Rows of the embedding, which must agree with the vocabulary where the file has both.
fn vocab(gguf: &Gguf<'_>) -> Result<usize> {
    let name = "token_embd.weight";
    let info = gguf.tensors.get(name).ok_or_else(|| EngineError::tensor(name, "is missing"))?;
    let rows = info.shape.first().copied().unwrap_or(0);
    if !(1..=VOCAB_MAX as usize).contains(&rows) {
        return Err(EngineError::tensor(name, format!("{rows} rows are not in 1..={VOCAB_MAX}")));
    }
    let key = "tokenizer.ggml.tokens";
    match gguf.array(key)? {
        Some(tokens) if tokens.len() != rows => Err(EngineError::metadata(
            key,
            format!("{} tokens, but the embedding has {rows} rows", tokens.len()),
        )),
        _ => Ok(rows),
    }
}
