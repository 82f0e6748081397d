//! Attention of one sequence's new rows over its pages.

use candle_core::Tensor;

use super::adapters::Span;
use super::ops;
use super::pages::Pages;
use crate::spec::{Kind, ModelSpec, alibi_slopes};

/// Scores held at once, over all heads: bounds the memory of long sequences to about a gigabyte.
const SCORES_MAX: usize = 1 << 26;

/// One layer's attention.
pub(super) struct Attended<'a> {
    pub(super) spec: &'a ModelSpec,
    pub(super) layer: usize,
    pub(super) pages: &'a Pages,
}

impl Attended<'_> {
    /// Attends from the rows of a span, whose keys and values have been written.
    ///
    /// # Shapes
    /// `query`: (span rows, heads, head_dim). Returns (span rows, heads * head_dim).
    pub(super) fn span(&self, span: &Span<'_>, query: &Tensor) -> candle_core::Result<Tensor> {
        let rows = span.rows.len();
        let end = span.position + rows;
        let block = (SCORES_MAX / (self.spec.heads * end)).clamp(1, rows);
        let mut parts = Vec::with_capacity(rows.div_ceil(block));
        for start in (0..rows).step_by(block) {
            let len = block.min(rows - start);
            let part = query.narrow(0, start, len)?;
            parts.push(self.block(span, span.position + start, &part, end)?);
        }
        Tensor::cat(&parts, 0)
    }

    /// Attends from `query`'s rows, the first of which is at position `first`; the sequence has `end`
    /// positions so far.
    fn block(
        &self,
        span: &Span<'_>,
        first: usize,
        query: &Tensor,
        end: usize,
    ) -> candle_core::Result<Tensor> {
        let spec = self.spec;
        let rows = query.dim(0)?;
        let window = spec.layers.get(self.layer).and_then(|layer| layer.window);
        let (from, to) = match spec.kind {
            Kind::Decoder => {
                let from = window.map_or(0, |window| (first + 1).saturating_sub(window));
                (from, first + rows)
            }
            Kind::Encoder => (0, end),
        };
        let (keys, values) = self.pages.read(self.layer, span, from, to)?;
        let (length, group) = (to - from, spec.heads / spec.kv_heads);
        // Query heads that share a key head become rows of one product.
        let query = query.transpose(0, 1)?.contiguous()?;
        let query = query.reshape((spec.kv_heads, group * rows, spec.head_dim))?;
        let keys = keys.permute((1, 2, 0))?.contiguous()?;
        let mut scores = (query.matmul(&keys)? * f64::from(spec.attention.scale))?;
        if let Some(cap) = spec.attention.soft_cap {
            scores = ops::soft_cap(&scores, cap)?;
        }
        let scores = scores.reshape((spec.heads, rows, length))?;
        let bias = self.bias(first, rows, from, to);
        let heads = if spec.attention.alibi { spec.heads } else { 1 };
        let bias = Tensor::from_vec(bias, (heads, rows, length), scores.device())?;
        let weights = ops::softmax(&scores.broadcast_add(&bias)?)?;
        let weights = weights.reshape((spec.kv_heads, group * rows, length))?;
        let attended = weights.matmul(&values.transpose(0, 1)?.contiguous()?)?;
        attended
            .reshape((spec.heads, rows, spec.head_dim))?
            .transpose(0, 1)?
            .contiguous()?
            .reshape((rows, spec.query_width()))
    }

    /// What is added to scores: minus infinity where a row may not look, and ALiBi.
    ///
    /// # Shapes
    /// (1 or heads, rows, to - from)
    fn bias(&self, first: usize, rows: usize, from: usize, to: usize) -> Vec<f32> {
        let spec = self.spec;
        let window = spec.layers.get(self.layer).and_then(|layer| layer.window);
        let slopes = if spec.attention.alibi { alibi_slopes(spec.heads) } else { vec![0.0] };
        let mut bias = Vec::with_capacity(slopes.len() * rows * (to - from));
        for slope in slopes {
            for position in first..first + rows {
                bias.extend((from..to).map(|key| {
                    let later = spec.kind == Kind::Decoder && key > position;
                    let gone = window.is_some_and(|window| key + window <= position);
                    match later || gone {
                        true => f32::NEG_INFINITY,
                        false => slope * (key as f32 - position as f32),
                    }
                }));
            }
        }
        bias
    }
}
