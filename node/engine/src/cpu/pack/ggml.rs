//! Reads ggml's quantised blocks into codes and scales, without any rounding.
//!
//! Source of the block formats: `ggml-common.h` and `ggml-quants.c` of llama.cpp.

use candle_core::quantized::GgmlDType;

/// Thirty-two codes of one row, four to a word in the order of inputs, and what scales them.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Sub {
    /// Byte `c` of word `g` is the code of input `4 g + c`, as [`super::layout::Layout`] offsets
    /// it.
    pub(super) codes: [u32; 8],
    /// Sub-scales of the first and second 16 inputs (equal where the segment is 32).
    pub(super) scales: [u8; 2],
    /// Sub-minima, likewise.
    pub(super) mins: [u8; 2],
}

/// Bytes of one ggml block. What candle's `type_size` says (a test compares them), but known when
/// the packer is compiled, which spares it a check at every word that it reads.
pub(super) const fn block_bytes(dtype: GgmlDType) -> usize {
    match dtype {
        GgmlDType::Q4_0 => 18,
        GgmlDType::Q4_1 => 20,
        GgmlDType::Q5_0 => 22,
        GgmlDType::Q5_1 => 24,
        GgmlDType::Q8_0 => 34,
        GgmlDType::Q2K => 84,
        GgmlDType::Q3K => 110,
        GgmlDType::Q4K => 144,
        GgmlDType::Q5K => 176,
        GgmlDType::Q6K => 210,
        _ => panic!("not a type of blocks that is packed"),
    }
}

/// The f16 bits of a block's scale and of what is added per unit of sub-minimum.
#[inline(always)]
pub(super) fn scales(dtype: GgmlDType, block: &[u8]) -> (u16, u16) {
    let half = |at: usize| u16::from_le_bytes([block[at], block[at + 1]]);
    match dtype {
        GgmlDType::Q4_1 | GgmlDType::Q5_1 => (half(0), half(2)),
        // The K-quants subtract their minima; a flipped sign makes that an addition.
        GgmlDType::Q4K | GgmlDType::Q5K => (half(0), half(2) ^ 0x8000),
        GgmlDType::Q2K => (half(80), half(82) ^ 0x8000),
        GgmlDType::Q3K => (half(108), 0),
        GgmlDType::Q6K => (half(208), 0),
        _ => (half(0), 0),
    }
}

/// The codes of inputs `32 sub ..` of a block.
#[inline(always)]
pub(super) fn sub(dtype: GgmlDType, block: &[u8], sub: usize) -> Sub {
    match dtype {
        GgmlDType::Q4_0 => plain(nibbles(&block[2..18])),
        GgmlDType::Q4_1 => plain(nibbles(&block[4..20])),
        GgmlDType::Q5_0 => plain(with_bits(nibbles(&block[6..22]), word(block, 2))),
        GgmlDType::Q5_1 => plain(with_bits(nibbles(&block[8..24]), word(block, 4))),
        GgmlDType::Q8_0 => {
            plain(std::array::from_fn(|group| word(block, 2 + 4 * group) ^ 0x8080_8080))
        }
        GgmlDType::Q2K => q2k(block, sub),
        GgmlDType::Q3K => q3k(block, sub),
        GgmlDType::Q4K => {
            let codes = k_nibbles(&block[16..144], sub);
            with_scale(codes, &block[4..16], sub)
        }
        GgmlDType::Q5K => {
            let low = k_nibbles(&block[48..176], sub);
            let high = &block[16..48];
            let codes = std::array::from_fn(|group| {
                low[group] | (word(high, 4 * group) >> sub & 0x0101_0101) << 4
            });
            with_scale(codes, &block[4..16], sub)
        }
        GgmlDType::Q6K => q6k(block, sub),
        // The packer admits no other type; codes of zero would show in every test.
        _ => Sub::default(),
    }
}

