//! Weights, repacked once at load into the tiles that the kernels stream.
//!
//! Packing moves bits and rounds nothing: [`PackedMatrix::row_into`] gives exactly what ggml's (and
//! candle's) dequantisation of the same row gives. One layout serves all instruction sets.

mod arena;
mod ggml;
pub(crate) mod layout;
pub(crate) mod mapped;
mod plan;
#[cfg(test)]
pub(crate) mod tests;
mod tile;

use std::ops::Range;

use candle_core::quantized::GgmlDType;

pub use self::arena::Arena;
use self::arena::Room;
use self::layout::{BLOCK, HALF_ROWS, TILE_ROWS};
use self::mapped::{Halves, Mapped};
pub(crate) use self::plan::with_format;
pub use self::plan::{PackJob, Packing};
use super::kernels::{bf16_to_f32, f16_to_f32};

/// One weight matrix as a file holds it.
///
/// # Shapes
/// (rows, columns), row-major: `rows` outputs, each over `columns` inputs.
#[derive(Clone, Copy, Debug)]
pub struct RawMatrix<'a> {
    /// How the elements are encoded.
    pub dtype: GgmlDType,
    /// Outputs.
    pub rows: usize,
    /// Inputs.
    pub columns: usize,
    /// The elements; for quantised types, ggml's blocks.
    pub bytes: &'a [u8],
}

/// How the rows of several matrices are put together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// One after the other: the output is theirs side by side.
    Concatenated,
    /// Two matrices of one shape, sixteen rows of the first, then sixteen of the second: what
    /// [`Then::Gate`](super::kernels::Then::Gate) wants.
    Gated,
}

/// What a matrix wants its activations as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InputKind {
    /// [`QuantBlock`](super::kernels::QuantBlock)s.
    Quantised,
    /// f32.
    Float,
}

/// Why a matrix cannot be packed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PackError {
    /// The element type has no kernel.
    #[error("weights of type {dtype:?} are not supported")]
    UnsupportedType {
        /// The type asked for.
        dtype: GgmlDType,
    },
    /// There are no weights.
    #[error("a matrix of {rows} x {columns} has no elements")]
    Empty {
        /// Outputs.
        rows: usize,
        /// Inputs.
        columns: usize,
    },
    /// A row is not a whole number of the type's blocks.
    #[error("rows of {columns} elements are not a multiple of {block}, as {dtype:?} needs")]
    PartialBlock {
        /// Inputs.
        columns: usize,
        /// Elements of one block.
        block: usize,
        /// The element type.
        dtype: GgmlDType,
    },
    /// The bytes are not as many as the shape says.
    #[error("a {dtype:?} matrix of {rows} x {columns} takes {expected} bytes, not {found}")]
    Length {
        /// The element type.
        dtype: GgmlDType,
        /// Outputs.
        rows: usize,
        /// Inputs.
        columns: usize,
        /// Bytes that the shape needs; saturated.
        expected: usize,
        /// Bytes that there are.
        found: usize,
    },
    /// Matrices that are to be put together have different shapes.
    #[error("matrices of {first:?} and {other:?} (rows, columns) cannot be packed together")]
    Shapes {
        /// Shape of the first.
        first: (usize, usize),
        /// The one that does not fit it.
        other: (usize, usize),
    },
    /// The system gave no memory.
    #[error("no memory for {bytes} bytes of packed weights")]
    Memory {
        /// How much was asked for; saturated.
        bytes: usize,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
}

/// A matrix in tiles, ready to multiply.
#[derive(Debug)]
pub struct PackedMatrix {
    rows: usize,
    columns: usize,
    order: Order,
    tiles: usize,
    /// Runs of tiles of one type; in the order of rows, each starting at a tile.
    segments: Vec<Segment>,
}

/// Tiles of one element type.
#[derive(Debug)]
pub(crate) struct Segment {
    pub(crate) dtype: GgmlDType,
    /// Number of the first tile within the matrix.
    pub(crate) first_tile: usize,
    pub(crate) tiles: usize,
    /// First row of the matrix, or with [`Order::Gated`] 0.
    pub(crate) first_row: usize,
    /// Rows that exist; the last tile may have fewer than its 32.
    pub(crate) rows: usize,
    pub(crate) tile_bytes: usize,
    data: Tiles,
}

/// Where the weights of a segment are.
#[derive(Debug)]
enum Tiles {
    /// In tiles, aligned to a cache line.
    Packed(Room),
    /// In a file, row after row.
    Mapped(Mapped),
}

impl Segment {
    /// The bytes of all tiles; none if they were not packed.
    pub(crate) fn packed(&self) -> &[u8] {
        match &self.data {
            Tiles::Packed(room) => room,
            Tiles::Mapped(_) => &[],
        }
    }

    /// Whether weights are to be turned when they are used, because they were not packed.
    pub(crate) fn turned(&self) -> bool {
        matches!(self.data, Tiles::Mapped(_))
    }

    /// The rows of a tile that was not packed.
    ///
    /// # Panics
    /// When it was, or does not exist.
    pub(crate) fn halves(&self, tile: usize) -> Halves<'_> {
        match &self.data {
            Tiles::Packed(_) => panic!("packed weights have no rows"),
            Tiles::Mapped(mapped) => mapped.halves(tile),
        }
    }
}

