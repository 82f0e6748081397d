//! Random numbers: a counter-based stream for what is reproducible, a keyed one for what is secret.
//!
//! Both are pure functions of a key and a place, so nothing has to be carried from step to step: a run that
//! resumes, and a layer that is computed twice, see the same numbers.

use chacha20::ChaCha20;
use chacha20::cipher::{KeyIvInit, StreamCipher};
use sha2::{Digest, Sha256};
use zeroize::{Zeroize, ZeroizeOnDrop};

/// Philox4x32-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"): four words for each
/// counter.
pub(crate) fn philox(key: u64, counter: [u32; 4]) -> [u32; 4] {
    const MULTIPLIERS: [u32; 2] = [0xd251_1f53, 0xcd9e_8d57];
    const WEYL: [u32; 2] = [0x9e37_79b9, 0xbb67_ae85];
    let (mut words, mut key) = (counter, [key as u32, (key >> 32) as u32]);
    for round in 0..10 {
        if round > 0 {
            key = [key[0].wrapping_add(WEYL[0]), key[1].wrapping_add(WEYL[1])];
        }
        let product = |word: u32, at: usize| u64::from(word) * u64::from(MULTIPLIERS[at]);
        let (first, second) = (product(words[0], 0), product(words[2], 1));
        words = [
            (second >> 32) as u32 ^ words[1] ^ key[0],
            second as u32,
            (first >> 32) as u32 ^ words[3] ^ key[1],
            first as u32,
        ];
    }
    words
}

/// What a place in the reproducible stream is for; each purpose has a stream of its own.
const INITIAL: u32 = u32::MAX;

/// Values in `-limit..limit` for element after element of module number `module`.
pub(crate) fn uniform(seed: u64, module: u32, limit: f32) -> impl Iterator<Item = f32> {
    (0u32..)
        .flat_map(move |block| philox(seed, [block, module, 0, INITIAL]))
        .map(move |word| ((word >> 8) as f32 / (1 << 23) as f32 - 1.0) * limit)
}

/// The dropout masks of one micro-batch.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Dropout {
    seed: u64,
    step: u32,
    micro: u32,
    /// A word below this drops its element.
    threshold: u32,
    /// What remains is multiplied by `1 / (1 - p)`.
    scale: f32,
}

impl Dropout {
    /// None when nothing is dropped. Steps are below 2³¹, so no mask meets [`uniform`]'s stream.
    pub(crate) fn new(seed: u64, part: f64, step: u64, micro: u32) -> Option<Self> {
        let threshold = (part * 4_294_967_296.0) as u32;
        let scale = (1.0 / (1.0 - part)) as f32;
        (part > 0.0).then_some(Self { seed, step: step as u32, micro, threshold, scale })
    }

    /// `to[i] = from[i] / (1 - p)` where element `first + i` of this module's input stays, else 0; `first` is
    /// a multiple of four.
    pub(crate) fn apply(&self, module: u32, first: usize, from: &[f32], to: &mut [f32]) {
        let blocks = from.chunks(4).zip(to.chunks_mut(4));
        for (block, (from, to)) in (first as u32 / 4..).zip(blocks) {
            let words = philox(self.seed, [block, module, self.micro, self.step]);
            for ((to, from), word) in to.iter_mut().zip(from).zip(words) {
                *to = if word < self.threshold { 0.0 } else { from * self.scale };
            }
        }
    }
}

/// The secret from which noise and the sampling of subjects are drawn: 32 bytes of the operating system's
/// entropy, which the caller brings and keeps with the data, never with the adapter. Who knows it can take
/// the noise off again.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub struct NoiseKey([u8; 32]);

impl std::fmt::Debug for NoiseKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("NoiseKey(..)")
    }
}

/// What a keyed stream is for.
#[derive(Clone, Copy)]
pub(crate) enum Purpose {
    Sample = 1,
    Noise = 2,
}

impl NoiseKey {
    /// Takes over 32 bytes of entropy.
    #[must_use]
    pub fn new(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// Names the key without giving it away, for snapshots.
    pub(crate) fn commitment(&self) -> [u8; 32] {
        let mut hash = Sha256::new();
        hash.update(b"allmend noise key v1");
        hash.update(self.0);
        hash.finalize().into()
    }

    /// The stream of one step: ChaCha20 (RFC 8439) with step and purpose as nonce, 256 GiB long.
    pub(crate) fn stream(&self, step: u64, purpose: Purpose) -> Keyed {
        let mut nonce = [0; 12];
        nonce[..8].copy_from_slice(&step.to_le_bytes());
        nonce[8] = purpose as u8;
        let cipher = ChaCha20::new(&self.0.into(), &nonce.into());
        Keyed { cipher, block: [0; 4_096], used: 4_096 }
    }
}

/// Secret words, one after the other.
pub(crate) struct Keyed {
    cipher: ChaCha20,
    block: [u8; 4_096],
    used: usize,
}

impl Keyed {
    pub(crate) fn word(&mut self) -> u64 {
        if self.used == self.block.len() {
            self.block.fill(0);
            self.cipher.apply_keystream(&mut self.block);
            self.used = 0;
        }
        let mut bytes = [0; 8];
        bytes.copy_from_slice(&self.block[self.used..self.used + 8]);
        self.used += 8;
        u64::from_le_bytes(bytes)
    }

