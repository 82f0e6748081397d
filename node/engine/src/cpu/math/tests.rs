//! Accuracy against f64, and equality of bits between instruction sets.

use super::*;
use crate::cpu::isa::{Isa, Work};

#[derive(Clone, Copy, Debug)]
enum Function {
    Exp,
    ExpM1,
    Tanh,
    Erf,
    SoftCap(f32),
    Activate(Activation),
}

struct Run<'a>(Function, &'a mut [f32]);

impl Work for Run<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        for chunk in self.1.chunks_exact_mut(S::LANES) {
            // SAFETY: the chunk has `LANES` values.
            unsafe {
                let x = s.load(chunk.as_ptr());
                let y = match self.0 {
                    Function::Exp => exp(s, x),
                    Function::ExpM1 => exp_m1(s, x),
                    Function::Tanh => tanh(s, x),
                    Function::Erf => erf(s, x),
                    Function::SoftCap(cap) => soft_cap(s, cap, x),
                    Function::Activate(activation) => activate(s, activation, x),
                };
                s.store(chunk.as_mut_ptr(), y);
            }
        }
    }
}

const XIELU: Activation =
    Activation::Xielu { alpha_p: 0.7, alpha_n: 1.2, beta: 0.5, epsilon: -1e-6 };

const ALL: [Function; 10] = [
    Function::Exp,
    Function::ExpM1,
    Function::Tanh,
    Function::Erf,
    Function::SoftCap(30.0),
    Function::Activate(Activation::Silu),
    Function::Activate(Activation::GeluTanh),
    Function::Activate(Activation::GeluErf),
    Function::Activate(Activation::Relu),
    Function::Activate(XIELU),
];

fn values(isa: Isa, function: Function, x: &[f32]) -> Vec<f32> {
    assert!(x.len().is_multiple_of(16), "whole vectors");
    let mut out = x.to_vec();
    isa.run(Run(function, &mut out));
    out
}

fn grid(from: f32, to: f32) -> Vec<f32> {
    const POINTS: usize = 1 << 14;
    (0..POINTS).map(|i| from + (to - from) * i as f32 / (POINTS - 1) as f32).collect()
}

/// The error function by its Maclaurin series, as far as that is accurate in f64.
fn erf_f64(x: f64) -> f64 {
    if x.abs() > 4.0 {
        // 1 but for 2e-8.
        return x.signum();
    }
    let (mut term, mut sum) = (x, x);
    for n in 1..200 {
        term *= -x * x / f64::from(n);
        sum += term / f64::from(2 * n + 1);
    }
    sum * std::f64::consts::FRAC_2_SQRT_PI
}

fn reference(function: Function, x: f64) -> f64 {
    match function {
        Function::Exp => x.exp(),
        Function::ExpM1 => x.exp_m1(),
        Function::Tanh => x.tanh(),
        Function::Erf => erf_f64(x),
        Function::SoftCap(cap) => f64::from(cap) * (x / f64::from(cap)).tanh(),
        Function::Activate(Activation::Silu) => x / (1.0 + (-x).exp()),
        Function::Activate(Activation::GeluTanh) => {
            let inner = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x * x * x);
            0.5 * x * (1.0 + inner.tanh())
        }
        Function::Activate(Activation::GeluErf) => {
            0.5 * x * (1.0 + erf_f64(x * std::f64::consts::FRAC_1_SQRT_2))
        }
        Function::Activate(Activation::Relu) => x.max(0.0),
        Function::Activate(Activation::Xielu { alpha_p, alpha_n, beta, epsilon }) => {
            let (alpha_p, alpha_n, beta) = (alpha_p.into(), f64::from(alpha_n), f64::from(beta));
            match x > 0.0 {
                true => f64::mul_add(alpha_p, x * x, beta * x),
                false => (x.min(epsilon.into()).exp_m1() - x) * alpha_n + beta * x,
            }
        }
    }
}

/// Goal: every function is what its name says, within a few units in the last place of the largest of
/// argument, result and 1.
#[test]
fn functions_are_accurate() {
    for function in ALL {
        let x = grid(-5.5, 5.5);
        for (x, y) in x.iter().zip(values(Isa::detect(), function, &x)) {
            let expected = reference(function, f64::from(*x));
            let size = expected.abs().max(f64::from(x.abs())).max(1.0);
            let error = (f64::from(y) - expected).abs() / size;
            assert!(error < 4e-7, "{function:?}({x}) = {y}, not {expected}");
        }
    }
    for (x, y) in
        grid(-87.0, 88.0).iter().zip(values(Isa::detect(), Function::Exp, &grid(-87.0, 88.0)))
    {
        let expected = f64::from(*x).exp();
        assert!((f64::from(y) / expected - 1.0).abs() < 2e-7, "exp({x}) = {y}, not {expected}");
    }
    // Relative accuracy near zero, where 1 - 1 would have none.
    for function in [Function::Tanh, Function::ExpM1, Function::Erf] {
        let x = grid(1e-6, 1e-2);
        for (x, y) in x.iter().zip(values(Isa::detect(), function, &x)) {
            let expected = reference(function, f64::from(*x));
            assert!((f64::from(y) / expected - 1.0).abs() < 4e-7, "{function:?}({x}) = {y}");
        }
    }
}

#[test]
fn limits_are_what_masks_and_damage_need() {
    let mut x = [0.0; 16];
    x[0] = f32::NEG_INFINITY;
    x[1] = -88.0;
    x[2] = f32::NAN;
    x[3] = 1e30;
    x[4] = f32::INFINITY;
    for isa in Isa::available() {
        let y = values(isa, Function::Exp, &x);
        assert_eq!(y[..2], [0.0, 0.0], "masked scores vanish");
        assert!(y[2].is_nan() && y[3].is_finite() && y[5] == 1.0);
        for function in ALL {
            assert!(values(isa, function, &x)[2].is_nan(), "{function:?} hides damage");
        }
        let y = values(isa, Function::Tanh, &x);
        assert_eq!((y[0], y[3], y[4]), (-1.0, 1.0, 1.0));
    }
}

/// Goal: the same bits on all instruction sets, on every magnitude and for special values.
#[test]
fn bits_do_not_depend_on_the_instruction_set() {
    let mut x: Vec<f32> = Vec::new();
    let mut bits = 0x9e37_79b9u32;
    for _ in 0..1 << 14 {
        bits ^= bits << 13;
        bits ^= bits >> 17;
        bits ^= bits << 5;
        x.push(f32::from_bits(bits));
        x.push((bits as f32 / u32::MAX as f32 - 0.5) * 40.0);
    }
    x.extend([
        0.0,
        -0.0,
        f32::INFINITY,
        f32::NEG_INFINITY,
        f32::MIN_POSITIVE,
        1e-45,
        88.3,
        -87.336_54,
    ]);
    x.resize(x.len().next_multiple_of(16), 1.0);
    for function in ALL {
        let expected = values(Isa::Portable, function, &x);
        for isa in Isa::available() {
            for ((x, a), b) in x.iter().zip(&expected).zip(values(isa, function, &x)) {
                let same = a.to_bits() == b.to_bits() || (a.is_nan() && b.is_nan());
                assert!(same, "{function:?}({x}) is {a} portably and {b} with {isa:?}");
            }
        }
    }
}
