//! What several test files need: tiny models made from the reference fixtures, and the real model.

// Each test file is a crate of its own and uses a part of this.
#![allow(dead_code)]

pub(crate) mod counting;
pub(crate) mod families;
pub(crate) mod gguf_writer;
pub(crate) mod minilm;
pub(crate) mod real_model;

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use candle_core::{Device, Tensor};

use self::gguf_writer::GgufWriter;

pub(crate) const FAMILIES: [&str; 3] = ["llama", "llama_tied", "llama3_rope"];

pub(crate) fn fixture(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(path)
}

pub(crate) fn safetensors(path: &str) -> HashMap<String, Tensor> {
    candle_core::safetensors::load(fixture(path), &Device::Cpu).unwrap()
}

/// Makes this process compute with one thread unless it was told otherwise. Test threads run side by
/// side already, and candle's threads wait for each other in a loop: with more of them than processors,
/// everything takes thirty times as long.
#[allow(unsafe_code)]
pub(crate) fn few_threads() {
    static ONCE: std::sync::Once = std::sync::Once::new();
    ONCE.call_once(|| {
        if std::env::var_os(allmend_engine::THREADS_ENV).is_none() {
            // SAFETY: the standard library serialises its own accesses to the environment, and nothing
            // in these tests reads it from C.
            unsafe { std::env::set_var(allmend_engine::THREADS_ENV, "1") }
        }
    });
}

/// A file holding `bytes`, and the directory that keeps it alive.
pub(crate) fn file(bytes: &[u8]) -> (tempfile::TempDir, PathBuf) {
    few_threads();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.gguf");
    std::fs::write(&path, bytes).unwrap();
    (dir, path)
}

/// A reference model as GGUF, as the usual converter writes it: query and key rows permuted, Llama 3
/// frequencies as a tensor, plus a byte-level tokenizer of ours (see [`vocabulary`]).
pub(crate) fn tiny_model(family: &str) -> GgufWriter {
    let config = std::fs::read(fixture(&format!("{family}/config.json"))).unwrap();
    let config: serde_json::Value = serde_json::from_slice(&config).unwrap();
    let number = |key: &str| config[key].as_u64().unwrap() as u32;
    let rope = &config["rope_parameters"];
    let (heads, kv_heads) = (number("num_attention_heads"), number("num_key_value_heads"));
    let mut writer = GgufWriter::default()
        .string("general.architecture", "llama")
        .string("general.name", family)
        .string("general.license", "cc0-1.0")
        .u32("llama.block_count", number("num_hidden_layers"))
        .u32("llama.context_length", number("max_position_embeddings"))
        .u32("llama.embedding_length", number("hidden_size"))
        .u32("llama.feed_forward_length", number("intermediate_size"))
        .u32("llama.attention.head_count", heads)
        .u32("llama.attention.head_count_kv", kv_heads)
        .u32("llama.attention.key_length", number("head_dim"))
        .u32("llama.attention.value_length", number("head_dim"))
        .f32(
            "llama.attention.layer_norm_rms_epsilon",
            config["rms_norm_eps"].as_f64().unwrap() as f32,
        )
        .f32("llama.rope.freq_base", rope["rope_theta"].as_f64().unwrap() as f32)
        .u32("llama.rope.dimension_count", number("head_dim"));
    writer = vocabulary(writer);
    let mut tensors: Vec<_> =
        safetensors(&format!("{family}/model.safetensors")).into_iter().collect();
    tensors.sort_by(|a, b| a.0.cmp(&b.0));
    for (name, tensor) in tensors {
        let tensor = match name.rsplit('.').nth(1).unwrap() {
            "q_proj" => permuted(&tensor, heads as usize),
            "k_proj" => permuted(&tensor, kv_heads as usize),
            _ => tensor,
        };
        let values = tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        writer = writer.tensor(&gguf_name(&name), tensor.dims(), &values);
    }
    if rope["rope_type"] == "llama3" {
        let divisors = llama3_divisors(rope, number("head_dim"));
        writer = writer.tensor("rope_freqs.weight", &[divisors.len()], &divisors);
    }
    writer
}

