//! Attention of some query vectors over one key-value head of one sequence's pages.
//!
//! Each query is computed by itself in a fixed order: scores page by page, each a sum over even and one over odd
//! dimensions; their maximum; exponentials and their sum in sixteen lanes; values summed over ascending positions, then divided.
//! Queries that share pages (the heads of a group, neighbouring rows of a prompt) are taken together
//! only so that a page is loaded once for all of them.

use std::marker::PhantomData;

use super::isa::Work;
use super::kernels::{Element, F16, F32, Simd, prefetch};
use super::lanes::{self, LANES, Sixteen};
use super::math;
use super::pages::{CacheType, Pages};
use crate::decoder::PageId;

/// What one query sees.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Sight {
    /// First position.
    pub(crate) first: usize,
    /// Last position, included.
    pub(crate) last: usize,
    /// What the score loses for each position of distance from the last one; 0 without ALiBi.
    pub(crate) slope: f32,
}

/// What becomes of a product of query and key before the softmax.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Scoring {
    /// Factor.
    pub(crate) scale: f32,
    /// Then `cap * tanh(score / cap)`.
    pub(crate) soft_cap: Option<f32>,
}

/// Queries that attend to the same head of the same sequence.
#[derive(Debug)]
pub(crate) struct Attention<'a> {
    pub(crate) memory: &'a Pages,
    /// The sequence's pages, as far as any of the queries sees.
    pub(crate) pages: &'a [PageId],
    pub(crate) layer: usize,
    pub(crate) head: usize,
    pub(crate) scoring: Scoring,
    /// One for each query.
    pub(crate) sights: &'a [Sight],
    /// (queries, stride), rotated, padding zero.
    pub(crate) queries: &'a [f32],
    /// Scratch; see [`scores_len`].
    pub(crate) scores: &'a mut [f32],
    /// (queries, stride).
    pub(crate) out: &'a mut [f32],
}

/// How many pages ahead keys and values are asked for. Pages of a sequence lie apart, so the processor does not guess the next one,
/// and a page is done with before memory has answered once.
const PAGES_AHEAD: usize = 3;

/// Scratch that `queries` over `pages` pages need: a vector of scores for each page, and one more.
pub(crate) fn scores_len(queries: usize, pages: usize) -> usize {
    queries * (pages + 1) * LANES
}

impl Work for Attention<'_> {
    type Output = ();

    /// # Panics
    /// When slices are shorter than the queries ask for.
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let count = self.sights.len();
        let first = self.sights.iter().map(|sight| sight.first / LANES).min().unwrap_or(0);
        let last = self.sights.iter().map(|sight| sight.last / LANES).max().unwrap_or(0);
        let (pages, stride) = (last + 1 - first, self.memory.stride());
        assert!(last < self.pages.len(), "pages of all that is seen");
        assert!(self.queries.len() >= count * stride && self.out.len() >= count * stride);
        assert!(self.scores.len() >= scores_len(count, pages));
        let kept = self.memory.kept();
        let mut seen = Seen { attention: self, first, pages, stride };
        match kept {
            CacheType::F32 => seen.run::<S, F32>(s, count),
            CacheType::F16 => seen.run::<S, F16>(s, count),
        }
    }
}

/// The attention with the range of pages that matters.
struct Seen<'a> {
    attention: Attention<'a>,
    /// Number of the first page within the sequence.
    first: usize,
    pages: usize,
    /// Values of one head.
    stride: usize,
}

/// A group of queries on one page: scores, in a function of its own for each number of queries.
struct Scores<'s, 'a, E, const Q: usize> {
    seen: &'s mut Seen<'a>,
    page: usize,
    at: usize,
    kept: PhantomData<E>,
}

impl<E: Element, const Q: usize> Work for Scores<'_, '_, E, Q> {
    type Output = usize;

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> usize {
        self.seen.scores::<S, E, Q>(s, self.page, self.at);
        Q
    }
}

/// A group of queries on one page: weighted values.
struct Values<'s, 'a, E, const Q: usize> {
    seen: &'s mut Seen<'a>,
    page: usize,
    at: usize,
    kept: PhantomData<E>,
}

impl<E: Element, const Q: usize> Work for Values<'_, '_, E, Q> {
    type Output = usize;

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> usize {
        self.seen.values::<S, E, Q>(s, self.page, self.at);
        Q
    }
}

/// The softmax of one query.
struct Softmax<'s, 'a> {
    seen: &'s mut Seen<'a>,
    query: usize,
}

impl Work for Softmax<'_, '_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        self.seen.softmax(s, self.query);
    }
}

