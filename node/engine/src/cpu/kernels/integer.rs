//! Products of quantised weights with quantised activations.
//!
//! Per segment of 16 or 32 inputs, in ascending order: the exact integer
//! `i = sum (code - offset) * quant`, then `acc = fma(i * w, a, acc)` with `w` the segment's weight
//! scale (`d * sub_scale`, exact in f32) and `a` the activations' scale; where the format has
//! minima, then `acc = fma(m, a * sum(quants), acc)`. One accumulator per output.

#![allow(
    clippy::needless_range_loop,
    clippy::too_many_arguments,
    reason = "small arrays that stand for registers, indexed alike; inner steps that get all they need"
)]

use std::marker::PhantomData;

use super::prefetch;
use super::product::Results;
use super::quantise::QuantBlock;
use super::simd::Simd;
use crate::cpu::isa::Work;
use crate::cpu::pack::layout::{BLOCK, Format, HALF_ROWS, SubScales, TILE_ROWS};

/// One tile times `R` rows of activations, as a function of its own.
pub(super) struct Tile<'a, L, const R: usize> {
    tile: *const u8,
    blocks: usize,
    rows: *const QuantBlock,
    stride: usize,
    results: &'a mut Results,
    kind: PhantomData<L>,
}

impl<'a, L: Format, const R: usize> Tile<'a, L, R> {
    /// Multiplies, into the first `R` of `results`.
    ///
    /// # Safety
    /// `tile` is valid for reads of `blocks` blocks of format `L`; `rows` for `R` rows, `stride`
    /// apart, of `blocks * L::LAYOUT.subs` each.
    #[inline(always)]
    pub(super) unsafe fn run<S: Simd>(
        s: S,
        tile: *const u8,
        blocks: usize,
        rows: *const QuantBlock,
        stride: usize,
        results: &'a mut Results,
    ) {
        s.run(Self { tile, blocks, rows, stride, results, kind: PhantomData });
    }
}

impl<L: Format, const R: usize> Work for Tile<'_, L, R> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self { tile, blocks, rows, stride, results, .. } = self;
        // How many vectors of weights are worked on at a time: as many as leave registers for `R`
        // accumulators of sums and of integers each. With a single row of activations it is the
        // whole tile, so that memory is read in one stream.
        //
        // SAFETY: only `Tile::run` makes these values, and its caller promises what `panels` asks
        // for.
        unsafe {
            if const { !S::REGISTERS } {
                for first in 0..TILE_ROWS / S::LANES {
                    panels::<S, L, 1, R>(s, tile, first, blocks, rows, stride, results);
                }
            } else if const { S::LANES == 16 } {
                panels::<S, L, 2, R>(s, tile, 0, blocks, rows, stride, results);
            } else if const { R == 1 } {
                panels::<S, L, 4, R>(s, tile, 0, blocks, rows, stride, results);
            } else {
                panels::<S, L, 2, R>(s, tile, 0, blocks, rows, stride, results);
                panels::<S, L, 2, R>(s, tile, 2, blocks, rows, stride, results);
            }
        }
    }
}

/// Multiplies `T` vectors of the tile's rows, from number `first` on, with `R` rows of activations.
///
/// # Safety
/// As [`Tile::run`], and `(first + T) * LANES <= TILE_ROWS`.
#[inline(always)]
unsafe fn panels<S: Simd, L: Format, const T: usize, const R: usize>(
    s: S,
    tile: *const u8,
    first: usize,
    blocks: usize,
    rows: *const QuantBlock,
    stride: usize,
    out: &mut Results,
) {
    let layout = L::LAYOUT;
    let mut acc = [[s.splat(0.0); T]; R];
    // SAFETY: all positions lie within the block by the layout's definition, and within the rows by
    // the caller's promise.
    unsafe {
        for block in 0..blocks {
            let at = tile.add(block * layout.bytes());
            for sub in 0..layout.subs {
                if R <= 2 && first == 0 {
                    prefetch_block::<L>(at, sub);
                }
                let x = rows.add(block * layout.subs + sub);
                if layout.segment == BLOCK {
                    segment::<S, L, T, R, 0, 8>(s, at, first, sub, x, stride, &mut acc);
                } else {
                    segment::<S, L, T, R, 0, 4>(s, at, first, sub, x, stride, &mut acc);
                    segment::<S, L, T, R, 4, 8>(s, at, first, sub, x, stride, &mut acc);
                }
            }
        }
        for (acc, out) in acc.iter().zip(out.iter_mut()) {
            for (t, acc) in acc.iter().enumerate() {
                s.store(out.as_mut_ptr().add((first + t) * S::LANES), *acc);
            }
        }
    }
}