#[inline(always)]
fn word(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

#[inline(always)]
fn plain(codes: [u32; 8]) -> Sub {
    Sub { codes, scales: [1; 2], mins: [1; 2] }
}

/// Low nibbles are inputs 0..16, high nibbles 16..32.
#[inline(always)]
fn nibbles(quants: &[u8]) -> [u32; 8] {
    let mut codes = [0; 8];
    for group in 0..4 {
        let both = word(quants, 4 * group);
        codes[group] = both & 0x0f0f_0f0f;
        codes[group + 4] = both >> 4 & 0x0f0f_0f0f;
    }
    codes
}

/// Adds bit `i` of `bits` as the fifth bit of code `i`.
#[inline(always)]
fn with_bits(mut codes: [u32; 8], bits: u32) -> [u32; 8] {
    for (group, code) in codes.iter_mut().enumerate() {
        let four = bits >> (4 * group) & 15;
        // Copies of the four bits at distances of seven put bit `c` at bit `8 c`.
        *code |= ((four * 0x0020_4081) & 0x0101_0101) << 4;
    }
    codes
}

/// Q4_K and Q5_K: 32 bytes hold two subs, the even one in the low nibbles.
#[inline(always)]
fn k_nibbles(quants: &[u8], sub: usize) -> [u32; 8] {
    let quants = &quants[sub / 2 * 32..][..32];
    std::array::from_fn(|group| word(quants, 4 * group) >> (sub % 2 * 4) & 0x0f0f_0f0f)
}

/// Q4_K and Q5_K: eight 6-bit scales and minima in 12 bytes.
#[inline(always)]
fn with_scale(codes: [u32; 8], packed: &[u8], sub: usize) -> Sub {
    let (scale, min) = if sub < 4 {
        (packed[sub] & 63, packed[sub + 4] & 63)
    } else {
        (
            packed[sub + 4] & 15 | packed[sub - 4] >> 6 << 4,
            packed[sub + 4] >> 4 | packed[sub] >> 6 << 4,
        )
    };
    Sub { codes, scales: [scale; 2], mins: [min; 2] }
}

#[inline(always)]
fn q2k(block: &[u8], sub: usize) -> Sub {
    let quants = &block[16 + sub / 4 * 32..][..32];
    let codes = std::array::from_fn(|group| word(quants, 4 * group) >> (sub % 4 * 2) & 0x0303_0303);
    let [a, b] = [block[2 * sub], block[2 * sub + 1]];
    Sub { codes, scales: [a & 15, b & 15], mins: [a >> 4, b >> 4] }
}

#[inline(always)]
fn q3k(block: &[u8], sub: usize) -> Sub {
    let (high, packed) = (&block[..32], &block[96..108]);
    let quants = &block[32 + sub / 4 * 32..][..32];
    let codes = std::array::from_fn(|group| {
        let low = word(quants, 4 * group) >> (sub % 4 * 2) & 0x0303_0303;
        low | (word(high, 4 * group) >> sub & 0x0101_0101) << 2
    });
    let scale = |index: usize| {
        let low = packed[index % 8] >> (index / 8 * 4) & 15;
        let high = packed[8 + index % 4] >> (index / 4 * 2) & 3;
        (low | high << 4).wrapping_sub(32)
    };
    Sub { codes, scales: [scale(2 * sub), scale(2 * sub + 1)], mins: [0; 2] }
}

#[inline(always)]
fn q6k(block: &[u8], sub: usize) -> Sub {
    let (chunk, quarter) = (sub / 4, sub % 4);
    let low = &block[64 * chunk + quarter % 2 * 32..][..32];
    let high = &block[128 + 32 * chunk..][..32];
    let codes = std::array::from_fn(|group| {
        let four = word(low, 4 * group) >> (quarter / 2 * 4) & 0x0f0f_0f0f;
        four | (word(high, 4 * group) >> (2 * quarter) & 0x0303_0303) << 4
    });
    let at = 192 + 8 * chunk + 2 * quarter;
    Sub { codes, scales: [block[at], block[at + 1]], mins: [0; 2] }
}
