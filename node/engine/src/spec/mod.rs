//! What a model is, as data: a decoder computes whatever a [`ModelSpec`] describes.
//!
//! A new family is a new description here, not a new file of arithmetic. Descriptions come from
//! `config.json` ([`config`]) or from GGUF metadata ([`gguf`]); where their tensors lie is told by [`names`].
//! Every key that changes the arithmetic is either understood or refused by name; nothing is guessed.

pub(crate) mod config;
pub(crate) mod gguf;
pub(crate) mod keys;
pub(crate) mod names;
pub(crate) mod pooling;
pub(crate) mod rope;

use crate::error::EngineError;

pub(crate) use self::rope::{Pairing, Rope};

/// Bounds on what a header may ask for. They are far above real models and keep every product of
/// two of them inside 64 bits.
pub(crate) const LAYERS_MAX: u32 = 1_024;
pub(crate) const WIDTH_MAX: u32 = 1 << 18;
pub(crate) const HEADS_MAX: u32 = 4_096;
pub(crate) const CONTEXT_MAX: u32 = 1 << 24;
pub(crate) const VOCAB_MAX: u32 = 1 << 22;

/// How a decoder is to compute.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct ModelSpec {
    /// The family, as `config.json` or GGUF names it.
    pub(crate) family: &'static str,
    pub(crate) kind: Kind,
    pub(crate) width: usize,
    pub(crate) heads: usize,
    /// Heads of keys and values; each serves `heads / kv_heads` query heads that follow each other.
    pub(crate) kv_heads: usize,
    pub(crate) head_dim: usize,
    pub(crate) mlp_width: usize,
    pub(crate) vocab: usize,
    /// Longest sequence the model was trained for, in tokens.
    pub(crate) context: usize,
    pub(crate) embedding: Embedding,
    /// Every norm of the model is of this kind, QK-norms included.
    pub(crate) norm: Norm,
    pub(crate) placement: Placement,
    pub(crate) qk_norm: QkNorm,
    /// The different rotations, to which [`LayerSpec::rope`] points; at most two are known in a model.
    pub(crate) ropes: Vec<Rope>,
    pub(crate) layers: Vec<LayerSpec>,
    pub(crate) attention: Attention,
    /// `down(activation(gate(x)) * up(x))` instead of `down(activation(up(x)))`.
    pub(crate) gated: bool,
    pub(crate) biases: Biases,
    pub(crate) output: Output,
}

/// Who may attend to whom.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Causal: a position attends to itself and what comes before.
    Decoder,
    /// Bidirectional: every position attends to the whole sequence, which is computed at once.
    Encoder,
}

/// What happens to token ids before the first layer, in this order: rows are looked up, multiplied by
/// `scale`, position and type rows are added, and the sum is normalised.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Embedding {
    pub(crate) scale: f32,
    pub(crate) positions: Option<Positions>,
    /// Rows of the token type table; every token has type 0. None without such a table.
    pub(crate) token_types: Option<usize>,
    pub(crate) norm: bool,
}

/// A table of learned position rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Positions {
    pub(crate) rows: usize,
    /// Position 0 uses this row (RoBERTa keeps the first ones for padding).
    pub(crate) offset: usize,
}

/// Normalisation over a vector.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Norm {
    pub(crate) kind: NormKind,
    pub(crate) epsilon: f32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NormKind {
    /// `x / sqrt(mean(x²) + ε) * w` (Zhang and Sennrich 2019).
    Rms,
    /// The same times `1 + w`: Gemma stores the difference to one.
    RmsPlusOne,
    /// `(x - mean(x)) / sqrt(var(x) + ε) * w + b` (Ba et al. 2016).
    Layer,
}

/// Where in a layer the norms are. In the formulas `h` is the residual stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Placement {
    /// `h += attention(norm(h)); h += mlp(norm(h))`
    Before,
    /// `h += norm(attention(h)); h += norm(mlp(h))`
    After,
    /// `h += norm(attention(norm(h))); h += norm(mlp(norm(h)))`
    Both,
    /// `h = norm(h + attention(h)); h = norm(h + mlp(h))`, and no norm before the output.
    AfterSum,
    /// `n = norm(h); h += attention(n) + mlp(n)`
    Parallel,
}

impl Placement {
    /// [`names::Part::AttentionNorm`] exists: what attention reads is normalised.
    pub(crate) fn before_attention(self) -> bool {
        matches!(self, Self::Before | Self::Both | Self::Parallel)
    }

    /// [`names::Part::MlpNorm`] exists: the MLP reads the normalised residual.
    pub(crate) fn before_mlp(self) -> bool {
        matches!(self, Self::Before | Self::Both)
    }

    /// [`names::Part::AttentionOutNorm`] and [`names::Part::MlpOutNorm`] exist, before the sums or,
    /// for [`Placement::AfterSum`], after them.
    pub(crate) fn after_blocks(self) -> bool {
        matches!(self, Self::After | Self::Both | Self::AfterSum)
    }

    /// [`names::Part::OutputNorm`] exists.
    pub(crate) fn before_output(self) -> bool {
        self != Self::AfterSum
    }
}

/// Normalisation of queries and keys, before they are rotated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum QkNorm {
    None,
    /// Each head by itself; one weight vector of head length serves all heads.
    PerHead,
    /// All heads of a token together.
    Whole,
}

/// What differs from layer to layer.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct LayerSpec {
    /// Index into [`ModelSpec::ropes`]; None where nothing is rotated.
    pub(crate) rope: Option<usize>,
    /// A position attends to this many positions at most, itself included.
    pub(crate) window: Option<usize>,
    pub(crate) activation: Activation,
}

