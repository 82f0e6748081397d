//! One forward pass, as every member of the team runs it.
//!
//! The pass is a sequence of phases with barriers between them (see [`super::shared`]). Within a phase members take units
//! of the same work; each unit writes rows, or columns of all rows, that no other unit of the phase touches,
//! and reads only what earlier phases wrote. That is the reason why every access to [`Stage`] here is sound, and what
//! the safety comments call *the phase*.
//!
//! Batches of a row or two are mostly waiting for barriers, so there every member normalises and quantises all rows for itself:
//! the same bits, without a meeting.

use std::sync::Arc;

use super::elementwise::{Activate, SoftCap};
use super::isa::Isa;
use super::kernels::{Input, Product, QuantBlock, Then, quantise_row};
use super::lowrank::PackedAdapter;
use super::math::Activation;
use super::norm::Norm;
use super::pack::blocks_per_row;
use super::pack::layout::HALF_ROWS;
use super::pages::Pages;
use super::plan::Plan;
use super::rope;
use super::shared::Shared;
use super::shares::{Shares, barrier_before};
use super::stage::{Activations, Scratch, Stage};
use super::team::Member;
use super::weights::{Layer, Linear, Weights};
use crate::adapter::Target;
use crate::decoder::Output;
use crate::spec::{ModelSpec, Placement};

/// Shares of rows per member: a member that was interrupted leaves its last share to the others.
const SHARES: usize = 4;

/// Which activations a product reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Read {
    Normed,
    Attended,
    Hidden,
}

/// What happens to the residual stream after attention or MLP.
#[derive(Clone, Copy, Debug)]
enum Update<'a> {
    /// The product has added to it already.
    Nothing,
    /// `x += norm(y)`.
    AddNormed(&'a Norm),
    /// `x = norm(x)`.
    Normalise(&'a Norm),
}

/// What the next product reads.
#[derive(Clone, Copy, Debug)]
struct Next<'a> {
    norm: Option<&'a Norm>,
    quantised: bool,
}

/// Where a low-rank change is added within a row.
#[derive(Clone, Copy, Debug)]
enum At {
    /// From this column on.
    Column(usize),
    /// To the first (0) or second (1) of alternating groups of sixteen.
    Half(usize),
}

/// One batch on its way through the model.
#[derive(Debug)]
pub(super) struct Pass<'a> {
    pub(super) spec: &'a ModelSpec,
    pub(super) isa: Isa,
    pub(super) weights: &'a Weights,
    pub(super) pages: &'a Pages,
    pub(super) slopes: &'a [f32],
    pub(super) plan: &'a Plan<'a>,
    /// For each of the batch's sequences.
    pub(super) adapters: &'a [Option<Arc<PackedAdapter>>],
    pub(super) output: Output,
    /// Every member prepares all rows for itself.
    pub(super) alone: bool,
    pub(super) stage: Stage<'a>,
}

