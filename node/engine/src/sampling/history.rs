//! What prompt and answer contain so far, as far as penalties need to know.

use std::collections::BTreeMap;

use super::settings::Sampling;

/// Which tokens occur, and how often in the answer.
#[derive(Clone, Debug, Default)]
pub(crate) struct History {
    /// Occurrences in the answer of every token of prompt and answer; empty when no penalty is asked for.
    answered: BTreeMap<u32, u32>,
    wanted: bool,
}

impl History {
    /// The history after the prompt, which costs nothing when nothing is penalised.
    pub(crate) fn new(sampling: &Sampling, prompt: &[u32]) -> Self {
        let wanted = sampling.penalises();
        // Presence and frequency penalties do not ask for the prompt, so it is left out for them.
        let prompt = if sampling.repetition_milli == 1_000 { &[] } else { prompt };
        Self { answered: prompt.iter().map(|&id| (id, 0)).collect(), wanted }
    }

    /// Adds the next token of the answer.
    pub(crate) fn push(&mut self, id: u32) {
        if self.wanted {
            *self.answered.entry(id).or_default() += 1;
        }
    }

    /// Applies bias and penalties; whether there were any. Logits stay finite.
    pub(super) fn adjust(&self, sampling: &Sampling, logits: &mut [f32]) -> bool {
        for &(id, milli) in &sampling.logit_bias {
            change(logits, id, |logit| logit + milli as f32 / 1_000.0);
        }
        let repetition = sampling.repetition_milli as f32 / 1_000.0;
        let presence = sampling.presence_milli as f32 / 1_000.0;
        let frequency = sampling.frequency_milli as f32 / 1_000.0;
        for (&id, &count) in &self.answered {
            change(logits, id, |logit| {
                let logit = if logit > 0.0 { logit / repetition } else { logit * repetition };
                match count {
                    0 => logit,
                    count => logit - (frequency * count as f32 + presence),
                }
            });
        }
        !(sampling.logit_bias.is_empty() && self.answered.is_empty())
    }
}

fn change(logits: &mut [f32], id: u32, with: impl Fn(f32) -> f32) {
    if let Some(logit) = logits.get_mut(id as usize) {
        *logit = with(*logit).clamp(f32::MIN, f32::MAX);
    }
}
