//! Reads ggml's quantised blocks into codes and scales, without any rounding.
//!
//! Source of the block formats: `ggml-common.h` and `ggml-quants.c` of llama.cpp.

use candle_core::quantized::GgmlDType;

/// Thirty-two codes of one row, four to a word in the order of inputs: byte `c` of word `g` is the code of input `4 g + c`, as
/// [`super::layout::Layout`] offsets it.
pub(super) type Codes = [u32; 8];

/// What scales the segments of one block, as many as its layout has.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Segments {
    pub(super) scales: [u8; 16],
    /// Sub-minima.
    pub(super) mins: [u8; 16],
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

/// The sub-scales and sub-minima of a block; nothing for types that have none.
#[inline(always)]
pub(super) fn segments(dtype: GgmlDType, block: &[u8]) -> Segments {
    let mut segments = Segments::default();
    let Segments { scales, mins } = &mut segments;
    match dtype {
        GgmlDType::Q2K => {
            for (both, (scale, min)) in block[..16].iter().zip(scales.iter_mut().zip(mins)) {
                (*scale, *min) = (both & 15, both >> 4);
            }
        }
        GgmlDType::Q3K => {
            let packed = &block[96..108];
            for (index, scale) in scales.iter_mut().enumerate() {
                let low = packed[index % 8] >> (index / 8 * 4) & 15;
                let high = packed[8 + index % 4] >> (index / 4 * 2) & 3;
                *scale = (low | high << 4).wrapping_sub(32);
            }
        }
        // Eight scales and minima of six bits in 12 bytes: four of each as they are, the other four in two pieces.
        GgmlDType::Q4K | GgmlDType::Q5K => {
            let [a, b, c] = [4, 8, 12].map(|at| word(block, at));
            let high = |word: u32| (word >> 6 & 0x0303_0303) << 4;
            let halves = |low: u32, high: u32| [low.to_le_bytes(), high.to_le_bytes()];
            let of_scales = halves(a & 0x3f3f_3f3f, c & 0x0f0f_0f0f | high(a));
            let of_mins = halves(b & 0x3f3f_3f3f, c >> 4 & 0x0f0f_0f0f | high(b));
            scales[..8].copy_from_slice(of_scales.as_flattened());
            mins[..8].copy_from_slice(of_mins.as_flattened());
        }
        GgmlDType::Q6K => scales.copy_from_slice(&block[192..208]),
        _ => {}
    }
    segments
}

/// The codes of inputs `32 sub ..` of a block.
#[inline(always)]
pub(super) fn codes(dtype: GgmlDType, block: &[u8], sub: usize) -> Codes {
    match dtype {
        GgmlDType::Q4_0 => nibbles(&block[2..18]),
        GgmlDType::Q4_1 => nibbles(&block[4..20]),
        GgmlDType::Q5_0 => with_bits(nibbles(&block[6..22]), word(block, 2)),
        GgmlDType::Q5_1 => with_bits(nibbles(&block[8..24]), word(block, 4)),
        GgmlDType::Q8_0 => each(|group| word(block, 2 + 4 * group) ^ 0x8080_8080),
        GgmlDType::Q2K => {
            let quants = &block[16 + sub / 4 * 32..][..32];
            each(|group| word(quants, 4 * group) >> (sub % 4 * 2) & 0x0303_0303)
        }
        GgmlDType::Q3K => {
            let high = &block[..32];
            let quants = &block[32 + sub / 4 * 32..][..32];
            each(|group| {
                let low = word(quants, 4 * group) >> (sub % 4 * 2) & 0x0303_0303;
                low | (word(high, 4 * group) >> sub & 0x0101_0101) << 2
            })
        }
        GgmlDType::Q4K => k_nibbles(&block[16..144], sub),
        GgmlDType::Q5K => {
            let low = k_nibbles(&block[48..176], sub);
            let high = &block[16..48];
            each(|group| low[group] | (word(high, 4 * group) >> sub & 0x0101_0101) << 4)
        }
        GgmlDType::Q6K => {
            let (chunk, quarter) = (sub / 4, sub % 4);
            let low = &block[64 * chunk + quarter % 2 * 32..][..32];
            let high = &block[128 + 32 * chunk..][..32];
            each(|group| {
                let four = word(low, 4 * group) >> (quarter / 2 * 4) & 0x0f0f_0f0f;
                four | (word(high, 4 * group) >> (2 * quarter) & 0x0303_0303) << 4
            })
        }
        // The packer admits no other type; codes of zero would show in every test.
        _ => Codes::default(),
    }
}

/// A word for each group. Not `array::from_fn`, which was seen not to be inlined here, at twice the time of packing.
#[inline(always)]
fn each(word: impl Fn(usize) -> u32) -> Codes {
    let mut codes = Codes::default();
    for (group, code) in codes.iter_mut().enumerate() {
        *code = word(group);
    }
    codes
}

#[inline(always)]
fn word(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

/// Low nibbles are inputs 0..16, high nibbles 16..32.
#[inline(always)]
fn nibbles(quants: &[u8]) -> Codes {
    let mut codes = Codes::default();
    for group in 0..4 {
        let both = word(quants, 4 * group);
        codes[group] = both & 0x0f0f_0f0f;
        codes[group + 4] = both >> 4 & 0x0f0f_0f0f;
    }
    codes
}

/// Adds bit `i` of `bits` as the fifth bit of code `i`.
#[inline(always)]
fn with_bits(mut codes: Codes, bits: u32) -> Codes {
    for (group, code) in codes.iter_mut().enumerate() {
        let four = bits >> (4 * group) & 15;
        // Copies of the four bits at distances of seven put bit `c` at bit `8 c`.
        *code |= ((four * 0x0020_4081) & 0x0101_0101) << 4;
    }
    codes
}

/// Q4_K and Q5_K: 32 bytes hold two subs, the even one in the low nibbles.
#[inline(always)]
fn k_nibbles(quants: &[u8], sub: usize) -> Codes {
    let quants = &quants[sub / 2 * 32..][..32];
    each(|group| word(quants, 4 * group) >> (sub % 2 * 4) & 0x0f0f_0f0f)
}
