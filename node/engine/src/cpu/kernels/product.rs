//! A product of activations with a packed matrix, and what is done with its results on the way out.

use std::marker::PhantomData;
use std::ops::Range;

use candle_core::quantized::GgmlDType;

use super::float::{self, Element};
use super::in_place::InPlace;
use super::integer;
use super::quantise::QuantBlock;
use super::simd::Simd;
use crate::cpu::isa::{Isa, Work};
use crate::cpu::math::{Activation, activate};
use crate::cpu::pack::layout::{Format, HALF_ROWS, TILE_ROWS};
use crate::cpu::pack::{InputKind, Order, PackedMatrix, Segment, blocks_per_row, with_format};

/// Rows of activations, one after the other.
#[derive(Clone, Copy, Debug)]
pub enum Input<'a> {
    /// (rows, columns / 32), for [`InputKind::Quantised`].
    Quantised(&'a [QuantBlock]),
    /// (rows, columns), for [`InputKind::Float`].
    Float(&'a [f32]),
}

/// What becomes of the results, after the bias is added.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Then {
    /// They are stored.
    Store,
    /// They are added to what is there: the residual sum.
    Add,
    /// The activation function of them is stored.
    Activate(Activation),
    /// The activation function of the first half times the second half is stored, for matrices
    /// packed as [`Order::Gated`]. The output is half as wide.
    Gate(Activation),
    /// They are stored as they are packed, for matrices packed as [`Order::Gated`]: sixteen of the first half, then
    /// sixteen of the second. The output is as wide as all tiles together.
    Alternate,
}

/// Where results go: rows of f32, which several threads may write at once, each its own columns.
///
/// Not to be copied: whoever holds it alone may write without further promises.
#[derive(Debug)]
pub struct Output<'a> {
    to: *mut f32,
    len: usize,
    stride: usize,
    buffer: PhantomData<&'a mut [f32]>,
}

// SAFETY: the pointer is only written by `Product::run`, whose caller promises that no two threads
// write the same columns.
unsafe impl Send for Output<'_> {}
// SAFETY: as above.
unsafe impl Sync for Output<'_> {}

impl<'a> Output<'a> {
    /// Rows of `stride` values each, from the start of `buffer`.
    pub fn new(buffer: &'a mut [f32], stride: usize) -> Self {
        Self { to: buffer.as_mut_ptr(), len: buffer.len(), stride, buffer: PhantomData }
    }

    /// Rows of `stride` values each, in memory that others may be using too.
    ///
    /// # Safety
    /// `to` is valid for writes (and, for [`Then::Add`], reads) of `len` values for as long as the
    /// value is used.
    pub unsafe fn from_raw(to: *mut f32, len: usize, stride: usize) -> Self {
        Self { to, len, stride, buffer: PhantomData }
    }
}

/// `output = then(input · weightsᵀ + bias)`.
#[derive(Debug)]
pub struct Product<'a> {
    /// (outputs, columns).
    pub weights: &'a PackedMatrix,
    /// (rows, columns).
    pub input: Input<'a>,
    /// Rows of input and output.
    pub rows: usize,
    /// (outputs), in the order of the matrix's rows.
    pub bias: Option<&'a [f32]>,
    /// What becomes of the results.
    pub then: Then,
    /// (rows, outputs), or (rows, outputs / 2) with [`Then::Gate`], or (rows, 32 tiles) with [`Then::Alternate`].
    pub output: Output<'a>,
}

