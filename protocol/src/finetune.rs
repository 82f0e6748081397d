//! Fine-tuning as work, and a job's work of whatever kind, decoded (specs/finetune.md).

use serde::{Deserialize, Serialize};

use crate::bytes::ByteString;
use crate::encoding::{self, DecodeError};
use crate::ids::Digest;
use crate::job::{InferWork, WORK_BYTES_MAX, WORK_INFER, Work};
use crate::message::{Invalid, require, require_text};
use crate::time::Timestamp;
use crate::units::Decimal;

/// The type of work that [`FinetuneWork`] describes.
pub const WORK_FINETUNE: &str = "finetune.v1";
/// The most datasets in one mix.
pub const MIX_MAX: usize = 16;
/// The most kinds of module that an adapter adapts.
pub const TARGETS_MAX: usize = 16;
/// The most tokens that one job may train on: larger than any count of a progress report may grow.
pub const TRAIN_TOKENS_MAX: u64 = u32::MAX as u64;

/// The description of fine-tuning: a LoRA adapter, trained on datasets that one node holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FinetuneWork {
    /// The dataset versions, each with its weight in the mix. Empty when the job brings its own
    /// portable rows.
    #[serde(deserialize_with = "crate::encoding::list")]
    pub datasets: Vec<MixPart>,
    /// The adapter's shape.
    pub lora: Lora,
    /// How it is optimised.
    pub optimiser: Optimiser,
    /// Optimiser steps.
    pub steps: u32,
    /// Rows (or packed sequences) per micro-batch.
    pub batch: u16,
    /// Micro-batches per step.
    pub accumulate: u16,
    /// The longest sequence, in tokens; longer rows are cut.
    pub sequence_tokens: u32,
    /// Which tokens count as labels.
    pub loss_on: LossOn,
    /// Whether short rows are put together into one sequence.
    pub packing: bool,
    /// Share of the rows that is held out, 0 to 0.5.
    pub validation: Decimal,
    /// Of every random choice but the noise of differential privacy.
    pub seed: u64,
    /// Steps between two snapshots.
    pub snapshot_every: u32,
    /// Whether activations are computed again instead of kept.
    pub recompute: bool,
    /// The clock that a chat template sees.
    pub clock: Timestamp,
    /// Differential privacy; without it the adapter is *not private*.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub privacy: Option<Privacy>,
    /// Stop when the loss has not improved for so many steps; absent: never for that reason.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub plateau_steps: Option<u32>,
    /// How products with the frozen weights are computed; absent: in F32.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub precision: Option<Precision>,
}

/// A way to compute products that is not F32.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Precision {
    /// Both factors are rounded to bfloat16, sums are F32.
    Bf16,
}

/// One dataset of a mix.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MixPart {
    /// The dataset's version.
    pub dataset: Digest,
    /// Its share, relative to the others' weights.
    pub weight: u32,
}

/// A LoRA adapter's shape (Hu et al. 2021), with the names of PEFT.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Lora {
    /// `r`.
    pub rank: u16,
    /// `lora_alpha`; the product B·A is scaled by `alpha / rank`.
    pub alpha: u16,
    /// `lora_dropout`, 0 to 0.95.
    pub dropout: Decimal,
    /// `target_modules`: names of modules, e.g. `q_proj`; sorted.
    #[serde(deserialize_with = "crate::encoding::list")]
    pub targets: Vec<String>,
}

/// AdamW (Loshchilov and Hutter 2019) and its learning rate over time.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Optimiser {
    /// The learning rate after the warm-up.
    pub learning_rate: Decimal,
    /// Steps over which it rises from zero.
    pub warmup_steps: u32,
    /// What it does then.
    pub schedule: Schedule,
    /// Decoupled weight decay.
    pub weight_decay: Decimal,
    /// Decay of the first moment.
    pub beta1: Decimal,
    /// Decay of the second moment.
    pub beta2: Decimal,
    /// Added to the root of the second moment.
    pub epsilon: Decimal,
    /// The largest norm of the gradient over all parameters; 0 is without a bound.
    pub clip_norm: Decimal,
}

/// The learning rate after the warm-up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Schedule {
    /// Stays.
    Constant,
    /// Falls to zero along half a cosine.
    Cosine,
}

/// Which tokens count as labels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LossOn {
    /// What the assistant says, or a completion.
    Assistant,
    /// Every token.
    All,
}

