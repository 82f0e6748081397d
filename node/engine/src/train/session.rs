//! The inside of a training worker: rows in, adapter out, and what happens in between.
//!
//! [`run`] prepares the rows, makes sure before the first step that the run can come to something (the plan
//! fits the memory, the processor computes rightly, one batch has a finite loss), and steps until the run is
//! done, somebody stops it (it snapshots, then stops), or a rule aborts it. It knows no process, no pipe, no
//! clock and no disk: [`Hooks`] are told what happens. A run that goes on from a snapshot ends with the bytes
//! of one that was never interrupted.
//!
//! # What is said of a private run
//! Losses, gradient norms and token counts of single steps follow from single rows without any noise, so a
//! private run says none of them, to nobody: only steps and learning rates. Perplexities of its held-out rows
//! are measured for the gate ([`Measures`]) and are not in the [`Record`]. Without losses, only the rules on
//! numbers that are not finite and on time apply.

use std::ops::ControlFlow;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::bench::AdapterUnderTest;
use super::data::Data;
use super::error::TrainError;
use super::health::probe_processor;
use super::measure::{MeasureError, Measures};
use super::monitor::Abort;
use super::peft::AdapterFiles;
use super::prepare::{RowsError, Texts};
use super::record::{Progress, Record, State};
use super::settings::{Dataset, Secrets, Settings};
use super::trainer::{Base, TrainOptions, Trainer};
use crate::error::EngineError;

/// What a run is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// Rows become examples.
    Preparing,
    /// Weights are loaded and the machine is tried.
    Loading,
    /// Held-out rows are evaluated.
    Evaluating,
    /// Steps are made.
    Training,
    /// The adapter is measured for the gate.
    Measuring,
}

/// Who is told what happens. A `Break` asks the run to stop.
pub trait Hooks {
    /// Another phase has begun, or goes on: also a sign of life where no steps end. Called at least once per
    /// phase, and between parts of the long ones.
    fn phase(&mut self, phase: Phase) -> ControlFlow<()>;

    /// A step has ended.
    fn progress(&mut self, progress: &Progress) -> ControlFlow<()>;

    /// The state of the run after `step` steps, to be kept durably. It holds what the adapter holds, and no
    /// rows.
    ///
    /// # Errors
    /// In words; the run fails then, because it could not be resumed.
    fn snapshot(&mut self, step: u64, bytes: Vec<u8>) -> Result<(), String>;

    /// A step that hangs, for tests: never returns, and computes.
    #[doc(hidden)]
    fn hang(&mut self) {
        loop {
            std::thread::yield_now();
        }
    }

    /// A device that does nothing, for tests: never returns, and does not compute.
    #[doc(hidden)]
    fn idle(&mut self) {
        loop {
            std::thread::park();
        }
    }
}

/// How a run ended.
#[derive(Debug)]
pub enum Ending {
    /// All steps were made.
    Done(Box<Finished>),
    /// Somebody stopped it. The last snapshot, if there is one, is of where it stood.
    Stopped {
        /// Steps made; 0 when it was stopped before the trainer was loaded, whatever a snapshot says.
        step: u64,
    },
    /// A rule stopped it, after this many steps.
    Aborted {
        /// Steps made.
        step: u64,
        /// Which rule, and its sentence.
        abort: Abort,
    },
}

/// What a run that was not stopped gives.
pub struct Finished {
    /// The adapter, in PEFT's format.
    pub adapter: AdapterFiles,
    /// Numbers that may go with it.
    pub record: Record,
    /// Numbers for the gate, if asked for. They stay with the data.
    pub measures: Option<Measures>,
}

/// An adapter is what was learnt from the rows: only its size is printed, and no measure of them.
impl std::fmt::Debug for Finished {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (bytes, steps) = (self.adapter.safetensors.len(), self.record.steps);
        write!(f, "Finished(adapter of {bytes} bytes after {steps} steps)")
    }
}

