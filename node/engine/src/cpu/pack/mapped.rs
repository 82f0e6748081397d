//! F32 weights that stay where they are: in a mapped file, row after row.
//!
//! They are as large in memory as in the file, so a copy would cost the time to make it and gain little; see
//! [`in_place`](super::super::kernels) for how they are multiplied. The file has to stay as it is for as long as the model is loaded,
//! which is what a store of files by their contents promises.

use std::ops::Range;
use std::sync::Arc;

use memmap2::Mmap;

use super::layout::{HALF_ROWS, TILE_ROWS};
use super::{GgmlDType, Order, PackedMatrix, Segment, Tiles};

/// One matrix of F32 in a mapped file.
#[derive(Clone, Debug)]
pub(crate) struct MappedRows {
    pub(crate) file: Arc<Mmap>,
    /// Where the file has it.
    pub(crate) range: Range<usize>,
    pub(crate) rows: usize,
}

/// The rows of one tile: two times sixteen, each run in one piece.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Halves<'a> {
    pub(crate) rows: [&'a [u8]; 2],
}

/// Several of them as one matrix.
#[derive(Debug)]
pub(crate) struct Mapped {
    parts: Vec<MappedRows>,
    order: Order,
    row_bytes: usize,
}

impl MappedRows {
    fn bytes(&self) -> &[u8] {
        self.file.get(self.range.clone()).unwrap_or_default()
    }
}

impl Mapped {
    /// The rows of a tile.
    ///
    /// # Panics
    /// When it does not exist.
    pub(crate) fn halves(&self, tile: usize) -> Halves<'_> {
        match self.order {
            Order::Gated => {
                let part = |part: usize| self.run(&self.parts[part], tile * HALF_ROWS);
                Halves { rows: [part(0), part(1)] }
            }
            Order::Concatenated => {
                let mut row = tile * TILE_ROWS;
                // Parts are whole tiles, so both halves are of one.
                let part = self.parts.iter().find(|part| {
                    let here = row < part.rows;
                    if !here {
                        row -= part.rows;
                    }
                    here
                });
                let part = part.unwrap_or_else(|| panic!("tile {tile} does not exist"));
                Halves { rows: [self.run(part, row), self.run(part, row + HALF_ROWS)] }
            }
        }
    }

    fn run<'a>(&self, part: &'a MappedRows, row: usize) -> &'a [u8] {
        &part.bytes()[row * self.row_bytes..][..HALF_ROWS * self.row_bytes]
    }
}

impl PackedMatrix {
    /// A matrix of F32 weights that are used where they are; None where they cannot be, because they are not whole tiles.
    pub(crate) fn in_place(parts: &[MappedRows], columns: usize, order: Order) -> Option<Self> {
        let unit = if order == Order::Gated { HALF_ROWS } else { TILE_ROWS };
        let row_bytes = columns.checked_mul(4)?;
        let whole = parts.iter().all(|part| {
            let bytes = part.rows.checked_mul(row_bytes);
            part.rows > 0 && part.rows.is_multiple_of(unit) && bytes == Some(part.bytes().len())
        });
        let gated = order == Order::Gated && (parts.len() != 2 || parts[0].rows != parts[1].rows);
        if !whole || gated || parts.is_empty() || columns == 0 || !columns.is_multiple_of(16) {
            return None;
        }
        let rows: usize = parts.iter().map(|part| part.rows).sum();
        let segment = Segment {
            dtype: GgmlDType::F32,
            first_tile: 0,
            tiles: rows / TILE_ROWS,
            first_row: 0,
            rows,
            tile_bytes: TILE_ROWS * row_bytes,
            data: Tiles::Mapped(Mapped { parts: parts.to_vec(), order, row_bytes }),
        };
        Some(Self { rows, columns, order, tiles: segment.tiles, segments: vec![segment] })
    }
}
