//! A vocabulary: texts, kinds, and the tokens with a special role, from whichever file they came.
//!
//! Texts lie end to end in one string and are found through a table of ids, so that a vocabulary of a
//! quarter of a million tokens is a handful of allocations. The table hashes with a key of its own per
//! process: a file cannot be made whose texts all collide.

use std::hash::{BuildHasher, RandomState};

use hashbrown::HashTable;
use hashbrown::hash_table::Entry;

use crate::error::EngineError;

/// The longest published tokens are runs of some 500 blanks.
const TOKEN_BYTES_MAX: usize = 4_096;
/// The largest known vocabulary has 262,144 tokens; ids above this would also make for empty tables.
pub(super) const VOCAB_LEN_MAX: usize = 1 << 20;
/// All texts together; the largest known vocabulary takes 3 MiB.
const TEXT_BYTES_MAX: usize = 64 << 20;

/// Control tokens by which models end their turn under other keys than `eos_token_id`, as in llama.cpp.
const END_TEXTS: &[&str] = &[
    "<|im_end|>",
    "<|eot_id|>",
    "<|eom_id|>",
    "<|end|>",
    "<|endoftext|>",
    "<|end_of_text|>",
    "<end_of_turn>",
    "<|return|>",
    "<EOT>",
];

/// What a token is, by `tokenizer.ggml.token_type` or by what `tokenizer.json` says of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum TokenKind {
    Normal,
    /// Stands for what the vocabulary cannot express.
    Unknown,
    /// Structure, such as the end of a turn; never shown.
    Control,
    /// Matched in text before all else, shown as it stands.
    UserDefined,
    Unused,
    /// `<0x0A>`: one byte.
    Byte,
}

impl TokenKind {
    pub(super) fn from_code(code: u64) -> Option<Self> {
        Some(match code {
            1 => Self::Normal,
            2 => Self::Unknown,
            3 => Self::Control,
            4 => Self::UserDefined,
            5 => Self::Unused,
            6 => Self::Byte,
            _ => return None,
        })
    }
}

/// Tokens by id and by text. Texts are unique; ids without a token are [`TokenKind::Unused`].
pub(super) struct Vocab {
    /// All texts, in order of their ids.
    texts: String,
    /// Where each text ends.
    text_ends: Vec<u32>,
    kinds: Vec<TokenKind>,
    index: HashTable<u32>,
    hasher: RandomState,
    pub(super) bos: Option<u32>,
    pub(super) eos: Option<u32>,
    /// Sorted ids at which generation stops.
    ends: Vec<u32>,
}

impl Vocab {
    /// An empty vocabulary with room for `len` tokens.
    ///
    /// # Errors
    /// When `len` is beyond the bound.
    pub(super) fn new(len: usize) -> Result<Self, EngineError> {
        if len > VOCAB_LEN_MAX {
            return Err(broken(format!("{len} tokens, at most {VOCAB_LEN_MAX}")));
        }
        Ok(Self {
            texts: String::new(),
            text_ends: Vec::with_capacity(len),
            kinds: Vec::with_capacity(len),
            index: HashTable::with_capacity(len),
            hasher: RandomState::new(),
            bos: None,
            eos: None,
            ends: Vec::new(),
        })
    }

    /// Adds the token of the next id; `None` leaves the id without one.
    ///
    /// # Errors
    /// When there are too many tokens, this one is too long, or another has the same text.
    pub(super) fn push(&mut self, text: Option<&str>, kind: TokenKind) -> Result<(), EngineError> {
        let id = self.len();
        let bytes = text.map_or(0, str::len);
        if bytes > TOKEN_BYTES_MAX {
            return Err(broken(format!("token {id} has {bytes} bytes, at most {TOKEN_BYTES_MAX}")));
        }
        if id >= VOCAB_LEN_MAX || self.texts.len() + bytes > TEXT_BYTES_MAX {
            return Err(broken(format!(
                "more than {VOCAB_LEN_MAX} tokens or {TEXT_BYTES_MAX} bytes of text"
            )));
        }
        // Both numbers fit 32 bits by the bounds just checked.
        let end = (self.texts.len() + bytes) as u32;
        if let Some(text) = text {
            let (texts, ends, hasher) = (&self.texts, &self.text_ends, &self.hasher);
            let slot = self.index.entry(
                hasher.hash_one(text),
                |&other| slice(texts, ends, other) == Some(text),
                |&other| hasher.hash_one(slice(texts, ends, other).unwrap_or_default()),
            );
            match slot {
                Entry::Occupied(other) => {
                    let other = other.get();
                    return Err(broken(format!("tokens {other} and {id} have the same text")));
                }
                Entry::Vacant(slot) => slot.insert(id as u32),
            };
            self.texts.push_str(text);
        }
        self.text_ends.push(end);
        self.kinds.push(if text.is_some() { kind } else { TokenKind::Unused });
        Ok(())
    }

    /// Number of ids, those without a token included.
    pub(super) fn len(&self) -> usize {
        self.kinds.len()
    }

    pub(super) fn id(&self, text: &str) -> Option<u32> {
        let equal = |&id: &u32| slice(&self.texts, &self.text_ends, id) == Some(text);
        self.index.find(self.hasher.hash_one(text), equal).copied()
    }

    /// The text of a token; empty for an id without one.
    pub(super) fn text(&self, id: u32) -> Option<&str> {
        slice(&self.texts, &self.text_ends, id)
    }

    pub(super) fn kind(&self, id: u32) -> Option<TokenKind> {
        self.kinds.get(id as usize).copied()
    }

    pub(super) fn set_kind(&mut self, id: u32, kind: TokenKind) {
        if let Some(slot) = self.kinds.get_mut(id as usize) {
            *slot = kind;
        }
    }

    /// The tokens of one kind, by id.
    pub(super) fn of_kind(&self, wanted: TokenKind) -> impl Iterator<Item = (u32, &str)> {
        (0u32..)
            .zip(&self.kinds)
            .filter(move |(_, kind)| **kind == wanted)
            .filter_map(|(id, _)| Some((id, self.text(id)?)))
    }

    /// The token `<0xNN>` of each byte, where the vocabulary has it and `accept` agrees.
    pub(super) fn byte_tokens(&self, accept: impl Fn(u32) -> bool) -> Vec<Option<u32>> {
        (0..=255u8)
            .map(|byte| self.id(&format!("<0x{byte:02X}>")).filter(|&id| accept(id)))
            .collect()
    }

    /// Ends generation at the given tokens and at control tokens that are known to end a turn.
    pub(super) fn set_ends(&mut self, given: impl IntoIterator<Item = u32>) {
        let by_text = END_TEXTS.iter().filter_map(|text| self.id(text));
        let control = by_text.filter(|&id| self.kind(id) == Some(TokenKind::Control));
        let mut ends: Vec<u32> = given.into_iter().chain(control).collect();
        ends.sort_unstable();
        ends.dedup();
        self.ends = ends;
    }

    /// Whether generation stops at this token.
    pub(super) fn is_end(&self, id: u32) -> bool {
        self.ends.binary_search(&id).is_ok()
    }
}

fn slice<'t>(texts: &'t str, ends: &[u32], id: u32) -> Option<&'t str> {
    let end = *ends.get(id as usize)?;
    let start = match (id as usize).checked_sub(1) {
        Some(before) => *ends.get(before)?,
        None => 0,
    };
    texts.get(start as usize..end as usize)
}

/// The error for a tokenizer that contradicts itself.
pub(super) fn broken(problem: impl Into<String>) -> EngineError {
    EngineError::Tokenizer(problem.into())
}
