//! Which instructions the kernels may use, and the one place that makes that choice safe.

use std::sync::OnceLock;

#[cfg(target_arch = "x86_64")]
use super::kernels::{Avx2, Avx512};
use super::kernels::{Portable, Simd};

/// A set of instructions that the kernels are built for, least capable first.
///
/// Results do not depend on it: every kernel gives the same bits on all three.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Isa {
    /// Plain Rust without intrinsics. Compiled twice, the second time for processors with AVX2 and
    /// fused multiply-add, because without that instruction every exact `mul_add` is a library
    /// call.
    Portable,
    /// 256-bit vectors: `avx2`, `fma`, `f16c`.
    Avx2,
    /// 512-bit vectors with byte dot products: `avx512f`, `bw`, `vl`, `dq`, `vnni`.
    ///
    /// Processors with AVX-VNNI but without AVX-512 take [`Isa::Avx2`]: no machine to test such a
    /// variation on was at hand.
    Avx512,
}

/// Work that is written once over [`Simd`] and compiled for each instruction set.
///
/// Implementations mark `run` with `#[inline(always)]`; otherwise it is compiled without the
/// instructions it is meant to use, which is correct but slow.
pub trait Work {
    /// What the work results in.
    type Output;

    /// Does the work with the vectors of `simd`.
    fn run<S: Simd>(self, simd: S) -> Self::Output;
}

impl Isa {
    /// The most capable set that this processor has. Asked once, then remembered.
    pub fn detect() -> Self {
        static DETECTED: OnceLock<Isa> = OnceLock::new();
        *DETECTED.get_or_init(|| {
            #[cfg(target_arch = "x86_64")]
            if Avx512::detect().is_some() {
                return Self::Avx512;
            } else if Avx2::detect().is_some() {
                return Self::Avx2;
            }
            Self::Portable
        })
    }

    /// The most capable set that this processor has and that does not exceed `limit`.
    pub fn at_most(limit: Option<Self>) -> Self {
        limit.map_or(Self::detect(), |limit| limit.min(Self::detect()))
    }

    /// Every set that this processor has, least capable first.
    pub fn available() -> impl Iterator<Item = Self> {
        let all = [Self::Portable, Self::Avx2, Self::Avx512];
        all.into_iter().filter(|isa| *isa <= Self::detect())
    }

    /// The name used in options, reports and benchmarks.
    pub fn name(self) -> &'static str {
        match self {
            Self::Portable => "portable",
            Self::Avx2 => "avx2",
            Self::Avx512 => "avx512",
        }
    }

    /// Runs `work` compiled for this set, or for the best one below it that the processor has.
    #[inline]
    pub fn run<W: Work>(self, work: W) -> W::Output {
        #[cfg(target_arch = "x86_64")]
        match self {
            Self::Avx512 => {
                if let Some(simd) = Avx512::detect() {
                    return simd.run(work);
                }
                return Self::Avx2.run(work);
            }
            Self::Avx2 => {
                if let Some(simd) = Avx2::detect() {
                    return simd.run(work);
                }
            }
            Self::Portable => {}
        }
        Portable.run(work)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_never_exceeds_the_processor() {
        assert_eq!(Isa::at_most(Some(Isa::Portable)), Isa::Portable);
        assert_eq!(Isa::at_most(None), Isa::detect());
        assert!(Isa::at_most(Some(Isa::Avx512)) <= Isa::detect());
        assert_eq!(Isa::available().last(), Some(Isa::detect()));
    }
}
