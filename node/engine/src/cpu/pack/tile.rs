//! Writes ggml blocks into tiles, and reads single rows back out of them.

use super::ggml::{self, Codes};
use super::layout::{BLOCK, Format, HALF_ROWS, Layout, SubScales, TILE_ROWS};
use crate::cpu::kernels::f16_to_f32;

/// Writes a tile from the ggml blocks of its rows. Rows that do not exist stay zero, which is a row of zero weights,
/// because its scales are zero.
pub(super) fn write_rows<F: Format>(rows: &[Option<&[u8]>; TILE_ROWS], tile: &mut [u8]) {
    let block_bytes = const { ggml::block_bytes(F::DTYPE) };
    // Block by block, so that what is written stays in the first-level cache until it is complete.
    for (number, out) in tile.chunks_exact_mut(const { F::LAYOUT.bytes() }).enumerate() {
        for (row, source) in rows.iter().enumerate() {
            if let Some(source) = source {
                write_block::<F>(&source[number * block_bytes..][..block_bytes], out, row);
            }
        }
    }
}

/// Writes one block of row `row` (0..32).
#[inline(always)]
fn write_block<F: Format>(block: &[u8], out: &mut [u8], row: usize) {
    let (dtype, layout) = (F::DTYPE, F::LAYOUT);
    let (scale, min) = ggml::scales(dtype, block);
    put(out, layout.scales_at() + 2 * row, &scale.to_le_bytes());
    if layout.min {
        put(out, layout.mins_at() + 2 * row, &min.to_le_bytes());
    }
    if layout.sub_scales != SubScales::None {
        let segments = ggml::segments(dtype, block);
        for segment in 0..layout.segments() {
            let at = segment * TILE_ROWS + row;
            out[at] = segments.scales[segment];
            if layout.min {
                out[layout.sub_mins_at() + at] = segments.mins[segment];
            }
        }
    }
    for sub in 0..layout.subs {
        write_codes(&layout, &ggml::codes(dtype, block, sub), out, sub, row);
    }
}

/// Writes a tile of floats of `N` bytes each: for each input, the value of all 32 rows.
pub(super) fn write_floats<const N: usize>(rows: &[Option<&[u8]>; TILE_ROWS], tile: &mut [u8]) {
    /// Inputs written at a time, so that the lines written stay in the first-level cache.
    const RUN: usize = 32;
    for (run, out) in tile.chunks_mut(RUN * TILE_ROWS * N).enumerate() {
        for (row, source) in rows.iter().enumerate() {
            let Some(source) = source else { continue };
            let (values, _) = source[run * RUN * N..].as_chunks::<N>();
            let (out, _) = out.as_chunks_mut::<N>();
            for (value, out) in values.iter().zip(out[row..].iter_mut().step_by(TILE_ROWS)) {
                *out = *value;
            }
        }
    }
}

/// Dequantises one row of a tile, each weight rounded as ggml rounds it.
pub(super) fn read_row<F: Format>(tile: &[u8], row: usize, out: &mut [f32]) {
    let layout = F::LAYOUT;
    for (block, out) in tile.chunks_exact(layout.bytes()).zip(out.chunks_exact_mut(layout.inputs()))
    {
        let half = |at: usize| f16_to_f32(u16::from_le_bytes([block[at], block[at + 1]]));
        let scale = half(layout.scales_at() + 2 * row);
        let min = if layout.min { half(layout.mins_at() + 2 * row) } else { 0.0 };
        for (segment, out) in out.chunks_exact_mut(layout.segment).enumerate() {
            let at = segment * TILE_ROWS + row;
            let scale = match layout.sub_scales {
                SubScales::None => scale,
                SubScales::Unsigned => scale * f32::from(block[at]),
                SubScales::Signed => scale * f32::from(block[at] as i8),
            };
            let min = match layout.sub_scales {
                _ if !layout.min => None,
                SubScales::None => Some(min),
                _ => Some(min * f32::from(block[layout.sub_mins_at() + at])),
            };
            for (i, out) in out.iter_mut().enumerate() {
                let input = segment * layout.segment + i;
                let code = read_code(&layout, block, input / BLOCK, row, input % BLOCK);
                let product = scale * (i32::from(code) - layout.offset as i32) as f32;
                *out = min.map_or(product, |min| product + min);
            }
        }
    }
}

#[inline(always)]
fn put<const N: usize>(out: &mut [u8], at: usize, bytes: &[u8; N]) {
    out[at..at + N].copy_from_slice(bytes);
}

/// Spreads eight words of codes over the planes.
#[inline(always)]
fn write_codes(layout: &Layout, codes: &Codes, out: &mut [u8], sub: usize, row: usize) {
    let (half, byte) = (row / HALF_ROWS, row % HALF_ROWS * 4);
    let low = layout.low_at(sub, half) + byte;
    match layout.low_bits {
        8 => {
            for (group, code) in codes.iter().enumerate() {
                put(out, low + 64 * group, &code.to_le_bytes());
            }
        }
        4 => {
            for group in 0..4 {
                let both = codes[group] & 0x0f0f_0f0f | (codes[group + 4] & 0x0f0f_0f0f) << 4;
                put(out, low + 64 * group, &both.to_le_bytes());
            }
        }
        _ => write_pairs(codes, 0, out, low),
    }
    let high = layout.high_at(sub, half) + byte;
    match layout.high_bits {
        2 => write_pairs(codes, layout.low_bits, out, high),
        1 => {
            let bits = (0..8).fold(0, |bits, group| {
                bits | (codes[group] >> layout.low_bits & 0x0101_0101) << group
            });
            put(out, high, &bits.to_le_bytes());
        }
        _ => {}
    }
}

#[inline(always)]
fn write_pairs(codes: &Codes, shift: u32, out: &mut [u8], at: usize) {
    for vector in 0..2 {
        let bits = (0..4)
            .fold(0, |bits, i| bits | (codes[4 * vector + i] >> shift & 0x0303_0303) << (2 * i));
        put(out, at + 64 * vector, &bits.to_le_bytes());
    }
}

/// The code of one weight.
#[inline(always)]
fn read_code(layout: &Layout, block: &[u8], sub: usize, row: usize, input: usize) -> u8 {
    let (half, group) = (row / HALF_ROWS, input / 4);
    let byte = row % HALF_ROWS * 4 + input % 4;
    let plane = |at: usize, bits: u32| match bits {
        8 => block[at + 64 * group + byte],
        4 => block[at + 64 * (group % 4) + byte] >> (group / 4 * 4) & 15,
        2 => block[at + 64 * (group / 4) + byte] >> (group % 4 * 2) & 3,
        _ => block[at + byte] >> group & 1,
    };
    let low = plane(layout.low_at(sub, half), layout.low_bits);
    if layout.high_bits == 0 {
        return low;
    }
    low | plane(layout.high_at(sub, half), layout.high_bits) << layout.low_bits
}
