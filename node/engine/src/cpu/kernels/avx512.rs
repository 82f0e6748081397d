//! [`Simd`] with AVX-512 and its byte dot products (VNNI).

use std::arch::x86_64::*;

use super::simd::Simd;
use crate::cpu::isa::Work;

/// Sixteen lanes; a value proves that the processor has AVX-512 F, BW, VL, DQ and VNNI, and FMA,
/// F16C.
#[derive(Clone, Copy, Debug)]
pub struct Avx512(());

impl Avx512 {
    /// The proof, where the processor and the operating system support it.
    #[inline]
    pub fn detect() -> Option<Self> {
        let found = is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512vl")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("avx512vnni")
            && is_x86_feature_detected!("avx2")
            && is_x86_feature_detected!("fma")
            && is_x86_feature_detected!("f16c");
        found.then_some(Self(()))
    }
}

/// # Safety
/// The processor has the features; a value of [`Avx512`] proves it.
#[target_feature(
    enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c,bmi1,bmi2,lzcnt,popcnt"
)]
unsafe fn run_with_features<W: Work>(simd: Avx512, work: W) -> W::Output {
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

impl Simd for Avx512 {
    const LANES: usize = 16;
    const ROWS: usize = 6;
    const REGISTERS: bool = true;
    const DIRECT: bool = true;
    const BYTE_BIAS: i32 = 128;
    type F = __m512;
    type I = __m512i;
    type B = __m512i;
    type P = __m512i;

    #[inline]
    fn run<W: Work>(self, work: W) -> W::Output {
        // SAFETY: `self` proves that the processor has the features.
        unsafe { run_with_features(self, work) }
    }

    memory! {
        fn load(from: *const f32) -> __m512 { _mm512_loadu_ps(from) }
        fn store(to: *mut f32, x: __m512) { _mm512_storeu_ps(to, x) }
        fn load_f16(from: *const u8) -> __m512 { _mm512_cvtph_ps(_mm256_loadu_si256(from.cast())) }
        fn store_f16(to: *mut u8, x: __m512) {
            _mm256_storeu_si256(
                to.cast(),
                _mm512_cvtps_ph::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(x),
            )
        }
        fn load_bf16(from: *const u8) -> __m512 {
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(
                _mm256_loadu_si256(from.cast()),
            )))
        }
        fn load_i(from: *const i32) -> __m512i { _mm512_loadu_si512(from.cast()) }
        fn store_i(to: *mut i32, x: __m512i) { _mm512_storeu_si512(to.cast(), x) }
        fn load_u8(from: *const u8) -> __m512i { _mm512_cvtepu8_epi32(_mm_loadu_si128(from.cast())) }
        fn load_i8(from: *const u8) -> __m512i { _mm512_cvtepi8_epi32(_mm_loadu_si128(from.cast())) }
        fn store_i8(to: *mut i8, x: __m512i) { _mm_storeu_si128(to.cast(), _mm512_cvtepi32_epi8(x)) }
        fn load_b(from: *const u8) -> __m512i { _mm512_loadu_si512(from.cast()) }
        fn splat_b(from: *const i8) -> __m512i {
            _mm512_set1_epi32(from.cast::<i32>().read_unaligned())
        }
    }

    exact! {
        fn splat(x: f32) -> __m512 { _mm512_set1_ps(x) }
        fn add(a: __m512, b: __m512) -> __m512 { _mm512_add_ps(a, b) }
        fn sub(a: __m512, b: __m512) -> __m512 { _mm512_sub_ps(a, b) }
        fn mul(a: __m512, b: __m512) -> __m512 { _mm512_mul_ps(a, b) }
        fn div(a: __m512, b: __m512) -> __m512 { _mm512_div_ps(a, b) }
        fn fma(a: __m512, b: __m512, c: __m512) -> __m512 { _mm512_fmadd_ps(a, b, c) }
        fn sqrt(a: __m512) -> __m512 { _mm512_sqrt_ps(a) }
        fn max(a: __m512, b: __m512) -> __m512 { _mm512_max_ps(a, b) }
        fn min(a: __m512, b: __m512) -> __m512 { _mm512_min_ps(a, b) }
        fn round(a: __m512) -> __m512 {
            _mm512_roundscale_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(a)
        }
        fn select_lt(a: __m512, b: __m512, yes: __m512, no: __m512) -> __m512 {
            _mm512_mask_blend_ps(_mm512_cmp_ps_mask::<_CMP_LT_OQ>(a, b), no, yes)
        }
        fn splat_i(x: i32) -> __m512i { _mm512_set1_epi32(x) }
        fn add_i(a: __m512i, b: __m512i) -> __m512i { _mm512_add_epi32(a, b) }
        fn sub_i(a: __m512i, b: __m512i) -> __m512i { _mm512_sub_epi32(a, b) }
        fn max_i(a: __m512i, b: __m512i) -> __m512i { _mm512_max_epi32(a, b) }
        fn and_i(a: __m512i, b: __m512i) -> __m512i { _mm512_and_si512(a, b) }
        fn or_i(a: __m512i, b: __m512i) -> __m512i { _mm512_or_si512(a, b) }
        fn shl_i(a: __m512i, count: u32) -> __m512i {
            _mm512_sll_epi32(a, _mm_cvtsi32_si128(count as i32))
        }
        fn to_f(a: __m512i) -> __m512 { _mm512_cvtepi32_ps(a) }
        fn to_i(a: __m512) -> __m512i {
            _mm512_cvt_roundps_epi32::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(a)
        }
        fn bits(a: __m512) -> __m512i { _mm512_castps_si512(a) }
        fn from_bits(a: __m512i) -> __m512 { _mm512_castsi512_ps(a) }
        fn shift_b(a: __m512i, count: i32, mask: u8) -> __m512i {
            _mm512_and_si512(
                match count {
                    0 => a,
                    1.. => _mm512_srl_epi16(a, _mm_cvtsi32_si128(count)),
                    _ => _mm512_sll_epi16(a, _mm_cvtsi32_si128(-count)),
                },
                _mm512_set1_epi8(mask as i8),
            )
        }
        fn or_b(a: __m512i, b: __m512i) -> __m512i { _mm512_or_si512(a, b) }
        fn zero_p() -> __m512i { _mm512_setzero_si512() }
        fn dot(sum: __m512i, weights: __m512i, activations: __m512i) -> __m512i {
            _mm512_dpbusd_epi32(sum, weights, activations)
        }
        fn dot_bytes(sum: __m512i, weights: __m512i, activations: __m512i) -> __m512i {
            _mm512_dpbusd_epi32(sum, weights, activations)
        }
    }

    #[inline(always)]
    unsafe fn turn(self, from: *const u8, from_bytes: usize, to: *mut f32, to_stride: usize) {
        // SAFETY: `self` proves that the processor has the instructions; reads and writes are within what the caller
        // promises.
        unsafe {
            let rows: [__m512; 16] =
                std::array::from_fn(|row| _mm512_loadu_ps(from.add(row * from_bytes).cast()));
            // Pairs of rows, then fours: vector `4 i + j` holds columns j, 4 + j, 8 + j and 12 + j of rows 4 i ...
            let mut pairs = rows;
            for i in 0..8 {
                pairs[2 * i] = _mm512_unpacklo_ps(rows[2 * i], rows[2 * i + 1]);
                pairs[2 * i + 1] = _mm512_unpackhi_ps(rows[2 * i], rows[2 * i + 1]);
            }
            let mut fours = [_mm512_setzero_pd(); 16];
            for i in 0..4 {
                let [a, b, c, d]: [__m512d; 4] =
                    std::array::from_fn(|j| _mm512_castps_pd(pairs[4 * i + j]));
                fours[4 * i] = _mm512_unpacklo_pd(a, c);
                fours[4 * i + 1] = _mm512_unpackhi_pd(a, c);
                fours[4 * i + 2] = _mm512_unpacklo_pd(b, d);
                fours[4 * i + 3] = _mm512_unpackhi_pd(b, d);
            }
            for j in 0..4 {
                let [a, b, c, d]: [__m512; 4] =
                    std::array::from_fn(|i| _mm512_castpd_ps(fours[4 * i + j]));
                let (ab, cd) =
                    (_mm512_shuffle_f32x4::<0x88>(a, b), _mm512_shuffle_f32x4::<0x88>(c, d));
                _mm512_storeu_ps(to.add(j * to_stride), _mm512_shuffle_f32x4::<0x88>(ab, cd));
                _mm512_storeu_ps(to.add((8 + j) * to_stride), _mm512_shuffle_f32x4::<0xdd>(ab, cd));
                let (ab, cd) =
                    (_mm512_shuffle_f32x4::<0xdd>(a, b), _mm512_shuffle_f32x4::<0xdd>(c, d));
                _mm512_storeu_ps(to.add((4 + j) * to_stride), _mm512_shuffle_f32x4::<0x88>(ab, cd));
                _mm512_storeu_ps(
                    to.add((12 + j) * to_stride),
                    _mm512_shuffle_f32x4::<0xdd>(ab, cd),
                );
            }
        }
    }

    #[inline(always)]
    fn begin(self, a: __m512i) -> __m512i {
        a
    }
    #[inline(always)]
    fn end(self, sum: __m512i) -> __m512i {
        sum
    }
}
