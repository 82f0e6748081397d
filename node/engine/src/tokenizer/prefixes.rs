//! Which tokens does a text begin with? The vocabulary in order of its texts, narrowed byte by byte.
//!
//! A sorted list of ids answers in one binary search per byte and takes four bytes per token, where a
//! trie of a hostile vocabulary could take hundreds.

use super::vocab::{TokenKind, Vocab, broken};
use crate::error::EngineError;

/// Longest token of models that try every token at every place: it bounds their work per byte of text.
/// SentencePiece's own default is 16 characters, the longest published pieces have some 60 bytes.
const TOKEN_BYTES_MAX: usize = 256;

/// Normal tokens sorted by text.
pub(super) struct Prefixes {
    ids: Vec<u32>,
    /// Where in `ids` the tokens begin whose first byte is at least this.
    firsts: Vec<u32>,
}

/// The tokens that begin with the bytes read so far.
#[derive(Clone, Copy)]
pub(super) struct Narrowed {
    start: usize,
    end: usize,
    depth: usize,
}

impl Prefixes {
    /// Sorts the first `len` tokens.
    ///
    /// # Errors
    /// When a token that text can match is too long.
    pub(super) fn new(vocab: &Vocab, len: usize) -> Result<Self, EngineError> {
        let mut ids: Vec<u32> = (0..vocab.len().min(len) as u32)
            .filter(|&id| vocab.kind(id) != Some(TokenKind::Unused) && vocab.text(id) != Some(""))
            .collect();
        let text = |id: u32| vocab.text(id).unwrap_or_default();
        if let Some(&id) = ids.iter().find(|&&id| text(id).len() > TOKEN_BYTES_MAX) {
            let bytes = text(id).len();
            return Err(broken(format!("token {id} has {bytes} bytes, at most {TOKEN_BYTES_MAX}")));
        }
        ids.sort_unstable_by(|&a, &b| text(a).as_bytes().cmp(text(b).as_bytes()));
        let firsts = (0..=256u32)
            .map(|byte| ids.partition_point(|&id| first_byte(text(id)) < byte) as u32)
            .collect();
        Ok(Self { ids, firsts })
    }

    /// All tokens, nothing read yet.
    pub(super) fn all(&self) -> Narrowed {
        Narrowed { start: 0, end: self.ids.len(), depth: 0 }
    }

    /// Reads one more byte; None when no token goes on with it.
    pub(super) fn narrow(&self, vocab: &Vocab, from: Narrowed, byte: u8) -> Option<Narrowed> {
        let (start, end) = if from.depth == 0 {
            let first = |at: usize| self.firsts.get(at).copied().unwrap_or(0) as usize;
            (first(usize::from(byte)), first(usize::from(byte) + 1))
        } else {
            let ids = self.ids.get(from.start..from.end)?;
            // A token that ends here comes before all that go on.
            let next = |id: &u32| vocab.text(*id).and_then(|text| text.as_bytes().get(from.depth));
            let start = ids.partition_point(|id| next(id).is_none_or(|&next| next < byte));
            let rest = ids.get(start..)?;
            let len = rest.partition_point(|id| next(id).is_none_or(|&next| next == byte));
            (from.start + start, from.start + start + len)
        };
        (start < end).then_some(Narrowed { start, end, depth: from.depth + 1 })
    }

    /// The token that consists of exactly the bytes read.
    pub(super) fn token(&self, vocab: &Vocab, at: Narrowed) -> Option<u32> {
        let id = *self.ids.get(at.start)?;
        (vocab.text(id)?.len() == at.depth).then_some(id)
    }
}

fn first_byte(text: &str) -> u32 {
    text.as_bytes().first().copied().unwrap_or(0).into()
}
