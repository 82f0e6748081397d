//! What a request may ask of sampling, and the ranges.

use serde::{Deserialize, Serialize};

use crate::error::EngineError;

/// Highest temperature accepted, in thousandths. Beyond it text is noise.
const TEMPERATURE_MILLI_MAX: u32 = 10_000;
/// Range of the repetition penalty, in thousandths: a tenth to ten.
const REPETITION_MILLI: std::ops::RangeInclusive<u32> = 100..=10_000;
/// Largest presence or frequency penalty either way, in thousandths, as OpenAI's interface has it.
const PENALTY_MILLI_MAX: u32 = 2_000;
/// Largest logit bias either way, in thousandths: 100, which bans or forces.
const BIAS_MILLI_MAX: u32 = 100_000;
/// Most biased tokens of a request.
const BIASES_LEN_MAX: usize = 1_024;

/// How tokens are chosen. Integers, so that the same values travel in signed messages.
///
/// New settings are added with values that change nothing: write `..Sampling::GREEDY` for the rest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Sampling {
    /// Temperature in thousandths, 0 to 10,000; 0 means greedy and ignores top-k, top-p, min-p and seed.
    pub temperature_milli: u32,
    /// Keep only this many most likely tokens; 0 means all.
    pub top_k: u32,
    /// Keep the most likely tokens that together reach this probability, in thousandths, 1 to 1,000;
    /// 1,000 means all.
    pub top_p_milli: u32,
    /// Drop tokens less likely than this share of the most likely one, in thousandths, 0 to 1,000.
    pub min_p_milli: u32,
    /// Penalty on tokens of prompt and answer, in thousandths, 100 to 10,000; 1,000 means none.
    pub repetition_milli: u32,
    /// Penalty on tokens that occur in the answer, in thousandths, -2,000 to 2,000.
    pub presence_milli: i32,
    /// Penalty on tokens for every time that they occur in the answer, in thousandths, -2,000 to 2,000.
    pub frequency_milli: i32,
    /// Token ids and what is added to their logits, in thousandths, -100,000 to 100,000; at most 1,024.
    pub logit_bias: Vec<(u32, i32)>,
    /// Equal seeds give equal answers.
    pub seed: u64,
}

impl Sampling {
    /// Always the most likely token.
    pub const GREEDY: Self = Self {
        temperature_milli: 0,
        top_k: 0,
        top_p_milli: 1_000,
        min_p_milli: 0,
        repetition_milli: 1_000,
        presence_milli: 0,
        frequency_milli: 0,
        logit_bias: Vec::new(),
        seed: 0,
    };

    /// # Errors
    /// Names the setting that is out of its range.
    pub(crate) fn check(&self, vocab: usize) -> Result<(), EngineError> {
        let wrong = |problem: String| Err(EngineError::InvalidRequest(problem));
        if self.temperature_milli > TEMPERATURE_MILLI_MAX {
            let value = self.temperature_milli;
            return wrong(format!(
                "temperature_milli {value} is not in 0..={TEMPERATURE_MILLI_MAX}"
            ));
        }
        if !(1..=1_000).contains(&self.top_p_milli) {
            return wrong(format!("top_p_milli {} is not in 1..=1000", self.top_p_milli));
        }
        if self.min_p_milli > 1_000 {
            return wrong(format!("min_p_milli {} is not in 0..=1000", self.min_p_milli));
        }
        if !REPETITION_MILLI.contains(&self.repetition_milli) {
            let value = self.repetition_milli;
            return wrong(format!("repetition_milli {value} is not in {REPETITION_MILLI:?}"));
        }
        for (name, value) in
            [("presence_milli", self.presence_milli), ("frequency_milli", self.frequency_milli)]
        {
            if value.unsigned_abs() > PENALTY_MILLI_MAX {
                let range = format!("-{PENALTY_MILLI_MAX}..={PENALTY_MILLI_MAX}");
                return wrong(format!("{name} {value} is not in {range}"));
            }
        }
        if self.logit_bias.len() > BIASES_LEN_MAX {
            let len = self.logit_bias.len();
            return wrong(format!("logit_bias has {len} entries, at most {BIASES_LEN_MAX}"));
        }
        for &(id, value) in &self.logit_bias {
            if id as usize >= vocab {
                return wrong(format!(
                    "logit_bias: token id {id} is not in a vocabulary of {vocab}"
                ));
            }
            if value.unsigned_abs() > BIAS_MILLI_MAX {
                let range = format!("-{BIAS_MILLI_MAX}..={BIAS_MILLI_MAX}");
                return wrong(format!("logit_bias {value} of token {id} is not in {range}"));
            }
        }
        Ok(())
    }

    /// Whether any penalty needs to know which tokens came before.
    pub(super) fn penalises(&self) -> bool {
        self.repetition_milli != 1_000 || self.presence_milli != 0 || self.frequency_milli != 0
    }
}

impl Default for Sampling {
    fn default() -> Self {
        Self::GREEDY
    }
}
