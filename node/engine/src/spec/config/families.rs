//! One function per family: how it differs from the others.

use serde_json::json;

use super::{
    GPT_SIZES, USUAL_SIZES, activation, architecture, base, rope, ropes_by_kind, sliding_layers,
};
use crate::error::EngineError;
use crate::spec::keys::Keys;
use crate::spec::names::{self, Names};
use crate::spec::rope::{Pairing, Rope, RopeDefaults, RopeParameters, Scaling};
use crate::spec::{
    Activation, HEADS_MAX, Head, Kind, ModelSpec, NormKind, Placement, Positions, QkNorm, WIDTH_MAX,
};

type Result<T> = std::result::Result<T, EngineError>;

/// Families as `model_type` names them, for the message about any other.
const FAMILIES: [&str; 15] = [
    "llama",
    "apertus",
    "olmo2",
    "olmo3",
    "qwen2",
    "qwen3",
    "gemma2",
    "gemma3_text",
    "glm4",
    "gpt2",
    "gptj",
    "bloom",
    "bert",
    "roberta",
    "xlm-roberta",
];

pub(super) fn describe(family: &str, keys: &Keys<'_>) -> Result<(ModelSpec, Names)> {
    Ok(match family {
        "llama" => (llama(keys)?, names::llama()),
        "apertus" => (apertus(keys)?, names::apertus()),
        "olmo2" => (olmo2(keys)?, names::olmo2()),
        "olmo3" => (olmo3(keys)?, names::olmo2()),
        "qwen2" => (qwen2(keys)?, names::llama()),
        "qwen3" => (qwen3(keys)?, names::llama()),
        "gemma2" => (gemma2(keys)?, names::gemma()),
        "gemma3_text" => (gemma3(keys)?, names::gemma()),
        "glm4" => (glm4(keys)?, names::glm4()),
        "gpt2" => (gpt2(keys)?, names::gpt2()),
        "gptj" => (gptj(keys)?, names::gptj()),
        "bloom" => (bloom(keys)?, names::bloom()),
        "bert" => (bert(keys)?, names::bert()),
        "roberta" => (roberta(keys, "roberta", "Roberta")?, names::roberta()),
        "xlm-roberta" => (roberta(keys, "xlm-roberta", "XLMRoberta")?, names::roberta()),
        other => {
            return Err(EngineError::UnsupportedArchitecture {
                name: other.chars().take(64).collect(),
                supported: FAMILIES.join(", "),
            });
        }
    })
}

/// What Llama, and all that came after it, share.
fn llama_like(
    keys: &Keys<'_>,
    family: &'static str,
    class: &str,
    norm: NormKind,
    epsilon: f64,
) -> Result<ModelSpec> {
    architecture(keys, &[class])?;
    let mut spec = base(keys, family, &USUAL_SIZES, norm, ("rms_norm_eps", epsilon))?;
    spec.context = keys.required(USUAL_SIZES.context, super::CONTEXT_MAX)?;
    spec.mlp_width = keys.required("intermediate_size", WIDTH_MAX)?;
    spec.kv_heads = keys.size("num_key_value_heads", HEADS_MAX)?.unwrap_or(spec.heads);
    spec.gated = true;
    match keys.size("head_dim", HEADS_MAX)? {
        Some(head_dim) => {
            spec.head_dim = head_dim;
            Ok(spec.with_default_scale())
        }
        None => spec.with_whole_heads(keys, &USUAL_SIZES),
    }
}

fn attention_bias(keys: &Keys<'_>, spec: &mut ModelSpec) -> Result<()> {
    let bias = keys.bool_or("attention_bias", false)?;
    spec.biases.query_key_value = bias;
    spec.biases.attention_output = bias;
    Ok(())
}

fn tied(keys: &Keys<'_>, spec: &mut ModelSpec, default: bool) -> Result<()> {
    spec.output.tied = keys.bool_or("tie_word_embeddings", default)?;
    Ok(())
}

fn whole_head(spec: &ModelSpec, base: f64) -> RopeDefaults {
    RopeDefaults { base, part: 1.0, head_dim: spec.head_dim, context: spec.context }
}

