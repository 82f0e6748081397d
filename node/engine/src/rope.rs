//! Rotary position embedding: the table of angles, and its application to queries and keys.

use candle_core::{Device, Tensor};

use crate::error::EngineError;
use crate::spec::Rope;

/// Angular frequencies of one head, lowest pair first.
#[derive(Clone, Debug)]
pub(crate) struct Rotation {
    /// Radians per position; one for each pair of dimensions.
    frequencies: Vec<f32>,
}

/// Cosines and sines of consecutive positions, each (positions, 1, head_dim / 2).
pub(crate) struct Angles {
    cos: Tensor,
    sin: Tensor,
}

impl Rotation {
    /// Frequencies `base^(-2i / head_dim)`, divided by the position divisor and, where given, by one
    /// divisor per pair (Llama 3 scaling, precomputed by the converter).
    ///
    /// # Errors
    /// When a divisor is zero, negative or not finite.
    pub(crate) fn new(
        rope: &Rope,
        head_dim: usize,
        divisors: Option<&[f32]>,
    ) -> Result<Self, EngineError> {
        let mut frequencies = Vec::with_capacity(head_dim / 2);
        for pair in 0..head_dim / 2 {
            let exponent = -((2 * pair) as f64) / head_dim as f64;
            let mut frequency = rope.base.powf(exponent) / rope.position_divisor;
            if let Some(divisor) = divisors.and_then(|divisors| divisors.get(pair)) {
                if !divisor.is_finite() || *divisor <= 0.0 {
                    let problem = format!("divisor {pair} is {divisor}");
                    return Err(EngineError::tensor("rope_freqs.weight", problem));
                }
                frequency /= f64::from(*divisor);
            }
            frequencies.push(frequency as f32);
        }
        Ok(Self { frequencies })
    }

    /// Angles of positions `start..start + len`. Computed each time: they cost less than one row of
    /// one matrix, and a table for the whole context would be sized by what a file claims.
    pub(crate) fn angles(
        &self,
        start: usize,
        len: usize,
        device: &Device,
    ) -> candle_core::Result<Angles> {
        let pairs = self.frequencies.len();
        let (mut cos, mut sin) = (Vec::with_capacity(len * pairs), Vec::with_capacity(len * pairs));
        for position in start..start + len {
            for frequency in &self.frequencies {
                // The product is rounded to F32 as the models' reference code does it.
                let angle = f64::from(position as f32 * frequency);
                cos.push(angle.cos() as f32);
                sin.push(angle.sin() as f32);
            }
        }
        let shape = (len, 1, pairs);
        Ok(Angles {
            cos: Tensor::from_vec(cos, shape, device)?,
            sin: Tensor::from_vec(sin, shape, device)?,
        })
    }
}

impl Angles {
    /// Rotates adjacent pairs of each head by the angle of its position.
    ///
    /// # Shapes
    /// `heads`: (positions, heads, head_dim), contiguous. Returns the same shape.
    pub(crate) fn rotate(&self, heads: &Tensor) -> candle_core::Result<Tensor> {
        // Each position is its own batch entry of length one, so nothing has to be transposed.
        let heads = heads.unsqueeze(2)?;
        candle_nn::rotary_emb::rope_i(&heads, &self.cos, &self.sin)?.squeeze(2)
    }
}
