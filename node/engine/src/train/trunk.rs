//! Layers forwards and backwards over the rows of one pass, in F32 on the processor.
//!
//! There is no graph of operations: a layer's way back is written out beside its way forth, so that what is
//! kept is chosen by hand (inputs of products that cost more to compute again than to keep), sums of
//! gradients are added up by the products themselves, and nothing is computed for weights that never change.

use std::borrow::Cow;

use rayon::prelude::*;

use super::attention::{Attention, Inputs};
use super::example::Packed;
use super::head::Head;
use super::lora::{Changed, Lora};
use super::product::{Matrix, Old, Target, Threads, multiply};
use super::random::Dropout;
use super::vector::{self, Angles, Norm};
use super::weights::{LayerWeights, Linear, Weights};
use crate::cpu::isa::Isa;
use crate::spec::{ModelSpec, Placement, QkNorm};

/// A model to train on.
pub(crate) struct Trunk {
    pub(crate) spec: ModelSpec,
    pub(crate) weights: Weights,
    pub(crate) isa: Isa,
}

/// One pass of some rows through a trunk with an adapter.
pub(crate) struct Pass<'a> {
    trunk: &'a Trunk,
    lora: &'a Lora,
    parameters: &'a [f32],
    packed: &'a Packed,
    dropout: Option<Dropout>,
    angles: Vec<Angles>,
}

/// What a layer's way back reads of its way forth.
struct Kept {
    /// Queries and keys before norm and rotation, and values.
    query: Vec<f32>,
    key: Vec<f32>,
    value: Vec<f32>,
    attended: Vec<f32>,
    /// Only where a norm follows.
    attention_out: Option<Vec<f32>>,
    /// The residual between attention and MLP; not with [`Placement::Parallel`].
    middle: Vec<f32>,
    gate: Option<Vec<f32>>,
    up: Vec<f32>,
    /// Only where a norm follows.
    mlp_out: Option<Vec<f32>>,
}

/// A sum of gradients that nobody has begun yet, or that some products have been added to.
struct Sum {
    values: Vec<f32>,
    begun: bool,
}

impl Sum {
    fn of(len: usize) -> Self {
        Self { values: vec![0.0; len], begun: false }
    }

    fn old(&mut self) -> Old {
        match std::mem::replace(&mut self.begun, true) {
            true => Old::Add,
            false => Old::Replace,
        }
    }
}

impl<'a> Pass<'a> {
    pub(crate) fn new(
        trunk: &'a Trunk,
        lora: &'a Lora,
        parameters: &'a [f32],
        packed: &'a Packed,
        dropout: Option<Dropout>,
    ) -> Self {
        let angles =
            trunk.spec.ropes.iter().map(|rope| Angles::new(rope, packed.positions())).collect();
        Self { trunk, lora, parameters, packed, dropout, angles }
    }

    /// The negative log-likelihood of each label, in order.
    pub(crate) fn losses(&self) -> Vec<f64> {
        let layers = 0..self.trunk.spec.layers.len();
        let hidden = layers.fold(self.embed(), |hidden, layer| self.layer(layer, &hidden).0);
        let (mut hidden, _) = self.labelled(&hidden);
        self.head().cross_entropy(&mut hidden, &self.label_ids(), None)
    }

    /// The same, adding the gradient of `weight` times their sum to `gradient`. With `recompute`, layers are computed
    /// again on the way back; the result is the same to the bit.
    pub(crate) fn losses_and_gradient(
        &self,
        weight: f32,
        recompute: bool,
        gradient: &mut [f32],
    ) -> Vec<f64> {
        let (depth, first) = (self.trunk.spec.layers.len(), self.lora.first_layer());
        let mut hidden = self.embed();
        let mut trace = Vec::with_capacity(depth - first.min(depth));
        for layer in 0..depth {
            let (next, kept) = self.layer(layer, &hidden);
            let input = std::mem::replace(&mut hidden, next);
            if layer >= first {
                trace.push((input, (!recompute).then_some(kept)));
            }
        }
        let (labelled, source) = self.labelled(&hidden);
        let mut g = labelled;
        let losses = self.head().cross_entropy(&mut g, &self.label_ids(), Some(weight));
        let mut g = self.unlabelled(g, &source, hidden.len());
        drop(hidden);
        for layer in (first..depth).rev() {
            let Some((input, kept)) = trace.pop() else { break };
            let kept = kept.unwrap_or_else(|| self.layer(layer, &input).1);
            g = self.layer_backward(layer, &input, kept, g, gradient, layer > first);
        }
        losses
    }

