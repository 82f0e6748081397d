//! What a fine-tune is, in plain numbers: read, checked, and named by a digest.

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::error::TrainError;

/// Usual ranks are 4 to 256; the bound keeps factors smaller than what they change.
pub(super) const RANK_MAX: u32 = 1_024;
/// Far above real runs; keeps counters of random streams inside 32 bits.
pub(super) const STEPS_MAX: u64 = 1 << 31;
/// Rows of a micro-batch, and micro-batches of a step.
pub(super) const BATCH_MAX: u32 = 4_096;
/// Names of modules have some twenty bytes, and a family has at most seven modules per layer.
const TARGETS_LEN_MAX: usize = 32;
const TARGET_BYTES_MAX: usize = 64;

/// One LoRA fine-tune: what is changed, how, and from which random streams.
///
/// Two runs with equal recipes, base weights, examples in the same order, and build give the same bytes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recipe {
    /// Rank `r` of the factors.
    pub rank: u32,
    /// The change is scaled by `alpha / rank`.
    pub alpha: f64,
    /// Part of a module's inputs that its factors do not see, drawn anew in each step; in `0..1`.
    pub dropout: f64,
    /// Modules by their names in the reference implementation, as PEFT has them (`q_proj`, `c_attn`).
    pub targets: Vec<String>,
    /// Optimiser steps of the whole run; the schedule depends on them.
    pub steps: u64,
    /// Most rows in a micro-batch.
    pub batch: u32,
    /// Most micro-batches in a step.
    pub accumulate: u32,
    /// Most tokens in a row.
    pub sequence_tokens: u32,
    /// Peak learning rate.
    pub learning_rate: f64,
    /// Steps in which the rate rises linearly; the last of them has the peak rate.
    pub warmup_steps: u64,
    /// What follows the warm-up.
    pub schedule: Schedule,
    /// Decoupled weight decay (Loshchilov and Hutter 2019, arXiv 1711.05101).
    pub weight_decay: f64,
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub epsilon: f64,
    /// Gradients of a step are scaled down to this global norm; None leaves them. Private runs have
    /// [`Privacy::clip_norm`] instead.
    pub clip_norm: Option<f64>,
    /// Of the initial factors and of dropout. Nothing secret depends on it.
    pub seed: u64,
    /// Layers are computed again on the way back instead of kept: slower by about a third, and memory
    /// hardly grows with depth. The adapter is the same to the bit.
    pub recompute: bool,
    /// How products with the frozen weights are computed.
    #[serde(default)]
    pub precision: Precision,
    /// Differential privacy; None trains without, which is *not private*.
    pub privacy: Option<Privacy>,
}

/// How products with frozen weights are computed. Everything else is F32 in either case.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Precision {
    /// In F32.
    #[default]
    F32,
    /// Both factors rounded to bfloat16, sums in F32: about twice as fast, on processors that have the instructions
    /// (AVX-512 BF16) and nowhere else.
    Bf16,
}

/// How the learning rate goes on after the warm-up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Schedule {
    /// It stays at its peak.
    Constant,
    /// It falls to zero along half a cosine.
    Cosine,
}

/// DP-SGD (Abadi et al. 2016, arXiv 1607.00133) on the adapter's parameters, with the subject as the unit.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Privacy {
    /// `C`: the most that one subject's gradient may weigh.
    pub clip_norm: f64,
    /// `σ`: the noise on the sum has standard deviation `σ C`. Zero only for comparing implementations.
    pub noise_multiplier: f64,
    /// `q`: each subject takes part in a step with this probability, independently.
    pub sampling_rate: f64,
    /// The noisy sum is divided by this public constant, usually `q` times the published number of
    /// subjects; never by how many were really drawn.
    pub divisor: f64,
}

