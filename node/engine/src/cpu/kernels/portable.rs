//! [`Simd`] in plain Rust: arrays of eight lanes, loops that the compiler may vectorise.

#![allow(clippy::needless_range_loop, reason = "lanes, indexed alike in several arrays")]

use super::simd::Simd;
use crate::cpu::isa::Work;

/// Eight lanes without intrinsics; every processor has them.
#[derive(Clone, Copy, Debug)]
pub struct Portable;

const LANES: usize = 8;
type F = [f32; LANES];
type I = [i32; LANES];
/// Four bytes per lane, the first one lowest: the compiler makes vectors of operations on whole lanes, and not
/// of those on single bytes.
type W = [u32; LANES];

/// Widens an IEEE half-precision value exactly; a signalling not-a-number becomes a quiet one, as
/// the processor's own conversion does it.
#[inline]
pub(crate) fn f16_to_f32(half: u16) -> f32 {
    let sign = u32::from(half & 0x8000) << 16;
    let exponent = u32::from(half >> 10) & 31;
    let fraction = u32::from(half) & 0x3ff;
    // All four are computed and one is selected, without a branch, so that loops become vectors.
    // A subnormal is its fraction in units of 2^-24; the product is exact.
    let subnormal = (fraction as f32 * f32::from_bits(0x3380_0000)).to_bits();
    let normal = (exponent + 112) << 23 | fraction << 13;
    let not_a_number = 0x7fc0_0000 | fraction << 13;
    let special = if fraction == 0 { 0x7f80_0000 } else { not_a_number };
    let finite = if exponent == 0 { subnormal } else { normal };
    f32::from_bits(sign | if exponent == 31 { special } else { finite })
}

/// Rounds to IEEE half precision, to the nearest, ties to even; too large becomes infinite.
#[inline]
pub(crate) fn f32_to_f16(x: f32) -> u16 {
    let sign = (x.to_bits() >> 16) as u16 & 0x8000;
    let magnitude = x.to_bits() & 0x7fff_ffff;
    // As in the other direction, without a branch. Below the normal halves the units are of 2^-24: adding a half rounds
    // to them, because that is what the last bit of an f32 of that size stands for.
    let subnormal = (f32::from_bits(magnitude) + 0.5).to_bits() - 0x3f00_0000;
    let odd = magnitude >> 13 & 1;
    // Modulo 2^32: what wraps is not selected.
    let normal = magnitude.wrapping_add(0xc800_0fff).wrapping_add(odd) >> 13;
    let finite = if magnitude < 0x3880_0000 { subnormal } else { normal };
    let special = if magnitude > 0x7f80_0000 { 0x7e00 } else { 0x7c00 };
    // From halfway between the largest half and what would come next.
    sign | if magnitude >= 0x477f_f000 { special } else { finite as u16 }
}

/// Widens a bfloat16 value exactly.
pub(crate) fn bf16_to_f32(half: u16) -> f32 {
    f32::from_bits(u32::from(half) << 16)
}

#[inline(always)]
fn map<A: Copy, B: Copy + Default>(a: [A; LANES], f: impl Fn(A) -> B) -> [B; LANES] {
    let mut out = [B::default(); LANES];
    for lane in 0..LANES {
        out[lane] = f(a[lane]);
    }
    out
}

#[inline(always)]
fn zip<A: Copy, B: Copy + Default>(
    a: [A; LANES],
    b: [A; LANES],
    f: impl Fn(A, A) -> B,
) -> [B; LANES] {
    let mut out = [B::default(); LANES];
    for lane in 0..LANES {
        out[lane] = f(a[lane], b[lane]);
    }
    out
}

/// The same code, compiled for processors with fused multiply-add.
///
/// # Safety
/// The processor has AVX2, FMA and F16C.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn run_with_fma<W: Work>(work: W) -> W::Output {
    work.run(Portable)
}

impl Simd for Portable {
    const LANES: usize = LANES;
    const ROWS: usize = 1;
    const REGISTERS: bool = false;
    const DIRECT: bool = true;
    const BYTE_BIAS: i32 = 128;
    type F = F;
    type I = I;
    type B = W;
    type P = I;

