//! One fine-tune from its first step to its adapter.

use std::path::Path;
use std::sync::Arc;

use sha2::{Digest, Sha256};

use super::bf16;
use super::error::TrainError;
use super::example::{Example, Packed};
use super::lora::Lora;
use super::optimiser::{self, AdamW};
use super::peft::{AdapterFiles, AdapterShape};
use super::plan::MemoryPlan;
use super::random::{Dropout, NoiseKey};
use super::recipe::{Precision, Recipe};
use super::snapshot::{self, Identity};
use super::trunk::{Pass, Trunk};
use super::weights::Weights;
use crate::cpu::isa::Isa;
use crate::files::checkpoint::Checkpoint;
use crate::info;
use crate::spec::ModelSpec;

/// Names the arithmetic of training in this build. Two runs with this name, on processors of one kind, give
/// the same adapter; it changes whenever an order of operations may have.
pub const TRAIN_NUMERICS_VERSION: &str = "allmend-train-1";

/// A base model, opened and checked but not loaded.
#[derive(Debug)]
pub struct Base {
    checkpoint: Checkpoint,
}

impl Base {
    /// Opens a GGUF file, or a folder with `config.json` and safetensors.
    ///
    /// # Errors
    /// Everything that can be wrong with the headers and the description.
    pub fn open(path: &Path) -> Result<Self, TrainError> {
        Ok(Self { checkpoint: Checkpoint::open(path)? })
    }

    pub(super) fn spec(&self) -> &ModelSpec {
        self.checkpoint.spec()
    }

    /// Memory that a run of this recipe takes at its peak.
    ///
    /// # Errors
    /// When the recipe is wrong or does not fit this model.
    pub fn plan(&self, recipe: &Recipe) -> Result<MemoryPlan, TrainError> {
        let spec = self.checkpoint.spec();
        Ok(MemoryPlan::of(spec, &Lora::new(spec, recipe)?, recipe))
    }

    /// The tensors of the adapter that a recipe makes, by the names of PEFT, and whether the base stores
    /// what they change transposed.
    ///
    /// # Errors
    /// When the recipe is wrong or does not fit this model.
    pub fn adapter_shape(&self, recipe: &Recipe) -> Result<AdapterShape, TrainError> {
        Ok(AdapterShape::of(&Lora::new(self.checkpoint.spec(), recipe)?))
    }

    /// The model's licence, as its file says.
    #[must_use]
    pub fn licence(&self) -> Option<String> {
        let gguf = self.checkpoint.gguf()?;
        gguf.string("general.license").ok()?.map(str::to_owned)
    }

    /// Longest row that the model takes, in tokens.
    #[must_use]
    pub fn context_tokens(&self) -> usize {
        self.checkpoint.spec().context
    }
}

/// What a run is given beside model and recipe.
#[derive(Clone, Debug, Default)]
pub struct TrainOptions {
    /// Memory that may be used, in bytes; None takes what the operating system says it could give.
    pub memory_bytes: Option<u64>,
    /// The adapter to begin with; None begins with one that changes nothing.
    pub start: Option<AdapterFiles>,
    /// Where noise and sampling come from; needed by private runs and by no others.
    pub noise: Option<NoiseKey>,
}

/// What one optimiser step did. Nothing in it is private in the sense of a privacy budget: it is for the node
/// that holds the data.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StepReport {
    /// Which step it was, from 0.
    pub step: u64,
    /// Mean cross entropy over the labels of all micro-batches, before the update, in nats.
    pub loss: f64,
    /// Global norm of the gradient, before clipping.
    pub grad_norm: f64,
    /// Learning rate of the step.
    pub learning_rate: f64,
    /// Tokens computed.
    pub tokens: u64,
    /// Labels among them.
    pub labels: u64,
}

/// A sum of negative log-likelihoods, in nats, and over how many labels.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Likelihood {
    /// Sum over labels.
    pub nll: f64,
    /// How many.
    pub labels: u64,
}

/// A running fine-tune.
///
/// The frozen weights are shared: a clone costs the adapter's memory only.
#[derive(Clone)]
pub struct Trainer {
    trunk: Arc<Trunk>,
    pub(super) lora: Lora,
    pub(super) recipe: Recipe,
    pub(super) noise: Option<NoiseKey>,
    pub(super) parameters: Vec<f32>,
    pub(super) optimiser: AdamW,
}

