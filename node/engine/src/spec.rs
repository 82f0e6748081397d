//! What a model is, as data: the trunk computes whatever a [`ModelSpec`] describes.
//!
//! A new family is a new description here, not a new file of arithmetic. Every key of a family that
//! changes the arithmetic is either understood or refused by name; nothing is guessed.

use crate::error::EngineError;
use crate::gguf::Gguf;
use crate::metadata::missing;

/// Bounds on what a header may ask for. They are far above real models and keep every product of
/// two of them inside 64 bits.
const LAYERS_MAX: u32 = 1_024;
const WIDTH_MAX: u32 = 1 << 18;
const HEADS_MAX: u32 = 4_096;
const CONTEXT_MAX: u32 = 1 << 24;
const VOCAB_MAX: u32 = 1 << 22;

/// Families that this build describes, as `general.architecture` names them.
const FAMILIES: [&str; 1] = ["llama"];

/// How the trunk is to compute.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct ModelSpec {
    pub(crate) layers: usize,
    pub(crate) width: usize,
    pub(crate) heads: usize,
    pub(crate) kv_heads: usize,
    pub(crate) head_dim: usize,
    pub(crate) mlp_width: usize,
    pub(crate) vocab: usize,
    /// Longest sequence the model was trained for, in tokens.
    pub(crate) context: usize,
    pub(crate) norm: Norm,
    pub(crate) mlp: Mlp,
    pub(crate) rope: Rope,
    /// The embedding doubles as output projection.
    pub(crate) tied: bool,
}

/// Normalisation before each block and before the output.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Norm {
    /// Root mean square, weight only.
    Rms { epsilon: f32 },
}

/// The feed-forward block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mlp {
    /// `down(silu(gate(x)) * up(x))`.
    GatedSilu,
}

/// Rotary position embedding over whole heads, adjacent pairs rotated together, as GGUF stores
/// Llama-family query and key weights (converters permute their rows for it).
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Rope {
    pub(crate) base: f64,
    /// Positions are divided by this (1 when the model is not stretched).
    pub(crate) position_divisor: f64,
    /// A tensor of per-frequency divisors exists (Llama 3 scaling).
    pub(crate) frequency_divisors: bool,
}

impl ModelSpec {
    /// Reads the description of the model from its header.
    ///
    /// # Errors
    /// Names the architecture, key or value that this build does not understand.
    pub(crate) fn from_gguf(gguf: &Gguf<'_>) -> Result<Self, EngineError> {
        let key = "general.architecture";
        match gguf.string(key)?.ok_or_else(|| missing(key))? {
            "llama" => Self::llama(gguf),
            other => Err(EngineError::UnsupportedArchitecture {
                name: other.chars().take(64).collect(),
                supported: FAMILIES.join(", "),
            }),
        }
    }

    fn llama(gguf: &Gguf<'_>) -> Result<Self, EngineError> {
        let width = gguf.size("llama.embedding_length", WIDTH_MAX)?;
        let heads = gguf.size("llama.attention.head_count", HEADS_MAX)?;
        let kv_heads = match gguf.u32("llama.attention.head_count_kv")? {
            None => heads,
            Some(_) => gguf.size("llama.attention.head_count_kv", HEADS_MAX)?,
        };
        if !heads.is_multiple_of(kv_heads) {
            return Err(EngineError::metadata(
                "llama.attention.head_count_kv",
                format!("{kv_heads} does not divide the {heads} heads"),
            ));
        }
        let head_dim = head_dim(gguf, width, heads)?;
        if gguf.u32("llama.expert_count")?.is_some_and(|experts| experts > 0) {
            return Err(unsupported("llama.expert_count", gguf, "mixture of experts"));
        }
        let vocab = vocab(gguf)?;
        Ok(Self {
            layers: gguf.size("llama.block_count", LAYERS_MAX)?,
            width,
            heads,
            kv_heads,
            head_dim,
            mlp_width: gguf.size("llama.feed_forward_length", WIDTH_MAX)?,
            vocab,
            context: gguf.size("llama.context_length", CONTEXT_MAX)?,
            norm: Norm::Rms { epsilon: epsilon(gguf)? },
            mlp: Mlp::GatedSilu,
            rope: rope(gguf, head_dim)?,
            tied: !gguf.tensors.contains_key("output.weight"),
        })
    }

