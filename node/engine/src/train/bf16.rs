//! Products with frozen matrices on the bfloat16 units of AVX-512 processors: twice the F32 rate.
//!
//! Both factors are rounded to bfloat16 (nearest, ties to even); products are exact and summed in F32, so only the
//! inputs lose precision, as under torch's autocast. Matrices are packed twice, once for each way, because both ways
//! read pairs of neighbours along their own depth.

#![allow(unsafe_code, reason = "intrinsics; every block says why it is sound")]

use rayon::prelude::*;

use super::product::Old;

/// Columns of one panel: four vectors.
const PANEL: usize = 64;
/// Rows that the kernel computes together: 24 sums in registers.
#[cfg(target_arch = "x86_64")]
const ROWS: usize = 6;
/// Rows that one task computes.
const TASK_ROWS: usize = 64;

/// Whether this processor has the instructions for [`super::Precision::Bf16`].
pub fn available() -> bool {
    #[cfg(target_arch = "x86_64")]
    return is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512bf16");
    #[cfg(not(target_arch = "x86_64"))]
    false
}

/// One packing of a matrix: what is summed over is its depth.
pub(crate) struct Panels {
    depth: usize,
    columns: usize,
    /// Panel after panel, pair of depths after pair: for each column two numbers, the earlier in the low half.
    data: Vec<u32>,
}

impl Panels {
    /// Packs the matrix whose element for a depth and a column is `at(depth, column)`.
    pub(crate) fn new(
        depth: usize,
        columns: usize,
        at: impl Fn(usize, usize) -> f32 + Sync,
    ) -> Self {
        let pairs = depth.div_ceil(2);
        let mut data = vec![0; columns.div_ceil(PANEL) * pairs * PANEL];
        data.par_chunks_mut((pairs * PANEL).max(1)).enumerate().for_each(|(panel, data)| {
            for (pair, lanes) in data.chunks_exact_mut(PANEL).enumerate() {
                for (lane, to) in lanes.iter_mut().enumerate() {
                    let column = panel * PANEL + lane;
                    let value = |depth_at: usize| match depth_at < depth && column < columns {
                        true => rounded(at(depth_at, column)),
                        false => 0,
                    };
                    *to = u32::from(value(2 * pair)) | u32::from(value(2 * pair + 1)) << 16;
                }
            }
        });
        Self { depth, columns, data }
    }

    /// One element, widened.
    pub(crate) fn element(&self, depth: usize, column: usize) -> f32 {
        let pairs = self.depth.div_ceil(2);
        let at = (column / PANEL * pairs + depth / 2) * PANEL + column % PANEL;
        let pair = self.data.get(at).copied().unwrap_or_default();
        f32::from_bits(if depth.is_multiple_of(2) { pair << 16 } else { pair & 0xffff_0000 })
    }

    /// `out = [out +] left * matrix`
    ///
    /// # Shapes
    /// `left`: (rows, depth); `out`: (rows, columns).
    ///
    /// # Panics
    /// When the shapes do not fit each other, or the processor lacks the instructions.
    pub(crate) fn multiply(&self, left: &[f32], out: &mut [f32], old: Old) {
        assert!(available(), "the processor has bfloat16 products");
        let Self { depth, columns, .. } = *self;
        let rows = out.len() / columns.max(1);
        assert_eq!((left.len(), out.len()), (rows * depth, rows * columns), "shapes of a product");
        if rows == 0 || columns == 0 {
            return;
        }
        let tasks = out.par_chunks_mut(TASK_ROWS * columns);
        tasks.zip(left.par_chunks((TASK_ROWS * depth).max(1))).for_each(|(out, left)| {
            let pairs = depth.div_ceil(2);
            let mut packed = Vec::with_capacity(left.len() / depth.max(1) * pairs);
            for row in left.chunks_exact(depth) {
                let (whole, rest) = row.as_chunks::<2>();
                let pair = |a: f32, b: f32| u32::from(rounded(a)) | u32::from(rounded(b)) << 16;
                packed.extend(whole.iter().map(|&[a, b]| pair(a, b)));
                packed.extend(rest.iter().map(|&a| pair(a, 0.0)));
            }
            for (panel, data) in self.data.chunks_exact(pairs * PANEL).enumerate() {
                self.panel(panel * PANEL, data, &packed, out, old);
            }
        });
    }

