//! SentencePiece's precompiled normalisation: a double-array trie from texts to their replacements.
//!
//! The format (`precompiled_charsmap`) is a length, the units of a Darts-clone double array
//! (<https://github.com/s-yata/darts-clone>), and replacements that end in NUL bytes. Units of a hostile
//! file may point anywhere, so each step is a checked look-up.

use unicode_segmentation::UnicodeSegmentation;

use super::normalize::push;
use super::vocab::broken;
use crate::error::EngineError;

/// The published maps have some 240 KiB.
const BYTES_MAX: usize = 4 << 20;
/// Longer clusters are replaced character by character; the reference's own bound.
const CLUSTER_BYTES_MAX: usize = 5;

/// A checked map.
pub(super) struct Charsmap {
    units: Vec<u32>,
    replacements: String,
}

impl Charsmap {
    /// # Errors
    /// When the lengths do not add up or the replacements are not text.
    pub(super) fn new(bytes: &[u8]) -> Result<Self, EngineError> {
        let damaged = || broken("precompiled_charsmap is damaged");
        if bytes.len() > BYTES_MAX {
            return Err(broken(format!("precompiled_charsmap exceeds {BYTES_MAX} bytes")));
        }
        let (len, rest) = bytes.split_first_chunk::<4>().ok_or_else(damaged)?;
        let len = u32::from_le_bytes(*len) as usize;
        let units = rest.get(..len).ok_or_else(damaged)?;
        let units = units.as_chunks::<4>().0.iter().map(|unit| u32::from_le_bytes(*unit)).collect();
        let replacements = rest.get(len..).ok_or_else(damaged)?;
        let replacements = std::str::from_utf8(replacements).map_err(|_| damaged())?.to_owned();
        Ok(Self { units, replacements })
    }

    /// Replaces grapheme clusters, and characters where the cluster has no replacement.
    ///
    /// # Errors
    /// When the result would exceed the bound of normalised text.
    pub(super) fn apply(&self, text: &str) -> Result<String, EngineError> {
        let mut out = String::with_capacity(text.len());
        for cluster in text.graphemes(true) {
            let whole = (cluster.len() <= CLUSTER_BYTES_MAX).then(|| self.replacement(cluster));
            if let Some(replacement) = whole.flatten() {
                push(&mut out, replacement)?;
                continue;
            }
            for character in cluster.chars() {
                let mut buffer = [0; 4];
                let text = &*character.encode_utf8(&mut buffer);
                push(&mut out, self.replacement(text).unwrap_or(text))?;
            }
        }
        Ok(out)
    }

    /// The replacement of the shortest beginning of `text` that has one.
    fn replacement(&self, text: &str) -> Option<&str> {
        let mut at = offset(*self.units.first()?);
        for byte in text.bytes().take_while(|&byte| byte != 0) {
            at ^= u32::from(byte);
            let unit = *self.units.get(at as usize)?;
            // The highest bit marks values, which no label equals.
            if unit & (1 << 31 | 0xff) != u32::from(byte) {
                return None;
            }
            at ^= offset(unit);
            if unit >> 8 & 1 == 1 {
                let start = (*self.units.get(at as usize)? & !(1 << 31)) as usize;
                let rest = self.replacements.get(start..)?;
                return Some(rest.split_once('\0').map_or(rest, |(text, _)| text));
            }
        }
        None
    }
}

/// Where the children of a unit begin, relative to it; large offsets are stored in units of 256.
fn offset(unit: u32) -> u32 {
    (unit >> 10) << ((unit & 1 << 9) >> 6)
}
