//! When a run is stopped early because it will not come to anything.
//!
//! Pure rules over losses; that a machine does not do its work is seen from outside of the room. Each has a
//! bound that says how soon it must act:
//!
//! | Reason | Rule | Acts |
//! |---|---|---|
//! | not finite | a loss or gradient norm is NaN or infinite | in that step |
//! | diverged | loss above [`Divergence::multiple`] × the best so far, or worse than chance, several steps in a row | after [`Divergence::steps`] |
//! | plateau | no gain of [`Plateau::gain`] in the running median; only when the recipe asks | after [`Plateau::window`] steps |
//!
//! What they remember is part of a snapshot ([`Losses`] serialises), so a run that was taken up again stops where
//! it would have stopped.

use std::collections::VecDeque;
use std::fmt;

use serde::{Deserialize, Serialize};

/// Steps of the longest window: bounds the state.
pub const WINDOW_MAX: u32 = 10_000;

/// Why a run was stopped. Its `Display` is a sentence for the receipt.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Abort {
    /// A loss or gradient is NaN or infinite.
    NotFinite {
        /// The step, counted from 1.
        step: u64,
    },
    /// The loss has grown out of proportion.
    Diverged {
        /// The step, counted from 1.
        step: u64,
        /// Its loss.
        loss: f64,
        /// The best before.
        best: f64,
        /// Steps in a row.
        steps: u32,
    },
    /// The loss no longer falls.
    Plateau {
        /// The step, counted from 1.
        step: u64,
        /// Steps without the gain asked for.
        window: u32,
        /// The gain asked for, as a part of the loss.
        gain: f64,
    },
}

impl Abort {
    /// A short name for messages and metrics.
    pub fn id(&self) -> &'static str {
        match self {
            Self::NotFinite { .. } => "not-finite",
            Self::Diverged { .. } => "diverged",
            Self::Plateau { .. } => "plateau",
        }
    }
}

impl fmt::Display for Abort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::NotFinite { step } => write!(
                f,
                "In step {step} the loss or a gradient was not a finite number; a lower learning rate or a \
                 longer warm-up may help."
            ),
            Self::Diverged { step, loss, best, steps } => write!(
                f,
                "Up to step {step} the loss lay far above the best before, {best:.3}, for {steps} \
                 steps, at last at {loss:.3}; a lower learning rate or a longer warm-up may help."
            ),
            Self::Plateau { step, window, gain } => write!(
                f,
                "Up to step {step} the loss had not fallen by {:.2} % within {window} steps, as the recipe \
                 asks it to.",
                gain * 100.0
            ),
        }
    }
}

/// When a loss counts as diverged.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Divergence {
    /// Above so many times the best running median.
    pub multiple: f64,
    /// Or above this, in nats, which is what a guess among all tokens has, the logarithm of their number; and
    /// above the first loss, that of the model as it was, by half. None leaves it to whoever knows the model.
    pub chance: Option<f64>,
    /// For so many steps in a row.
    pub steps: u32,
    /// Steps of the running median. Nothing has grown before so many have been seen.
    pub window: u32,
    /// A best median below this counts as this, in nats: the losses of what is learnt by heart are small and
    /// jump.
    pub floor: f64,
}

impl Default for Divergence {
    fn default() -> Self {
        Self { multiple: 3.0, chance: None, steps: 5, window: 5, floor: 0.5 }
    }
}

/// When a run counts as going nowhere.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Plateau {
    /// Steps within which the running median must improve.
    pub window: u32,
    /// By this part of what it was, in `0..1`.
    pub gain: f64,
}

/// The rules over losses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct LossRules {
    /// When a loss counts as diverged.
    pub divergence: Divergence,
    /// When a run counts as going nowhere; None never does.
    pub plateau: Option<Plateau>,
}

