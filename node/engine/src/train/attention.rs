//! Attention within each row's own tokens, and its gradient.
//!
//! Probabilities are not kept: the way back computes them again, block of queries by block of queries (as
//! Dao et al. 2022, arXiv 2205.14135, do), so memory grows with the length and not with its square. One task
//! computes one head of keys of one row of the batch, alone and in a fixed order.

use rayon::prelude::*;

use super::product::{Matrix, Old, Target, Threads, multiply};
use super::vector;
use crate::cpu::isa::{Isa, Work};
use crate::cpu::kernels::Simd;
use crate::spec::{Kind, ModelSpec, alibi_slopes};

/// Queries whose scores are held at once, per task: with 2²⁴ keys a block would be 8 GiB, with the usual
/// few thousand it is a megabyte.
pub(crate) const QUERIES: usize = 128;

/// Attention of one layer over the sequences of one pass.
pub(crate) struct Attention<'a> {
    spec: &'a ModelSpec,
    window: Option<usize>,
    slopes: Vec<f32>,
    /// First row and length of each sequence.
    spans: &'a [(usize, usize)],
    isa: Isa,
}

/// What attention reads: queries (rows, heads, head_dim); keys and values (rows, kv_heads, head_dim).
#[derive(Clone, Copy)]
pub(crate) struct Inputs<'a> {
    pub(crate) query: &'a [f32],
    pub(crate) key: &'a [f32],
    pub(crate) value: &'a [f32],
}

/// The gradients of [`Inputs`].
pub(crate) struct Gradients {
    pub(crate) query: Vec<f32>,
    pub(crate) key: Vec<f32>,
    pub(crate) value: Vec<f32>,
}

/// One task's part of the work.
#[derive(Clone, Copy)]
struct Head {
    start: usize,
    len: usize,
    /// Of keys and values.
    head: usize,
}

/// A block of queries of one head, and the keys that any of them may see.
#[derive(Clone, Copy)]
struct Block {
    first: usize,
    rows: usize,
    from: usize,
    to: usize,
}

impl<'a> Attention<'a> {
    pub(crate) fn new(
        spec: &'a ModelSpec,
        layer: usize,
        spans: &'a [(usize, usize)],
        isa: Isa,
    ) -> Self {
        let slopes = match spec.attention.alibi {
            true => alibi_slopes(spec.heads),
            false => vec![0.0; spec.heads],
        };
        let window = spec.layers.get(layer).and_then(|layer| layer.window);
        Self { spec, window, slopes, spans, isa }
    }

    /// # Shapes
    /// Returns (rows, heads, head_dim).
    pub(crate) fn forward(&self, inputs: Inputs<'_>) -> Vec<f32> {
        let (dim, group) = (self.spec.head_dim, self.group());
        let heads = self.heads();
        let parts: Vec<Vec<f32>> =
            heads.par_iter().map(|&head| self.forward_head(head, inputs)).collect();
        let mut out = vec![0.0; inputs.query.len()];
        for (head, part) in heads.iter().zip(&parts) {
            scatter(*head, part, &mut out, head.head * group, group, self.spec.heads, dim);
        }
        out
    }

    /// The gradients of the inputs, given that of the result.
    pub(crate) fn backward(&self, inputs: Inputs<'_>, g: &[f32]) -> Gradients {
        let (spec, group) = (self.spec, self.group());
        let heads = self.heads();
        let parts: Vec<Gradients> =
            heads.par_iter().map(|&head| self.backward_head(head, inputs, g)).collect();
        let zeros = |like: &[f32]| vec![0.0; like.len()];
        let mut all = Gradients {
            query: zeros(inputs.query),
            key: zeros(inputs.key),
            value: zeros(inputs.value),
        };
        let dim = spec.head_dim;
        for (&head, part) in heads.iter().zip(&parts) {
            let (at, kv) = (head.head, spec.kv_heads);
            scatter(head, &part.query, &mut all.query, at * group, group, spec.heads, dim);
            scatter(head, &part.key, &mut all.key, at, 1, kv, dim);
            scatter(head, &part.value, &mut all.value, at, 1, kv, dim);
        }
        all
    }

    fn group(&self) -> usize {
        self.spec.heads / self.spec.kv_heads
    }

