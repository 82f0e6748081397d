//! Examples by whose they are, for private runs, in which a subject takes part as a whole or not at all.

use std::collections::BTreeMap;

use super::Example;
use super::Subject;
use super::prepare::RowsError;

/// Examples of one run, by subject.
pub struct Subjects {
    /// In the order of the keys, which decides which draw is whose.
    units: Vec<Vec<Example>>,
}

impl Subjects {
    /// Examples of all datasets together.
    ///
    /// # Errors
    /// When an example belongs to nobody, for then nothing could be promised to its subject.
    pub fn new(examples: impl IntoIterator<Item = Example>) -> Result<Self, RowsError> {
        let mut units: BTreeMap<Subject, Vec<Example>> = BTreeMap::new();
        for example in examples {
            let Some(subject) = example.subject else {
                let problem = "a private run cannot use examples without a subject (packed ones)";
                return Err(RowsError::Settings(problem.to_owned()));
            };
            units.entry(subject).or_default().push(example);
        }
        Ok(Self { units: units.into_values().collect() })
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.units.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.units.is_empty()
    }

    /// The examples of some of them, by number: what
    /// [`Trainer::sample_subjects`](super::Trainer::sample_subjects) drew.
    pub fn pick(&self, numbers: &[usize]) -> Vec<&[Example]> {
        numbers.iter().filter_map(|&number| self.units.get(number)).map(Vec::as_slice).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn example(id: u32, subject: u8) -> Example {
        Example {
            ids: vec![0, id],
            labels: vec![false, true],
            subject: Some(Subject([subject; 32])),
        }
    }

    #[test]
    fn rows_of_a_subject_come_and_go_together() {
        let subjects =
            Subjects::new([example(1, 7), example(2, 3), example(3, 7), example(4, 5)]).unwrap();
        assert_eq!(subjects.len(), 3);
        let all = subjects.pick(&[0, 2, 1, 9]);
        let ids: Vec<Vec<u32>> =
            all.iter().map(|unit| unit.iter().map(|example| example.ids[1]).collect()).collect();
        assert_eq!(ids, [vec![2], vec![1, 3], vec![4]]);
    }

    #[test]
    fn nobodys_rows_are_refused() {
        let packed = Example { subject: None, ..example(1, 1) };
        assert!(Subjects::new([packed]).is_err());
    }
}
