//! Checks what is to be packed, lays out the memory, and shares the work out by tiles.

use candle_core::quantized::GgmlDType;

use super::arena::Arena;
use super::layout::{Format, HALF_ROWS, TILE_ROWS};
use super::{Order, PackError, PackedMatrix, RawMatrix, Segment, Tiles, tile};

/// Runs `$body` with `$format` standing for the format of a quantised `$dtype`.
macro_rules! with_format {
    ($dtype:expr, $format:ident => $body:expr) => {{
        use candle_core::quantized::GgmlDType as __Type;
        use $crate::cpu::pack::layout as __layout;
        macro_rules! arm {
            ($name:ident) => {{
                type $format = __layout::$name;
                $body
            }};
        }
        match $dtype {
            __Type::Q4_0 => arm!(Q40),
            __Type::Q4_1 => arm!(Q41),
            __Type::Q5_0 => arm!(Q50),
            __Type::Q5_1 => arm!(Q51),
            __Type::Q8_0 => arm!(Q80),
            __Type::Q2K => arm!(Q2K),
            __Type::Q3K => arm!(Q3K),
            __Type::Q4K => arm!(Q4K),
            __Type::Q5K => arm!(Q5K),
            __Type::Q6K => arm!(Q6K),
            other => unreachable!("{other:?} was refused when it was packed"),
        }
    }};
}
pub(crate) use with_format;

/// A matrix whose memory exists and whose tiles are yet to be written.
#[derive(Debug)]
pub struct Packing<'a> {
    matrix: PackedMatrix,
    /// For each segment, the parts whose rows it holds.
    sources: Vec<Vec<RawMatrix<'a>>>,
    /// Parts widened to f32, where types could not be mixed; then the sources are these.
    widened: Vec<(usize, Vec<u8>)>,
}

/// Some tiles of one [`Packing`], to be written by whichever thread has time.
#[derive(Debug)]
pub struct PackJob<'a> {
    dtype: GgmlDType,
    order: Order,
    parts: Vec<RawMatrix<'a>>,
    first_tile: usize,
    tile_bytes: usize,
    out: &'a mut [u8],
}

impl<'a> Packing<'a> {
    /// Checks shapes, types and lengths, and takes memory from `arena`.
    ///
    /// # Errors
    /// See [`PackError`].
    pub fn new(
        parts: &[RawMatrix<'a>],
        order: Order,
        arena: &mut Arena,
    ) -> Result<Self, PackError> {
        let Some(first) = parts.first() else {
            return Err(PackError::Empty { rows: 0, columns: 0 });
        };
        for part in parts {
            check(part)?;
            let fits = match order {
                Order::Concatenated => part.columns == first.columns,
                Order::Gated => (part.rows, part.columns) == (first.rows, first.columns),
            };
            if !fits || (order == Order::Gated && parts.len() != 2) {
                let (first, other) = ((first.rows, first.columns), (part.rows, part.columns));
                return Err(PackError::Shapes { first, other });
            }
        }
        let differ = parts.iter().any(|part| part.dtype != first.dtype);
        let mixed = parts.iter().any(|part| is_float(part.dtype) != is_float(first.dtype));
        let mut widened = Vec::new();
        if mixed || (differ && order == Order::Gated) {
            for part in parts {
                widened.push((part.rows, widen(part)?));
            }
        }
        let groups = if widened.is_empty() { group(parts, order) } else { vec![Vec::new()] };
        let shape = |parts: &[RawMatrix<'_>]| (parts[0].dtype, parts.iter().map(|p| p.rows).sum());
        let mut matrix = PackedMatrix {
            rows: parts.iter().map(|part| part.rows).sum(),
            columns: first.columns,
            order,
            tiles: 0,
            segments: Vec::with_capacity(groups.len()),
        };
        let mut first_row = 0;
        for parts in &groups {
            let (dtype, rows) =
                if parts.is_empty() { (GgmlDType::F32, matrix.rows) } else { shape(parts) };
            let segment = segment(&matrix, dtype, first_row, rows, arena)?;
            first_row += rows;
            matrix.tiles += segment.tiles;
            matrix.segments.push(segment);
        }
        Ok(Self { matrix, sources: groups, widened })
    }

    /// Splits the work into at most about `count` jobs of equal size (one more where element types
    /// change). All of them have to be run before [`Packing::finish`].
    pub fn jobs(&mut self, count: usize) -> Vec<PackJob<'_>> {
        let per_job = self.matrix.tiles.div_ceil(count.max(1)).max(1);
        let (order, columns) = (self.matrix.order, self.matrix.columns);
        let mut jobs = Vec::new();
        for (segment, sources) in self.matrix.segments.iter_mut().zip(&self.sources) {
            let parts: Vec<RawMatrix<'_>> = if self.widened.is_empty() {
                sources.clone()
            } else {
                let dtype = GgmlDType::F32;
                let parts = self.widened.iter();
                parts
                    .map(|(rows, bytes)| RawMatrix { dtype, rows: *rows, columns, bytes })
                    .collect()
            };
            let Tiles::Packed(room) = &mut segment.data else { continue };
            let chunks = room.chunks_mut(per_job * segment.tile_bytes);
            jobs.extend(chunks.enumerate().map(|(i, out)| PackJob {
                dtype: segment.dtype,
                order,
                parts: parts.clone(),
                first_tile: i * per_job,
                tile_bytes: segment.tile_bytes,
                out,
            }));
        }
        jobs
    }

