use super::*;
use crate::train::prepare::LossOn;
use crate::train::prepare::tests::texts;
use crate::train::rows::Body;

fn row(text: String, subject: Option<u8>) -> Result<Row, String> {
    Ok(Row { body: Body::Text(text), subject: subject.map(|subject| Subject([subject; 32])) })
}

fn divided(rows: Vec<Result<Row, String>>, split: Split) -> Result<Divided, RowsError> {
    let preparation = Preparation { loss_on: LossOn::Assistant, sequence_tokens: 64, clock: 0 };
    divide(&texts(None), 0, rows, &preparation, &split)
}

/// Goal: a subject's rows lie on one side, repetitions too, and other rows do not move anybody.
#[test]
fn sides_follow_from_subject_or_words_alone() {
    let split = Split { validation: 0.3, seed: 5 };
    let rows = |skip: usize| -> Vec<_> {
        (skip..400).map(|at| row(format!("Row number {at}"), Some((at % 100) as u8))).collect()
    };
    let all = divided(rows(0), split).unwrap();
    let held: BTreeSet<_> = all.validation.iter().map(|example| example.subject).collect();
    assert!(all.train.iter().all(|example| !held.contains(&example.subject)));
    assert_eq!(all.train.len() + all.validation.len(), 400);
    // Every subject has four rows, so each side has four times its subjects.
    assert_eq!(all.sides.validation.rows, 4 * all.sides.validation_subjects);
    assert_eq!(all.sides.train_subjects + all.sides.validation_subjects, 100);
    // Four standard deviations of the binomial around 30.
    assert!((12..=48).contains(&held.len()), "{}", held.len());
    let fewer = divided(rows(100), split).unwrap();
    let still: BTreeSet<_> = fewer.validation.iter().map(|example| example.subject).collect();
    assert_eq!(held, still);
    let other = divided(rows(0), Split { seed: 6, ..split }).unwrap();
    assert!(other.validation != all.validation);
    let twice: Vec<_> = (0..60).map(|at| row(format!("Row number {}", at % 30), None)).collect();
    let twice = divided(twice, split).unwrap();
    assert_eq!((twice.train.len() % 2, twice.validation.len() % 2), (0, 0));
    assert!(!twice.validation.is_empty());
    assert_eq!(divided(rows(0), Split { validation: 0.0, seed: 5 }).unwrap().train.len(), 400);
}

/// Goal: rows without a subject are subjects of their own, also when they say the same.
#[test]
fn rows_without_a_subject_are_their_own() {
    let rows = vec![row("same".to_owned(), None), row("same".to_owned(), None)];
    let divided = divided(rows, Split { validation: 0.0, seed: 0 }).unwrap();
    assert_eq!(divided.sides.train_subjects, 2);
    assert_ne!(divided.train[0].subject, divided.train[1].subject);
}

#[test]
fn the_row_at_fault_is_named() {
    let split = Split { validation: 0.0, seed: 0 };
    let rows = vec![row("fine".to_owned(), None), Err("is cut short".to_owned())];
    let error = divided(rows, split).map(|_| ()).unwrap_err();
    assert_eq!(error.to_string(), "row 2: is cut short");
    let silent = Row::new(Body::Chat(Vec::new()));
    let error = divided(vec![Ok(silent)], split).map(|_| ()).unwrap_err();
    assert!(error.to_string().starts_with("row 1: "), "{error}");
    for validation in [f64::NAN, -0.1, 1.0] {
        assert!(divided(Vec::new(), Split { validation, seed: 0 }).is_err());
    }
}
