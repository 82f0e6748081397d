//! Text to token ids and back, from GGUF metadata with the ids that llama.cpp gives, or from
//! `tokenizer.json` with those of the Hugging Face `tokenizers` crate (the oracle of our tests).
//!
//! That crate itself is not used: it panics on damaged files, backtracks in expressions that come with
//! them, and takes several times as long to build a vocabulary. Everything here is a pipeline: tokens
//! that are found in text before all else (`added`), normalisation (`normalize`), cutting into words
//! (`pre`, `split`), and a model that spells each word (`bpe`, `spm`, `unigram`, `wordpiece`).
//!
//! Special tokens in the input are recognised (a rendered chat template consists of them), so a raw
//! prompt can contain them too.
//!
//! # Bounds
//! Texts of at most 2 MiB, which may become 8 MiB when normalised; vocabularies of at most 2^20 tokens
//! of at most 4 KiB; files of at most 64 MiB. Building takes memory in proportion to the file, at most
//! some six times its size. Encoding takes O(n log n) time in the length of the text, with a factor of
//! at most 256 for the models that try every token at every place, and some 64 bytes per byte of text.

mod added;
mod bpe;
mod bytes;
mod charsmap;
pub(crate) mod folder;
mod gguf;
mod json;
mod normalize;
mod pre;
mod prefixes;
mod split;
mod spm;
mod unigram;
mod vocab;
mod wordpiece;

use std::borrow::Cow;

use self::added::{Added, Fragment};
use self::bpe::{Bpe, Scratch};
use self::pre::PreTokenizer;
use self::spm::Spm;
use self::unigram::Unigram;
use self::vocab::{TokenKind, Vocab};
use self::wordpiece::WordPiece;
use crate::error::EngineError;

/// Longest text taken for tokenising. The longest context known (1 Mi tokens) of the densest prose fits.
pub(crate) const INPUT_BYTES_MAX: usize = 2 << 20;
/// SentencePiece's visible blank.
const BLANK: char = '\u{2581}';

/// A model's tokenizer.
pub(crate) struct Tokenizer {
    vocab: Vocab,
    /// Tokens to find in the text as it stands.
    added: Added,
    /// Tokens to find in what normalisation has made of the rest.
    added_normalised: Added,
    normalizer: Vec<normalize::Step>,
    pre: PreTokenizer,
    model: Model,
    surface: Surface,
    /// Tokens that go before every input.
    before: Vec<u32>,
    /// Tokens that go after every input that is a whole document.
    after: Vec<u32>,
}

/// How a word becomes tokens.
enum Model {
    Bpe(Bpe),
    SentencePiece(Spm),
    Unigram(Unigram),
    WordPiece(WordPiece),
}

/// How the texts of tokens stand for text.
enum Surface {
    /// As they are.
    Plain,
    /// In GPT-2's characters for bytes.
    ByteLevel,
    /// With this character for a blank.
    Blanks(char),
    /// With a blank before all but those that begin with this.
    Continued(String),
}

impl Tokenizer {
    /// Number of ids; an embedding may have more rows, whose ids stand for no text.
    pub(crate) fn len(&self) -> usize {
        self.vocab.len()
    }

    /// Texts of the tokens that begin and end sequences, empty where there is none.
    pub(crate) fn bos_text(&self) -> &str {
        self.vocab.bos.and_then(|id| self.vocab.text(id)).unwrap_or_default()
    }

    /// See [`Self::bos_text`].
    pub(crate) fn eos_text(&self) -> &str {
        self.vocab.eos.and_then(|id| self.vocab.text(id)).unwrap_or_default()
    }

    /// The token that ends sequences, if there is one.
    pub(crate) fn eos(&self) -> Option<u32> {
        self.vocab.eos
    }

    /// Whether the model ends its answer with this token.
    pub(crate) fn is_end(&self, id: u32) -> bool {
        self.vocab.is_end(id)
    }

    /// The tokens of a prompt, with what the model wants at the beginning of a sequence where the text
    /// does not already begin with it.
    ///
    /// # Errors
    /// As [`Self::encode`].
    pub(crate) fn encode_prompt(&self, text: &str) -> Result<Vec<u32>, EngineError> {
        let mut ids = self.encode(text)?;
        if !ids.starts_with(&self.before) {
            ids.splice(..0, self.before.iter().copied());
        }
        Ok(ids)
    }

