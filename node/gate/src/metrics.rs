//! The fixed record of what a run says about itself (specs/gate.md §3): counts and means, no text, no
//! value of any one row.

use allmend_protocol::encoding;
use serde::{Deserialize, Serialize};

use crate::stop::{Rule, Stop};

/// The most bytes of a record.
pub const METRICS_BYTES_MAX: usize = 1_024;
/// The most epochs whose losses are told; a run of more tells those of its last.
pub const EPOCHS_MAX: usize = 64;
/// No loss or perplexity above this, in thousandths, is told apart: a run that bad has failed.
const MILLI_MAX: u64 = 1_000_000_000_000;

/// What a run says about itself.
///
/// # Units
/// Losses in milli-nats per label; perplexities in thousandths. Rounded to whole ones, which is as
/// much as anybody reads, and leaves little room for anything else.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Metrics {
    /// Rows that were trained on.
    pub rows: u64,
    /// Distinct subjects of these rows; rows without one count for themselves.
    pub subjects: u64,
    /// Steps of the optimiser.
    pub steps: u64,
    /// Tokens read in training.
    pub tokens: u64,
    /// The mean loss over each epoch; absent when withheld.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub epoch_loss_milli_nats: Option<Vec<u64>>,
    /// On rows that were held out; absent without any, or when withheld.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub validation: Option<Validation>,
}

/// On the rows that were held out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Validation {
    /// Rows.
    pub rows: u64,
    /// Their labels.
    pub tokens: u64,
    /// exp of the base model's mean loss.
    pub perplexity_before_milli: u64,
    /// exp of the mean loss with the adapter.
    pub perplexity_after_milli: u64,
}

impl Metrics {
    /// As a worker sends it.
    pub fn encode(&self) -> Vec<u8> {
        encoding::encode(self)
    }

    /// Reads what a worker sent.
    ///
    /// # Errors
    /// [`Rule::Metrics`], without any of the content.
    pub fn decode(bytes: &[u8]) -> Result<Metrics, Stop> {
        let stop = |text| Stop::new(Rule::Metrics, text);
        let metrics: Metrics = encoding::decode(bytes, METRICS_BYTES_MAX)
            .map_err(|_| stop("the metrics are not the fixed record of counts and means"))?;
        let losses = metrics.epoch_loss_milli_nats.iter().flatten();
        let perplexities = metrics.validation.iter().flat_map(|validation| {
            [validation.perplexity_before_milli, validation.perplexity_after_milli].into_iter()
        });
        let bounded = losses.copied().chain(perplexities).all(|milli| milli <= MILLI_MAX);
        let epochs = metrics.epoch_loss_milli_nats.as_ref().map_or(0, Vec::len);
        if !bounded || epochs > EPOCHS_MAX || metrics.subjects > metrics.rows {
            return Err(stop(
                "the metrics are out of range: too many epochs, or a value too large",
            ));
        }
        Ok(metrics)
    }

    /// Counts only. Losses and perplexities are computed on the rows themselves without any noise, so
    /// no ε covers them.
    #[must_use]
    pub fn withheld(&self) -> Metrics {
        Metrics { epoch_loss_milli_nats: None, validation: None, ..self.clone() }
    }
}

/// A mean in thousandths, for the record; a value that is no number, or larger than any that is told
/// apart, is the largest.
pub fn milli(value: f64) -> u64 {
    match (value * 1e3).round() {
        milli if milli.is_nan() => MILLI_MAX,
        // The cast takes negative values to 0.
        milli => (milli as u64).min(MILLI_MAX),
    }
}
