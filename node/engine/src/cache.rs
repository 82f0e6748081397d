//! Keys and values in pages, for the plain candle trunk.

use candle_core::{DType, Device, Tensor};

use crate::decoder::{PAGE_TOKENS, PageId};
use crate::spec::ModelSpec;

/// Keys and values of all pages in every layer.
pub(crate) struct Cache {
    layers: Vec<LayerCache>,
}

/// Keys and values of one layer, each (pages x 16, kv_heads, head_dim).
struct LayerCache {
    keys: Tensor,
    values: Tensor,
}

/// Where a sequence's tokens are, and how many of them were computed before.
pub(crate) struct Seat<'a> {
    pub(crate) pages: &'a [PageId],
    pub(crate) start: usize,
}

impl Seat<'_> {
    /// The cache's row for a position.
    fn row(&self, position: usize) -> candle_core::Result<usize> {
        match self.pages.get(position / PAGE_TOKENS) {
            Some(&page) => Ok(page as usize * PAGE_TOKENS + position % PAGE_TOKENS),
            None => candle_core::bail!("position {position} has no page"),
        }
    }
}

impl Cache {
    /// The pages are zero and untouched, so the operating system gives memory only as they are used.
    pub(crate) fn new(
        spec: &ModelSpec,
        pages: usize,
        device: &Device,
    ) -> candle_core::Result<Self> {
        let shape = (pages * PAGE_TOKENS, spec.kv_heads, spec.head_dim);
        let zeros = || Tensor::zeros(shape, DType::F32, device);
        let layers = (0..spec.layers)
            .map(|_| Ok(LayerCache { keys: zeros()?, values: zeros()? }))
            .collect::<candle_core::Result<_>>()?;
        Ok(Self { layers })
    }

    /// Writes the keys and values of the next tokens and returns those of all tokens so far.
    ///
    /// # Shapes
    /// `keys`, `values`: (new, kv_heads, head_dim), contiguous.
    /// Returns (start + new, kv_heads, head_dim) each.
    pub(crate) fn extend(
        &self,
        layer: usize,
        seat: &Seat<'_>,
        keys: &Tensor,
        values: &Tensor,
    ) -> candle_core::Result<(Tensor, Tensor)> {
        let Some(cache) = self.layers.get(layer) else {
            candle_core::bail!("cache has no layer {layer}")
        };
        let new = keys.dim(0)?;
        let mut done = 0;
        while done < new {
            let position = seat.start + done;
            let len = (PAGE_TOKENS - position % PAGE_TOKENS).min(new - done);
            let row = seat.row(position)?;
            cache.keys.slice_set(&keys.narrow(0, done, len)?.contiguous()?, 0, row)?;
            cache.values.slice_set(&values.narrow(0, done, len)?.contiguous()?, 0, row)?;
            done += len;
        }
        let rows = (0..seat.start + new)
            .map(|position| Ok(seat.row(position)? as u32))
            .collect::<candle_core::Result<Vec<u32>>>()?;
        let rows = Tensor::new(rows, keys.device())?;
        Ok((cache.keys.index_select(&rows, 0)?, cache.values.index_select(&rows, 0)?))
    }
}
