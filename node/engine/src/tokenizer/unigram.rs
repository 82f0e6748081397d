//! SentencePiece's unigram model: the way of cutting a text whose scores add up to the most.
//!
//! Scores are logarithms of probabilities, so the best way is a shortest path from the beginning of the
//! text to its end (Kudo 2018, <https://arxiv.org/abs/1804.10959>), found left to right in one pass. The
//! work is bounded by the longest token for each byte of text.

use super::prefixes::Prefixes;
use super::vocab::{Vocab, broken};
use crate::error::EngineError;

/// How much worse than the worst token an unknown character is.
const UNKNOWN_PENALTY: f64 = 10.0;

/// Scores of a vocabulary.
pub(super) struct Unigram {
    prefixes: Prefixes,
    scores: Vec<f64>,
    unknown: u32,
    unknown_score: f64,
    /// The token of each byte, to which unknown characters fall back; empty when they do not.
    bytes: Vec<Option<u32>>,
}

/// The best way to reach a place in the text.
#[derive(Clone, Copy)]
struct Reached {
    score: f64,
    from: usize,
    id: u32,
}

impl Unigram {
    /// Takes the scores of the model's own tokens, which are the first of the vocabulary; those after
    /// them are found in text before the model sees it.
    ///
    /// # Errors
    /// When there are too many scores, one is not finite, or there is no token for the unknown.
    pub(super) fn new(
        vocab: &Vocab,
        scores: Vec<f64>,
        unknown: Option<u32>,
        byte_fallback: bool,
    ) -> Result<Self, EngineError> {
        if scores.len() > vocab.len() || scores.iter().any(|score| !score.is_finite()) {
            return Err(broken("a unigram model needs one finite score for each token"));
        }
        let unknown = unknown
            .filter(|&id| (id as usize) < scores.len())
            .ok_or_else(|| broken("a unigram model needs a token for the unknown (unk_id)"))?;
        let lowest = scores.iter().copied().fold(f64::INFINITY, f64::min);
        Ok(Self {
            prefixes: Prefixes::new(vocab, scores.len())?,
            unknown_score: lowest - UNKNOWN_PENALTY,
            scores,
            unknown,
            bytes: if byte_fallback { vocab.byte_tokens(|_| true) } else { Vec::new() },
        })
    }

    /// Appends the tokens of one word.
    pub(super) fn encode(&self, vocab: &Vocab, word: &str, out: &mut Vec<u32>) {
        let reached = self.reach(vocab, word);
        let mut tokens = Vec::new();
        let mut end = word.len();
        while let Some(step) = reached.get(end).copied().flatten().filter(|step| step.from < end) {
            tokens.push((step.id, step.from..end));
            end = step.from;
        }
        // Neighbouring unknown characters are one unknown text.
        let mut unknown = 0..0;
        for (id, range) in tokens.into_iter().rev() {
            if id == self.unknown {
                unknown = if unknown.is_empty() { range } else { unknown.start..range.end };
            } else {
                self.spell_unknown(word.get(std::mem::take(&mut unknown)), out);
                out.push(id);
            }
        }
        self.spell_unknown(word.get(unknown), out);
    }

    /// Appends the bytes of a text without tokens if all of them have one, else the unknown token.
    fn spell_unknown(&self, text: Option<&str>, out: &mut Vec<u32>) {
        let Some(text) = text.filter(|text| !text.is_empty()) else { return };
        let id = |byte: u8| self.bytes.get(usize::from(byte)).copied().flatten();
        match text.bytes().map(id).collect::<Option<Vec<u32>>>() {
            Some(ids) => out.extend(ids),
            None => out.push(self.unknown),
        }
    }

    /// The best way to each place that a token ends at.
    fn reach(&self, vocab: &Vocab, word: &str) -> Vec<Option<Reached>> {
        let mut reached: Vec<Option<Reached>> = vec![None; word.len() + 1];
        for (start, character) in word.char_indices() {
            let so_far = match start {
                0 => 0.0,
                _ => reached.get(start).copied().flatten().map_or(0.0, |step| step.score),
            };
            let mut offer = |end: usize, id: u32, score: f64| {
                let score = so_far + score;
                if let Some(slot) = reached.get_mut(end)
                    && slot.is_none_or(|best| score > best.score)
                {
                    *slot = Some(Reached { score, from: start, id });
                }
            };
            let mut is_known = false;
            let mut narrowed = self.prefixes.all();
            let rest = word.as_bytes().get(start..).unwrap_or_default();
            for (end, &byte) in (start + 1..).zip(rest) {
                match self.prefixes.narrow(vocab, narrowed, byte) {
                    Some(next) => narrowed = next,
                    None => break,
                }
                if let Some(id) = self.prefixes.token(vocab, narrowed)
                    && let Some(&score) = self.scores.get(id as usize)
                {
                    offer(end, id, score);
                    is_known |= end == start + character.len_utf8();
                }
            }
            if !is_known {
                offer(start + character.len_utf8(), self.unknown, self.unknown_score);
            }
        }
        reached
    }
}
