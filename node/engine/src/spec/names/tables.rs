//! The names of each family: one table per reference implementation, and one for all of GGUF.

use super::{Layout, Module, Names, Part, Scope};
use crate::spec::{ModelSpec, Pairing, Placement};

const fn layer(name: &'static str, parts: &'static [Part]) -> Module {
    Module { name, scope: Scope::Layer, layout: Layout::Rows, parts }
}

const fn model(name: &'static str, parts: &'static [Part]) -> Module {
    Module { name, scope: Scope::Model, layout: Layout::Rows, parts }
}

const fn top(name: &'static str, parts: &'static [Part]) -> Module {
    Module { name, scope: Scope::Top, layout: Layout::Rows, parts }
}

impl Module {
    const fn laid(self, layout: Layout) -> Self {
        Self { layout, ..self }
    }
}

/// What transformers' descendants of Llama share; norms and MLPs are theirs.
fn llama_like(own: &[Module]) -> Names {
    let shared = [
        model("embed_tokens", &[Part::TokenEmbedding]),
        layer("self_attn.q_proj", &[Part::Query]),
        layer("self_attn.k_proj", &[Part::Key]),
        layer("self_attn.v_proj", &[Part::Value]),
        layer("self_attn.o_proj", &[Part::AttentionOutput]),
        layer("self_attn.q_norm", &[Part::QueryNorm]),
        layer("self_attn.k_norm", &[Part::KeyNorm]),
        layer("mlp.down_proj", &[Part::Down]),
        model("norm", &[Part::OutputNorm]),
        top("lm_head", &[Part::Output]),
    ];
    Names {
        prefix: "model.",
        bare: false,
        layers: "layers.",
        modules: [&shared, own].concat(),
        idle: &["layers.*.self_attn.rotary_emb.inv_freq", "rotary_emb.inv_freq"],
    }
}

const GATE: Module = layer("mlp.gate_proj", &[Part::Gate]);
const UP: Module = layer("mlp.up_proj", &[Part::Up]);

/// Llama, Qwen 2 and Qwen 3.
pub(crate) fn llama() -> Names {
    llama_like(&[
        GATE,
        UP,
        layer("input_layernorm", &[Part::AttentionNorm]),
        layer("post_attention_layernorm", &[Part::MlpNorm]),
    ])
}

pub(crate) fn apertus() -> Names {
    llama_like(&[
        UP,
        layer("attention_layernorm", &[Part::AttentionNorm]),
        layer("feedforward_layernorm", &[Part::MlpNorm]),
    ])
}

/// OLMo 2 and 3.
pub(crate) fn olmo2() -> Names {
    llama_like(&[
        GATE,
        UP,
        layer("post_attention_layernorm", &[Part::AttentionOutNorm]),
        layer("post_feedforward_layernorm", &[Part::MlpOutNorm]),
    ])
}

/// Gemma 2 and 3.
pub(crate) fn gemma() -> Names {
    llama_like(&[
        GATE,
        UP,
        layer("input_layernorm", &[Part::AttentionNorm]),
        layer("post_attention_layernorm", &[Part::AttentionOutNorm]),
        layer("pre_feedforward_layernorm", &[Part::MlpNorm]),
        layer("post_feedforward_layernorm", &[Part::MlpOutNorm]),
    ])
}

pub(crate) fn glm4() -> Names {
    llama_like(&[
        layer("mlp.gate_up_proj", &[Part::Gate, Part::Up]),
        layer("input_layernorm", &[Part::AttentionNorm]),
        layer("post_self_attn_layernorm", &[Part::AttentionOutNorm]),
        layer("post_attention_layernorm", &[Part::MlpNorm]),
        layer("post_mlp_layernorm", &[Part::MlpOutNorm]),
    ])
}

const FUSED: &[Part] = &[Part::Query, Part::Key, Part::Value];

pub(crate) fn gpt2() -> Names {
    Names {
        prefix: "transformer.",
        bare: false,
        layers: "h.",
        modules: vec![
            model("wte", &[Part::TokenEmbedding]),
            model("wpe", &[Part::PositionEmbedding]),
            layer("ln_1", &[Part::AttentionNorm]),
            layer("attn.c_attn", FUSED).laid(Layout::Columns),
            layer("attn.c_proj", &[Part::AttentionOutput]).laid(Layout::Columns),
            layer("ln_2", &[Part::MlpNorm]),
            layer("mlp.c_fc", &[Part::Up]).laid(Layout::Columns),
            layer("mlp.c_proj", &[Part::Down]).laid(Layout::Columns),
            model("ln_f", &[Part::OutputNorm]),
            top("lm_head", &[Part::Output]),
        ],
        // The causal mask, and what it put in place of the future.
        idle: &["h.*.attn.bias", "h.*.attn.masked_bias"],
    }
}

pub(crate) fn gptj() -> Names {
    Names {
        prefix: "transformer.",
        bare: false,
        layers: "h.",
        modules: vec![
            model("wte", &[Part::TokenEmbedding]),
            layer("ln_1", &[Part::AttentionNorm]),
            layer("attn.q_proj", &[Part::Query]),
            layer("attn.k_proj", &[Part::Key]),
            layer("attn.v_proj", &[Part::Value]),
            layer("attn.out_proj", &[Part::AttentionOutput]),
            layer("mlp.fc_in", &[Part::Up]),
            layer("mlp.fc_out", &[Part::Down]),
            model("ln_f", &[Part::OutputNorm]),
            top("lm_head", &[Part::Output]),
        ],
        idle: &["h.*.attn.bias", "h.*.attn.masked_bias", "h.*.attn.embed_positions"],
    }
}

