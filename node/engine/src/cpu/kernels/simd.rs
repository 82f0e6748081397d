//! The vectors that kernels are written over: one trait, implemented once per instruction set.
//!
//! A value of a type that implements [`Simd`] proves that the processor has the instructions, so
//! arithmetic is safe to call; only what follows a pointer is `unsafe`. Every operation is exact or
//! correctly rounded, and so gives the same bits in every implementation. Where a result would
//! differ (a not-a-number's payload, conversion of floats out of range) kernels do not ask for it.

use crate::cpu::isa::Work;

/// One instruction set's vectors.
///
/// # Shapes
/// `F`: `LANES` f32; `I`: `LANES` i32; `B`: `4 * LANES` bytes, four of each lane; `P`: sums of byte
/// products on their way to `I`.
#[allow(
    clippy::wrong_self_convention,
    reason = "`self` is the proof, the argument what is converted"
)]
pub trait Simd: Copy {
    /// Lanes of 32 bits in one vector.
    const LANES: usize;
    /// Rows of activations that one integer kernel call handles at most: what fits the registers.
    const ROWS: usize;
    /// Whether vectors are registers: then several are worked on at a time.
    const REGISTERS: bool;
    /// Whether [`Simd::dot`] adds to an `i32` sum directly. If not, `P` holds i16 sums, which are
    /// to be moved to `I` before they can overflow.
    const DIRECT: bool;
    /// What [`Simd::dot_bytes`] adds to each weight, for the caller to take off again.
    const BYTE_BIAS: i32;

    /// f32 lanes.
    type F: Copy;
    /// i32 lanes.
    type I: Copy;
    /// Bytes, four to a lane.
    type B: Copy;
    /// Partial sums of [`Simd::dot`].
    type P: Copy;

    /// Runs `work` in a function that is compiled for this instruction set.
    fn run<W: Work>(self, work: W) -> W::Output;

    /// All lanes `x`.
    fn splat(self, x: f32) -> Self::F;
    /// Reads `LANES` values.
    ///
    /// # Safety
    /// `from` is valid for reads of `LANES` f32; it need not be aligned.
    unsafe fn load(self, from: *const f32) -> Self::F;
    /// Writes `LANES` values.
    ///
    /// # Safety
    /// `to` is valid for writes of `LANES` f32; it need not be aligned.
    unsafe fn store(self, to: *mut f32, x: Self::F);
    /// Reads `LANES` IEEE half-precision values, widened exactly.
    ///
    /// # Safety
    /// `from` is valid for reads of `LANES` u16; it need not be aligned.
    unsafe fn load_f16(self, from: *const u8) -> Self::F;
    /// Writes values as IEEE half precision, rounded to the nearest, ties to even. What is not a number stays so.
    ///
    /// # Safety
    /// `to` is valid for writes of `LANES` u16; it need not be aligned.
    unsafe fn store_f16(self, to: *mut u8, x: Self::F);
    /// Reads `LANES` bfloat16 values, widened exactly.
    ///
    /// # Safety
    /// `from` is valid for reads of `LANES` u16; it need not be aligned.
    unsafe fn load_bf16(self, from: *const u8) -> Self::F;

