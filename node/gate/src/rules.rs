//! The rules about rows, subjects, runs and memorisation (specs/gate.md §2): numbers against limits.

use crate::inspect::{AdapterLimits, Precision};
use crate::measures::Measures;
use crate::stop::{Rule, Stop};

/// What a dataset's steward and the node's operator ask of an output.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rules {
    /// The structure.
    pub adapter: AdapterLimits,
    /// How values are stored when they leave.
    pub precision: Precision,
    /// Rows trained on, at least.
    pub rows_min: u64,
    /// Distinct subjects trained on, at least.
    pub subjects_min: u64,
    /// Runs of one requester on one dataset over all of its versions, at most.
    pub runs_max: Option<u32>,
    /// Whether only differentially private runs may give an output.
    pub privacy_required: bool,
    /// Memorisation without differential privacy.
    pub memorisation: Memorisation,
    /// Memorisation with it.
    pub memorisation_private: Memorisation,
    /// Whether exact losses and perplexities leave beside a private adapter. They are not covered by
    /// its ε.
    pub metrics_beside_privacy: bool,
    /// Whether a person must approve the very output.
    pub second_approval: bool,
}

impl Default for Rules {
    fn default() -> Rules {
        Rules {
            adapter: AdapterLimits::default(),
            precision: Precision::default(),
            rows_min: 10,
            subjects_min: 5,
            runs_max: None,
            privacy_required: false,
            memorisation: Memorisation::default(),
            memorisation_private: Memorisation::default(),
            metrics_beside_privacy: false,
            second_approval: false,
        }
    }
}

/// Limits of memorisation. What a measure does not reach it cannot exclude, so there is a least
/// amount of measuring as well.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Memorisation {
    /// Rows tested, at least; a dataset with fewer is tested whole.
    pub rows_tested_min: u64,
    /// By how much the share of rows that come out verbatim may exceed the base model's, in
    /// thousandths of the rows tested.
    pub extraction_excess_permille_max: u64,
    /// The longest verbatim run, in tokens.
    pub longest_run_tokens_max: Option<u32>,
    /// Canaries planted, at least.
    pub canaries_min: u32,
    /// The largest exposure of a canary, in milli-bits.
    pub exposure_max_milli_bits: u32,
    /// The mean exposure of all canaries, in milli-bits.
    pub exposure_mean_max_milli_bits: u32,
}

impl Default for Memorisation {
    /// A secret that was not learnt has an exposure of x bits or more with probability 2^−x: 1.44 on
    /// average. Among eight of them one reaches 9 bits in one run of 64, and their mean 4 bits in one
    /// of ten thousand.
    fn default() -> Memorisation {
        Memorisation {
            rows_tested_min: 32,
            extraction_excess_permille_max: 10,
            longest_run_tokens_max: None,
            canaries_min: 4,
            exposure_max_milli_bits: 9_000,
            exposure_mean_max_milli_bits: 4_000,
        }
    }
}

/// What the node knows of one run on one dataset, by itself and not from the worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RunFacts {
    /// Rows of the dataset's version that the run could train on.
    pub rows: u64,
    /// Distinct subjects of these rows; rows without one count for themselves.
    pub subjects: u64,
    /// Runs of this requester on this dataset, with this one.
    pub runs: u32,
    /// Whether it was differentially private.
    pub private: bool,
}

/// Every rule that a run breaks on one dataset. Empty: none. Without measures, those of memorisation are
/// not judged: whoever has none has a reason of its own ([`Measures::decode`]).
pub fn judge(rules: &Rules, facts: &RunFacts, measures: Option<&Measures>) -> Vec<Stop> {
    let mut stops = Vec::new();
    let mut stop = |rule, text: String| stops.push(Stop::new(rule, text));
    if rules.privacy_required && !facts.private {
        let text = "the dataset gives adapters only by differentially private training: add [privacy] \
                    to the job";
        stop(Rule::NotPrivate, text.to_owned());
    }
    if facts.rows < rules.rows_min {
        let text = format!("the dataset has fewer than the {} rows it asks for", rules.rows_min);
        stop(Rule::RowsMin, text);
    }
    if facts.subjects < rules.subjects_min {
        let least = rules.subjects_min;
        let text =
            format!("the rows come from fewer than the {least} subjects the dataset asks for");
        stop(Rule::SubjectsMin, text);
    }
    if let Some(most) = rules.runs_max.filter(|&most| facts.runs > most) {
        let text =
            format!("the dataset allows {most} runs to one requester: ask its steward for more");
        stop(Rule::RunsCap, text);
    }
    let limits = match facts.private {
        true => &rules.memorisation_private,
        false => &rules.memorisation,
    };
    if let Some(measures) = measures {
        limits.judge(facts, measures, &mut stop);
    }
    stops
}

impl Memorisation {
    fn judge(&self, facts: &RunFacts, measures: &Measures, stop: &mut impl FnMut(Rule, String)) {
        let Measures { extraction, exposure } = measures;
        let less = "train for fewer epochs, at a lower rate, or with [privacy]";
        if extraction.rows_tested < self.rows_tested_min.min(facts.rows) {
            let text = format!("memorisation must be measured on {} rows", self.rows_tested_min);
            stop(Rule::Measures, text);
        }
        if exposure.canaries < self.canaries_min {
            let text = format!("memorisation must be measured with {} canaries", self.canaries_min);
            stop(Rule::Measures, text);
        } else if self.canaries_min > 0
            && exposure.ceiling_milli_bits() <= self.exposure_max_milli_bits
        {
            // With so few alternatives even the most exposed canary would pass.
            let text =
                "canaries must be ranked among more alternatives than the limit of exposure has";
            stop(Rule::Measures, text.to_owned());
        }
        let excess = extraction.extracted_adapter.saturating_sub(extraction.extracted_base);
        let most = self.extraction_excess_permille_max;
        if u128::from(excess) * 1_000 > u128::from(most) * u128::from(extraction.rows_tested) {
            let text = format!(
                "the adapter continues training rows word for word, on more than {most} in 1,000 rows \
                 beyond what the base model does: {less}"
            );
            stop(Rule::Extraction, text);
        }
        let longest = self.longest_run_tokens_max;
        if let Some(most) = longest.filter(|&most| extraction.longest_run_tokens > most) {
            let text =
                format!("the adapter repeats more than {most} tokens of a training row: {less}");
            stop(Rule::LongestRun, text);
        }
        if exposure.max_milli_bits > self.exposure_max_milli_bits
            || exposure.mean_milli_bits > self.exposure_mean_max_milli_bits
        {
            let text = format!(
                "secrets planted among the training rows can be told from others (exposure above {} \
                 bits, or {} on average): {less}",
                f64::from(self.exposure_max_milli_bits) / 1e3,
                f64::from(self.exposure_mean_max_milli_bits) / 1e3
            );
            stop(Rule::Exposure, text);
        }
    }
}
