//! Elementary functions on vectors: the same bits on every instruction set.

use super::kernels::Simd;

/// What an MLP applies between its products.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub enum Activation {
    /// `x * sigmoid(x)`.
    Silu,
    /// `max(x, 0)`.
    Relu,
}

/// Applies `activation` to each lane.
#[inline(always)]
pub fn activate<S: Simd>(s: S, activation: Activation, x: S::F) -> S::F {
    match activation {
        Activation::Silu => silu(s, x),
        Activation::Relu => s.max(x, s.splat(0.0)),
    }
}

/// `e^x`, within 2 ulp between -87.3 and 88, and constant beyond; not a number stays that.
///
/// Range reduction and polynomial of Cephes' `expf` (S. L. Moshier).
#[inline(always)]
pub fn exp<S: Simd>(s: S, x: S::F) -> S::F {
    // The bound comes first: a comparison with what is not a number gives the second operand.
    let x = s.max(s.splat(-87.3), s.min(s.splat(88.0), x));
    let n = s.round(s.mul(x, s.splat(std::f32::consts::LOG2_E)));
    let r = s.fma(n, s.splat(-0.693_359_4), x);
    let r = s.fma(n, s.splat(2.121_944_4e-4), r);
    let mut p = s.splat(1.987_569_2e-4);
    for c in [1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_6e-1, 5.000_000_1e-1] {
        p = s.fma(p, r, s.splat(c));
    }
    let p = s.fma(p, s.mul(r, r), s.add(r, s.splat(1.0)));
    let power = s.from_bits(s.shl_i(s.add_i(s.to_i(n), s.splat_i(127)), 23));
    s.mul(p, power)
}

/// `1 / (1 + e^-x)`.
#[inline(always)]
pub fn sigmoid<S: Simd>(s: S, x: S::F) -> S::F {
    let one = s.splat(1.0);
    s.div(one, s.add(one, exp(s, s.sub(s.splat(0.0), x))))
}

/// `x / (1 + e^-x)`.
#[inline(always)]
pub fn silu<S: Simd>(s: S, x: S::F) -> S::F {
    s.div(x, s.add(s.splat(1.0), exp(s, s.sub(s.splat(0.0), x))))
}
