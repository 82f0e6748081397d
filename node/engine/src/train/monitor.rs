//! When a run is stopped early because it will not come to anything, or the machine does not do its work.
//!
//! Pure rules over numbers handed in: no clock here. Each has a bound that says how soon it must act:
//!
//! | Reason | Rule | Acts |
//! |---|---|---|
//! | not finite | a loss or gradient norm is NaN or infinite | in that step |
//! | diverged | loss above [`Divergence::multiple`] × its best running median, several steps in a row | after [`Divergence::steps`] |
//! | plateau | no gain of [`Plateau::gain`] in the running median; only when the recipe asks | after [`Plateau::window`] steps |
//! | stalled | no step ended for [`Stall::multiple`] × the median time of one | at [`Watch::deadline_ms`] |
//! | idle | computed for less than [`Idle::share`] of the time | after [`Idle::window_ms`] |
//!
//! The first three look at losses only and are part of a snapshot ([`Losses`] serialises), so a run that was
//! taken up again stops where it would have stopped. The last two look at times, which no two runs share; the
//! daemon applies them ([`Watch`]) to the progress frames of the worker, for one that hangs cannot speak.

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
        /// The best running median before.
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
    /// A step takes too long.
    Stalled {
        /// Steps that had ended.
        steps: u64,
        /// How long nothing has ended.
        waited_ms: u64,
        /// How long was allowed.
        allowed_ms: u64,
    },
    /// The process waits instead of computing.
    Idle {
        /// Time looked at.
        window_ms: u64,
        /// Time for which it computed.
        computed_ms: u64,
    },
}

impl Abort {
    /// A short name for messages and metrics.
    pub fn id(&self) -> &'static str {
        match self {
            Self::NotFinite { .. } => "not-finite",
            Self::Diverged { .. } => "diverged",
            Self::Plateau { .. } => "plateau",
            Self::Stalled { .. } => "stalled",
            Self::Idle { .. } => "idle",
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
                "Up to step {step} the loss lay far above its best running median of {best:.3} for {steps} \
                 steps, at last at {loss:.3}; a lower learning rate or a longer warm-up may help."
            ),
            Self::Plateau { step, window, gain } => write!(
                f,
                "Up to step {step} the loss had not fallen by {:.2} % within {window} steps, as the recipe \
                 asks it to.",
                gain * 100.0
            ),
            Self::Stalled { steps, waited_ms, allowed_ms } => write!(
                f,
                "After {steps} steps no further one ended within {waited_ms} ms, where {allowed_ms} ms were \
                 allowed; the machine hangs or is overloaded."
            ),
            Self::Idle { window_ms, computed_ms } => write!(
                f,
                "Within {window_ms} ms the process computed for {computed_ms} ms only; the machine does not \
                 do its work."
            ),
        }
    }
}

/// When a loss counts as diverged.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Divergence {
    /// Above so many times the best running median.
    pub multiple: f64,
    /// For so many steps in a row.
    pub steps: u32,
    /// Steps of the running median. Nothing has diverged before so many have been seen.
    pub window: u32,
    /// A best median below this counts as this, in nats: the losses of what is learnt by heart are small and
    /// jump.
    pub floor: f64,
}

