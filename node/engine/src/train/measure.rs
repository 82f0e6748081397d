//! What an adapter gives away of the rows it was trained on, and what it is worth on rows that it has not
//! seen: numbers for the output gate, never a word of any row.
//!
//! - **Extraction**: the beginning of a row as prompt, continued greedily. How many rows come out word for
//!   word, and the longest run that does, compared with the base model on the same rows: what it knows anyway
//!   is no leak.
//! - **Exposure** of canaries (see [`Canaries`]): how much likelier the planted secret is than others that were
//!   not: `log2 N - log2 rank` among all `N` = [`SECRETS`] that could have been drawn, so at most `log2 N`. An
//!   adapter that has learnt nothing of a canary gives it a rank drawn uniformly, that is 1.44 bits on average.
//! - **Perplexity** of base and adapter on rows held out.
//!
//! All of it is computed as it will be served. The work is bounded by [`MeasureOptions`]. These numbers
//! depend on single rows: they are for the gate at the data's own node, and no part of what a private run may
//! release.

use serde::{Deserialize, Serialize};

use super::bench::Bench;
use super::canary::{Canaries, SECRETS};
use super::example::Example;
use super::prepare::{Preparation, RowsError, Texts};
use super::secrets::Secrets;
use super::seeded::Stream;
use crate::error::EngineError;

/// How much is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MeasureOptions {
    /// Chooses rows where there are more than are tested. The data's keeper draws it, so that nobody can
    /// prepare for it.
    pub seed: u64,
    /// Most training rows to try to extract.
    pub rows_max: u32,
    /// Tokens given of each row; at most half of it, but always up to where its labels begin.
    pub prefix_tokens: u32,
    /// Tokens that must come out exactly for a row to count as extracted; at most what the row has left.
    pub run_tokens: u32,
    /// Rows that have fewer tokens left are not tested: short answers are learnt, not memorised.
    pub run_tokens_min: u32,
    /// Tokens generated per row, among which the longest run is looked for.
    pub longest_tokens: u32,
    /// Most rows held out to take the perplexity on.
    pub validation_rows_max: u32,
}

impl Default for MeasureOptions {
    fn default() -> Self {
        Self {
            seed: 0,
            rows_max: 200,
            prefix_tokens: 32,
            run_tokens: 32,
            run_tokens_min: 8,
            longest_tokens: 64,
            validation_rows_max: 256,
        }
    }
}

impl MeasureOptions {
    /// Refuses bounds with which nothing would be measured, or for ever.
    ///
    /// # Errors
    /// In words.
    pub fn check(&self) -> Result<(), String> {
        let within = |name: &str, value: u32, least: u32, most: u32| match value {
            value if (least..=most).contains(&value) => Ok(()),
            _ => Err(format!("{name} is {value}, not in {least}..={most}")),
        };
        within("rows_max", self.rows_max, 1, 100_000)?;
        within("prefix_tokens", self.prefix_tokens, 1, 4_096)?;
        within("run_tokens_min", self.run_tokens_min, 1, self.run_tokens)?;
        within("run_tokens", self.run_tokens, 1, self.longest_tokens)?;
        within("longest_tokens", self.longest_tokens, 1, 4_096)?;
        within("validation_rows_max", self.validation_rows_max, 1, 100_000)
    }
}

/// What was measured.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Measures {
    /// Rows of the training side tried.
    pub rows_tested: u32,
    /// Rows that were too short to try.
    pub rows_short: u32,
    /// Rows that the base model continues word for word.
    pub extracted_base: u32,
    /// Rows that the base with the adapter does.
    pub extracted_adapter: u32,
    /// Of these, rows that the base does not.
    pub extracted_new: u32,
    /// Longest run of tokens of a row in what the base says.
    pub longest_run_base: u32,
    /// Longest run in what the base with the adapter says.
    pub longest_run_adapter: u32,
    /// Exposure of each canary, in thousandths of a bit.
    pub exposures_milli_bits: Vec<u32>,
    /// What an exposure cannot exceed.
    pub exposure_ceiling_milli_bits: u32,
    /// Labels on which the perplexities were taken; 0 when nothing was held out.
    pub validation_labels: u64,
    /// Perplexity of the base model, in thousandths; absent when nothing was held out.
    pub perplexity_base_milli: Option<u64>,
    /// Perplexity of the base with the adapter.
    pub perplexity_adapter_milli: Option<u64>,
}

/// Why nothing was measured.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MeasureError {
    /// The model did not compute.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// Canaries could not be made.
    #[error(transparent)]
    Rows(#[from] RowsError),
    /// The bounds cannot be meant.
    #[error("measure: {0}")]
    Options(String),
    /// The caller stopped it.
    #[error("measuring was stopped")]
    Stopped,
}

/// The rows that an adapter is measured on: a bounded choice, made before training takes the examples.
pub struct MeasuredRows {
    /// To try to extract.
    train: Vec<Example>,
    /// Rows too short to be among them.
    short: u32,
    /// To take the perplexity on.
    validation: Vec<Example>,
}

impl MeasuredRows {
    /// Chooses among the examples of both sides, not packed and without canaries.
    pub fn choose(train: &[&Example], validation: &[&Example], options: &MeasureOptions) -> Self {
        let long_enough: Vec<&Example> =
            train.iter().copied().filter(|one| Trial::of(one, options).is_some()).collect();
        let short = (train.len() - long_enough.len()) as u32;
        let choose = |from: &[&Example], name: &str, most: u32| -> Vec<Example> {
            let mut stream = Stream::new(name, &options.seed.to_le_bytes(), &[]);
            let rows = stream.choose(from.len() as u32, most as usize);
            rows.iter().filter_map(|&row| from.get(row as usize).copied().cloned()).collect()
        };
        Self {
            train: choose(&long_enough, "extraction", options.rows_max),
            short,
            validation: choose(validation, "validation", options.validation_rows_max),
        }
    }
}

