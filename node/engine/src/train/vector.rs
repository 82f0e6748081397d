//! Functions over rows and their derivatives: norms, rotations, activations, softmax.
//!
//! Each row is computed by one thread in one fixed order, and rows are shared out in pieces of a fixed size,
//! so results do not depend on the number of threads. Loops are written plainly and compiled for each
//! instruction set ([`Isa::run`]).

use rayon::prelude::*;

use crate::cpu::isa::{Isa, Work};
use crate::cpu::kernels::Simd;
use crate::cpu::{lanes, math};
use crate::spec::{self, Activation, NormKind, Pairing, Rope};

/// Values that one task works on, about a quarter of a second-level cache.
const PIECE: usize = 1 << 15;
const LANES: usize = lanes::LANES;

/// A norm of the model with its frozen weights, the one of [`NormKind::RmsPlusOne`] added.
pub(crate) struct Norm {
    centred: bool,
    epsilon: f32,
    weight: Vec<f32>,
    bias: Option<Vec<f32>>,
}

impl Norm {
    pub(crate) fn new(norm: spec::Norm, mut weight: Vec<f32>, bias: Option<Vec<f32>>) -> Self {
        if norm.kind == NormKind::RmsPlusOne {
            weight.iter_mut().for_each(|weight| *weight += 1.0);
        }
        Self { centred: norm.kind == NormKind::Layer, epsilon: norm.epsilon, weight, bias }
    }

    /// Normalises rows as long as the weights.
    pub(crate) fn apply(&self, isa: Isa, x: &[f32]) -> Vec<f32> {
        let width = self.weight.len();
        let mut out = vec![0.0; x.len()];
        let rows = piece(width);
        out.par_chunks_mut(rows).zip(x.par_chunks(rows)).for_each(|(out, x)| {
            isa.run(NormForward { norm: self, x, out });
        });
        out
    }

    /// What the norm's input sees of the gradient `g` of its output; `g` is replaced by it.
    pub(crate) fn backward(&self, isa: Isa, x: &[f32], g: &mut [f32]) {
        let rows = piece(self.weight.len());
        g.par_chunks_mut(rows).zip(x.par_chunks(rows)).for_each(|(g, x)| {
            isa.run(NormBackward { norm: self, x, g });
        });
    }

    /// Mean and `1 / sqrt(mean square + ε)`.
    #[inline(always)]
    fn moments(&self, x: &[f32]) -> (f32, f32) {
        let count = x.len() as f32;
        let mean = if self.centred { sum(x, |x| x) / count } else { 0.0 };
        let square = sum(x, |x| (x - mean) * (x - mean)) / count;
        (mean, 1.0 / (square + self.epsilon).sqrt())
    }
}

/// Values of whole rows that one task works on.
fn piece(width: usize) -> usize {
    (PIECE / width.max(1)).max(1) * width.max(1)
}

/// The sum of a function over a row, in sixteen running sums.
#[inline(always)]
fn sum(x: &[f32], f: impl Fn(f32) -> f32) -> f32 {
    let mut lanes = [0.0f32; LANES];
    let (whole, rest) = x.as_chunks::<LANES>();
    for chunk in whole {
        for lane in 0..LANES {
            lanes[lane] += f(chunk[lane]);
        }
    }
    for (lane, &x) in lanes.iter_mut().zip(rest) {
        *lane += f(x);
    }
    joined(lanes)
}

/// The sum of a function over two rows.
#[inline(always)]
fn sum_pairs(a: &[f32], b: &[f32], f: impl Fn(f32, f32) -> f32) -> f32 {
    let mut lanes = [0.0f32; LANES];
    let ((a, a_rest), (b, b_rest)) = (a.as_chunks::<LANES>(), b.as_chunks::<LANES>());
    for (a, b) in a.iter().zip(b) {
        for lane in 0..LANES {
            lanes[lane] += f(a[lane], b[lane]);
        }
    }
    for ((lane, &a), &b) in lanes.iter_mut().zip(a_rest).zip(b_rest) {
        *lane += f(a, b);
    }
    joined(lanes)
}

#[inline(always)]
fn joined(mut lanes: [f32; LANES]) -> f32 {
    for half in [8, 4, 2, 1] {
        for lane in 0..half {
            lanes[lane] += lanes[lane + half];
        }
    }
    lanes[0]
}

struct NormForward<'a> {
    norm: &'a Norm,
    x: &'a [f32],
    out: &'a mut [f32],
}

