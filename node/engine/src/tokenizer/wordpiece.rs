//! BERT's WordPiece: the longest token that a word begins with, then the longest that continues it
//! (Devlin et al. 2019, `tokenization.py`). A word that cannot be spelt so is one unknown token.

use super::prefixes::{Narrowed, Prefixes};
use super::vocab::Vocab;
use crate::error::EngineError;

/// A WordPiece vocabulary.
pub(super) struct WordPiece {
    prefixes: Prefixes,
    unknown: u32,
    /// Where tokens that continue a word begin (`##`), and whether any does.
    continuing: Option<Narrowed>,
    word_chars_max: usize,
}

impl WordPiece {
    /// # Errors
    /// When a token is too long.
    pub(super) fn new(
        vocab: &Vocab,
        unknown: u32,
        continuing: &str,
        word_chars_max: usize,
    ) -> Result<Self, EngineError> {
        let prefixes = Prefixes::new(vocab, vocab.len())?;
        let start = Some(prefixes.all());
        let continuing = continuing
            .bytes()
            .fold(start, |from, byte| from.and_then(|from| prefixes.narrow(vocab, from, byte)));
        Ok(Self { prefixes, unknown, continuing, word_chars_max })
    }

    /// Appends the tokens of one word.
    pub(super) fn encode(&self, vocab: &Vocab, word: &str, out: &mut Vec<u32>) {
        let before = out.len();
        let mut rest = word;
        if word.chars().nth(self.word_chars_max).is_some() {
            out.push(self.unknown);
            return;
        }
        let mut from = Some(self.prefixes.all());
        while !rest.is_empty() {
            let Some((id, bytes)) = from.and_then(|from| self.longest(vocab, from, rest)) else {
                out.truncate(before);
                out.push(self.unknown);
                return;
            };
            out.push(id);
            rest = rest.get(bytes..).unwrap_or_default();
            from = self.continuing;
        }
    }

    /// The longest token that goes on from `from` as `text` does, and how much of it that takes.
    fn longest(&self, vocab: &Vocab, from: Narrowed, text: &str) -> Option<(u32, usize)> {
        let (mut longest, mut narrowed) = (None, from);
        for (len, byte) in (1..).zip(text.bytes()) {
            match self.prefixes.narrow(vocab, narrowed, byte) {
                Some(next) => narrowed = next,
                None => break,
            }
            // Tokens are whole characters, so a token that matches ends between characters.
            longest = self.prefixes.token(vocab, narrowed).map(|id| (id, len)).or(longest);
        }
        longest
    }
}
