//! The decoder on processors: owns weights, pages, buffers and the team, and runs one pass per batch.

use std::sync::Arc;

use super::isa::Isa;
use super::kernels::QuantBlock;
use super::lowrank::{Adapters, PackedAdapter};
use super::pack::blocks_per_row;
use super::pages::{CacheShape, Pages};
use super::pass::Pass;
use super::plan::Plan;
use super::shared::Shared;
use super::stage::{ALONE_ROWS, Activations, Scratch, Stage};
use super::team::Team;
use super::weights::Weights;
use crate::decoder::{Batch, Decoder, Output};
use crate::error::EngineError;
use crate::files::checkpoint::Checkpoint;
use crate::spec::{ModelSpec, Placement, alibi_slopes};

/// A [`Decoder`] on the processor's own kernels. Every row's result is the same bits whatever else is in the batch,
/// however its sequence is cut, and on every number of threads and every instruction set.
#[derive(Debug)]
pub(crate) struct CpuDecoder {
    spec: ModelSpec,
    isa: Isa,
    team: Team,
    weights: Weights,
    pages: Pages,
    /// ALiBi's, one for each head, or zeros.
    slopes: Vec<f32>,
    rows_max: usize,
    buffers: Buffers,
    adapters: Adapters,
}

/// Memory that passes work in. It grows to what the largest batch so far needed.
#[derive(Debug, Default)]
struct Buffers {
    x: Vec<f32>,
    y: Vec<f32>,
    query_key_value: Vec<f32>,
    raw: Vec<f32>,
    normed: Owned,
    attended: Owned,
    hidden: Owned,
    angles: Vec<Vec<f32>>,
    normed_alone: Vec<f32>,
    blocks_alone: Vec<QuantBlock>,
    scratch: Vec<Scratch>,
}

/// Activations as the products of a layer want them.
#[derive(Debug, Default)]
struct Owned {
    floats: Vec<f32>,
    blocks: Vec<QuantBlock>,
}

impl Owned {
    fn grow(&mut self, rows: usize, width: usize) {
        grow(&mut self.floats, rows * width);
        grow(&mut self.blocks, rows * blocks_per_row(width));
    }

    fn view(&mut self, width: usize) -> Activations<'_> {
        Activations {
            floats: Shared::new(&mut self.floats, width),
            blocks: Shared::new(&mut self.blocks, blocks_per_row(width)),
        }
    }
}

fn grow<T: Clone + Default>(buffer: &mut Vec<T>, len: usize) {
    if buffer.len() < len {
        buffer.resize(len, T::default());
    }
}

impl CpuDecoder {
    /// Packs the weights of a checkpoint, with memory for `pages` pages and batches of up to `rows_max` rows,
    /// to compute on `threads` threads, of which the caller's is one.
    ///
    /// # Errors
    /// See [`Weights::load`]; and when the system refuses threads or address space.
    pub(crate) fn new(
        checkpoint: &Checkpoint,
        threads: usize,
        isa: Isa,
        pages: usize,
        rows_max: usize,
    ) -> Result<Self, EngineError> {
        let io = |source| EngineError::Io { path: checkpoint.path().to_owned(), source };
        let mut team = Team::new(threads).map_err(io)?;
        let weights = Weights::load(checkpoint, &mut team)?;
        let spec = checkpoint.spec().clone();
        let pages = Pages::new(pages, CacheShape::of(checkpoint)).map_err(io)?;
        let slopes = match spec.attention.alibi {
            true => alibi_slopes(spec.heads),
            false => vec![0.0; spec.heads],
        };
        let buffers = Buffers::default();
        let adapters = Adapters::default();
        Ok(Self { spec, isa, team, weights, pages, slopes, rows_max, buffers, adapters })
    }

