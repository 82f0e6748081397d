//! SentencePiece byte-pair encoding by scores, as llama.cpp does it for `tokenizer.ggml.model = llama`.
//!
//! Starting from single characters, the neighbouring pair whose joint text is the token of highest score
//! is merged, the leftmost among equals, until none is left; what is no token falls back to byte tokens.

use std::collections::BinaryHeap;

use super::BLANK;
use super::gguf::{scores, token_id};
use super::vocab::{TokenKind, Vocab};
use crate::error::EngineError;
use crate::files::gguf::Gguf;

/// Scores and byte tokens of a SentencePiece vocabulary.
pub(super) struct Spm {
    scores: Vec<f32>,
    /// The token of each byte.
    bytes: Vec<Option<u32>>,
    unknown: Option<u32>,
    add_space_prefix: bool,
}

impl Spm {
    pub(super) fn from_gguf(gguf: &Gguf<'_>, vocab: &Vocab) -> Result<Self, EngineError> {
        let scores = scores(gguf, vocab)?;
        let bytes = vocab.byte_tokens(|id| vocab.kind(id) == Some(TokenKind::Byte));
        let unknown = token_id(gguf, vocab, "unknown_token_id")?;
        let add_space_prefix = gguf.bool("tokenizer.ggml.add_space_prefix")?.unwrap_or(true);
        Ok(Self { scores, bytes, unknown, add_space_prefix })
    }

    /// Appends the tokens of `text`, which begins the input or follows a special token iff `first`.
    pub(super) fn encode(&self, vocab: &Vocab, text: &str, first: bool, out: &mut Vec<u32>) {
        let blank = BLANK.to_string();
        let prefix = if first && self.add_space_prefix { blank.as_str() } else { "" };
        let text = format!("{prefix}{}", text.replace(' ', &blank));
        for piece in self.pieces(vocab, &text) {
            match vocab.id(piece) {
                Some(id) => out.push(id),
                None => out.extend(piece.bytes().filter_map(|byte| {
                    self.bytes.get(usize::from(byte)).copied().flatten().or(self.unknown)
                })),
            }
        }
    }

    /// Merges characters into pieces.
    fn pieces<'t>(&self, vocab: &Vocab, text: &'t str) -> Vec<&'t str> {
        let mut symbols = Symbols::new(text);
        let mut pairs = BinaryHeap::new();
        for left in 0..symbols.items.len() {
            pairs.extend(self.pair(vocab, &symbols, left));
        }
        while let Some(pair) = pairs.pop() {
            // Stale when either side has been merged since: its length no longer adds up.
            if !symbols.is_current(&pair) {
                continue;
            }
            symbols.merge(pair.left);
            if let Some(before) = symbols.before(pair.left) {
                pairs.extend(self.pair(vocab, &symbols, before));
            }
            pairs.extend(self.pair(vocab, &symbols, pair.left));
        }
        symbols.into_pieces()
    }

    /// The merge of the symbol at `left` with the one after it, if it makes a token.
    fn pair(&self, vocab: &Vocab, symbols: &Symbols<'_>, left: usize) -> Option<Pair> {
        let joined = symbols.joined(left)?;
        let id = vocab.id(joined)?;
        let score = *self.scores.get(id as usize)?;
        Some(Pair { score, left, bytes: joined.len() })
    }
}

/// A possible merge; the greatest is the one to do next.
#[derive(Clone, Copy, Debug)]
struct Pair {
    score: f32,
    left: usize,
    bytes: usize,
}

impl Ord for Pair {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.score.total_cmp(&other.score).then(other.left.cmp(&self.left))
    }
}

impl PartialOrd for Pair {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Pair {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Pair {}

/// A linked list of pieces of a text. Merged-away symbols stay as empty entries.
struct Symbols<'t> {
    text: &'t str,
    items: Vec<Symbol>,
}

#[derive(Clone, Copy)]
struct Symbol {
    start: usize,
    len: usize,
    before: Option<usize>,
    after: Option<usize>,
}

impl<'t> Symbols<'t> {
    fn new(text: &'t str) -> Self {
        let mut items: Vec<Symbol> = text
            .char_indices()
            .enumerate()
            .map(|(index, (start, character))| Symbol {
                start,
                len: character.len_utf8(),
                before: index.checked_sub(1),
                after: Some(index + 1),
            })
            .collect();
        if let Some(last) = items.last_mut() {
            last.after = None;
        }
        Self { text, items }
    }

    fn at(&self, index: usize) -> Option<&Symbol> {
        self.items.get(index).filter(|symbol| symbol.len > 0)
    }

    fn before(&self, index: usize) -> Option<usize> {
        self.at(index)?.before
    }

    fn joined(&self, left: usize) -> Option<&'t str> {
        let symbol = self.at(left)?;
        let right = self.at(symbol.after?)?;
        self.text.get(symbol.start..symbol.start + symbol.len + right.len)
    }

    fn is_current(&self, pair: &Pair) -> bool {
        self.joined(pair.left).is_some_and(|joined| joined.len() == pair.bytes)
    }

    fn merge(&mut self, left: usize) {
        let Some(right) = self.at(left).and_then(|symbol| symbol.after) else { return };
        let Some(gone) = self.items.get(right).copied() else { return };
        if let Some(symbol) = self.items.get_mut(right) {
            symbol.len = 0;
        }
        if let Some(symbol) = self.items.get_mut(left) {
            symbol.len += gone.len;
            symbol.after = gone.after;
        }
        if let Some(next) = gone.after.and_then(|after| self.items.get_mut(after)) {
            next.before = Some(left);
        }
    }

    fn into_pieces(self) -> Vec<&'t str> {
        let live = self.items.iter().filter(|symbol| symbol.len > 0);
        live.filter_map(|symbol| self.text.get(symbol.start..symbol.start + symbol.len)).collect()
    }
}
