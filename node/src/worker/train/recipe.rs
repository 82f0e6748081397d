//! A job's work as the engine wants it.

use allmend_engine::train::{Precision, Privacy, Recipe, Schedule};
use allmend_protocol::finetune::{self, FinetuneWork};

/// The engine's recipe of a job. `subjects` is the published number of distinct subjects: the noisy sum of
/// a private run is divided by how many of them take part in a step on average.
pub fn recipe(work: &FinetuneWork, subjects: u64) -> Recipe {
    let (lora, optimiser) = (&work.lora, &work.optimiser);
    let clip = optimiser.clip_norm.to_f64();
    Recipe {
        rank: u32::from(lora.rank),
        alpha: f64::from(lora.alpha),
        dropout: lora.dropout.to_f64(),
        targets: lora.targets.clone(),
        steps: u64::from(work.steps),
        batch: u32::from(work.batch),
        accumulate: u32::from(work.accumulate),
        sequence_tokens: work.sequence_tokens,
        learning_rate: optimiser.learning_rate.to_f64(),
        warmup_steps: u64::from(optimiser.warmup_steps),
        schedule: match optimiser.schedule {
            finetune::Schedule::Constant => Schedule::Constant,
            finetune::Schedule::Cosine => Schedule::Cosine,
        },
        weight_decay: optimiser.weight_decay.to_f64(),
        beta1: optimiser.beta1.to_f64(),
        beta2: optimiser.beta2.to_f64(),
        epsilon: optimiser.epsilon.to_f64(),
        clip_norm: (clip > 0.0).then_some(clip),
        seed: work.seed,
        recompute: work.recompute,
        precision: match work.precision {
            None => Precision::F32,
            Some(finetune::Precision::Bf16) => Precision::Bf16,
        },
        privacy: work.privacy.as_ref().map(|privacy| Privacy {
            clip_norm: privacy.clip_norm.to_f64(),
            noise_multiplier: privacy.noise_multiplier.to_f64(),
            sampling_rate: privacy.sampling_rate.to_f64(),
            divisor: (privacy.sampling_rate.to_f64() * subjects as f64).max(1.0),
        }),
    }
}