/// Asks for what is needed some blocks later: the share of one sub-block, so that a large block does
/// not ask for all its lines at once. The tiles of a matrix follow one another, so this runs into
/// the next tile at the end of one.
#[inline(always)]
fn prefetch_block<L: Format>(at: *const u8, sub: usize) {
    const AHEAD: usize = 4096;
    let share = const { (L::LAYOUT.bytes() / L::LAYOUT.subs).next_multiple_of(64) };
    let start = at.wrapping_add(AHEAD + L::LAYOUT.bytes() / L::LAYOUT.subs * sub);
    for line in (0..share).step_by(64) {
        prefetch(start.wrapping_add(line));
    }
}

/// Adds the products of groups `FROM..TO` of one sub-block.
///
/// # Safety
/// `at` is a whole block; `x` is valid for `R` blocks, `stride` apart.
#[inline(always)]
unsafe fn segment<
    S: Simd,
    L: Format,
    const T: usize,
    const R: usize,
    const FROM: usize,
    const TO: usize,
>(
    s: S,
    at: *const u8,
    first: usize,
    sub: usize,
    x: *const QuantBlock,
    stride: usize,
    acc: &mut [[S::F; T]; R],
) {
    let layout = L::LAYOUT;
    // SAFETY: the caller's promise.
    unsafe {
        let sums = if layout.low_bits == 8 {
            bytes::<S, L, T, R>(s, at, first, sub, x, stride)
        } else {
            nibbles::<S, L, T, R, FROM, TO>(s, at, first, sub, x, stride)
        };
        let number = sub * (BLOCK / layout.segment) + FROM / 4 * 16 / layout.segment;
        let mut scales = [s.splat(0.0); T];
        for (t, scales) in scales.iter_mut().enumerate() {
            *scales = scale::<S, L>(s, at, first + t, number, 0, layout.scales_at());
        }
        for r in 0..R {
            let a = s.splat((*x.add(r * stride)).scale);
            for t in 0..T {
                acc[r][t] = s.fma(s.mul(s.to_f(sums[r][t]), scales[t]), a, acc[r][t]);
            }
        }
        if layout.min {
            for (t, scales) in scales.iter_mut().enumerate() {
                let (parts, whole) = (layout.sub_mins_at(), layout.mins_at());
                *scales = scale::<S, L>(s, at, first + t, number, parts, whole);
            }
            for r in 0..R {
                let x = &*x.add(r * stride);
                let a = match (FROM, TO) {
                    (0, 8) => x.scaled_sum,
                    (0, _) => x.scale * -x.neg_half as f32,
                    _ => x.scale * (x.neg_half - x.neg_sum) as f32,
                };
                let a = s.splat(a);
                for t in 0..T {
                    acc[r][t] = s.fma(scales[t], a, acc[r][t]);
                }
            }
        }
    }
}

/// The exact sums of one sub-block, for codes of up to six bits.
///
/// # Safety
/// As [`segment`].
#[inline(always)]
unsafe fn nibbles<
    S: Simd,
    L: Format,
    const T: usize,
    const R: usize,
    const FROM: usize,
    const TO: usize,
