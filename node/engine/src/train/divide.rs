//! Whole datasets to examples: a side for training and a side for validation.
//!
//! The side follows from the seed and the row's subject, or what the row says where it has none, by a
//! digest: all rows of a subject and all repetitions of a row lie on one side, whatever else is in the
//! dataset. So the validation side has about the fraction asked for, and exactly it only in the long run.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::prepare::{Counts, Preparation, RowsError, TOKENS_MAX, Texts};
use super::rows::Row;
use super::{Example, Subject};

/// Rows of all datasets of a run together; each costs a few hundred bytes besides its tokens.
pub const ROWS_MAX: u64 = 16 << 20;

/// How rows are divided.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Split {
    /// Part of the rows that is held out, in `0..1`.
    pub validation: f64,
    /// From which the sides follow.
    pub seed: u64,
}

/// A dataset, ready.
#[derive(Default)]
pub struct Divided {
    /// To train on, in the order of the rows. Every example has a subject; rows without one are subjects of
    /// their own.
    pub train: Vec<Example>,
    /// Held out, likewise.
    pub validation: Vec<Example>,
    /// What was counted.
    pub sides: Sides,
}

/// What became of each side.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sides {
    /// To train on.
    pub train: Counts,
    /// Held out.
    pub validation: Counts,
    /// Subjects on the side to train on.
    pub train_subjects: u64,
    /// Subjects held out.
    pub validation_subjects: u64,
}

impl Sides {
    /// The same of two datasets together, whose subjects are taken to be different ones.
    #[must_use]
    pub fn and(&self, other: &Self) -> Self {
        Self {
            train: self.train.and(&other.train),
            validation: self.validation.and(&other.validation),
            train_subjects: self.train_subjects + other.train_subjects,
            validation_subjects: self.validation_subjects + other.validation_subjects,
        }
    }
}

/// Divides a dataset's rows and makes them into examples. `number` is the dataset's place in the run.
///
/// # Errors
/// For the first row that cannot be trained on, by its number; when reading fails, in the reader's words;
/// beyond [`ROWS_MAX`] rows or [`TOKENS_MAX`] tokens.
pub fn divide(
    texts: &Texts,
    number: u64,
    rows: impl IntoIterator<Item = Result<Row, String>>,
    preparation: &Preparation,
    split: &Split,
) -> Result<Divided, RowsError> {
    if !(0.0..1.0).contains(&split.validation) {
        let problem = format!("validation is {}, not in [0, 1)", split.validation);
        return Err(RowsError::Settings(problem));
    }
    let mut divided = Divided::default();
    let (mut train_subjects, mut validation_subjects) = (BTreeSet::new(), BTreeSet::new());
    for (row_number, row) in (1u64..).zip(rows) {
        let at = |problem| RowsError::Row { row: row_number, problem };
        if row_number > ROWS_MAX {
            return Err(at(format!("a run takes at most {ROWS_MAX} rows")));
        }
        let mut row = row.map_err(at)?;
        let held_out = is_held_out(&row, split);
        let subject = *row.subject.get_or_insert_with(|| own_subject(number, row_number));
        let (side, examples, subjects) = match held_out {
            true => {
                (&mut divided.sides.validation, &mut divided.validation, &mut validation_subjects)
            }
            false => (&mut divided.sides.train, &mut divided.train, &mut train_subjects),
        };
        let made = texts.prepare(&row, preparation, side).map_err(at)?;
        if !made.is_empty() {
            subjects.insert(subject);
        }
        examples.extend(made);
        let sides = &divided.sides;
        if sides.train.tokens + sides.validation.tokens > TOKENS_MAX {
            return Err(RowsError::TooMuch);
        }
    }
    divided.sides.train_subjects = train_subjects.len() as u64;
    divided.sides.validation_subjects = validation_subjects.len() as u64;
    Ok(divided)
}

/// A number in `[0, 1)` that follows from seed and key, below the fraction.
fn is_held_out(row: &Row, split: &Split) -> bool {
    let mut hash = Sha256::new();
    hash.update(b"allmend training split v1\0");
    hash.update(split.seed.to_le_bytes());
    hash.update(row.split_key());
    let digest = hash.finalize();
    let leading = digest.iter().take(8).fold(0u64, |bits, &byte| bits << 8 | u64::from(byte));
    // 53 bits are exact in a float, and their scaling by a power of two is.
    ((leading >> 11) as f64) / ((1u64 << 53) as f64) < split.validation
}

/// The subject of a row that has none.
fn own_subject(dataset: u64, row: u64) -> Subject {
    let mut hash = Sha256::new();
    hash.update(b"allmend training row subject v1\0");
    hash.update(dataset.to_le_bytes());
    hash.update(row.to_le_bytes());
    Subject(hash.finalize().into())
}

#[cfg(test)]
#[path = "tests/divide.rs"]
mod tests;
