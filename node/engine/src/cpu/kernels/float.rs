//! Products of float weights with float activations.
//!
//! `acc = fma(w[k], x[k], acc)` for ascending `k`, one accumulator per output; 16-bit weights are
//! widened exactly on the way into registers.

#![allow(clippy::too_many_arguments, reason = "inner steps that get all they need")]

use std::marker::PhantomData;

use super::prefetch;
use super::product::Results;
use super::simd::Simd;
use crate::cpu::isa::Work;
use crate::cpu::pack::layout::TILE_ROWS;

/// A float element type as it lies in memory.
pub(crate) trait Element {
    /// Bytes of one value.
    const BYTES: usize;

    /// Reads one vector of values.
    ///
    /// # Safety
    /// `from` is valid for reads of `LANES` elements.
    unsafe fn load<S: Simd>(s: S, from: *const u8) -> S::F;
}

pub(crate) struct F32;
pub(crate) struct F16;
pub(super) struct Bf16;

impl Element for F32 {
    const BYTES: usize = 4;
    #[inline(always)]
    unsafe fn load<S: Simd>(s: S, from: *const u8) -> S::F {
        // SAFETY: the caller's promise.
        unsafe { s.load(from.cast()) }
    }
}

impl Element for F16 {
    const BYTES: usize = 2;
    #[inline(always)]
    unsafe fn load<S: Simd>(s: S, from: *const u8) -> S::F {
        // SAFETY: the caller's promise.
        unsafe { s.load_f16(from) }
    }
}

impl Element for Bf16 {
    const BYTES: usize = 2;
    #[inline(always)]
    unsafe fn load<S: Simd>(s: S, from: *const u8) -> S::F {
        // SAFETY: the caller's promise.
        unsafe { s.load_bf16(from) }
    }
}

/// One tile times `R` rows of activations, as a function of its own.
pub(super) struct Tile<'a, E, const R: usize> {
    tile: *const u8,
    columns: usize,
    rows: *const f32,
    stride: usize,
    begun: bool,
    results: &'a mut Results,
    kind: PhantomData<E>,
}

impl<'a, E: Element, const R: usize> Tile<'a, E, R> {
    /// Multiplies, into the first `R` of `results`; if `begun`, on top of what is there of the columns before.
    ///
    /// # Safety
    /// `tile` is valid for reads of `columns` times 32 elements; `rows` for `R` rows of `columns`
    /// values, `stride` apart.
    #[inline(always)]
    pub(super) unsafe fn run<S: Simd>(
        s: S,
        tile: *const u8,
        columns: usize,
        rows: *const f32,
        stride: usize,
        begun: bool,
        results: &'a mut Results,
    ) {
        s.run(Self { tile, columns, rows, stride, begun, results, kind: PhantomData });
    }
}

impl<E: Element, const R: usize> Work for Tile<'_, E, R> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self { tile, columns, rows, stride, begun, results, .. } = self;
        // SAFETY: only `Tile::run` makes these values, and its caller promises what `panels` asks
        // for.
        unsafe {
            if const { !S::REGISTERS } {
                for first in 0..TILE_ROWS / S::LANES {
                    panels::<S, E, 1, R>(s, tile, first, columns, rows, stride, begun, results);
                }
            } else if const { S::LANES == 16 } {
                panels::<S, E, 2, R>(s, tile, 0, columns, rows, stride, begun, results);
            } else if const { R == 1 } {
                panels::<S, E, 4, R>(s, tile, 0, columns, rows, stride, begun, results);
            } else {
                panels::<S, E, 2, R>(s, tile, 0, columns, rows, stride, begun, results);
                panels::<S, E, 2, R>(s, tile, 2, columns, rows, stride, begun, results);
            }
        }
    }
}

/// Multiplies `T` vectors of the tile's rows, from number `first` on, with `R` rows of activations.
///
/// # Safety
/// As [`Tile::run`], and `(first + T) * LANES <= TILE_ROWS`.
#[inline(always)]
unsafe fn panels<S: Simd, E: Element, const T: usize, const R: usize>(
    s: S,
    tile: *const u8,
    first: usize,
    columns: usize,
    rows: *const f32,
    stride: usize,
    begun: bool,
    out: &mut Results,
) {
    const AHEAD: usize = 4096;
    let mut acc = [[s.splat(0.0); T]; R];
    // SAFETY: the caller's promise.
    unsafe {
        if begun {
            for (acc, out) in acc.iter_mut().zip(out.iter()) {
                for (t, acc) in acc.iter_mut().enumerate() {
                    *acc = s.load(out.as_ptr().add((first + t) * S::LANES));
                }
            }
        }
        let mut at = tile.add(first * S::LANES * E::BYTES);
        // Every third row has a pointer of its own; the two after it are reached by one and two
        // strides, which an address can hold.
        let bases: [*const f32; 2] =
            std::array::from_fn(|i| if 3 * i < R { rows.add(3 * i * stride) } else { rows });
        for k in 0..columns {
            // What begins with sums was turned just now, and is not followed by the next tile.
            if R == 1 && first == 0 && !begun {
                for line in (0..TILE_ROWS * E::BYTES).step_by(64) {
                    prefetch(at.wrapping_add(AHEAD + line));
                }
            }
            let weights: [S::F; T] =
                std::array::from_fn(|t| E::load(s, at.add(t * S::LANES * E::BYTES)));
            for (r, acc) in acc.iter_mut().enumerate() {
                let x = s.splat(*bases[r / 3].add(r % 3 * stride + k));
                for (acc, weights) in acc.iter_mut().zip(weights) {
                    *acc = s.fma(weights, x, *acc);
                }
            }
            at = at.add(TILE_ROWS * E::BYTES);
        }
        for (acc, out) in acc.iter().zip(out.iter_mut()) {
            for (t, acc) in acc.iter().enumerate() {
                s.store(out.as_mut_ptr().add((first + t) * S::LANES), *acc);
            }
        }
    }
}
