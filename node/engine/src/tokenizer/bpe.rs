//! Byte-pair encoding over token ids.
//!
//! A word begins as one token for each byte (byte-level vocabularies) or character, and the neighbouring
//! pair of lowest rank is merged, the leftmost among equals, until no pair has a rank (Sennrich et al.
//! 2016, <https://arxiv.org/abs/1508.07909>). Pairs wait in a heap, so a word of n symbols takes
//! O(n log n): hostile words of a megabyte, which are whole texts in vocabularies without a
//! pre-tokenizer, are only long.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};

use super::bytes;
use super::vocab::{Vocab, broken};
use crate::error::EngineError;

/// The largest known vocabulary has some 515,000 merges.
const MERGES_LEN_MAX: usize = 2 << 20;

/// What makes up a word before anything is merged.
enum Alphabet {
    /// The token of each byte, in vocabularies written in GPT-2's characters (`bytes`).
    Bytes(Vec<Option<u32>>),
    /// Characters; those without a token fall back to `<0xNN>` tokens where all of them exist.
    Characters { fallback: Vec<Option<u32>> },
}

/// How a BPE model treats words, beyond its merges.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Options {
    /// A word that is a token as a whole is taken as such, merges or not.
    pub(super) ignore_merges: bool,
    /// Stands for symbols without a token; without it they vanish.
    pub(super) unknown: Option<u32>,
    /// Neighbouring unknown symbols become one token.
    pub(super) fuse_unknown: bool,
}

/// The merges of a vocabulary.
pub(super) struct Bpe {
    alphabet: Alphabet,
    /// Rank and result of merging two tokens.
    merges: HashMap<(u32, u32), Merge>,
    options: Options,
}

#[derive(Clone, Copy)]
struct Merge {
    rank: u32,
    id: u32,
}

/// Working memory, kept between the words of one text.
#[derive(Default)]
pub(super) struct Scratch {
    symbols: Vec<Symbol>,
    /// Rank, left symbol, result; a pair is stale when its symbols have changed since.
    pairs: BinaryHeap<Reverse<(u32, u32, u32)>>,
    word: String,
}

/// A linked list of tokens; merged-away ones are marked [`GONE`].
#[derive(Clone, Copy)]
struct Symbol {
    id: u32,
    before: u32,
    after: u32,
}

/// No neighbour, or no token any more. Vocabularies and texts are far smaller.
const GONE: u32 = u32::MAX;

