//! The frozen base model as training holds it: every matrix expanded to F32 once, or packed as bfloat16.
//!
//! Expanding quantised weights at each use would save memory, but both passes would pay for a conversion of
//! every weight.

use std::sync::Arc;

use candle_core::Device;
use candle_core::quantized::{QStorage, QTensor};

use super::bf16::Panels;
use super::product::{Matrix, Old, Target, Threads, multiply};
use super::recipe::Precision;
use super::vector::Norm;
use crate::error::EngineError;
use crate::files::checkpoint::Checkpoint;
use crate::spec::ModelSpec;
use crate::spec::names::{Part, Slot};

/// A matrix that never changes: (outputs, inputs), row-major.
pub(crate) struct Frozen {
    pub(crate) rows: usize,
    pub(crate) columns: usize,
    store: Store,
}

enum Store {
    F32(Vec<f32>),
    Bf16 {
        /// For `x Wᵀ`.
        forward: Panels,
        /// For `g W`.
        backward: Panels,
    },
}

impl Frozen {
    fn new(rows: usize, columns: usize, values: Vec<f32>, precision: Precision) -> Self {
        let store = match precision {
            Precision::F32 => Store::F32(values),
            Precision::Bf16 => Store::Bf16 {
                forward: Panels::new(columns, rows, |input, output| {
                    values[output * columns + input]
                }),
                backward: Panels::new(rows, columns, |output, input| {
                    values[output * columns + input]
                }),
            },
        };
        Self { rows, columns, store }
    }

    /// `out = x Wᵀ`
    ///
    /// # Shapes
    /// `x`: (any, columns); `out`: (any, rows).
    pub(crate) fn forward(&self, x: &[f32], out: &mut [f32]) {
        let count = x.len() / self.columns;
        match &self.store {
            Store::F32(values) => {
                let to = Target::new(out, count, self.rows);
                let w = Matrix::new(values, self.rows, self.columns);
                let x = Matrix::new(x, count, self.columns);
                multiply(to, Old::Replace, 1.0, x, w.t(), Threads::All);
            }
            Store::Bf16 { forward, .. } => forward.multiply(x, out, Old::Replace),
        }
    }

    /// `d_x = [d_x +] g W`
    ///
    /// # Shapes
    /// `g`: (any, rows); `d_x`: (any, columns).
    pub(crate) fn backward(&self, g: &[f32], d_x: &mut [f32], old: Old) {
        let count = g.len() / self.rows;
        match &self.store {
            Store::F32(values) => {
                let to = Target::new(d_x, count, self.columns);
                let w = Matrix::new(values, self.rows, self.columns);
                multiply(to, old, 1.0, Matrix::new(g, count, self.rows), w, Threads::All);
            }
            Store::Bf16 { backward, .. } => backward.multiply(g, d_x, old),
        }
    }

    /// Appends a row.
    pub(crate) fn push_row(&self, row: usize, to: &mut Vec<f32>) {
        match &self.store {
            Store::F32(values) => {
                to.extend_from_slice(&values[row * self.columns..(row + 1) * self.columns]);
            }
            Store::Bf16 { forward, .. } => {
                to.extend((0..self.columns).map(|input| forward.element(input, row)));
            }
        }
    }
}

/// `y = W x + b`
pub(crate) struct Linear {
    pub(crate) part: Part,
    pub(crate) weight: Arc<Frozen>,
    pub(crate) bias: Option<Vec<f32>>,
}

/// All of a decoder's weights.
pub(crate) struct Weights {
    pub(crate) tokens: Arc<Frozen>,
    pub(crate) positions: Option<Frozen>,
    /// The row of type 0, which all tokens have.
    pub(crate) kind: Option<Vec<f32>>,
    pub(crate) embedding_norm: Option<Norm>,
    pub(crate) layers: Vec<LayerWeights>,
    pub(crate) output_norm: Option<Norm>,
    pub(crate) output: Linear,
}

/// One layer's weights.
pub(crate) struct LayerWeights {
    pub(crate) attention_norm: Option<Norm>,
    pub(crate) query: Linear,
    pub(crate) key: Linear,
    pub(crate) value: Linear,
    pub(crate) query_norm: Option<Norm>,
    pub(crate) key_norm: Option<Norm>,
    pub(crate) attention_output: Linear,
    pub(crate) attention_out_norm: Option<Norm>,
    pub(crate) mlp_norm: Option<Norm>,
    pub(crate) gate: Option<Linear>,
    pub(crate) up: Linear,
    pub(crate) down: Linear,
    pub(crate) mlp_out_norm: Option<Norm>,
}

