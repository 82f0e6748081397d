//! DP-SGD on the adapter (Abadi et al. 2016, arXiv 1607.00133), with the subject as the unit.
//!
//! A step draws each subject with probability `q`, computes one gradient per drawn subject over all of its rows,
//! scales each down to norm `C`, adds noise of deviation `σ C` to the sum (also when nobody was drawn), divides by a
//! public constant, and hands the result to the optimiser. What this costs in privacy is counted elsewhere.

use std::collections::BTreeSet;

use super::error::TrainError;
use super::example::{Example, Subject};
use super::optimiser;
use super::peft::AdapterFiles;
use super::random::{NoiseKey, Purpose};
use super::recipe::Privacy;
use super::trainer::Trainer;

/// What one private step did.
///
/// Only the step's number and rate are public; how many subjects were drawn and what they weighed depends on
/// the data and must not leave the node.
#[derive(Clone, Debug, PartialEq)]
pub struct PrivateReport {
    /// Which step it was, from 0.
    pub step: u64,
    /// Learning rate of the step.
    pub learning_rate: f64,
    /// Subjects drawn.
    pub subjects: usize,
    /// Mean over subjects of the mean cross entropy over their labels; None when nobody was drawn.
    pub loss: Option<f64>,
    /// Subjects whose gradient was scaled down.
    pub clipped: usize,
    /// Tokens computed.
    pub tokens: u64,
}

/// The sum of clipped gradients, before noise: for comparing implementations and for tests. It is not private.
#[derive(Clone, Debug, PartialEq)]
pub struct ClippedSum {
    /// Norm of each subject's gradient before clipping, in the order given.
    pub norms: Vec<f64>,
    /// Mean cross entropy over each subject's labels.
    pub losses: Vec<f64>,
    pub(super) sum: Vec<f32>,
    tokens: u64,
}

impl Trainer {
    /// Draws the subjects of the next step out of `population`, each with the recipe's sampling rate and
    /// independently: numbers from 0, ascending. The same step always draws the same ones.
    ///
    /// # Errors
    /// When the run is not private.
    pub fn sample_subjects(&self, population: usize) -> Result<Vec<usize>, TrainError> {
        let (privacy, key) = self.privacy()?;
        let mut stream = key.stream(self.step_number(), Purpose::Sample);
        Ok((0..population).filter(|_| stream.chance(privacy.sampling_rate)).collect())
    }

    /// One private step over the subjects that were drawn, possibly none. Each item holds all rows of one
    /// subject, and every row names it.
    ///
    /// # Errors
    /// When the run is not private or has ended, a row names no subject, one that another item has, or does not
    /// fit; and [`TrainError::NotFinite`]. The adapter is then as it was.
    pub fn step_private(&mut self, subjects: &[&[Example]]) -> Result<PrivateReport, TrainError> {
        self.check_running()?;
        let ClippedSum { norms, losses, mut sum, tokens } = self.clipped_sum(subjects)?;
        let (privacy, key) = self.privacy()?;
        let step = self.step_number();
        let deviation = privacy.noise_multiplier * privacy.clip_norm;
        let mut stream = key.stream(step, Purpose::Noise);
        for pair in sum.chunks_mut(2) {
            let noise = <[f64; 2]>::from(stream.normals());
            for (value, noise) in pair.iter_mut().zip(noise) {
                *value = ((f64::from(*value) + deviation * noise) / privacy.divisor) as f32;
            }
        }
        let clipped = norms.iter().filter(|&&norm| norm > privacy.clip_norm).count();
        let learning_rate = self.apply(&sum);
        let count = losses.len();
        let loss = (count > 0).then(|| losses.iter().sum::<f64>() / count as f64);
        Ok(PrivateReport { step, learning_rate, subjects: count, loss, clipped, tokens })
    }

    /// Gradient norms of the subjects and the sum of their clipped gradients, without noise. The gradient of a
    /// subject is that of the mean cross entropy over the labels of all its rows; a subject without labels has
    /// none.
    ///
    /// # Errors
    /// As [`Trainer::step_private`].
    pub fn clipped_sum(&self, subjects: &[&[Example]]) -> Result<ClippedSum, TrainError> {
        let (privacy, _) = self.privacy()?;
        check_subjects(subjects)?;
        let mut all = ClippedSum {
            norms: Vec::with_capacity(subjects.len()),
            losses: Vec::with_capacity(subjects.len()),
            sum: vec![0.0; self.lora.len()],
            tokens: 0,
        };
        let mut first = 0;
        for rows in subjects {
            let mut packed = Vec::new();
            for rows in rows.chunks(self.recipe.batch as usize) {
                packed.push(self.pack(rows, first)?);
                first += rows.len();
            }
            all.tokens += packed.iter().map(|packed| packed.rows() as u64).sum::<u64>();
            if packed.iter().all(|packed| packed.labels.is_empty()) {
                all.norms.push(0.0);
                all.losses.push(0.0);
                continue;
            }
            let (loss, gradient) = self.gradient(&packed)?;
            let norm = optimiser::norm(&gradient);
            self.check_finite(loss, norm)?;
            let factor = if norm > privacy.clip_norm { privacy.clip_norm / norm } else { 1.0 };
            for (sum, g) in all.sum.iter_mut().zip(&gradient) {
                *sum += (f64::from(*g) * factor) as f32;
            }
            all.norms.push(norm);
            all.losses.push(loss);
        }
        Ok(all)
    }

    /// A clipped sum in the shape of an adapter, tensor by tensor.
    #[must_use]
    pub fn sum_as_adapter(&self, sum: &ClippedSum) -> AdapterFiles {
        AdapterFiles::of(&self.lora, &sum.sum, &self.recipe)
    }

    fn privacy(&self) -> Result<(Privacy, &NoiseKey), TrainError> {
        let absent = || TrainError::recipe("privacy", "is absent: this run is not private");
        Ok((self.recipe.privacy.ok_or_else(absent)?, self.noise.as_ref().ok_or_else(absent)?))
    }
}

/// A subject that came twice would weigh twice what its noise hides.
fn check_subjects(subjects: &[&[Example]]) -> Result<(), TrainError> {
    let mut seen = BTreeSet::<Subject>::new();
    let mut row = 0;
    for rows in subjects {
        let mut own = None;
        for example in *rows {
            let Some(subject) = example.subject else {
                return Err(TrainError::example(
                    row,
                    "names no subject, which a private run needs",
                ));
            };
            if own.is_some_and(|own| own != subject) {
                return Err(TrainError::example(
                    row,
                    "belongs to another subject than the rows with it",
                ));
            }
            if own.is_none() && !seen.insert(subject) {
                return Err(TrainError::example(row, "belongs to a subject that came before"));
            }
            own = Some(subject);
            row += 1;
        }
    }
    Ok(())
}
