//! Products with F32 weights that are read where they lie in a file, row after row.
//!
//! Some columns of a tile's 32 rows are turned into the order of a packed tile, then multiplied as such, in ascending order: the
//! same operations on the same numbers, so the same bits as with packed weights.

use std::cell::RefCell;

use super::float::{self, Tile};
use super::prefetch;
use super::product::{Finish, Part, Results, rows_per_pass};
use super::simd::Simd;
use crate::cpu::isa::Work;
use crate::cpu::pack::layout::{HALF_ROWS, TILE_ROWS};
use crate::cpu::pack::mapped::Halves;

/// Columns that are turned at a time where few rows of activations wait for them: what they become stays in the first-level
/// cache.
const RUN: usize = 64;
/// Up to how many rows of activations count as few.
const FEW_ROWS: usize = 6;

thread_local! {
    /// A whole tile, turned, for many rows of activations.
    static TURNED: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
}

/// The product of some tiles of a segment that was not packed.
pub(super) struct InPlace<'a> {
    pub(super) part: Part<'a>,
    pub(super) input: &'a [f32],
}

impl Work for InPlace<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        if self.part.product.rows <= FEW_ROWS {
            self.few(s);
        } else {
            TURNED.with_borrow_mut(|turned| self.many(s, turned));
        }
    }
}

impl InPlace<'_> {
    /// Turns some columns, multiplies with all rows, and goes on: weights pass through once.
    #[inline(always)]
    fn few<S: Simd>(&self, s: S) {
        let part = self.part;
        let columns = part.product.weights.columns();
        let mut run = Run([0.0; RUN * TILE_ROWS]);
        let mut results = Results::default();
        for tile in part.from..part.to {
            let halves = part.segment.halves(tile);
            let next = (tile + 1 < part.to).then(|| part.segment.halves(tile + 1));
            for from in (0..columns).step_by(RUN) {
                let count = RUN.min(columns - from);
                if tile == part.from {
                    // Nothing was asked for while a tile before this one was computed.
                    fetch_columns(&halves, from + 2 * RUN, columns);
                }
                let ahead = next.map_or([&[][..]; 2], |next| {
                    let bytes = 4 * HALF_ROWS;
                    next.rows.map(|half| &half[from * bytes..(from + count) * bytes])
                });
                s.run(Turn { halves: &halves, from, count, to: &mut run.0, ahead });
                let x = self.input[from..].as_ptr();
                // SAFETY: `count` columns of 32 rows were turned just now, and the input has as many rows of `columns`
                // as the product: `Product::check`.
                unsafe {
                    let (tile, begun, results) = (run.0.as_ptr().cast(), from > 0, &mut results);
                    macro_rules! rows {
                        ($count:literal) => {
                            Tile::<float::F32, $count>::run(
                                s, tile, count, x, columns, begun, results,
                            )
                        };
                    }
                    match part.product.rows {
                        1 => rows!(1),
                        2 => rows!(2),
                        3 => rows!(3),
                        4 => rows!(4),
                        5 => rows!(5),
                        _ => rows!(6),
                    }
                }
            }
            s.run(Finish { part, tile, row: 0, results: &results[..part.product.rows] });
        }
    }

    /// Turns a whole tile and multiplies it with all rows, as if it had been packed.
    #[inline(always)]
    fn many<S: Simd>(&self, s: S, turned: &mut Vec<f32>) {
        let part = self.part;
        let (columns, rows) = (part.product.weights.columns(), part.product.rows);
        turned.resize(columns * TILE_ROWS, 0.0);
        let mut results = Results::default();
        let per_pass = rows_per_pass(4 * columns);
        for start in (0..rows).step_by(per_pass) {
            let end = rows.min(start + per_pass);
            for tile in part.from..part.to {
                let halves = part.segment.halves(tile);
                let ahead = [&[][..]; 2];
                s.run(Turn { halves: &halves, from: 0, count: columns, to: &mut *turned, ahead });
                let mut row = start;
                macro_rules! rows {
                    ($count:literal) => {{
                        let x = self.input[row * columns..].as_ptr();
                        // SAFETY: a whole tile was turned, and the input has `rows` rows of `columns`: `Product::check`.
                        unsafe {
                            let (tile, results) = (turned.as_ptr().cast(), &mut results);
                            Tile::<float::F32, $count>::run(
                                s, tile, columns, x, columns, false, results,
                            );
                        }
                        $count
                    }};
                }
                while row < end {
                    // As with packed weights.
                    let count = if const { S::REGISTERS } {
                        match end - row {
                            6.. => rows!(6),
                            4.. => rows!(4),
                            2.. => rows!(2),
                            _ => rows!(1),
                        }
                    } else {
                        match end - row {
                            4.. => rows!(4),
                            _ => rows!(1),
                        }
                    };
                    s.run(Finish { part, tile, row, results: &results[..count] });
                    row += count;
                }
            }
        }
    }
}

/// Asks for the run of columns that begins with `from`, of all rows.
#[inline(always)]
fn fetch_columns(halves: &Halves<'_>, from: usize, columns: usize) {
    if from < columns {
        for row in halves.rows.iter().flat_map(|half| half.chunks_exact(4 * columns)) {
            let bytes = &row[4 * from..4 * columns.min(from + RUN)];
            bytes.chunks(64).for_each(|line| prefetch(line.as_ptr()));
        }
    }
}

/// Turns columns `from .. from + count` of a tile: (count, 32).
struct Turn<'a> {
    halves: &'a Halves<'a>,
    from: usize,
    count: usize,
    to: &'a mut [f32],
    /// What to ask for meanwhile, in small portions: many at once would be in the way of what is read now.
    ahead: [&'a [u8]; 2],
}

/// Some columns, turned: whole cache lines, because every vector is one.
#[repr(align(64))]
struct Run([f32; RUN * TILE_ROWS]);

impl Work for Turn<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self { halves, from, count, to, ahead } = self;
        let row_bytes = halves.rows[0].len() / HALF_ROWS;
        assert!(count.is_multiple_of(S::LANES) && 4 * (from + count) <= row_bytes, "whole vectors");
        assert!(to.len() >= count * TILE_ROWS && halves.rows[1].len() == row_bytes * HALF_ROWS);
        for column in (0..count).step_by(S::LANES) {
            for (half, rows) in halves.rows.iter().enumerate() {
                for row in (0..HALF_ROWS).step_by(S::LANES) {
                    // SAFETY: sixteen rows of `row_bytes` in each half, and as many columns of them and of `to` as were
                    // asserted.
                    unsafe {
                        let rows = rows.as_ptr().add(row * row_bytes + 4 * (from + column));
                        let to = to.as_mut_ptr().add(column * TILE_ROWS + half * HALF_ROWS + row);
                        s.turn(rows, row_bytes, to, TILE_ROWS);
                    }
                    // As many bytes as were turned.
                    let bytes = 4 * S::LANES * S::LANES;
                    let at = (column * HALF_ROWS + row * S::LANES) * 4;
                    let portion = ahead[half].get(at..at + bytes).unwrap_or_default();
                    portion.chunks(64).for_each(|line| prefetch(line.as_ptr()));
                }
            }
        }
    }
}