    fn grow(&mut self, plan: &Plan<'_>) {
        let (spec, members) = (&self.spec, self.team.members());
        let rows = plan.rows();
        let (query, kv, mlp) = (spec.query_width(), spec.kv_width(), spec.mlp_width);
        let b = &mut self.buffers;
        grow(&mut b.x, rows * spec.width);
        grow(&mut b.y, rows * spec.width);
        grow(&mut b.query_key_value, rows * (query + 2 * kv));
        b.normed.grow(rows, spec.width);
        b.attended.grow(rows, query);
        b.hidden.grow(rows, mlp);
        b.angles.resize_with(spec.ropes.len(), Vec::new);
        for (angles, rope) in b.angles.iter_mut().zip(&spec.ropes) {
            grow(angles, rows * 2 * rope.frequencies.len());
        }
        grow(&mut b.normed_alone, members * ALONE_ROWS * spec.width);
        grow(&mut b.blocks_alone, members * Self::blocks_alone(spec));
        b.scratch.resize_with(members, Scratch::default);
        let queries = Plan::rows_per_unit(spec) * (spec.heads / spec.kv_heads);
        for scratch in &mut b.scratch {
            scratch.grow(queries, self.pages.stride(), plan.pages_max);
        }
        if !plan.adapted.is_empty() {
            grow(&mut b.raw, rows * self.weights.raw_width());
        }
    }

    /// Quantised blocks of a member's rows in a small batch, whatever they are of.
    fn blocks_alone(spec: &ModelSpec) -> usize {
        ALONE_ROWS * blocks_per_row(spec.width.max(spec.query_width()).max(spec.mlp_width))
    }

    /// The adapters of the batch's sequences.
    fn adapters(
        &mut self,
        batch: &Batch<'_>,
    ) -> Result<Vec<Option<Arc<PackedAdapter>>>, EngineError> {
        self.adapters.sweep();
        let mut packed = |adapter| {
            self.adapters.packed(adapter).map_err(|error| {
                EngineError::Compute(candle_core::Error::Msg(format!("adapter: {error}")))
            })
        };
        let of = batch.sequences.iter().map(|sequence| sequence.adapter.map(&mut packed));
        of.map(Option::transpose).collect()
    }
}

impl Decoder for CpuDecoder {
    fn spec(&self) -> &ModelSpec {
        &self.spec
    }

    fn rows_max(&self) -> usize {
        self.rows_max
    }

    fn pages(&self) -> usize {
        self.pages.count()
    }

    fn batch_invariant(&self) -> bool {
        true
    }

    fn forward(
        &mut self,
        batch: &Batch<'_>,
        output: Output,
        out: &mut Vec<f32>,
    ) -> Result<(), EngineError> {
        let plan = Plan::new(batch, &self.spec, &self.pages, self.rows_max, self.team.members())?;
        if output == Output::Logits && self.weights.output.is_none() {
            let problem = "this model ends in hidden states".to_owned();
            return Err(EngineError::Compute(candle_core::Error::Msg(problem)));
        }
        let adapters = self.adapters(batch)?;
        let width = output.width(&self.spec);
        out.clear();
        out.resize(plan.wanted.len() * width, 0.0);
        if plan.rows() == 0 {
            return Ok(());
        }
        self.grow(&plan);
        let Self { spec, isa, team, weights, pages, slopes, buffers: b, .. } = self;
        let (query, kv, mlp) = (spec.query_width(), spec.kv_width(), spec.mlp_width);
        let stage = Stage {
            x: Shared::new(&mut b.x, spec.width),
            y: Shared::new(&mut b.y, spec.width),
            query_key_value: Shared::new(&mut b.query_key_value, query + 2 * kv),
            raw: Shared::new(&mut b.raw, weights.raw_width()),
            normed: b.normed.view(spec.width),
            attended: b.attended.view(query),
            hidden: b.hidden.view(mlp),
            angles: b
                .angles
                .iter_mut()
                .zip(&spec.ropes)
                .map(|(angles, rope)| Shared::new(angles, 2 * rope.frequencies.len()))
                .collect(),
            normed_alone: Shared::new(&mut b.normed_alone, ALONE_ROWS * spec.width),
            blocks_alone: Shared::new(&mut b.blocks_alone, Self::blocks_alone(spec)),
            scratch: Shared::new(&mut b.scratch, 1),
            out: Shared::new(out, width),
        };
        let pass = Pass {
            spec,
            isa: *isa,
            weights,
            pages,
            slopes,
            plan: &plan,
            adapters: &adapters,
            output,
            // Only where nothing but the products themselves writes the residual stream.
            alone: plan.rows() <= ALONE_ROWS
                && spec.placement == Placement::Before
                && weights.head_dense.is_none(),
            stage,
        };
        team.run(|member| pass.run(member));
        Ok(())
    }
}

#[cfg(test)]
mod tests;
