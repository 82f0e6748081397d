//! What the model card of a released adapter says, read from its tables.

use anyhow::Context as _;
use serde::Serialize;

/// Numbers of a card (specs/adapter.md).
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Card {
    /// Rows trained on.
    pub rows: u64,
    /// Perplexity on the rows held out, before and after; absent where nothing was held out or said.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub perplexity: Option<(f64, f64)>,
    /// Training rows whose beginning was given to the adapter.
    pub rows_tested: u64,
    /// Of these, continued verbatim by the base model.
    pub extracted_base: u64,
    /// Of these, continued verbatim by the adapter.
    pub extracted_adapter: u64,
    /// The largest exposure of a canary, in bits.
    pub exposure_max_bits: f64,
    /// The mean exposure of all canaries, in bits.
    pub exposure_mean_bits: f64,
}

impl Card {
    /// Reads a card.
    ///
    /// # Errors
    /// When a line that every card has is missing or holds no number.
    pub fn read(text: &str) -> anyhow::Result<Card> {
        let numbers = |label: &str| -> Option<Vec<f64>> {
            let row = text.lines().find_map(|line| line.strip_prefix(&format!("| {label} | ")))?;
            let row = row.trim_end_matches(['|', ' ']).trim_end_matches(" bits");
            row.split(", ").map(|number| number.trim().parse().ok()).collect()
        };
        let required =
            |label: &str| numbers(label).with_context(|| format!("the card says no {label:?}"));
        let at = |list: &[f64], index: usize| list.get(index).copied().unwrap_or_default();
        let extracted = required("Continued verbatim by the base model, the adapter")?;
        let exposure = required("Exposure, largest and mean")?;
        let perplexity = numbers("Perplexity on these, before and after");
        Ok(Card {
            rows: at(&required("Rows")?, 0) as u64,
            perplexity: perplexity.map(|both| (at(&both, 0), at(&both, 1))),
            rows_tested: at(&required("Training rows begun")?, 0) as u64,
            extracted_base: at(&extracted, 0) as u64,
            extracted_adapter: at(&extracted, 1) as u64,
            exposure_max_bits: at(&exposure, 0),
            exposure_mean_bits: at(&exposure, 1),
        })
    }

    /// Mean loss on the rows held out, before and after, in nats per token.
    #[must_use]
    pub fn held_out_loss(&self) -> Option<(f64, f64)> {
        self.perplexity.map(|(before, after)| (before.ln(), after.ln()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "# An adapter\n| Rows | 144 |\n| Perplexity on these, before and after | 21.5, 7.25 |\n\
        | Training rows begun | 144 |\n| Continued verbatim by the base model, the adapter | 0, 1 |\n\
        | Exposure, largest and mean | 2.415, 1.2 bits |\n";

    #[test]
    fn a_card_is_read() {
        let card = Card::read(TEXT).unwrap();
        assert_eq!((card.rows, card.rows_tested), (144, 144));
        assert_eq!((card.extracted_base, card.extracted_adapter), (0, 1));
        assert_eq!((card.exposure_max_bits, card.exposure_mean_bits), (2.415, 1.2));
        assert_eq!(card.perplexity, Some((21.5, 7.25)));
        let (before, after) = card.held_out_loss().unwrap();
        assert!(before > after && after > 0.0);
        let error = Card::read("| Rows | 3 |").unwrap_err().to_string();
        assert!(error.contains("Continued verbatim"), "{error}");
    }
}
