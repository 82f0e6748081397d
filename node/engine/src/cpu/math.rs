//! Elementary functions over vectors, in one fixed sequence of exact or correctly rounded operations: the same
//! bits on every instruction set.
//!
//! Errors are a few units in the last place against f64 where models use the functions; the tests say how
//! many. Not a number goes through as not a number.

use super::kernels::Simd;

/// The function between the two halves of an MLP, element by element.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Activation {
    /// `x * sigmoid(x)`.
    Silu,
    /// `x/2 * (1 + tanh(sqrt(2/π) (x + 0.044715 x³)))` (Hendrycks and Gimpel 2016, arXiv 1606.08415).
    GeluTanh,
    /// `x/2 * (1 + erf(x / sqrt(2)))`.
    GeluErf,
    /// `max(x, 0)`.
    Relu,
    /// xIELU (Huang and Schlag 2024, arXiv 2411.13010): `αp x² + β x` where `x > 0`, otherwise
    /// `(expm1(min(x, ε)) - x) αn + β x`.
    Xielu {
        /// αp, after softplus.
        alpha_p: f32,
        /// αn, after softplus and with β added.
        alpha_n: f32,
        /// β.
        beta: f32,
        /// ε, a small negative number.
        epsilon: f32,
    },
}

/// Applies an activation function.
#[inline(always)]
pub fn activate<S: Simd>(s: S, activation: Activation, x: S::F) -> S::F {
    match activation {
        Activation::Silu => s.div(x, s.add(s.splat(1.0), exp(s, s.sub(s.splat(0.0), x)))),
        Activation::GeluTanh => {
            const C: f32 = 0.797_884_6; // sqrt(2/π)
            let inner = s.fma(s.mul(x, x), s.splat(0.044_715 * C), s.splat(C));
            let half = s.mul(x, s.splat(0.5));
            s.fma(half, tanh(s, s.mul(x, inner)), half)
        }
        Activation::GeluErf => {
            let half = s.mul(x, s.splat(0.5));
            s.fma(half, erf(s, s.mul(x, s.splat(std::f32::consts::FRAC_1_SQRT_2))), half)
        }
        Activation::Relu => s.max(s.splat(0.0), x),
        Activation::Xielu { alpha_p, alpha_n, beta, epsilon } => {
            let linear = s.mul(s.splat(beta), x);
            let above = s.fma(s.mul(s.splat(alpha_p), x), x, linear);
            let bent = s.sub(exp_m1(s, s.min(s.splat(epsilon), x)), x);
            let below = s.fma(bent, s.splat(alpha_n), linear);
            s.select_lt(s.splat(0.0), x, above, below)
        }
    }
}

/// `cap * tanh(x / cap)`.
#[inline(always)]
pub(crate) fn soft_cap<S: Simd>(s: S, cap: f32, x: S::F) -> S::F {
    let cap = s.splat(cap);
    s.mul(cap, tanh(s, s.div(x, cap)))
}

/// Below this `exp` is zero, exactly: masked scores of minus infinity vanish.
const EXP_MIN: f32 = -87.336_54;
/// Above this `exp` stays where it is, about 2e38.
const EXP_MAX: f32 = 88.3;

/// `e^x`, from Cephes' `expf`: `x = n ln 2 + r`, a polynomial in `r`, times `2^n`.
#[inline(always)]
pub(crate) fn exp<S: Simd>(s: S, x: S::F) -> S::F {
    let (less_one, power) = exp_parts(s, x);
    let value = s.mul(s.add(less_one, s.splat(1.0)), power);
    s.select_lt(x, s.splat(EXP_MIN), s.splat(0.0), value)
}

/// `e^x - 1`, accurate near zero. Not for `x` beyond the range of [`exp`].
#[inline(always)]
fn exp_m1<S: Simd>(s: S, x: S::F) -> S::F {
    let (less_one, power) = exp_parts(s, x);
    s.fma(less_one, power, s.sub(power, s.splat(1.0)))
}

/// `e^r - 1` and `2^n`, whose combination is `e^x`.
#[inline(always)]
fn exp_parts<S: Simd>(s: S, x: S::F) -> (S::F, S::F) {
    // In this order of arguments what is not a number stays so.
    let x = s.min(s.splat(EXP_MAX), s.max(s.splat(EXP_MIN), x));
    let n = s.round(s.mul(x, s.splat(std::f32::consts::LOG2_E)));
    // ln 2 in two parts, so that the first product is exact.
    let r = s.fma(n, s.splat(-0.693_359_4), x);
    let r = s.fma(n, s.splat(2.121_944_4e-4), r);
    let mut p = s.splat(1.987_569_2e-4);
    for c in [1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 5e-1] {
        p = s.fma(p, r, s.splat(c));
    }
    let less_one = s.fma(p, s.mul(r, r), r);
    let exponent = s.add_i(s.to_i(n), s.splat_i(127));
    (less_one, s.from_bits(s.shl_i(exponent, 23)))
}

/// The hyperbolic tangent, from Cephes' `tanhf`: a polynomial near zero, elsewhere by way of [`exp`].
#[inline(always)]
pub(crate) fn tanh<S: Simd>(s: S, x: S::F) -> S::F {
    let sign = s.and_i(s.bits(x), s.splat_i(i32::MIN));
    let size = s.from_bits(s.and_i(s.bits(x), s.splat_i(i32::MAX)));
    let one = s.splat(1.0);
    let far = s.sub(one, s.div(s.splat(2.0), s.add(exp(s, s.add(size, size)), one)));
    let far = s.from_bits(s.or_i(s.bits(far), sign));
    let z = s.mul(x, x);
    let mut p = s.splat(-5.704_988_7e-3);
    for c in [2.063_909e-2, -5.373_971_6e-2, 1.333_144_2e-1, -3.333_328e-1] {
        p = s.fma(p, z, s.splat(c));
    }
    let near = s.fma(s.mul(p, z), x, x);
    s.select_lt(size, s.splat(0.625), near, far)
}

/// The error function: the rational approximation of Eigen's `erf` for floats, on -4..4, beyond which the
/// result is ±1 in f32.
#[inline(always)]
pub(crate) fn erf<S: Simd>(s: S, x: S::F) -> S::F {
    let x = s.min(s.splat(4.0), s.max(s.splat(-4.0), x));
    let z = s.mul(x, x);
    let mut p = s.splat(-2.726_142e-10);
    for c in [
        2.770_681_5e-8,
        -2.101_024e-6,
        -5.692_506_5e-5,
        -7.349_906_4e-4,
        -2.954_6e-3,
        -1.609_603_4e-2,
    ] {
        p = s.fma(p, z, s.splat(c));
    }
    let mut q = s.splat(-1.456_607_2e-5);
    for c in [-2.133_740_6e-4, -1.682_827e-3, -7.373_329e-3, -1.426_473_9e-2] {
        q = s.fma(q, z, s.splat(c));
    }
    s.div(s.mul(x, p), q)
}

#[cfg(test)]
mod tests;
