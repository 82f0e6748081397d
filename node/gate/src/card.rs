//! The model card: what an adapter is, from the facts of its contract (specs/adapter.md §4).
//!
//! Every word is ours or the steward's; nothing in it comes from the worker but the numbers of the two
//! fixed records.

use std::fmt::Write as _;

use allmend_protocol::ids::{Digest, MessageId};
use allmend_protocol::units::Decimal;

use crate::declared::Declared;
use crate::measures::Measures;
use crate::metrics::Metrics;

const TEXT_CHARS_MAX: usize = 200;
/// At least this is ∞ (an ε of the scheduler's accountant).
const MILLI_EPSILON_INFINITE: u64 = i64::MAX as u64;

/// What a card says.
#[derive(Clone, Debug, PartialEq)]
pub struct CardFacts {
    /// The job.
    pub job: MessageId,
    /// The contract.
    pub contract: MessageId,
    /// The base model.
    pub base: Base,
    /// The datasets.
    pub sources: Vec<Source>,
    /// How it was trained.
    pub recipe: RecipeFacts,
    /// Differential privacy, if it was.
    pub privacy: Option<PrivacyFacts>,
    /// Whether a person must approve the output before it is released.
    pub second_approval: bool,
}

/// The base model.
#[derive(Clone, Debug, PartialEq)]
pub struct Base {
    /// Its name.
    pub name: String,
    /// SHA-256 of its weights.
    pub digest: Digest,
    /// Its licence, as its file says.
    pub licence: Option<String>,
}

/// One dataset version.
#[derive(Clone, Debug, PartialEq)]
pub struct Source {
    /// Its title.
    pub title: String,
    /// The version's digest.
    pub version: Digest,
    /// Its licence.
    pub licence: String,
    /// Languages, e.g. `deu_Latn`.
    pub languages: Vec<String>,
}

/// How it was trained.
#[derive(Clone, Debug, PartialEq)]
pub struct RecipeFacts {
    /// Digest of the work's description, as in the contract.
    pub digest: Digest,
    /// Names of the modules that are changed.
    pub targets: Vec<String>,
    /// Dropout.
    pub dropout: Decimal,
    /// Steps of the optimiser, at most.
    pub steps: u64,
    /// Rows per step.
    pub rows_per_step: u64,
    /// The longest sequence, in tokens.
    pub sequence_tokens: u64,
    /// The learning rate after the warm-up.
    pub learning_rate: Decimal,
    /// Its course, e.g. `cosine`.
    pub schedule: String,
}

/// Differential privacy of the run.
#[derive(Clone, Debug, PartialEq)]
pub struct PrivacyFacts {
    /// σ.
    pub noise_multiplier: Decimal,
    /// q.
    pub sampling_rate: Decimal,
    /// C.
    pub clip_norm: Decimal,
    /// δ.
    pub delta: Decimal,
    /// ε of this run, in thousandths.
    pub milli_epsilon: u64,
    /// ε of all runs on the dataset, with this one, in thousandths.
    pub milli_epsilon_after: u64,
}

impl CardFacts {
    /// The card, in Markdown with the front matter that model hubs read. Equal facts give equal cards.
    pub(crate) fn card(
        &self,
        declared: &Declared,
        metrics: &Metrics,
        measures: &Measures,
    ) -> String {
        let mut card = self.front_matter();
        self.summary(&mut card, declared);
        self.privacy(&mut card);
        self.training(&mut card, metrics);
        memorisation(&mut card, measures);
        card
    }

    fn front_matter(&self) -> String {
        let mut card = "---\nlibrary_name: peft\n".to_owned();
        line(&mut card, format_args!("base_model: {}", quoted(&self.base.name)));
        card.push_str("tags:\n- allmend\n- lora\n");
        card.push_str(match self.privacy {
            Some(_) => "- differential-privacy\n---\n",
            None => "- not-private\n---\n",
        });
        card
    }

