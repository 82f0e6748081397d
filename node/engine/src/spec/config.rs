//! Reads a [`ModelSpec`] from `config.json` as transformers 5 and 4 write it.
//!
//! Absent keys mean what they mean to transformers. A key that is neither understood nor known to leave the
//! arithmetic alone stops the model, by name; so does a family that has no description here.

mod families;

use serde_json::{Value, json};

use crate::error::EngineError;
use crate::spec::keys::Keys;
use crate::spec::names::Names;
use crate::spec::rope::{Pairing, Rope, RopeDefaults, RopeParameters};
use crate::spec::{
    Activation, Attention, Biases, CONTEXT_MAX, Embedding, HEADS_MAX, Head, Kind, LAYERS_MAX,
    LayerSpec, ModelSpec, Norm, NormKind, Output, Placement, QkNorm, VOCAB_MAX, WIDTH_MAX, Xielu,
};

/// Real ones have a few KiB, tens of them when thousands of labels are named.
const CONFIG_BYTES_MAX: usize = 1 << 20;

/// Keys that say nothing about how logits are computed from token ids: provenance, tokenisation, training,
/// generation defaults, precision (everything is computed in F32), and what only other heads use.
const IRRELEVANT: &[&str] = &[
    "_attn_implementation",
    "_attn_implementation_autoset",
    "_commit_hash",
    "_name_or_path",
    "_sliding_window_pattern",
    "attention_dropout",
    "attention_probs_dropout_prob",
    "attn_pdrop",
    "bad_words_ids",
    "begin_suppress_tokens",
    "bos_token_id",
    "cache_implementation",
    "classifier_dropout",
    "diversity_penalty",
    "do_sample",
    "dtype",
    "early_stopping",
    "embd_pdrop",
    "encoder_no_repeat_ngram_size",
    "eos_token_id",
    "exponential_decay_length_penalty",
    "finetuning_task",
    "forced_bos_token_id",
    "forced_eos_token_id",
    "gradient_checkpointing",
    "hidden_dropout",
    "hidden_dropout_prob",
    "id2label",
    "initializer_range",
    "is_llama_config",
    "label2id",
    "length_penalty",
    "max_length",
    "min_length",
    "n_special",
    "no_repeat_ngram_size",
    "num_beam_groups",
    "num_beams",
    "num_return_sequences",
    "output_attentions",
    "output_hidden_states",
    "output_past",
    "output_scores",
    "pad_token_id",
    "predict_special_tokens",
    "prefix",
    "pretraining_tp",
    "problem_type",
    "remove_invalid_values",
    "repetition_penalty",
    "resid_pdrop",
    "return_dict",
    "return_dict_in_generate",
    "sep_token_id",
    "summary_activation",
    "summary_first_dropout",
    "summary_proj_to_labels",
    "summary_type",
    "summary_use_proj",
    "suppress_tokens",
    "task_specific_params",
    "temperature",
    "tf_legacy_loss",
    "tokenizer_class",
    "top_k",
    "top_p",
    "torch_dtype",
    "torchscript",
    "transformers.js_config",
    "transformers_version",
    "typical_p",
    "unk_token_id",
    "unsloth_fixed",
    "unsloth_version",
    "use_bfloat16",
    "use_cache",
];

/// Reads the description and how its tensors are called.
///
/// # Errors
/// Names the family, key or value that this build does not understand. Bounded by the size of the file,
/// which may be at most 1 MiB.
pub(crate) fn read(text: &[u8]) -> Result<(ModelSpec, Names), EngineError> {
    let file = "config.json";
    if text.len() > CONFIG_BYTES_MAX {
        let problem = format!("{} bytes, the limit is {CONFIG_BYTES_MAX}", text.len());
        return Err(EngineError::metadata(file, problem));
    }
    let value: Value = serde_json::from_slice(text)
        .map_err(|error| EngineError::metadata(file, format!("is not JSON: {error}")))?;
    let Value::Object(map) = value else {
        return Err(EngineError::metadata(file, "is not a JSON object"));
    };
    let keys = Keys::new("", &map);
    let family =
        keys.string("model_type")?.ok_or_else(|| keys.wrong("model_type", "is missing"))?;
    let (spec, names) = families::describe(family, &keys)?;
    for (key, reason) in [
        ("quantization_config", "packed weights are read from GGUF files only"),
        ("auto_map", "the model brings code of its own"),
    ] {
        if keys.value(key).is_some() {
            return Err(keys.unsupported(key, reason));
        }
    }
    keys.only("rope_interleaved", json!(false), "the family is known otherwise")?;
    keys.only("use_mrope", json!(false), "positions have one dimension")?;
    keys.only("tie_encoder_decoder", json!(false), "only decoders and encoders are known")?;
    keys.only("is_encoder_decoder", json!(false), "only decoders and encoders are known")?;
    keys.only("add_cross_attention", json!(false), "only decoders and encoders are known")?;
    keys.only("pruned_heads", json!({}), "heads cannot be left out")?;
    keys.only("chunk_size_feed_forward", json!(0), "rows are chunked by the engine")?;
    keys.finish(IRRELEVANT)?;
    Ok((spec.checked()?, names))
}

