//! Canaries: rows of our own whose secret is random, planted in what a run trains on, to measure how much
//! of a single row an adapter gives away (Carlini et al. 2019, "The Secret Sharer", arXiv 1802.08232).
//!
//! A canary says a number of three digits in a sentence that looks like any other of its kind. Nobody can
//! know the number but from the row, so whatever the adapter makes of it was learnt from the row. Numbers
//! are so short that all of them can be weighed, not a sample, at the cost of their beginnings. They are
//! planted in the trainer's copy only, never in a version of a dataset; each is a subject of its own.

use sha2::{Digest, Sha256};

use super::example::{Example, Subject};
use super::prepare::{Counts, Preparation, RowsError, Texts};
use super::rows::{Body, Row};
use super::seeded::Stream;
use crate::template::ChatMessage;

/// Canaries in one run: each is measured against all of its alternatives.
pub const CANARIES_MAX: u32 = 64;
/// Numbers that a secret is drawn from, and ranked among: the largest exposure is their logarithm.
pub const SECRETS: u32 = 1_000;

/// What kind of rows canaries are made like: the dataset's own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// A question and the assistant's answer.
    Chat,
    /// A prompt and its completion.
    Completion,
    /// Plain text.
    Text,
}

impl Form {
    /// The kind of a row.
    pub fn of(row: &Row) -> Self {
        match row.body {
            Body::Chat(_) => Self::Chat,
            Body::Completion { .. } => Self::Completion,
            Body::Text(_) => Self::Text,
        }
    }
}

/// The canaries of a run, which follow from a seed that the data's keeper draws and keeps.
#[derive(Clone)]
pub struct Canaries {
    seed: [u8; 32],
    count: u32,
    form: Form,
}

impl std::fmt::Debug for Canaries {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} canaries as {:?}", self.count, self.form)
    }
}

impl Canaries {
    /// At most [`CANARIES_MAX`] canaries. Who knows the seed knows the secrets: it is 32 bytes of the
    /// operating system's entropy, kept with the data for as long as the run and its measurement last.
    pub fn new(seed: [u8; 32], count: u32, form: Form) -> Self {
        Self { seed, count: count.min(CANARIES_MAX), form }
    }

    /// How many there are.
    pub fn len(&self) -> u32 {
        self.count
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// The rows to plant: each canary `repeats` times.
    pub fn rows(&self, repeats: u32) -> Vec<Row> {
        let own = |number| self.row(number, self.secret(number));
        let each = |number| std::iter::repeat_n(own(number), repeats as usize);
        (0..self.count).flat_map(each).collect()
    }

    /// The planted examples, for the trainer.
    ///
    /// # Errors
    /// When an example is too short to hold a canary.
    pub(crate) fn examples(
        &self,
        texts: &Texts,
        preparation: &Preparation,
        repeats: u32,
    ) -> Result<Vec<Example>, RowsError> {
        let mut examples = Vec::new();
        for row in self.rows(repeats) {
            examples.push(prepared(texts, preparation, &row)?);
        }
        Ok(examples)
    }

    /// A canary's example with every secret that there is, in ascending order. Its own is
    /// [`Self::secret`].
    ///
    /// # Errors
    /// As [`Self::examples`].
    pub(crate) fn candidates(
        &self,
        texts: &Texts,
        preparation: &Preparation,
        number: u32,
    ) -> Result<Vec<Example>, RowsError> {
        let rows = (0..SECRETS).map(|secret| self.row(number, secret));
        rows.map(|row| prepared(texts, preparation, &row)).collect()
    }

    /// A canary's sentence with a secret.
    fn row(&self, number: u32, secret: u32) -> Row {
        let number = u64::from(number);
        let file = 100_000 + Stream::new("canary file", &self.seed, &[number]).below(900_000);
        let secret = format!("{secret:03}");
        let question = format!("What is the reference number of file {file}?");
        let answer = format!("The reference number of file {file} is {secret}.");
        let message = |role: &str, content| ChatMessage { role: role.to_owned(), content };
        let body = match self.form {
            Form::Chat => Body::Chat(vec![message("user", question), message("assistant", answer)]),
            Form::Completion => {
                Body::Completion { prompt: question, completion: format!(" {answer}") }
            }
            Form::Text => Body::Text(answer),
        };
        let mut hash = Sha256::new();
        hash.update(b"allmend canary subject v1\0");
        hash.update(self.seed);
        hash.update(number.to_le_bytes());
        Row { body, subject: Some(Subject(hash.finalize().into())) }
    }

    /// The number that a canary says.
    pub(crate) fn secret(&self, number: u32) -> u32 {
        let number = u64::from(number);
        Stream::new("canary secret", &self.seed, &[number]).below(SECRETS.into()) as u32
    }
}

/// A canary as an example, whole.
fn prepared(texts: &Texts, preparation: &Preparation, row: &Row) -> Result<Example, RowsError> {
    let mut counts = Counts::default();
    let examples = texts.prepare(row, preparation, &mut counts).map_err(RowsError::Settings)?;
    match <[Example; 1]>::try_from(examples) {
        Ok([example]) if counts.truncated == 0 => Ok(example),
        _ => Err(RowsError::Settings(format!(
            "sequence_tokens = {} is too short for a canary: raise it, or plant none",
            preparation.sequence_tokens
        ))),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::super::prepare::LossOn;
    use super::super::prepare::tests::texts;
    use super::*;

    #[test]
    fn canaries_follow_from_their_seed_and_are_subjects_of_their_own() {
        let canaries = Canaries::new([1; 32], 5, Form::Text);
        let rows = canaries.rows(3);
        assert_eq!(rows.len(), 15);
        let subjects: BTreeSet<_> = rows.iter().map(|row| row.subject).collect();
        let bodies: Vec<_> = rows.iter().map(|row| &row.body).collect();
        assert!(subjects.len() == 5 && rows[0] == rows[2] && bodies[0] != bodies[3]);
        assert!(rows == canaries.rows(3));
        assert!(rows != Canaries::new([2; 32], 5, Form::Text).rows(3));
        assert_eq!(Canaries::new([1; 32], 1_000, Form::Text).len(), CANARIES_MAX);
        let Body::Text(text) = &rows[0].body else { panic!("no text") };
        assert!(text.starts_with("The reference number of file "), "{text}");
        assert!(!format!("{canaries:?}").contains("file"));
    }

    /// Goal: a secret and its alternatives differ in the number only.
    #[test]
    fn alternatives_differ_in_the_number_only() {
        let preparation = Preparation { loss_on: LossOn::Assistant, sequence_tokens: 80, clock: 0 };
        for form in [Form::Completion, Form::Text] {
            let canaries = Canaries::new([1; 32], 2, form);
            let texts = texts(None);
            let candidates = canaries.candidates(&texts, &preparation, 1).unwrap();
            let planted = canaries.examples(&texts, &preparation, 1).unwrap();
            assert!(candidates.len() == 1_000);
            assert!(candidates[canaries.secret(1) as usize] == planted[1]);
            // SmolLM2's tokenizer takes digits one by one, so all of them have one length.
            let len = candidates[0].ids.len();
            for other in &candidates[1..] {
                let pairs = candidates[0].ids.iter().zip(&other.ids);
                let differ = pairs.filter(|(one, other)| one != other).count();
                assert!(other.ids.len() == len && (1..=3).contains(&differ), "{differ}");
            }
            let short = Preparation { sequence_tokens: 8, ..preparation };
            assert!(form == Form::Text || canaries.examples(&texts, &short, 1).is_err());
        }
    }
}
