//! Matrix products in F32, through the `gemm` crate that candle computes with as well.
//!
//! The only room of training with `unsafe` code: it turns slices whose sizes it has checked into pointers.

#![allow(unsafe_code, reason = "one call into a library that takes pointers")]

use gemm::Parallelism;

/// A matrix to read: any strides.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Matrix<'a> {
    data: &'a [f32],
    rows: usize,
    columns: usize,
    row_stride: usize,
    column_stride: usize,
}

/// A row-major matrix to write, whose rows may lie apart.
#[derive(Debug)]
pub(crate) struct Target<'a> {
    data: &'a mut [f32],
    rows: usize,
    columns: usize,
    row_stride: usize,
}

/// Who computes a product.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Threads {
    /// The calling thread: it is one of many already.
    One,
    /// All of the pool.
    All,
}

/// What becomes of the target's old values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Old {
    Replace,
    Add,
}

impl<'a> Matrix<'a> {
    /// Row after row, without gaps.
    pub(crate) fn new(data: &'a [f32], rows: usize, columns: usize) -> Self {
        Self::apart(data, rows, columns, columns)
    }

    /// Rows that begin `row_stride` apart.
    pub(crate) fn apart(data: &'a [f32], rows: usize, columns: usize, row_stride: usize) -> Self {
        assert!(fits(data.len(), rows, columns, row_stride, 1), "a matrix lies inside its data");
        Self { data, rows, columns, row_stride, column_stride: 1 }
    }

    /// The same matrix, transposed.
    pub(crate) fn t(self) -> Self {
        Self {
            rows: self.columns,
            columns: self.rows,
            row_stride: self.column_stride,
            column_stride: self.row_stride,
            ..self
        }
    }
}

impl<'a> Target<'a> {
    /// Row after row, without gaps.
    pub(crate) fn new(data: &'a mut [f32], rows: usize, columns: usize) -> Self {
        assert!(fits(data.len(), rows, columns, columns, 1), "a matrix lies inside its data");
        Self { data, rows, columns, row_stride: columns }
    }
}

/// `to = [to +] factor * left * right`.
///
/// # Panics
/// When the shapes do not fit each other.
pub(crate) fn multiply(
    to: Target<'_>,
    old: Old,
    factor: f32,
    left: Matrix<'_>,
    right: Matrix<'_>,
    threads: Threads,
) {
    let (m, n, k) = (to.rows, to.columns, left.columns);
    assert_eq!((left.rows, right.columns, right.rows), (m, n, k), "shapes of a product");
    if m == 0 || n == 0 {
        return;
    }
    if k == 0 {
        if old == Old::Replace {
            to.data.chunks_mut(to.row_stride).take(m).for_each(|row| row[..n].fill(0.0));
        }
        return;
    }
    let parallelism = match threads {
        Threads::One => Parallelism::None,
        // The pool's own number.
        Threads::All => Parallelism::Rayon(0),
    };
    let add = old == Old::Add;
    // SAFETY: every matrix was checked to lie inside its slice when it was made, the target is borrowed
    // exclusively and distinct from both others, and strides of slices fit an isize.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            to.data.as_mut_ptr(),
            1,
            to.row_stride as isize,
            add,
            left.data.as_ptr(),
            left.column_stride as isize,
            left.row_stride as isize,
            right.data.as_ptr(),
            right.column_stride as isize,
            right.row_stride as isize,
            if add { 1.0 } else { 0.0 },
            factor,
            false,
            false,
            false,
            parallelism,
        );
    }
}

fn fits(len: usize, rows: usize, columns: usize, row_stride: usize, column_stride: usize) -> bool {
    let last = |count: usize, stride: usize| (count - 1).checked_mul(stride);
    rows == 0
        || columns == 0
        || last(rows, row_stride)
            .zip(last(columns, column_stride))
            .and_then(|(row, column)| row.checked_add(column))
            .is_some_and(|last| last < len)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: strides, transposition and adding are what they say. All sums are exact.
    #[test]
    fn products_are_right() {
        let left: Vec<f32> = (0..35).map(|at| (at % 7) as f32 - 3.0).collect();
        let right: Vec<f32> = (0..40).map(|at| (at % 5) as f32 - 2.0).collect();
        // 4 × 6 with rows 8 apart, times the transpose of 5 × 6.
        let (m, k, n) = (4, 6, 5);
        let exact = |i: usize, j: usize| -> f32 {
            (0..k).map(|at| left[i * 8 + at] * right[j * k + at]).sum()
        };
        for threads in [Threads::One, Threads::All] {
            for old in [Old::Replace, Old::Add] {
                let mut out = vec![1.0; m * n];
                let left = Matrix::apart(&left, m, k, 8);
                let right = Matrix::new(&right, n, k).t();
                multiply(Target::new(&mut out, m, n), old, 2.0, left, right, threads);
                for i in 0..m {
                    for j in 0..n {
                        let before = if old == Old::Add { 1.0 } else { 0.0 };
                        assert_eq!(out[i * n + j], before + 2.0 * exact(i, j), "{i} {j}");
                    }
                }
            }
        }
    }

    #[test]
    fn empty_products_are_zero() {
        let mut out = vec![5.0; 4];
        let nothing = Matrix::new(&[], 2, 0);
        let to = Target::new(&mut out, 2, 2);
        multiply(to, Old::Replace, 1.0, nothing, nothing.t(), Threads::One);
        assert_eq!(out, [0.0; 4]);
    }

    #[test]
    #[should_panic(expected = "inside its data")]
    fn a_matrix_beyond_its_data_is_refused() {
        let _ = Matrix::apart(&[0.0; 10], 3, 2, 5);
    }
}
