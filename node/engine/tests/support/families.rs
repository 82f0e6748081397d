//! Reference models as GGUF files, written as the usual converter writes each architecture.
//!
//! Checked once against llama.cpp (llama-cpp-python 0.3.36, F32 cache): from these very files it computes the
//! reference's logits within 3e-6, and within 1.4e-3 where it looks GELU up in a table of half floats.

use std::collections::BTreeMap;

use candle_core::Tensor;
use serde_json::Value;

use super::gguf_writer::GgufWriter;

/// Fixtures whose architecture GGUF has, with its name there.
pub(crate) const GGUF_FAMILIES: [(&str, &str); 13] = [
    ("llama", "llama"),
    ("llama_tied", "llama"),
    ("llama3_rope", "llama"),
    ("apertus", "apertus"),
    ("olmo2", "olmo2"),
    ("olmo3", "olmo2"),
    ("qwen2", "qwen2"),
    ("qwen3", "qwen3"),
    ("gemma2", "gemma2"),
    ("gemma3", "gemma3"),
    ("glm4", "glm4"),
    ("gpt2", "gpt2"),
    ("bloom", "bloom"),
];

/// The fixture as GGUF.
pub(crate) fn gguf(fixture: &str, architecture: &str) -> GgufWriter {
    let config = std::fs::read(super::fixture(&format!("{fixture}/config.json"))).unwrap();
    let config: Value = serde_json::from_slice(&config).unwrap();
    let mut writer = metadata(&config, architecture);
    let tensors: BTreeMap<String, Tensor> =
        super::safetensors(&format!("{fixture}/model.safetensors")).into_iter().collect();
    let mut xielu = BTreeMap::<String, Vec<f32>>::new();
    for (name, tensor) in tensors {
        if let Some((_, scalar)) = name.split_once("act_fn.") {
            let value = tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap();
            xielu.entry(format!("xielu.{scalar}")).or_default().extend(value);
            continue;
        }
        let tensor = converted(&name, tensor, &config, architecture);
        let values = tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        writer = writer.tensor(&renamed(&name, architecture), tensor.dims(), &values);
    }
    for (key, values) in xielu {
        writer = writer.f32s(&key, &values);
    }
    let rope = &config["rope_parameters"];
    if rope["rope_type"] == "llama3" {
        let divisors = super::llama3_divisors(rope, 8);
        writer = writer.tensor("rope_freqs.weight", &[divisors.len()], &divisors);
    }
    writer
}

fn metadata(config: &Value, architecture: &str) -> GgufWriter {
    let key = |key: &str| format!("{architecture}.{key}");
    let either = |names: &[&str]| names.iter().find_map(|name| config[*name].as_f64());
    let number = |names: &[&str]| either(names).unwrap() as u32;
    let heads = number(&["num_attention_heads", "n_head"]);
    let width = number(&["hidden_size", "n_embd"]);
    let head_dim = either(&["head_dim"]).map_or(width / heads, |dim| dim as u32);
    let mlp = either(&["intermediate_size"]).map_or(4 * width, |mlp| mlp as u32);
    let context = either(&["max_position_embeddings", "n_positions"]).map_or(160, |n| n as u32);
    let epsilon = match either(&["rms_norm_eps"]) {
        Some(epsilon) => ("attention.layer_norm_rms_epsilon", epsilon),
        None => ("attention.layer_norm_epsilon", config["layer_norm_epsilon"].as_f64().unwrap()),
    };
    let mut writer = super::vocabulary(GgufWriter::default())
        .string("general.architecture", architecture)
        .u32(&key("block_count"), number(&["num_hidden_layers", "n_layer"]))
        .u32(&key("context_length"), context)
        .u32(&key("embedding_length"), width)
        .u32(&key("feed_forward_length"), mlp)
        .u32(&key("attention.head_count"), heads)
        .f32(&key(epsilon.0), epsilon.1 as f32);
    if let Some(kv_heads) = either(&["num_key_value_heads"]) {
        writer = writer
            .u32(&key("attention.head_count_kv"), kv_heads as u32)
            .u32(&key("attention.key_length"), head_dim)
            .u32(&key("attention.value_length"), head_dim);
    }
    let rope = &config["rope_parameters"];
    let full = if rope["full_attention"].is_object() { &rope["full_attention"] } else { rope };
    if let Some(theta) = full["rope_theta"].as_f64() {
        let part = full["partial_rotary_factor"].as_f64().unwrap_or(1.0);
        writer = writer
            .f32(&key("rope.freq_base"), theta as f32)
            .u32(&key("rope.dimension_count"), (f64::from(head_dim) * part) as u32);
    }
    if let Some(window) = config["sliding_window"].as_f64() {
        writer = writer.u32(&key("attention.sliding_window"), window as u32);
    }
    for cap in ["attn_logit_softcapping", "final_logit_softcapping"] {
        if let Some(value) = config[cap].as_f64() {
            writer = writer.f32(&key(cap), value as f32);
        }
    }
    writer
}

