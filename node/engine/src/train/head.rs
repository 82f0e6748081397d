//! From the last layer's rows to the loss: output norm, projection, soft-cap, cross entropy, all the way back.
//!
//! Logits are the widest thing there is, so they exist for a few rows at a time only, and both ways are
//! computed while they do.

use rayon::prelude::*;

use super::product::Old;
use super::vector;
use super::weights::Linear;
use crate::cpu::isa::{Isa, Work};
use crate::cpu::kernels::Simd;

/// Logits held at once: 32 MiB.
const LOGITS_MAX: usize = 1 << 23;

/// Rows whose logits are computed together.
pub(crate) fn rows_at_once(vocab: usize) -> usize {
    (LOGITS_MAX / vocab.max(1)).clamp(16, 256)
}

/// The output projection.
pub(crate) struct Head<'a> {
    pub(crate) output: &'a Linear,
    pub(crate) soft_cap: Option<f32>,
    pub(crate) isa: Isa,
}

impl Head<'_> {
    /// `-ln p(label)` of each row; with `weight`, `hidden` is replaced by the gradient of `weight` times their
    /// sum.
    ///
    /// # Shapes
    /// `hidden`: (labels, width), normalised.
    pub(crate) fn cross_entropy(
        &self,
        hidden: &mut [f32],
        labels: &[u32],
        weight: Option<f32>,
    ) -> Vec<f64> {
        let (vocab, width) = (self.output.weight.rows, self.output.weight.columns);
        let at_once = rows_at_once(vocab);
        let mut logits = vec![0.0; at_once.min(labels.len()) * vocab];
        let mut losses = Vec::with_capacity(labels.len());
        for (hidden, labels) in hidden.chunks_mut(at_once * width).zip(labels.chunks(at_once)) {
            let logits = &mut logits[..labels.len() * vocab];
            self.logits(hidden, logits);
            let found = logits
                .par_chunks_mut(vocab)
                .zip(labels)
                .map(|(logits, &label)| {
                    let (label, soft_cap) = (label as usize, self.soft_cap);
                    self.isa.run(CrossEntropy { logits, label, soft_cap, weight })
                })
                .collect::<Vec<f64>>();
            losses.extend(found);
            if weight.is_some() {
                self.output.weight.backward(logits, hidden, Old::Replace);
            }
        }
        losses
    }

    /// Raw logits, before the soft-cap.
    ///
    /// # Shapes
    /// `hidden`: (rows, width); `logits`: (rows, vocab).
    fn logits(&self, hidden: &[f32], logits: &mut [f32]) {
        let Linear { weight, bias, .. } = self.output;
        weight.forward(hidden, logits);
        if let Some(bias) = bias {
            for row in logits.chunks_exact_mut(weight.rows) {
                row.iter_mut().zip(bias).for_each(|(logit, bias)| *logit += bias);
            }
        }
    }

    /// Logits as a model gives them.
    ///
    /// # Shapes
    /// `hidden`: (rows, width), normalised. Returns (rows, vocab).
    pub(crate) fn capped_logits(&self, hidden: &[f32]) -> Vec<f32> {
        let rows = hidden.len() / self.output.weight.columns;
        let mut logits = vec![0.0; rows * self.output.weight.rows];
        self.logits(hidden, &mut logits);
        if let Some(cap) = self.soft_cap {
            self.isa.run(Cap { cap, row: &mut logits });
        }
        logits
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

/// `-ln softmax(logits)[label]` of one row; with `weight`, the row becomes `weight * (softmax - one_hot)`,
/// times the soft-cap's slope.
struct CrossEntropy<'a> {
    logits: &'a mut [f32],
    label: usize,
    soft_cap: Option<f32>,
    weight: Option<f32>,
}

impl Work for CrossEntropy<'_> {
    type Output = f64;

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> f64 {
        let Self { logits, label, soft_cap, weight } = self;
        let mut slopes = Vec::new();
        if let Some(cap) = soft_cap {
            vector::soft_cap(s, cap, logits);
            if weight.is_some() {
                slopes.extend(logits.iter().map(|c| 1.0 - (c / cap) * (c / cap)));
            }
        }
        let own = logits[label];
        let (sum, highest) = vector::exponentials(s, logits);
        if let Some(weight) = weight {
            let scale = weight / sum;
            for value in logits.iter_mut() {
                *value *= scale;
            }
            logits[label] -= weight;
            for (value, slope) in logits.iter_mut().zip(&slopes) {
                *value *= slope;
            }
        }
        f64::from(sum).ln() + f64::from(highest) - f64::from(own)
    }
}
