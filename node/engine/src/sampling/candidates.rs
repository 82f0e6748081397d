//! Tokens in descending order of their logits, sorted only as far as somebody reads.
//!
//! Of a hundred thousand candidates the first few dozen hold nearly all of the probability. They are
//! gathered band by band from the largest logit downwards, each band to hold several times as many as the
//! one before. Where a band ends is estimated from a sixteenth of the logits; the estimate decides how
//! much is sorted for nothing, never the order.

/// Every so many logits one is looked at to estimate where a band ends.
const SAMPLE_STRIDE: usize = 16;
/// Candidates that the first band is to hold.
const BAND_FIRST: usize = 64;
/// How many times more every further band is to hold.
const BAND_GROWTH: usize = 8;

/// A token and its logit.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Candidate {
    pub(super) id: u32,
    pub(super) logit: f32,
}

/// All candidates, largest logit first, lower id first among equals.
pub(super) struct Descending<'a> {
    logits: &'a [f32],
    /// Everything below this is still to come.
    upper: f32,
    /// Candidates that the next band is to hold.
    size: usize,
    /// What has been gathered and not been read, as [`key`]s in descending order: the next comes last.
    band: Vec<u64>,
}

impl<'a> Descending<'a> {
    /// All of `logits` must be finite.
    pub(super) fn new(logits: &'a [f32]) -> Self {
        Self { logits, upper: f32::INFINITY, size: BAND_FIRST, band: Vec::new() }
    }

    /// Gathers the next band.
    fn gather(&mut self) {
        let (lower, upper) = (self.estimate(), self.upper);
        self.upper = lower;
        self.size *= BAND_GROWTH;
        let mut base = 0u32;
        for chunk in self.logits.chunks(SAMPLE_STRIDE) {
            // Most chunks lie below the band entirely; this much of the loop is vectorised.
            if chunk.iter().fold(false, |any, &logit| any | (logit >= lower)) {
                let within = (base..).zip(chunk).filter(|&(_, &l)| l >= lower && l < upper);
                self.band.extend(within.map(|(id, &logit)| key(id, logit)));
            }
            base += SAMPLE_STRIDE as u32;
        }
        self.band.sort_unstable_by_key(|&key| std::cmp::Reverse(key));
    }

    /// A logit above which there are about `size` of those still to come; minus infinity for all.
    fn estimate(&self) -> f32 {
        let sample = self.logits.iter().step_by(SAMPLE_STRIDE).copied();
        let mut sample: Vec<f32> = sample.filter(|&logit| logit < self.upper).collect();
        let rank = self.size / SAMPLE_STRIDE;
        if rank >= sample.len() {
            return f32::NEG_INFINITY;
        }
        // Inclusive, so that a band is never empty and many equal logits fall into one.
        *sample.select_nth_unstable_by(rank, |a, b| b.total_cmp(a)).1
    }
}

impl Iterator for Descending<'_> {
    type Item = Candidate;

    fn next(&mut self) -> Option<Candidate> {
        while self.band.is_empty() && self.upper > f32::NEG_INFINITY {
            self.gather();
        }
        let id = self.band.pop()? as u32;
        Some(Candidate { id, logit: self.logits.get(id as usize).copied()? })
    }
}

/// A number that is smaller for a larger logit, and among equal logits for a lower id. Numbers are sorted
/// several times faster than pairs are by comparing them.
fn key(id: u32, logit: f32) -> u64 {
    let bits = logit.to_bits();
    // Ascending like the logits: negative ones have all bits turned, others the sign.
    let ascending = if bits >> 31 == 1 { !bits } else { bits | 1 << 31 };
    u64::from(!ascending) << 32 | u64::from(id)
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
                -1e3f32..1e3, Just(0.5f32), Just(f32::MIN), Just(f32::MAX), -4f32..4.0
            ], 1..3_000),
        ) {
            let lazy: Vec<Candidate> = Descending::new(&logits).collect();
            let mut sorted: Vec<Candidate> =
                (0..).zip(&logits).map(|(id, &logit)| Candidate { id, logit }).collect();
            sorted.sort_by(|a, b| b.logit.total_cmp(&a.logit).then(a.id.cmp(&b.id)));
            prop_assert_eq!(lazy, sorted);
        }
    }

    /// Zeros of both signs are equal in one order and not in the other; none may be lost.
    #[test]
    fn zeros_of_both_signs_come_once() {
        let logits: Vec<f32> = (0..1_000).map(|id| if id % 3 == 0 { -0.0 } else { 0.0 }).collect();
        let mut ids: Vec<u32> = Descending::new(&logits).map(|candidate| candidate.id).collect();
        ids.sort_unstable();
        assert!(ids.into_iter().eq(0..1_000));
    }
}