/// Why a run failed or never began.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SessionError {
    /// The settings contradict themselves or the rows.
    #[error("{0}")]
    Settings(String),
    /// Rows cannot be trained on.
    #[error("dataset {dataset}: {source}")]
    Rows {
        /// Which one, counted from 1.
        dataset: usize,
        /// What is wrong.
        source: RowsError,
    },
    /// The trainer refused or failed.
    #[error(transparent)]
    Train(#[from] TrainError),
    /// The model's texts or its inference failed.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// Measuring failed.
    #[error(transparent)]
    Measure(#[from] MeasureError),
    /// A snapshot could not be kept, or is of another run.
    #[error("snapshot: {0}")]
    Snapshot(String),
}

/// Makes a fine-tune, from the beginning or from a snapshot, on the model at `model`.
///
/// # Errors
/// [`SessionError`]. What a rule says of the run is no error but an [`Ending::Aborted`].
pub fn run(
    model: &Path,
    settings: &Settings,
    datasets: Vec<Dataset<'_>>,
    secrets: &Secrets,
    snapshot: Option<&[u8]>,
    hooks: &mut dyn Hooks,
) -> Result<Ending, SessionError> {
    settings.check()?;
    let stopped = |step| Ok(Ending::Stopped { step });
    if hooks.phase(Phase::Preparing).is_break() {
        return stopped(0);
    }
    let texts = Texts::open(model)?;
    let mut keep_going = || hooks.phase(Phase::Preparing);
    let data = Data::prepare(&texts, settings, datasets, secrets, &mut keep_going)?;
    let Some(mut data) = data else { return stopped(0) };
    if hooks.phase(Phase::Loading).is_break() {
        return stopped(0);
    }
    probe_processor()?;
    let options = TrainOptions {
        memory_bytes: settings.memory_bytes,
        start: None,
        noise: secrets.noise.clone(),
    };
    let base = Base::open(model)?;
    let (trainer, state) = match snapshot {
        None => {
            let trainer = Trainer::new(&base, &settings.recipe, &options)?;
            (trainer, State::new(settings, &data))
        }
        Some(bytes) => {
            let (trainer, state) = Trainer::resume(&base, &settings.recipe, &options, bytes)?;
            (trainer, State::read(&state, settings, &data)?)
        }
    };
    let mut session = Session { settings, trainer, state, data: &mut data, hooks: &mut *hooks };
    match session.train()? {
        Outcome::Ended(ending) => Ok(ending),
        Outcome::Trained { adapter, record } => {
            // The trainer's weights make room for the engine's.
            drop(session);
            match measured(model, settings, &texts, &data, &adapter, hooks)? {
                ControlFlow::Break(()) => stopped(settings.recipe.steps),
                ControlFlow::Continue(measures) => {
                    Ok(Ending::Done(Box::new(Finished { adapter, record: *record, measures })))
                }
            }
        }
    }
}

enum Outcome {
    Ended(Ending),
    Trained { adapter: AdapterFiles, record: Box<Record> },
}

struct Session<'a, 'h> {
    settings: &'a Settings,
    trainer: Trainer,
    state: State,
    data: &'a mut Data,
    hooks: &'h mut dyn Hooks,
}

impl Session<'_, '_> {
    fn train(&mut self) -> Result<Outcome, SessionError> {
        if !self.state.has_before() && self.trainer.step_number() == 0 {
            match self.evaluate()? {
                ControlFlow::Break(()) => return self.stop(),
                ControlFlow::Continue(likelihood) => self.state.set_before(likelihood),
            }
        }
        if self.hooks.phase(Phase::Training).is_break() {
            return self.stop();
        }
        let steps = self.settings.recipe.steps;
        if self.trainer.step_number() < steps
            && let Err(error) = self.preflight()
        {
            return self.not_finite(error);
        }
        let mut rules = self.settings.rules;
        let chance = (self.trainer.vocabulary_tokens() as f64).ln();
        rules.divergence.chance.get_or_insert(chance);
        while self.trainer.step_number() < steps {
            let progress = match self.step() {
                Ok(progress) => progress,
                Err(error) => return self.not_finite(error),
            };
            let step = progress.step;
            let epoch = self.data.order.as_ref().map_or(0, |order| order.epoch(step - 1));
            let abort = self.state.observe(&rules, &progress, epoch);
            let going = self.hooks.progress(&progress);
            if let Some(abort) = abort {
                return Ok(Outcome::Ended(Ending::Aborted { step, abort }));
            }
            if going.is_break() && step < steps {
                return self.stop();
            }
            let every = self.settings.snapshot_every;
            if every > 0 && step.is_multiple_of(every) {
                self.snapshot()?;
            }
        }
        match self.evaluate()? {
            ControlFlow::Break(()) => self.stop(),
            ControlFlow::Continue(after) => {
                if self.settings.measure.is_some() {
                    // Measuring may be stopped as well, and the trainer is gone by then.
                    self.snapshot()?;
                }
                let record = Box::new(self.state.record(self.settings, self.data, after));
                Ok(Outcome::Trained { adapter: self.trainer.adapter(), record })
            }
        }
    }

    /// One batch, computed and not applied.
    fn preflight(&mut self) -> Result<(), TrainError> {
        let step = self.trainer.step_number();
        match self.data {
            Data { subjects: Some(subjects), .. } => {
                let rows: Vec<_> = subjects.pick(&[0]).concat();
                let batch = rows.len().min(self.settings.recipe.batch as usize);
                self.trainer.preflight(&[&rows[..batch]]).map(drop)
            }
            Data { order: Some(order), .. } => {
                let batches = order.step(step);
                let batches: Vec<&[_]> = batches.iter().map(Vec::as_slice).collect();
                self.trainer.preflight(&batches).map(drop)
            }
            Data { .. } => Ok(()),
        }
    }

    fn step(&mut self) -> Result<Progress, TrainError> {
        let (step, steps) = (self.trainer.step_number(), self.settings.recipe.steps);
        let faults = &self.settings.faults;
        if faults.hangs(step + 1) {
            self.hooks.hang();
        }
        if faults.idles(step + 1) {
            self.hooks.idle();
        }
        if let Some(subjects) = &self.data.subjects {
            let numbers = self.trainer.sample_subjects(subjects.len())?;
            let report = self.trainer.step_private(&subjects.pick(&numbers))?;
            let learning_rate = report.learning_rate;
            return Ok(Progress::private(step + 1, steps, learning_rate));
        }
        let batches = self.data.order.as_mut().map(|order| order.step(step)).unwrap_or_default();
        let batches: Vec<&[_]> = batches.iter().map(Vec::as_slice).collect();
        let report = self.trainer.step(&batches)?;
        Ok(Progress::of(&report, steps, faults.loss(step + 1, report.loss)))
    }

    /// Likelihood of the held-out examples; nothing when there are none or the run is private.
    fn evaluate(&mut self) -> Result<ControlFlow<(), Option<(f64, u64)>>, SessionError> {
        if self.data.validation.is_empty() || self.settings.recipe.privacy.is_some() {
            return Ok(ControlFlow::Continue(None));
        }
        let (mut nll, mut labels) = (0.0, 0);
        for part in self.data.validation.chunks(self.settings.recipe.batch as usize) {
            if self.hooks.phase(Phase::Evaluating).is_break() {
                return Ok(ControlFlow::Break(()));
            }
            let likelihood = self.trainer.evaluate(part)?;
            nll += likelihood.nll;
            labels += likelihood.labels;
        }
        Ok(ControlFlow::Continue(Some((nll, labels))))
    }

    fn snapshot(&mut self) -> Result<(), SessionError> {
        let bytes = self.trainer.snapshot(&self.state.write()?)?;
        self.hooks.snapshot(self.trainer.step_number(), bytes).map_err(SessionError::Snapshot)
    }

    /// Snapshots, then stops. Before the evaluation of the beginning there is nothing to keep.
    fn stop(&mut self) -> Result<Outcome, SessionError> {
        let step = self.trainer.step_number();
        if step > 0 {
            self.snapshot()?;
        }
        Ok(Outcome::Ended(Ending::Stopped { step }))
    }

    /// A number that is not finite is a rule's business, everything else an error.
    fn not_finite(&self, error: TrainError) -> Result<Outcome, SessionError> {
        match error {
            TrainError::NotFinite { step, .. } => {
                let abort = Abort::NotFinite { step: step + 1 };
                Ok(Outcome::Ended(Ending::Aborted { step, abort }))
            }
            error => Err(error.into()),
        }
    }
}

/// Loads the engine with the adapter and measures.
fn measured(
    model: &Path,
    settings: &Settings,
    texts: &Texts,
    data: &Data,
    adapter: &AdapterFiles,
    hooks: &mut dyn Hooks,
) -> Result<ControlFlow<(), Option<Measures>>, SessionError> {
    let (Some(options), Some(rows)) = (&settings.measure, &data.measured) else {
        return Ok(ControlFlow::Continue(None));
    };
    if hooks.phase(Phase::Measuring).is_break() {
        return Ok(ControlFlow::Break(()));
    }
    let bench = AdapterUnderTest {
        model,
        adapter,
        context_tokens: settings.recipe.sequence_tokens,
        memory_bytes: settings.memory_bytes,
    };
    let preparation = settings.preparation();
    let outcome =
        bench.measure(texts, &preparation, rows, data.canaries.as_ref(), options, &mut || {
            hooks.phase(Phase::Measuring)
        });
    match outcome {
        Ok(measures) => Ok(ControlFlow::Continue(Some(measures))),
        Err(MeasureError::Stopped) => Ok(ControlFlow::Break(())),
        Err(error) => Err(error.into()),
    }
}