>(
    s: S,
    at: *const u8,
    first: usize,
    sub: usize,
    x: *const QuantBlock,
    stride: usize,
) -> [[S::I; T]; R] {
    let layout = L::LAYOUT;
    // SAFETY: the caller's promise.
    unsafe {
        // What the codes' offset adds to each sum, to be taken off.
        let mut offsets = [s.splat_i(0); R];
        if layout.offset != 0 {
            for (r, offset) in offsets.iter_mut().enumerate() {
                let x = &*x.add(r * stride);
                let neg = match (FROM, TO) {
                    (0, 8) => s.splat_i(x.neg_sum),
                    (0, _) => s.splat_i(x.neg_half),
                    _ => s.sub_i(s.splat_i(x.neg_sum), s.splat_i(x.neg_half)),
                };
                *offset = s.shl_i(neg, layout.offset.trailing_zeros());
            }
        }
        let mut sums = [[s.splat_i(0); T]; R];
        let mut partial = [[s.zero_p(); T]; R];
        if S::DIRECT && layout.offset != 0 {
            for r in 0..R {
                partial[r] = [s.begin(offsets[r]); T];
            }
        }
        // A loop, which the compiler unrolls when it has made the body small: written out eight
        // times here, it would have to do that work eight times, for each of some hundred kernels.
        let mut group = FROM;
        while group < TO {
            let (sums, partial) = (&mut sums, &mut partial);
            nibble_step::<S, L, T, R>(group, s, at, first, sub, x, stride, sums, partial, TO - 1);
            group += 1;
        }
        for r in 0..R {
            for t in 0..T {
                let sum = s.end(partial[r][t]);
                sums[r][t] = if S::DIRECT { sum } else { s.add_i(sums[r][t], sum) };
                if !S::DIRECT && layout.offset != 0 {
                    sums[r][t] = s.add_i(sums[r][t], offsets[r]);
                }
            }
        }
        sums
    }
}

/// Adds the products of one group of codes of up to six bits.
///
/// # Safety
/// As [`segment`].
#[inline(always)]
unsafe fn nibble_step<S: Simd, L: Format, const T: usize, const R: usize>(
    group: usize,
    s: S,
    at: *const u8,
    first: usize,
    sub: usize,
    x: *const QuantBlock,
    stride: usize,
    sums: &mut [[S::I; T]; R],
    partial: &mut [[S::P; T]; R],
    last: usize,
) {
    // SAFETY: the caller's promise.
    unsafe {
        let mut weights = [codes::<S, L>(s, at, first, sub, group); T];
        for t in 1..T {
            weights[t] = codes::<S, L>(s, at, first + t, sub, group);
        }
        for r in 0..R {
            let quants = s.splat_b((*x.add(r * stride)).quants.as_ptr().add(4 * group));
            for t in 0..T {
                partial[r][t] = s.dot(partial[r][t], weights[t], quants);
            }
        }
        // Partial sums that would not hold another group move on. Chains divide segments, so
        // counting from group 0 is right for both.
        if !S::DIRECT && (group + 1).is_multiple_of(L::LAYOUT.chain()) && group < last {
            for r in 0..R {
                for t in 0..T {
                    sums[r][t] = s.add_i(sums[r][t], s.end(partial[r][t]));
                    partial[r][t] = s.zero_p();
                }
            }
        }
    }
}

/// The exact sums of one sub-block, for whole bytes.
///
/// # Safety
/// As [`segment`].
#[inline(always)]
unsafe fn bytes<S: Simd, L: Format, const T: usize, const R: usize>(
    s: S,
    at: *const u8,
    first: usize,
    sub: usize,
    x: *const QuantBlock,
    stride: usize,
) -> [[S::I; T]; R] {
    // SAFETY: the caller's promise.
    unsafe {
        let mut sums = [[s.splat_i(0); T]; R];
        if S::BYTE_BIAS != 0 {
            for (r, sums) in sums.iter_mut().enumerate() {
                let neg = s.splat_i((*x.add(r * stride)).neg_sum);
                *sums = [s.shl_i(neg, S::BYTE_BIAS.trailing_zeros()); T];
            }
        }
        let mut group = 0;
        while group < 8 {
            byte_step::<S, L, T, R>(group, s, at, first, sub, x, stride, &mut sums);
            group += 1;
        }
        sums
    }
}