impl std::fmt::Debug for Trainer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (len, step) = (self.lora.len(), self.step_number());
        write!(f, "Trainer({}, {len} parameters, step {step})", self.trunk.spec.family)
    }
}

impl Trainer {
    /// Checks the plan, loads and expands the weights, and sets the adapter up.
    ///
    /// # Errors
    /// When the recipe is wrong or does not fit the model, memory does not suffice, or something is wrong with
    /// the weights or the adapter to begin with. A private recipe without noise key is refused, as is a
    /// key without one.
    pub fn new(base: &Base, recipe: &Recipe, options: &TrainOptions) -> Result<Self, TrainError> {
        let spec = base.checkpoint.spec();
        let lora = Lora::new(spec, recipe)?;
        match (recipe.privacy.is_some(), options.noise.is_some()) {
            (true, false) => return Err(TrainError::recipe("privacy", "needs a noise key")),
            (false, true) => {
                let problem =
                    "is absent, but there is a noise key: was the run meant to be private?";
                return Err(TrainError::recipe("privacy", problem));
            }
            _ => {}
        }
        if recipe.sequence_tokens as usize > spec.context {
            let problem = format!("is more than the model's context of {}", spec.context);
            return Err(TrainError::recipe("sequence_tokens", problem));
        }
        if recipe.precision == Precision::Bf16 && !bf16::available() {
            let problem = "bf16 needs a processor with AVX-512 BF16, which this one is not";
            return Err(TrainError::recipe("precision", problem));
        }
        let budget = options.memory_bytes.or_else(|| info::available_mib().map(|mib| mib << 20));
        if let Some(budget) = budget {
            MemoryPlan::of(spec, &lora, recipe).check(budget, recipe)?;
        }
        let parameters = match &options.start {
            Some(files) => files.parameters(&lora)?,
            None => lora.initial(recipe.seed),
        };
        let weights = Weights::load(&base.checkpoint, recipe.precision)?;
        let trunk = Trunk { spec: spec.clone(), weights, isa: Isa::detect() };
        let optimiser = AdamW::new(lora.len());
        let (recipe, noise) = (recipe.clone(), options.noise.clone());
        Ok(Self { trunk: Arc::new(trunk), lora, recipe, noise, parameters, optimiser })
    }

    /// Goes on from a snapshot of the same recipe, model, and noise key, to the same adapter as if the run had not
    /// been interrupted. Returns what the caller's monitors had put in as well.
    ///
    /// # Errors
    /// As [`Trainer::new`], and [`TrainError::Snapshot`] for damaged bytes or those of another run.
    pub fn resume(
        base: &Base,
        recipe: &Recipe,
        options: &TrainOptions,
        bytes: &[u8],
    ) -> Result<(Self, Vec<u8>), TrainError> {
        let mut trainer = Self::new(base, recipe, options)?;
        let (identity, len) = (trainer.identity(), trainer.lora.len());
        let (parameters, optimiser, monitors) = snapshot::read(bytes, &identity, len)?;
        if optimiser.updates > recipe.steps {
            return Err(TrainError::Snapshot("has more steps than the recipe".to_owned()));
        }
        (trainer.parameters, trainer.optimiser) = (parameters, optimiser);
        Ok((trainer, monitors))
    }

    /// The state of the run as bytes, with `monitors` (at most [`crate::train::MONITORS_BYTES_MAX`] bytes) as they
    /// are.
    ///
    /// # Errors
    /// When `monitors` is too long.
    pub fn snapshot(&self, monitors: &[u8]) -> Result<Vec<u8>, TrainError> {
        snapshot::write(&self.identity(), &self.parameters, &self.optimiser, monitors)
    }

    /// One optimiser step over micro-batches: at most as many as the recipe accumulates, each of at most as
    /// many rows as it allows.
    ///
    /// # Errors
    /// When a row does not fit, nothing is labelled, the run has ended or is private; and
    /// [`TrainError::NotFinite`]. The adapter is then as it was.
    pub fn step(&mut self, batches: &[&[Example]]) -> Result<StepReport, TrainError> {
        if self.recipe.privacy.is_some() {
            let problem = "is set, so rows must be grouped by subject: call step_private";
            return Err(TrainError::recipe("privacy", problem));
        }
        self.check_running()?;
        let packed = self.packed(batches)?;
        let (loss, mut gradient) = self.gradient(&packed)?;
        let grad_norm = optimiser::norm(&gradient);
        self.check_finite(loss, grad_norm)?;
        if let Some(norm_max) = self.recipe.clip_norm {
            optimiser::clip(&mut gradient, grad_norm, norm_max);
        }
        let step = self.step_number();
        let learning_rate = self.apply(&gradient);
        let tokens = packed.iter().map(|packed| packed.rows() as u64).sum();
        let labels = packed.iter().map(|packed| packed.labels.len() as u64).sum();
        Ok(StepReport { step, loss, grad_norm, learning_rate, tokens, labels })
    }

