//! How long a run would take here, from the description of the model and the speed of this processor's own
//! products.

use std::time::{Duration, Instant};

use super::error::TrainError;
use super::product::{Matrix, Old, Target, Threads, multiply};
use super::recipe::Recipe;
use super::trainer::Base;
use crate::spec::names::Shape;
use crate::spec::{Head, ModelSpec};

/// How long the speed is measured.
const MEASURED: Duration = Duration::from_millis(30);

impl Base {
    /// Time for all steps of a recipe with full rows, on `threads` idle threads. Evaluating what is held out
    /// and measuring what the adapter remembers come on top. Takes some tens of milliseconds itself.
    ///
    /// The products decide: one pass forth and one back, of which LoRA needs no gradient of the frozen
    /// weights, so two multiply-adds per weight and token, three with recomputation.
    ///
    /// # Errors
    /// When the recipe is wrong.
    pub fn duration(&self, recipe: &Recipe, threads: u32) -> Result<Duration, TrainError> {
        recipe.check()?;
        let passes = if recipe.recompute { 3 } else { 2 };
        let tokens = recipe
            .steps
            .saturating_mul(u64::from(recipe.batch) * u64::from(recipe.accumulate))
            .saturating_mul(u64::from(recipe.sequence_tokens));
        let weights = multiplied(self.spec());
        let work = tokens as f64 * (weights.saturating_mul(passes)) as f64;
        let share = f64::from(threads.max(1)) / rayon::current_num_threads().max(1) as f64;
        let seconds = work / (pace() * share);
        Ok(Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX))
    }
}

/// Weights that every token is multiplied with.
fn multiplied(spec: &ModelSpec) -> u64 {
    let elements = |part| match spec.shape(part) {
        Shape::Matrix { rows, columns } => rows as u64 * columns as u64,
        Shape::Vector(_) => 0,
    };
    let layer: u64 = spec.layer_parts().into_iter().map(elements).sum();
    let head = match spec.output.head {
        Head::None => 0,
        _ => spec.vocab as u64 * spec.width as u64,
    };
    layer * spec.layers.len() as u64 + head
}

/// Multiply-adds per second of all threads at a product of training's own kind.
fn pace() -> f64 {
    let (m, k, n) = (512, 576, 1_536);
    let (a, b) = (vec![0.5; m * k], vec![0.25; n * k]);
    let mut to = vec![0.0; m * n];
    let mut product = || {
        let (a, b) = (Matrix::new(&a, m, k), Matrix::new(&b, n, k).t());
        multiply(Target::new(&mut to, m, n), Old::Replace, 1.0, a, b, Threads::All);
    };
    // The first one touches the memory.
    product();
    let (begun, mut products) = (Instant::now(), 0u32);
    while begun.elapsed() < MEASURED {
        product();
        products += 1;
    }
    f64::from(products.max(1)) * (m * k * n) as f64 / begun.elapsed().as_secs_f64()
}
