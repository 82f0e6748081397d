//! How packed weights lie in memory: one description, read by packer, kernels and row reader alike.
//!
//! A *tile* is 32 output rows over the whole input width; it is two halves of 16 rows. Quantised
//! tiles are a sequence of blocks over k, each a header of scales followed by planes of codes;
//! every block is whole cache lines. Within a 64-byte vector of a plane, byte `4 r + c` belongs to
//! row `r` of the half and to input `4 g + c`, where `g` is the *group*: 0..8 within 32 inputs. So
//! a vector multiplies with four activations that are the same for all rows, which is what byte dot
//! products want.

use candle_core::quantized::GgmlDType;

/// Output rows of one tile.
pub(crate) const TILE_ROWS: usize = 32;
/// Output rows of half a tile; gate and up rows alternate by this many.
pub(crate) const HALF_ROWS: usize = 16;
/// Inputs that share one scale of the activations.
pub(crate) const BLOCK: usize = 32;

/// Where a sub-block's scale comes from besides the block's f16.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SubScales {
    /// There is none.
    None,
    /// An unsigned byte for each segment.
    Unsigned,
    /// A signed byte for each segment.
    Signed,
}

/// The layout and meaning of one quantised format.
///
/// A weight is `d * sub_scale * (code - offset) + m * sub_min`, each factor as far as it exists.
/// Codes are `low_bits` wide plus `high_bits` more in a plane of their own.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Layout {
    /// Bits in the first plane: 2, 4 or 8.
    pub(crate) low_bits: u32,
    /// Bits in the second plane: 0, 1 or 2.
    pub(crate) high_bits: u32,
    /// What the codes are stored above their value: a power of two, or 0.
    pub(crate) offset: u32,
    /// Groups of 32 inputs under one f16 scale: 1 or 8.
    pub(crate) subs: usize,
    /// Inputs under one sub-scale: 16 or 32.
    pub(crate) segment: usize,
    /// Kind of sub-scale.
    pub(crate) sub_scales: SubScales,
    /// Whether a multiple of `m` is added.
    pub(crate) min: bool,
}

impl Layout {
    /// Inputs of one block.
    pub(crate) const fn inputs(&self) -> usize {
        self.subs * BLOCK
    }

    /// Segments of one block.
    pub(crate) const fn segments(&self) -> usize {
        self.inputs() / self.segment
    }

    /// Position of the sub-minima in the block; the sub-scales are at 0. Entry (segment, row).
    pub(crate) const fn sub_mins_at(&self) -> usize {
        match self.sub_scales {
            SubScales::None => 0,
            _ => self.segments() * TILE_ROWS,
        }
    }

    /// Position of the f16 scales. Entry (row).
    #[inline]
    pub(crate) const fn scales_at(&self) -> usize {
        match self.sub_scales {
            SubScales::None => 0,
            _ if self.min => 2 * self.segments() * TILE_ROWS,
            _ => self.segments() * TILE_ROWS,
        }
    }

    /// Position of the f16 minima, stored with the sign with which they are added. Entry (row).
    pub(crate) const fn mins_at(&self) -> usize {
        self.scales_at() + 2 * TILE_ROWS
    }

    /// Bytes before the planes.
    pub(crate) const fn header(&self) -> usize {
        self.scales_at() + 2 * TILE_ROWS * (1 + self.min as usize)
    }

    /// Bytes of the first plane for one half and 32 inputs.
    pub(crate) const fn low_bytes(&self) -> usize {
        HALF_ROWS * BLOCK * self.low_bits as usize / 8
    }

    /// Bytes of the second plane for one half and 32 inputs.
    pub(crate) const fn high_bytes(&self) -> usize {
        HALF_ROWS * BLOCK * self.high_bits as usize / 8
    }

    /// Position of the first plane of `half` for the 32 inputs number `sub`.
    #[inline]
    pub(crate) const fn low_at(&self, sub: usize, half: usize) -> usize {
        self.header() + sub * self.sub_bytes() + half * self.low_bytes()
    }

    /// Position of the second plane of `half` for the 32 inputs number `sub`.
    #[inline]
    pub(crate) const fn high_at(&self, sub: usize, half: usize) -> usize {
        self.header() + sub * self.sub_bytes() + 2 * self.low_bytes() + half * self.high_bytes()
    }