    /// Everything that a step does but the update: whether loss and gradient of these rows are finite, before
    /// the run begins. The report's numbers are those of the step that it would have been.
    ///
    /// # Errors
    /// As [`Trainer::step`].
    pub fn preflight(&self, batches: &[&[Example]]) -> Result<StepReport, TrainError> {
        let packed = self.packed(batches)?;
        let (loss, gradient) = self.gradient(&packed)?;
        let grad_norm = optimiser::norm(&gradient);
        self.check_finite(loss, grad_norm)?;
        let step = self.step_number();
        let learning_rate = self.recipe.rate(step);
        let tokens = packed.iter().map(|packed| packed.rows() as u64).sum();
        let labels = packed.iter().map(|packed| packed.labels.len() as u64).sum();
        Ok(StepReport { step, loss, grad_norm, learning_rate, tokens, labels })
    }

    /// The likelihood of the rows' labels, without dropout.
    ///
    /// # Errors
    /// When a row does not fit.
    pub fn evaluate(&self, examples: &[Example]) -> Result<Likelihood, TrainError> {
        let each = self.evaluate_each(examples)?;
        Ok(each.iter().fold(Likelihood::default(), |sum, one| Likelihood {
            nll: sum.nll + one.nll,
            labels: sum.labels + one.labels,
        }))
    }

    /// The same row by row. These are values of single rows: they must not leave the node.
    ///
    /// # Errors
    /// As [`Trainer::evaluate`].
    pub fn evaluate_each(&self, examples: &[Example]) -> Result<Vec<Likelihood>, TrainError> {
        self.likelihoods(examples, &self.parameters)
    }

    /// What [`Trainer::evaluate_each`] gives for the base model without adapter.
    ///
    /// # Errors
    /// As [`Trainer::evaluate`].
    pub fn evaluate_base_each(&self, examples: &[Example]) -> Result<Vec<Likelihood>, TrainError> {
        self.likelihoods(examples, &vec![0.0; self.parameters.len()])
    }

    /// Logits after each token of one row, without dropout, as F32.
    ///
    /// # Shapes
    /// Returns a row of vocabulary length per token.
    ///
    /// # Errors
    /// When the row does not fit.
    pub fn logits(&self, ids: &[u32]) -> Result<Vec<Vec<f32>>, TrainError> {
        let packed = self.pack(&[Example::whole(ids.to_vec())], 0)?;
        let pass = Pass::new(&self.trunk, &self.lora, &self.parameters, &packed, None);
        let logits = pass.logits();
        Ok(logits.chunks_exact(self.trunk.spec.vocab).map(<[f32]>::to_vec).collect())
    }

    /// The adapter as it is now, as PEFT has it.
    #[must_use]
    pub fn adapter(&self) -> AdapterFiles {
        AdapterFiles::of(&self.lora, &self.parameters, &self.recipe)
    }

    /// The recipe of the run.
    #[must_use]
    pub fn recipe(&self) -> &Recipe {
        &self.recipe
    }

    /// Optimiser steps taken.
    #[must_use]
    pub fn step_number(&self) -> u64 {
        self.optimiser.updates
    }

    /// How many numbers are trained.
    #[must_use]
    pub fn parameter_count(&self) -> usize {
        self.lora.len()
    }

    /// Tokens in the model's vocabulary.
    #[must_use]
    pub fn vocabulary_tokens(&self) -> usize {
        self.trunk.spec.vocab
    }

    /// Names the arithmetic of this run.
    #[must_use]
    pub fn numerics(&self) -> String {
        let precision = match self.recipe.precision {
            Precision::F32 => "f32",
            Precision::Bf16 => "bf16",
        };
        format!("{TRAIN_NUMERICS_VERSION}/{precision}/{}", self.trunk.isa.name())
    }