fn llama(keys: &Keys<'_>) -> Result<ModelSpec> {
    let mut spec = llama_like(keys, "llama", "LlamaForCausalLM", NormKind::Rms, 1e-6)?;
    attention_bias(keys, &mut spec)?;
    spec.biases.mlp = keys.bool_or("mlp_bias", false)?;
    tied(keys, &mut spec, false)?;
    let rope = rope(keys, &whole_head(&spec, 1e4), Pairing::Halves)?;
    Ok(spec.with_activation(activation(keys, "hidden_act", "silu")?).with_rope(rope))
}

fn apertus(keys: &Keys<'_>) -> Result<ModelSpec> {
    let mut spec = llama_like(keys, "apertus", "ApertusForCausalLM", NormKind::Rms, 1e-5)?;
    attention_bias(keys, &mut spec)?;
    tied(keys, &mut spec, false)?;
    spec.gated = false;
    spec.qk_norm = QkNorm::PerHead;
    keys.only("mlp_bias", json!(false), "MLPs have no biases")?;
    keys.only("post_norm", json!(false), "norms come before the blocks")?;
    keys.only("qk_norm", json!(true), "queries and keys are normalised")?;
    // Transformers has a scaling of its own in mind when the file names none.
    if keys.value("rope_parameters").is_none() && keys.value("rope_scaling").is_none() {
        return Err(keys.wrong("rope_parameters", "is missing, and so is rope_scaling"));
    }
    let rope = rope(keys, &whole_head(&spec, 1.2e7), Pairing::Halves)?;
    Ok(spec.with_activation(activation(keys, "hidden_act", "xielu")?).with_rope(rope))
}

fn olmo_like(keys: &Keys<'_>, family: &'static str, class: &str) -> Result<ModelSpec> {
    let mut spec = llama_like(keys, family, class, NormKind::Rms, 1e-5)?;
    attention_bias(keys, &mut spec)?;
    tied(keys, &mut spec, false)?;
    spec.placement = Placement::After;
    spec.qk_norm = QkNorm::Whole;
    Ok(spec.with_activation(activation(keys, "hidden_act", "silu")?))
}

fn olmo2(keys: &Keys<'_>) -> Result<ModelSpec> {
    let spec = olmo_like(keys, "olmo2", "Olmo2ForCausalLM")?;
    let rope = rope(keys, &whole_head(&spec, 1e4), Pairing::Halves)?;
    Ok(spec.with_rope(rope))
}

fn olmo3(keys: &Keys<'_>) -> Result<ModelSpec> {
    let mut spec = olmo_like(keys, "olmo3", "Olmo3ForCausalLM")?;
    let theta = keys.number("rope_theta", 1.0..=1e12)?.unwrap_or(1e4);
    let defaults = whole_head(&spec, theta);
    let ropes = ropes_by_kind(keys, &defaults, &defaults)?;
    let sliding = sliding_layers(keys, spec.layers.len(), |layer| (layer + 1) % 4 != 0)?;
    let window = keys.size("sliding_window", super::CONTEXT_MAX)?.unwrap_or(4_096);
    windows(&mut spec, &sliding, Some(window), ropes);
    Ok(spec)
}

/// Gives every layer its window and the rotation of its kind.
fn windows(spec: &mut ModelSpec, sliding: &[bool], window: Option<usize>, ropes: [Rope; 2]) {
    spec.ropes = if ropes[0] == ropes[1] { ropes[..1].to_vec() } else { ropes.to_vec() };
    for (layer, &sliding) in spec.layers.iter_mut().zip(sliding) {
        layer.rope = Some(usize::from(sliding).min(spec.ropes.len() - 1));
        layer.window = if sliding { window } else { None };
    }
}

fn qwen_like(keys: &Keys<'_>, spec: &mut ModelSpec) -> Result<()> {
    tied(keys, spec, false)?;
    let window = match keys.bool_or("use_sliding_window", false)? {
        true => keys.size("sliding_window", super::CONTEXT_MAX)?,
        false => {
            keys.value("sliding_window");
            None
        }
    };
    // Any number of layers may lie below the windows, also more than there are, or none.
    let below = keys.number("max_window_layers", 0.0..=1e9)?.unwrap_or(28.0) as usize;
    let layers = spec.layers.len();
    let sliding = sliding_layers(keys, layers, |layer| window.is_some() && layer >= below)?;
    let rope = rope(keys, &whole_head(spec, 1e4), Pairing::Halves)?;
    windows(spec, &sliding, window, [rope.clone(), rope]);
    Ok(())
}