    #[inline]
    fn run<W: Work>(self, work: W) -> W::Output {
        #[cfg(target_arch = "x86_64")]
        if super::Avx2::detect().is_some() {
            // SAFETY: `Avx2::detect` has just found the features.
            return unsafe { run_with_fma(work) };
        }
        work.run(self)
    }

    #[inline(always)]
    fn splat(self, x: f32) -> F {
        [x; LANES]
    }
    #[inline(always)]
    unsafe fn load(self, from: *const f32) -> F {
        // SAFETY: the caller's promise.
        unsafe { from.cast::<F>().read_unaligned() }
    }
    #[inline(always)]
    unsafe fn store(self, to: *mut f32, x: F) {
        // SAFETY: the caller's promise.
        unsafe { to.cast::<F>().write_unaligned(x) }
    }
    #[inline(always)]
    unsafe fn load_f16(self, from: *const u8) -> F {
        // SAFETY: the caller's promise.
        map(unsafe { from.cast::<[u16; LANES]>().read_unaligned() }, f16_to_f32)
    }
    #[inline(always)]
    unsafe fn store_f16(self, to: *mut u8, x: F) {
        // SAFETY: the caller's promise.
        unsafe { to.cast::<[u16; LANES]>().write_unaligned(map(x, f32_to_f16)) }
    }
    #[inline(always)]
    unsafe fn load_bf16(self, from: *const u8) -> F {
        // SAFETY: the caller's promise.
        map(unsafe { from.cast::<[u16; LANES]>().read_unaligned() }, bf16_to_f32)
    }
    #[inline(always)]
    fn add(self, a: F, b: F) -> F {
        zip(a, b, |a, b| a + b)
    }
    #[inline(always)]
    fn sub(self, a: F, b: F) -> F {
        zip(a, b, |a, b| a - b)
    }
    #[inline(always)]
    fn mul(self, a: F, b: F) -> F {
        zip(a, b, |a, b| a * b)
    }
    #[inline(always)]
    fn div(self, a: F, b: F) -> F {
        zip(a, b, |a, b| a / b)
    }
    #[inline(always)]
    fn fma(self, a: F, b: F, c: F) -> F {
        let mut out = c;
        for lane in 0..LANES {
            out[lane] = a[lane].mul_add(b[lane], c[lane]);
        }
        out
    }
    #[inline(always)]
    fn sqrt(self, a: F) -> F {
        map(a, f32::sqrt)
    }
    #[inline(always)]
    fn max(self, a: F, b: F) -> F {
        zip(a, b, |a, b| if a > b { a } else { b })
    }
    #[inline(always)]
    fn min(self, a: F, b: F) -> F {
        zip(a, b, |a, b| if a < b { a } else { b })
    }
    #[inline(always)]
    fn round(self, a: F) -> F {
        map(a, f32::round_ties_even)
    }
    #[inline(always)]
    fn select_lt(self, a: F, b: F, yes: F, no: F) -> F {
        let mut out = no;
        for lane in 0..LANES {
            out[lane] = if a[lane] < b[lane] { yes[lane] } else { no[lane] };
        }
        out
    }