/// Adds the products of one group of whole bytes.
///
/// # Safety
/// As [`segment`].
#[inline(always)]
unsafe fn byte_step<S: Simd, L: Format, const T: usize, const R: usize>(
    group: usize,
    s: S,
    at: *const u8,
    first: usize,
    sub: usize,
    x: *const QuantBlock,
    stride: usize,
    sums: &mut [[S::I; T]; R],
) {
    // SAFETY: the caller's promise.
    unsafe {
        let mut weights = [codes::<S, L>(s, at, first, sub, group); T];
        for t in 1..T {
            weights[t] = codes::<S, L>(s, at, first + t, sub, group);
        }
        for r in 0..R {
            let quants = s.splat_b((*x.add(r * stride)).quants.as_ptr().add(4 * group));
            for t in 0..T {
                sums[r][t] = s.dot_bytes(sums[r][t], weights[t], quants);
            }
        }
    }
}

/// The codes of `group` of sub-block `sub`, for the rows of vector `panel` of the tile.
///
/// # Safety
/// `at` is a whole block.
#[inline(always)]
unsafe fn codes<S: Simd, L: Format>(
    s: S,
    at: *const u8,
    panel: usize,
    sub: usize,
    group: usize,
) -> S::B {
    let layout = L::LAYOUT;
    let (half, row) = (panel * S::LANES / HALF_ROWS, panel * S::LANES % HALF_ROWS);
    // SAFETY: within the block by the layout's definition.
    unsafe {
        let low = at.add(layout.low_at(sub, half) + 4 * row);
        let low = match layout.low_bits {
            8 => s.load_b(low.add(64 * group)),
            4 => s.shift_b(s.load_b(low.add(64 * (group % 4))), (group / 4 * 4) as i32, 15),
            _ => s.shift_b(s.load_b(low.add(64 * (group / 4))), (group % 4 * 2) as i32, 3),
        };
        let high = at.add(layout.high_at(sub, half) + 4 * row);
        let bits = layout.low_bits as i32;
        match layout.high_bits {
            0 => low,
            1 => s.or_b(low, s.shift_b(s.load_b(high), group as i32 - bits, 1 << (bits & 7))),
            _ => {
                let pairs = s.load_b(high.add(64 * (group / 4)));
                s.or_b(low, s.shift_b(pairs, (group % 4 * 2) as i32 - bits, 3 << (bits & 7)))
            }
        }
    }
}

/// The factor of segment `number`: the f16 at `whole`, times the byte at `parts` if the format has
/// such.
///
/// # Safety
/// `at` is a whole block.
#[inline(always)]
unsafe fn scale<S: Simd, L: Format>(
    s: S,
    at: *const u8,
    panel: usize,
    number: usize,
    parts: usize,
    whole: usize,
) -> S::F {
    let row = panel * S::LANES;
    // SAFETY: within the block by the layout's definition.
    unsafe {
        let scale = s.load_f16(at.add(whole + 2 * row));
        let part = at.add(parts + number * TILE_ROWS + row);
        // 11 bits times 8 bits: the product is exact.
        match L::LAYOUT.sub_scales {
            SubScales::None => scale,
            // Minima are unsigned also where scales are.
            SubScales::Unsigned => s.mul(scale, s.to_f(s.load_u8(part))),
            SubScales::Signed => s.mul(scale, s.to_f(s.load_i8(part))),
        }
    }
}
