//! Chooses the next token from logits, reproducibly.
//!
//! # Algorithm
//! Greedy: the largest logit, the lowest id among equals. Otherwise, with candidates ordered by
//! (logit descending, id ascending): keep the first `top_k`; weight each by
//! `exp((logit - max) / temperature)` in F64; keep the shortest prefix whose share of the weight
//! reaches `top_p`; walk it until the running sum exceeds `u * total`.
//!
//! `u` is a pure function of (seed, token index): SplitMix64's output function (Steele, Lea and Flood,
//! "Fast Splittable Pseudorandom Number Generators", 2014) over the seed's own hash plus the index,
//! top 53 bits. There is no generator state, so an answer resumed elsewhere after some tokens continues
//! as if it had never stopped.

use serde::{Deserialize, Serialize};

use crate::error::EngineError;

/// Highest temperature accepted, in thousandths. Beyond it text is noise.
const TEMPERATURE_MILLI_MAX: u32 = 10_000;

/// How tokens are chosen. Integers, so that the same values travel in signed messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sampling {
    /// Temperature in thousandths, 0 to 10,000; 0 means greedy and ignores the rest.
    pub temperature_milli: u32,
    /// Keep only this many most likely tokens; 0 means all.
    pub top_k: u32,
    /// Keep the most likely tokens that together reach this probability, in thousandths, 1 to 1,000;
    /// 1,000 means all.
    pub top_p_milli: u32,
    /// Equal seeds give equal answers.
    pub seed: u64,
}

impl Sampling {
    /// Always the most likely token.
    pub const GREEDY: Self = Self { temperature_milli: 0, top_k: 0, top_p_milli: 1_000, seed: 0 };

    pub(crate) fn check(&self) -> Result<(), EngineError> {
        if self.temperature_milli > TEMPERATURE_MILLI_MAX {
            return Err(EngineError::InvalidRequest(format!(
                "temperature_milli {} is not in 0..={TEMPERATURE_MILLI_MAX}",
                self.temperature_milli
            )));
        }
        if !(1..=1_000).contains(&self.top_p_milli) {
            return Err(EngineError::InvalidRequest(format!(
                "top_p_milli {} is not in 1..=1000",
                self.top_p_milli
            )));
        }
        Ok(())
    }

    /// Chooses the token with the given index of the answer.
    ///
    /// # Errors
    /// [`EngineError::NotFinite`] when a logit is NaN or infinite.
    pub(crate) fn choose(&self, logits: &[f32], index: u32) -> Result<u32, EngineError> {
        if logits.is_empty() || logits.iter().any(|logit| !logit.is_finite()) {
            return Err(EngineError::NotFinite { index });
        }
        if self.temperature_milli == 0 {
            return Ok(greedy(logits));
        }
        let mut candidates: Vec<(u32, f32)> = (0u32..).zip(logits.iter().copied()).collect();
        let order = |a: &(u32, f32), b: &(u32, f32)| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0));
        let keep = match self.top_k as usize {
            0 => candidates.len(),
            top_k => top_k.min(candidates.len()),
        };
        if keep < candidates.len() {
            candidates.select_nth_unstable_by(keep, order);
            candidates.truncate(keep);
        }
        candidates.sort_unstable_by(order);
        Ok(self.draw(&candidates, uniform(self.seed, index)))
    }

    /// Draws from candidates in descending order, with `unit` in 0..1.
    fn draw(&self, candidates: &[(u32, f32)], unit: f64) -> u32 {
        let temperature = f64::from(self.temperature_milli) / 1_000.0;
        let largest = candidates.first().map_or(0.0, |(_, logit)| f64::from(*logit));
        let weights: Vec<f64> = candidates
            .iter()
            .map(|(_, logit)| ((f64::from(*logit) - largest) / temperature).exp())
            .collect();
        let all: f64 = weights.iter().sum();
        let wanted = all * f64::from(self.top_p_milli) / 1_000.0;
        let (mut nucleus, mut total) = (0, 0.0);
        for weight in &weights {
            nucleus += 1;
            total += weight;
            if total >= wanted {
                break;
            }
        }
        let target = unit * total;
        let mut sum = 0.0;
        let mut chosen = 0;
        for ((id, _), weight) in candidates.iter().zip(&weights).take(nucleus) {
            sum += weight;
            chosen = *id;
            if sum > target {
                break;
            }
        }
        chosen
    }
}

fn greedy(logits: &[f32]) -> u32 {
    let mut best = (0, f32::NEG_INFINITY);
    for (id, &logit) in (0u32..).zip(logits) {
        if logit > best.1 {
            best = (id, logit);
        }
    }
    best.0
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
mod tests {
    use super::*;

    const WARM: Sampling =
        Sampling { temperature_milli: 1_000, top_k: 0, top_p_milli: 1_000, seed: 7 };

    /// Goal: the generator is the published one. Values from the reference implementation of SplitMix64
    /// with seed 0, whose state advances by the same odd constant.
    #[test]
    fn splitmix_matches_reference() {
        let golden = 0x9e37_79b9_7f4a_7c15u64;
        assert_eq!(splitmix(0), 0xe220_a839_7b1d_cdaf);
        assert_eq!(splitmix(golden), 0x6e78_9e6a_a1b9_65f4);
        assert_eq!(splitmix(golden.wrapping_mul(2)), 0x06c4_5d18_8009_454f);
    }

    #[test]
    fn greedy_takes_the_lowest_of_equals() {
        assert_eq!(Sampling::GREEDY.choose(&[1.0, 3.0, 3.0, -1.0], 0).unwrap(), 1);
    }

    #[test]
    fn draws_follow_the_distribution() {
        let logits = [0.0f32, (3.0f32).ln(), -30.0];
        let ones = (0..10_000).filter(|&index| WARM.choose(&logits, index).unwrap() == 1).count();
        assert!((7_350..7_650).contains(&ones), "{ones}");
    }

    #[test]
    fn top_k_and_top_p_exclude_the_tail() {
        let logits = [2.0f32, 1.9, 1.8, 1.7, 0.0];
        for index in 0..500 {
            let top_k = Sampling { top_k: 2, ..WARM }.choose(&logits, index).unwrap();
            assert!(top_k < 2);
            let top_p = Sampling { top_p_milli: 300, ..WARM }.choose(&logits, index).unwrap();
            assert!(top_p < 2);
        }
        assert_eq!(Sampling { top_p_milli: 1, ..WARM }.choose(&logits, 3).unwrap(), 0);
    }

    #[test]
    fn not_finite_is_an_error() {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let error = WARM.choose(&[0.0, bad], 4).unwrap_err();
            assert!(matches!(error, EngineError::NotFinite { index: 4 }));
        }
    }

    #[test]
    fn out_of_range_settings_are_refused() {
        assert!(Sampling { temperature_milli: 10_001, ..WARM }.check().is_err());
        assert!(Sampling { top_p_milli: 0, ..WARM }.check().is_err());
        assert!(Sampling { top_p_milli: 1_001, ..WARM }.check().is_err());
    }
}
