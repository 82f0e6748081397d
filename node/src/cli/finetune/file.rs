//! A fine-tuning job as a file: TOML in, a description of work out. Unknown keys are refused by name.

use std::path::PathBuf;

use allmend_protocol::finetune::{
    self, FinetuneWork, Lora, LossOn, MixPart, Optimiser, Privacy, Schedule,
};
use allmend_protocol::ids::Digest;
use allmend_protocol::job::Terms;
use allmend_protocol::time::Timestamp;
use allmend_protocol::units::{Decimal, Jurisdiction};
use serde::Deserialize;

/// The whole file.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct JobFile {
    pub(super) model: Option<String>,
    #[serde(default)]
    pub(super) at: Vec<String>,
    #[serde(default)]
    pub(super) jurisdictions: Vec<Jurisdiction>,
    #[serde(default = "research")]
    pub(super) purpose: String,
    #[serde(default = "default_project")]
    pub(super) project: String,
    #[serde(default = "five")]
    pub(super) cap: String,
    #[serde(default = "a_week")]
    pub(super) deadline: String,
    #[serde(default = "sixteen")]
    pub(super) attempts: u16,
    #[serde(default)]
    pub(super) dataset: Vec<Dataset>,
    pub(super) portable: Option<Portable>,
    #[serde(default)]
    pub(super) adapter: Adapter,
    #[serde(default)]
    pub(super) training: Training,
    pub(super) privacy: Option<DpSgd>,
    #[serde(default)]
    pub(super) terms: Accepted,
}

/// One dataset of the mix.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Dataset {
    pub(super) version: Digest,
    #[serde(default = "one")]
    pub(super) weight: u32,
}