fn converted(name: &str, tensor: Tensor, config: &Value, architecture: &str) -> Tensor {
    let heads = |key: &str| config[key].as_u64().unwrap() as usize;
    let conv1d = ["c_attn.weight", "c_proj.weight", "c_fc.weight"];
    match architecture {
        "llama" if name.contains("q_proj.weight") => {
            super::permuted(&tensor, heads("num_attention_heads"))
        }
        "llama" if name.contains("k_proj.weight") => {
            super::permuted(&tensor, heads("num_key_value_heads"))
        }
        "gpt2" if conv1d.iter().any(|end| name.ends_with(end)) => {
            tensor.t().unwrap().contiguous().unwrap()
        }
        "gemma2" | "gemma3" if name.ends_with("norm.weight") => (tensor + 1.0).unwrap(),
        "bloom" if name.contains("query_key_value") => {
            // (heads, 3, head_dim, ...) becomes (3, heads, head_dim, ...).
            let dims = tensor.dims().to_vec();
            let rest: usize = dims[1..].iter().product();
            let heads = heads("n_head");
            let split = tensor.reshape((heads, 3, dims[0] / heads / 3, rest)).unwrap();
            split.transpose(0, 1).unwrap().contiguous().unwrap().reshape(dims).unwrap()
        }
        _ => tensor,
    }
}

fn renamed(name: &str, architecture: &str) -> String {
    let name = name.strip_prefix("model.").or(name.strip_prefix("transformer.")).unwrap_or(name);
    let (module, kind) = name.rsplit_once('.').unwrap();
    if let Some(rest) = module.strip_prefix("layers.").or(module.strip_prefix("h.")) {
        let (layer, module) = rest.split_once('.').unwrap();
        return format!("blk.{layer}.{}.{kind}", layer_module(module, architecture));
    }
    let module = match module {
        "embed_tokens" | "wte" | "word_embeddings" => "token_embd",
        "wpe" => "position_embd",
        "word_embeddings_layernorm" => "token_embd_norm",
        "norm" | "ln_f" => "output_norm",
        "lm_head" => "output",
        other => panic!("unknown module {other}"),
    };
    format!("{module}.{kind}")
}

fn layer_module(module: &str, architecture: &str) -> &'static str {
    match module {
        "input_layernorm" | "attention_layernorm" | "ln_1" => "attn_norm",
        "pre_feedforward_layernorm" | "feedforward_layernorm" | "ln_2" => "ffn_norm",
        "post_self_attn_layernorm" => "post_attention_norm",
        "post_feedforward_layernorm" | "post_mlp_layernorm" => "post_ffw_norm",
        "post_attention_layernorm" => match architecture {
            "olmo2" | "gemma2" | "gemma3" => "post_attention_norm",
            _ => "ffn_norm",
        },
        "self_attn.q_proj" => "attn_q",
        "self_attn.k_proj" => "attn_k",
        "self_attn.v_proj" => "attn_v",
        "self_attn.q_norm" => "attn_q_norm",
        "self_attn.k_norm" => "attn_k_norm",
        "attn.c_attn" | "self_attention.query_key_value" => "attn_qkv",
        "self_attn.o_proj" | "attn.c_proj" | "self_attention.dense" => "attn_output",
        "mlp.gate_proj" => "ffn_gate",
        "mlp.up_proj" | "mlp.gate_up_proj" | "mlp.c_fc" | "mlp.dense_h_to_4h" => "ffn_up",
        "mlp.down_proj" | "mlp.c_proj" | "mlp.dense_4h_to_h" => "ffn_down",
        other => panic!("unknown module {other}"),
    }
}
