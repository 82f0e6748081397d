//! Takes tensors out of a mapped GGUF file into the form that the trunk multiplies with.

use std::collections::BTreeSet;
use std::sync::Arc;

use candle_core::quantized::{GgmlDType, QMatMul, QStorage, QTensor};
use candle_core::{Device, Module, Tensor};

use crate::error::EngineError;
use crate::files::gguf::{Gguf, TensorInfo, dtype_name};

/// Candle's portable kernels for these types work on pairs of 32-element blocks.
const PAIRED_BLOCK_ROW: usize = 64;

/// How a product with quantised weights is computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Product {
    /// Weights are unpacked to F32 for the product and the input is not rounded. Worth it for many rows at
    /// once, and exact.
    Expanded,
    /// Candle's quantised kernels, which round the input to eight bits. On SmolLM2 in Q4_1 that moves
    /// logits by 0.3 (root mean square), enough to change the first word of an answer.
    Quantised,
}

/// A weight matrix (outputs, inputs), quantised as in the file or F32.
#[derive(Clone, Debug)]
pub(crate) struct Matrix {
    inner: QMatMul,
}

impl Matrix {
    /// Multiplies each row of `input` with the transposed matrix.
    ///
    /// # Shapes
    /// `input`: (rows, inputs). Returns (rows, outputs).
    pub(crate) fn apply(&self, input: &Tensor, product: Product) -> candle_core::Result<Tensor> {
        match (&self.inner, product) {
            (QMatMul::QTensor(quantised), Product::Expanded) => {
                input.matmul(&quantised.dequantize(input.device())?.t()?)
            }
            (inner, _) => inner.forward(input),
        }
    }

    /// Looks rows up by number, dequantised.
    ///
    /// # Shapes
    /// Returns (ids, inputs).
    pub(crate) fn rows(&self, ids: &[u32], device: &Device) -> candle_core::Result<Tensor> {
        self.inner.embedding(&Tensor::new(ids, device)?)
    }
}

/// Hands out each tensor of the file once, checking its shape, and knows what nobody asked for.
pub(crate) struct Loader<'a> {
    gguf: &'a Gguf<'a>,
    device: &'a Device,
    taken: BTreeSet<String>,
}

impl<'a> Loader<'a> {
    pub(crate) fn new(gguf: &'a Gguf<'a>, device: &'a Device) -> Self {
        Self { gguf, device, taken: BTreeSet::new() }
    }

    /// A matrix of exactly the given shape (outputs, inputs).
    pub(crate) fn matrix(
        &mut self,
        name: &str,
        outputs: usize,
        inputs: usize,
    ) -> Result<Matrix, EngineError> {
        let tensor = self.take(name, &[outputs, inputs])?;
        Ok(Matrix { inner: QMatMul::from_arc(Arc::new(tensor))? })
    }

    /// A vector of exactly the given length, as F32.
    pub(crate) fn vector(&mut self, name: &str, len: usize) -> Result<Tensor, EngineError> {
        Ok(self.take(name, &[len])?.dequantize(self.device)?)
    }

    pub(crate) fn contains(&self, name: &str) -> bool {
        self.gguf.tensors.contains_key(name)
    }

    /// Refuses files with tensors that the description did not ask for: computing without them would
    /// be computing another model.
    pub(crate) fn finish(self) -> Result<(), EngineError> {
        match self.gguf.tensors.keys().find(|name| !self.taken.contains(**name)) {
            None => Ok(()),
            Some(name) => Err(EngineError::tensor(
                *name,
                "is not part of this architecture as this build knows it",
            )),
        }
    }

    fn take(&mut self, name: &str, shape: &[usize]) -> Result<QTensor, EngineError> {
        let info =
            self.gguf.tensors.get(name).ok_or_else(|| EngineError::tensor(name, "is missing"))?;
        if info.shape != shape {
            let problem = format!("has shape {:?}, expected {shape:?}", info.shape);
            return Err(EngineError::tensor(name, problem));
        }
        check_row(name, info)?;
        self.taken.insert(name.to_owned());
        let bytes = self.gguf.bytes.get(info.range.clone()).unwrap_or_default();
        // Candle casts the bytes in place: tensors start at multiples of at least eight within the
        // file, and a file is mapped at a page boundary, so every block type is aligned.
        let storage = QStorage::from_data(bytes.into(), self.device, info.dtype)?;
        Ok(QTensor::new(storage, shape)?)
    }
}

fn check_row(name: &str, info: &TensorInfo) -> Result<(), EngineError> {
    let row = info.shape.last().copied().unwrap_or(0);
    let paired = matches!(info.dtype, GgmlDType::Q4_1 | GgmlDType::Q5_0 | GgmlDType::Q5_1);
    if paired && !row.is_multiple_of(PAIRED_BLOCK_ROW) {
        let kind = dtype_name(info.dtype);
        return Err(EngineError::UnsupportedFeature {
            key: name.to_owned(),
            value: format!("{kind} rows of {row}"),
            reason: "rows of this type must be a multiple of 64 long",
        });
    }
    Ok(())
}