impl Pass<'_> {
    /// A member's part of the pass.
    pub(super) fn run(&self, member: &mut Member<'_>) {
        self.embed(member);
        let layers = &self.weights.layers;
        if let Some(first) = layers.first() {
            self.settle(member, Update::Nothing, Some(first.next()));
        }
        for (index, layer) in layers.iter().enumerate() {
            self.attention(member, index, layer);
            let next = match self.spec.placement {
                // The MLP reads what attention has read.
                Placement::Parallel => None,
                _ => Some(Next { norm: layer.mlp_norm.as_ref(), quantised: layer.up.quantised() }),
            };
            self.settle(member, self.update(layer.attention_out_norm.as_ref()), next);
            self.mlp(member, index, layer);
            let next = layers.get(index + 1).map(Layer::next);
            self.settle(member, self.update(layer.mlp_out_norm.as_ref()), next);
        }
        match self.output {
            Output::Hidden => self.hidden_states(member),
            Output::Logits => self.logits(member),
        }
    }

    fn update<'n>(&self, norm: Option<&'n Norm>) -> Update<'n> {
        match norm {
            None => Update::Nothing,
            Some(norm) if self.spec.placement == Placement::AfterSum => Update::Normalise(norm),
            Some(norm) => Update::AddNormed(norm),
        }
    }

    /// Looks tokens up and computes the rotations of their positions.
    fn embed(&self, member: &mut Member<'_>) {
        let rows = self.plan.batch.rows;
        self.each_row(member, rows.len(), |index| {
            let row = rows[index];
            // SAFETY: the phase: this unit's row.
            let x = unsafe { self.stage.x.row_mut(index) };
            self.weights.embed(self.isa, row.token, row.position, x);
            for (rope, angles) in self.spec.ropes.iter().zip(&self.stage.angles) {
                // SAFETY: the phase: this unit's row.
                rope::angles_into(rope, row.position, unsafe { angles.row_mut(index) });
            }
        });
        member.barrier();
    }

    /// From normalised rows to the attention's output in the residual stream, or in `y`.
    fn attention(&self, member: &mut Member<'_>, index: usize, layer: &Layer) {
        let (stage, rows) = (&self.stage, self.plan.rows());
        let (query, kv) = (self.spec.query_width(), self.spec.kv_width());
        let to = &stage.query_key_value;
        self.product(member, &layer.query_key_value, Read::Normed, rows, Then::Store, to);
        barrier_before(member, &layer.attention_output.weights, rows);
        let changes = [
            (Target::Query, At::Column(0)),
            (Target::Key, At::Column(query)),
            (Target::Value, At::Column(query + kv)),
        ];
        self.adapt(member, index, &changes, Read::Normed, to);
        self.attend(member, index, layer);
        let (then, to) = self.residual();
        self.product(member, &layer.attention_output, Read::Attended, rows, then, to);
        barrier_before(member, &layer.up.weights, rows);
        let changes = [(Target::AttentionOutput, At::Column(0))];
        self.adapt(member, index, &changes, Read::Attended, to);
    }

    /// From normalised rows to the MLP's output in the residual stream, or in `y`.
    fn mlp(&self, member: &mut Member<'_>, index: usize, layer: &Layer) {
        let (stage, rows) = (&self.stage, self.plan.rows());
        if self.plan.adapted.is_empty() {
            let then = match self.spec.gated {
                true => Then::Gate(layer.activation),
                false => Then::Activate(layer.activation),
            };
            let to = &stage.hidden.floats;
            self.product(member, &layer.up, Read::Normed, rows, then, to);
            barrier_before(member, &layer.down.weights, rows);
        } else {
            let to = &stage.raw;
            let then = if self.spec.gated { Then::Alternate } else { Then::Store };
            self.product(member, &layer.up, Read::Normed, rows, then, to);
            member.barrier();
            let changes = match self.spec.gated {
                true => vec![(Target::Gate, At::Half(0)), (Target::Up, At::Half(1))],
                false => vec![(Target::Up, At::Column(0))],
            };
            self.adapt(member, index, &changes, Read::Normed, to);
            let activation = layer.activation;
            self.each_row(member, rows, |row| {
                // SAFETY: the phase: `raw` is only read, and this is this unit's row of `hidden`.
                let (raw, out) = unsafe { (stage.raw.row(row), stage.hidden.floats.row_mut(row)) };
                self.isa.run(Activate { activation, gated: self.spec.gated, raw, out });
            });
            member.barrier();
        }
        if layer.down.quantised() {
            self.quantise(member, &stage.hidden);
        }
        let (then, to) = self.residual();
        self.product(member, &layer.down, Read::Hidden, rows, then, to);
        let layers = &self.weights.layers;
        let next = layers.get(index + 1).map(|next| &next.query_key_value);
        match next.or(self.weights.output.as_ref()) {
            Some(next) => barrier_before(member, &next.weights, rows),
            None => member.barrier(),
        }
        self.adapt(member, index, &[(Target::Down, At::Column(0))], Read::Hidden, to);
    }

    /// What becomes of the outputs of attention and MLP.
    fn residual(&self) -> (Then, &Shared<'_, f32>) {
        match self.spec.placement {
            Placement::After | Placement::Both => (Then::Store, &self.stage.y),
            _ => (Then::Add, &self.stage.x),
        }
    }

    /// Finishes the residual sum and prepares what the next product reads.
    fn settle(&self, member: &mut Member<'_>, update: Update<'_>, next: Option<Next<'_>>) {
        let stage = &self.stage;
        if self.alone {
            if let Some(next) = next {
                self.prepare_alone(member, self.plan.rows(), next, |row| row);
            }
            return;
        }
        if next.is_none() && matches!(update, Update::Nothing) {
            return;
        }
        self.each_row(member, self.plan.rows(), |row| {
            // SAFETY: the phase: this unit's row of `x` and `normed`; `y` is only read.
            let (x, y, normed) = unsafe {
                (stage.x.row_mut(row), stage.y.row(row), stage.normed.floats.row_mut(row))
            };
            match update {
                Update::Nothing => {}
                Update::AddNormed(norm) => {
                    norm.apply(self.isa, y, normed);
                    x.iter_mut().zip(&*normed).for_each(|(x, y)| *x += y);
                }
                Update::Normalise(norm) => norm.apply_in_place(self.isa, x),
            }
            if let Some(next) = next {
                // SAFETY: the phase: this unit's row.
                let blocks = unsafe { stage.normed.blocks.row_mut(row) };
                next.prepare(self.isa, x, normed, blocks);
            }
        });
        member.barrier();
    }

    /// Prepares rows of the residual stream for a product: `count` of them, of which number `i` is row `of(i)`.
    fn prepare(
        &self,
        member: &mut Member<'_>,
        count: usize,
        next: Next<'_>,
        of: impl Fn(usize) -> usize,
    ) {
        if self.alone {
            return self.prepare_alone(member, count, next, of);
        }
        let normed = &self.stage.normed;
        self.each_row(member, count, |index| {
            // SAFETY: the phase: `x` is only read, and these are this unit's rows.
            let (x, floats, blocks) = unsafe {
                (
                    self.stage.x.row(of(index)),
                    normed.floats.row_mut(index),
                    normed.blocks.row_mut(index),
                )
            };
            next.prepare(self.isa, x, floats, blocks);
        });
        member.barrier();
    }

    fn prepare_alone(
        &self,
        member: &Member<'_>,
        count: usize,
        next: Next<'_>,
        of: impl Fn(usize) -> usize,
    ) {
        let width = self.spec.width;
        let per_row = blocks_per_row(width);
        // SAFETY: this member's rows, and no slice of them lives longer than the product that read it.
        let (floats, blocks) = unsafe {
            let stage = &self.stage;
            (stage.normed_alone.row_mut(member.index()), stage.blocks_alone.row_mut(member.index()))
        };
        for index in 0..count {
            let normed = &mut floats[index * width..][..width];
            let blocks = &mut blocks[index * per_row..][..per_row];
            // SAFETY: the phase: nobody writes `x` between the barrier before this and the one after the product that
            // reads what is prepared here.
            let x = unsafe { self.stage.x.row(of(index)) };
            next.prepare(self.isa, x, normed, blocks);
        }
    }

    /// Quantises activations of all rows.
    pub(super) fn quantise(&self, member: &mut Member<'_>, of: &Activations<'_>) {
        let rows = self.plan.rows();
        if self.alone {
            let per_row = of.blocks.width();
            // SAFETY: as in `prepare_alone`.
            let blocks = unsafe { self.stage.blocks_alone.row_mut(member.index()) };
            for row in 0..rows {
                // SAFETY: the phase: they were written before the last barrier and are only read until the next.
                let floats = unsafe { of.floats.row(row) };
                quantise_row(self.isa, floats, &mut blocks[row * per_row..][..per_row]);
            }
            return;
        }
        self.each_row(member, rows, |row| {
            // SAFETY: the phase: floats are only read, and this is this unit's row of blocks.
            let (floats, blocks) = unsafe { (of.floats.row(row), of.blocks.row_mut(row)) };
            quantise_row(self.isa, floats, blocks);
        });
        member.barrier();
    }

    /// A member's shares of a product over the first `rows` rows.
    fn product(
        &self,
        member: &Member<'_>,
        linear: &Linear,
        from: Read,
        rows: usize,
        then: Then,
        to: &Shared<'_, f32>,
    ) {
        let Linear { weights, bias } = linear;
        let input = match linear.quantised() {
            true => Input::Quantised(self.blocks(member, from, rows)),
            false => Input::Float(self.floats(member, from, 0..rows)),
        };
        // SAFETY: the phase: shares are different tiles, so different columns, and nobody reads them before the
        // next barrier.
        let output = unsafe { to.output(rows) };
        let product = Product { weights, input, rows, bias: bias.as_deref(), then, output };
        let shares = Shares::new(weights.tiles(), member.members(), rows);
        // SAFETY: as above.
        unsafe { product.run(self.isa, shares.own(member.index())) };
        while let Some(piece) = member.take(shares.pieces()) {
            // SAFETY: as above.
            unsafe { product.run(self.isa, shares.piece(piece)) };
        }
    }

    fn floats(&self, member: &Member<'_>, from: Read, rows: std::ops::Range<usize>) -> &[f32] {
        let stage = &self.stage;
        // SAFETY: the phase: activations are prepared before the product that reads them, and not
        // written before the barrier after it.
        unsafe {
            match from {
                Read::Normed if self.alone => {
                    let width = self.spec.width;
                    let alone = stage.normed_alone.row(member.index());
                    &alone[rows.start * width..rows.end * width]
                }
                Read::Normed => stage.normed.floats.rows(rows),
                Read::Attended => stage.attended.floats.rows(rows),
                Read::Hidden => stage.hidden.floats.rows(rows),
            }
        }
    }

    fn blocks(&self, member: &Member<'_>, from: Read, rows: usize) -> &[QuantBlock] {
        let stage = &self.stage;
        let shared = match from {
            Read::Normed => &stage.normed,
            Read::Attended => &stage.attended,
            Read::Hidden => &stage.hidden,
        };
        if self.alone && !(from == Read::Attended && self.attended_in_units()) {
            // SAFETY: this member's row, which it does not write before the product is done.
            let alone = unsafe { stage.blocks_alone.row(member.index()) };
            return &alone[..rows * shared.blocks.width()];
        }
        // SAFETY: as in `floats`.
        unsafe { shared.blocks.rows(0..rows) }
    }

    /// Adds what the adapters of some sequences change of projections that have just been computed, which ends the
    /// phase. Without adapters it is nothing.
    fn adapt(
        &self,
        member: &mut Member<'_>,
        layer: usize,
        changes: &[(Target, At)],
        from: Read,
        to: &Shared<'_, f32>,
    ) {
        let spans = &self.plan.adapted;
        if spans.is_empty() {
            return;
        }
        while let Some(unit) = member.take(spans.len()) {
            let span = spans[unit];
            let Some(adapter) = &self.adapters[span.sequence] else { continue };
            for (target, at) in changes {
                let Some(delta) = adapter.delta(layer, *target) else { continue };
                let x = self.floats(member, from, span.row..span.row + span.rows);
                let Scratch { between, delta: change, .. } = self.scratch(member);
                delta.apply(self.isa, span.rows, x, between, change);
                for (row, change) in change.chunks_exact(delta.outputs()).enumerate() {
                    // SAFETY: the phase: this unit's row.
                    let to = unsafe { to.row_mut(span.row + row) };
                    at.add(change, to);
                }
            }
        }
        member.barrier();
    }

    /// Writes the hidden states of wanted rows.
    fn hidden_states(&self, member: &mut Member<'_>) {
        let wanted = &self.plan.wanted;
        let norm = self.weights.output_norm.as_ref();
        self.each_row(member, wanted.len(), |index| {
            // SAFETY: the phase: `x` is only read, and this is this unit's row.
            let (x, out) =
                unsafe { (self.stage.x.row(wanted[index]), self.stage.out.row_mut(index)) };
            match norm {
                Some(norm) => norm.apply(self.isa, x, out),
                None => out.copy_from_slice(x),
            }
        });
    }

    /// Writes the logits of wanted rows.
    fn logits(&self, member: &mut Member<'_>) {
        let (stage, weights) = (&self.stage, self.weights);
        let wanted = &self.plan.wanted;
        let Some(output) = &weights.output else { return };
        if wanted.is_empty() {
            return;
        }
        let norm = weights.output_norm.as_ref();
        if let Some(head) = &weights.head_dense {
            let next = Next { norm, quantised: head.dense.quantised() };
            self.prepare(member, wanted.len(), next, |index| wanted[index]);
            let then = Then::Activate(Activation::GeluErf);
            self.product(member, &head.dense, Read::Normed, wanted.len(), then, &stage.y);
            member.barrier();
            let next = Next { norm: Some(&head.norm), quantised: output.quantised() };
            self.each_row(member, wanted.len(), |index| {
                let normed = &stage.normed;
                // SAFETY: the phase: `y` is only read, and these are this unit's rows.
                let (y, floats, blocks) = unsafe {
                    (stage.y.row(index), normed.floats.row_mut(index), normed.blocks.row_mut(index))
                };
                next.prepare(self.isa, y, floats, blocks);
            });
            member.barrier();
        } else {
            let next = Next { norm, quantised: output.quantised() };
            self.prepare(member, wanted.len(), next, |index| wanted[index]);
        }
        self.product(member, output, Read::Normed, wanted.len(), Then::Store, &stage.out);
        let Some(cap) = self.spec.output.soft_cap else { return };
        member.barrier();
        self.each_row(member, wanted.len(), |index| {
            // SAFETY: the phase: this unit's row.
            let row = unsafe { stage.out.row_mut(index) };
            self.isa.run(SoftCap { cap, row });
        });
    }

    /// Shares rows out among the members, some at a time.
    pub(super) fn each_row(&self, member: &Member<'_>, rows: usize, work: impl Fn(usize)) {
        let per_unit = (rows / (SHARES * member.members())).clamp(1, 16);
        while let Some(unit) = member.take(rows.div_ceil(per_unit)) {
            for row in unit * per_unit..rows.min((unit + 1) * per_unit) {
                work(row);
            }
        }
    }

    /// A member's scratch.
    #[allow(clippy::mut_from_ref, reason = "each member has its own")]
    pub(super) fn scratch(&self, member: &Member<'_>) -> &mut Scratch {
        // SAFETY: only this member asks with its index, and every caller is done with its borrow before another one
        // of the same member asks.
        unsafe { &mut self.stage.scratch.row_mut(member.index())[0] }
    }
}

impl Layer {
    /// What attention reads, and in parallel layers, which have no norm of their own for it, the MLP too.
    fn next(&self) -> Next<'_> {
        let shared = self.mlp_norm.is_none() && self.up.quantised();
        let quantised = self.query_key_value.quantised() || shared;
        Next { norm: self.attention_norm.as_ref(), quantised }
    }
}

impl Next<'_> {
    fn prepare(&self, isa: Isa, x: &[f32], normed: &mut [f32], blocks: &mut [QuantBlock]) {
        match self.norm {
            Some(norm) => norm.apply(isa, x, normed),
            None => normed.copy_from_slice(x),
        }
        if self.quantised {
            quantise_row(isa, normed, blocks);
        }
    }
}

impl At {
    fn add(self, change: &[f32], row: &mut [f32]) {
        match self {
            Self::Column(column) => {
                row[column..].iter_mut().zip(change).for_each(|(y, change)| *y += change);
            }
            Self::Half(half) => {
                let groups = row.chunks_mut(HALF_ROWS).skip(half).step_by(2);
                for (group, change) in groups.zip(change.chunks(HALF_ROWS)) {
                    group.iter_mut().zip(change).for_each(|(y, change)| *y += change);
                }
            }
        }
    }
}