    fn heads(&self) -> Vec<Head> {
        let heads = 0..self.spec.kv_heads;
        let spans = self.spans.iter();
        spans
            .flat_map(|&(start, len)| heads.clone().map(move |head| Head { start, len, head }))
            .collect()
    }

    fn blocks(&self, len: usize) -> impl Iterator<Item = Block> + '_ {
        (0..len).step_by(QUERIES).map(move |first| {
            let rows = QUERIES.min(len - first);
            match self.spec.kind {
                Kind::Decoder => {
                    let from = self.window.map_or(0, |window| (first + 1).saturating_sub(window));
                    Block { first, rows, from, to: first + rows }
                }
                Kind::Encoder => Block { first, rows, from: 0, to: len },
            }
        })
    }

    /// # Shapes
    /// Returns (group, len, head_dim).
    fn forward_head(&self, head: Head, inputs: Inputs<'_>) -> Vec<f32> {
        let (dim, group) = (self.spec.head_dim, self.group());
        let mut out = vec![0.0; group * head.len * dim];
        let mut scores = Vec::new();
        for block in self.blocks(head.len) {
            let keys = block.to - block.from;
            let value = self.kv(head, inputs.value, block.from, keys);
            for member in 0..group {
                self.probabilities(head, member, block, inputs, &mut scores, None);
                let to = &mut out[(member * head.len + block.first) * dim..][..block.rows * dim];
                let to = Target::new(to, block.rows, dim);
                let weights = Matrix::new(&scores, block.rows, keys);
                multiply(to, Old::Replace, 1.0, weights, value, Threads::One);
            }
        }
        out
    }

    fn backward_head(&self, head: Head, inputs: Inputs<'_>, g: &[f32]) -> Gradients {
        let (dim, group, scale) = (self.spec.head_dim, self.group(), self.spec.attention.scale);
        let mut query = vec![0.0; group * head.len * dim];
        let mut key = vec![0.0; head.len * dim];
        let mut value = vec![0.0; head.len * dim];
        let (mut weights, mut slopes, mut capped) = (Vec::new(), Vec::new(), Vec::new());
        for block in self.blocks(head.len) {
            let Block { first, rows, from, to } = block;
            let keys = to - from;
            for member in 0..group {
                let kept = self.spec.attention.soft_cap.map(|_| &mut capped);
                self.probabilities(head, member, block, inputs, &mut weights, kept);
                let g = self.query(head, member, g, first, rows);
                let p = Matrix::new(&weights, rows, keys);
                let d_value = Target::new(&mut value[from * dim..to * dim], keys, dim);
                multiply(d_value, Old::Add, 1.0, p.t(), g, Threads::One);
                slopes.resize(rows * keys, 0.0);
                let v = self.kv(head, inputs.value, from, keys);
                let d_weights = Target::new(&mut slopes, rows, keys);
                multiply(d_weights, Old::Replace, 1.0, g, v.t(), Threads::One);
                self.isa.run(SoftmaxBackward {
                    weights: &weights,
                    slopes: &mut slopes,
                    keys,
                    cap: self.spec.attention.soft_cap.map(|cap| (cap, capped.as_slice())),
                });
                let d_scores = Matrix::new(&slopes, rows, keys);
                let k = self.kv(head, inputs.key, from, keys);
                let at = (member * head.len + first) * dim;
                let d_query = Target::new(&mut query[at..at + rows * dim], rows, dim);
                multiply(d_query, Old::Replace, scale, d_scores, k, Threads::One);
                let q = self.query(head, member, inputs.query, first, rows);
                let d_key = Target::new(&mut key[from * dim..to * dim], keys, dim);
                multiply(d_key, Old::Add, scale, d_scores.t(), q, Threads::One);
            }
        }
        Gradients { query, key, value }
    }

    /// Fills `scores` with the probabilities of a block, and `capped` with the scores before softmax.
    ///
    /// # Shapes
    /// Both: (block rows, block keys).
    fn probabilities(
        &self,
        head: Head,
        member: usize,
        block: Block,
        inputs: Inputs<'_>,
        scores: &mut Vec<f32>,
        capped: Option<&mut Vec<f32>>,
    ) {
        let Block { first, rows, from, to } = block;
        let keys = to - from;
        scores.resize(rows * keys, 0.0);
        let q = self.query(head, member, inputs.query, first, rows);
        let k = self.kv(head, inputs.key, from, keys);
        let scale = self.spec.attention.scale;
        let target = Target::new(scores, rows, keys);
        multiply(target, Old::Replace, scale, q, k.t(), Threads::One);
        if let Some(cap) = self.spec.attention.soft_cap {
            self.isa.run(Cap { cap, row: scores });
            if let Some(capped) = capped {
                capped.clone_from(scores);
            }
        }
        let slope = self.slopes[head.head * self.group() + member];
        let (causal, window) = (self.spec.kind == Kind::Decoder, self.window);
        self.isa.run(SoftmaxForward { scores, block, causal, window, slope });
    }

    fn query<'b>(
        &self,
        head: Head,
        member: usize,
        data: &'b [f32],
        first: usize,
        rows: usize,
    ) -> Matrix<'b> {
        let (dim, width) = (self.spec.head_dim, self.spec.query_width());
        let at = (head.start + first) * width + (head.head * self.group() + member) * dim;
        Matrix::apart(&data[at..], rows, dim, width)
    }

    fn kv<'b>(&self, head: Head, data: &'b [f32], first: usize, rows: usize) -> Matrix<'b> {
        let (dim, width) = (self.spec.head_dim, self.spec.kv_width());
        let at = (head.start + first) * width + head.head * dim;
        Matrix::apart(&data[at..], rows, dim, width)
    }
}