    /// Bytes of one block: a multiple of 64.
    pub(crate) const fn bytes(&self) -> usize {
        self.header() + self.subs * self.sub_bytes()
    }

    /// How many groups of four products fit an i16 per pair of products, at the largest code and
    /// activation.
    pub(crate) const fn chain(&self) -> usize {
        let pair = 2 * ((1 << (self.low_bits + self.high_bits)) - 1) * 127;
        if pair > 32_767 { 0 } else { 32_767 / pair }
    }

    const fn sub_bytes(&self) -> usize {
        2 * (self.low_bytes() + self.high_bytes())
    }
}

/// A format that kernels are compiled for.
pub(crate) trait Format: Copy {
    /// The type in files.
    const DTYPE: GgmlDType;
    /// Its description.
    const LAYOUT: Layout;
}

/// Declares formats: name, type, low bits, high bits, offset, subs, segment, sub-scales, minimum.
macro_rules! formats {
    ($($(#[$doc:meta])* $name:ident = $dtype:ident: $low:literal + $high:literal - $offset:literal, $subs:literal, $segment:literal, $scales:ident, $min:literal;)*) => { $(
        $(#[$doc])*
        #[derive(Clone, Copy, Debug)]
        pub(crate) struct $name;
        impl Format for $name {
            const DTYPE: GgmlDType = GgmlDType::$dtype;
            const LAYOUT: Layout = Layout {
                low_bits: $low, high_bits: $high, offset: $offset, subs: $subs, segment: $segment,
                sub_scales: SubScales::$scales, min: $min,
            };
        }
        const _: () = assert!($name::LAYOUT.bytes().is_multiple_of(64));
    )* };
}

formats! {
    /// ggml's Q4_0: 4.5 bits a weight.
    Q40 = Q4_0: 4 + 0 - 8, 1, 32, None, false;
    /// ggml's Q4_1: 5 bits.
    Q41 = Q4_1: 4 + 0 - 0, 1, 32, None, true;
    /// ggml's Q5_0: 5.5 bits.
    Q50 = Q5_0: 4 + 1 - 16, 1, 32, None, false;
    /// ggml's Q5_1: 6 bits.
    Q51 = Q5_1: 4 + 1 - 0, 1, 32, None, true;
    /// ggml's Q8_0: 8.5 bits.
    Q80 = Q8_0: 8 + 0 - 128, 1, 32, None, false;
    /// ggml's Q2_K: 3.125 bits here, its sub-scales and sub-minima as bytes.
    Q2K = Q2K: 2 + 0 - 0, 8, 16, Unsigned, true;
    /// ggml's Q3_K: 3.5625 bits here, its sub-scales as bytes.
    Q3K = Q3K: 2 + 1 - 4, 8, 16, Signed, false;
    /// ggml's Q4_K: 4.625 bits here, its sub-scales and sub-minima as bytes.
    Q4K = Q4K: 4 + 0 - 0, 8, 32, Unsigned, true;
    /// ggml's Q5_K: 5.625 bits here, its sub-scales and sub-minima as bytes.
    Q5K = Q5K: 4 + 1 - 0, 8, 32, Unsigned, true;
    /// ggml's Q6_K: 6.5625 bits.
    Q6K = Q6K: 4 + 2 - 32, 8, 16, Signed, false;
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: the sizes that memory planning and the bandwidth figures rest on.
    #[test]
    fn blocks_are_as_large_as_documented() {
        assert_eq!(Q40::LAYOUT.bytes(), 2 * 288);
        assert_eq!(Q41::LAYOUT.bytes(), 2 * 320);
        assert_eq!(Q80::LAYOUT.bytes(), 2 * 544);
        assert_eq!(Q4K::LAYOUT.bytes(), 2 * 2368);
        assert_eq!(Q6K::LAYOUT.bytes(), 2 * 3360);
        assert_eq!(Q40::LAYOUT.chain(), 8);
        assert_eq!(Q50::LAYOUT.chain(), 4);
        assert_eq!(Q6K::LAYOUT.chain(), 2);
        assert_eq!(Q80::LAYOUT.chain(), 0);
    }
}
