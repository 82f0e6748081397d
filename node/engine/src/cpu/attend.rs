//! The attention phases of a pass: keys and values into pages, then units of queries over them.

use super::attention::{Attention, Scoring, Sight};
use super::isa::Work;
use super::kernels::{Simd, quantise_row};
use super::lanes::LANES;
use super::norm::Norm;
use super::pack::layout::BLOCK;
use super::pass::Pass;
use super::plan::Unit;
use super::rope;
use super::shares::barrier_before;
use super::team::Member;
use super::weights::Layer;
use crate::spec::{Kind, LayerSpec, QkNorm};

/// Which heads of a row of queries, keys and values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Heads {
    Query,
    Key,
    Value,
}

impl Pass<'_> {
    /// Whether units quantise what they give themselves, because it is whole blocks.
    pub(super) fn attended_in_units(&self) -> bool {
        let group = self.spec.heads / self.spec.kv_heads;
        (group * self.spec.head_dim).is_multiple_of(BLOCK)
    }

    /// From queries, keys and values of all rows to what they attend to, ready for the output projection.
    pub(super) fn attend(&self, member: &mut Member<'_>, index: usize, layer: &Layer) {
        let plan = self.plan;
        if !plan.single {
            let rows = plan.rows();
            self.each_row(member, rows, |row| {
                for kv_head in 0..self.spec.kv_heads {
                    self.write(member, index, layer, row, kv_head);
                }
            });
            member.barrier();
        }
        while let Some(unit) = member.take(plan.units.len()) {
            self.unit(member, index, layer, &plan.units[unit]);
        }
        barrier_before(member, &layer.attention_output.weights, plan.rows());
        if layer.attention_output.quantised() && !self.attended_in_units() {
            self.quantise(member, &self.stage.attended);
        }
    }

    /// Writes key and value of one row and head to their page.
    fn write(&self, member: &Member<'_>, index: usize, layer: &Layer, row: usize, kv_head: usize) {
        let batch = self.plan.batch;
        let scratch = self.scratch(member);
        let head_dim = self.spec.head_dim;
        let key = &mut scratch.key[..head_dim];
        self.isa.run(Head {
            pass: self,
            layer: &self.spec.layers[index],
            norm: layer.key_norm.as_ref(),
            row,
            heads: Heads::Key,
            head: kv_head,
            out: key,
        });
        let value = &self.heads(row, Heads::Value)[kv_head * head_dim..][..head_dim];
        let position = batch.rows[row].position;
        let page = batch.sequences[batch.rows[row].sequence].pages[position / LANES];
        // SAFETY: the phase: each row and head is written once, and attended to only after the next barrier, or, where every
        // sequence has one row, by this same unit. Slots of one page that are written at the same time belong
        // to different rows.
        unsafe { self.pages.write(self.isa, (page, index, kv_head), position % LANES, key, value) };
    }

    /// Attention of one unit.
    fn unit(&self, member: &Member<'_>, index: usize, layer: &Layer, unit: &Unit) {
        let Unit { span, row: first_row, rows, kv_head, ref heads } = *unit;
        let spec = self.spec;
        let (head_dim, stride) = (spec.head_dim, self.pages.stride());
        let group = heads.len();
        if self.plan.single {
            self.write(member, index, layer, first_row, kv_head);
        }
        let scratch = self.scratch(member);
        let window = spec.layers[index].window.unwrap_or(usize::MAX);
        let mut sights = Vec::with_capacity(rows * group);
        for row in first_row..first_row + rows {
            let position = self.plan.batch.rows[row].position;
            let last = match spec.kind {
                Kind::Decoder => position,
                Kind::Encoder => span.end() - 1,
            };
            let first = (position + 1).saturating_sub(window);
            for head in heads.clone() {
                let query = &mut scratch.queries[sights.len() * stride..][..stride];
                query[head_dim..].fill(0.0);
                self.isa.run(Head {
                    pass: self,
                    layer: &spec.layers[index],
                    norm: layer.query_norm.as_ref(),
                    row,
                    heads: Heads::Query,
                    head,
                    out: &mut query[..head_dim],
                });
                sights.push(Sight { first, last, slope: self.slopes[head] });
            }
        }
        self.isa.run(Attention {
            memory: self.pages,
            pages: self.plan.batch.sequences[span.sequence].pages,
            layer: index,
            head: kv_head,
            scoring: Scoring { scale: spec.attention.scale, soft_cap: spec.attention.soft_cap },
            sights: &sights,
            queries: &scratch.queries,
            scores: &mut scratch.scores,
            out: &mut scratch.attended,
        });
        let quantise = layer.attention_output.quantised() && self.attended_in_units();
        let width = group * head_dim;
        for (index, row) in (first_row..first_row + rows).enumerate() {
            // SAFETY: the phase: no other unit has these heads of this row.
            let out = unsafe {
                let start = heads.start * head_dim;
                self.stage.attended.floats.part_mut(row, start..start + width)
            };
            let given = scratch.attended[index * group * stride..].chunks_exact(stride);
            for (out, head) in out.chunks_exact_mut(head_dim).zip(given) {
                out.copy_from_slice(&head[..head_dim]);
            }
            if quantise {
                let start = heads.start * head_dim / BLOCK;
                // SAFETY: as above, and these heads are whole blocks.
                let blocks = unsafe {
                    self.stage.attended.blocks.part_mut(row, start..start + width / BLOCK)
                };
                quantise_row(self.isa, out, blocks);
            }
        }
    }

    /// All query, key or value heads of a row, as they were projected.
    fn heads(&self, row: usize, heads: Heads) -> &[f32] {
        let (query, kv) = (self.spec.query_width(), self.spec.kv_width());
        // SAFETY: the phase: written before the last barrier, and only read in this one.
        let row = unsafe { self.stage.query_key_value.row(row) };
        match heads {
            Heads::Query => &row[..query],
            Heads::Key => &row[query..query + kv],
            Heads::Value => &row[query + kv..],
        }
    }
}

/// One head of queries or keys, normalised and rotated.
struct Head<'a> {
    pass: &'a Pass<'a>,
    layer: &'a LayerSpec,
    norm: Option<&'a Norm>,
    row: usize,
    heads: Heads,
    head: usize,
    out: &'a mut [f32],
}

impl Work for Head<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self { pass, layer, norm, row, heads, head, out } = self;
        let all = pass.heads(row, heads);
        let start = head * out.len();
        let from = &all[start..][..out.len()];
        match (pass.spec.qk_norm, norm) {
            (QkNorm::PerHead, Some(norm)) => norm.write(norm.moments(s, from), 0, from, out),
            (QkNorm::Whole, Some(norm)) => norm.write(norm.moments(s, all), start, from, out),
            _ => out.copy_from_slice(from),
        }
        if let Some(index) = layer.rope {
            // SAFETY: the phase: written when tokens were embedded.
            let angles = unsafe { pass.stage.angles[index].row(row) };
            rope::rotate(pass.spec.ropes[index].pairing, angles, out);
        }
    }
}
