//! How the tensors of each family are called and laid out: the way from a [`Slot`] to a place in a
//! checkpoint, and, for adapters, from a module's name to slots.

use crate::spec::{ModelSpec, Pairing, Placement, QkNorm};

/// A matrix or a norm of a model, whatever its family calls it. Biases belong to their part.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Part {
    TokenEmbedding,
    PositionEmbedding,
    TypeEmbedding,
    EmbeddingNorm,
    /// Normalises what attention reads.
    AttentionNorm,
    /// Normalises what attention gives, or (post-LN) the sum with it.
    AttentionOutNorm,
    MlpNorm,
    MlpOutNorm,
    Query,
    Key,
    Value,
    QueryNorm,
    KeyNorm,
    AttentionOutput,
    Gate,
    Up,
    Down,
    OutputNorm,
    /// The projection to logits.
    Output,
    /// First matrix of a masked-LM head.
    HeadDense,
    HeadNorm,
}

/// One part of one layer, or (without layer) of the whole model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Slot {
    pub(crate) part: Part,
    pub(crate) layer: Option<usize>,
}

impl Slot {
    /// A part outside the layers.
    pub(crate) fn model(part: Part) -> Self {
        Self { part, layer: None }
    }

    /// A part of a layer, from 0.
    pub(crate) fn layer(layer: usize, part: Part) -> Self {
        Self { part, layer: Some(layer) }
    }
}

/// What a part is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Shape {
    /// Used as `y = W x`: `rows` outputs, `columns` inputs. Tables have a row per entry.
    Matrix { rows: usize, columns: usize },
    /// The weight of a norm.
    Vector(usize),
}

impl ModelSpec {
    /// # Shapes
    /// Of the part's weight; its bias is as long as its rows, or as the vector.
    pub(crate) fn shape(&self, part: Part) -> Shape {
        let (width, query, kv) = (self.width, self.query_width(), self.kv_width());
        let matrix = |rows, columns| Shape::Matrix { rows, columns };
        match part {
            Part::TokenEmbedding | Part::Output => matrix(self.vocab, width),
            Part::PositionEmbedding => {
                matrix(self.embedding.positions.map_or(0, |positions| positions.rows), width)
            }
            Part::TypeEmbedding => matrix(self.embedding.token_types.unwrap_or(0), width),
            Part::Query => matrix(query, width),
            Part::Key | Part::Value => matrix(kv, width),
            Part::AttentionOutput => matrix(width, query),
            Part::Gate | Part::Up => matrix(self.mlp_width, width),
            Part::Down => matrix(width, self.mlp_width),
            Part::HeadDense => matrix(width, width),
            Part::QueryNorm if self.qk_norm == QkNorm::Whole => Shape::Vector(query),
            Part::KeyNorm if self.qk_norm == QkNorm::Whole => Shape::Vector(kv),
            Part::QueryNorm | Part::KeyNorm => Shape::Vector(self.head_dim),
            Part::EmbeddingNorm
            | Part::AttentionNorm
            | Part::AttentionOutNorm
            | Part::MlpNorm
            | Part::MlpOutNorm
            | Part::OutputNorm
            | Part::HeadNorm => Shape::Vector(width),
        }
    }

    /// Whether the part has a bias.
    pub(crate) fn biased(&self, part: Part) -> bool {
        match part {
            Part::Query | Part::Key | Part::Value => self.biases.query_key_value,
            Part::AttentionOutput => self.biases.attention_output,
            Part::Gate | Part::Up | Part::Down => self.biases.mlp,
            Part::Output => self.biases.output,
            // Only the head of BERT has these, and there all biases exist.
            Part::HeadDense | Part::HeadNorm => true,
            Part::EmbeddingNorm
            | Part::AttentionNorm
            | Part::AttentionOutNorm
            | Part::MlpNorm
            | Part::MlpOutNorm
            | Part::OutputNorm => self.biases.norm,
            Part::QueryNorm | Part::KeyNorm => false,
            Part::TokenEmbedding | Part::PositionEmbedding | Part::TypeEmbedding => false,
        }
    }

    /// The parts that every layer of this model has, in the order in which they are used.
    pub(crate) fn layer_parts(&self) -> Vec<Part> {
        let placement = self.placement;
        let qk = self.qk_norm != QkNorm::None;
        [
            (placement.before_attention(), Part::AttentionNorm),
            (true, Part::Query),
            (true, Part::Key),
            (true, Part::Value),
            (qk, Part::QueryNorm),
            (qk, Part::KeyNorm),
            (true, Part::AttentionOutput),
            (placement.after_blocks(), Part::AttentionOutNorm),
            (placement.before_mlp(), Part::MlpNorm),
            (self.gated, Part::Gate),
            (true, Part::Up),
            (true, Part::Down),
            (placement.after_blocks(), Part::MlpOutNorm),
        ]
        .into_iter()
        .filter_map(|(present, part)| present.then_some(part))
        .collect()
    }
}

/// How the parts of a tensor lie in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Layout {
    /// (outputs, inputs); the rows of several parts one part after the other.
    Rows,
    /// (inputs, outputs), as the `Conv1D` of GPT-2 has it; several parts side by side.
    Columns,
    /// (outputs, inputs) with the parts' rows of the first head, then of the second, and so on.
    PerHead,
}