    /// The columns from `first` on, of all rows of a task.
    fn panel(&self, first: usize, panel: &[u32], left: &[u32], out: &mut [f32], old: Old) {
        let (columns, pairs) = (self.columns, self.depth.div_ceil(2));
        let width = PANEL.min(columns - first);
        let blocks = left.chunks(ROWS_OR_ONE * pairs).zip(out.chunks_mut(ROWS_OR_ONE * columns));
        for (left, out) in blocks {
            let mut sums = [[0.0; PANEL]; ROWS_OR_ONE];
            block(panel, left, pairs, &mut sums);
            for (out, sums) in out.chunks_exact_mut(columns).zip(&sums) {
                let out = &mut out[first..first + width];
                match old {
                    Old::Replace => out.copy_from_slice(&sums[..width]),
                    Old::Add => out.iter_mut().zip(sums).for_each(|(to, sum)| *to += sum),
                }
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
const ROWS_OR_ONE: usize = ROWS;
#[cfg(not(target_arch = "x86_64"))]
const ROWS_OR_ONE: usize = 1;

/// Up to six rows of pairs times one panel.
#[cfg(target_arch = "x86_64")]
fn block(panel: &[u32], left: &[u32], pairs: usize, sums: &mut [[f32; PANEL]; ROWS]) {
    let rows = left.len() / pairs;
    assert!(rows <= ROWS && left.len() == rows * pairs && panel.len() == pairs * PANEL);
    // SAFETY: `Panels::multiply` has asked whether the instructions are there, and the lengths were just checked.
    unsafe {
        match rows {
            6 => kernel::<6>(panel.as_ptr(), left.as_ptr(), pairs, sums),
            5 => kernel::<5>(panel.as_ptr(), left.as_ptr(), pairs, sums),
            4 => kernel::<4>(panel.as_ptr(), left.as_ptr(), pairs, sums),
            3 => kernel::<3>(panel.as_ptr(), left.as_ptr(), pairs, sums),
            2 => kernel::<2>(panel.as_ptr(), left.as_ptr(), pairs, sums),
            1 => kernel::<1>(panel.as_ptr(), left.as_ptr(), pairs, sums),
            _ => {}
        }
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn block(_: &[u32], _: &[u32], _: usize, _: &mut [[f32; PANEL]; 1]) {
    unreachable!("nothing is packed where the instructions are missing");
}

/// # Safety
/// The processor has AVX-512 F and BF16; `panel` is valid for reads of `pairs * 64` words, `left` of `R * pairs`.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bf16")]
unsafe fn kernel<const R: usize>(
    panel: *const u32,
    left: *const u32,
    pairs: usize,
    sums: &mut [[f32; PANEL]; ROWS],
) {
    use std::arch::x86_64::{
        __m512bh, __m512i, _mm512_dpbf16_ps, _mm512_loadu_si512, _mm512_set1_epi32,
        _mm512_setzero_ps, _mm512_storeu_ps,
    };
    // SAFETY: the caller's promise; a vector of words has the size of a vector of pairs.
    unsafe {
        let bits = |x: __m512i| std::mem::transmute::<__m512i, __m512bh>(x);
        let mut acc = [[_mm512_setzero_ps(); 4]; R];
        for pair in 0..pairs {
            let at = panel.add(pair * PANEL);
            let columns: [__m512bh; 4] =
                std::array::from_fn(|i| bits(_mm512_loadu_si512(at.add(16 * i).cast())));
            for (row, acc) in acc.iter_mut().enumerate() {
                let x = bits(_mm512_set1_epi32(*left.add(row * pairs + pair) as i32));
                for (acc, columns) in acc.iter_mut().zip(columns) {
                    *acc = _mm512_dpbf16_ps(*acc, columns, x);
                }
            }
        }
        for (acc, sums) in acc.iter().zip(sums.iter_mut()) {
            for (i, acc) in acc.iter().enumerate() {
                _mm512_storeu_ps(sums.as_mut_ptr().add(16 * i), *acc);
            }
        }
    }
}

/// The nearest bfloat16, ties to even; what is no number stays so.
#[inline(always)]
fn rounded(x: f32) -> u16 {
    let bits = x.to_bits();
    let nearest = bits.wrapping_add(0x7fff + (bits >> 16 & 1)) >> 16;
    // Rounding could carry a payload out of the exponent.
    let quiet = bits >> 16 | 0x40;
    (if x.is_nan() { quiet } else { nearest }) as u16
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounding_is_to_nearest_even() {
        for x in [0.0f32, 1.0, -1.5, 3.140_625, 1e-40, f32::MAX, f32::INFINITY, 0.1, -0.3] {
            assert_eq!(rounded(x), half::bf16::from_f32(x).to_bits(), "{x}");
        }
        assert!(half::bf16::from_bits(rounded(f32::NAN)).is_nan());
    }

    /// Goal: products of integers, exact in bfloat16 and in any order of F32 sums, for shapes that fill panels,
    /// tasks and pairs, and shapes that do not.
    #[test]
    fn products_are_right() {
        if !available() {
            eprintln!("NOT TESTED: this processor has no bfloat16 products");
            return;
        }
        for (rows, depth, columns) in
            [(1, 1, 1), (6, 8, 64), (7, 33, 65), (130, 17, 200), (64, 64, 16)]
        {
            let left: Vec<f32> = (0..rows * depth).map(|at| (at * 7 % 15) as f32 - 7.0).collect();
            let right = |k: usize, n: usize| ((k * 5 + n * 3) % 13) as f32 - 6.0;
            let panels = Panels::new(depth, columns, right);
            for old in [Old::Replace, Old::Add] {
                let mut out = vec![2.0; rows * columns];
                panels.multiply(&left, &mut out, old);
                for row in 0..rows {
                    for column in 0..columns {
                        let sum: f32 =
                            (0..depth).map(|k| left[row * depth + k] * right(k, column)).sum();
                        let before = if old == Old::Add { 2.0 } else { 0.0 };
                        assert_eq!(out[row * columns + column], before + sum, "{row} {column}");
                    }
                }
            }
            assert_eq!(panels.element(depth - 1, columns - 1), right(depth - 1, columns - 1));
        }
    }
}