fn qwen2(keys: &Keys<'_>) -> Result<ModelSpec> {
    let mut spec = llama_like(keys, "qwen2", "Qwen2ForCausalLM", NormKind::Rms, 1e-6)?;
    spec.biases.query_key_value = true;
    qwen_like(keys, &mut spec)?;
    Ok(spec.with_activation(activation(keys, "hidden_act", "silu")?))
}

fn qwen3(keys: &Keys<'_>) -> Result<ModelSpec> {
    let mut spec = llama_like(keys, "qwen3", "Qwen3ForCausalLM", NormKind::Rms, 1e-6)?;
    if keys.value("head_dim").is_none() {
        return Err(keys.wrong("head_dim", "is missing"));
    }
    attention_bias(keys, &mut spec)?;
    spec.qk_norm = QkNorm::PerHead;
    qwen_like(keys, &mut spec)?;
    Ok(spec.with_activation(activation(keys, "hidden_act", "silu")?))
}

fn gemma_like(
    keys: &Keys<'_>,
    family: &'static str,
    class: &str,
    caps: (Option<f64>, Option<f64>),
) -> Result<ModelSpec> {
    let mut spec = llama_like(keys, family, class, NormKind::RmsPlusOne, 1e-6)?;
    if keys.value("head_dim").is_none() {
        return Err(keys.wrong("head_dim", "is missing"));
    }
    attention_bias(keys, &mut spec)?;
    tied(keys, &mut spec, true)?;
    spec.placement = Placement::Both;
    spec.embedding.scale = (spec.width as f32).sqrt();
    let scalar = keys.number("query_pre_attn_scalar", 1e-3..=1e6)?.unwrap_or(256.0);
    spec.attention.scale = scalar.powf(-0.5) as f32;
    // Present and null means none, absent means the default of the family.
    let cap = |key: &str, default: Option<f64>| {
        let given = keys.number(key, 1e-3..=1e6)?;
        let absent = given.is_none() && !keys.is_null(key);
        Ok::<_, EngineError>(if absent { default } else { given }.map(|cap| cap as f32))
    };
    spec.attention.soft_cap = cap("attn_logit_softcapping", caps.0)?;
    spec.output.soft_cap = cap("final_logit_softcapping", caps.1)?;
    keys.only("use_bidirectional_attention", json!(false), "attention is causal")?;
    // Older files carry a second key, which transformers ignores when both are there.
    let activation = match keys.value("hidden_activation") {
        Some(_) => {
            keys.value("hidden_act");
            activation(keys, "hidden_activation", "gelu_pytorch_tanh")?
        }
        None => {
            keys.only("hidden_act", json!("gelu_pytorch_tanh"), "hidden_activation is meant")?;
            Activation::GeluTanh
        }
    };
    Ok(spec.with_activation(activation))
}

fn gemma2(keys: &Keys<'_>) -> Result<ModelSpec> {
    let caps = (Some(50.0), Some(30.0));
    let mut spec = gemma_like(keys, "gemma2", "Gemma2ForCausalLM", caps)?;
    let sliding = sliding_layers(keys, spec.layers.len(), |layer| layer % 2 == 0)?;
    let window = keys.size("sliding_window", super::CONTEXT_MAX)?.unwrap_or(4_096);
    let rope = rope(keys, &whole_head(&spec, 1e4), Pairing::Halves)?;
    windows(&mut spec, &sliding, Some(window), [rope.clone(), rope]);
    Ok(spec)
}

fn gemma3(keys: &Keys<'_>) -> Result<ModelSpec> {
    let mut spec = gemma_like(keys, "gemma3_text", "Gemma3ForCausalLM", (None, None))?;
    spec.qk_norm = QkNorm::PerHead;
    let pattern = keys.size("sliding_window_pattern", super::LAYERS_MAX)?.unwrap_or(6);
    let sliding = sliding_layers(keys, spec.layers.len(), |layer| (layer + 1) % pattern != 0)?;
    let window = keys.size("sliding_window", super::CONTEXT_MAX)?.unwrap_or(4_096);
    let ropes = ropes_by_kind(keys, &whole_head(&spec, 1e6), &whole_head(&spec, 1e4))?;
    windows(&mut spec, &sliding, Some(window), ropes);
    Ok(spec)
}

