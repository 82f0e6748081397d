//! Whether this processor computes rightly: training's own products, against exact arithmetic.

use super::error::TrainError;
use super::product::{Matrix, Old, Target, Threads, multiply};

/// Multiplies small integers, whose sums are exact in F32 in any order, on all threads and in several shapes,
/// and compares with integer arithmetic. Takes some milliseconds.
///
/// # Errors
/// [`TrainError::Unhealthy`] when a value is wrong.
pub fn probe_processor() -> Result<(), TrainError> {
    let (mut wrong, mut values) = (0, 0);
    for (m, k, n) in [(96, 160, 144), (257, 64, 48), (64, 576, 33)] {
        let (found, exact) = sample(m, k, n);
        values += exact.len();
        wrong +=
            found.iter().zip(&exact).filter(|(found, exact)| **found != **exact as f32).count();
    }
    judge(wrong, values)
}

fn judge(wrong: usize, values: usize) -> Result<(), TrainError> {
    match wrong {
        0 => Ok(()),
        _ => Err(TrainError::Unhealthy { wrong, values }),
    }
}

/// A product as training computes it, and as integers have it.
fn sample(m: usize, k: usize, n: usize) -> (Vec<f32>, Vec<i64>) {
    let integers = |len: usize, step: usize| -> Vec<i64> {
        (0..len).map(|at| (at * step % 31) as i64 - 15).collect()
    };
    let (left, right) = (integers(m * k, 7), integers(n * k, 11));
    let floats = |of: &[i64]| of.iter().map(|&value| value as f32).collect::<Vec<f32>>();
    let (a, b) = (floats(&left), floats(&right));
    let mut found = vec![0.0; m * n];
    let (to, b) = (Target::new(&mut found, m, n), Matrix::new(&b, n, k).t());
    multiply(to, Old::Replace, 1.0, Matrix::new(&a, m, k), b, Threads::All);
    let exact = (0..m * n).map(|at| {
        let (row, column) = (at / n * k, at % n * k);
        (0..k).map(|i| left[row + i] * right[column + i]).sum()
    });
    (found, exact.collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sound_processor_passes_and_one_wrong_value_does_not() {
        probe_processor().unwrap();
        assert!(matches!(judge(1, 9), Err(TrainError::Unhealthy { wrong: 1, values: 9 })));
        let (_, exact) = sample(96, 160, 144);
        assert!(exact.iter().all(|value| value.abs() < 1 << 24) && exact.iter().any(|v| *v != 0));
    }
}