    #[inline(always)]
    fn splat_i(self, x: i32) -> I {
        [x; LANES]
    }
    #[inline(always)]
    unsafe fn load_i(self, from: *const i32) -> I {
        // SAFETY: the caller's promise.
        unsafe { from.cast::<I>().read_unaligned() }
    }
    #[inline(always)]
    unsafe fn store_i(self, to: *mut i32, x: I) {
        // SAFETY: the caller's promise.
        unsafe { to.cast::<I>().write_unaligned(x) }
    }
    #[inline(always)]
    unsafe fn load_u8(self, from: *const u8) -> I {
        // SAFETY: the caller's promise.
        map(unsafe { from.cast::<[u8; LANES]>().read_unaligned() }, i32::from)
    }
    #[inline(always)]
    unsafe fn load_i8(self, from: *const u8) -> I {
        // SAFETY: the caller's promise.
        map(unsafe { from.cast::<[i8; LANES]>().read_unaligned() }, i32::from)
    }
    #[inline(always)]
    unsafe fn store_i8(self, to: *mut i8, x: I) {
        // SAFETY: the caller's promise.
        unsafe { to.cast::<[i8; LANES]>().write_unaligned(map(x, |x| x as i8)) }
    }
    #[inline(always)]
    fn add_i(self, a: I, b: I) -> I {
        zip(a, b, i32::wrapping_add)
    }
    #[inline(always)]
    fn sub_i(self, a: I, b: I) -> I {
        zip(a, b, i32::wrapping_sub)
    }
    #[inline(always)]
    fn max_i(self, a: I, b: I) -> I {
        zip(a, b, i32::max)
    }
    #[inline(always)]
    fn and_i(self, a: I, b: I) -> I {
        zip(a, b, |a, b| a & b)
    }
    #[inline(always)]
    fn or_i(self, a: I, b: I) -> I {
        zip(a, b, |a, b| a | b)
    }
    #[inline(always)]
    fn shl_i(self, a: I, count: u32) -> I {
        map(a, |a| a.wrapping_shl(count))
    }
    #[inline(always)]
    fn to_f(self, a: I) -> F {
        map(a, |a| a as f32)
    }
    #[inline(always)]
    fn to_i(self, a: F) -> I {
        map(a, |a| a.round_ties_even() as i32)
    }
    #[inline(always)]
    fn bits(self, a: F) -> I {
        map(a, |a| a.to_bits() as i32)
    }
    #[inline(always)]
    fn from_bits(self, a: I) -> F {
        map(a, |a| f32::from_bits(a as u32))
    }

    #[inline(always)]
    unsafe fn load_b(self, from: *const u8) -> W {
        // SAFETY: the caller's promise.
        map(unsafe { from.cast::<W>().read_unaligned() }, u32::from_le)
    }
    #[inline(always)]
    unsafe fn splat_b(self, from: *const i8) -> W {
        // SAFETY: the caller's promise.
        [u32::from_le(unsafe { from.cast::<u32>().read_unaligned() }); LANES]
    }
    // What comes in from the neighbouring byte is masked off, by the trait's contract.
    #[inline(always)]
    fn shift_b(self, a: W, count: i32, mask: u8) -> W {
        let mask = u32::from_le_bytes([mask; 4]);
        if count < 0 {
            map(a, |a| a.wrapping_shl(count.unsigned_abs()) & mask)
        } else {
            map(a, |a| a.wrapping_shr(count.unsigned_abs()) & mask)
        }
    }
    #[inline(always)]
    fn or_b(self, a: W, b: W) -> W {
        zip(a, b, |a, b| a | b)
    }

    #[inline(always)]
    fn zero_p(self) -> I {
        [0; LANES]
    }
    #[inline(always)]
    fn begin(self, a: I) -> I {
        a
    }
    #[inline(always)]
    fn dot(self, sum: I, weights: W, activations: W) -> I {
        let mut out = sum;
        for byte in 0..4 {
            for lane in 0..LANES {
                let weight = weights[lane] >> (8 * byte) & 0xff;
                // To the top, and back with the sign.
                let activation = (activations[lane] << (24 - 8 * byte)) as i32 >> 24;
                out[lane] = out[lane].wrapping_add((weight as i32).wrapping_mul(activation));
            }
        }
        out
    }
    #[inline(always)]
    fn end(self, sum: I) -> I {
        sum
    }
    #[inline(always)]
    fn dot_bytes(self, sum: I, weights: W, activations: W) -> I {
        self.dot(sum, weights, activations)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: all 65,536 bit patterns give the value that IEEE 754 says, computed in f64.
    #[test]
    fn halves_widen_exactly() {
        for bits in 0..=u16::MAX {
            let exponent = i32::from(bits >> 10 & 31);
            let fraction = f64::from(bits & 0x3ff);
            let sign = if bits & 0x8000 == 0 { 1.0 } else { -1.0 };
            let value = f16_to_f32(bits);
            match exponent {
                31 if fraction != 0.0 => assert!(value.is_nan()),
                31 => assert_eq!(f64::from(value), sign * f64::INFINITY),
                0 => assert_eq!(f64::from(value), sign * fraction * 2f64.powi(-24)),
                _ => assert_eq!(
                    f64::from(value),
                    sign * (1.0 + fraction / 1024.0) * 2f64.powi(exponent - 15)
                ),
            }
            assert_eq!(value.is_sign_negative(), bits & 0x8000 != 0);
        }
    }
}