    fn summary(&self, card: &mut String, declared: &Declared) {
        line(card, format_args!("\n# LoRA adapter for {}\n", plain(&self.base.name)));
        card.push_str(
            "Trained at the institution that holds the data, which did not leave it. Released by that \
             institution's output gate under a signed contract.\n\n",
        );
        card.push_str("| | |\n|---|---|\n");
        line(card, format_args!("| Job | `{}` |", self.job));
        line(card, format_args!("| Contract | `{}` |", self.contract));
        line(card, format_args!("| Base model | {} |", plain(&self.base.name)));
        line(card, format_args!("| Base model's weights | `{}` |", self.base.digest));
        let licence = self.base.licence.as_deref().map_or("not stated".to_owned(), plain);
        line(card, format_args!("| Base model's licence | {licence} |"));
        for source in &self.sources {
            line(card, format_args!("| Dataset | {} |", plain(&source.title)));
            line(card, format_args!("| Dataset's version | `{}` |", source.version));
            line(card, format_args!("| Dataset's licence | {} |", plain(&source.licence)));
            let languages = source.languages.iter().map(|tag| plain(tag)).collect::<Vec<_>>();
            line(card, format_args!("| Dataset's languages | {} |", languages.join(", ")));
        }
        if self.sources.is_empty() {
            card.push_str("| Dataset | the requester's own rows |\n");
        }
        let (rank, alpha) = (declared.rank(), declared.alpha());
        line(card, format_args!("| Rank, alpha | {rank}, {alpha} |"));
        let targets = self.recipe.targets.iter().map(|name| plain(name)).collect::<Vec<_>>();
        line(card, format_args!("| Modules | {} |", targets.join(", ")));
        let approval = match self.second_approval {
            true => "a person must approve this very adapter before it is released",
            false => "by rule",
        };
        line(card, format_args!("| Release | {approval} |"));
        card.push_str(
            "\nUsing the adapter means using the base model and what was learnt from the datasets: the \
             licences of all of them apply.\n",
        );
    }

    fn privacy(&self, card: &mut String) {
        card.push_str("\n## Privacy\n\n");
        let Some(privacy) = &self.privacy else {
            card.push_str(
                "**Not private.** The adapter was trained without differential privacy. What it has \
                 learnt of single rows is not bounded; the measures below only show what they tried.\n",
            );
            return;
        };
        let epsilon = epsilon(privacy.milli_epsilon);
        let delta = decimal(privacy.delta);
        line(
            card,
            format_args!(
                "Differentially private training (DP-SGD, Poisson sampling): this run is \
                 ({epsilon}, {delta})-private for each subject, that is for all rows of one person or \
                 source together. All runs on the data so far, with this one, come to ε = {}.\n",
                self::epsilon(privacy.milli_epsilon_after)
            ),
        );
        let (noise, rate) = (decimal(privacy.noise_multiplier), decimal(privacy.sampling_rate));
        let clip = decimal(privacy.clip_norm);
        line(
            card,
            format_args!(
                "Noise multiplier {noise}, sampling rate {rate}, clipping norm {clip}. Counts, and losses \
                 where they are told, are exact and not covered by ε."
            ),
        );
    }

    fn training(&self, card: &mut String, metrics: &Metrics) {
        let recipe = &self.recipe;
        card.push_str("\n## Training\n\n| | |\n|---|---|\n");
        line(card, format_args!("| Recipe | `{}` |", recipe.digest));
        line(card, format_args!("| Steps, of at most | {}, {} |", metrics.steps, recipe.steps));
        line(card, format_args!("| Rows per step | {} |", recipe.rows_per_step));
        line(card, format_args!("| Sequence length | {} tokens |", recipe.sequence_tokens));
        let (rate, schedule) = (decimal(recipe.learning_rate), plain(&recipe.schedule));
        line(card, format_args!("| Learning rate | {rate}, {schedule} |"));
        line(card, format_args!("| Dropout | {} |", decimal(recipe.dropout)));
        line(card, format_args!("| Rows | {} |", metrics.rows));
        line(card, format_args!("| Subjects | {} |", metrics.subjects));
        line(card, format_args!("| Tokens | {} |", metrics.tokens));
        match &metrics.epoch_loss_milli_nats {
            Some(losses) => {
                let losses = losses.iter().map(|&loss| milli(loss)).collect::<Vec<_>>();
                line(card, format_args!("| Mean loss per epoch | {} |", losses.join(", ")));
            }
            None => card.push_str("| Losses | withheld |\n"),
        }
        if let Some(validation) = metrics.validation {
            line(
                card,
                format_args!(
                    "| Rows held out, tokens | {}, {} |",
                    validation.rows, validation.tokens
                ),
            );
            let before = milli(validation.perplexity_before_milli);
            let after = milli(validation.perplexity_after_milli);
            line(
                card,
                format_args!("| Perplexity on these, before and after | {before}, {after} |"),
            );
        }
    }
}

