//! Rotary position embedding: the table of angles, and its application to queries and keys.

use candle_core::{Device, Tensor};

use crate::spec::Rope;

/// The rotation of a model's heads.
#[derive(Clone, Debug)]
pub(crate) struct Rotation {
    rope: Rope,
}

/// Cosines and sines of consecutive positions, each (positions, 1, head_dim / 2).
pub(crate) struct Angles {
    cos: Tensor,
    sin: Tensor,
}

impl Rotation {
    pub(crate) fn new(rope: Rope) -> Self {
        Self { rope }
    }

    /// Angles of positions `start..start + len`. Computed each time: they cost less than one row of
    /// one matrix, and a table for the whole context would be sized by what a file claims.
    pub(crate) fn angles(
        &self,
        start: usize,
        len: usize,
        device: &Device,
    ) -> candle_core::Result<Angles> {
        let pairs = self.rope.frequencies.len();
        let (mut cos, mut sin) = (Vec::with_capacity(len * pairs), Vec::with_capacity(len * pairs));
        for position in start..start + len {
            for (cosine, sine) in self.rope.angles(position) {
                cos.push(cosine);
                sin.push(sine);
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
