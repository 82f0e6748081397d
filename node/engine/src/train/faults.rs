//! Things that go wrong on purpose, so that tests can see what a run does about them. Steps count from 1.

use serde::{Deserialize, Serialize};

/// Which faults a run has: none, unless a test or the test network says so.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Faults {
    /// The loss of this step is not a number.
    pub nan_at: Option<u64>,
    /// From this step on, the loss is so many times what it is.
    pub times_from: Option<(u64, f64)>,
    /// This step hangs and computes.
    pub hang_at: Option<u64>,
    /// From this step on, the device does nothing.
    pub idle_at: Option<u64>,
}

impl Faults {
    pub(super) fn are_none(&self) -> bool {
        *self == Self::default()
    }

    pub(super) fn hangs(&self, step: u64) -> bool {
        self.hang_at == Some(step)
    }

    pub(super) fn idles(&self, step: u64) -> bool {
        self.idle_at == Some(step)
    }

    pub(super) fn loss(&self, step: u64, loss: f64) -> f64 {
        match self.times_from {
            _ if self.nan_at == Some(step) => f64::NAN,
            Some((from, times)) if step >= from => loss * times,
            _ => loss,
        }
    }
}
