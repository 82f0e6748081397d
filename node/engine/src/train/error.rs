//! Why a training run was refused, stopped or failed, in types that a caller can act on.

use crate::error::EngineError;

/// Everything that training can fail with. No variant carries a token, a row or a value of the data.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TrainError {
    /// The base model could not be read, or the arithmetic layer failed.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// A number of the recipe is out of its range or contradicts another.
    #[error("recipe: {field}: {problem}")]
    Recipe {
        /// The field of [`crate::train::Recipe`].
        field: &'static str,
        /// What is wrong, and what would be right.
        problem: String,
    },
    /// A target names no module of this model.
    #[error("recipe: target {name:?} is not a module of {family} (modules: {known})")]
    Target {
        /// As the recipe has it, shortened.
        name: String,
        /// The model's family.
        family: String,
        /// Names that would have worked.
        known: String,
    },
    /// This model cannot be trained here.
    #[error("{family} cannot be trained: {reason}")]
    Unsupported {
        /// The model's family.
        family: String,
        /// Why.
        reason: &'static str,
    },
    /// The plan needs more memory than there is.
    #[error(
        "training needs {need_mib} MiB ({weights_mib} MiB weights, {adapter_mib} MiB adapter and optimiser, \
         {activations_mib} MiB activations, {scratch_mib} MiB working buffers) but {budget_mib} MiB may be \
         used: {hint}"
    )]
    Memory {
        /// Total of the plan.
        need_mib: u64,
        /// Frozen weights as held in memory.
        weights_mib: u64,
        /// Parameters, gradients and both moments.
        adapter_mib: u64,
        /// What the backward pass reads again.
        activations_mib: u64,
        /// Buffers of one layer and of the head.
        scratch_mib: u64,
        /// What may be used.
        budget_mib: u64,
        /// What to change.
        hint: &'static str,
    },
    /// A row of the batch contradicts the recipe or the model. Rows are counted from 0 within the call.
    #[error("row {row}: {problem}")]
    Example {
        /// Which one.
        row: usize,
        /// What is wrong with it.
        problem: String,
    },
    /// A loss or a gradient is NaN or infinite; the adapter was left as it was.
    #[error(
        "step {step}: the {what} is not finite; the adapter was left as it was before the step"
    )]
    NotFinite {
        /// Optimiser steps taken before.
        step: u64,
        /// `loss` or `gradient`.
        what: &'static str,
    },
    /// Bytes that should be a snapshot of this run are not.
    #[error("snapshot: {0}")]
    Snapshot(String),
    /// The processor computes wrongly.
    #[error("device health: {wrong} of {values} values came out wrong; do not use this machine")]
    Unhealthy {
        /// Values that differ from exact arithmetic.
        wrong: usize,
        /// Values computed.
        values: usize,
    },
}

impl TrainError {
    pub(crate) fn recipe(field: &'static str, problem: impl Into<String>) -> Self {
        Self::Recipe { field, problem: problem.into() }
    }

    pub(crate) fn example(row: usize, problem: impl Into<String>) -> Self {
        Self::Example { row, problem: problem.into() }
    }
}

impl From<candle_core::Error> for TrainError {
    fn from(error: candle_core::Error) -> Self {
        Self::Engine(EngineError::Compute(error))
    }
}
