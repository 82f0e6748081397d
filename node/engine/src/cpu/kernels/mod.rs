//! Arithmetic on packed weights: quantised activations, products, and what follows a product.
//!
//! Written once over [`Simd`] and compiled per instruction set. The order of operations is part of
//! the engine's numerics: an output depends on its row of weights and its row of activations alone,
//! and has the same bits on every instruction set, in every batch, for every split among threads.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod float;
mod in_place;
mod integer;
mod portable;
mod product;
mod quantise;
mod simd;
#[cfg(test)]
mod tests;

#[cfg(target_arch = "x86_64")]
pub use self::avx2::Avx2;
#[cfg(target_arch = "x86_64")]
pub use self::avx512::Avx512;
pub(crate) use self::float::{Element, F16, F32};
pub use self::portable::Portable;
pub(crate) use self::portable::{bf16_to_f32, f16_to_f32};
pub use self::product::{Input, Output, Product, Then};
pub use self::quantise::{QuantBlock, quantise_row};
pub use self::simd::Simd;

/// Asks for a cache line that is needed soon; any address will do. Into the second-level cache: the first level has few places for what
/// is under way, and the loads of what is computed now need them. Nothing happens where the kernels know no such instruction.
#[inline(always)]
pub(crate) fn prefetch(at: *const u8) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a prefetch does not fault, whatever the address.
    unsafe {
        use std::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_T1>(at.cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = at;
}