impl Bpe {
    /// Takes a byte-level vocabulary and its merges in order of rank.
    ///
    /// # Errors
    /// When a merge joins or makes something that is no token.
    pub(super) fn byte_level<'m>(
        vocab: &Vocab,
        merges: impl Iterator<Item = Result<(&'m str, &'m str), EngineError>>,
        options: Options,
    ) -> Result<Self, EngineError> {
        let mut buffer = [0; 4];
        let ids = (0..=255u8).map(|byte| vocab.id(bytes::to_char(byte).encode_utf8(&mut buffer)));
        Self::new(Alphabet::Bytes(ids.collect()), vocab, merges, options)
    }

    /// The same for a vocabulary of characters, with or without `<0xNN>` tokens to fall back to.
    pub(super) fn characters<'m>(
        vocab: &Vocab,
        merges: impl Iterator<Item = Result<(&'m str, &'m str), EngineError>>,
        byte_fallback: bool,
        options: Options,
    ) -> Result<Self, EngineError> {
        let fallback = if byte_fallback { vocab.byte_tokens(|_| true) } else { Vec::new() };
        Self::new(Alphabet::Characters { fallback }, vocab, merges, options)
    }

    fn new<'m>(
        alphabet: Alphabet,
        vocab: &Vocab,
        merges: impl Iterator<Item = Result<(&'m str, &'m str), EngineError>>,
        options: Options,
    ) -> Result<Self, EngineError> {
        let mut table =
            HashMap::with_capacity(merges.size_hint().1.unwrap_or(0).min(MERGES_LEN_MAX));
        let mut joined = String::new();
        // Vocabularies list what merges make in their order, so the next result is likely the next token:
        // looking there first saves a third of the look-ups.
        let mut next = 0;
        for (rank, merge) in (0u32..).zip(merges) {
            if rank as usize >= MERGES_LEN_MAX {
                return Err(broken(format!("more than {MERGES_LEN_MAX} merges")));
            }
            let (left, right) = merge?;
            joined.clear();
            joined.extend([left, right]);
            let id = |text: &str| {
                vocab.id(text).ok_or_else(|| {
                    let text: String = text.chars().take(64).collect();
                    broken(format!("merge {rank} needs {text:?}, which is no token"))
                })
            };
            let made = match vocab.text(next) {
                Some(text) if text == joined => next,
                _ => id(&joined)?,
            };
            next = made + 1;
            let merge = Merge { rank, id: made };
            table.entry((id(left)?, id(right)?)).or_insert(merge);
        }
        Ok(Self { alphabet, merges: table, options })
    }

    /// Appends the tokens of one word.
    pub(super) fn encode(
        &self,
        vocab: &Vocab,
        word: &str,
        scratch: &mut Scratch,
        out: &mut Vec<u32>,
    ) {
        if self.options.ignore_merges
            && let Some(id) = self.whole(vocab, word, &mut scratch.word)
        {
            out.push(id);
            return;
        }
        self.spell(vocab, word, &mut scratch.symbols);
        self.merge(scratch);
        out.extend(scratch.symbols.iter().map(|symbol| symbol.id).filter(|&id| id != GONE));
    }

    /// The token that a word is as a whole.
    fn whole(&self, vocab: &Vocab, word: &str, buffer: &mut String) -> Option<u32> {
        match self.alphabet {
            Alphabet::Characters { .. } => vocab.id(word),
            Alphabet::Bytes(_) => {
                buffer.clear();
                buffer.extend(word.bytes().map(bytes::to_char));
                vocab.id(buffer)
            }
        }
    }

    /// Writes the word as single symbols, not yet linked.
    fn spell(&self, vocab: &Vocab, word: &str, symbols: &mut Vec<Symbol>) {
        symbols.clear();
        let mut push = |id: u32| symbols.push(Symbol { id, before: GONE, after: GONE });
        // An unknown symbol is held back while another may follow and join it.
        let mut unknown = false;
        let mut pending = |unknown_now: bool, push: &mut dyn FnMut(u32)| {
            let Some(id) = self.options.unknown else { return };
            if unknown && !(unknown_now && self.options.fuse_unknown) {
                push(id);
            }
            unknown = unknown_now;
        };
        match &self.alphabet {
            Alphabet::Bytes(ids) => {
                for byte in word.bytes() {
                    let id = ids.get(usize::from(byte)).copied().flatten();
                    pending(id.is_none(), &mut push);
                    id.into_iter().for_each(&mut push);
                }
            }
            Alphabet::Characters { fallback } => {
                let mut buffer = [0; 4];
                for character in word.chars() {
                    let text = character.encode_utf8(&mut buffer);
                    if let Some(id) = vocab.id(text) {
                        pending(false, &mut push);
                        push(id);
                    } else if let Some(ids) = byte_ids(fallback, text) {
                        // The reference keeps an unknown symbol waiting across these.
                        ids.for_each(&mut push);
                    } else {
                        pending(true, &mut push);
                    }
                }
            }
        }
        pending(false, &mut push);
    }

    fn merge(&self, scratch: &mut Scratch) {
        let Scratch { symbols, pairs, .. } = scratch;
        let len = symbols.len() as u32;
        for (at, symbol) in (0u32..).zip(symbols.iter_mut()) {
            symbol.before = at.checked_sub(1).unwrap_or(GONE);
            symbol.after = if at + 1 < len { at + 1 } else { GONE };
        }
        pairs.clear();
        let pair = |symbols: &[Symbol], left: u32| {
            let symbol = symbols.get(left as usize)?;
            let after = symbols.get(symbol.after as usize)?;
            let merge = self.merges.get(&(symbol.id, after.id))?;
            Some(Reverse((merge.rank, left, merge.id)))
        };
        pairs.extend((0..len).filter_map(|left| pair(symbols, left)));
        while let Some(Reverse((_, left, id))) = pairs.pop() {
            // Stale when either side has been merged since, unless the pair that is there now makes the
            // same token: llama.cpp and the reference tokenizers both let that pass, so it decides ids.
            if pair(symbols, left).is_none_or(|Reverse((_, _, now))| now != id) {
                continue;
            }
            let Some(after) = symbols.get(left as usize).map(|symbol| symbol.after) else {
                continue;
            };
            let Some(gone) = symbols.get_mut(after as usize) else { continue };
            let next = gone.after;
            *gone = Symbol { id: GONE, before: GONE, after: GONE };
            let mut before = GONE;
            if let Some(symbol) = symbols.get_mut(left as usize) {
                symbol.id = id;
                symbol.after = next;
                before = symbol.before;
            }
            if let Some(symbol) = symbols.get_mut(next as usize) {
                symbol.before = left;
            }
            pairs.extend([before, left].into_iter().filter_map(|left| pair(symbols, left)));
        }
    }
}

/// The byte tokens of a character, if all of them exist.
fn byte_ids<'f>(
    fallback: &'f [Option<u32>],
    text: &'f str,
) -> Option<impl Iterator<Item = u32> + 'f> {
    let id = |byte: u8| fallback.get(usize::from(byte)).copied().flatten();
    text.bytes().all(|byte| id(byte).is_some()).then(|| text.bytes().filter_map(id))
}
