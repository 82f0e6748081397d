//! Rows that are ready to train on: token ids, which of them are learnt, and whose they are.

use super::error::TrainError;
use super::recipe::Recipe;
use crate::spec::ModelSpec;

/// Names the person (or other unit of protection) that a row belongs to. The caller chooses the mapping;
/// nothing here prints it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Subject(pub [u8; 32]);

/// One row. Attention never crosses from one row to another, and each row's first token has position 0.
#[derive(Clone, PartialEq, Eq)]
pub struct Example {
    /// Token ids, at least two.
    pub ids: Vec<u32>,
    /// `labels[i]`: the model learns to predict token `i` from the tokens before it. The first token has
    /// nothing before it, so its entry is ignored.
    pub labels: Vec<bool>,
    /// Whose row it is; needed by private runs only.
    pub subject: Option<Subject>,
}

/// Rows hold personal data: only their size may be printed.
impl std::fmt::Debug for Example {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Example({} tokens, {} labels)", self.ids.len(), self.label_count())
    }
}

impl std::fmt::Debug for Subject {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Subject(..)")
    }
}

impl Example {
    /// A row in which every token is learnt.
    #[must_use]
    pub fn whole(ids: Vec<u32>) -> Self {
        let labels = vec![true; ids.len()];
        Self { ids, labels, subject: None }
    }

    /// Tokens that are learnt.
    #[must_use]
    pub fn label_count(&self) -> usize {
        self.labels.iter().skip(1).filter(|&&label| label).count()
    }
}

/// Rows of one pass, laid one after the other.
#[derive(Debug, Default)]
pub(crate) struct Packed {
    /// All tokens.
    pub(crate) ids: Vec<u32>,
    /// First row and length of each sequence, in order and without gaps.
    pub(crate) spans: Vec<(usize, usize)>,
    /// Rows whose output predicts a label, ascending, and the label.
    pub(crate) labels: Vec<(usize, u32)>,
}

impl Packed {
    /// Lays rows out after checking each against model and recipe; `first` is the number of the first one,
    /// for messages.
    ///
    /// # Errors
    /// [`TrainError::Example`] for the first row that does not fit.
    pub(crate) fn new(
        examples: &[Example],
        first: usize,
        spec: &ModelSpec,
        recipe: &Recipe,
    ) -> Result<Self, TrainError> {
        let mut packed = Self::default();
        for (row, example) in (first..).zip(examples) {
            let Example { ids, labels, .. } = example;
            let wrong = |problem: String| Err(TrainError::example(row, problem));
            let longest = (recipe.sequence_tokens as usize).min(spec.context);
            if ids.len() < 2 || ids.len() > longest {
                return wrong(format!("has {} tokens, not 2 to {longest}", ids.len()));
            }
            if labels.len() != ids.len() {
                return wrong(format!("has {} labels for {} tokens", labels.len(), ids.len()));
            }
            if ids.iter().any(|&id| id as usize >= spec.vocab) {
                return wrong("has a token that is not in the vocabulary".to_owned());
            }
            let start = packed.ids.len();
            packed.ids.extend_from_slice(ids);
            packed.spans.push((start, ids.len()));
            let labelled = ids.iter().zip(labels).enumerate().skip(1).filter(|(_, (_, on))| **on);
            packed.labels.extend(labelled.map(|(at, (&id, _))| (start + at - 1, id)));
        }
        Ok(packed)
    }

    /// Tokens in all rows.
    pub(crate) fn rows(&self) -> usize {
        self.ids.len()
    }

    /// Each token's place in its sequence.
    pub(crate) fn positions(&self) -> impl Iterator<Item = usize> + '_ {
        self.spans.iter().flat_map(|&(_, len)| 0..len)
    }
}