pub(crate) fn bloom() -> Names {
    Names {
        prefix: "transformer.",
        bare: false,
        layers: "h.",
        modules: vec![
            model("word_embeddings", &[Part::TokenEmbedding]),
            model("word_embeddings_layernorm", &[Part::EmbeddingNorm]),
            layer("input_layernorm", &[Part::AttentionNorm]),
            layer("self_attention.query_key_value", FUSED).laid(Layout::PerHead),
            layer("self_attention.dense", &[Part::AttentionOutput]),
            layer("post_attention_layernorm", &[Part::MlpNorm]),
            layer("mlp.dense_h_to_4h", &[Part::Up]),
            layer("mlp.dense_4h_to_h", &[Part::Down]),
            model("ln_f", &[Part::OutputNorm]),
            top("lm_head", &[Part::Output]),
        ],
        idle: &[],
    }
}

fn bert_like(prefix: &'static str, head: &[Module], idle: &'static [&'static str]) -> Names {
    let shared = [
        model("embeddings.word_embeddings", &[Part::TokenEmbedding]),
        model("embeddings.position_embeddings", &[Part::PositionEmbedding]),
        model("embeddings.token_type_embeddings", &[Part::TypeEmbedding]),
        model("embeddings.LayerNorm", &[Part::EmbeddingNorm]),
        layer("attention.self.query", &[Part::Query]),
        layer("attention.self.key", &[Part::Key]),
        layer("attention.self.value", &[Part::Value]),
        layer("attention.output.dense", &[Part::AttentionOutput]),
        layer("attention.output.LayerNorm", &[Part::AttentionOutNorm]),
        layer("intermediate.dense", &[Part::Up]),
        layer("output.dense", &[Part::Down]),
        layer("output.LayerNorm", &[Part::MlpOutNorm]),
    ];
    let modules = [&shared, head].concat();
    Names { prefix, bare: false, layers: "encoder.layer.", modules, idle }
}

/// The pooler is for classification of pairs; mean pooling does not pass through it.
pub(crate) fn bert() -> Names {
    bert_like(
        "bert.",
        &[
            top("cls.predictions.transform.dense", &[Part::HeadDense]),
            top("cls.predictions.transform.LayerNorm", &[Part::HeadNorm]),
            top("cls.predictions", &[Part::Output]),
        ],
        &[
            "embeddings.position_ids",
            "pooler.dense.weight",
            "pooler.dense.bias",
            "cls.predictions.decoder.weight",
            "cls.predictions.decoder.bias",
            "cls.seq_relationship.weight",
            "cls.seq_relationship.bias",
        ],
    )
}

/// RoBERTa and XLM-RoBERTa.
pub(crate) fn roberta() -> Names {
    bert_like(
        "roberta.",
        &[
            top("lm_head.dense", &[Part::HeadDense]),
            top("lm_head.layer_norm", &[Part::HeadNorm]),
            top("lm_head", &[Part::Output]),
        ],
        &[
            "embeddings.position_ids",
            "pooler.dense.weight",
            "pooler.dense.bias",
            "lm_head.decoder.weight",
            "lm_head.decoder.bias",
        ],
    )
}

/// How the reference implementation names a family's modules, and which dimensions it rotates together;
/// the family may be named as GGUF names it. None for families without decoder layers.
pub(crate) fn reference(family: &str) -> Option<(Names, Pairing)> {
    Some(match family {
        "llama" | "qwen2" | "qwen3" => (llama(), Pairing::Halves),
        "apertus" => (apertus(), Pairing::Halves),
        "olmo2" | "olmo3" => (olmo2(), Pairing::Halves),
        "gemma2" | "gemma3" | "gemma3_text" => (gemma(), Pairing::Halves),
        "glm4" => (glm4(), Pairing::Adjacent),
        "gpt2" => (gpt2(), Pairing::Halves),
        "gptj" => (gptj(), Pairing::Adjacent),
        "bloom" => (bloom(), Pairing::Halves),
        _ => return None,
    })
}

/// What the usual converter writes; its names are the same for every architecture.
pub(crate) fn gguf(spec: &ModelSpec) -> Names {
    let fused = matches!(spec.family, "gpt2" | "bloom");
    let mut modules = vec![
        top("token_embd", &[Part::TokenEmbedding]),
        top("position_embd", &[Part::PositionEmbedding]),
        top("token_embd_norm", &[Part::EmbeddingNorm]),
        layer("attn_norm", &[Part::AttentionNorm]),
        layer("attn_q_norm", &[Part::QueryNorm]),
        layer("attn_k_norm", &[Part::KeyNorm]),
        layer("attn_output", &[Part::AttentionOutput]),
        layer("post_attention_norm", &[Part::AttentionOutNorm]),
        layer("ffn_norm", &[Part::MlpNorm]),
        layer("ffn_down", &[Part::Down]),
        layer("post_ffw_norm", &[Part::MlpOutNorm]),
        top("output_norm", &[Part::OutputNorm]),
        top("output", &[Part::Output]),
    ];
    modules.extend(match fused {
        true => vec![layer("attn_qkv", FUSED)],
        false => vec![
            layer("attn_q", &[Part::Query]),
            layer("attn_k", &[Part::Key]),
            layer("attn_v", &[Part::Value]),
        ],
    });
    modules.extend(match spec.family {
        "glm4" => vec![layer("ffn_up", &[Part::Gate, Part::Up])],
        _ => vec![layer("ffn_gate", &[Part::Gate]), layer("ffn_up", &[Part::Up])],
    });
    debug_assert!(spec.placement != Placement::AfterSum, "no encoder is read from GGUF");
    Names { prefix: "", bare: false, layers: "blk.", modules, idle: &[] }
}
