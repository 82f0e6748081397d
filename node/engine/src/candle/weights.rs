//! Matrices and norms as the candle decoder holds them.

use std::sync::Arc;

use candle_core::quantized::{GgmlDType, QMatMul, QStorage, QTensor};
use candle_core::{D, DType, Device, Module, Tensor};

use crate::files::checkpoint::RawMatrix;
use crate::spec::{Norm, NormKind};

/// A weight matrix (outputs, inputs) with an optional bias.
pub(super) struct Matrix {
    weight: Weight,
    bias: Option<Tensor>,
}

#[derive(Clone)]
enum Weight {
    /// F32, F16 or BF16, as the file has it.
    Float(Tensor),
    Quantised(QMatMul),
}

impl Matrix {
    pub(super) fn new(
        raw: RawMatrix<'_>,
        bias: Option<Tensor>,
        device: &Device,
    ) -> candle_core::Result<Self> {
        let shape = (raw.rows, raw.columns);
        let float = match raw.dtype {
            GgmlDType::F32 => Some(DType::F32),
            GgmlDType::F16 => Some(DType::F16),
            GgmlDType::BF16 => Some(DType::BF16),
            _ => None,
        };
        let weight = match float {
            Some(dtype) => Weight::Float(Tensor::from_raw_buffer(
                &raw.bytes,
                dtype,
                &[shape.0, shape.1],
                device,
            )?),
            None => {
                let dtype = raw.dtype;
                // Candle casts the bytes in place. Quantised matrices come from GGUF files only, where
                // tensors are aligned to eight bytes, and their rows to the two that a block needs.
                let storage = QStorage::from_data(raw.bytes, device, dtype)?;
                let tensor = Arc::new(QTensor::new(storage, shape)?);
                Weight::Quantised(QMatMul::QTensor(tensor))
            }
        };
        Ok(Self { weight, bias })
    }

    /// The same weight with another bias.
    pub(super) fn sharing(&self, bias: Option<Tensor>) -> Self {
        Self { weight: self.weight.clone(), bias }
    }

    /// Multiplies each row of `input` with the transposed matrix and adds the bias.
    ///
    /// # Shapes
    /// `input`: (rows, inputs). Returns (rows, outputs).
    pub(super) fn apply(&self, input: &Tensor) -> candle_core::Result<Tensor> {
        let product = match &self.weight {
            Weight::Float(weight) => input.matmul(&weight.to_dtype(DType::F32)?.t()?)?,
            Weight::Quantised(QMatMul::QTensor(tensor)) if input.device().is_cpu() => {
                input.matmul(&tensor.dequantize(input.device())?.t()?)?
            }
            Weight::Quantised(quantised) => quantised.forward(input)?,
        };
        match &self.bias {
            Some(bias) => product.broadcast_add(bias),
            None => Ok(product),
        }
    }

    /// Looks rows up by number.
    ///
    /// # Shapes
    /// Returns (ids, inputs), F32.
    pub(super) fn rows(&self, ids: &[u32], device: &Device) -> candle_core::Result<Tensor> {
        let ids = Tensor::new(ids, device)?;
        match &self.weight {
            Weight::Float(table) => table.index_select(&ids, 0)?.to_dtype(DType::F32),
            Weight::Quantised(table) => table.embedding(&ids),
        }
    }
}

/// Weight and bias of a norm, the one of [`NormKind::RmsPlusOne`] added.
pub(super) struct NormWeight {
    weight: Tensor,
    bias: Option<Tensor>,
}

impl NormWeight {
    pub(super) fn new(
        kind: NormKind,
        weight: Tensor,
        bias: Option<Tensor>,
    ) -> candle_core::Result<Self> {
        let weight = match kind {
            NormKind::RmsPlusOne => (weight + 1.0)?,
            NormKind::Rms | NormKind::Layer => weight,
        };
        Ok(Self { weight, bias })
    }

    /// Normalises the last dimension.
    pub(super) fn apply(&self, norm: Norm, input: &Tensor) -> candle_core::Result<Tensor> {
        let centred = match norm.kind {
            NormKind::Layer => input.broadcast_sub(&input.mean_keepdim(D::Minus1)?)?,
            NormKind::Rms | NormKind::RmsPlusOne => input.clone(),
        };
        let square = centred.sqr()?.mean_keepdim(D::Minus1)?;
        let scaled = centred.broadcast_div(&(square + f64::from(norm.epsilon))?.sqrt()?)?;
        let weighted = scaled.broadcast_mul(&self.weight)?;
        match &self.bias {
            Some(bias) => weighted.broadcast_add(bias),
            None => Ok(weighted),
        }
    }
}