    /// The tokens of a whole document: as a prompt, with what the model wants at the end.
    ///
    /// # Errors
    /// As [`Self::encode`].
    pub(crate) fn encode_document(&self, text: &str) -> Result<Vec<u32>, EngineError> {
        let mut ids = self.encode_prompt(text)?;
        ids.extend(&self.after);
        Ok(ids)
    }

    /// The tokens of `text`, special tokens recognised, none added.
    ///
    /// # Errors
    /// When the text is too long, or becomes so when normalised.
    pub(crate) fn encode(&self, text: &str) -> Result<Vec<u32>, EngineError> {
        self.encode_at(text, Place { begins: true, after_token: true })
    }

    /// The tokens of `text` where it goes on from other text, as an answer does: without the blank that
    /// some models put before the beginning.
    ///
    /// # Errors
    /// As [`Self::encode`].
    pub(crate) fn encode_continuation(&self, text: &str) -> Result<Vec<u32>, EngineError> {
        self.encode_at(text, Place { begins: false, after_token: false })
    }

    fn encode_at(&self, text: &str, mut place: Place) -> Result<Vec<u32>, EngineError> {
        if text.len() > INPUT_BYTES_MAX {
            let problem = format!("{} bytes of input, at most {INPUT_BYTES_MAX}", text.len());
            return Err(EngineError::InvalidRequest(problem));
        }
        let mut ids = Vec::new();
        let mut scratch = Scratch::default();
        for fragment in self.added.fragments(text) {
            match fragment {
                Fragment::Token(id) => ids.push(id),
                Fragment::Text(text) => self.encode_text(text, place, &mut scratch, &mut ids)?,
            }
            let after_token = matches!(fragment, Fragment::Token(_));
            place = Place { begins: false, after_token };
        }
        Ok(ids)
    }

    /// The bytes that a token stands for in the answer: nothing for control tokens, possibly part of a
    /// character for others.
    pub(crate) fn bytes(&self, id: u32) -> Vec<u8> {
        let (Some(text), Some(kind)) = (self.vocab.text(id), self.vocab.kind(id)) else {
            return Vec::new();
        };
        match kind {
            TokenKind::Control | TokenKind::Unknown | TokenKind::Unused => return Vec::new(),
            TokenKind::UserDefined if matches!(self.surface, Surface::ByteLevel) => {
                return text.as_bytes().to_vec();
            }
            TokenKind::Byte => {
                let hex = text.strip_prefix("<0x").and_then(|rest| rest.strip_suffix('>'));
                if let Some(byte) = hex.and_then(|hex| u8::from_str_radix(hex, 16).ok()) {
                    return vec![byte];
                }
            }
            TokenKind::Normal | TokenKind::UserDefined => {}
        }
        match &self.surface {
            Surface::Plain => text.as_bytes().to_vec(),
            Surface::ByteLevel => bytes::from_chars(text),
            Surface::Blanks(blank) => text.replace(*blank, " ").into_bytes(),
            Surface::Continued(prefix) => match text.strip_prefix(prefix.as_str()) {
                Some(rest) => rest.as_bytes().to_vec(),
                None => format!(" {text}").into_bytes(),
            },
        }
    }

    fn encode_text(
        &self,
        text: &str,
        place: Place,
        scratch: &mut Scratch,
        ids: &mut Vec<u32>,
    ) -> Result<(), EngineError> {
        let mut text = Cow::Borrowed(text);
        for step in &self.normalizer {
            text = Cow::Owned(step.apply(&text)?);
        }
        let mut begins = place.begins;
        for fragment in self.added_normalised.fragments(&text) {
            match fragment {
                Fragment::Token(id) => ids.push(id),
                Fragment::Text(text) => {
                    for word in self.pre.words(Cow::Borrowed(text), begins) {
                        self.encode_word(&word, place, scratch, ids);
                    }
                }
            }
            begins = false;
        }
        Ok(())
    }

    fn encode_word(&self, word: &str, place: Place, scratch: &mut Scratch, ids: &mut Vec<u32>) {
        match &self.model {
            Model::Bpe(bpe) => bpe.encode(&self.vocab, word, scratch, ids),
            Model::SentencePiece(spm) => spm.encode(&self.vocab, word, place.after_token, ids),
            Model::Unigram(unigram) => unigram.encode(&self.vocab, word, ids),
            Model::WordPiece(pieces) => pieces.encode(&self.vocab, word, ids),
        }
    }
}

/// Where in the input a text lies.
#[derive(Clone, Copy)]
struct Place {
    /// At the very beginning.
    begins: bool,
    /// At the beginning or behind a token that was found in the text.
    after_token: bool,
}

#[cfg(test)]
mod tests;