/// Copies (count, len, dim) to heads `first..first + count` of the sequence's rows.
fn scatter(
    head: Head,
    part: &[f32],
    out: &mut [f32],
    first: usize,
    count: usize,
    heads: usize,
    dim: usize,
) {
    for member in 0..count {
        for row in 0..head.len {
            let at = ((head.start + row) * heads + first + member) * dim;
            let from = &part[(member * head.len + row) * dim..][..dim];
            out[at..at + dim].copy_from_slice(from);
        }
    }
}

struct Cap<'a> {
    cap: f32,
    row: &'a mut [f32],
}

impl Work for Cap<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        vector::soft_cap(s, self.cap, self.row);
    }
}

struct SoftmaxForward<'a> {
    scores: &'a mut [f32],
    block: Block,
    causal: bool,
    window: Option<usize>,
    slope: f32,
}

impl Work for SoftmaxForward<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Block { first, from, to, .. } = self.block;
        for (position, row) in (first..).zip(self.scores.chunks_exact_mut(to - from)) {
            let after = if self.causal { position + 1 } else { to };
            let before = self.window.map_or(0, |window| (position + 1).saturating_sub(window));
            let (start, end) = (before.saturating_sub(from), after - from);
            row[..start].fill(0.0);
            row[end..].fill(0.0);
            let row = &mut row[start..end];
            if self.slope != 0.0 {
                for (key, score) in (from + start..).zip(row.iter_mut()) {
                    *score += self.slope * (key as f32 - position as f32);
                }
            }
            let (sum, _) = vector::exponentials(s, row);
            let inverse = 1.0 / sum;
            for value in row {
                *value *= inverse;
            }
        }
    }
}

struct SoftmaxBackward<'a> {
    weights: &'a [f32],
    /// Gradients of the weights, replaced by those of the scaled scores.
    slopes: &'a mut [f32],
    keys: usize,
    /// The cap and the capped scores.
    cap: Option<(f32, &'a [f32])>,
}

impl Work for SoftmaxBackward<'_> {
    type Output = ();

    /// `ds = p * (dp - sum(p * dp))`, times `1 - (c / cap)²` where scores were capped to `c`.
    #[inline(always)]
    fn run<S: Simd>(self, _: S) {
        let rows = self.weights.chunks_exact(self.keys);
        for (p, d) in rows.zip(self.slopes.chunks_exact_mut(self.keys)) {
            let along = vector::dot(p, d);
            for i in 0..p.len() {
                d[i] = p[i] * (d[i] - along);
            }
        }
        if let Some((cap, capped)) = self.cap {
            for (d, c) in self.slopes.iter_mut().zip(capped) {
                let part = c / cap;
                *d *= 1.0 - part * part;
            }
        }
    }
}