    /// Logits of every row, as the model gives them.
    ///
    /// # Shapes
    /// (rows, vocab)
    pub(crate) fn logits(&self) -> Vec<f32> {
        let layers = 0..self.trunk.spec.layers.len();
        let hidden = layers.fold(self.embed(), |hidden, layer| self.layer(layer, &hidden).0);
        let hidden = self.normed(&self.trunk.weights.output_norm, &hidden);
        self.head().capped_logits(&hidden)
    }

    fn head(&self) -> Head<'a> {
        let Trunk { spec, weights, isa } = self.trunk;
        Head { output: &weights.output, soft_cap: spec.output.soft_cap, isa: *isa }
    }

    fn label_ids(&self) -> Vec<u32> {
        self.packed.labels.iter().map(|&(_, label)| label).collect()
    }

    /// The rows that predict a label, normalised, and before.
    fn labelled(&self, hidden: &[f32]) -> (Vec<f32>, Vec<f32>) {
        let width = self.trunk.spec.width;
        let rows = self.packed.labels.iter();
        let source: Vec<f32> =
            rows.flat_map(|&(row, _)| &hidden[row * width..(row + 1) * width]).copied().collect();
        (self.normed(&self.trunk.weights.output_norm, &source).into_owned(), source)
    }

    /// The gradient of all rows from that of the normalised ones that predict a label.
    fn unlabelled(&self, mut g: Vec<f32>, source: &[f32], len: usize) -> Vec<f32> {
        let width = self.trunk.spec.width;
        if let Some(norm) = &self.trunk.weights.output_norm {
            norm.backward(self.trunk.isa, source, &mut g);
        }
        let mut all = vec![0.0; len];
        for (g, &(row, _)) in g.chunks_exact(width).zip(&self.packed.labels) {
            all[row * width..(row + 1) * width].copy_from_slice(g);
        }
        all
    }

    /// # Shapes
    /// Returns (rows, width), as do all hidden states.
    fn embed(&self) -> Vec<f32> {
        let Trunk { spec, weights, isa } = self.trunk;
        let width = spec.width;
        let mut hidden = Vec::with_capacity(self.packed.rows() * width);
        let mut added = Vec::with_capacity(width);
        for (&id, position) in self.packed.ids.iter().zip(self.packed.positions()) {
            let start = hidden.len();
            weights.tokens.push_row(id as usize, &mut hidden);
            let row = &mut hidden[start..];
            row.iter_mut().for_each(|value| *value *= spec.embedding.scale);
            let mut add = |values: &[f32]| row.iter_mut().zip(values).for_each(|(to, v)| *to += v);
            if let (Some(table), Some(positions)) = (&weights.positions, spec.embedding.positions) {
                added.clear();
                table.push_row(position + positions.offset, &mut added);
                add(&added);
            }
            if let Some(kind) = &weights.kind {
                add(kind);
            }
        }
        match &weights.embedding_norm {
            Some(norm) => norm.apply(*isa, &hidden),
            None => hidden,
        }
    }

    fn normed<'b>(&self, norm: &Option<Norm>, x: &'b [f32]) -> Cow<'b, [f32]> {
        match norm {
            Some(norm) => Cow::Owned(norm.apply(self.trunk.isa, x)),
            None => Cow::Borrowed(x),
        }
    }

    fn layer(&self, index: usize, x: &[f32]) -> (Vec<f32>, Kept) {
        let spec = &self.trunk.spec;
        let layer = &self.trunk.weights.layers[index];
        let read = self.normed(&layer.attention_norm, x);
        let query = self.linear(index, &layer.query, &read);
        let key = self.linear(index, &layer.key, &read);
        let value = self.linear(index, &layer.value, &read);
        let (turned_query, turned_key) = self.turned(index, &query, &key);
        let inputs = Inputs { query: &turned_query, key: &turned_key, value: &value };
        let attended = self.attention(index).forward(inputs);
        drop((turned_query, turned_key));
        let attention_out = self.linear(index, &layer.attention_output, &attended);
        let mut kept = Kept {
            query,
            key,
            value,
            attended,
            attention_out: None,
            middle: Vec::new(),
            gate: None,
            up: Vec::new(),
            mlp_out: None,
        };
        if spec.placement == Placement::Parallel {
            let mut out = self.mlp(index, &read, &mut kept);
            add(&mut out, x);
            add(&mut out, &attention_out);
            return (out, kept);
        }
        let mut middle = self.normed(&layer.attention_out_norm, &attention_out).into_owned();
        add(&mut middle, x);
        kept.attention_out = layer.attention_out_norm.as_ref().map(|_| attention_out);
        let read = self.normed(&layer.mlp_norm, &middle);
        let mlp_out = self.mlp(index, &read, &mut kept);
        drop(read);
        let mut out = match &layer.mlp_out_norm {
            Some(norm) => {
                let out = norm.apply(self.trunk.isa, &mlp_out);
                kept.mlp_out = Some(mlp_out);
                out
            }
            None => mlp_out,
        };
        add(&mut out, &middle);
        kept.middle = middle;
        (out, kept)
    }

    /// The gradient of a layer's input, given that of its output; the adapter's is added to `gradient`.
    /// Without `wanted` nobody needs the former, and what is returned means nothing.
    fn layer_backward(
        &self,
        index: usize,
        x: &[f32],
        mut kept: Kept,
        g: Vec<f32>,
        gradient: &mut [f32],
        wanted: bool,
    ) -> Vec<f32> {
        let (spec, isa) = (&self.trunk.spec, self.trunk.isa);
        let layer = &self.trunk.weights.layers[index];
        let read = self.normed(&layer.attention_norm, x);
        if spec.placement == Placement::Parallel {
            let mut d_read = Sum::of(x.len());
            let wants = if wanted { Some(&mut d_read) } else { None };
            self.mlp_backward(index, &read, &mut kept, g.clone(), gradient, wants);
            let wants = if wanted { Some(&mut d_read) } else { None };
            self.attend_backward(index, &read, kept, &g, gradient, wants);
            return self.joined(&layer.attention_norm, x, d_read, g);
        }
        let mut d_middle = g.clone();
        let mut d_mlp = g;
        if let (Some(norm), Some(mlp_out)) = (&layer.mlp_out_norm, &kept.mlp_out) {
            norm.backward(isa, mlp_out, &mut d_mlp);
        }
        let middle = std::mem::take(&mut kept.middle);
        let mlp_read = self.normed(&layer.mlp_norm, &middle);
        let mut d_read = Sum::of(x.len());
        self.mlp_backward(index, &mlp_read, &mut kept, d_mlp, gradient, Some(&mut d_read));
        drop(mlp_read);
        d_middle = self.joined(&layer.mlp_norm, &middle, d_read, d_middle);
        let mut d_attention = Cow::Borrowed(d_middle.as_slice());
        if let (Some(norm), Some(attention_out)) = (&layer.attention_out_norm, &kept.attention_out)
        {
            norm.backward(isa, attention_out, d_attention.to_mut());
        }
        let mut d_read = Sum::of(if wanted { x.len() } else { 0 });
        let wants = if wanted { Some(&mut d_read) } else { None };
        self.attend_backward(index, &read, kept, &d_attention, gradient, wants);
        drop(d_attention);
        match wanted {
            true => self.joined(&layer.attention_norm, x, d_read, d_middle),
            false => d_middle,
        }
    }

    /// The gradient of a residual: what went past a block, and what went through its norm.
    fn joined(&self, norm: &Option<Norm>, x: &[f32], read: Sum, mut past: Vec<f32>) -> Vec<f32> {
        let mut through = read.values;
        if let Some(norm) = norm
            && !through.is_empty()
        {
            norm.backward(self.trunk.isa, x, &mut through);
        }
        add(&mut past, &through);
        past
    }

    fn attention(&self, layer: usize) -> Attention<'_> {
        Attention::new(&self.trunk.spec, layer, &self.packed.spans, self.trunk.isa)
    }

    /// Queries and keys as attention reads them: normalised where the model does, and rotated.
    fn turned<'b>(
        &self,
        index: usize,
        query: &'b [f32],
        key: &'b [f32],
    ) -> (Cow<'b, [f32]>, Cow<'b, [f32]>) {
        let spec = &self.trunk.spec;
        let layer = &self.trunk.weights.layers[index];
        let turn = |x: &'b [f32], norm: &Option<Norm>, heads: usize| {
            let mut x = self.normed(norm, x);
            if let Some(angles) = self.angles_of(index) {
                angles.rotate(self.trunk.isa, x.to_mut(), heads, spec.head_dim, false);
            }
            x
        };
        debug_assert!(spec.qk_norm != QkNorm::None || layer.query_norm.is_none());
        (turn(query, &layer.query_norm, spec.heads), turn(key, &layer.key_norm, spec.kv_heads))
    }

    fn angles_of(&self, layer: usize) -> Option<&Angles> {
        self.trunk.spec.layers[layer].rope.and_then(|rope| self.angles.get(rope))
    }

    fn attend_backward(
        &self,
        index: usize,
        read: &[f32],
        kept: Kept,
        g: &[f32],
        gradient: &mut [f32],
        mut d_read: Option<&mut Sum>,
    ) {
        let (spec, isa) = (&self.trunk.spec, self.trunk.isa);
        let layer = &self.trunk.weights.layers[index];
        let mut d_attended = Sum::of(kept.attended.len());
        let wants = Some(&mut d_attended);
        let linear = &layer.attention_output;
        self.linear_backward(index, linear, &kept.attended, g, gradient, wants);
        let (query, key) = self.turned(index, &kept.query, &kept.key);
        let inputs = Inputs { query: &query, key: &key, value: &kept.value };
        let mut d = self.attention(index).backward(inputs, &d_attended.values);
        drop((query, key));
        if let Some(angles) = self.angles_of(index) {
            angles.rotate(isa, &mut d.query, spec.heads, spec.head_dim, true);
            angles.rotate(isa, &mut d.key, spec.kv_heads, spec.head_dim, true);
        }
        if let Some(norm) = &layer.query_norm {
            norm.backward(isa, &kept.query, &mut d.query);
        }
        if let Some(norm) = &layer.key_norm {
            norm.backward(isa, &kept.key, &mut d.key);
        }
        for (linear, g) in
            [(&layer.query, &d.query), (&layer.key, &d.key), (&layer.value, &d.value)]
        {
            self.linear_backward(index, linear, read, g, gradient, d_read.as_deref_mut());
        }
    }

    fn mlp(&self, index: usize, read: &[f32], kept: &mut Kept) -> Vec<f32> {
        let layer = &self.trunk.weights.layers[index];
        kept.up = self.linear(index, &layer.up, read);
        kept.gate = layer.gate.as_ref().map(|gate| self.linear(index, gate, read));
        let inner = self.inner(index, kept);
        self.linear(index, &layer.down, &inner)
    }

    /// What lies between the two halves of an MLP.
    fn inner(&self, index: usize, kept: &Kept) -> Vec<f32> {
        let (isa, activation) = (self.trunk.isa, self.trunk.spec.layers[index].activation);
        match &kept.gate {
            Some(gate) => vector::activate(isa, activation, gate, Some(&kept.up)),
            None => vector::activate(isa, activation, &kept.up, None),
        }
    }

    fn mlp_backward(
        &self,
        index: usize,
        read: &[f32],
        kept: &mut Kept,
        g: Vec<f32>,
        gradient: &mut [f32],
        mut d_read: Option<&mut Sum>,
    ) {
        let (isa, activation) = (self.trunk.isa, self.trunk.spec.layers[index].activation);
        let layer: &LayerWeights = &self.trunk.weights.layers[index];
        // Only a changed matrix reads its input on the way back.
        let inner = match self.lora.changed(index, layer.down.part) {
            Some(_) => self.inner(index, kept),
            None => Vec::new(),
        };
        let mut d_inner = Sum::of(kept.up.len());
        self.linear_backward(index, &layer.down, &inner, &g, gradient, Some(&mut d_inner));
        drop((inner, g));
        let mut d_first = d_inner.values;
        let up = std::mem::take(&mut kept.up);
        let (first, d_up) = match (&layer.gate, &kept.gate) {
            (Some(linear), Some(gate)) => {
                let d_up =
                    vector::activate_backward(isa, activation, gate, Some(&up), &mut d_first);
                (linear, d_up)
            }
            _ => {
                vector::activate_backward(isa, activation, &up, None, &mut d_first);
                (&layer.up, None)
            }
        };
        drop(up);
        self.linear_backward(index, first, read, &d_first, gradient, d_read.as_deref_mut());
        if let Some(d_up) = d_up {
            self.linear_backward(index, &layer.up, read, &d_up, gradient, d_read);
        }
    }

    /// `x Wᵀ + b`, and `scale * drop(x) Aᵀ Bᵀ` where the matrix is changed.
    fn linear(&self, layer: usize, linear: &Linear, x: &[f32]) -> Vec<f32> {
        let weight = &linear.weight;
        let (inputs, outputs) = (weight.columns, weight.rows);
        let rows = x.len() / inputs;
        let mut out = vec![0.0; rows * outputs];
        weight.forward(x, &mut out);
        if let Some(bias) = &linear.bias {
            for row in out.chunks_exact_mut(outputs) {
                row.iter_mut().zip(bias).for_each(|(to, bias)| *to += bias);
            }
        }
        if let Some(changed) = self.lora.changed(layer, linear.part) {
            let seen = self.dropped(changed, x);
            let low = self.low(changed, &seen, rows, inputs);
            let rank = self.lora.rank;
            let b = Matrix::new(&self.parameters[changed.b.clone()], outputs, rank);
            let to = Target::new(&mut out, rows, outputs);
            let low = Matrix::new(&low, rows, rank);
            multiply(to, Old::Add, self.lora.scale, low, b.t(), Threads::All);
        }
        out
    }

    /// Adds what `g` means for the input to `d_x`, and for the adapter to `gradient`.
    fn linear_backward(
        &self,
        layer: usize,
        linear: &Linear,
        x: &[f32],
        g: &[f32],
        gradient: &mut [f32],
        d_x: Option<&mut Sum>,
    ) {
        let weight = &linear.weight;
        let (inputs, outputs, rank) = (weight.columns, weight.rows, self.lora.rank);
        let rows = g.len() / outputs;
        let mut d_x = d_x;
        if let Some(d_x) = d_x.as_deref_mut() {
            let old = d_x.old();
            weight.backward(g, &mut d_x.values, old);
        }
        let g = Matrix::new(g, rows, outputs);
        let Some(changed) = self.lora.changed(layer, linear.part) else { return };
        let scale = self.lora.scale;
        let seen = self.dropped(changed, x);
        let low = self.low(changed, &seen, rows, inputs);
        let to = Target::new(&mut gradient[changed.b.clone()], outputs, rank);
        let low = Matrix::new(&low, rows, rank);
        multiply(to, Old::Add, scale, g.t(), low, Threads::All);
        let mut d_low = vec![0.0; rows * rank];
        let b = Matrix::new(&self.parameters[changed.b.clone()], outputs, rank);
        let to = Target::new(&mut d_low, rows, rank);
        multiply(to, Old::Replace, scale, g, b, Threads::All);
        let d_low = Matrix::new(&d_low, rows, rank);
        let to = Target::new(&mut gradient[changed.a.clone()], rank, inputs);
        multiply(to, Old::Add, 1.0, d_low.t(), Matrix::new(&seen, rows, inputs), Threads::All);
        let Some(d_x) = d_x else { return };
        let a = Matrix::new(&self.parameters[changed.a.clone()], rank, inputs);
        match self.dropout {
            None => {
                let to = Target::new(&mut d_x.values, rows, inputs);
                multiply(to, Old::Add, 1.0, d_low, a, Threads::All);
            }
            Some(_) => {
                let mut d_seen = vec![0.0; rows * inputs];
                let to = Target::new(&mut d_seen, rows, inputs);
                multiply(to, Old::Replace, 1.0, d_low, a, Threads::All);
                add(&mut d_x.values, &self.dropped(changed, &d_seen));
            }
        }
    }

    /// `drop(x) Aᵀ`
    ///
    /// # Shapes
    /// Returns (rows, rank).
    fn low(&self, changed: &Changed, seen: &[f32], rows: usize, inputs: usize) -> Vec<f32> {
        let rank = self.lora.rank;
        let mut low = vec![0.0; rows * rank];
        let a = Matrix::new(&self.parameters[changed.a.clone()], rank, inputs);
        let to = Target::new(&mut low, rows, rank);
        multiply(to, Old::Replace, 1.0, Matrix::new(seen, rows, inputs), a.t(), Threads::All);
        low
    }

    /// A module's input with this step's dropout; the mask is its own transpose.
    fn dropped<'b>(&self, changed: &Changed, x: &'b [f32]) -> Cow<'b, [f32]> {
        // A multiple of four, as the masks' counter wants it.
        const PIECE: usize = 1 << 14;
        let Some(dropout) = &self.dropout else { return Cow::Borrowed(x) };
        let mut out = vec![0.0; x.len()];
        let pieces = out.par_chunks_mut(PIECE).zip(x.par_chunks(PIECE)).enumerate();
        pieces.for_each(|(at, (out, x))| dropout.apply(changed.module, at * PIECE, x, out));
        Cow::Owned(out)
    }
}

/// `to += from`
fn add(to: &mut [f32], from: &[f32]) {
    const PIECE: usize = 1 << 15;
    to.par_chunks_mut(PIECE).zip(from.par_chunks(PIECE)).for_each(|(to, from)| {
        to.iter_mut().zip(from).for_each(|(to, from)| *to += from);
    });
}