impl Work for NormForward<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, _: S) {
        let Norm { weight, bias, .. } = self.norm;
        let width = weight.len();
        for (x, out) in self.x.chunks_exact(width).zip(self.out.chunks_exact_mut(width)) {
            let (mean, inverse) = self.norm.moments(x);
            for i in 0..width {
                out[i] = (x[i] - mean) * inverse * weight[i];
            }
            if let Some(bias) = bias {
                for i in 0..width {
                    out[i] += bias[i];
                }
            }
        }
    }
}

struct NormBackward<'a> {
    norm: &'a Norm,
    x: &'a [f32],
    g: &'a mut [f32],
}

impl Work for NormBackward<'_> {
    type Output = ();

    /// With `h = (x - mean) * inverse` and `d = g * w`: `dx = inverse * (d - mean(d) - h * mean(d * h))`, where
    /// the first mean is left out by norms that do not centre.
    #[inline(always)]
    fn run<S: Simd>(self, _: S) {
        let weight = &self.norm.weight;
        let width = weight.len();
        let count = width as f32;
        for (x, g) in self.x.chunks_exact(width).zip(self.g.chunks_exact_mut(width)) {
            let (mean, inverse) = self.norm.moments(x);
            for i in 0..width {
                g[i] *= weight[i];
            }
            let along = sum_pairs(g, x, |g, x| g * ((x - mean) * inverse)) / count;
            let level = if self.norm.centred { sum(g, |g| g) / count } else { 0.0 };
            for i in 0..width {
                g[i] = inverse * (g[i] - level - (x[i] - mean) * inverse * along);
            }
        }
    }
}

/// Cosines and sines of one rotation at the positions of a pass.
pub(crate) struct Angles {
    pairing: Pairing,
    pairs: usize,
    /// (rows, pairs)
    cos: Vec<f32>,
    sin: Vec<f32>,
}

impl Angles {
    pub(crate) fn new(rope: &Rope, positions: impl Iterator<Item = usize>) -> Self {
        let (cos, sin) = positions.flat_map(|position| rope.angles(position)).unzip();
        Self { pairing: rope.pairing, pairs: rope.frequencies.len(), cos, sin }
    }

    /// Rotates the first dimensions of each head, or (`back`) applies the transposed rotation, which is what
    /// gradients need.
    ///
    /// # Shapes
    /// `x`: (rows, heads, head_dim)
    pub(crate) fn rotate(&self, isa: Isa, x: &mut [f32], heads: usize, dim: usize, back: bool) {
        let width = heads * dim;
        let rows = (PIECE / width.max(1)).max(1);
        x.par_chunks_mut(rows * width).enumerate().for_each(|(piece, x)| {
            isa.run(Rotate { angles: self, first: piece * rows, x, heads, dim, back });
        });
    }
}

struct Rotate<'a> {
    angles: &'a Angles,
    first: usize,
    x: &'a mut [f32],
    heads: usize,
    dim: usize,
    back: bool,
}

impl Work for Rotate<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, _: S) {
        let Angles { pairing, pairs, cos, sin } = self.angles;
        let (pairs, sign) = (*pairs, if self.back { -1.0 } else { 1.0 });
        for (row, x) in (self.first..).zip(self.x.chunks_exact_mut(self.heads * self.dim)) {
            let cos = &cos[row * pairs..(row + 1) * pairs];
            let sin = &sin[row * pairs..(row + 1) * pairs];
            for head in x.chunks_exact_mut(self.dim) {
                match pairing {
                    Pairing::Halves => {
                        let (first, second) = head[..2 * pairs].split_at_mut(pairs);
                        for i in 0..pairs {
                            let (a, b, s) = (first[i], second[i], sign * sin[i]);
                            first[i] = a * cos[i] - b * s;
                            second[i] = b * cos[i] + a * s;
                        }
                    }
                    Pairing::Adjacent => {
                        let pairs = head.as_chunks_mut::<2>().0.iter_mut();
                        for ((pair, cos), sin) in pairs.zip(cos).zip(sin) {
                            let ([a, b], s) = (*pair, sign * sin);
                            *pair = [a * cos - b * s, b * cos + a * s];
                        }
                    }
                }
            }
        }
    }
}