    /// True with probability `part`, up to 2⁻⁶⁴.
    pub(crate) fn chance(&mut self, part: f64) -> bool {
        // A word is below 2^64, so certainty needs no special case but the cast's saturation does.
        part >= 1.0 || self.word() < (part * 18_446_744_073_709_551_616.0) as u64
    }

    /// Two independent standard normal values (Box and Muller 1958), each the half-sum of four draws.
    ///
    /// A float from one draw betrays in its last bits which sums are possible (Mironov 2012); summing several
    /// hides that (Holohan and Braghin 2021, arXiv 2107.10138).
    pub(crate) fn normals(&mut self) -> (f64, f64) {
        let mut sum = (0.0, 0.0);
        for _ in 0..4 {
            // In (0, 1]: the logarithm is finite.
            let radius = ((self.word() >> 11) + 1) as f64 / (1u64 << 53) as f64;
            let angle = (self.word() >> 11) as f64 / (1u64 << 53) as f64 * std::f64::consts::TAU;
            let radius = (-2.0 * radius.ln()).sqrt();
            sum = (sum.0 + radius * angle.cos(), sum.1 + radius * angle.sin());
        }
        (sum.0 / 2.0, sum.1 / 2.0)
    }
}

impl Drop for Keyed {
    fn drop(&mut self) {
        self.block.zeroize();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: the known answers of the authors' library (Random123).
    #[test]
    fn philox_gives_the_known_answers() {
        let cases = [
            (0, [0; 4], [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]),
            (u64::MAX, [u32::MAX; 4], [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]),
            (
                0x299f_31d0_a409_3822,
                [0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344],
                [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1],
            ),
        ];
        for (key, counter, expected) in cases {
            assert_eq!(philox(key, counter), expected);
        }
    }

    /// Goal: masks drop the part asked for, differ between places, and do not depend on how they are cut.
    #[test]
    fn masks_are_what_was_asked_for() {
        let from = vec![1.0f32; 40_000];
        let mask = |step, micro, module| {
            let mut to = vec![9.0; from.len()];
            let dropout = Dropout::new(7, 0.25, step, micro).unwrap();
            let (head, tail) = to.split_at_mut(1_000);
            dropout.apply(module, 1_000, &from[1_000..], tail);
            dropout.apply(module, 0, &from[..1_000], head);
            to
        };
        let first = mask(0, 0, 0);
        let dropped = first.iter().filter(|&&value| value == 0.0).count();
        assert!((9_700..10_300).contains(&dropped), "{dropped}");
        assert!(first.iter().all(|&value| value == 0.0 || (value - 4.0 / 3.0).abs() < 1e-6));
        for other in [mask(1, 0, 0), mask(0, 1, 0), mask(0, 0, 1)] {
            assert_ne!(first, other);
        }
        assert_eq!(first, mask(0, 0, 0));
        assert_eq!(Dropout::new(7, 0.0, 0, 0), None);
    }

    /// Goal: moments and tails of the noise are a normal distribution's; steps and purposes differ.
    #[test]
    fn noise_is_standard_normal() {
        let key = NoiseKey::new([3; 32]);
        let mut stream = key.stream(5, Purpose::Noise);
        let values: Vec<f64> =
            (0..100_000).flat_map(|_| <[f64; 2]>::from(stream.normals())).collect();
        let mean = |power: i32| {
            values.iter().map(|value| value.powi(power)).sum::<f64>() / values.len() as f64
        };
        // Standard errors are 0.0022, 0.0032, 0.0087 and 0.022.
        assert!(mean(1).abs() < 0.011 && (mean(2) - 1.0).abs() < 0.016);
        assert!(mean(3).abs() < 0.044 && (mean(4) - 3.0).abs() < 0.11);
        let beyond = values.iter().filter(|value| value.abs() > 1.959_964).count();
        assert!((9_500..10_500).contains(&beyond), "{beyond}");
        let first = |step, purpose| key.stream(step, purpose).word();
        assert_ne!(first(5, Purpose::Noise), first(6, Purpose::Noise));
        assert_ne!(first(5, Purpose::Noise), first(5, Purpose::Sample));
        assert_eq!(format!("{key:?}"), "NoiseKey(..)");
    }

    #[test]
    fn chances_are_kept() {
        let mut stream = NoiseKey::new([1; 32]).stream(0, Purpose::Sample);
        let hits = (0..100_000).filter(|_| stream.chance(0.3)).count();
        assert!((29_200..30_800).contains(&hits), "{hits}");
        assert!((0..1_000).all(|_| stream.chance(1.0)));
    }
}