impl Weights {
    /// Reads and expands everything.
    ///
    /// # Errors
    /// When a tensor is missing, misshapen, or there is one that the description does not explain.
    pub(crate) fn load(checkpoint: &Checkpoint, precision: Precision) -> Result<Self, EngineError> {
        let spec = checkpoint.spec();
        let slot = Slot::model;
        // A table that is only looked up in is not multiplied with.
        let table = if spec.output.tied { precision } else { Precision::F32 };
        let tokens = Arc::new(frozen(checkpoint, slot(Part::TokenEmbedding), table)?);
        let positions = match spec.embedding.positions {
            Some(_) => Some(frozen(checkpoint, slot(Part::PositionEmbedding), Precision::F32)?),
            None => None,
        };
        let kind = match spec.embedding.token_types {
            Some(_) => {
                let mut row = Vec::new();
                frozen(checkpoint, slot(Part::TypeEmbedding), Precision::F32)?
                    .push_row(0, &mut row);
                Some(row)
            }
            None => None,
        };
        let output = match spec.output.tied {
            true => Linear {
                part: Part::Output,
                weight: Arc::clone(&tokens),
                bias: checkpoint.bias(slot(Part::Output))?,
            },
            false => linear(checkpoint, slot(Part::Output), precision)?,
        };
        let embedding_norm = norm_if(checkpoint, spec.embedding.norm, slot(Part::EmbeddingNorm))?;
        let before_output = spec.placement.before_output();
        let output_norm = norm_if(checkpoint, before_output, slot(Part::OutputNorm))?;
        let layers = (0..spec.layers.len())
            .map(|index| LayerWeights::load(checkpoint, spec, index, precision))
            .collect::<Result<_, _>>()?;
        checkpoint.finish()?;
        Ok(Self { tokens, positions, kind, embedding_norm, layers, output_norm, output })
    }
}

impl LayerWeights {
    fn load(
        checkpoint: &Checkpoint,
        spec: &ModelSpec,
        index: usize,
        precision: Precision,
    ) -> Result<Self, EngineError> {
        let parts = spec.layer_parts();
        let matrix = |part| linear(checkpoint, Slot::layer(index, part), precision);
        let norm = |part| norm_if(checkpoint, parts.contains(&part), Slot::layer(index, part));
        Ok(Self {
            attention_norm: norm(Part::AttentionNorm)?,
            query: matrix(Part::Query)?,
            key: matrix(Part::Key)?,
            value: matrix(Part::Value)?,
            query_norm: norm(Part::QueryNorm)?,
            key_norm: norm(Part::KeyNorm)?,
            attention_output: matrix(Part::AttentionOutput)?,
            attention_out_norm: norm(Part::AttentionOutNorm)?,
            mlp_norm: norm(Part::MlpNorm)?,
            gate: if spec.gated { Some(matrix(Part::Gate)?) } else { None },
            up: matrix(Part::Up)?,
            down: matrix(Part::Down)?,
            mlp_out_norm: norm(Part::MlpOutNorm)?,
        })
    }
}

fn frozen(
    checkpoint: &Checkpoint,
    slot: Slot,
    precision: Precision,
) -> Result<Frozen, EngineError> {
    let raw = checkpoint.matrix(slot)?;
    let (rows, columns) = (raw.rows, raw.columns);
    let values = match raw.to_f32() {
        Some(values) => {
            // What has been expanded is not read again.
            checkpoint.release(&raw.bytes);
            values
        }
        None => {
            // Quantised matrices come from GGUF files only, where tensors are aligned as their blocks need.
            let storage = QStorage::from_data(raw.bytes, &Device::Cpu, raw.dtype)?;
            let tensor = QTensor::new(storage, (rows, columns))?;
            tensor.dequantize(&Device::Cpu)?.flatten_all()?.to_vec1()?
        }
    };
    Ok(Frozen::new(rows, columns, values, precision))
}

fn linear(
    checkpoint: &Checkpoint,
    slot: Slot,
    precision: Precision,
) -> Result<Linear, EngineError> {
    let weight = Arc::new(frozen(checkpoint, slot, precision)?);
    Ok(Linear { part: slot.part, weight, bias: checkpoint.bias(slot)? })
}

fn norm_if(
    checkpoint: &Checkpoint,
    present: bool,
    slot: Slot,
) -> Result<Option<Norm>, EngineError> {
    if !present {
        return Ok(None);
    }
    let (weight, bias) = (checkpoint.vector(slot)?, checkpoint.bias(slot)?);
    Ok(Some(Norm::new(checkpoint.spec().norm, weight, bias)))
}
