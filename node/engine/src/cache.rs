//! Keys and values of the sequence being generated.

use candle_core::{DType, Device, Tensor};

use crate::spec::ModelSpec;

/// One sequence's keys and values for every layer, allocated once for the longest it may become.
pub(crate) struct Cache {
    layers: Vec<LayerCache>,
    len: usize,
}

/// Keys and values of one layer, each (capacity, kv_heads, head_dim).
struct LayerCache {
    keys: Tensor,
    values: Tensor,
}

impl Cache {
    /// Room for `capacity` tokens. The pages are zero and untouched, so the operating system gives
    /// memory only as the sequence grows.
    pub(crate) fn new(
        spec: &ModelSpec,
        capacity: usize,
        device: &Device,
    ) -> candle_core::Result<Self> {
        let shape = (capacity, spec.kv_heads, spec.head_dim);
        let zeros = || Tensor::zeros(shape, DType::F32, device);
        let layers = (0..spec.layers.len())
            .map(|_| Ok(LayerCache { keys: zeros()?, values: zeros()? }))
            .collect::<candle_core::Result<_>>()?;
        Ok(Self { layers, len: 0 })
    }

    /// Tokens whose keys and values are complete in all layers.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Writes the keys and values of the next tokens and returns those of all tokens so far.
    ///
    /// # Shapes
    /// `keys`, `values`: (new, kv_heads, head_dim), contiguous.
    /// Returns (len + new, kv_heads, head_dim) each.
    pub(crate) fn extend(
        &self,
        layer: usize,
        keys: &Tensor,
        values: &Tensor,
    ) -> candle_core::Result<(Tensor, Tensor)> {
        let Some(cache) = self.layers.get(layer) else {
            candle_core::bail!("cache has no layer {layer}")
        };
        let total = self.len + keys.dim(0)?;
        cache.keys.slice_set(keys, 0, self.len)?;
        cache.values.slice_set(values, 0, self.len)?;
        Ok((cache.keys.narrow(0, 0, total)?, cache.values.narrow(0, 0, total)?))
    }

    /// Marks `new` tokens as written in all layers.
    pub(crate) fn advance(&mut self, new: usize) {
        self.len += new;
    }
}