impl Default for Recipe {
    /// Common values for a small adapter: r = 8 on queries and values, 100 steps of 4 rows.
    fn default() -> Self {
        Self {
            rank: 8,
            alpha: 16.0,
            dropout: 0.0,
            targets: vec!["q_proj".to_owned(), "v_proj".to_owned()],
            steps: 100,
            batch: 4,
            accumulate: 1,
            sequence_tokens: 512,
            learning_rate: 2e-4,
            warmup_steps: 0,
            schedule: Schedule::Constant,
            weight_decay: 0.0,
            beta1: 0.9,
            beta2: 0.999,
            epsilon: 1e-8,
            clip_norm: Some(1.0),
            seed: 0,
            recompute: false,
            precision: Precision::F32,
            privacy: None,
        }
    }
}

impl Recipe {
    /// Refuses numbers that cannot be meant.
    ///
    /// # Errors
    /// [`TrainError::Recipe`] names the first field that is out of its range.
    pub fn check(&self) -> Result<(), TrainError> {
        let whole = |field, value: u64, max: u64| match (1..=max).contains(&value) {
            true => Ok(()),
            false => Err(TrainError::recipe(field, format!("{value} is not in 1..={max}"))),
        };
        whole("rank", self.rank.into(), RANK_MAX.into())?;
        whole("steps", self.steps, STEPS_MAX)?;
        whole("batch", self.batch.into(), BATCH_MAX.into())?;
        whole("accumulate", self.accumulate.into(), BATCH_MAX.into())?;
        whole("sequence_tokens", self.sequence_tokens.into(), crate::spec::CONTEXT_MAX.into())?;
        // Written so that NaN is in no range.
        let within = |field, value: f64, good: bool, range: &str| match good {
            true => Ok(()),
            false => Err(TrainError::recipe(field, format!("{value} is not in {range}"))),
        };
        let part = |value: f64| (0.0..1.0).contains(&value);
        let positive = |value: f64, max: f64| value > 0.0 && value <= max;
        within("alpha", self.alpha, positive(self.alpha, 1e6), "(0, 1e6]")?;
        within("dropout", self.dropout, part(self.dropout), "[0, 1)")?;
        within("learning_rate", self.learning_rate, positive(self.learning_rate, 10.0), "(0, 10]")?;
        let decay = self.weight_decay;
        within("weight_decay", decay, (0.0..=10.0).contains(&decay), "[0, 10]")?;
        within("beta1", self.beta1, part(self.beta1), "[0, 1)")?;
        within("beta2", self.beta2, part(self.beta2), "[0, 1)")?;
        within("epsilon", self.epsilon, positive(self.epsilon, 1.0), "(0, 1]")?;
        if let Some(norm) = self.clip_norm {
            within("clip_norm", norm, positive(norm, 1e9), "(0, 1e9]")?;
        }
        if self.warmup_steps > self.steps {
            let problem = format!("{} is more than the {} steps", self.warmup_steps, self.steps);
            return Err(TrainError::recipe("warmup_steps", problem));
        }
        self.check_targets()?;
        if let Some(privacy) = &self.privacy {
            let Privacy { clip_norm, noise_multiplier, sampling_rate, divisor } = *privacy;
            within("privacy.clip_norm", clip_norm, positive(clip_norm, 1e6), "(0, 1e6]")?;
            let noise = (0.0..=1e3).contains(&noise_multiplier);
            within("privacy.noise_multiplier", noise_multiplier, noise, "[0, 1000]")?;
            within("privacy.sampling_rate", sampling_rate, positive(sampling_rate, 1.0), "(0, 1]")?;
            within("privacy.divisor", divisor, (1.0..=1e9).contains(&divisor), "[1, 1e9]")?;
        }
        Ok(())
    }