    /// The matrix. Tiles whose job was not run are rows of zeros.
    pub fn finish(self) -> PackedMatrix {
        self.matrix
    }
}

impl<'a> PackJob<'a> {
    /// Writes the tiles.
    pub fn run(self) {
        let Self { dtype, order, parts, first_tile, tile_bytes, out } = self;
        for (i, tile) in out.chunks_exact_mut(tile_bytes).enumerate() {
            let rows: [Option<&[u8]>; TILE_ROWS] =
                std::array::from_fn(|row| source_row(&parts, order, first_tile + i, row));
            match dtype {
                GgmlDType::F32 => tile::write_floats::<4>(&rows, tile),
                GgmlDType::F16 | GgmlDType::BF16 => tile::write_floats::<2>(&rows, tile),
                _ => with_format!(dtype, F => tile::write_rows::<F>(&rows, tile)),
            }
        }
    }

    /// Bytes of the source that [`PackJob::run`] reads, a stretch for each part that has some.
    pub fn sources(&self) -> impl Iterator<Item = &'a [u8]> {
        let tiles = self.out.len() / self.tile_bytes;
        let height = match self.order {
            Order::Concatenated => TILE_ROWS,
            Order::Gated => HALF_ROWS,
        };
        let (from, to) = (self.first_tile * height, (self.first_tile + tiles) * height);
        let mut before = 0;
        self.parts.iter().map(move |part| {
            let row_bytes = part.bytes.len() / part.rows;
            let row = |row: usize| row.saturating_sub(before).min(part.rows) * row_bytes;
            let bytes = &part.bytes[row(from)..row(to)];
            if self.order == Order::Concatenated {
                before += part.rows;
            }
            bytes
        })
    }
}

fn is_float(dtype: GgmlDType) -> bool {
    matches!(dtype, GgmlDType::F32 | GgmlDType::F16 | GgmlDType::BF16)
}