/// A module of the reference implementation, whose `.weight` and `.bias` are tensors.
#[derive(Clone, Copy, Debug)]
struct Module {
    name: &'static str,
    scope: Scope,
    layout: Layout,
    parts: &'static [Part],
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Scope {
    /// Below the prefix and the layer's number.
    Layer,
    /// Below the prefix.
    Model,
    /// Beside the prefix.
    Top,
}

/// Names of one family in one file format.
#[derive(Clone, Debug)]
pub(crate) struct Names {
    /// Before all names but those of the head, in the model with its head.
    prefix: &'static str,
    /// The checkpoint leaves the prefix out, as those of the headless class do.
    bare: bool,
    /// Before a layer's number.
    layers: &'static str,
    modules: Vec<Module>,
    /// Patterns of tensors that are no parameters: buffers, and what only other heads use.
    idle: &'static [&'static str],
}

/// Where a part is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    /// The tensor's name without `.weight` or `.bias`.
    pub(crate) name: String,
    pub(crate) layout: Layout,
    /// All parts of that tensor, in order.
    pub(crate) parts: &'static [Part],
}

impl Names {
    /// Where a part is, or None if the family has no such part.
    pub(crate) fn place(&self, slot: Slot) -> Option<Place> {
        let module = self.modules.iter().find(|module| {
            module.parts.contains(&slot.part)
                && (module.scope == Scope::Layer) == slot.layer.is_some()
        })?;
        let prefix = if self.bare { "" } else { self.prefix };
        let name = match (module.scope, slot.layer) {
            (Scope::Layer, Some(layer)) => {
                format!("{prefix}{}{layer}.{}", self.layers, module.name)
            }
            (Scope::Model, _) => format!("{prefix}{}", module.name),
            _ => module.name.to_owned(),
        };
        Some(Place { name, layout: module.layout, parts: module.parts })
    }

    /// The layer, layout and parts of a module, named as inside the model with its head
    /// (`model.layers.3.self_attn.q_proj`); None if it is no module of a layer.
    pub(crate) fn module(&self, name: &str) -> Option<(usize, Layout, &'static [Part])> {
        let rest = name.strip_prefix(self.prefix)?.strip_prefix(self.layers)?;
        let (layer, module) = rest.split_once('.')?;
        let module = self
            .modules
            .iter()
            .find(|known| known.scope == Scope::Layer && known.name == module)?;
        Some((layer.parse().ok()?, module.layout, module.parts))
    }

    /// Adapts to a checkpoint that leaves the prefix out.
    pub(crate) fn for_tensors(mut self, exists: impl Fn(&str) -> bool) -> Self {
        let holds = |names: &Self| {
            let place = names.place(Slot::model(Part::TokenEmbedding));
            place.is_some_and(|place| exists(&format!("{}.weight", place.name)))
        };
        if !holds(&self) {
            self.bare = true;
            self.bare = holds(&self);
        }
        self
    }

    /// Whether a tensor that no part explains may be left unused. `*` in a pattern stands for a layer's
    /// number.
    pub(crate) fn idle(&self, name: &str) -> bool {
        let bare = name.strip_prefix(self.prefix).unwrap_or(name);
        let pattern: Vec<&str> = bare
            .split('.')
            .map(|piece| if piece.parse::<u32>().is_ok() { "*" } else { piece })
            .collect();
        let pattern = pattern.join(".");
        self.idle.contains(&pattern.as_str())
    }
}

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_and_modules_are_inverse() {
        for names in [llama(), apertus(), olmo2(), gemma(), glm4(), gpt2(), gptj(), bloom(), bert()]
        {
            for module in names.modules.iter().filter(|module| module.scope == Scope::Layer) {
                let place = names.place(Slot::layer(3, module.parts[0])).unwrap();
                let found = names.module(&place.name).unwrap();
                assert_eq!(found, (3, module.layout, module.parts), "{}", place.name);
            }
        }
        assert_eq!(llama().module("model.layers.3.self_attn.z_proj"), None);
        assert_eq!(llama().module("model.layers.x.self_attn.q_proj"), None);
        assert_eq!(llama().module("lm_head"), None);
    }

    #[test]
    fn the_prefix_is_dropped_only_where_the_checkpoint_drops_it() {
        let embedding = Slot::model(Part::TokenEmbedding);
        let name = |tensor: &'static str| {
            gpt2().for_tensors(|name| name == tensor).place(embedding).unwrap().name
        };
        assert_eq!(name("wte.weight"), "wte");
        assert_eq!(name("transformer.wte.weight"), "transformer.wte");
        assert_eq!(name("neither"), "transformer.wte");
    }

    #[test]
    fn buffers_are_recognised_in_any_layer() {
        assert!(gpt2().idle("transformer.h.11.attn.bias"));
        assert!(gpt2().idle("h.11.attn.bias"));
        assert!(!gpt2().idle("h.11.attn.weight"));
        assert!(llama().idle("model.layers.0.self_attn.rotary_emb.inv_freq"));
    }
}
