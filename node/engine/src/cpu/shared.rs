//! Buffers that the members of a team write in turns.
//!
//! A forward pass is a sequence of phases with barriers between them. In a phase every part of a buffer is either
//! read by anybody or written by one member; which one, the taking of units decides. The compiler cannot see that, so access is
//! `unsafe`, and each caller says why nobody else is at the same rows.

use std::marker::PhantomData;
use std::ops::Range;

use super::kernels::Output;

/// A view of rows of equal width, borrowed for one pass.
#[derive(Debug)]
pub(crate) struct Shared<'a, T> {
    start: *mut T,
    rows: usize,
    width: usize,
    buffer: PhantomData<&'a mut [T]>,
}

// SAFETY: the view is as good as a mutable slice of `T`, and access from several threads is what the
// callers of its unsafe methods answer for.
unsafe impl<T: Send> Send for Shared<'_, T> {}
// SAFETY: as above.
unsafe impl<T: Send> Sync for Shared<'_, T> {}

impl<'a, T> Shared<'a, T> {
    /// As many whole rows as `buffer` holds; none if they have no width.
    pub(crate) fn new(buffer: &'a mut [T], width: usize) -> Self {
        let rows = buffer.len().checked_div(width).unwrap_or(0);
        Self { start: buffer.as_mut_ptr(), rows, width, buffer: PhantomData }
    }

    /// Values of one row.
    pub(crate) fn width(&self) -> usize {
        self.width
    }

    /// Reads rows.
    ///
    /// # Safety
    /// Nobody writes them while the slice lives.
    ///
    /// # Panics
    /// When they do not exist.
    pub(crate) unsafe fn rows(&self, rows: Range<usize>) -> &[T] {
        let (start, len) = self.locate(&rows);
        // SAFETY: inside the buffer by `locate`, which is borrowed for as long as the view; not written by the
        // caller's promise.
        unsafe { std::slice::from_raw_parts(start, len) }
    }

    /// Reads one row.
    ///
    /// # Safety
    /// As [`Shared::rows`].
    pub(crate) unsafe fn row(&self, row: usize) -> &[T] {
        // SAFETY: the caller's promise.
        unsafe { self.rows(row..row + 1) }
    }

    /// Writes rows.
    ///
    /// # Safety
    /// Nobody else reads or writes them while the slice lives.
    ///
    /// # Panics
    /// When they do not exist.
    #[allow(clippy::mut_from_ref, reason = "the caller promises what the borrow cannot say")]
    pub(crate) unsafe fn rows_mut(&self, rows: Range<usize>) -> &mut [T] {
        let (start, len) = self.locate(&rows);
        // SAFETY: inside the buffer by `locate`; exclusive by the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(start, len) }
    }

    /// Writes one row.
    ///
    /// # Safety
    /// As [`Shared::rows_mut`].
    #[allow(clippy::mut_from_ref, reason = "the caller promises what the borrow cannot say")]
    pub(crate) unsafe fn row_mut(&self, row: usize) -> &mut [T] {
        // SAFETY: the caller's promise.
        unsafe { self.rows_mut(row..row + 1) }
    }

    /// Writes some values of one row.
    ///
    /// # Safety
    /// Nobody else reads or writes these values while the slice lives.
    ///
    /// # Panics
    /// When they do not exist.
    #[allow(clippy::mut_from_ref, reason = "the caller promises what the borrow cannot say")]
    pub(crate) unsafe fn part_mut(&self, row: usize, part: Range<usize>) -> &mut [T] {
        let (start, len) = self.locate(&(row..row + 1));
        assert!(part.start <= part.end && part.end <= len, "values {part:?} of {len}");
        // SAFETY: inside the row; exclusive by the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(start.add(part.start), part.len()) }
    }

    fn locate(&self, rows: &Range<usize>) -> (*mut T, usize) {
        assert!(rows.start <= rows.end && rows.end <= self.rows, "rows {rows:?} of {}", self.rows);
        // SAFETY: not past the end, by the assertion.
        (unsafe { self.start.add(rows.start * self.width) }, rows.len() * self.width)
    }
}

impl Shared<'_, f32> {
    /// The first `rows` rows as the target of products.
    ///
    /// # Safety
    /// The members that run a product with it write different columns, and nobody reads them meanwhile.
    ///
    /// # Panics
    /// When there are not so many.
    pub(crate) unsafe fn output(&self, rows: usize) -> Output<'_> {
        let (start, len) = self.locate(&(0..rows));
        // SAFETY: valid for as long as the view; the caller promises the rest.
        unsafe { Output::from_raw(start, len, self.width) }
    }
}