/// Refuses what has no kernel, no elements, or not the bytes that its shape needs.
fn check(part: &RawMatrix<'_>) -> Result<(), PackError> {
    let RawMatrix { dtype, rows, columns, bytes } = *part;
    if matches!(dtype, GgmlDType::Q8_1 | GgmlDType::Q8K) {
        return Err(PackError::UnsupportedType { dtype });
    }
    if rows == 0 || columns == 0 {
        return Err(PackError::Empty { rows, columns });
    }
    let block = dtype.block_size();
    if !columns.is_multiple_of(block) {
        return Err(PackError::PartialBlock { columns, block, dtype });
    }
    let row_bytes = (columns / block).checked_mul(dtype.type_size());
    let expected = row_bytes.and_then(|bytes| bytes.checked_mul(rows)).unwrap_or(usize::MAX);
    if expected != bytes.len() {
        return Err(PackError::Length { dtype, rows, columns, expected, found: bytes.len() });
    }
    Ok(())
}

/// Runs of parts of one type; with [`Order::Gated`] the two are one.
fn group<'a>(parts: &[RawMatrix<'a>], order: Order) -> Vec<Vec<RawMatrix<'a>>> {
    if order == Order::Gated {
        return vec![parts.to_vec()];
    }
    parts.chunk_by(|a, b| a.dtype == b.dtype).map(<[_]>::to_vec).collect()
}

/// All rows of `part` as little-endian f32.
fn widen(part: &RawMatrix<'_>) -> Result<Vec<u8>, PackError> {
    let packed = PackedMatrix::pack(&[*part], Order::Concatenated)?;
    let mut row = vec![0.0; part.columns];
    let mut bytes = Vec::with_capacity(4 * part.rows * part.columns);
    for index in 0..part.rows {
        packed.row_into(index, &mut row);
        bytes.extend(row.iter().flat_map(|x| x.to_le_bytes()));
    }
    Ok(bytes)
}

/// Allocates the tiles of `rows` rows after those that `matrix` has.
fn segment(
    matrix: &PackedMatrix,
    dtype: GgmlDType,
    first_row: usize,
    rows: usize,
    arena: &mut Arena,
) -> Result<Segment, PackError> {
    let tiles = match matrix.order {
        Order::Concatenated => rows.div_ceil(TILE_ROWS),
        Order::Gated => (rows / 2).div_ceil(HALF_ROWS),
    };
    let tile_bytes = match dtype {
        GgmlDType::F32 => matrix.columns.checked_mul(4 * TILE_ROWS),
        GgmlDType::F16 | GgmlDType::BF16 => matrix.columns.checked_mul(2 * TILE_ROWS),
        _ => with_format!(dtype, F => {
            let layout = <F as Format>::LAYOUT;
            (matrix.columns / layout.inputs()).checked_mul(layout.bytes())
        }),
    };
    let bytes = tile_bytes.and_then(|bytes| bytes.checked_mul(tiles)).unwrap_or(usize::MAX);
    let refused = |source| PackError::Memory { bytes, source };
    if bytes > isize::MAX as usize {
        return Err(refused(std::io::ErrorKind::OutOfMemory.into()));
    }
    let data = arena.room(bytes).map_err(refused)?;
    Ok(Segment {
        dtype,
        first_tile: matrix.tiles,
        tiles,
        first_row,
        rows,
        tile_bytes: bytes / tiles,
        data: Tiles::Packed(data),
    })
}

/// The bytes of the row that belongs at `row` of tile `tile`, where there is one.
fn source_row<'a>(
    parts: &[RawMatrix<'a>],
    order: Order,
    tile: usize,
    row: usize,
) -> Option<&'a [u8]> {
    let (part, row) = match order {
        Order::Gated => {
            let row_in_part = tile * HALF_ROWS + row % HALF_ROWS;
            (parts.get(row / HALF_ROWS)?, row_in_part)
        }
        Order::Concatenated => {
            let mut row = tile * TILE_ROWS + row;
            let part = parts.iter().find(|part| {
                let here = row < part.rows;
                if !here {
                    row -= part.rows;
                }
                here
            })?;
            (part, row)
        }
    };
    let row_bytes = part.bytes.len() / part.rows;
    (row < part.rows).then(|| &part.bytes[row * row_bytes..][..row_bytes])
}