/// `activation(gate) * up`, or `activation(gate)` where there is no `up`.
pub(crate) fn activate(
    isa: Isa,
    activation: Activation,
    gate: &[f32],
    up: Option<&[f32]>,
) -> Vec<f32> {
    let mut out = vec![0.0; gate.len()];
    let pieces = out.par_chunks_mut(PIECE).zip(gate.par_chunks(PIECE)).enumerate();
    pieces.for_each(|(at, (out, gate))| {
        let up = up.map(|up| &up[at * PIECE..at * PIECE + gate.len()]);
        isa.run(Activate { activation, gate, up, out });
    });
    out
}

/// Gradients of [`activate`]: `g`, of the result, is replaced by that of `gate`; returns that of `up`.
pub(crate) fn activate_backward(
    isa: Isa,
    activation: Activation,
    gate: &[f32],
    up: Option<&[f32]>,
    g: &mut [f32],
) -> Option<Vec<f32>> {
    let mut d_up = up.map(|up| vec![0.0; up.len()]);
    match (up, d_up.as_mut()) {
        (Some(up), Some(d_up)) => {
            let pieces = g.par_chunks_mut(PIECE).zip(d_up.par_chunks_mut(PIECE));
            let inputs = gate.par_chunks(PIECE).zip(up.par_chunks(PIECE));
            pieces.zip(inputs).for_each(|((g, d_up), (gate, up))| {
                isa.run(ActivateBackward { activation, gate, up: Some((up, d_up)), g });
            });
        }
        _ => {
            g.par_chunks_mut(PIECE).zip(gate.par_chunks(PIECE)).for_each(|(g, gate)| {
                isa.run(ActivateBackward { activation, gate, up: None, g });
            });
        }
    }
    d_up
}

struct Activate<'a> {
    activation: Activation,
    gate: &'a [f32],
    up: Option<&'a [f32]>,
    out: &'a mut [f32],
}

impl Work for Activate<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let activation = self.activation;
        each::<S>(s, self.gate, self.out, |s, x| activated(s, activation, x).0);
        if let Some(up) = self.up {
            for (out, up) in self.out.iter_mut().zip(up) {
                *out *= up;
            }
        }
    }
}

struct ActivateBackward<'a> {
    activation: Activation,
    gate: &'a [f32],
    up: Option<(&'a [f32], &'a mut [f32])>,
    g: &'a mut [f32],
}

impl Work for ActivateBackward<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self { activation, gate, up, g } = self;
        let mut value = [0.0; LANES];
        let mut slope = [0.0; LANES];
        let mut of = |gate: &[f32]| {
            let mut padded = [0.0; LANES];
            padded[..gate.len()].copy_from_slice(gate);
            let x = lanes::load(s, &padded);
            let (mut y, mut d) = (lanes::splat(s, 0.0), lanes::splat(s, 0.0));
            for i in 0..LANES / S::LANES {
                (y[i], d[i]) = activated(s, activation, x[i]);
            }
            lanes::store(s, y, &mut value);
            lanes::store(s, d, &mut slope);
            (value, slope)
        };
        match up {
            Some((up, d_up)) => {
                let inputs = gate.chunks(LANES).zip(up.chunks(LANES));
                let outputs = g.chunks_mut(LANES).zip(d_up.chunks_mut(LANES));
                for ((gate, up), (g, d_up)) in inputs.zip(outputs) {
                    let (value, slope) = of(gate);
                    for i in 0..gate.len() {
                        d_up[i] = g[i] * value[i];
                        g[i] *= up[i] * slope[i];
                    }
                }
            }
            None => {
                for (gate, g) in gate.chunks(LANES).zip(g.chunks_mut(LANES)) {
                    let (_, slope) = of(gate);
                    for (g, slope) in g.iter_mut().zip(slope) {
                        *g *= slope;
                    }
                }
            }
        }
    }
}

/// Applies a function of vectors to all elements.
#[inline(always)]
fn each<S: Simd>(s: S, from: &[f32], to: &mut [f32], f: impl Fn(S, S::F) -> S::F) {
    for (from, to) in from.chunks(LANES).zip(to.chunks_mut(LANES)) {
        let mut padded = [0.0; LANES];
        padded[..from.len()].copy_from_slice(from);
        let mut x = lanes::load(s, &padded);
        for x in x.iter_mut().take(LANES / S::LANES) {
            *x = f(s, *x);
        }
        lanes::store(s, x, &mut padded);
        to.copy_from_slice(&padded[..to.len()]);
    }
}

