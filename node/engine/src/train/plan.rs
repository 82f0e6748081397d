//! How much memory a run takes, from the description of the model and the recipe alone.

use super::attention;
use super::error::TrainError;
use super::head;
use super::lora::Lora;
use super::recipe::Recipe;
use crate::spec::names::{Part, Shape};
use crate::spec::{Head, ModelSpec};

/// Code, thread stacks, allocator slack and the file's header: measured at about 30 MiB, rounded up.
const FIXED_BYTES: u64 = 48 << 20;

/// Bytes that a run needs at its peak, with full micro-batches of full rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryPlan {
    /// Frozen weights, expanded.
    pub weights_bytes: u64,
    /// Parameters, gradient, both moments; for private runs also the sum.
    pub adapter_bytes: u64,
    /// What the way back reads of the way forth.
    pub activations_bytes: u64,
    /// Buffers of one layer, logits, and what the process itself takes.
    pub scratch_bytes: u64,
}

impl MemoryPlan {
    pub(crate) fn of(spec: &ModelSpec, lora: &Lora, recipe: &Recipe) -> Self {
        let elements = |part| match spec.shape(part) {
            Shape::Matrix { rows, columns } => rows as u64 * columns as u64,
            Shape::Vector(len) => len as u64,
        };
        let layer: u64 = spec.layer_parts().into_iter().map(elements).sum();
        let mut weights = layer * spec.layers.len() as u64 + elements(Part::TokenEmbedding);
        if spec.embedding.positions.is_some() {
            weights += elements(Part::PositionEmbedding);
        }
        if !spec.output.tied && spec.output.head != Head::None {
            weights += elements(Part::Output);
        }
        let rows = u64::from(recipe.batch) * u64::from(recipe.sequence_tokens);
        let (width, query) = (spec.width as u64, spec.query_width() as u64);
        let (kv, mlp) = (spec.kv_width() as u64, spec.mlp_width as u64);
        let gates = if spec.gated { 2 } else { 1 };
        let norms = if spec.placement.after_blocks() { 2 * width } else { 0 };
        // Per row: the layer's input; then queries, keys, values, what was attended, the residual, the MLP.
        let kept = 2 * query + 2 * kv + width + gates * mlp + norms;
        let depth = spec.layers.len() as u64;
        let activations = match recipe.recompute {
            true => depth * width + kept,
            false => depth * (width + kept),
        };
        let length = u64::from(recipe.sequence_tokens);
        let queries = length.min(attention::QUERIES as u64);
        let threads = rayon::current_num_threads() as u64;
        let heads = 3 * queries * length * threads;
        let logits = (rows.min(head::rows_at_once(spec.vocab) as u64)) * spec.vocab as u64;
        // Gradients of one layer, at the MLP or at attention, beside the residual's.
        let block = (3 * width + (gates + 1) * mlp).max(3 * width + 4 * query + 4 * kv);
        let scratch = rows * (block + 2 * width) + heads + logits;
        let copies = if recipe.privacy.is_some() { 5 } else { 4 };
        Self {
            weights_bytes: 4 * weights,
            adapter_bytes: 4 * copies * lora.len() as u64,
            activations_bytes: 4 * rows * activations,
            scratch_bytes: 4 * scratch + FIXED_BYTES,
        }
    }

    /// Everything together.
    #[must_use]
    pub fn total_bytes(&self) -> u64 {
        let Self { weights_bytes, adapter_bytes, activations_bytes, scratch_bytes } = *self;
        weights_bytes
            .saturating_add(adapter_bytes)
            .saturating_add(activations_bytes)
            .saturating_add(scratch_bytes)
    }

    /// Refuses a plan that does not fit.
    ///
    /// # Errors
    /// [`TrainError::Memory`] with all numbers and what to change.
    pub fn check(&self, budget_bytes: u64, recipe: &Recipe) -> Result<(), TrainError> {
        if self.total_bytes() <= budget_bytes {
            return Ok(());
        }
        let mib = |bytes: u64| bytes.div_ceil(1 << 20);
        let fixed = self.total_bytes() - self.activations_bytes;
        let hint = match (fixed > budget_bytes, recipe.recompute) {
            (true, _) => {
                "the weights alone leave no room; take a smaller model or a larger machine"
            }
            (false, false) => "set `recompute`, or lower `batch` or `sequence_tokens`",
            (false, true) => "lower `batch` or `sequence_tokens`",
        };
        Err(TrainError::Memory {
            need_mib: mib(self.total_bytes()),
            weights_mib: mib(self.weights_bytes),
            adapter_mib: mib(self.adapter_bytes),
            activations_mib: mib(self.activations_bytes),
            scratch_mib: mib(self.scratch_bytes),
            budget_mib: mib(budget_bytes),
            hint,
        })
    }
}
