//! [`Simd`] with AVX2, FMA and F16C.

use std::arch::x86_64::*;

use super::simd::Simd;
use crate::cpu::isa::Work;

/// Eight lanes; a value proves that the processor has AVX2, FMA and F16C.
#[derive(Clone, Copy, Debug)]
pub struct Avx2(());

impl Avx2 {
    /// The proof, where the processor and the operating system support it.
    #[inline]
    pub fn detect() -> Option<Self> {
        let found = is_x86_feature_detected!("avx2")
            && is_x86_feature_detected!("fma")
            && is_x86_feature_detected!("f16c");
        found.then_some(Self(()))
    }
}

/// # Safety
/// The processor has the features; a value of [`Avx2`] proves it.
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn run_with_features<W: Work>(simd: Avx2, work: W) -> W::Output {
    work.run(simd)
}

/// Methods that only call intrinsics without pointers.
macro_rules! exact {
    ($(fn $name:ident($($arg:ident: $type:ty),*) -> $out:ty { $body:expr })*) => { $(
        #[inline(always)]
        fn $name(self, $($arg: $type),*) -> $out {
            // SAFETY: `self` proves that the processor has the instructions.
            unsafe { $body }
        }
    )* };
}

/// Methods that follow a pointer.
macro_rules! memory {
    ($(fn $name:ident($($arg:ident: $type:ty),*) $(-> $out:ty)? { $body:expr })*) => { $(
        #[inline(always)]
        unsafe fn $name(self, $($arg: $type),*) $(-> $out)? {
            // SAFETY: `self` proves that the processor has the instructions, and the caller
            // promises that the pointer is good for one vector; none of the instructions asks for
            // alignment.
            unsafe { $body }
        }
    )* };
}

impl Simd for Avx2 {
    const LANES: usize = 8;
    const ROWS: usize = 3;
    const REGISTERS: bool = true;
    const DIRECT: bool = false;
    const BYTE_BIAS: i32 = 0;
    type F = __m256;
    type I = __m256i;
    type B = __m256i;
    type P = __m256i;

    #[inline]
    fn run<W: Work>(self, work: W) -> W::Output {
        // SAFETY: `self` proves that the processor has the features.
        unsafe { run_with_features(self, work) }
    }

