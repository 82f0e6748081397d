//! Functions composed of candle operations that all have a backward pass.

use candle_core::{D, Device, Tensor};

use crate::decoder::Row;
use crate::spec::{Activation, Pairing, Rope};

/// The function between the halves of an MLP, for each element.
pub(super) fn activate(activation: Activation, input: &Tensor) -> candle_core::Result<Tensor> {
    match activation {
        Activation::Silu => input.silu(),
        Activation::GeluTanh => input.gelu(),
        Activation::GeluErf => input.gelu_erf(),
        Activation::Relu => input.relu(),
        Activation::Xielu(xielu) => {
            let linear = (input * f64::from(xielu.beta))?;
            let positive = ((input.sqr()? * f64::from(xielu.alpha_p))? + &linear)?;
            // expm1(x) = 2 t / (1 - t) with t = tanh(x / 2), without the cancellation of exp(x) - 1.
            let low = input.minimum(f64::from(xielu.epsilon))?;
            let half = (low / 2.0)?.tanh()?;
            let expm1 = ((&half * 2.0)? / half.affine(-1.0, 1.0)?)?;
            let negative = (((expm1 - input)? * f64::from(xielu.alpha_n))? + &linear)?;
            input.gt(0f32)?.where_cond(&positive, &negative)
        }
    }
}

/// `cap * tanh(x / cap)`
pub(super) fn soft_cap(input: &Tensor, cap: f32) -> candle_core::Result<Tensor> {
    (input / f64::from(cap))?.tanh()? * f64::from(cap)
}

/// Softmax over the last dimension; at least one element of each must be finite.
pub(super) fn softmax(scores: &Tensor) -> candle_core::Result<Tensor> {
    let shifted = scores.broadcast_sub(&scores.max_keepdim(D::Minus1)?)?.exp()?;
    shifted.broadcast_div(&shifted.sum_keepdim(D::Minus1)?)
}

/// Cosines and sines of one rotation at the positions of a batch, each (rows, 1, pairs).
pub(super) struct Angles {
    pairing: Pairing,
    pairs: usize,
    cos: Tensor,
    sin: Tensor,
}

impl Angles {
    /// Computed each time: they cost less than one row of one matrix, and a table for the whole context
    /// would be sized by what a file claims.
    pub(super) fn new(rope: &Rope, rows: &[Row], device: &Device) -> candle_core::Result<Self> {
        let pairs = rope.frequencies.len();
        let (cos, sin): (Vec<f32>, Vec<f32>) =
            rows.iter().flat_map(|row| rope.angles(row.position)).unzip();
        let shape = (rows.len(), 1, pairs);
        Ok(Self {
            pairing: rope.pairing,
            pairs,
            cos: Tensor::from_vec(cos, shape, device)?,
            sin: Tensor::from_vec(sin, shape, device)?,
        })
    }

    /// Rotates the first dimensions of each head by the angles of its row's position.
    ///
    /// # Shapes
    /// `heads`: (rows, heads, head_dim). Returns the same shape.
    pub(super) fn rotate(&self, heads: &Tensor) -> candle_core::Result<Tensor> {
        let (rows, count, head_dim) = heads.dims3()?;
        let (pairs, rotated) = (self.pairs, 2 * self.pairs);
        let turned = heads.narrow(2, 0, rotated)?;
        let (first, second) = match self.pairing {
            Pairing::Halves => (turned.narrow(2, 0, pairs)?, turned.narrow(2, pairs, pairs)?),
            Pairing::Adjacent => {
                let pairs = turned.contiguous()?.reshape((rows, count, pairs, 2))?;
                (pairs.narrow(3, 0, 1)?.squeeze(3)?, pairs.narrow(3, 1, 1)?.squeeze(3)?)
            }
        };
        let turn = |a: &Tensor, b: &Tensor| {
            Ok::<_, candle_core::Error>((a.broadcast_mul(&self.cos)?, b.broadcast_mul(&self.sin)?))
        };
        let (first_cos, second_sin) = turn(&first, &second)?;
        let (second_cos, first_sin) = turn(&second, &first)?;
        let (first, second) = ((first_cos - second_sin)?, (second_cos + first_sin)?);
        let turned = match self.pairing {
            Pairing::Halves => Tensor::cat(&[first, second], 2)?,
            Pairing::Adjacent => {
                Tensor::stack(&[first, second], 3)?.reshape((rows, count, rotated))?
            }
        };
        if rotated == head_dim {
            return Ok(turned);
        }
        Tensor::cat(&[turned, heads.narrow(2, rotated, head_dim - rotated)?], 2)
    }
}