/// DP-SGD (Abadi et al. 2016) per subject.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Privacy {
    /// σ: the noise's standard deviation in units of the clipping norm.
    pub noise_multiplier: Decimal,
    /// C: the largest norm of one subject's gradient.
    pub clip_norm: Decimal,
    /// q: the probability with which each subject takes part in a step.
    pub sampling_rate: Decimal,
    /// δ.
    pub delta: Decimal,
}

/// What an executing node reads for fine-tuning; only ever encrypted outside of it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FinetuneInput {
    /// The researcher's own rows, if the job brings some: a packed dataset, declared portable.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub portable: Option<ByteString>,
}

impl FinetuneWork {
    /// As the work of a job spec.
    pub fn to_work(&self) -> Work {
        Work { kind: WORK_FINETUNE.to_owned(), bytes: ByteString(encoding::encode(self)) }
    }

    /// Reads a job spec's work.
    ///
    /// # Errors
    /// [`DecodeError`] when it is another kind of work or breaks a rule.
    pub fn from_work(work: &Work) -> Result<FinetuneWork, DecodeError> {
        if work.kind != WORK_FINETUNE {
            return Err(DecodeError::Malformed(format!("work of type {:?}", work.kind)));
        }
        let finetune: FinetuneWork = encoding::decode(&work.bytes.0, WORK_BYTES_MAX)?;
        finetune.check().map_err(|error| DecodeError::Malformed(error.to_string()))?;
        Ok(finetune)
    }

    /// The most tokens that the whole training may read.
    pub fn tokens_max(&self) -> u64 {
        u64::from(self.steps)
            .saturating_mul(u64::from(self.batch))
            .saturating_mul(u64::from(self.accumulate))
            .saturating_mul(u64::from(self.sequence_tokens))
    }

    /// The rules of specs/finetune.md §2.
    ///
    /// # Errors
    /// The first rule that is broken.
    pub fn check(&self) -> Result<(), Invalid> {
        require(self.datasets.len() <= MIX_MAX, "datasets", "at most 16")?;
        let sorted = self.datasets.windows(2).all(|pair| pair[0].dataset < pair[1].dataset);
        require(sorted, "datasets", "sorted by digest, no repeats")?;
        let weights = self.datasets.iter().all(|part| (1..=1_000_000).contains(&part.weight));
        require(weights, "datasets.weight", "1 to 1,000,000")?;
        self.lora.check()?;
        self.optimiser.check(self.steps)?;
        require((1..=10_000_000).contains(&self.steps), "steps", "1 to 10,000,000")?;
        require((1..=4_096).contains(&self.batch), "batch", "1 to 4,096")?;
        require((1..=4_096).contains(&self.accumulate), "accumulate", "1 to 4,096")?;
        let length = (8..=1 << 20).contains(&self.sequence_tokens);
        require(length, "sequence_tokens", "8 to 1,048,576")?;
        require(self.tokens_max() <= TRAIN_TOKENS_MAX, "steps", "too many tokens in all")?;
        within(self.validation, NONE, Decimal::new(5, -1), "validation", "0 to 0.5")?;
        require(self.snapshot_every >= 1, "snapshot_every", "at least 1")?;
        require(self.plateau_steps != Some(0), "plateau_steps", "at least 1")?;
        match &self.privacy {
            Some(privacy) => {
                require(!self.packing, "packing", "not with privacy: a sequence has one subject")?;
                // When training stops would tell of the loss, which has no noise.
                let unwatched = self.plateau_steps.is_none();
                require(unwatched, "plateau_steps", "not with privacy: the loss is not private")?;
                privacy.check()
            }
            None => Ok(()),
        }
    }
}

impl Lora {
    fn check(&self) -> Result<(), Invalid> {
        require((1..=512).contains(&self.rank), "lora.rank", "1 to 512")?;
        require((1..=4_096).contains(&self.alpha), "lora.alpha", "1 to 4,096")?;
        within(self.dropout, NONE, Decimal::new(95, -2), "lora.dropout", "0 to 0.95")?;
        let few = (1..=TARGETS_MAX).contains(&self.targets.len());
        require(few, "lora.targets", "1 to 16")?;
        let sorted = self.targets.windows(2).all(|pair| pair[0] < pair[1]);
        require(sorted, "lora.targets", "sorted, no repeats")?;
        self.targets.iter().try_for_each(|target| {
            require_text(target, 64, "lora.targets")?;
            let plain = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
            require(!target.is_empty() && target.chars().all(plain), "lora.targets", "a name")
        })
    }
}

