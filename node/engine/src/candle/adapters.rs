//! Adapters on a device, and their application to the rows of the sequences that have one.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Arc, Weak};

use candle_core::{Device, Tensor};

use crate::adapter::{Adapter, Target};
use crate::decoder::{PAGE_TOKENS, SequenceView};

/// The rows of one sequence in a batch.
pub(super) struct Span<'a> {
    pub(super) sequence: usize,
    pub(super) view: SequenceView<'a>,
    pub(super) rows: Range<usize>,
    /// Of the first row.
    pub(super) position: usize,
}

impl Span<'_> {
    /// Where a position is in page memory. The batch has been checked, so every position has a page.
    pub(super) fn slot(&self, position: usize) -> usize {
        let page = self.view.pages.get(position / PAGE_TOKENS).copied().unwrap_or_default();
        page as usize * PAGE_TOKENS + position % PAGE_TOKENS
    }
}

/// Adapters that are on the device, as long as somebody else holds them.
#[derive(Default)]
pub(super) struct Adapters {
    loaded: Vec<(Weak<Adapter>, Vec<LayerFactors>)>,
}

type LayerFactors = BTreeMap<Target, Factors>;

/// One changed projection: `x Aᵀ Bᵀ`, the scale multiplied into `B`.
struct Factors {
    /// (inputs, rank)
    a: Tensor,
    /// (rank, outputs)
    b: Tensor,
}

impl Adapters {
    /// Brings the adapters of a batch to the device and drops those that nobody holds any more.
    pub(super) fn prepare(
        &mut self,
        spans: &[Span<'_>],
        device: &Device,
    ) -> candle_core::Result<()> {
        self.loaded.retain(|(adapter, _)| adapter.strong_count() > 0);
        for adapter in spans.iter().filter_map(|span| span.view.adapter) {
            if self.find(adapter).is_none() {
                let layers = adapter.layers.iter().map(|layer| factors(layer, device));
                let layers = layers.collect::<candle_core::Result<_>>()?;
                self.loaded.push((Arc::downgrade(adapter), layers));
            }
        }
        Ok(())
    }

    /// Adds to `output`, span by span, what the adapters change.
    ///
    /// # Shapes
    /// `input`: (rows, inputs); `output`: (rows, outputs). Returns the shape of `output`.
    pub(super) fn apply(
        &self,
        output: Tensor,
        input: &Tensor,
        layer: usize,
        target: Target,
        spans: &[Span<'_>],
    ) -> candle_core::Result<Tensor> {
        let factors = |span: &Span<'_>| {
            let layers = self.find(span.view.adapter?)?;
            layers.get(layer)?.get(&target)
        };
        if spans.iter().all(|span| factors(span).is_none()) {
            return Ok(output);
        }
        let parts = spans
            .iter()
            .map(|span| {
                let (start, len) = (span.rows.start, span.rows.len());
                let output = output.narrow(0, start, len)?;
                match factors(span) {
                    Some(Factors { a, b }) => {
                        output + input.narrow(0, start, len)?.matmul(a)?.matmul(b)?
                    }
                    None => Ok(output),
                }
            })
            .collect::<candle_core::Result<Vec<_>>>()?;
        Tensor::cat(&parts, 0)
    }

    /// How many are on the device.
    #[cfg(test)]
    pub(super) fn loaded(&self) -> usize {
        self.loaded.len()
    }

    fn find(&self, adapter: &Arc<Adapter>) -> Option<&Vec<LayerFactors>> {
        let same = |weak: &Weak<Adapter>| std::ptr::eq(weak.as_ptr(), Arc::as_ptr(adapter));
        self.loaded.iter().find(|(weak, _)| same(weak)).map(|(_, layers)| layers)
    }
}

fn factors(
    layer: &BTreeMap<Target, crate::adapter::LowRank>,
    device: &Device,
) -> candle_core::Result<LayerFactors> {
    layer
        .iter()
        .map(|(&target, low)| {
            let a = Tensor::from_slice(&low.a, (low.rank, low.inputs), device)?;
            let b = Tensor::from_slice(&low.b, (low.outputs, low.rank), device)?;
            let b = (b.t()? * f64::from(low.scale))?.contiguous()?;
            Ok((target, Factors { a: a.t()?.contiguous()?, b }))
        })
        .collect()
}