fn glm4(keys: &Keys<'_>) -> Result<ModelSpec> {
    let mut spec = llama_like(keys, "glm4", "Glm4ForCausalLM", NormKind::Rms, 1.5625e-7)?;
    if keys.value("head_dim").is_none() {
        return Err(keys.wrong("head_dim", "is missing"));
    }
    spec.biases.query_key_value = match keys.value("attention_bias") {
        Some(_) => keys.bool_or("attention_bias", false)?,
        // Transformers 4 and 5 differ in what its absence means.
        None => return Err(keys.wrong("attention_bias", "is missing")),
    };
    tied(keys, &mut spec, false)?;
    spec.placement = Placement::Both;
    let defaults = RopeDefaults { part: 0.5, ..whole_head(&spec, 1e4) };
    let rope = rope(keys, &defaults, Pairing::Adjacent)?;
    Ok(spec.with_activation(activation(keys, "hidden_act", "silu")?).with_rope(rope))
}

fn gpt2(keys: &Keys<'_>) -> Result<ModelSpec> {
    architecture(keys, &["GPT2LMHeadModel"])?;
    let epsilon = ("layer_norm_epsilon", 1e-5);
    let mut spec = base(keys, "gpt2", &GPT_SIZES, NormKind::Layer, epsilon)?;
    spec.context = keys.required(GPT_SIZES.context, super::CONTEXT_MAX)?;
    // An alias that the first files carried as well.
    keys.only("n_ctx", json!(spec.context), "n_positions says otherwise")?;
    spec.mlp_width = keys.size("n_inner", WIDTH_MAX)?.unwrap_or(4 * spec.width);
    spec.embedding.positions = Some(Positions { rows: spec.context, offset: 0 });
    spec.biases.query_key_value = true;
    spec.biases.attention_output = true;
    spec.biases.mlp = true;
    tied(keys, &mut spec, true)?;
    let reason = "scores are scaled by the length of a head in every layer";
    keys.only("scale_attn_by_inverse_layer_idx", json!(false), reason)?;
    keys.only("scale_attn_weights", json!(true), reason)?;
    // Says in which precision and order the same product is computed.
    keys.bool_or("reorder_and_upcast_attn", false)?;
    let spec = spec.with_activation(activation(keys, "activation_function", "gelu_new")?);
    spec.with_whole_heads(keys, &GPT_SIZES)
}

fn gptj(keys: &Keys<'_>) -> Result<ModelSpec> {
    architecture(keys, &["GPTJForCausalLM"])?;
    let epsilon = ("layer_norm_epsilon", 1e-5);
    let spec = base(keys, "gptj", &GPT_SIZES, NormKind::Layer, epsilon)?;
    let mut spec = spec.with_whole_heads(keys, &GPT_SIZES)?;
    spec.context = keys.required(GPT_SIZES.context, super::CONTEXT_MAX)?;
    keys.only("n_ctx", json!(spec.context), "n_positions says otherwise")?;
    keys.only("rotary", json!(true), "heads are rotated")?;
    keys.only("scale_attn_weights", json!(true), "scores are scaled by the length of a head")?;
    spec.mlp_width = keys.size("n_inner", WIDTH_MAX)?.unwrap_or(4 * spec.width);
    spec.placement = Placement::Parallel;
    spec.biases.mlp = true;
    spec.biases.output = true;
    tied(keys, &mut spec, false)?;
    let dims = keys.required("rotary_dim", HEADS_MAX)?;
    if !dims.is_multiple_of(2) {
        return Err(keys.wrong("rotary_dim", format!("{dims} is odd")));
    }
    let rope = RopeParameters { base: 1e4, dims, scaling: Scaling::None };
    let spec = spec.with_rope(Rope::new(&rope, Pairing::Adjacent));
    Ok(spec.with_activation(activation(keys, "activation_function", "gelu_new")?))
}