impl Optimiser {
    fn check(&self, steps: u32) -> Result<(), Invalid> {
        let of = Decimal::new;
        within(
            self.learning_rate,
            of(1, -12),
            of(10, 0),
            "optimiser.learning_rate",
            "10^-12 to 10",
        )?;
        require(self.warmup_steps <= steps, "optimiser.warmup_steps", "at most steps")?;
        within(self.weight_decay, NONE, of(10, 0), "optimiser.weight_decay", "0 to 10")?;
        within(self.beta1, NONE, of(999_999, -6), "optimiser.beta1", "0 to 0.999999")?;
        within(self.beta2, NONE, of(9_999_999, -7), "optimiser.beta2", "0 to 0.9999999")?;
        within(self.epsilon, of(1, -18), of(1, 0), "optimiser.epsilon", "10^-18 to 1")?;
        within(self.clip_norm, NONE, of(1, 6), "optimiser.clip_norm", "0 to 1,000,000")
    }
}

impl Privacy {
    fn check(&self) -> Result<(), Invalid> {
        let of = Decimal::new;
        within(
            self.noise_multiplier,
            of(1, -2),
            of(1, 3),
            "privacy.noise_multiplier",
            "0.01 to 1,000",
        )?;
        within(self.clip_norm, of(1, -9), of(1, 6), "privacy.clip_norm", "10^-9 to 1,000,000")?;
        within(self.sampling_rate, of(1, -9), of(1, 0), "privacy.sampling_rate", "10^-9 to 1")?;
        within(self.delta, of(1, -18), of(1, -1), "privacy.delta", "10^-18 to 0.1")
    }
}

const NONE: Decimal = Decimal::new(0, 0);

fn within(
    number: Decimal,
    least: Decimal,
    most: Decimal,
    field: &'static str,
    rule: &'static str,
) -> Result<(), Invalid> {
    require(number.exponent_fits(), field, "exponent within 18")?;
    require(number.compare(least).is_ge() && number.compare(most).is_le(), field, rule)
}

/// A job's work, decoded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Task {
    /// A prompt in, an answer out.
    Infer(InferWork),
    /// A dataset in, an adapter out.
    Finetune(Box<FinetuneWork>),
}

impl Task {
    /// Reads a job spec's work.
    ///
    /// # Errors
    /// [`DecodeError`] when its type is not known or it is malformed.
    pub fn from_work(work: &Work) -> Result<Task, DecodeError> {
        match work.kind.as_str() {
            WORK_INFER => InferWork::from_work(work).map(Task::Infer),
            WORK_FINETUNE => {
                FinetuneWork::from_work(work).map(|work| Task::Finetune(Box::new(work)))
            }
            other => Err(DecodeError::Malformed(format!("work of type {other:?}"))),
        }
    }

    /// The most tokens that are paid at the rate of writing: tokens of an answer, or tokens trained on.
    pub fn tokens_max(&self) -> u32 {
        match self {
            Task::Infer(infer) => infer.max_tokens,
            Task::Finetune(finetune) => u32::try_from(finetune.tokens_max()).unwrap_or(u32::MAX),
        }
    }

    /// The most tokens that are paid at the rate of reading.
    pub fn prompt_tokens_max(&self) -> u32 {
        match self {
            Task::Infer(infer) => infer.prompt_tokens_max,
            Task::Finetune(_) => 0,
        }
    }

    /// The longest context that it needs.
    pub fn context_tokens(&self) -> u64 {
        match self {
            Task::Infer(infer) => u64::from(infer.max_tokens) + u64::from(infer.prompt_tokens_max),
            Task::Finetune(finetune) => u64::from(finetune.sequence_tokens),
        }
    }

    /// The inference, if it is one.
    pub fn infer(&self) -> Option<&InferWork> {
        match self {
            Task::Infer(infer) => Some(infer),
            Task::Finetune(_) => None,
        }
    }

    /// The fine-tuning, if it is one.
    pub fn finetune(&self) -> Option<&FinetuneWork> {
        match self {
            Task::Infer(_) => None,
            Task::Finetune(finetune) => Some(finetune),
        }
    }
}
