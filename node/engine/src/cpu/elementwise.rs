//! Functions over rows that are no part of a product: what adapters and soft-caps need.

use super::isa::Work;
use super::kernels::Simd;
use super::math::{self, Activation};
use super::pack::layout::HALF_ROWS;

/// The activation function over one row of `raw`, as products apply it on the way out.
pub(super) struct Activate<'a> {
    pub(super) activation: Activation,
    /// Rows alternate between sixteen of gate and sixteen of up.
    pub(super) gated: bool,
    pub(super) raw: &'a [f32],
    pub(super) out: &'a mut [f32],
}

impl Work for Activate<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let groups = if self.gated { 2 } else { 1 };
        let raw = self.raw.chunks(groups * HALF_ROWS);
        for (raw, out) in raw.zip(self.out.chunks_mut(HALF_ROWS)) {
            let mut padded = [0.0; 2 * HALF_ROWS];
            padded[..raw.len()].copy_from_slice(raw);
            let mut result = [0.0; HALF_ROWS];
            for at in (0..HALF_ROWS).step_by(S::LANES) {
                // SAFETY: `at + LANES <= HALF_ROWS`, and `padded` is twice as long.
                unsafe {
                    let first = s.load(padded.as_ptr().add(at));
                    let mut value = math::activate(s, self.activation, first);
                    if self.gated {
                        value = s.mul(value, s.load(padded.as_ptr().add(HALF_ROWS + at)));
                    }
                    s.store(result.as_mut_ptr().add(at), value);
                }
            }
            out.copy_from_slice(&result[..out.len()]);
        }
    }
}

/// `cap * tanh(x / cap)` over one row.
pub(super) struct SoftCap<'a> {
    pub(super) cap: f32,
    pub(super) row: &'a mut [f32],
}

impl Work for SoftCap<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        for chunk in self.row.chunks_mut(S::LANES) {
            let mut padded = [0.0; 16];
            padded[..chunk.len()].copy_from_slice(chunk);
            // SAFETY: a vector has at most sixteen lanes.
            unsafe {
                let capped = math::soft_cap(s, self.cap, s.load(padded.as_ptr()));
                s.store(padded.as_mut_ptr(), capped);
            }
            chunk.copy_from_slice(&padded[..chunk.len()]);
        }
    }
}
