//! Activations as bytes: quantised once per row, used by every product that reads the row.

use super::simd::Simd;
use crate::cpu::isa::{Isa, Work};
use crate::cpu::pack::layout::BLOCK;

/// Thirty-two quantised activations and all that kernels need of them, side by side in memory.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
#[repr(C, align(16))]
pub struct QuantBlock {
    /// The activations in units of `scale`, -127..=127.
    pub(crate) quants: [i8; BLOCK],
    /// `amax / 127`.
    pub(crate) scale: f32,
    /// `scale` times the sum of the quants, the factor of a weight block's minimum.
    pub(crate) scaled_sum: f32,
    /// Minus the sum of the quants, the factor of a weight format's offset.
    pub(crate) neg_sum: i32,
    /// Minus the sum of the first sixteen.
    pub(crate) neg_half: i32,
}

const _: () = assert!(size_of::<QuantBlock>() == 48);

/// Quantises one row.
///
/// Per 32 values: `amax = max |x|`, `scale = amax / 127`, `quant = round_ties_even(x * (127 /
/// amax))`. Where `amax` is so small that `127 / amax` overflows (below 4e-37) the block is zero.
/// Where a value is not finite the scale is not a number, and so is every output that reads the
/// block: damage stays visible, and the same everywhere.
///
/// # Shapes
/// `row`: (columns); `out`: (columns / 32).
///
/// # Panics
/// When the lengths do not fit each other.
pub fn quantise_row(isa: Isa, row: &[f32], out: &mut [QuantBlock]) {
    assert_eq!(row.len(), BLOCK * out.len(), "a row of whole blocks");
    isa.run(Quantise { row, out });
}

struct Quantise<'a> {
    row: &'a [f32],
    out: &'a mut [QuantBlock],
}

impl Work for Quantise<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let (values, _) = self.row.as_chunks::<BLOCK>();
        for (values, out) in values.iter().zip(self.out) {
            *out = block(s, values);
        }
    }
}

/// Quantises 32 values.
#[inline(always)]
pub(crate) fn block<S: Simd>(s: S, values: &[f32; BLOCK]) -> QuantBlock {
    let mut out = QuantBlock::default();
    // Magnitudes are compared by their bits: the same order for numbers, and no value that is not
    // a number gets lost in a maximum.
    let magnitude = s.splat_i(0x7fff_ffff);
    let mut largest = s.splat_i(0);
    for at in (0..BLOCK).step_by(S::LANES) {
        // SAFETY: `at + LANES <= BLOCK`, as `LANES` divides `BLOCK`.
        let x = unsafe { s.load(values.as_ptr().add(at)) };
        largest = s.max_i(largest, s.and_i(s.bits(x), magnitude));
    }
    let amax = f32::from_bits(lanes(s, largest).into_iter().max().unwrap_or(0) as u32);
    if !amax.is_finite() {
        out.scale = f32::NAN;
        out.scaled_sum = f32::NAN;
        return out;
    }
    let inverse = 127.0 / amax;
    if !inverse.is_finite() {
        return out;
    }
    let factor = s.splat(inverse);
    let mut sums = [0i32; 2];
    for (half, sum) in sums.iter_mut().enumerate() {
        let mut total = s.splat_i(0);
        for at in (16 * half..16 * half + 16).step_by(S::LANES) {
            // SAFETY: `at + LANES <= BLOCK` for both arrays of that length.
            unsafe {
                let x = s.load(values.as_ptr().add(at));
                let quants = s.to_i(s.mul(x, factor));
                s.store_i8(out.quants.as_mut_ptr().add(at), quants);
                total = s.add_i(total, quants);
            }
        }
        *sum = lanes(s, total).into_iter().sum();
    }
    out.scale = amax / 127.0;
    out.scaled_sum = out.scale * (sums[0] + sums[1]) as f32;
    out.neg_sum = -(sums[0] + sums[1]);
    out.neg_half = -sums[0];
    out
}

/// The lanes of a vector, those that it does not have being zero.
#[inline(always)]
fn lanes<S: Simd>(s: S, x: S::I) -> [i32; 16] {
    let mut out = [0; 16];
    const { assert!(S::LANES <= 16) };
    // SAFETY: the array holds at least `LANES` values.
    unsafe { s.store_i(out.as_mut_ptr(), x) };
    out
}
