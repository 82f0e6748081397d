//! Low-rank adapters (LoRA, arXiv 2106.09685), packed for the kernels when first used.

use std::collections::BTreeMap;
use std::sync::{Arc, Weak};

use candle_core::quantized::GgmlDType;

use super::isa::Isa;
use super::kernels::{Input, Output, Product, Then};
use super::pack::{Order, PackError, PackedMatrix, RawMatrix};
use crate::adapter::{Adapter, LowRank, Target};

/// One changed projection: `y += B (scale (A x))`, in f32, sums over ascending inputs.
#[derive(Debug)]
pub(crate) struct Delta {
    a: PackedMatrix,
    b: PackedMatrix,
    scale: f32,
}

/// One adapter.
#[derive(Debug)]
pub(crate) struct PackedAdapter {
    layers: Vec<BTreeMap<Target, Delta>>,
}

impl PackedAdapter {
    fn new(adapter: &Adapter) -> Result<Self, PackError> {
        let layer = |targets: &BTreeMap<Target, LowRank>| {
            targets.iter().map(|(target, low_rank)| Ok((*target, Delta::new(low_rank)?))).collect()
        };
        Ok(Self { layers: adapter.layers.iter().map(layer).collect::<Result<_, PackError>>()? })
    }

    /// What it changes of a projection.
    pub(crate) fn delta(&self, layer: usize, target: Target) -> Option<&Delta> {
        self.layers.get(layer)?.get(&target)
    }
}

impl Delta {
    fn new(low_rank: &LowRank) -> Result<Self, PackError> {
        let pack = |rows, columns, values: &[f32]| {
            let bytes: Vec<u8> = values.iter().flat_map(|x| x.to_le_bytes()).collect();
            let raw = RawMatrix { dtype: GgmlDType::F32, rows, columns, bytes: &bytes };
            PackedMatrix::pack(&[raw], Order::Concatenated)
        };
        Ok(Self {
            a: pack(low_rank.rank, low_rank.inputs, &low_rank.a)?,
            b: pack(low_rank.outputs, low_rank.rank, &low_rank.b)?,
            scale: low_rank.scale,
        })
    }

    /// Outputs of the projection.
    pub(crate) fn outputs(&self) -> usize {
        self.b.rows()
    }

    /// Computes what is to be added, for rows of inputs.
    ///
    /// # Shapes
    /// `x`: (rows, inputs); `out` becomes (rows, outputs); `between` is scratch.
    pub(crate) fn apply(
        &self,
        isa: Isa,
        rows: usize,
        x: &[f32],
        between: &mut Vec<f32>,
        out: &mut Vec<f32>,
    ) {
        let rank = self.a.rows();
        between.resize(rows * rank, 0.0);
        out.resize(rows * self.outputs(), 0.0);
        multiply(isa, &self.a, rows, x, between);
        between.iter_mut().for_each(|x| *x *= self.scale);
        multiply(isa, &self.b, rows, between, out);
    }
}

fn multiply(isa: Isa, weights: &PackedMatrix, rows: usize, x: &[f32], out: &mut [f32]) {
    let (input, output) = (Input::Float(x), Output::new(out, weights.rows()));
    Product { weights, input, rows, bias: None, then: Then::Store, output }.run_alone(isa);
}

/// Adapters in use, each packed once. An adapter that nobody holds any more is forgotten.
#[derive(Debug, Default)]
pub(crate) struct Adapters {
    known: Vec<(Weak<Adapter>, Arc<PackedAdapter>)>,
}

impl Adapters {
    /// Forgets adapters that are gone. Only then may their addresses come again.
    pub(crate) fn sweep(&mut self) {
        self.known.retain(|(adapter, _)| adapter.strong_count() > 0);
    }

    /// How many are known.
    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.known.len()
    }

    /// The packed form.
    ///
    /// # Errors
    /// When memory is refused or shapes contradict each other.
    pub(crate) fn packed(
        &mut self,
        adapter: &Arc<Adapter>,
    ) -> Result<Arc<PackedAdapter>, PackError> {
        let known = self.known.iter().find(|(known, _)| known.as_ptr() == Arc::as_ptr(adapter));
        if let Some((_, packed)) = known {
            return Ok(Arc::clone(packed));
        }
        let packed = Arc::new(PackedAdapter::new(adapter)?);
        self.known.push((Arc::downgrade(adapter), Arc::clone(&packed)));
        Ok(packed)
    }
}
