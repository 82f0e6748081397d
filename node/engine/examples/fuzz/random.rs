//! Numbers that a seed decides.

/// SplitMix64 (Steele et al. 2014).
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// Below `end`, which may be zero and then is what comes out.
    pub(crate) fn below(&mut self, end: usize) -> usize {
        if end == 0 { 0 } else { (self.next() % end as u64) as usize }
    }

    pub(crate) fn one_in(&mut self, chances: usize) -> bool {
        self.below(chances) == 0
    }

    /// One of a few things.
    pub(crate) fn pick<'s, T>(&mut self, things: &'s [T]) -> &'s T {
        &things[self.below(things.len())]
    }

    /// A number that tends to be where programs go wrong.
    pub(crate) fn number(&mut self) -> u64 {
        match self.below(4) {
            0 => self.next() % 300,
            1 => self.next(),
            2 => (1u64 << self.below(64)).wrapping_add(self.next() % 3).wrapping_sub(1),
            _ => *self.pick(&[0, 1, 255, 256, 65_535, 65_536, u64::MAX, 1 << 31, 1 << 32, 1 << 63]),
        }
    }

    /// Two places in something of this length, in order, not too far apart.
    pub(crate) fn range(&mut self, len: usize) -> std::ops::Range<usize> {
        let start = self.below(len + 1);
        let longest = if self.one_in(4) { len } else { 16 };
        let end = (start + self.below(longest + 1)).min(len);
        start..end
    }
}