impl PackedMatrix {
    /// Packs `parts`, on the calling thread.
    ///
    /// Takes about the bytes of the source: between 1.0 and 1.2 times (2-bit K-quants, whose
    /// sub-scales become bytes), after rounding rows up to 32. Where quantised and float parts are
    /// mixed, or gate and up differ in type, all become f32.
    ///
    /// # Errors
    /// See [`PackError`]; no input is read beyond its length.
    pub fn pack(parts: &[RawMatrix<'_>], order: Order) -> Result<Self, PackError> {
        let mut packing = Packing::new(parts, order, &mut Arena::for_matrix())?;
        for job in packing.jobs(1) {
            job.run();
        }
        Ok(packing.finish())
    }

    /// Outputs, of all parts together.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Inputs.
    pub fn columns(&self) -> usize {
        self.columns
    }

    /// How the parts were put together.
    pub fn order(&self) -> Order {
        self.order
    }

    /// Tiles: the units in which a product is shared out among threads.
    pub fn tiles(&self) -> usize {
        self.tiles
    }

    /// What activations have to be to be multiplied with this matrix.
    pub fn input(&self) -> InputKind {
        match self.segments.first().map(|segment| segment.dtype) {
            Some(GgmlDType::F32 | GgmlDType::F16 | GgmlDType::BF16) | None => InputKind::Float,
            Some(_) => InputKind::Quantised,
        }
    }

    /// Bytes in memory.
    pub fn bytes(&self) -> usize {
        self.segments.iter().map(|segment| segment.tiles * segment.tile_bytes).sum()
    }

    /// Dequantises row `row` into `out`.
    ///
    /// Bit for bit what ggml's dequantisation gives.
    ///
    /// # Panics
    /// When `row` does not exist or `out` is not as long as a row.
    pub fn row_into(&self, row: usize, out: &mut [f32]) {
        assert!(row < self.rows, "row {row} of {}", self.rows);
        assert_eq!(out.len(), self.columns, "the length of a row");
        let (segment, tile, row) = self.locate(row);
        if segment.turned() {
            let half = segment.halves(tile).rows[row / HALF_ROWS];
            let values = half[row % HALF_ROWS * 4 * self.columns..].as_chunks::<4>().0;
            out.iter_mut().zip(values).for_each(|(out, value)| *out = f32::from_le_bytes(*value));
            return;
        }
        let tile = &segment.packed()[tile * segment.tile_bytes..][..segment.tile_bytes];
        match segment.dtype {
            GgmlDType::F32 => {
                for (i, out) in out.iter_mut().enumerate() {
                    let at = 4 * (i * TILE_ROWS + row);
                    *out = f32::from_le_bytes([tile[at], tile[at + 1], tile[at + 2], tile[at + 3]]);
                }
            }
            GgmlDType::F16 | GgmlDType::BF16 => {
                let widen = if segment.dtype == GgmlDType::F16 { f16_to_f32 } else { bf16_to_f32 };
                for (i, out) in out.iter_mut().enumerate() {
                    let at = 2 * (i * TILE_ROWS + row);
                    *out = widen(u16::from_le_bytes([tile[at], tile[at + 1]]));
                }
            }
            dtype => with_format!(dtype, F => tile::read_row::<F>(tile, row, out)),
        }
    }

    /// The bytes that a product of `tiles` begins with: all of theirs, or as far as they are of one type.
    pub(crate) fn bytes_of(&self, tiles: Range<usize>) -> &[u8] {
        let found = self.segments.iter().find(|segment| {
            (segment.first_tile..segment.first_tile + segment.tiles).contains(&tiles.start)
        });
        let Some(segment) = found else { return &[] };
        let (from, to) = (tiles.start - segment.first_tile, tiles.end - segment.first_tile);
        if segment.turned() {
            // Of one part and of the first tile only, which is as much as is asked for.
            return if from < segment.tiles { segment.halves(from).rows[0] } else { &[] };
        }
        &segment.packed()[from * segment.tile_bytes..to.min(segment.tiles) * segment.tile_bytes]
    }

    /// The runs of tiles.
    pub(crate) fn segments(&self) -> &[Segment] {
        &self.segments
    }

    /// Segment, tile within it, and row within that, of row `row`.
    fn locate(&self, row: usize) -> (&Segment, usize, usize) {
        if self.order == Order::Gated {
            let half = self.rows / 2;
            let (row, second) = if row < half { (row, 0) } else { (row - half, HALF_ROWS) };
            return (&self.segments[0], row / HALF_ROWS, row % HALF_ROWS + second);
        }
        let at = self.segments.partition_point(|segment| segment.first_row <= row) - 1;
        let segment = &self.segments[at];
        let row = row - segment.first_row;
        (segment, row / TILE_ROWS, row % TILE_ROWS)
    }
}

/// Blocks of activations in one row of `columns` inputs.
pub fn blocks_per_row(columns: usize) -> usize {
    columns.div_ceil(BLOCK)
}