    /// `a + b`.
    fn add(self, a: Self::F, b: Self::F) -> Self::F;
    /// `a - b`.
    fn sub(self, a: Self::F, b: Self::F) -> Self::F;
    /// `a * b`.
    fn mul(self, a: Self::F, b: Self::F) -> Self::F;
    /// `a / b`.
    fn div(self, a: Self::F, b: Self::F) -> Self::F;
    /// `a * b + c`, rounded once.
    fn fma(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F;
    /// The square root.
    fn sqrt(self, a: Self::F) -> Self::F;
    /// The larger; `b` where they do not compare or are equal.
    fn max(self, a: Self::F, b: Self::F) -> Self::F;
    /// The smaller; `b` where they do not compare or are equal.
    fn min(self, a: Self::F, b: Self::F) -> Self::F;
    /// The nearest integer, ties to even.
    fn round(self, a: Self::F) -> Self::F;
    /// Where `a < b` the lane of `yes`, elsewhere that of `no`.
    fn select_lt(self, a: Self::F, b: Self::F, yes: Self::F, no: Self::F) -> Self::F;

    /// All lanes `x`.
    fn splat_i(self, x: i32) -> Self::I;
    /// Reads `LANES` values.
    ///
    /// # Safety
    /// `from` is valid for reads of `LANES` i32; it need not be aligned.
    unsafe fn load_i(self, from: *const i32) -> Self::I;
    /// Writes `LANES` values.
    ///
    /// # Safety
    /// `to` is valid for writes of `LANES` i32; it need not be aligned.
    unsafe fn store_i(self, to: *mut i32, x: Self::I);
    /// Reads `LANES` bytes as integers 0..=255.
    ///
    /// # Safety
    /// `from` is valid for reads of `LANES` bytes.
    unsafe fn load_u8(self, from: *const u8) -> Self::I;
    /// Reads `LANES` bytes as integers -128..=127.
    ///
    /// # Safety
    /// `from` is valid for reads of `LANES` bytes.
    unsafe fn load_i8(self, from: *const u8) -> Self::I;
    /// Writes the low byte of each lane.
    ///
    /// # Safety
    /// `to` is valid for writes of `LANES` bytes.
    unsafe fn store_i8(self, to: *mut i8, x: Self::I);
    /// `a + b`, wrapping.
    fn add_i(self, a: Self::I, b: Self::I) -> Self::I;
    /// `a - b`, wrapping.
    fn sub_i(self, a: Self::I, b: Self::I) -> Self::I;
    /// The larger, as signed integers.
    fn max_i(self, a: Self::I, b: Self::I) -> Self::I;
    /// `a & b`.
    fn and_i(self, a: Self::I, b: Self::I) -> Self::I;
    /// `a | b`.
    fn or_i(self, a: Self::I, b: Self::I) -> Self::I;
    /// `a << count`.
    fn shl_i(self, a: Self::I, count: u32) -> Self::I;
    /// Integers to the nearest floats.
    fn to_f(self, a: Self::I) -> Self::F;
    /// Floats to the nearest integers, ties to even.
    fn to_i(self, a: Self::F) -> Self::I;
    /// The bits of floats.
    fn bits(self, a: Self::F) -> Self::I;
    /// Floats from their bits.
    fn from_bits(self, a: Self::I) -> Self::F;

    /// Reads `4 * LANES` bytes.
    ///
    /// # Safety
    /// `from` is valid for reads of `4 * LANES` bytes.
    unsafe fn load_b(self, from: *const u8) -> Self::B;
    /// Every lane the same four bytes.
    ///
    /// # Safety
    /// `from` is valid for reads of four bytes.
    unsafe fn splat_b(self, from: *const i8) -> Self::B;
    /// Shifts each byte by `count` bits (to the left if negative), then keeps the bits of `mask`.
    /// `mask` must not keep bits that were shifted in from the neighbouring byte.
    fn shift_b(self, a: Self::B, count: i32, mask: u8) -> Self::B;
    /// `a | b`.
    fn or_b(self, a: Self::B, b: Self::B) -> Self::B;

    /// Partial sums of nothing.
    fn zero_p(self) -> Self::P;
    /// Partial sums that start with `a`; only where [`Simd::DIRECT`].
    fn begin(self, a: Self::I) -> Self::P;
    /// Adds to each lane the four products of unsigned weights and signed activations.
    ///
    /// Where not [`Simd::DIRECT`], the running sum of two neighbouring products must stay within
    /// i16.
    fn dot(self, sum: Self::P, weights: Self::B, activations: Self::B) -> Self::P;
    /// The sums as integers.
    fn end(self, sum: Self::P) -> Self::I;
    /// Adds to each lane the four products of weights stored plus 128 and signed activations
    /// (never -128), with each weight taken as its true value plus [`Simd::BYTE_BIAS`].
    fn dot_bytes(self, sum: Self::I, weights: Self::B, activations: Self::B) -> Self::I;

    /// Writes `LANES` columns of `LANES` rows as rows.
    ///
    /// # Safety
    /// `from` is valid for reads of `LANES` f32 at each of `LANES` steps of `from_bytes` bytes, aligned or not; `to` for writes of as
    /// many at each of `LANES` steps of `to_stride` values.
    #[inline(always)]
    unsafe fn turn(self, from: *const u8, from_bytes: usize, to: *mut f32, to_stride: usize) {
        for row in 0..Self::LANES {
            for column in 0..Self::LANES {
                // SAFETY: the caller's promise.
                unsafe {
                    let value =
                        from.add(row * from_bytes).cast::<f32>().add(column).read_unaligned();
                    to.add(column * to_stride + row).write(value);
                }
            }
        }
    }
}