/// The researcher's own rows.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Portable {
    pub(super) file: PathBuf,
    pub(super) jurisdictions: Vec<Jurisdiction>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Adapter {
    rank: u16,
    alpha: u16,
    dropout: f64,
    targets: Vec<String>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Training {
    steps: u32,
    batch: u16,
    accumulate: u16,
    sequence_tokens: u32,
    learning_rate: f64,
    warmup_steps: Option<u32>,
    schedule: Schedule,
    weight_decay: f64,
    beta1: f64,
    beta2: f64,
    epsilon: f64,
    clip_norm: f64,
    loss_on: LossOn,
    packing: bool,
    validation: f64,
    seed: u64,
    snapshot_every: u32,
    recompute: bool,
    plateau_steps: Option<u32>,
    precision: Precision,
}

/// How products with the frozen weights are computed.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Precision {
    F32,
    Bf16,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct DpSgd {
    noise_multiplier: f64,
    clip_norm: f64,
    sampling_rate: f64,
    delta: f64,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Accepted {
    policy: String,
    room: String,
}

impl Default for Adapter {
    fn default() -> Adapter {
        let targets = vec!["q_proj".to_owned(), "v_proj".to_owned()];
        Adapter { rank: 8, alpha: 16, dropout: 0.0, targets }
    }
}

impl Default for Training {
    fn default() -> Training {
        Training {
            steps: 100,
            batch: 4,
            accumulate: 1,
            sequence_tokens: 512,
            learning_rate: 2e-4,
            warmup_steps: None,
            schedule: Schedule::Cosine,
            weight_decay: 0.0,
            beta1: 0.9,
            beta2: 0.999,
            epsilon: 1e-8,
            clip_norm: 1.0,
            loss_on: LossOn::Assistant,
            packing: false,
            validation: 0.1,
            seed: 0,
            snapshot_every: 20,
            recompute: false,
            plateau_steps: None,
            precision: Precision::F32,
        }
    }
}

impl Default for Accepted {
    fn default() -> Accepted {
        Accepted { policy: "any".to_owned(), room: "sealed-v1".to_owned() }
    }
}

fn research() -> String {
    "research".to_owned()
}

fn default_project() -> String {
    "default".to_owned()
}

fn five() -> String {
    "5".to_owned()
}

fn a_week() -> String {
    "7d".to_owned()
}

const fn sixteen() -> u16 {
    16
}

const fn one() -> u32 {
    1
}

impl JobFile {
    /// The work, checked by the rules that every node checks.
    ///
    /// # Errors
    /// A sentence that names the key.
    pub(super) fn work(&self, clock: Timestamp) -> Result<FinetuneWork, String> {
        if self.dataset.is_empty() == self.portable.is_none() {
            return Err("name one or more [[dataset]] sections, or [portable] rows of your own: \
                        one of the two"
                .to_owned());
        }
        let mut datasets: Vec<MixPart> = self
            .dataset
            .iter()
            .map(|part| MixPart { dataset: part.version, weight: part.weight })
            .collect();
        datasets.sort_by_key(|part| part.dataset);
        let mut targets = self.adapter.targets.clone();
        targets.sort();
        let (adapter, training) = (&self.adapter, &self.training);
        let work = FinetuneWork {
            datasets,
            lora: Lora {
                rank: adapter.rank,
                alpha: adapter.alpha,
                dropout: decimal(adapter.dropout, "adapter.dropout")?,
                targets,
            },
            optimiser: Optimiser {
                learning_rate: decimal(training.learning_rate, "training.learning_rate")?,
                warmup_steps: training.warmup_steps.unwrap_or(training.steps / 10),
                schedule: training.schedule,
                weight_decay: decimal(training.weight_decay, "training.weight_decay")?,
                beta1: decimal(training.beta1, "training.beta1")?,
                beta2: decimal(training.beta2, "training.beta2")?,
                epsilon: decimal(training.epsilon, "training.epsilon")?,
                clip_norm: decimal(training.clip_norm, "training.clip_norm")?,
            },
            steps: training.steps,
            batch: training.batch,
            accumulate: training.accumulate,
            sequence_tokens: training.sequence_tokens,
            loss_on: training.loss_on,
            packing: training.packing,
            validation: decimal(training.validation, "training.validation")?,
            seed: training.seed,
            snapshot_every: training.snapshot_every,
            recompute: training.recompute,
            clock,
            privacy: self.privacy.as_ref().map(DpSgd::privacy).transpose()?,
            plateau_steps: training.plateau_steps,
            precision: match training.precision {
                Precision::F32 => None,
                Precision::Bf16 => Some(finetune::Precision::Bf16),
            },
        };
        work.check().map_err(|error| error.to_string())?;
        Ok(work)
    }

    /// What the researcher accepts beforehand.
    ///
    /// # Errors
    /// A sentence that names the key.
    pub(super) fn terms(&self) -> Result<Terms, String> {
        let policy = match self.terms.policy.as_str() {
            "any" => None,
            digest => Some(digest.parse().map_err(|_| {
                "terms.policy: neither \"any\" nor the 64 digits of a policy's digest".to_owned()
            })?),
        };
        let dataset = match self.dataset.as_slice() {
            [one] => Some(one.version),
            _ => None,
        };
        Ok(Terms { dataset, policy, output: "adapter".to_owned(), room: self.terms.room.clone() })
    }
}

impl DpSgd {
    fn privacy(&self) -> Result<Privacy, String> {
        Ok(Privacy {
            noise_multiplier: decimal(self.noise_multiplier, "privacy.noise_multiplier")?,
            clip_norm: decimal(self.clip_norm, "privacy.clip_norm")?,
            sampling_rate: decimal(self.sampling_rate, "privacy.sampling_rate")?,
            delta: decimal(self.delta, "privacy.delta")?,
        })
    }
}

/// The shortest decimal that reads back as `number`: what the person typed.
fn decimal(number: f64, key: &str) -> Result<Decimal, String> {
    let wrong = || format!("{key}: {number} is not a number that a job can carry");
    if !number.is_finite() {
        return Err(wrong());
    }
    let text = format!("{number:e}");
    let (digits, exponent) = text.split_once('e').ok_or_else(wrong)?;
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
    let mantissa: i64 = format!("{whole}{fraction}").parse().map_err(|_| wrong())?;
    let exponent: i32 = exponent.parse().map_err(|_| wrong())?;
    let places = i32::try_from(fraction.len()).map_err(|_| wrong())?;
    let exp10 = if mantissa == 0 { 0 } else { exponent - places };
    let decimal = Decimal { mantissa, exp10: i8::try_from(exp10).map_err(|_| wrong())? };
    if decimal.exponent_fits() { Ok(decimal) } else { Err(wrong()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_example_is_a_job() {
        let file: JobFile = toml::from_str(super::super::EXAMPLE).unwrap();
        let work = file.work(Timestamp::from_ms(1)).unwrap();
        assert_eq!((work.steps, work.lora.rank, work.datasets.len()), (100, 8, 1));
        let defaults: JobFile =
            toml::from_str(&format!("[[dataset]]\nversion = \"{}\"", Digest::from_bytes([0; 32])))
                .unwrap();
        let mut plain = defaults.work(Timestamp::from_ms(1)).unwrap();
        plain.optimiser.warmup_steps = work.optimiser.warmup_steps;
        assert_eq!(plain, work, "the example shows the defaults");
        assert_eq!(file.terms().unwrap().policy, None);
        // Every line that is commented out for its being optional is a valid one, too.
        let all: String = super::super::EXAMPLE
            .lines()
            .map(|line| match line.strip_prefix("# ") {
                Some(rest) if rest.starts_with("[privacy]") || rest.contains(" = ") => rest,
                _ => line,
            })
            .filter(|line| !line.starts_with("file =") && !line.starts_with("jurisdictions ="))
            // A private run has no loss to look at.
            .filter(|line| !line.starts_with("plateau_steps ="))
            .map(|line| format!("{line}\n"))
            .collect();
        let all: JobFile = toml::from_str(&all).unwrap();
        assert!(all.work(Timestamp::from_ms(1)).unwrap().privacy.is_some());
    }

    #[test]
    fn numbers_are_what_was_typed() {
        for (number, mantissa, exp10) in
            [(2e-4, 2, -4), (0.0, 0, 0), (1.0, 1, 0), (0.999, 999, -3), (150.0, 15, 1)]
        {
            assert_eq!(decimal(number, "x"), Ok(Decimal { mantissa, exp10 }), "{number}");
        }
        assert!(decimal(f64::NAN, "x").is_err());
        assert!(decimal(1e-300, "x").is_err());
    }

    #[test]
    fn what_is_missing_or_wrong_is_named() {
        let both = "[portable]\nfile = \"x\"\njurisdictions = [\"CH\"]\n[[dataset]]\nversion = \
                    \"0000000000000000000000000000000000000000000000000000000000000000\"";
        for (text, named) in [
            ("", "[[dataset]]"),
            (both, "one of the two"),
            ("[training]\nstep = 3", "step"),
            ("modle = \"x\"", "modle"),
        ] {
            let error = toml::from_str::<JobFile>(text)
                .map_err(|error| error.to_string())
                .and_then(|file| file.work(Timestamp::from_ms(1)));
            assert!(error.as_ref().is_err_and(|error| error.contains(named)), "{error:?}");
        }
    }
}