impl Product<'_> {
    /// Computes the outputs of `tiles`, for all rows.
    ///
    /// # Safety
    /// No other thread uses the columns of these tiles in the output meanwhile: `32 t .. 32 t + 32`
    /// of tile `t`, or with [`Then::Gate`] `16 t .. 16 t + 16`. (Where the matrix has parts of
    /// several types, a part's tiles start at its first row.)
    ///
    /// # Panics
    /// When input, bias or output are shorter than the shapes ask for, of the wrong kind, or the
    /// tiles do not exist: faults of the caller.
    pub unsafe fn run(&self, isa: Isa, tiles: Range<usize>) {
        self.check(&tiles);
        for segment in self.weights.segments() {
            let end = segment.first_tile + segment.tiles;
            let (from, to) = (tiles.start.max(segment.first_tile), tiles.end.min(end));
            if from >= to || self.rows == 0 {
                continue;
            }
            let tiles = from - segment.first_tile..to - segment.first_tile;
            match (segment.dtype, self.input) {
                (GgmlDType::F32, Input::Float(x)) if segment.turned() => {
                    let part = Part { product: self, segment, from: tiles.start, to: tiles.end };
                    isa.run(InPlace { part, input: x });
                }
                (GgmlDType::F32, Input::Float(x)) => {
                    isa.run(Floats::<float::F32>::new(self, segment, tiles, x));
                }
                (GgmlDType::F16, Input::Float(x)) => {
                    isa.run(Floats::<float::F16>::new(self, segment, tiles, x));
                }
                (GgmlDType::BF16, Input::Float(x)) => {
                    isa.run(Floats::<float::Bf16>::new(self, segment, tiles, x));
                }
                (dtype, Input::Quantised(x)) => with_format!(dtype, F => {
                    isa.run(Integers::<F>::new(self, segment, tiles, x));
                }),
                // `check` has refused every other pair.
                _ => {}
            }
        }
    }

    /// Computes all outputs on the calling thread.
    ///
    /// # Panics
    /// As [`Product::run`].
    pub fn run_alone(&mut self, isa: Isa) {
        // SAFETY: the exclusive borrow of the product stands for that of its output, and all tiles
        // are this thread's.
        unsafe { self.run(isa, 0..self.weights.tiles()) }
    }

    fn check(&self, tiles: &Range<usize>) {
        let (weights, columns) = (self.weights, self.weights.columns());
        assert!(tiles.end <= weights.tiles(), "tiles {tiles:?} of {}", weights.tiles());
        let long_enough = match (self.input, weights.input()) {
            (Input::Quantised(x), InputKind::Quantised) => {
                x.len() / blocks_per_row(columns) >= self.rows
            }
            (Input::Float(x), InputKind::Float) => x.len() / columns >= self.rows,
            _ => panic!("the input is not {:?}", weights.input()),
        };
        assert!(long_enough, "the input has less than {} rows of {columns}", self.rows);
        let gated = matches!(self.then, Then::Gate(_) | Then::Alternate);
        assert_eq!(gated, weights.order() == Order::Gated, "gated weights and only they are gated");
        let width = match self.then {
            Then::Gate(_) => weights.rows() / 2,
            Then::Alternate => weights.tiles() * TILE_ROWS,
            _ => weights.rows(),
        };
        let stride = self.output.stride;
        let needed = self.rows.saturating_sub(1).checked_mul(stride).map(|all| all + width);
        assert!(stride >= width, "rows of {stride} for {width} outputs");
        assert!(
            needed.is_some_and(|needed| self.rows == 0 || self.output.len >= needed),
            "the output has less than {} rows",
            self.rows
        );
        assert!(
            self.bias.is_none_or(|bias| bias.len() == weights.rows()),
            "a bias for each output"
        );
    }
}

/// How many bytes of activations are worked on before the weights are read again: a part of a
/// core's second-level cache, most of which tiles and results leave.
const CACHE: usize = 512 << 10;

/// Rows of `bytes` each that stay in the cache, at least 24.
pub(super) fn rows_per_pass(bytes: usize) -> usize {
    (CACHE / bytes.max(1)).max(24) / 12 * 12
}

/// Results of some rows of activations, for the 32 rows of a tile.
pub(super) type Results = [[f32; TILE_ROWS]; 6];

/// What integer and float products have in common: a product, one segment of its weights, some
/// tiles.
#[derive(Clone, Copy)]
pub(super) struct Part<'a> {
    pub(super) product: &'a Product<'a>,
    pub(super) segment: &'a Segment,
    pub(super) from: usize,
    pub(super) to: usize,
}

struct Integers<'a, L> {
    part: Part<'a>,
    input: &'a [QuantBlock],
    format: PhantomData<L>,
}

impl<'a, L: Format> Integers<'a, L> {
    fn new(
        product: &'a Product<'a>,
        segment: &'a Segment,
        tiles: Range<usize>,
        input: &'a [QuantBlock],
    ) -> Self {
        let part = Part { product, segment, from: tiles.start, to: tiles.end };
        Self { part, input, format: PhantomData }
    }
}

impl<L: Format> Work for Integers<'_, L> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let part = self.part;
        let columns = part.product.weights.columns();
        let blocks = columns / L::LAYOUT.inputs();
        let stride = blocks * L::LAYOUT.subs;
        let rows = part.product.rows;
        let mut results = Results::default();
        let per_pass = rows_per_pass(stride * size_of::<QuantBlock>());
        for start in (0..rows).step_by(per_pass) {
            let end = rows.min(start + per_pass);
            for tile in part.from..part.to {
                let weights = part.weights(tile);
                let mut row = start;
                macro_rules! rows {
                    ($count:literal) => {{
                        let x = self.input[row * stride..].as_ptr();
                        // SAFETY: the segment has `to` tiles of `blocks` blocks each, and the input
                        // has `rows` rows of `stride`: `Product::check`.
                        unsafe {
                            let (tile, results) = (weights.as_ptr(), &mut results);
                            integer::Tile::<L, $count>::run(s, tile, blocks, x, stride, results);
                        }
                        $count
                    }};
                }
                while row < end {
                    let count = if const { S::ROWS == 6 } {
                        match end - row {
                            // Two blocks of four unpack the weights as often as six and two, and
                            // wait less on their sums.
                            7 | 8 => rows!(4),
                            6.. => rows!(6),
                            4.. => rows!(4),
                            2.. => rows!(2),
                            _ => rows!(1),
                        }
                    } else if const { S::ROWS == 3 } {
                        match end - row {
                            3.. => rows!(3),
                            _ => rows!(1),
                        }
                    } else {
                        rows!(1)
                    };
                    s.run(Finish { part, tile, row, results: &results[..count] });
                    row += count;
                }
            }
        }
    }
}

