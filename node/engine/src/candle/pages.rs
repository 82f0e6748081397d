//! The memory of the pages: keys and values of every layer.

use candle_core::{DType, Device, Tensor};

use super::adapters::Span;
use crate::decoder::PAGE_TOKENS;
use crate::spec::ModelSpec;

/// Keys and values of all pages.
pub(super) struct Pages {
    count: usize,
    layers: Vec<LayerPages>,
}

/// Each (pages * 16, kv_heads, head_dim).
struct LayerPages {
    keys: Tensor,
    values: Tensor,
}

/// What one token adds to the cache, over all layers, in bytes.
pub(crate) fn cache_bytes_per_token(spec: &ModelSpec) -> u64 {
    // Descriptions bound every factor far below what could overflow together.
    2 * (spec.layers.len() * spec.kv_heads * spec.head_dim * DType::F32.size_in_bytes()) as u64
}

impl Pages {
    /// Zeroed pages. On a CPU the operating system gives memory only as they are written.
    pub(super) fn new(
        spec: &ModelSpec,
        count: usize,
        device: &Device,
    ) -> candle_core::Result<Self> {
        let shape = (count * PAGE_TOKENS, spec.kv_heads, spec.head_dim);
        let zeros = || Tensor::zeros(shape, DType::F32, device);
        let layers = spec
            .layers
            .iter()
            .map(|_| Ok(LayerPages { keys: zeros()?, values: zeros()? }))
            .collect::<candle_core::Result<_>>()?;
        Ok(Self { count, layers })
    }

    pub(super) fn count(&self) -> usize {
        self.count
    }

    /// Writes the keys and values of a span's rows.
    ///
    /// # Shapes
    /// `keys`, `values`: (rows of the batch, kv_heads, head_dim).
    pub(super) fn write(
        &self,
        layer: usize,
        span: &Span<'_>,
        keys: &Tensor,
        values: &Tensor,
    ) -> candle_core::Result<()> {
        let pages = self.layer(layer)?;
        let (mut row, mut position) = (span.rows.start, span.position);
        while row < span.rows.end {
            // As far as the page goes.
            let len = (PAGE_TOKENS - position % PAGE_TOKENS).min(span.rows.end - row);
            let slot = span.slot(position);
            // The source of a copy must be contiguous; a narrowed first dimension is.
            pages.keys.slice_set(&keys.narrow(0, row, len)?.contiguous()?, 0, slot)?;
            pages.values.slice_set(&values.narrow(0, row, len)?.contiguous()?, 0, slot)?;
            (row, position) = (row + len, position + len);
        }
        Ok(())
    }

    /// Keys and values of a sequence's positions `from..to`.
    ///
    /// # Shapes
    /// Returns (to - from, kv_heads, head_dim) each.
    pub(super) fn read(
        &self,
        layer: usize,
        span: &Span<'_>,
        from: usize,
        to: usize,
    ) -> candle_core::Result<(Tensor, Tensor)> {
        let pages = self.layer(layer)?;
        let slots: Vec<u32> = (from..to).map(|position| span.slot(position) as u32).collect();
        let slots = Tensor::new(slots, pages.keys.device())?;
        Ok((pages.keys.index_select(&slots, 0)?, pages.values.index_select(&slots, 0)?))
    }

    fn layer(&self, layer: usize) -> candle_core::Result<&LayerPages> {
        match self.layers.get(layer) {
            Some(pages) => Ok(pages),
            None => candle_core::bail!("there are no pages of layer {layer}"),
        }
    }
}