    memory! {
        fn load(from: *const f32) -> __m256 { _mm256_loadu_ps(from) }
        fn store(to: *mut f32, x: __m256) { _mm256_storeu_ps(to, x) }
        fn load_f16(from: *const u8) -> __m256 { _mm256_cvtph_ps(_mm_loadu_si128(from.cast())) }
        fn store_f16(to: *mut u8, x: __m256) {
            _mm_storeu_si128(to.cast(), _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(x))
        }
        fn load_bf16(from: *const u8) -> __m256 {
            _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(
                _mm_loadu_si128(from.cast()),
            )))
        }
        fn load_i(from: *const i32) -> __m256i { _mm256_loadu_si256(from.cast()) }
        fn store_i(to: *mut i32, x: __m256i) { _mm256_storeu_si256(to.cast(), x) }
        fn load_u8(from: *const u8) -> __m256i { _mm256_cvtepu8_epi32(_mm_loadl_epi64(from.cast())) }
        fn load_i8(from: *const u8) -> __m256i { _mm256_cvtepi8_epi32(_mm_loadl_epi64(from.cast())) }
        fn store_i8(to: *mut i8, x: __m256i) {{
            // The low byte of each 32-bit lane, gathered to the low four bytes of each half.
            let low = _mm256_shuffle_epi8(x, _mm256_set1_epi32(0x0c08_0400));
            let (a, b) = (_mm256_extract_epi32::<0>(low), _mm256_extract_epi32::<4>(low));
            to.cast::<[i32; 2]>().write_unaligned([a, b])
        }}
        fn load_b(from: *const u8) -> __m256i { _mm256_loadu_si256(from.cast()) }
        fn splat_b(from: *const i8) -> __m256i {
            _mm256_set1_epi32(from.cast::<i32>().read_unaligned())
        }
    }

    exact! {
        fn splat(x: f32) -> __m256 { _mm256_set1_ps(x) }
        fn add(a: __m256, b: __m256) -> __m256 { _mm256_add_ps(a, b) }
        fn sub(a: __m256, b: __m256) -> __m256 { _mm256_sub_ps(a, b) }
        fn mul(a: __m256, b: __m256) -> __m256 { _mm256_mul_ps(a, b) }
        fn div(a: __m256, b: __m256) -> __m256 { _mm256_div_ps(a, b) }
        fn fma(a: __m256, b: __m256, c: __m256) -> __m256 { _mm256_fmadd_ps(a, b, c) }
        fn sqrt(a: __m256) -> __m256 { _mm256_sqrt_ps(a) }
        fn max(a: __m256, b: __m256) -> __m256 { _mm256_max_ps(a, b) }
        fn min(a: __m256, b: __m256) -> __m256 { _mm256_min_ps(a, b) }
        fn round(a: __m256) -> __m256 {
            _mm256_round_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(a)
        }
        fn select_lt(a: __m256, b: __m256, yes: __m256, no: __m256) -> __m256 {
            _mm256_blendv_ps(no, yes, _mm256_cmp_ps::<_CMP_LT_OQ>(a, b))
        }
        fn splat_i(x: i32) -> __m256i { _mm256_set1_epi32(x) }
        fn add_i(a: __m256i, b: __m256i) -> __m256i { _mm256_add_epi32(a, b) }
        fn sub_i(a: __m256i, b: __m256i) -> __m256i { _mm256_sub_epi32(a, b) }
        fn max_i(a: __m256i, b: __m256i) -> __m256i { _mm256_max_epi32(a, b) }
        fn and_i(a: __m256i, b: __m256i) -> __m256i { _mm256_and_si256(a, b) }
        fn or_i(a: __m256i, b: __m256i) -> __m256i { _mm256_or_si256(a, b) }
        fn shl_i(a: __m256i, count: u32) -> __m256i {
            _mm256_sll_epi32(a, _mm_cvtsi32_si128(count as i32))
        }
        fn to_f(a: __m256i) -> __m256 { _mm256_cvtepi32_ps(a) }
        // Rounded first, so that the result does not depend on the thread's rounding mode.
        fn to_i(a: __m256) -> __m256i {
            _mm256_cvtps_epi32(
                _mm256_round_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(a),
            )
        }
        fn bits(a: __m256) -> __m256i { _mm256_castps_si256(a) }
        fn from_bits(a: __m256i) -> __m256 { _mm256_castsi256_ps(a) }
        fn shift_b(a: __m256i, count: i32, mask: u8) -> __m256i {
            _mm256_and_si256(
                match count {
                    0 => a,
                    1.. => _mm256_srl_epi16(a, _mm_cvtsi32_si128(count)),
                    _ => _mm256_sll_epi16(a, _mm_cvtsi32_si128(-count)),
                },
                _mm256_set1_epi8(mask as i8),
            )
        }
        fn or_b(a: __m256i, b: __m256i) -> __m256i { _mm256_or_si256(a, b) }
        fn zero_p() -> __m256i { _mm256_setzero_si256() }
        fn begin(_a: __m256i) -> __m256i { _mm256_setzero_si256() }
        fn dot(sum: __m256i, weights: __m256i, activations: __m256i) -> __m256i {
            _mm256_add_epi16(sum, _mm256_maddubs_epi16(weights, activations))
        }
        fn end(sum: __m256i) -> __m256i { _mm256_madd_epi16(sum, _mm256_set1_epi16(1)) }
        // The multiplication wants one unsigned factor: |w|, with the sign of w moved to the
        // activation. Two products reach 2 * 128 * 127 = 32,512, which is within i16.
        fn dot_bytes(sum: __m256i, weights: __m256i, activations: __m256i) -> __m256i {{
            let signed = _mm256_xor_si256(weights, _mm256_set1_epi8(-128));
            let pairs = _mm256_maddubs_epi16(
                _mm256_abs_epi8(signed),
                _mm256_sign_epi8(activations, signed),
            );
            _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)))
        }}
    }

    #[inline(always)]
    unsafe fn turn(self, from: *const u8, from_bytes: usize, to: *mut f32, to_stride: usize) {
        // SAFETY: `self` proves that the processor has the instructions; reads and writes are within what the caller
        // promises.
        unsafe {
            let rows: [__m256; 8] =
                std::array::from_fn(|row| _mm256_loadu_ps(from.add(row * from_bytes).cast()));
            let mut pairs = rows;
            for i in 0..4 {
                pairs[2 * i] = _mm256_unpacklo_ps(rows[2 * i], rows[2 * i + 1]);
                pairs[2 * i + 1] = _mm256_unpackhi_ps(rows[2 * i], rows[2 * i + 1]);
            }
            // Vector `4 i + j` holds columns j and 4 + j of rows 4 i ...
            let mut fours = [_mm256_setzero_pd(); 8];
            for i in 0..2 {
                let [a, b, c, d]: [__m256d; 4] =
                    std::array::from_fn(|j| _mm256_castps_pd(pairs[4 * i + j]));
                fours[4 * i] = _mm256_unpacklo_pd(a, c);
                fours[4 * i + 1] = _mm256_unpackhi_pd(a, c);
                fours[4 * i + 2] = _mm256_unpacklo_pd(b, d);
                fours[4 * i + 3] = _mm256_unpackhi_pd(b, d);
            }
            for j in 0..4 {
                let (a, b) = (_mm256_castpd_ps(fours[j]), _mm256_castpd_ps(fours[4 + j]));
                _mm256_storeu_ps(to.add(j * to_stride), _mm256_permute2f128_ps::<0x20>(a, b));
                _mm256_storeu_ps(to.add((4 + j) * to_stride), _mm256_permute2f128_ps::<0x31>(a, b));
            }
        }
    }
}