struct Floats<'a, E> {
    part: Part<'a>,
    input: &'a [f32],
    element: PhantomData<E>,
}

impl<'a, E: Element> Floats<'a, E> {
    fn new(
        product: &'a Product<'a>,
        segment: &'a Segment,
        tiles: Range<usize>,
        input: &'a [f32],
    ) -> Self {
        let part = Part { product, segment, from: tiles.start, to: tiles.end };
        Self { part, input, element: PhantomData }
    }
}

impl<E: Element> Work for Floats<'_, E> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let part = self.part;
        let columns = part.product.weights.columns();
        let rows = part.product.rows;
        let mut results = Results::default();
        let per_pass = rows_per_pass(4 * columns);
        for start in (0..rows).step_by(per_pass) {
            let end = rows.min(start + per_pass);
            for tile in part.from..part.to {
                let weights = part.weights(tile);
                let mut row = start;
                macro_rules! rows {
                    ($count:literal) => {{
                        let x = self.input[row * columns..].as_ptr();
                        // SAFETY: the segment has `to` tiles of `columns` times 32 elements, and
                        // the input has `rows` rows of `columns`: `Product::check`.
                        unsafe {
                            let (tile, results) = (weights.as_ptr(), &mut results);
                            float::Tile::<E, $count>::run(
                                s, tile, columns, x, columns, false, results,
                            );
                        }
                        $count
                    }};
                }
                while row < end {
                    // Six rows times two vectors are chains enough to hide the latency of their
                    // sums, and six lines of the cache stay in it when rows are whole pages apart;
                    // twelve did not.
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

impl Part<'_> {
    /// The bytes of one tile.
    #[inline(always)]
    fn weights(&self, tile: usize) -> &[u8] {
        let bytes = self.segment.tile_bytes;
        &self.segment.packed()[tile * bytes..][..bytes]
    }
}

/// Adds the bias, applies what follows, and stores the results of one tile for some rows.
pub(super) struct Finish<'a> {
    pub(super) part: Part<'a>,
    pub(super) tile: usize,
    pub(super) row: usize,
    pub(super) results: &'a [[f32; TILE_ROWS]],
}

impl Work for Finish<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self { part, tile, row, results } = self;
        let segment = part.segment;
        let Product { ref output, bias, then, weights, .. } = *part.product;
        let gate = match then {
            Then::Gate(_) => true,
            Then::Store | Then::Add | Then::Activate(_) | Then::Alternate => false,
        };
        let width = if gate { HALF_ROWS } else { TILE_ROWS };
        let column = segment.first_row + tile * width;
        let count = match then {
            Then::Gate(_) => width.min(weights.rows() / 2 - column),
            // Rows that only fill the last tile are zeros, and stored as such.
            Then::Alternate => width,
            _ => width.min(segment.first_row + segment.rows - column),
        };
        let mut biases = [0.0; TILE_ROWS];
        if let Some(bias) = bias {
            if weights.order() == Order::Gated {
                let (gates, ups) = bias.split_at(weights.rows() / 2);
                let first = tile * HALF_ROWS;
                let count = HALF_ROWS.min(gates.len() - first);
                biases[..count].copy_from_slice(&gates[first..first + count]);
                biases[HALF_ROWS..][..count].copy_from_slice(&ups[first..first + count]);
            } else {
                biases[..count].copy_from_slice(&bias[column..column + count]);
            }
        }
        for (r, results) in results.iter().enumerate() {
            let mut values = [0.0; TILE_ROWS];
            for at in (0..width).step_by(S::LANES) {
                // SAFETY: `at + LANES <= width <= TILE_ROWS`, and `HALF_ROWS` more only where
                // `width` is that.
                unsafe {
                    let mut value = s.load(results.as_ptr().add(at));
                    if bias.is_some() {
                        value = s.add(value, s.load(biases.as_ptr().add(at)));
                    }
                    if let Then::Activate(activation) | Then::Gate(activation) = then {
                        value = activate(s, activation, value);
                    }
                    if gate {
                        let at = HALF_ROWS + at;
                        let mut up = s.load(results.as_ptr().add(at));
                        if bias.is_some() {
                            up = s.add(up, s.load(biases.as_ptr().add(at)));
                        }
                        value = s.mul(value, up);
                    }
                    s.store(values.as_mut_ptr().add(at), value);
                }
            }
            // SAFETY: `Product::check` found the output large enough for `rows` rows up to `end`;
            // the columns are this thread's alone by the promise of `Product::run`'s caller.
            unsafe {
                let to = output.to.add((row + r) * output.stride + column);
                if count == width {
                    for at in (0..width).step_by(S::LANES) {
                        let mut value = s.load(values.as_ptr().add(at));
                        if then == Then::Add {
                            value = s.add(s.load(to.add(at)), value);
                        }
                        s.store(to.add(at), value);
                    }
                } else {
                    for (i, value) in values[..count].iter().enumerate() {
                        let before = if then == Then::Add { *to.add(i) } else { 0.0 };
                        let value = if then == Then::Add { before + value } else { *value };
                        to.add(i).write(value);
                    }
                }
            }
        }
    }
}
