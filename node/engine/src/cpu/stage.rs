//! The memory that a pass works in, as its members see it.

use super::attention::scores_len;
use super::kernels::QuantBlock;
use super::shared::Shared;

/// Up to how many rows every member prepares all of them for itself.
pub(super) const ALONE_ROWS: usize = 2;

/// The buffers of a pass.
#[derive(Debug)]
pub(super) struct Stage<'a> {
    /// The residual stream.
    pub(super) x: Shared<'a, f32>,
    /// What attention or MLP gave, where it is normalised before it is added.
    pub(super) y: Shared<'a, f32>,
    pub(super) query_key_value: Shared<'a, f32>,
    /// Gate and up before the activation function, where adapters change them.
    pub(super) raw: Shared<'a, f32>,
    /// What the next products read.
    pub(super) normed: Activations<'a>,
    pub(super) attended: Activations<'a>,
    pub(super) hidden: Activations<'a>,
    /// Cosines and sines of each row, for each of the model's rotations.
    pub(super) angles: Vec<Shared<'a, f32>>,
    /// A row for each member, which stands in for `normed` in small batches.
    pub(super) normed_alone: Shared<'a, f32>,
    /// A row for each member, which stands in for the quantised activations of any kind in small batches.
    pub(super) blocks_alone: Shared<'a, QuantBlock>,
    /// One for each member.
    pub(super) scratch: Shared<'a, Scratch>,
    pub(super) out: Shared<'a, f32>,
}

/// Rows of activations, as floats and, where a product wants them so, quantised.
#[derive(Debug)]
pub(super) struct Activations<'a> {
    pub(super) floats: Shared<'a, f32>,
    pub(super) blocks: Shared<'a, QuantBlock>,
}

/// What a member needs for a moment.
#[derive(Debug, Default)]
pub(super) struct Scratch {
    pub(super) key: Vec<f32>,
    pub(super) queries: Vec<f32>,
    pub(super) attended: Vec<f32>,
    pub(super) scores: Vec<f32>,
    pub(super) between: Vec<f32>,
    pub(super) delta: Vec<f32>,
}

impl Scratch {
    /// Makes room for units of `queries` queries over `pages` pages.
    pub(super) fn grow(&mut self, queries: usize, stride: usize, pages: usize) {
        let grow = |buffer: &mut Vec<f32>, len| {
            if buffer.len() < len {
                buffer.resize(len, 0.0);
            }
        };
        grow(&mut self.key, stride);
        grow(&mut self.queries, queries * stride);
        grow(&mut self.attended, queries * stride);
        grow(&mut self.scores, scores_len(queries, pages));
    }
}