    /// Elements of keys and values that one token adds to the cache, over all layers.
    pub(crate) fn cache_elements_per_token(&self) -> u64 {
        2 * self.layers as u64 * self.kv_heads as u64 * self.head_dim as u64
    }
}

fn head_dim(gguf: &Gguf<'_>, width: usize, heads: usize) -> Result<usize, EngineError> {
    let key = "llama.attention.key_length";
    let head_dim = match gguf.u32(key)? {
        Some(_) => gguf.size(key, HEADS_MAX)?,
        None if width.is_multiple_of(heads) => width / heads,
        None => {
            let problem = format!("{heads} heads do not divide the width {width}");
            return Err(EngineError::metadata("llama.attention.head_count", problem));
        }
    };
    let key = "llama.attention.value_length";
    if gguf.u32(key)?.is_some_and(|value| value as usize != head_dim) {
        return Err(unsupported(key, gguf, "values must be as long as keys"));
    }
    Ok(head_dim)
}

fn epsilon(gguf: &Gguf<'_>) -> Result<f32, EngineError> {
    let key = "llama.attention.layer_norm_rms_epsilon";
    let epsilon = gguf.f64(key)?.ok_or_else(|| missing(key))?;
    if (0.0..=0.1).contains(&epsilon) {
        Ok(epsilon as f32)
    } else {
        Err(EngineError::metadata(key, format!("{epsilon} is not in 0..=0.1")))
    }
}

fn rope(gguf: &Gguf<'_>, head_dim: usize) -> Result<Rope, EngineError> {
    if !head_dim.is_multiple_of(2) {
        let problem = format!("heads of {head_dim} cannot be rotated in pairs");
        return Err(EngineError::metadata("llama.attention.key_length", problem));
    }
    let key = "llama.rope.dimension_count";
    if gguf.u32(key)?.is_some_and(|rotated| rotated as usize != head_dim) {
        return Err(unsupported(key, gguf, "partial rotation of heads"));
    }
    let key = "llama.rope.freq_base";
    // The format's documented default.
    let base = gguf.f64(key)?.unwrap_or(10_000.0);
    if !(1.0..=1e12).contains(&base) {
        return Err(EngineError::metadata(key, format!("{base} is not in 1..=1e12")));
    }
    let key = "llama.rope.scaling.type";
    let position_divisor = match gguf.string(key)? {
        None | Some("none") => 1.0,
        Some("linear") => {
            let key = "llama.rope.scaling.factor";
            let factor = gguf.f64(key)?.ok_or_else(|| missing(key))?;
            if !(1.0..=1e6).contains(&factor) {
                return Err(EngineError::metadata(key, format!("{factor} is not in 1..=1e6")));
            }
            factor
        }
        Some(_) => return Err(unsupported(key, gguf, "known are none and linear")),
    };
    let frequency_divisors = gguf.tensors.contains_key("rope_freqs.weight");
    Ok(Rope { base, position_divisor, frequency_divisors })
}

/// Rows of the embedding, which must agree with the vocabulary where the file has both.
fn vocab(gguf: &Gguf<'_>) -> Result<usize, EngineError> {
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

fn unsupported(key: &str, gguf: &Gguf<'_>, reason: &'static str) -> EngineError {
    let value = gguf.metadata.get(key).map(|value| format!("{value:?}")).unwrap_or_default();
    EngineError::UnsupportedFeature {
        key: key.to_owned(),
        value: value.chars().take(64).collect(),
        reason,
    }
}
