//! AdamW (Loshchilov and Hutter 2019, arXiv 1711.05101), in torch's order of operations.

use rayon::prelude::*;

use super::recipe::Recipe;

/// Both moments and the number of updates made.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct AdamW {
    pub(crate) first: Vec<f32>,
    pub(crate) second: Vec<f32>,
    pub(crate) updates: u64,
}

impl AdamW {
    pub(crate) fn new(len: usize) -> Self {
        Self { first: vec![0.0; len], second: vec![0.0; len], updates: 0 }
    }

    /// Moves `parameters` against `gradient`, with the step's learning rate.
    pub(crate) fn update(
        &mut self,
        parameters: &mut [f32],
        gradient: &[f32],
        rate: f64,
        recipe: &Recipe,
    ) {
        const PIECE: usize = 1 << 14;
        self.updates += 1;
        let power = i32::try_from(self.updates).unwrap_or(i32::MAX);
        let (beta1, beta2) = (recipe.beta1, recipe.beta2);
        // Scalars in f64, elements in f32, as torch has them.
        let size = (rate / (1.0 - beta1.powi(power))) as f32;
        let root = (1.0 - beta2.powi(power)).sqrt() as f32;
        let shrink = (1.0 - rate * recipe.weight_decay) as f32;
        let (keep1, keep2) = ((1.0 - beta1) as f32, beta2 as f32);
        let (fresh2, epsilon) = ((1.0 - beta2) as f32, recipe.epsilon as f32);
        let moments = self.first.par_chunks_mut(PIECE).zip(self.second.par_chunks_mut(PIECE));
        let pieces = parameters.par_chunks_mut(PIECE).zip(gradient.par_chunks(PIECE));
        pieces.zip(moments).for_each(|((parameters, gradient), (first, second))| {
            let moments = first.iter_mut().zip(second.iter_mut());
            for ((p, &g), (m, v)) in parameters.iter_mut().zip(gradient).zip(moments) {
                *p *= shrink;
                *m += (g - *m) * keep1;
                *v = *v * keep2 + fresh2 * g * g;
                *p -= size * (*m / (v.sqrt() / root + epsilon));
            }
        });
    }
}

/// The Euclidean norm, summed in f64 and in order.
pub(crate) fn norm(gradient: &[f32]) -> f64 {
    gradient.iter().map(|&g| f64::from(g) * f64::from(g)).sum::<f64>().sqrt()
}

/// Scales a gradient of this norm down to `norm_max`, as torch's `clip_grad_norm_` does.
pub(crate) fn clip(gradient: &mut [f32], norm: f64, norm_max: f64) {
    let factor = (norm_max / (norm + 1e-6)).min(1.0) as f32;
    gradient.iter_mut().for_each(|g| *g *= factor);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: three updates worked out by hand from the paper's formulas, in f64.
    #[test]
    fn updates_follow_the_formulas() {
        let recipe = Recipe { weight_decay: 0.1, beta1: 0.8, beta2: 0.9, ..Recipe::default() };
        let mut optimiser = AdamW::new(1);
        let mut parameters = vec![0.5f32];
        let (mut p, mut m, mut v) = (0.5f64, 0.0f64, 0.0f64);
        for (step, g) in (1..).zip([0.3f32, -2.0, 0.01]) {
            optimiser.update(&mut parameters, &[g], 0.05, &recipe);
            let g = f64::from(g);
            p *= 1.0 - 0.05 * 0.1;
            m = 0.8 * m + 0.2 * g;
            v = 0.9 * v + 0.1 * g * g;
            let (first, second) = (m / (1.0 - 0.8f64.powi(step)), v / (1.0 - 0.9f64.powi(step)));
            p -= 0.05 * first / (second.sqrt() + 1e-8);
            assert!((f64::from(parameters[0]) - p).abs() < 1e-6, "{step}");
        }
    }

    #[test]
    fn clipping_only_shrinks() {
        let mut gradient = vec![3.0, 4.0];
        clip(&mut gradient, 5.0, 10.0);
        assert_eq!(gradient, [3.0, 4.0]);
        clip(&mut gradient, norm(&[3.0, 4.0]), 1.0);
        assert!((norm(&gradient) - 1.0).abs() < 1e-6);
    }
}
