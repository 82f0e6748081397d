//! How the tensors of each family are called and laid out: the way from a [`Slot`] to a place in a
//! checkpoint, and, for adapters, from a module's name to slots.

mod tables;

use crate::spec::{ModelSpec, QkNorm};

pub(crate) use self::tables::{
    apertus, bert, bloom, gemma, gguf, glm4, gpt2, gptj, llama, olmo2, reference, roberta,
};

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