fn memorisation(card: &mut String, measures: &Measures) {
    let Measures { extraction, exposure } = measures;
    card.push_str("\n## Memorisation, as measured before release\n\n| | |\n|---|---|\n");
    line(card, format_args!("| Training rows begun | {} |", extraction.rows_tested));
    let (base, adapter) = (extraction.extracted_base, extraction.extracted_adapter);
    line(
        card,
        format_args!("| Continued verbatim by the base model, the adapter | {base}, {adapter} |"),
    );
    line(card, format_args!("| Longest verbatim run | {} tokens |", extraction.longest_run_tokens));
    let (canaries, alternatives) = (exposure.canaries, exposure.alternatives);
    line(card, format_args!("| Canaries, alternatives of each | {canaries}, {alternatives} |"));
    let max = milli(exposure.max_milli_bits.into());
    let mean = milli(exposure.mean_milli_bits.into());
    line(card, format_args!("| Exposure, largest and mean | {max}, {mean} bits |"));
}

fn line(card: &mut String, text: std::fmt::Arguments<'_>) {
    // Writing to a string does not fail.
    let _ = writeln!(card, "{text}");
}

/// A steward's text where Markdown would see more than text in it.
fn plain(text: &str) -> String {
    let mut plain = String::new();
    for c in text.chars().filter(|&c| !invisible(c)).take(TEXT_CHARS_MAX) {
        if r"\`*_{}[]()<>#|~&!$".contains(c) {
            plain.push('\\');
        }
        plain.push(c);
    }
    plain
}

/// A steward's text as a YAML string: JSON's is one.
fn quoted(text: &str) -> String {
    let text: String = text.chars().filter(|&c| !invisible(c)).take(TEXT_CHARS_MAX).collect();
    serde_json::Value::String(text).to_string()
}

/// Characters that change what surrounds them, or hide: control characters, zero-width ones, changes of
/// direction, line separators.
fn invisible(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{ad}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}'
            | '\u{feff}' | '\u{e0000}'..='\u{e007f}')
}

fn milli(thousandths: u64) -> String {
    format!("{}.{:03}", thousandths / 1_000, thousandths % 1_000)
}

fn epsilon(thousandths: u64) -> String {
    if thousandths >= MILLI_EPSILON_INFINITE { "∞".to_owned() } else { milli(thousandths) }
}

/// A decimal as people write it; digits and exponent when it would have many zeros.
fn decimal(number: Decimal) -> String {
    let (mantissa, exp10) = (number.mantissa, i32::from(number.exp10));
    if exp10 >= 0 || mantissa == 0 || exp10 < -12 {
        return if exp10 == 0 || mantissa == 0 {
            mantissa.to_string()
        } else {
            format!("{mantissa}e{exp10}")
        };
    }
    let places = exp10.unsigned_abs() as usize;
    let digits = format!("{:0>width$}", mantissa.unsigned_abs(), width = places + 1);
    let (whole, fraction) = digits.split_at(digits.len() - places);
    let sign = if mantissa < 0 { "-" } else { "" };
    let fraction = fraction.trim_end_matches('0');
    let point = if fraction.is_empty() { "" } else { "." };
    format!("{sign}{whole}{point}{fraction}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn decimals_are_written_as_people_do() {
        let shown = |mantissa, exp10| decimal(Decimal { mantissa, exp10 });
        assert_eq!(shown(5, -2), "0.05");
        assert_eq!(shown(1_500, -3), "1.5");
        assert_eq!(shown(-25, -1), "-2.5");
        assert_eq!(shown(20, -1), "2");
        assert_eq!(shown(0, -5), "0");
        assert_eq!(shown(7, 0), "7");
        assert_eq!(shown(3, 5), "3e5");
        assert_eq!(shown(1, -18), "1e-18");
    }

    /// Goal: a title stays a title.
    #[test]
    fn what_a_steward_wrote_is_text() {
        let title = "Letters |\n# <b>1900\u{202e}</b> [x](y)\u{200b} `z`";
        assert_eq!(plain(title), r"Letters \|\# \<b\>1900\</b\> \[x\]\(y\) \`z\`");
        assert_eq!(quoted("a\"b\n: c"), r#""a\"b: c""#);
        assert!(plain(&"x".repeat(10_000)).len() <= TEXT_CHARS_MAX);
    }
}