/// An activation function and its derivative.
#[inline(always)]
fn activated<S: Simd>(s: S, activation: Activation, x: S::F) -> (S::F, S::F) {
    let (zero, one, half) = (s.splat(0.0), s.splat(1.0), s.splat(0.5));
    match activation {
        Activation::Silu => {
            let sigmoid = s.div(one, s.add(one, math::exp(s, s.sub(zero, x))));
            let value = s.mul(x, sigmoid);
            (value, s.fma(value, s.sub(one, sigmoid), sigmoid))
        }
        Activation::GeluTanh => {
            const C: f32 = 0.797_884_6; // sqrt(2/π)
            let square = s.mul(x, x);
            let inner = s.fma(square, s.splat(0.044_715 * C), s.splat(C));
            let t = math::tanh(s, s.mul(x, inner));
            let rise = s.mul(s.fma(square, s.splat(3.0 * 0.044_715 * C), s.splat(C)), half);
            let level = s.fma(t, half, half);
            let bend = s.mul(s.sub(one, s.mul(t, t)), s.mul(x, rise));
            (s.mul(x, level), s.add(level, bend))
        }
        Activation::GeluErf => {
            const DENSITY: f32 = 0.398_942_3; // 1 / sqrt(2π)
            let erf = math::erf(s, s.mul(x, s.splat(std::f32::consts::FRAC_1_SQRT_2)));
            let level = s.fma(erf, half, half);
            let bell = math::exp(s, s.mul(s.mul(x, x), s.splat(-0.5)));
            let density = s.mul(bell, s.splat(DENSITY));
            (s.mul(x, level), s.fma(x, density, level))
        }
        Activation::Relu => (s.max(zero, x), s.select_lt(zero, x, one, zero)),
        Activation::Xielu(xielu) => {
            let (beta, alpha_n) = (s.splat(xielu.beta), s.splat(xielu.alpha_n));
            let function = math::Activation::Xielu {
                alpha_p: xielu.alpha_p,
                alpha_n: xielu.alpha_n,
                beta: xielu.beta,
                epsilon: xielu.epsilon,
            };
            let above = s.fma(s.splat(2.0 * xielu.alpha_p), x, beta);
            // From ε on the exponential stands still.
            let rise = s.select_lt(x, s.splat(xielu.epsilon), math::exp(s, x), zero);
            let below = s.fma(s.sub(rise, one), alpha_n, beta);
            (math::activate(s, function, x), s.select_lt(zero, x, above, below))
        }
    }
}

/// Replaces a row by the exponentials of its distance to its maximum; returns their sum and the maximum.
#[inline(always)]
pub(crate) fn exponentials<S: Simd>(s: S, row: &mut [f32]) -> (f32, f32) {
    let mut lanes = [f32::NEG_INFINITY; LANES];
    for chunk in row.chunks(LANES) {
        for (lane, &x) in lanes.iter_mut().zip(chunk) {
            *lane = if x > *lane { x } else { *lane };
        }
    }
    let highest = lanes.into_iter().fold(f32::NEG_INFINITY, f32::max);
    let mut sums = lanes::splat(s, 0.0);
    for chunk in row.chunks_mut(LANES) {
        // Lanes without an element give nothing to the sum.
        let mut padded = [f32::NEG_INFINITY; LANES];
        for (to, x) in padded.iter_mut().zip(chunk.iter()) {
            *to = x - highest;
        }
        let mut x = lanes::load(s, &padded);
        for x in x.iter_mut().take(LANES / S::LANES) {
            *x = math::exp(s, *x);
        }
        sums = lanes::zip::<S>(sums, x, |a, b| s.add(a, b));
        lanes::store(s, x, &mut padded);
        chunk.copy_from_slice(&padded[..chunk.len()]);
    }
    (lanes::join(s, sums, |a, b| a + b), highest)
}

/// Replaces all elements by `cap * tanh(x / cap)`.
#[inline(always)]
pub(crate) fn soft_cap<S: Simd>(s: S, cap: f32, row: &mut [f32]) {
    for chunk in row.chunks_mut(LANES) {
        let mut padded = [0.0; LANES];
        padded[..chunk.len()].copy_from_slice(chunk);
        let mut x = lanes::load(s, &padded);
        for x in x.iter_mut().take(LANES / S::LANES) {
            *x = math::soft_cap(s, cap, *x);
        }
        lanes::store(s, x, &mut padded);
        chunk.copy_from_slice(&padded[..chunk.len()]);
    }
}

/// The scalar product of two rows.
#[inline(always)]
pub(crate) fn dot(a: &[f32], b: &[f32]) -> f32 {
    sum_pairs(a, b, |a, b| a * b)
}
