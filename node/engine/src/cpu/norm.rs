//! Normalisation of vectors: RMS norm (Zhang and Sennrich 2019, arXiv 1910.07467) and layer norm
//! (Ba et al. 2016, arXiv 1607.06450).

use super::isa::{Isa, Work};
use super::kernels::Simd;
use super::lanes;

/// One norm of a model with its weights.
#[derive(Clone, Debug)]
pub(crate) struct Norm {
    /// Subtract the mean first.
    pub(crate) centred: bool,
    /// Added to the mean square.
    pub(crate) epsilon: f32,
    /// Factors, one for each element (for heads: for each element of a head). Gemma's `1 + w` is already
    /// added up.
    pub(crate) weight: Vec<f32>,
    /// Added at the end; as long as `weight`.
    pub(crate) bias: Option<Vec<f32>>,
}

/// What a vector is normalised by.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Moments {
    mean: f32,
    /// `1 / sqrt(mean square + ε)`.
    inverse: f32,
}

impl Norm {
    /// `out = norm(x)`.
    ///
    /// # Panics
    /// When `x`, `out` and the weights differ in length.
    pub(crate) fn apply(&self, isa: Isa, x: &[f32], out: &mut [f32]) {
        isa.run(Apply { norm: self, x, out });
    }

    /// `x = norm(x)`.
    ///
    /// # Panics
    /// As [`Norm::apply`].
    pub(crate) fn apply_in_place(&self, isa: Isa, x: &mut [f32]) {
        isa.run(ApplyInPlace { norm: self, x });
    }

    /// Mean and scale of a vector.
    #[inline(always)]
    pub(crate) fn moments<S: Simd>(&self, s: S, x: &[f32]) -> Moments {
        let add = |a: f32, b: f32| a + b;
        let count = x.len() as f32;
        if !self.centred {
            let squares = lanes::fold(s, x, 0.0, |acc, x| s.fma(x, x, acc));
            let mean_square = lanes::join(s, squares, add) / count;
            return Moments { mean: 0.0, inverse: 1.0 / (mean_square + self.epsilon).sqrt() };
        }
        let sum = lanes::fold(s, x, 0.0, |acc, x| s.add(acc, x));
        let mean = lanes::join(s, sum, add) / count;
        let (whole, rest) = x.as_chunks::<{ lanes::LANES }>();
        let mut squares = lanes::splat(s, 0.0);
        let step = |squares, chunk: &[f32; lanes::LANES]| {
            let chunk = lanes::load(s, chunk);
            lanes::zip::<S>(squares, chunk, |acc, x| s.fma(x, x, acc))
        };
        let centred = |chunk: &[f32]| {
            // Lanes without an element stay zero.
            let mut out = [0.0; lanes::LANES];
            for (out, x) in out.iter_mut().zip(chunk) {
                *out = x - mean;
            }
            out
        };
        for chunk in whole {
            squares = step(squares, &centred(chunk));
        }
        squares = step(squares, &centred(rest));
        let variance = lanes::join(s, squares, add) / count;
        Moments { mean, inverse: 1.0 / (variance + self.epsilon).sqrt() }
    }

    /// One element that stands at `at` in the weights.
    #[inline(always)]
    fn element(&self, moments: Moments, weight: f32, bias: Option<f32>, x: f32) -> f32 {
        let x = if self.centred { x - moments.mean } else { x };
        let x = x * moments.inverse;
        match bias {
            Some(bias) => x.mul_add(weight, bias),
            None => x * weight,
        }
    }

    /// Normalises a piece of a vector whose moments are known; `at` is where the piece stands in the weights.
    #[inline(always)]
    pub(crate) fn write(&self, moments: Moments, at: usize, x: &[f32], out: &mut [f32]) {
        let weight = &self.weight[at..at + x.len()];
        let out = &mut out[..x.len()];
        match &self.bias {
            Some(bias) => {
                let bias = &bias[at..at + x.len()];
                for i in 0..x.len() {
                    out[i] = self.element(moments, weight[i], Some(bias[i]), x[i]);
                }
            }
            None => {
                for i in 0..x.len() {
                    out[i] = self.element(moments, weight[i], None, x[i]);
                }
            }
        }
    }

    /// [`Norm::write`] onto the piece itself.
    #[inline(always)]
    pub(crate) fn write_in_place(&self, moments: Moments, at: usize, x: &mut [f32]) {
        let weight = &self.weight[at..at + x.len()];
        let bias = self.bias.as_ref().map(|bias| &bias[at..at + x.len()]);
        for i in 0..x.len() {
            x[i] = self.element(moments, weight[i], bias.map(|bias| bias[i]), x[i]);
        }
    }
}

struct Apply<'a> {
    norm: &'a Norm,
    x: &'a [f32],
    out: &'a mut [f32],
}

impl Work for Apply<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        assert_eq!(self.x.len(), self.norm.weight.len(), "a weight for each element");
        assert_eq!(self.x.len(), self.out.len(), "as many results as elements");
        self.norm.write(self.norm.moments(s, self.x), 0, self.x, self.out);
    }
}

struct ApplyInPlace<'a> {
    norm: &'a Norm,
    x: &'a mut [f32],
}

impl Work for ApplyInPlace<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        assert_eq!(self.x.len(), self.norm.weight.len(), "a weight for each element");
        let moments = self.norm.moments(s, self.x);
        self.norm.write_in_place(moments, 0, self.x);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vector(len: usize, seed: u32) -> Vec<f32> {
        let mut state = seed.wrapping_mul(2_654_435_761).wrapping_add(1);
        let mut next = || {
            state ^= state << 13;
            state ^= state >> 17;
            state ^= state << 5;
            state as f32 / u32::MAX as f32 * 4.0 - 1.5
        };
        (0..len).map(|_| next()).collect()
    }

    /// Goal: both kinds agree with f64, for lengths that fill lanes and lengths that do not, and have the
    /// same bits on every instruction set, in place or not.
    #[test]
    fn norms_are_right_and_the_same_everywhere() {
        for len in [1, 7, 8, 16, 31, 64, 100, 576] {
            for centred in [false, true] {
                let (x, weight) = (vector(len, 1), vector(len, 2));
                let bias = centred.then(|| vector(len, 3));
                let norm = Norm { centred, epsilon: 1e-5, weight, bias };
                let mean = x.iter().map(|&x| f64::from(x)).sum::<f64>() / len as f64;
                let mean = if centred { mean } else { 0.0 };
                let square = x.iter().map(|&x| (f64::from(x) - mean).powi(2)).sum::<f64>();
                let scale = (square / len as f64 + 1e-5).sqrt();
                let mut portable = vec![0.0; len];
                norm.apply(Isa::Portable, &x, &mut portable);
                for i in 0..len {
                    let bias = norm.bias.as_ref().map_or(0.0, |bias| f64::from(bias[i]));
                    let expected =
                        (f64::from(x[i]) - mean) / scale * f64::from(norm.weight[i]) + bias;
                    assert!((f64::from(portable[i]) - expected).abs() < 2e-5, "{len} {i}");
                }
                for isa in Isa::available() {
                    let mut out = vec![0.0; len];
                    norm.apply(isa, &x, &mut out);
                    assert_eq!(out, portable, "{isa:?} {len}");
                    out.copy_from_slice(&x);
                    norm.apply_in_place(isa, &mut out);
                    assert_eq!(out, portable, "{isa:?} {len} in place");
                }
            }
        }
    }
}