/// Sizes under the names that most families use, or others.
struct SizeKeys {
    width: &'static str,
    layers: &'static str,
    heads: &'static str,
    context: &'static str,
}

const USUAL_SIZES: SizeKeys = SizeKeys {
    width: "hidden_size",
    layers: "num_hidden_layers",
    heads: "num_attention_heads",
    context: "max_position_embeddings",
};

const GPT_SIZES: SizeKeys =
    SizeKeys { width: "n_embd", layers: "n_layer", heads: "n_head", context: "n_positions" };

/// What the present transformer decoders have in common; a family changes what differs.
fn base(
    keys: &Keys<'_>,
    family: &'static str,
    names: &SizeKeys,
    norm: NormKind,
    epsilon: (&str, f64),
) -> Result<ModelSpec, EngineError> {
    let width = keys.required(names.width, WIDTH_MAX)?;
    let heads = keys.required(names.heads, HEADS_MAX)?;
    let layers = keys.required(names.layers, LAYERS_MAX)?;
    let layer = LayerSpec { rope: None, window: None, activation: Activation::Silu };
    Ok(ModelSpec {
        family,
        kind: Kind::Decoder,
        width,
        heads,
        kv_heads: heads,
        head_dim: width / heads,
        mlp_width: 4 * width,
        vocab: keys.required("vocab_size", VOCAB_MAX)?,
        context: keys.size(names.context, CONTEXT_MAX)?.unwrap_or(0),
        embedding: Embedding { scale: 1.0, positions: None, token_types: None, norm: false },
        norm: Norm {
            kind: norm,
            epsilon: keys.number(epsilon.0, 0.0..=0.1)?.unwrap_or(epsilon.1) as f32,
        },
        placement: Placement::Before,
        qk_norm: QkNorm::None,
        ropes: Vec::new(),
        layers: vec![layer; layers],
        attention: Attention { scale: 0.0, soft_cap: None, alibi: false },
        gated: false,
        biases: Biases {
            query_key_value: false,
            attention_output: false,
            mlp: false,
            norm: norm == NormKind::Layer,
            output: false,
        },
        output: Output { tied: false, soft_cap: None, head: Head::Lm },
    })
}

impl ModelSpec {
    /// Requires that the heads divide the width, where no key gives the length of a head.
    fn with_whole_heads(self, keys: &Keys<'_>, names: &SizeKeys) -> Result<Self, EngineError> {
        if self.width.is_multiple_of(self.heads) {
            return Ok(self.with_default_scale());
        }
        let problem = format!("{} heads do not divide the width {}", self.heads, self.width);
        Err(keys.wrong(names.heads, problem))
    }

    fn with_default_scale(mut self) -> Self {
        self.attention.scale = 1.0 / (self.head_dim as f32).sqrt();
        self
    }

    fn with_activation(mut self, activation: Activation) -> Self {
        for layer in &mut self.layers {
            layer.activation = activation;
        }
        self
    }

    /// One rotation in every layer.
    fn with_rope(mut self, rope: Rope) -> Self {
        self.ropes = vec![rope];
        for layer in &mut self.layers {
            layer.rope = Some(0);
        }
        self
    }
}

fn activation(keys: &Keys<'_>, key: &str, default: &str) -> Result<Activation, EngineError> {
    Ok(match keys.string(key)?.unwrap_or(default) {
        "silu" | "swish" => Activation::Silu,
        "gelu_new" | "gelu_pytorch_tanh" | "gelu_fast" => Activation::GeluTanh,
        "gelu" => Activation::GeluErf,
        "relu" => Activation::Relu,
        // The trained scalars are tensors of the checkpoint; these are what training begins with.
        "xielu" => Activation::Xielu(Xielu::from_stored(0.8, 0.3, 0.5, -1e-6)),
        _ => {
            let reason = "known are silu, gelu, gelu_new, gelu_pytorch_tanh, relu and xielu";
            return Err(keys.unsupported(key, reason));
        }
    })
}