    /// Updates the adapter with the step's rate, which is returned.
    pub(super) fn apply(&mut self, gradient: &[f32]) -> f64 {
        let rate = self.recipe.rate(self.step_number());
        self.optimiser.update(&mut self.parameters, gradient, rate, &self.recipe);
        rate
    }

    pub(super) fn check_running(&self) -> Result<(), TrainError> {
        match self.step_number() < self.recipe.steps {
            true => Ok(()),
            false => Err(TrainError::recipe("steps", "all of them have been taken")),
        }
    }

    pub(super) fn check_finite(&self, loss: f64, norm: f64) -> Result<(), TrainError> {
        let step = self.step_number();
        match (loss.is_finite(), norm.is_finite()) {
            (true, true) => Ok(()),
            (true, false) => Err(TrainError::NotFinite { step, what: "gradient" }),
            (false, _) => Err(TrainError::NotFinite { step, what: "loss" }),
        }
    }

    /// Micro-batches laid out, each checked.
    fn packed(&self, batches: &[&[Example]]) -> Result<Vec<Packed>, TrainError> {
        let most = self.recipe.accumulate as usize;
        if batches.is_empty() || batches.len() > most {
            let problem = format!("{} micro-batches, not 1 to {most}", batches.len());
            return Err(TrainError::recipe("accumulate", problem));
        }
        let mut first = 0;
        let mut packed = Vec::with_capacity(batches.len());
        for batch in batches {
            let most = self.recipe.batch as usize;
            if batch.len() > most {
                let problem = format!("{} rows in a micro-batch, at most {most}", batch.len());
                return Err(TrainError::recipe("batch", problem));
            }
            packed.push(self.pack(batch, first)?);
            first += batch.len();
        }
        Ok(packed)
    }

    pub(super) fn pack(&self, rows: &[Example], first: usize) -> Result<Packed, TrainError> {
        Packed::new(rows, first, &self.trunk.spec, &self.recipe)
    }

    /// Mean loss over all labels, and its gradient.
    pub(super) fn gradient(&self, packed: &[Packed]) -> Result<(f64, Vec<f32>), TrainError> {
        let labels: usize = packed.iter().map(|packed| packed.labels.len()).sum();
        if labels == 0 {
            return Err(TrainError::example(0, "no token of any row counts as a label"));
        }
        let mut gradient = vec![0.0; self.lora.len()];
        let (mut loss, weight) = (0.0, 1.0 / labels as f32);
        for (micro, packed) in (0u32..).zip(packed) {
            if packed.labels.is_empty() {
                continue;
            }
            let recipe = &self.recipe;
            let dropout = Dropout::new(recipe.seed, recipe.dropout, self.step_number(), micro);
            let pass = Pass::new(&self.trunk, &self.lora, &self.parameters, packed, dropout);
            let losses = pass.losses_and_gradient(weight, recipe.recompute, &mut gradient);
            loss += losses.iter().sum::<f64>();
        }
        Ok((loss / labels as f64, gradient))
    }

    fn likelihoods(
        &self,
        examples: &[Example],
        parameters: &[f32],
    ) -> Result<Vec<Likelihood>, TrainError> {
        let mut found = Vec::with_capacity(examples.len());
        let batch = self.recipe.batch as usize;
        for (number, rows) in examples.chunks(batch).enumerate() {
            let packed = self.pack(rows, number * batch)?;
            let losses = match packed.labels.is_empty() {
                true => Vec::new(),
                false => Pass::new(&self.trunk, &self.lora, parameters, &packed, None).losses(),
            };
            let mut losses = losses.into_iter();
            for row in rows {
                let count = row.label_count();
                let nll = losses.by_ref().take(count).sum();
                found.push(Likelihood { nll, labels: count as u64 });
            }
        }
        Ok(found)
    }

    fn identity(&self) -> Identity {
        let mut shape = Sha256::new();
        for module in &self.lora.modules {
            shape.update(format!("{} {} {}\n", module.name, module.inputs, module.outputs));
            let rows = module.rows.iter().flat_map(|&row| (row as u64).to_le_bytes());
            shape.update(rows.collect::<Vec<u8>>());
        }
        Identity {
            numerics: self.numerics(),
            recipe: self.recipe.digest(),
            shape: shape.finalize().into(),
            noise: self.noise.as_ref().map_or([0; 32], NoiseKey::commitment),
        }
    }
}