impl LossRules {
    /// Refuses rules that could never or would always act.
    ///
    /// # Errors
    /// In words.
    pub fn check(&self) -> Result<(), String> {
        let Divergence { multiple, chance, steps, window, floor } = self.divergence;
        if !(multiple.is_finite() && multiple > 1.0 && floor.is_finite() && floor >= 0.0) {
            return Err("divergence: multiple must be above 1 and floor at least 0".to_owned());
        }
        if chance.is_some_and(|chance| !(chance.is_finite() && chance > 0.0)) {
            return Err("divergence: chance must be above 0".to_owned());
        }
        let window_fits = |window: u32| (1..=WINDOW_MAX).contains(&window);
        if steps == 0 || !window_fits(window) {
            return Err(format!("divergence: steps and window must be 1 to {WINDOW_MAX}"));
        }
        match self.plateau {
            Some(Plateau { window, gain })
                if !window_fits(window) || !(0.0..1.0).contains(&gain) =>
            {
                Err(format!("plateau: window must be 1 to {WINDOW_MAX} and gain in [0, 1)"))
            }
            _ => Ok(()),
        }
    }
}

/// A float that comes back from text as it was: as its bits.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Exact(pub(super) f64);

impl Serialize for Exact {
    fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_u64(self.0.to_bits())
    }
}

impl<'de> Deserialize<'de> for Exact {
    fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        Ok(Self(f64::from_bits(u64::deserialize(from)?)))
    }
}

/// What the rules over losses remember. Equal losses give equal states.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Losses {
    /// The last losses, at most [`Divergence::window`].
    recent: VecDeque<Exact>,
    /// The first loss. One step says little, so it only counts where the model guesses.
    #[serde(default)]
    first: Option<Exact>,
    /// The lowest running median so far.
    best: Option<Exact>,
    /// Steps in a row that lay above the bound.
    above: u32,
    /// The median that a plateau is measured from, and how many steps ago that was.
    mark: Option<(Exact, u32)>,
}

impl Losses {
    /// Takes in a step, counted from 1, and says whether the run is to stop. None for a loss that is
    /// withheld (private runs): then only the norm is looked at.
    pub fn observe(
        &mut self,
        rules: &LossRules,
        step: u64,
        loss: Option<f64>,
        grad_norm: Option<f64>,
    ) -> Option<Abort> {
        if [loss, grad_norm].into_iter().flatten().any(|value| !value.is_finite()) {
            return Some(Abort::NotFinite { step });
        }
        let loss = loss?;
        let abort = self.diverged(&rules.divergence, step, loss);
        self.first.get_or_insert(Exact(loss));
        let window = rules.divergence.window.clamp(1, WINDOW_MAX) as usize;
        self.recent.push_back(Exact(loss));
        while self.recent.len() > window {
            self.recent.pop_front();
        }
        if self.recent.len() < window {
            return abort;
        }
        let median = median(self.recent.iter().map(|loss| loss.0))?;
        self.best = Some(Exact(self.best.map_or(median, |best| best.0.min(median))));
        abort.or_else(|| self.plateau(rules.plateau?, step, median))
    }

    /// Compares with the best median *before* the step, so that no loss excuses itself.
    fn diverged(&mut self, rule: &Divergence, step: u64, loss: f64) -> Option<Abort> {
        let first = self.first?.0;
        let best = self.best.map_or(first, |best| best.0);
        let grown = self.best.is_some() && loss > rule.multiple * best.max(rule.floor);
        let guessing = rule.chance.is_some_and(|chance| loss > chance.max(1.5 * first));
        self.above = if grown || guessing { self.above + 1 } else { 0 };
        let steps = self.above;
        (steps >= rule.steps).then_some(Abort::Diverged { step, loss, best, steps })
    }

    fn plateau(&mut self, rule: Plateau, step: u64, median: f64) -> Option<Abort> {
        let (mark, ago) = match self.mark {
            Some((mark, ago)) if median > mark.0 * (1.0 - rule.gain) => (mark, ago + 1),
            _ => (Exact(median), 0),
        };
        self.mark = Some((mark, ago));
        let Plateau { window, gain } = rule;
        (ago >= window).then_some(Abort::Plateau { step, window, gain })
    }
}

/// The middle of the values, the lower one of two; None of none.
fn median(values: impl Iterator<Item = f64>) -> Option<f64> {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len().checked_sub(1)? / 2).copied()
}

#[cfg(test)]
#[path = "tests/monitor.rs"]
mod tests;
