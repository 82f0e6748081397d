//! Chooses the next token from logits, reproducibly.
//!
//! # Order of operations
//! Raw logits, as the model gave them, decide [`crate::Logprobs`]: natural logarithms of their softmax.
//! They are then changed in this order:
//!
//! 1. *Logit bias* is added.
//! 2. *Repetition penalty* `r` (Keskar et al. 2019, arXiv:1909.05858): the logit of every token that
//!    occurs in prompt or answer is divided by `r` if positive, else multiplied by it.
//! 3. *Frequency and presence penalty*: `frequency * n + presence` is subtracted from the logit of every
//!    token that occurs `n > 0` times in the answer.
//!
//! With temperature 0 the largest logit is chosen, the lowest id among equals. Otherwise candidates are
//! ordered by (logit descending, id ascending), and
//!
//! 4. *top-k*: the first `top_k` are kept;
//! 5. *temperature*: each weighs `exp((logit - largest) / temperature)`;
//! 6. *top-p*: of these the shortest prefix is kept whose share of the weight reaches `top_p`;
//! 7. *min-p*: those that weigh less than `min_p` times the first are dropped;
//! 8. the rest is walked until the running sum of weights exceeds `u` times their total.
//!
//! `u` is a pure function of (seed, token index): SplitMix64's output function (Steele, Lea and Flood,
//! "Fast Splittable Pseudorandom Number Generators", 2014) over the seed's own hash plus the index,
//! top 53 bits. There is no generator state, so an answer resumed elsewhere after some tokens continues
//! as if it had never stopped, and tokens guessed ahead are decided as they would have been.
//!
//! # Determinism
//! Every operation is a basic one of IEEE 754 in a fixed order; `exp` is our own ([`softmax`]). The only
//! call to the platform's mathematics is the one logarithm in a log-probability, which is then rounded to
//! millionths.

mod candidates;
mod history;
mod settings;
mod softmax;

pub(crate) use self::history::History;
pub use self::settings::Sampling;

use self::candidates::{Candidate, Descending};
use crate::error::EngineError;

/// A token's id and the logarithm of its probability, in millionths.
pub(crate) type LogProb = (u32, i32);

/// Logits of one row that are known to be finite.
pub(crate) struct Logits<'a> {
    values: &'a mut [f32],
    largest: f32,
}

impl<'a> Logits<'a> {
    /// # Errors
    /// [`EngineError::NotFinite`] when a logit is NaN or infinite, or there is none.
    pub(crate) fn new(values: &'a mut [f32], index: u32) -> Result<Self, EngineError> {
        if values.is_empty() || !softmax::all_finite(values) {
            return Err(EngineError::NotFinite { index });
        }
        let largest = softmax::largest(values);
        Ok(Self { values, largest })
    }

    /// Log-probabilities of `id` and of the `top` most likely tokens, in descending order.
    pub(crate) fn log_probs(&self, id: u32, top: usize) -> (LogProb, Vec<LogProb>) {
        let micro = self.to_micro();
        let own = self.values.get(id as usize).map_or(i32::MIN, |&logit| micro(logit));
        let top = Descending::new(self.values).take(top);
        ((id, own), top.map(|candidate| (candidate.id, micro(candidate.logit))).collect())
    }

    /// Log-probabilities of tokens in their order.
    pub(crate) fn micro(&self, ids: &[u32]) -> Vec<i32> {
        if ids.is_empty() {
            return Vec::new();
        }
        let micro = self.to_micro();
        let of = |id: &u32| self.values.get(*id as usize).map_or(i32::MIN, |&logit| micro(logit));
        ids.iter().map(of).collect()
    }

    /// Takes a logit to a log-probability in millionths.
    fn to_micro(&self) -> impl Fn(f32) -> i32 + use<> {
        let total = softmax::total_weight(self.values, self.largest, 1.0).ln();
        let largest = f64::from(self.largest);
        // The cast saturates; probabilities below e^-2147 are all alike.
        move |logit| ((f64::from(logit) - largest - total) * 1e6).round() as i32
    }

    /// Chooses the token with the given index of the answer. The logits are changed on the way, so this
    /// comes last.
    pub(crate) fn choose(mut self, sampling: &Sampling, history: &History, index: u32) -> u32 {
        if history.adjust(sampling, self.values) {
            self.largest = softmax::largest(self.values);
        }
        if sampling.temperature_milli == 0 {
            return softmax::position_of(self.values, self.largest);
        }
        self.draw(sampling, uniform(sampling.seed, index))
    }

    /// Draws a candidate, with `unit` in 0..1.
    fn draw(&self, sampling: &Sampling, unit: f64) -> u32 {
        let temperature = sampling.temperature_milli as f32 / 1_000.0;
        let scale = 1.0 / temperature;
        let weight = |logit: f32| f64::from(softmax::exp((logit - self.largest) * scale));
        let descending = Descending::new(self.values);
        let top_k = sampling.top_k as usize;
        if (1..self.values.len()).contains(&top_k) {
            let first: Vec<Candidate> = descending.take(top_k).collect();
            let all = first.iter().map(|candidate| weight(candidate.logit)).sum();
            return walk(first.into_iter(), &weight, all, sampling, unit);
        }
        let all = softmax::total_weight(self.values, self.largest, scale);
        walk(descending, &weight, all, sampling, unit)
    }
}

/// Chooses among candidates in descending order whose weights sum up to `all`.
fn walk(
    candidates: impl Iterator<Item = Candidate>,
    weight: &dyn Fn(f32) -> f64,
    all: f64,
    sampling: &Sampling,
    unit: f64,
) -> u32 {
    let weighed = candidates.map(|candidate| (candidate.id, weight(candidate.logit)));
    if sampling.top_p_milli >= 1_000 && sampling.min_p_milli == 0 {
        return pick(weighed, unit * all);
    }
    let wanted = all * f64::from(sampling.top_p_milli) / 1_000.0;
    // The first weighs exactly 1.
    let least = f64::from(sampling.min_p_milli) / 1_000.0;
    let (mut nucleus, mut total) = (Vec::new(), 0.0);
    for (id, weight) in weighed {
        if total >= wanted || weight < least {
            break;
        }
        nucleus.push((id, weight));
        total += weight;
    }
    pick(nucleus.into_iter(), unit * total)
}

/// The first candidate at which the running sum exceeds `target`; the last when rounding lets none.
fn pick(weighed: impl Iterator<Item = (u32, f64)>, target: f64) -> u32 {
    let (mut sum, mut chosen) = (0.0, 0);
    for (id, weight) in weighed {
        sum += weight;
        chosen = id;
        if sum > target {
            break;
        }
    }
    chosen
}

/// A number in 0..1 for the token with this index.
fn uniform(seed: u64, index: u32) -> f64 {
    // Hashing the seed first keeps neighbouring seeds from being shifts of one another.
    let bits = splitmix(splitmix(seed).wrapping_add(index.into()));
    (bits >> 11) as f64 / (1u64 << 53) as f64
}

fn splitmix(state: u64) -> u64 {
    let mut z = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests;