impl Seen<'_> {
    #[inline(always)]
    fn run<S: Simd, E: Element>(&mut self, s: S, count: usize) {
        // Groups of as many queries as fit the registers; the branches of other instruction sets are not even
        // compiled.
        (0..PAGES_AHEAD).for_each(|page| self.fetch::<E>(page, Pages::keys));
        for page in 0..self.pages {
            self.fetch::<E>(page + PAGES_AHEAD, Pages::keys);
            let mut at = 0;
            while at < count {
                macro_rules! take {
                    ($count:literal) => {
                        s.run(Scores::<E, $count> { seen: self, page, at, kept: PhantomData })
                    };
                }
                at += if const { S::LANES == LANES } {
                    match count - at {
                        8.. => take!(8),
                        4.. => take!(4),
                        3.. => take!(3),
                        _ => take!(1),
                    }
                } else if const { S::ROWS > 1 } {
                    if count - at >= 3 { take!(3) } else { take!(1) }
                } else {
                    take!(1)
                };
            }
        }
        (0..PAGES_AHEAD).for_each(|page| self.fetch::<E>(page, Pages::values));
        for query in 0..count {
            s.run(Softmax { seen: self, query });
        }
        self.attention.out[..count * self.stride].fill(0.0);
        for page in 0..self.pages {
            self.fetch::<E>(page + PAGES_AHEAD, Pages::values);
            let mut at = 0;
            while at < count {
                macro_rules! take {
                    ($count:literal) => {
                        s.run(Values::<E, $count> { seen: self, page, at, kept: PhantomData })
                    };
                }
                at += if const { S::LANES == LANES } {
                    match count - at {
                        4.. => take!(4),
                        3.. => take!(3),
                        _ => take!(1),
                    }
                } else if const { S::ROWS > 1 } {
                    if count - at >= 2 { take!(2) } else { take!(1) }
                } else {
                    take!(1)
                };
            }
        }
        for query in 0..count {
            self.divide(query);
        }
    }

    /// Asks for one page's keys or values, where there is such a page.
    #[inline(always)]
    fn fetch<E: Element>(&self, page: usize, of: impl Fn(&Pages, PageId, usize, usize) -> *mut u8) {
        let a = &self.attention;
        if page < self.pages {
            let from = of(a.memory, a.pages[self.first + page], a.layer, a.head);
            let bytes = self.stride * LANES * E::BYTES;
            (0..bytes).step_by(64).for_each(|at| prefetch(from.wrapping_add(at)));
        }
    }

    /// Scores of queries `at..at + Q` on one page.
    #[inline(always)]
    fn scores<S: Simd, E: Element, const Q: usize>(&mut self, s: S, page: usize, at: usize) {
        let a = &self.attention;
        let keys = a.memory.keys(a.pages[self.first + page], a.layer, a.head).cast_const();
        let queries = a.queries[at * self.stride..(at + Q) * self.stride].as_ptr();
        let mut even: [Sixteen<S>; Q] = [lanes::splat(s, 0.0); Q];
        let mut odd = even;
        let mut i = 0;
        while i < self.stride {
            // SAFETY: a head has `stride` (even) vectors of keys, and each query `stride` values. Nobody writes this page's
            // layer and head: `Attention` is only run when all keys and values that it sees are there.
            unsafe {
                let key = [
                    lanes::load_as::<S, E>(s, keys.add(i * LANES * E::BYTES)),
                    lanes::load_as::<S, E>(s, keys.add((i + 1) * LANES * E::BYTES)),
                ];
                for q in 0..Q {
                    let query = queries.add(q * self.stride + i);
                    let (x, y) = (s.splat(*query), s.splat(*query.add(1)));
                    even[q] = lanes::zip::<S>(even[q], key[0], |acc, key| s.fma(x, key, acc));
                    odd[q] = lanes::zip::<S>(odd[q], key[1], |acc, key| s.fma(y, key, acc));
                }
            }
            i += 2;
        }
        for q in 0..Q {
            let dot = lanes::zip::<S>(even[q], odd[q], |even, odd| s.add(even, odd));
            let score = self.score(s, self.first + page, self.attention.sights[at + q], dot);
            let to = &mut self.attention.scores[((at + q) * (self.pages + 1) + page) * LANES..];
            if let Some(to) = to.first_chunk_mut() {
                lanes::store(s, score, to);
            }
        }
    }

    /// Scales, caps, biases and masks the products of one query with one page.
    #[inline(always)]
    fn score<S: Simd>(&self, s: S, page: usize, sight: Sight, dot: Sixteen<S>) -> Sixteen<S> {
        let scoring = self.attention.scoring;
        let scale = s.splat(scoring.scale);
        let mut score = lanes::zip::<S>(dot, dot, |dot, _| s.mul(dot, scale));
        if let Some(cap) = scoring.soft_cap {
            score = lanes::zip::<S>(score, score, |score, _| math::soft_cap(s, cap, score));
        }
        let base = page * LANES;
        let inside = sight.first <= base && base + LANES - 1 <= sight.last;
        if inside && sight.slope == 0.0 {
            return score;
        }
        // Positions relative to the last one seen: exact in f32 for every context there can be.
        let mut ahead = [0.0; LANES];
        for (lane, ahead) in ahead.iter_mut().enumerate() {
            *ahead = (base + lane) as f32 - sight.last as f32;
        }
        let ahead = lanes::load(s, &ahead);
        if sight.slope != 0.0 {
            let slope = s.splat(sight.slope);
            score = lanes::zip::<S>(score, ahead, |score, ahead| s.fma(slope, ahead, score));
        }
        let masked = s.splat(f32::NEG_INFINITY);
        let nearest = s.splat(sight.first as f32 - sight.last as f32);
        lanes::zip::<S>(score, ahead, |score, ahead| {
            let score = s.select_lt(ahead, nearest, masked, score);
            s.select_lt(s.splat(0.0), ahead, masked, score)
        })
    }

    /// Turns the scores of one query into `exp(score - maximum)`, and puts one over their sum behind them.
    #[inline(always)]
    fn softmax<S: Simd>(&mut self, s: S, query: usize) {
        let row = (self.pages + 1) * LANES;
        let scores = &mut self.attention.scores[query * row..][..row];
        let (scores, behind) = scores.split_at_mut(row - LANES);
        let largest = lanes::fold(s, scores, f32::NEG_INFINITY, |acc, x| s.max(acc, x));
        let largest = s.splat(lanes::join(s, largest, |a, b| if a > b { a } else { b }));
        let mut sum = lanes::splat(s, 0.0);
        for chunk in scores.as_chunks_mut::<LANES>().0 {
            let score = lanes::load(s, chunk);
            let power = lanes::zip::<S>(score, score, |x, _| math::exp(s, s.sub(x, largest)));
            lanes::store(s, power, chunk);
            sum = lanes::zip::<S>(sum, power, |sum, power| s.add(sum, power));
        }
        behind[0] = 1.0 / lanes::join(s, sum, |a, b| a + b);
    }

    /// Adds the values of one page to the outputs of queries `at..at + Q`.
    #[inline(always)]
    fn values<S: Simd, E: Element, const Q: usize>(&mut self, s: S, page: usize, at: usize) {
        // What lies beyond every query's sight may be another sequence's remains, or nothing: its weight is
        // zero, but zero times what is not a number is not zero.
        let base = (self.first + page) * LANES;
        let sights = &self.attention.sights[at..at + Q];
        let first = sights.iter().map(|sight| sight.first).min().unwrap_or(0).max(base) - base;
        let last = sights.iter().map(|sight| sight.last).max().unwrap_or(0);
        let end = (last + 1).saturating_sub(base).min(LANES);
        let mut column = 0;
        while column < self.stride {
            // SAFETY: as many columns are left as each of these takes.
            unsafe {
                match self.stride - column {
                    left if left >= 4 * S::LANES => {
                        self.columns::<S, E, Q, 4>(s, page, at, first..end, column);
                        column += 4 * S::LANES;
                    }
                    _ => {
                        self.columns::<S, E, Q, 1>(s, page, at, first..end, column);
                        column += S::LANES;
                    }
                }
            }
        }
    }

    /// As [`Seen::values`], for the slots and columns given.
    ///
    /// # Safety
    /// `column + C * S::LANES <= stride`, and slots are at most sixteen.
    #[inline(always)]
    unsafe fn columns<S: Simd, E: Element, const Q: usize, const C: usize>(
        &mut self,
        s: S,
        page: usize,
        at: usize,
        slots: std::ops::Range<usize>,
        column: usize,
    ) {
        let a = &mut self.attention;
        let values = a.memory.values(a.pages[self.first + page], a.layer, a.head).cast_const();
        let row = (self.pages + 1) * LANES;
        let weights = a.scores[at * row..(at + Q) * row].as_ptr();
        let out = a.out[at * self.stride..(at + Q) * self.stride].as_mut_ptr();
        // SAFETY: sixteen positions of `stride` values each, `Q` rows of outputs and weights by the slices just
        // taken, and columns by the caller's promise; nobody writes the page meanwhile, as in `scores`.
        unsafe {
            let mut acc = [[s.splat(0.0); C]; Q];
            for (q, acc) in acc.iter_mut().enumerate() {
                for (c, acc) in acc.iter_mut().enumerate() {
                    *acc = s.load(out.add(q * self.stride + column + c * S::LANES));
                }
            }
            for slot in slots {
                let from = values.add((slot * self.stride + column) * E::BYTES);
                let value: [S::F; C] =
                    std::array::from_fn(|c| E::load(s, from.add(c * S::LANES * E::BYTES)));
                for (q, acc) in acc.iter_mut().enumerate() {
                    let weight = s.splat(*weights.add(q * row + page * LANES + slot));
                    for (acc, value) in acc.iter_mut().zip(value) {
                        *acc = s.fma(weight, value, *acc);
                    }
                }
            }
            for (q, acc) in acc.iter().enumerate() {
                for (c, acc) in acc.iter().enumerate() {
                    s.store(out.add(q * self.stride + column + c * S::LANES), *acc);
                }
            }
        }
    }

    /// Divides the outputs of one query by the sum of its weights.
    #[inline(always)]
    fn divide(&mut self, query: usize) {
        let inverse = self.attention.scores[query * (self.pages + 1) * LANES + self.pages * LANES];
        for out in &mut self.attention.out[query * self.stride..][..self.stride] {
            *out *= inverse;
        }
    }
}

#[cfg(test)]
mod tests;
