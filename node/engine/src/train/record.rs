//! What is said of a run while it goes on and at its end, and what of it survives an interruption.

use serde::{Deserialize, Serialize};

use super::data::Data;
use super::divide::Sides;
use super::monitor::{Abort, Exact, LossRules, Losses};
use super::session::SessionError;
use super::settings::Settings;
use super::trainer::StepReport;

/// Entries of [`Record::epoch_losses`]: more epochs share entries.
pub const EPOCHS_MAX: u64 = 256;

/// One step, as it is reported.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Progress {
    /// Steps made, this one included.
    pub step: u64,
    /// Steps of the whole run.
    pub steps: u64,
    /// Learning rate of the step.
    pub learning_rate: f64,
    /// Mean cross entropy over the step's labels before the update, in nats. Absent in private runs, as are
    /// the next two.
    pub loss: Option<f64>,
    /// Global norm of the gradient before clipping.
    pub grad_norm: Option<f64>,
    /// Tokens computed in the step.
    pub tokens: Option<u64>,
}

impl Progress {
    pub(super) fn of(report: &StepReport, steps: u64, loss: f64) -> Self {
        Self {
            step: report.step + 1,
            steps,
            learning_rate: report.learning_rate,
            loss: Some(loss),
            grad_norm: Some(report.grad_norm),
            tokens: Some(report.tokens),
        }
    }

    pub(super) fn private(step: u64, steps: u64, learning_rate: f64) -> Self {
        Self { step, steps, learning_rate, loss: None, grad_norm: None, tokens: None }
    }
}

/// Numbers about a finished run that may leave with its adapter: none of them is of a single row, and there
/// is no text in it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    /// Steps made.
    pub steps: u64,
    /// Epochs that one entry of `epoch_losses` stands for.
    pub epochs_per_entry: u64,
    /// Mean loss of the steps that began in those epochs, in nats, at most [`EPOCHS_MAX`]; empty in private
    /// runs.
    pub epoch_losses: Vec<f64>,
    /// What became of the rows; canaries do not count.
    pub sides: Sides,
    /// Tokens computed in all steps; absent in private runs.
    pub tokens: Option<u64>,
    /// Labels of the held-out examples that the perplexities were taken on.
    pub validation_labels: u64,
    /// Perplexity of the held-out examples before the first step; absent without any and in private runs.
    pub perplexity_before: Option<f64>,
    /// The same after the last step.
    pub perplexity_after: Option<f64>,
}

/// What of a run survives an interruption, beside the trainer's own state.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct State {
    /// Names the examples and their order.
    data: String,
    losses: Losses,
    /// Epochs per entry, then for each entry the sum of losses and the number of steps.
    epochs_per_entry: u64,
    epochs: Vec<(Exact, u64)>,
    tokens: u64,
    before: Option<(Exact, u64)>,
}

impl State {
    pub(super) fn new(settings: &Settings, data: &Data) -> Self {
        let last = settings.recipe.steps.saturating_sub(1);
        let epochs = data.order.as_ref().map_or(1, |order| order.epoch(last) + 1);
        Self {
            data: data.digest.clone(),
            losses: Losses::default(),
            epochs_per_entry: epochs.div_ceil(EPOCHS_MAX),
            epochs: Vec::new(),
            tokens: 0,
            before: None,
        }
    }

    /// What was written, if it was of the same rows in the same order.
    ///
    /// # Errors
    /// When it was not, or is damaged.
    pub(super) fn read(
        bytes: &[u8],
        settings: &Settings,
        data: &Data,
    ) -> Result<Self, SessionError> {
        let wrong = |problem: &str| SessionError::Snapshot(problem.to_owned());
        let state: Self =
            serde_json::from_slice(bytes).map_err(|_| wrong("its record of the run is damaged"))?;
        if state.data != data.digest {
            return Err(wrong(
                "belongs to other rows, weights or settings of the rows: begin anew",
            ));
        }
        let fresh = Self::new(settings, data);
        if state.epochs_per_entry != fresh.epochs_per_entry
            || state.epochs.len() as u64 > EPOCHS_MAX
        {
            return Err(wrong("its record of the run contradicts the recipe"));
        }
        Ok(state)
    }

    pub(super) fn write(&self) -> Result<Vec<u8>, SessionError> {
        serde_json::to_vec(self).map_err(|error| SessionError::Snapshot(error.to_string()))
    }

    /// The likelihood before the first step, once it is known.
    pub(super) fn set_before(&mut self, likelihood: Option<(f64, u64)>) {
        self.before = likelihood.map(|(nll, labels)| (Exact(nll), labels));
    }

    pub(super) fn has_before(&self) -> bool {
        self.before.is_some()
    }

    /// Takes in a step that began in `epoch`.
    pub(super) fn observe(
        &mut self,
        rules: &LossRules,
        progress: &Progress,
        epoch: u64,
    ) -> Option<Abort> {
        let Progress { step, loss, grad_norm, tokens, .. } = *progress;
        self.tokens += tokens.unwrap_or(0);
        if let Some(loss) = loss.filter(|loss| loss.is_finite()) {
            let entry = (epoch / self.epochs_per_entry.max(1)).min(EPOCHS_MAX - 1) as usize;
            if self.epochs.len() <= entry {
                self.epochs.resize(entry + 1, (Exact(0.0), 0));
            }
            if let Some((sum, steps)) = self.epochs.get_mut(entry) {
                sum.0 += loss;
                *steps += 1;
            }
        }
        self.losses.observe(rules, step, loss, grad_norm)
    }

    pub(super) fn record(
        &self,
        settings: &Settings,
        data: &Data,
        after: Option<(f64, u64)>,
    ) -> Record {
        let perplexity = |(nll, labels): (f64, u64)| {
            (labels > 0).then(|| (nll / labels as f64).exp()).filter(|value| value.is_finite())
        };
        let mean = |&(sum, steps): &(Exact, u64)| sum.0 / steps.max(1) as f64;
        Record {
            steps: settings.recipe.steps,
            epochs_per_entry: self.epochs_per_entry,
            epoch_losses: self.epochs.iter().map(mean).collect(),
            sides: data.sides,
            tokens: settings.recipe.privacy.is_none().then_some(self.tokens),
            validation_labels: after.map_or(0, |(_, labels)| labels),
            perplexity_before: self.before.and_then(|(nll, labels)| perplexity((nll.0, labels))),
            perplexity_after: after.and_then(perplexity),
        }
    }
}