/// 128 tokens: three control tokens, then single bytes (ASCII text, line feed, 0xC3 and 0x80..).
pub(crate) fn vocabulary(writer: GgufWriter) -> GgufWriter {
    let mut tokens = vec!["<unk>".to_owned(), "<s>".to_owned(), "</s>".to_owned()];
    // The byte-level alphabet: printable characters stand for themselves, 0x80.. for U+0122.. .
    tokens.extend((0x21..=0x7eu8).map(|byte| char::from(byte).to_string()));
    tokens.extend(["\u{120}".to_owned(), "\u{10a}".to_owned(), "\u{c3}".to_owned()]);
    tokens.extend((0x80..=0x9bu32).map(|byte| char::from_u32(byte + 0xa2).unwrap().to_string()));
    assert_eq!(tokens.len(), 128);
    let kinds: Vec<i32> = (0..128).map(|id| if id < 3 { 3 } else { 1 }).collect();
    writer
        .string("tokenizer.ggml.model", "gpt2")
        .string("tokenizer.ggml.pre", "gpt-2")
        .strings("tokenizer.ggml.tokens", &tokens)
        .i32s("tokenizer.ggml.token_type", &kinds)
        .strings::<&str>("tokenizer.ggml.merges", &[])
        .u32("tokenizer.ggml.bos_token_id", 1)
        .u32("tokenizer.ggml.eos_token_id", 2)
        .string(
            "tokenizer.chat_template",
            "{% for m in messages %}<s>{{ m.role }}: {{ m.content }}</s>{% endfor %}<s>assistant:",
        )
}

/// Rows of each head reordered from (half, pair) to (pair, half), for adjacent-pair rotation.
fn permuted(weight: &Tensor, heads: usize) -> Tensor {
    let (rows, columns) = weight.dims2().unwrap();
    weight
        .reshape((heads, 2, rows / heads / 2, columns))
        .and_then(|split| split.transpose(1, 2)?.contiguous()?.reshape((rows, columns)))
        .unwrap()
}

/// The divisors that converters write into `rope_freqs.weight`.
fn llama3_divisors(rope: &serde_json::Value, head_dim: u32) -> Vec<f32> {
    let number = |key: &str| rope[key].as_f64().unwrap();
    let old_context = number("original_max_position_embeddings");
    let low_wavelength = old_context / number("low_freq_factor");
    let high_wavelength = old_context / number("high_freq_factor");
    (0..head_dim / 2)
        .map(|pair| {
            let exponent = f64::from(2 * pair) / f64::from(head_dim);
            let wavelength = std::f64::consts::TAU * number("rope_theta").powf(exponent);
            let divisor = if wavelength < high_wavelength {
                1.0
            } else if wavelength > low_wavelength {
                number("factor")
            } else {
                let smooth = (old_context / wavelength - number("low_freq_factor"))
                    / (number("high_freq_factor") - number("low_freq_factor"));
                1.0 / ((1.0 - smooth) / number("factor") + smooth)
            };
            divisor as f32
        })
        .collect()
}

fn gguf_name(name: &str) -> String {
    let renamed = match name {
        "model.embed_tokens.weight" => "token_embd.weight",
        "model.norm.weight" => "output_norm.weight",
        "lm_head.weight" => "output.weight",
        _ => "",
    };
    if !renamed.is_empty() {
        return renamed.to_owned();
    }
    let rest = name.strip_prefix("model.layers.").unwrap();
    let (layer, part) = rest.split_once('.').unwrap();
    let part = match part {
        "input_layernorm.weight" => "attn_norm",
        "post_attention_layernorm.weight" => "ffn_norm",
        "self_attn.q_proj.weight" => "attn_q",
        "self_attn.k_proj.weight" => "attn_k",
        "self_attn.v_proj.weight" => "attn_v",
        "self_attn.o_proj.weight" => "attn_output",
        "mlp.gate_proj.weight" => "ffn_gate",
        "mlp.up_proj.weight" => "ffn_up",
        "mlp.down_proj.weight" => "ffn_down",
        other => panic!("unknown tensor {other}"),
    };
    format!("blk.{layer}.{part}.weight")
}