/// Measures an adapter on rows and, if any were planted, canaries, which are made into examples as in the
/// run.
///
/// # Errors
/// [`MeasureError`]; nothing is reported in part.
pub fn measure(
    bench: &mut Bench<'_>,
    texts: &Texts,
    preparation: &Preparation,
    rows: &MeasuredRows,
    canaries: Option<&Canaries>,
    options: &MeasureOptions,
) -> Result<Measures, MeasureError> {
    options.check().map_err(MeasureError::Options)?;
    let mut measures = Measures::default();
    extraction(bench, rows, options, &mut measures)?;
    if let Some(canaries) = canaries.filter(|canaries| !canaries.is_empty()) {
        measures.exposure_ceiling_milli_bits = milli(f64::from(SECRETS).log2()) as u32;
        for number in 0..canaries.len() {
            let candidates = Secrets::new(&canaries.candidates(texts, preparation, number)?);
            let nlls = candidates.likelihoods(bench)?;
            let own = canaries.secret(number) as usize;
            measures.exposures_milli_bits.push(exposure_milli_bits(&nlls, own));
        }
    }
    let held_out = &rows.validation;
    let labels = held_out.iter().map(|example| example.label_count() as u64).sum();
    if labels > 0 {
        let perplexity = |nlls: Vec<f64>| milli((nlls.iter().sum::<f64>() / labels as f64).exp());
        measures.validation_labels = labels;
        measures.perplexity_base_milli = Some(perplexity(bench.likelihoods(held_out, false)?));
        let adapted = bench.likelihoods(held_out, true)?;
        measures.perplexity_adapter_milli = Some(perplexity(adapted));
    }
    Ok(measures)
}

/// A row to try: how much of it is given, and how much must come out.
pub(super) struct Trial<'a> {
    pub(super) prompt: &'a [u32],
    pub(super) rest: &'a [u32],
    pub(super) run: usize,
}

impl<'a> Trial<'a> {
    /// None if the row is too short.
    fn of(example: &'a Example, options: &MeasureOptions) -> Option<Self> {
        let labels_from = example.labels.iter().position(|&label| label)?;
        let half = example.ids.len() / 2;
        let given = (options.prefix_tokens as usize).min(half).max(labels_from).max(1);
        let (prompt, rest) = example.ids.split_at_checked(given)?;
        let run = rest.len().min(options.run_tokens as usize);
        (run >= options.run_tokens_min as usize).then_some(Self { prompt, rest, run })
    }

    /// Whether the row comes out word for word: as many tokens as must, or all of them up to where the model
    /// ended its turn, as the row does. What follows the end of a turn is the template's, not the row's.
    fn comes_out(&self, said: &[u32], options: &MeasureOptions) -> bool {
        let compared = said.len().min(self.run);
        let ended = said.len() < self.rest.len().min(options.longest_tokens as usize);
        let enough = compared == self.run || ended && compared >= options.run_tokens_min as usize;
        enough && said.get(..compared) == self.rest.get(..compared)
    }
}

fn extraction(
    bench: &mut Bench<'_>,
    rows: &MeasuredRows,
    options: &MeasureOptions,
    measures: &mut Measures,
) -> Result<(), MeasureError> {
    measures.rows_short = rows.short;
    let trials: Vec<Trial<'_>> =
        rows.train.iter().filter_map(|example| Trial::of(example, options)).collect();
    let base = bench.continuations(&trials, false, options)?;
    let adapted = bench.continuations(&trials, true, options)?;
    measures.rows_tested = trials.len() as u32;
    for ((trial, base), adapted) in trials.iter().zip(&base).zip(&adapted) {
        let comes_out = |said: &[u32]| trial.comes_out(said, options);
        measures.extracted_base += u32::from(comes_out(base));
        measures.extracted_adapter += u32::from(comes_out(adapted));
        measures.extracted_new += u32::from(comes_out(adapted) && !comes_out(base));
        let longest = |before: u32, said: &[u32]| before.max(longest_run(said, trial.rest));
        measures.longest_run_base = longest(measures.longest_run_base, base);
        measures.longest_run_adapter = longest(measures.longest_run_adapter, adapted);
    }
    Ok(())
}

/// The rank of one among all, as exposure. Others that are as likely count as less likely, so that an
/// exposure is never understated.
fn exposure_milli_bits(nlls: &[f64], own: usize) -> u32 {
    let Some(secret) = nlls.get(own) else { return 0 };
    let rank = 1 + nlls.iter().filter(|other| *other < secret).count();
    milli((nlls.len() as f64).log2() - (rank as f64).log2()) as u32
}

/// The longest run of tokens that both contain.
fn longest_run(one: &[u32], other: &[u32]) -> u32 {
    let (mut longest, mut ending) = (0, vec![0u32; other.len() + 1]);
    for token in one {
        // From the right, so that each entry still reads the one of the token before.
        for at in (0..other.len()).rev() {
            ending[at + 1] = if other[at] == *token { ending[at] + 1 } else { 0 };
            longest = longest.max(ending[at + 1]);
        }
    }
    longest
}

fn milli(value: f64) -> u64 {
    (value * 1e3).round() as u64
}

#[cfg(test)]
#[path = "tests/measure.rs"]
mod tests;