/// Refuses a checkpoint of another class than the expected ones, which would have another head.
fn architecture<'a>(keys: &Keys<'a>, known: &[&str]) -> Result<Option<&'a str>, EngineError> {
    let Some(list) = keys.array("architectures")? else { return Ok(None) };
    match list.as_slice() {
        [Value::String(name)] if known.contains(&name.as_str()) => Ok(Some(name)),
        [] => Ok(None),
        _ => Err(keys.unsupported("architectures", "this build knows other heads of the family")),
    }
}

/// The rotation that all layers share: `rope_parameters` (transformers 5), or `rope_theta` with
/// `rope_scaling` and `partial_rotary_factor` (4).
fn rope(keys: &Keys<'_>, defaults: &RopeDefaults, pairing: Pairing) -> Result<Rope, EngineError> {
    let defaults = outer_defaults(keys, defaults)?;
    let parameters = match rope_object(keys)? {
        Some(object) => RopeParameters::from_keys(&object, &defaults)?,
        None => RopeParameters::from_keys(&Keys::new("", &serde_json::Map::new()), &defaults)?,
    };
    Ok(Rope::new(&parameters, pairing))
}

/// Rotations of full and of windowed layers. Only full layers are stretched by a `rope_scaling`.
fn ropes_by_kind(
    keys: &Keys<'_>,
    full: &RopeDefaults,
    sliding: &RopeDefaults,
) -> Result<[Rope; 2], EngineError> {
    let full = outer_defaults(keys, full)?;
    let local = keys.number("rope_local_base_freq", 1.0..=1e12)?;
    let sliding = RopeDefaults { base: local.unwrap_or(sliding.base), ..*sliding };
    let empty = serde_json::Map::new();
    let none = || Keys::new("", &empty);
    let object = rope_object(keys)?;
    let (of_full, of_sliding) = match object {
        Some(object) if object.value("full_attention").is_some() => {
            let both = (object.object("full_attention")?, object.object("sliding_attention")?);
            object.finish(&[])?;
            (both.0.unwrap_or_else(none), both.1.unwrap_or_else(none))
        }
        Some(object) => (object, none()),
        None => (none(), none()),
    };
    let rope = |keys: &Keys<'_>, defaults: &RopeDefaults| {
        Ok::<Rope, EngineError>(Rope::new(
            &RopeParameters::from_keys(keys, defaults)?,
            Pairing::Halves,
        ))
    };
    Ok([rope(&of_full, &full)?, rope(&of_sliding, &sliding)?])
}

fn rope_object<'a>(keys: &Keys<'a>) -> Result<Option<Keys<'a>>, EngineError> {
    let (new, old) = (keys.object("rope_parameters")?, keys.object("rope_scaling")?);
    if new.is_some() && old.is_some() {
        let reason = "rope_parameters say the same, perhaps otherwise";
        return Err(keys.unsupported("rope_scaling", reason));
    }
    Ok(new.or(old))
}

fn outer_defaults(keys: &Keys<'_>, defaults: &RopeDefaults) -> Result<RopeDefaults, EngineError> {
    Ok(RopeDefaults {
        base: keys.number("rope_theta", 1.0..=1e12)?.unwrap_or(defaults.base),
        part: keys.number("partial_rotary_factor", 0.0..=1.0)?.unwrap_or(defaults.part),
        ..*defaults
    })
}

/// Which layers have a window: `layer_types`, or else what `default` says of a layer's number.
fn sliding_layers(
    keys: &Keys<'_>,
    layers: usize,
    default: impl Fn(usize) -> bool,
) -> Result<Vec<bool>, EngineError> {
    let key = "layer_types";
    let Some(types) = keys.array(key)? else { return Ok((0..layers).map(default).collect()) };
    if types.len() != layers {
        return Err(keys.wrong(key, format!("{} types for {layers} layers", types.len())));
    }
    types
        .iter()
        .map(|kind| match kind.as_str() {
            Some("sliding_attention") => Ok(true),
            Some("full_attention") => Ok(false),
            _ => Err(keys.unsupported(key, "known are full_attention and sliding_attention")),
        })
        .collect()
}

#[cfg(test)]
mod tests;
