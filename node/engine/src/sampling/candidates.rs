//! Tokens in descending order of their logits, sorted only as far as somebody reads.
//!
//! Of a hundred thousand candidates the first few dozen hold nearly all of the probability. They are
//! gathered band by band below the largest logit, each band twice as wide as the one before, and put in
//! order by a heap. A flat distribution costs one heap of everything, which is still no full sort.

use std::collections::BinaryHeap;

/// Bands gathered by width; the one after takes everything that is left.
const BANDS_MAX: u32 = 6;
/// Values looked at together when most of them lie below the band.
const LANES: usize = 16;

/// A token and its logit.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Candidate {
    pub(super) id: u32,
    pub(super) logit: f32,
}

impl Eq for Candidate {}

impl Ord for Candidate {
    /// The larger logit is greater, then the lower id.
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.logit.total_cmp(&other.logit).then(other.id.cmp(&self.id))
    }
}

impl PartialOrd for Candidate {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

/// All candidates, largest logit first, lower id first among equals.
pub(super) struct Descending<'a> {
    logits: &'a [f32],
    /// Everything at or below this is still to come.
    upper: f32,
    width: f32,
    bands: u32,
    heap: BinaryHeap<Candidate>,
}

impl<'a> Descending<'a> {
    /// `largest` is the largest of `logits`, all of them finite; `width` that of the first band.
    pub(super) fn new(logits: &'a [f32], largest: f32, width: f32) -> Self {
        Self { logits, upper: largest, width, bands: 0, heap: BinaryHeap::new() }
    }

    /// Gathers the next band.
    fn gather(&mut self) {
        self.bands += 1;
        let last = self.bands > BANDS_MAX;
        let lower = if last { f32::NEG_INFINITY } else { self.upper - self.width };
        let upper = self.upper;
        let mut band = std::mem::take(&mut self.heap).into_vec();
        let mut base = 0u32;
        for chunk in self.logits.chunks(LANES) {
            let any = chunk.iter().fold(false, |any, &logit| any | (logit > lower));
            if any {
                let within = (base..).zip(chunk).filter(|&(_, &l)| l > lower && l <= upper);
                band.extend(within.map(|(id, &logit)| Candidate { id, logit }));
            }
            base += LANES as u32;
        }
        self.heap = BinaryHeap::from(band);
        self.upper = lower;
        self.width *= 2.0;
    }
}

impl Iterator for Descending<'_> {
    type Item = Candidate;

    fn next(&mut self) -> Option<Candidate> {
        while self.heap.is_empty() && self.bands <= BANDS_MAX {
            self.gather();
        }
        self.heap.pop()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Goal: reading lazily gives what a full sort gives.
        #[test]
        fn lazy_order_is_the_sorted_order(
            logits in prop::collection::vec(prop_oneof![
                -1e3f32..1e3, Just(0.0f32), Just(-0.0f32), Just(f32::MIN), Just(f32::MAX), -4f32..4.0
            ], 1..80),
            width in prop_oneof![Just(4e-3f32), Just(4.0), Just(40.0)],
        ) {
            let largest = logits.iter().copied().fold(f32::MIN, f32::max);
            let lazy: Vec<Candidate> = Descending::new(&logits, largest, width).collect();
            let mut sorted: Vec<Candidate> =
                (0..).zip(&logits).map(|(id, &logit)| Candidate { id, logit }).collect();
            sorted.sort_by(|a, b| b.cmp(a));
            let bits = |all: &[Candidate]| -> Vec<(u32, u32)> {
                all.iter().map(|one| (one.id, one.logit.to_bits())).collect()
            };
            prop_assert_eq!(bits(&lazy), bits(&sorted));
        }
    }
}