impl Default for Divergence {
    fn default() -> Self {
        Self { multiple: 3.0, steps: 5, window: 5, floor: 0.5 }
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
        let Divergence { multiple, steps, window, floor } = self.divergence;
        if !(multiple.is_finite() && multiple > 1.0 && floor.is_finite() && floor >= 0.0) {
            return Err("divergence: multiple must be above 1 and floor at least 0".to_owned());
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
        let best = self.best?.0;
        self.above = match loss > rule.multiple * best.max(rule.floor) {
            true => self.above + 1,
            false => 0,
        };
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

/// When a step takes too long.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Stall {
    /// So many times the median of the last steps.
    pub multiple: u32,
    /// But never less than this: machines are shared.
    pub least_ms: u64,
    /// For the first step, before which model and rows are loaded and checked.
    pub first_ms: u64,
}

impl Default for Stall {
    fn default() -> Self {
        Self { multiple: 10, least_ms: 120_000, first_ms: 1_800_000 }
    }
}

/// When a process counts as idle.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Idle {
    /// Computing for less than this part of the time.
    pub share: f64,
    /// Over so long.
    pub window_ms: u64,
}

impl Default for Idle {
    fn default() -> Self {
        Self { share: 0.05, window_ms: 120_000 }
    }
}

/// Steps whose times count for the median: old ones say nothing of a machine that others use too.
const TIMES_LEN_MAX: usize = 32;
/// Samples of the processor time that are kept over a window.
const SAMPLES_LEN_MAX: usize = 64;

/// Watches a worker from outside, by the times of its progress frames and the processor time of its
/// process, both on any monotonic clock that the caller has.
#[derive(Clone, Debug)]
pub struct Watch {
    stall: Stall,
    idle: Option<Idle>,
    steps: u64,
    last_ms: u64,
    times_ms: VecDeque<u64>,
    /// Wall and processor time, oldest first; they reach back at least one window once that has passed.
    samples: VecDeque<(u64, u64)>,
}

impl Watch {
    /// Begins at `now_ms`. Without `idle`, processor time is not looked at (a GPU computes while its
    /// process waits).
    pub fn new(stall: Stall, idle: Option<Idle>, now_ms: u64) -> Self {
        let (times_ms, samples) = (VecDeque::new(), VecDeque::new());
        Self { stall, idle, steps: 0, last_ms: now_ms, times_ms, samples }
    }

    /// A step has ended.
    pub fn step_ended(&mut self, now_ms: u64) {
        // The first includes loading; it says nothing of the others.
        if self.steps > 0 {
            self.times_ms.push_back(now_ms.saturating_sub(self.last_ms));
            if self.times_ms.len() > TIMES_LEN_MAX {
                self.times_ms.pop_front();
            }
        }
        self.steps += 1;
        self.last_ms = now_ms;
    }

    /// The worker shows that it lives although no step ends now: it evaluates, snapshots or measures.
    pub fn alive(&mut self, now_ms: u64) {
        self.last_ms = self.last_ms.max(now_ms);
    }

    /// When the run is to be stopped if nothing ends before; wait no longer than until then.
    pub fn deadline_ms(&self) -> u64 {
        self.last_ms.saturating_add(self.allowed_ms())
    }

    fn allowed_ms(&self) -> u64 {
        let median = median(self.times_ms.iter().map(|&time| time as f64));
        match median {
            None => self.stall.first_ms.max(self.stall.least_ms),
            Some(median) => {
                (median as u64).saturating_mul(self.stall.multiple.into()).max(self.stall.least_ms)
            }
        }
    }

    /// Whether no step has ended for too long.
    pub fn stalled(&self, now_ms: u64) -> Option<Abort> {
        let (waited_ms, allowed_ms) = (now_ms.saturating_sub(self.last_ms), self.allowed_ms());
        (waited_ms >= allowed_ms).then_some(Abort::Stalled {
            steps: self.steps,
            waited_ms,
            allowed_ms,
        })
    }

    /// Takes in the processor time that the process has used since it began, all threads together, and
    /// says whether it was idle over the last window. Ask several times per window.
    pub fn computed(&mut self, now_ms: u64, processor_ms: u64) -> Option<Abort> {
        let idle = self.idle?;
        let apart = idle.window_ms / (SAMPLES_LEN_MAX as u64 / 2);
        if self.samples.back().is_none_or(|&(then, _)| now_ms >= then.saturating_add(apart)) {
            self.samples.push_back((now_ms, processor_ms));
        }
        let old = |sample: Option<&(u64, u64)>| {
            sample.is_some_and(|&(then, _)| now_ms.saturating_sub(then) >= idle.window_ms)
        };
        while self.samples.len() > SAMPLES_LEN_MAX || old(self.samples.get(1)) {
            self.samples.pop_front();
        }
        let first = self.samples.front();
        if !old(first) {
            return None;
        }
        let &(then_ms, before_ms) = first?;
        let window_ms = now_ms.saturating_sub(then_ms);
        let computed_ms = processor_ms.saturating_sub(before_ms);
        let enough = (computed_ms as f64) >= idle.share * window_ms as f64;
        (!enough).then_some(Abort::Idle { window_ms, computed_ms })
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