fn bloom(keys: &Keys<'_>) -> Result<ModelSpec> {
    architecture(keys, &["BloomForCausalLM"])?;
    // Each size has an old name and a new one.
    let either = |new: &'static str, old: &'static str| match (keys.value(new), keys.value(old)) {
        (Some(one), Some(other)) if one != other => {
            Err(keys.unsupported(old, "the key with the new name says otherwise"))
        }
        (None, Some(_)) => Ok(old),
        _ => Ok(new),
    };
    let sizes = super::SizeKeys {
        width: either("hidden_size", "n_embed")?,
        layers: either("n_layer", "num_hidden_layers")?,
        heads: either("n_head", "num_attention_heads")?,
        context: "seq_length",
    };
    let epsilon = ("layer_norm_epsilon", 1e-5);
    let mut spec = base(keys, "bloom", &sizes, NormKind::Layer, epsilon)?;
    if spec.context == 0 {
        // What the BLOOM models were trained with (arXiv 2211.05100, table 3); small files omit it.
        spec.context = 2_048;
    }
    spec.embedding.norm = true;
    spec.attention.alibi = true;
    spec.biases.query_key_value = true;
    spec.biases.attention_output = true;
    spec.biases.mlp = true;
    tied(keys, &mut spec, true)?;
    let reason = "the residual is not normalised";
    keys.only("apply_residual_connection_post_layernorm", json!(false), reason)?;
    // How tensor-parallel ranks were merged, and whether to imitate their rounding.
    for key in ["slow_but_exact", "attention_softmax_in_fp32", "bias_dropout_fusion"] {
        keys.bool_or(key, false)?;
    }
    keys.value("masked_softmax_fusion");
    keys.value("offset_alibi");
    keys.value("skip_bias_add");
    keys.value("skip_bias_add_qkv");
    keys.value("unk_token_id");
    keys.value("n_positions");
    spec.with_activation(Activation::GeluTanh).with_whole_heads(keys, &sizes)
}

fn bert_like(
    keys: &Keys<'_>,
    family: &'static str,
    class: &str,
    names: [String; 2],
) -> Result<ModelSpec> {
    let [masked, plain] = &names;
    let found = architecture(keys, &[masked, plain])?;
    let epsilon = ("layer_norm_eps", 1e-12);
    let spec = base(keys, family, &USUAL_SIZES, NormKind::Layer, epsilon)?;
    let mut spec = spec.with_whole_heads(keys, &USUAL_SIZES)?;
    debug_assert!(masked.starts_with(class));
    spec.kind = Kind::Encoder;
    spec.placement = Placement::AfterSum;
    spec.mlp_width = keys.required("intermediate_size", WIDTH_MAX)?;
    spec.embedding.norm = true;
    spec.embedding.token_types = Some(keys.size("type_vocab_size", 1 << 16)?.unwrap_or(2));
    spec.biases.query_key_value = true;
    spec.biases.attention_output = true;
    spec.biases.mlp = true;
    let masked = found == Some(masked.as_str());
    spec.output.head = if masked { Head::MaskedLm } else { Head::None };
    spec.biases.output = masked;
    tied(keys, &mut spec, true)?;
    keys.only("is_decoder", json!(false), "attention is bidirectional")?;
    let reason = "positions are absolute";
    keys.only("position_embedding_type", json!("absolute"), reason)?;
    Ok(spec.with_activation(activation(keys, "hidden_act", "gelu")?))
}

fn bert(keys: &Keys<'_>) -> Result<ModelSpec> {
    let names = ["BertForMaskedLM".to_owned(), "BertModel".to_owned()];
    let mut spec = bert_like(keys, "bert", "Bert", names)?;
    spec.context = keys.required(USUAL_SIZES.context, super::CONTEXT_MAX)?;
    spec.embedding.positions = Some(Positions { rows: spec.context, offset: 0 });
    Ok(spec)
}

/// Positions are counted from the padding token's id plus one.
fn roberta(keys: &Keys<'_>, family: &'static str, class: &str) -> Result<ModelSpec> {
    let names = [format!("{class}ForMaskedLM"), format!("{class}Model")];
    let mut spec = bert_like(keys, family, class, names)?;
    let rows = keys.required(USUAL_SIZES.context, super::CONTEXT_MAX)?;
    let padding = keys.number("pad_token_id", 0.0..=1e9)?.unwrap_or(1.0) as usize;
    let offset = padding + 1;
    if rows <= offset {
        let problem = format!("{rows} rows, of which {offset} are kept for padding");
        return Err(keys.wrong(USUAL_SIZES.context, problem));
    }
    spec.context = rows - offset;
    spec.embedding.positions = Some(Positions { rows, offset });
    Ok(spec)
}