/// Attention beyond what the sizes say.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Attention {
    /// Factor of query-key products.
    pub(crate) scale: f32,
    /// Scaled products become `cap * tanh(s / cap)`, before masks.
    pub(crate) soft_cap: Option<f32>,
    /// Linear biases on distance, by head ([`alibi_slopes`]).
    pub(crate) alibi: bool,
}

/// The function between the two halves of the MLP.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Activation {
    /// `x * sigmoid(x)`
    Silu,
    /// `x/2 * (1 + tanh(sqrt(2/π) * (x + 0.044715 x³)))`
    GeluTanh,
    /// `x/2 * (1 + erf(x / sqrt(2)))`
    GeluErf,
    Relu,
    Xielu(Xielu),
}

/// The trained scalars of one xIELU (Huang and Schlag 2024, arXiv 2411.13010), softplus applied:
/// `αp x² + β x` where `x > 0`, otherwise `(expm1(min(x, ε)) - x) αn + β x`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Xielu {
    pub(crate) alpha_p: f32,
    pub(crate) alpha_n: f32,
    pub(crate) beta: f32,
    pub(crate) epsilon: f32,
}

impl Xielu {
    /// From the numbers as checkpoints store them, before softplus.
    pub(crate) fn from_stored(alpha_p: f32, alpha_n: f32, beta: f32, epsilon: f32) -> Self {
        let softplus = |x: f32| {
            let x = f64::from(x);
            (x.max(0.0) + (-x.abs()).exp().ln_1p()) as f32
        };
        Self { alpha_p: softplus(alpha_p), alpha_n: beta + softplus(alpha_n), beta, epsilon }
    }
}

/// Which biases the model has; each is then required of the checkpoint, and otherwise unexplained.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Biases {
    pub(crate) query_key_value: bool,
    pub(crate) attention_output: bool,
    pub(crate) mlp: bool,
    pub(crate) norm: bool,
    pub(crate) output: bool,
}

/// From the residual stream to logits.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Output {
    /// The embedding doubles as output projection.
    pub(crate) tied: bool,
    /// Logits become `cap * tanh(logit / cap)`.
    pub(crate) soft_cap: Option<f32>,
    pub(crate) head: Head,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Head {
    /// The output projection alone.
    Lm,
    /// `projection(norm(gelu(dense(h))))`, with the exact GELU and a layer norm (BERT's masked LM).
    MaskedLm,
    /// The model ends in hidden states.
    None,
}

impl ModelSpec {
    /// Length of all query heads together, which need not be the width.
    pub(crate) fn query_width(&self) -> usize {
        self.heads * self.head_dim
    }

    /// Length of all key heads together; values are as long.
    pub(crate) fn kv_width(&self) -> usize {
        self.kv_heads * self.head_dim
    }

    /// What must hold between sizes, whatever they were read from.
    ///
    /// # Errors
    /// Says which two contradict each other.
    pub(crate) fn checked(self) -> Result<Self, EngineError> {
        let wrong = |problem: String| Err(EngineError::metadata(self.family, problem));
        if !self.heads.is_multiple_of(self.kv_heads) {
            return wrong(format!(
                "{} key-value heads: the number does not divide the {} heads",
                self.kv_heads, self.heads
            ));
        }
        if self.mlp_width > WIDTH_MAX as usize {
            return wrong(format!("an MLP of width {} (at most {WIDTH_MAX})", self.mlp_width));
        }
        for rope in &self.ropes {
            if !rope.frequencies.iter().all(|frequency| frequency.is_finite()) {
                return wrong("a frequency of the rotation is not finite".to_owned());
            }
            let rotated = 2 * rope.frequencies.len();
            if rotated > self.head_dim {
                return wrong(format!("{rotated} of {} dimensions are rotated", self.head_dim));
            }
        }
        if let Some(positions) = self.embedding.positions
            && positions.rows < self.context + positions.offset
        {
            return wrong(format!(
                "{} position rows for a context of {}",
                positions.rows, self.context
            ));
        }
        if !(self.attention.scale.is_finite() && self.embedding.scale.is_finite()) {
            return wrong("a scale is not finite".to_owned());
        }
        Ok(self)
    }
}

/// Slopes of ALiBi (Press et al. 2022, arXiv 2108.12409), one per head: the score of a key at distance `d`
/// falls by `slope * d`. Head counts that are no power of two borrow every other slope of the next one.
pub(crate) fn alibi_slopes(heads: usize) -> Vec<f32> {
    let whole = if heads.is_power_of_two() { heads } else { heads.next_power_of_two() / 2 };
    let slope = |heads: usize, index: usize| 2f64.powf(-8.0 * index as f64 / heads as f64) as f32;
    let first = (1..=whole).map(|index| slope(whole, index));
    let rest = (1..=heads - whole).map(|index| slope(2 * whole, 2 * index - 1));
    first.chain(rest).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slopes_are_those_of_the_paper() {
        assert_eq!(
            alibi_slopes(8),
            [0.5, 0.25, 0.125, 0.0625, 0.03125, 0.015625, 0.0078125, 0.00390625]
        );
        // Three heads: the two of "2" and the first of "4".
        assert_eq!(alibi_slopes(3), [0.0625, 0.00390625, 0.25]);
        assert_eq!(alibi_slopes(1), [0.00390625]);
    }

    #[test]
    fn stored_xielu_scalars_go_through_softplus() {
        let xielu = Xielu::from_stored(0.0, 0.0, 0.5, -1e-6);
        assert!((xielu.alpha_p - std::f32::consts::LN_2).abs() < 1e-7);
        assert!((xielu.alpha_n - 0.5 - std::f32::consts::LN_2).abs() < 1e-7);
    }
}