    fn check_targets(&self) -> Result<(), TrainError> {
        let wrong = |problem: &str| Err(TrainError::recipe("targets", problem));
        if self.targets.is_empty() || self.targets.len() > TARGETS_LEN_MAX {
            return wrong("name one to 32 modules");
        }
        let mut names: Vec<&str> = self.targets.iter().map(String::as_str).collect();
        names.sort_unstable();
        if names.windows(2).any(|pair| pair[0] == pair[1]) {
            return wrong("a module is named twice");
        }
        let plain = |name: &&str| {
            let known = |byte: u8| byte.is_ascii_alphanumeric() || b"_.".contains(&byte);
            !name.is_empty() && name.len() <= TARGET_BYTES_MAX && name.bytes().all(known)
        };
        if !names.iter().all(plain) {
            return wrong("a name is not 1 to 64 letters, digits, dots and underscores");
        }
        Ok(())
    }

    /// Names the recipe: SHA-256 of its JSON form.
    #[must_use]
    pub fn digest(&self) -> [u8; 32] {
        // Strings and finite numbers only, in the order of the fields: it always serialises.
        let text = serde_json::to_vec(self).unwrap_or_default();
        Sha256::digest(text).into()
    }

    /// The learning rate of a step, counted from 0.
    #[must_use]
    pub fn rate(&self, step: u64) -> f64 {
        if step < self.warmup_steps {
            return self.learning_rate * (step + 1) as f64 / self.warmup_steps as f64;
        }
        match self.schedule {
            Schedule::Constant => self.learning_rate,
            Schedule::Cosine => {
                let span = (self.steps - self.warmup_steps).max(1);
                let part = (step - self.warmup_steps).min(span) as f64 / span as f64;
                self.learning_rate * 0.5 * (1.0 + (std::f64::consts::PI * part).cos())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_rise_and_fall_as_documented() {
        let recipe = Recipe {
            steps: 12,
            warmup_steps: 4,
            schedule: Schedule::Cosine,
            learning_rate: 1.0,
            ..Recipe::default()
        };
        let rates: Vec<f64> = (0..13).map(|step| recipe.rate(step)).collect();
        assert_eq!(rates[..5], [0.25, 0.5, 0.75, 1.0, 1.0]);
        assert!((rates[8] - 0.5).abs() < 1e-12 && rates[12].abs() < 1e-12);
        assert!(rates[4..].windows(2).all(|pair| pair[1] < pair[0]));
        assert_eq!(Recipe { warmup_steps: 0, ..Recipe::default() }.rate(7), 2e-4);
    }

    #[test]
    fn wrong_numbers_are_named() {
        type Change = fn(&mut Recipe);
        let cases: [(&str, Change); 9] = [
            ("rank", |recipe| recipe.rank = 0),
            ("alpha", |recipe| recipe.alpha = f64::NAN),
            ("dropout", |recipe| recipe.dropout = 1.0),
            ("targets", |recipe| recipe.targets.clear()),
            ("targets", |recipe| recipe.targets.push("q_proj".to_owned())),
            ("targets", |recipe| recipe.targets = vec!["../q".to_owned()]),
            ("warmup_steps", |recipe| recipe.warmup_steps = 101),
            ("clip_norm", |recipe| recipe.clip_norm = Some(f64::INFINITY)),
            ("privacy.divisor", |recipe| {
                let (clip_norm, noise_multiplier) = (1.0, 1.0);
                recipe.privacy =
                    Some(Privacy { clip_norm, noise_multiplier, sampling_rate: 0.5, divisor: 0.0 });
            }),
        ];
        assert!(Recipe::default().check().is_ok());
        for (field, change) in cases {
            let mut recipe = Recipe::default();
            change(&mut recipe);
            let error = recipe.check().unwrap_err();
            assert!(matches!(error, TrainError::Recipe { field: found, .. } if found == field));
        }
    }

    #[test]
    fn every_change_changes_the_digest() {
        let base = Recipe::default();
        let other = Recipe { seed: 1, ..Recipe::default() };
        assert_eq!(base.digest(), Recipe::default().digest());
        assert_ne!(base.digest(), other.digest());
    }
}
