//! Numbers that follow from a seed and a place: for orders and choices that must come out the same when a
//! training run is taken up again. Not for privacy: noise and Poisson samples come from a generator that
//! the caller hands in.

use sha2::{Digest, Sha256};

/// SHA-256 in counter mode over a name, a seed and a place. Streams of different names, seeds or places
/// have nothing in common.
pub(crate) struct Stream {
    key: Sha256,
    counter: u64,
    block: [u8; 32],
    used: usize,
}

impl Stream {
    pub(crate) fn new(name: &str, seed: &[u8], place: &[u64]) -> Self {
        let mut key = Sha256::new();
        key.update(b"allmend training stream v1\0");
        for part in [name.as_bytes(), seed] {
            key.update((part.len() as u64).to_le_bytes());
            key.update(part);
        }
        place.iter().for_each(|number| key.update(number.to_le_bytes()));
        Self { key, counter: 0, block: [0; 32], used: 32 }
    }

    pub(crate) fn next(&mut self) -> u64 {
        if self.used == self.block.len() {
            let mut hash = self.key.clone();
            hash.update(b"/");
            hash.update(self.counter.to_le_bytes());
            self.block = hash.finalize().into();
            self.counter += 1;
            self.used = 0;
        }
        let mut bytes = [0; 8];
        bytes.copy_from_slice(&self.block[self.used..self.used + 8]);
        self.used += 8;
        u64::from_le_bytes(bytes)
    }

    /// Uniform in `0..end`; 0 when that is empty. Numbers from the incomplete last round are drawn again.
    pub(crate) fn below(&mut self, end: u64) -> u64 {
        if end < 2 {
            return 0;
        }
        let whole = u64::MAX - u64::MAX % end;
        loop {
            let number = self.next();
            if number < whole {
                return number % end;
            }
        }
    }

    /// The numbers `0..len` in an order drawn uniformly (Fisher and Yates).
    pub(crate) fn permutation(&mut self, len: u32) -> Vec<u32> {
        let mut order: Vec<u32> = (0..len).collect();
        for last in (1..order.len()).rev() {
            order.swap(last, self.below(last as u64 + 1) as usize);
        }
        order
    }

    /// At most `most` of the numbers `0..len`, drawn uniformly, in ascending order.
    pub(crate) fn choose(&mut self, len: u32, most: usize) -> Vec<u32> {
        let mut chosen = self.permutation(len);
        chosen.truncate(most);
        chosen.sort_unstable();
        chosen
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_seeds_and_places_divide_streams() {
        let first = |name: &str, seed: &[u8], place: &[u64]| Stream::new(name, seed, place).next();
        let all = [
            first("a", b"1", &[]),
            first("b", b"1", &[]),
            first("a", b"2", &[]),
            first("a1", b"", &[]),
            first("a", b"1", &[0]),
            first("a", b"1", &[0, 0]),
        ];
        for (index, one) in all.iter().enumerate() {
            assert!(!all[..index].contains(one), "{index}");
        }
        assert_eq!(first("a", b"1", &[0]), first("a", b"1", &[0]));
    }

    /// Goal: every order of three comes about equally often (chi-squared with 5 degrees of freedom).
    #[test]
    fn permutations_are_uniform() {
        let mut stream = Stream::new("test", b"", &[]);
        let mut counts = std::collections::BTreeMap::new();
        for _ in 0..6_000 {
            *counts.entry(stream.permutation(3)).or_insert(0.0) += 1.0;
        }
        assert_eq!(counts.len(), 6);
        let chi: f64 = counts.values().map(|count: &f64| (count - 1e3).powi(2) / 1e3).sum();
        assert!(chi < 20.5, "chi-squared {chi}: beyond the 0.999 quantile");
    }

    #[test]
    fn choices_are_bounded_and_sorted() {
        let mut stream = Stream::new("test", b"", &[]);
        assert_eq!(stream.choose(3, 8), [0, 1, 2]);
        let some = stream.choose(100, 10);
        assert!(some.len() == 10 && some.is_sorted() && some.iter().all(|&at| at < 100));
        assert_eq!((stream.below(0), stream.below(1)), (0, 0));
    }
}
