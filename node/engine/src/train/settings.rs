//! What is decided about a training run, and what it is given.

use serde::{Deserialize, Serialize};

use super::canary::CANARIES_MAX;
use super::faults::Faults;
use super::measure::MeasureOptions;
use super::monitor::LossRules;
use super::prepare::{LossOn, Preparation};
use super::random::NoiseKey;
use super::recipe::Recipe;
use super::rows::Row;
use super::session::SessionError;

/// Everything that is decided about a run beside its rows.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// The fine-tune itself. Its seed also decides sides and orders of rows.
    pub recipe: Recipe,
    /// On which tokens the loss is taken.
    pub loss_on: LossOn,
    /// Examples share sequences. Not in private runs.
    pub packing: bool,
    /// Part of the rows that is held out, in `0..1`.
    pub validation: f64,
    /// Most held-out examples to evaluate before and after.
    pub validation_rows_max: u32,
    /// The time that chat templates see, in seconds since the Unix epoch, UTC.
    pub clock: i64,
    /// Steps between snapshots; 0 makes none but on stopping.
    pub snapshot_every: u64,
    /// When the losses say to abort.
    pub rules: LossRules,
    /// Canaries to plant, at most [`CANARIES_MAX`], each this often.
    pub canaries: u32,
    /// How often each of them.
    pub canary_repeats: u32,
    /// What to measure for the gate at the end; None measures nothing.
    pub measure: Option<MeasureOptions>,
    /// Memory that may be used, in bytes; None takes what the operating system says it could give.
    pub memory_bytes: Option<u64>,
    /// Things that go wrong, for tests.
    #[doc(hidden)]
    #[serde(default, skip_serializing_if = "Faults::are_none")]
    pub faults: Faults,
}

impl Settings {
    /// The usual settings around a recipe.
    pub fn new(recipe: Recipe) -> Self {
        Self {
            recipe,
            loss_on: LossOn::Assistant,
            packing: false,
            validation: 0.0,
            validation_rows_max: 256,
            clock: 0,
            snapshot_every: 0,
            rules: LossRules::default(),
            canaries: 0,
            canary_repeats: 1,
            measure: None,
            memory_bytes: None,
            faults: Faults::default(),
        }
    }

    /// Refuses settings that cannot be meant.
    ///
    /// # Errors
    /// In words that name the field.
    pub fn check(&self) -> Result<(), SessionError> {
        self.recipe.check()?;
        let wrong = |problem: String| Err(SessionError::Settings(problem));
        self.rules.check().map_err(SessionError::Settings)?;
        if let Some(measure) = &self.measure {
            measure
                .check()
                .map_err(|problem| SessionError::Settings(format!("measure: {problem}")))?;
        }
        if self.packing && self.recipe.privacy.is_some() {
            let problem = "packing puts rows of several subjects into one sequence, which a private \
                           run cannot take: set packing = false";
            return wrong(problem.to_owned());
        }
        if !(0.0..1.0).contains(&self.validation) {
            return wrong(format!("validation is {}, not in [0, 1)", self.validation));
        }
        if self.canaries > CANARIES_MAX || (self.canaries > 0 && self.canary_repeats == 0) {
            return wrong(format!("canaries: 0 to {CANARIES_MAX}, each at least once"));
        }
        if self.canary_repeats > 1_000 {
            return wrong("canary_repeats is at most 1000".to_owned());
        }
        Ok(())
    }

    pub(super) fn preparation(&self) -> Preparation {
        Preparation {
            loss_on: self.loss_on,
            sequence_tokens: self.recipe.sequence_tokens as usize,
            clock: self.clock,
        }
    }
}

/// Rows of one dataset, read one after the other.
pub struct Dataset<'a> {
    /// The rows, or why one cannot be read.
    pub rows: Box<dyn Iterator<Item = Result<Row, String>> + 'a>,
    /// How often it has its turn, compared with the others. Private runs take no weights.
    pub weight: u32,
}

/// Entropy of the operating system, which the data's keeper draws once for a run and keeps with the data
/// while the run may be resumed.
#[derive(Clone, Default)]
pub struct Secrets {
    /// Of noise and sampling; private runs need it.
    pub noise: Option<NoiseKey>,
    /// Of canaries; needed when there are some.
    pub canaries: Option<[u8; 32]>,
}
