//! Low-rank adapters (LoRA, arXiv:2106.09685): what a fine-tune adds to a base model.

use crate::spec::ModelSpec;

/// The projections that an adapter may change.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Target {
    Query,
    Key,
    Value,
    AttentionOutput,
    Gate,
    Up,
    Down,
}

/// One changed projection: `y += scale * B (A x)`.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct LowRank {
    pub(crate) rank: usize,
    pub(crate) inputs: usize,
    pub(crate) outputs: usize,
    /// (rank, inputs), row-major.
    pub(crate) a: Vec<f32>,
    /// (outputs, rank), row-major.
    pub(crate) b: Vec<f32>,
    /// `alpha / r`, or `alpha / sqrt(r)` for rank-stabilised adapters.
    pub(crate) scale: f32,
}

/// An adapter, checked against the model that it belongs to.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Adapter {
    /// One map per layer.
    pub(crate) layers: Vec<std::collections::BTreeMap<Target, LowRank>>,
}

impl Adapter {
    /// Whether it was made for a model of this shape.
    pub(crate) fn fits(&self, spec: &ModelSpec) -> bool {
        self.layers.len() == spec.layers.len()
    }
}
