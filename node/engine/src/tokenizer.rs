//! Text to token ids and back, built from GGUF metadata, with the ids that llama.cpp gives.
//!
//! Special tokens in the input are recognised (a rendered chat template consists of them), so a raw
//! prompt can contain them too. Two kinds of model are known: byte-level byte-pair encoding
//! (`tokenizer.ggml.model = gpt2`) and SentencePiece (`llama`).

mod bytes;
mod pre;
mod spm;
mod vocab;

use tokenizers::Model as _;
use tokenizers::models::bpe::BPE;

use self::pre::PreTokenizer;
use self::spm::Spm;
use self::vocab::{TokenKind, Vocab, strings};
use crate::error::EngineError;
use crate::files::gguf::Gguf;
use crate::files::metadata::missing;

/// Longest text taken for tokenising. The longest context known (1 Mi tokens) of the densest prose fits.
pub(crate) const INPUT_BYTES_MAX: usize = 2 << 20;
/// Special tokens are searched for one by one; the most that a known vocabulary has is about 6,400.
const SPECIALS_LEN_MAX: usize = 16_384;

/// A model's tokenizer.
pub(crate) struct Tokenizer {
    vocab: Vocab,
    model: TokenModel,
    /// Special tokens, longest text first.
    specials: Vec<u32>,
    add_bos: bool,
}

enum TokenModel {
    ByteLevel { pre: PreTokenizer, bpe: Box<BPE> },
    SentencePiece(Spm),
}

/// A piece of input: already a token, or still text.
enum Fragment<'t> {
    Token(u32),
    Text(&'t str),
}

impl Tokenizer {
    /// # Errors
    /// When the file has no tokenizer, one of an unknown kind (named), or one that contradicts itself.
    pub(crate) fn from_gguf(gguf: &Gguf<'_>) -> Result<Self, EngineError> {
        let key = "tokenizer.ggml.model";
        let kind = gguf.string(key)?.ok_or_else(|| missing(key))?;
        if !matches!(kind, "gpt2" | "llama") {
            return Err(EngineError::UnsupportedFeature {
                key: key.to_owned(),
                value: kind.chars().take(64).collect(),
                reason: "known are gpt2 (byte-level) and llama (SentencePiece)",
            });
        }
        let vocab = Vocab::from_gguf(gguf)?;
        let (model, add_bos_default) = match kind {
            "gpt2" => byte_level(gguf, &vocab)?,
            _ => (TokenModel::SentencePiece(Spm::from_gguf(gguf, &vocab)?), true),
        };
        let add_bos = gguf.bool("tokenizer.ggml.add_bos_token")?.unwrap_or(add_bos_default);
        let specials = specials(&vocab)?;
        Ok(Self { vocab, model, specials, add_bos })
    }

    /// Texts of the tokens that begin and end sequences, empty where there is none.
    pub(crate) fn bos_text(&self) -> &str {
        self.vocab.bos.and_then(|id| self.vocab.text(id)).unwrap_or_default()
    }

    pub(crate) fn eos_text(&self) -> &str {
        self.vocab.eos.and_then(|id| self.vocab.text(id)).unwrap_or_default()
    }

    /// Whether the model ends its answer with this token.
    pub(crate) fn is_end(&self, id: u32) -> bool {
        self.vocab.ends.binary_search(&id).is_ok()
    }

    /// The tokens of a prompt, with the beginning-of-sequence token where the model wants one and the
    /// text does not already begin with it.
    pub(crate) fn encode_prompt(&self, text: &str) -> Result<Vec<u32>, EngineError> {
        let mut ids = self.encode(text)?;
        if let Some(bos) = self.vocab.bos.filter(|_| self.add_bos)
            && ids.first() != Some(&bos)
        {
            ids.insert(0, bos);
        }
        Ok(ids)
    }

    /// The tokens of `text`, special tokens recognised, none added.
    pub(crate) fn encode(&self, text: &str) -> Result<Vec<u32>, EngineError> {
        if text.len() > INPUT_BYTES_MAX {
            let problem = format!("{} bytes of input, at most {INPUT_BYTES_MAX}", text.len());
            return Err(EngineError::InvalidRequest(problem));
        }
        let mut ids = Vec::new();
        let mut after_special = true;
        for fragment in self.fragments(text) {
            match fragment {
                Fragment::Token(id) => {
                    ids.push(id);
                    after_special = true;
                }
                Fragment::Text(text) => {
                    self.encode_text(text, after_special, &mut ids)?;
                    after_special = false;
                }
            }
        }
        Ok(ids)
    }

    /// The bytes that a token stands for in the answer: nothing for control tokens, possibly part of a
    /// character for others.
    pub(crate) fn bytes(&self, id: u32) -> Vec<u8> {
        let (Some(text), Some(kind)) = (self.vocab.text(id), self.vocab.kind(id)) else {
            return Vec::new();
        };
        match (kind, &self.model) {
            (TokenKind::Control | TokenKind::Unknown | TokenKind::Unused, _) => Vec::new(),
            (TokenKind::UserDefined, _) => text.as_bytes().to_vec(),
            (_, TokenModel::ByteLevel { .. }) => bytes::from_chars(text),
            (_, TokenModel::SentencePiece(_)) => spm::token_bytes(text, kind),
        }
    }

    /// Cuts special tokens out of the text, the longest first, as llama.cpp does.
    fn fragments<'t>(&self, text: &'t str) -> Vec<Fragment<'t>> {
        let mut fragments = vec![Fragment::Text(text)];
        for &id in &self.specials {
            let Some(special) = self.vocab.text(id) else { continue };
            if !text.contains(special) {
                continue;
            }
            fragments = fragments
                .into_iter()
                .flat_map(|fragment| match fragment {
                    Fragment::Token(_) => vec![fragment],
                    Fragment::Text(text) => cut(text, special, id),
                })
                .collect();
        }
        fragments.retain(|fragment| !matches!(fragment, Fragment::Text("")));
        fragments
    }

    fn encode_text(
        &self,
        text: &str,
        after_special: bool,
        ids: &mut Vec<u32>,
    ) -> Result<(), EngineError> {
        match &self.model {
            TokenModel::ByteLevel { pre, bpe } => {
                for word in pre.words(text) {
                    let tokens = bpe
                        .tokenize(&bytes::to_chars(word.as_bytes()))
                        .map_err(|error| EngineError::Tokenizer(error.to_string()))?;
                    ids.extend(tokens.iter().map(|token| token.id));
                }
            }
            TokenModel::SentencePiece(spm) => spm.encode(&self.vocab, text, after_special, ids),
        }
        Ok(())
    }
}

fn byte_level(gguf: &Gguf<'_>, vocab: &Vocab) -> Result<(TokenModel, bool), EngineError> {
    let key = "tokenizer.ggml.pre";
    let pre = PreTokenizer::new(gguf.string(key)?.ok_or_else(|| missing(key))?)?;
    let merges = strings(gguf, "tokenizer.ggml.merges")?
        .iter()
        .map(|merge| {
            // The left part may itself begin with a blank.
            let mut blanks = merge.match_indices(' ').map(|(at, _)| at).filter(|&at| at > 0);
            let at = blanks.next();
            at.and_then(|at| Some((merge.get(..at)?.to_owned(), merge.get(at + 1..)?.to_owned())))
                .ok_or_else(|| EngineError::Tokenizer("a merge has no two parts".to_owned()))
        })
        .collect::<Result<Vec<_>, _>>()?;
    let ids: Vec<(String, u32)> = vocab.ids.iter().map(|(text, id)| (text.clone(), *id)).collect();
    let bpe = BPE::builder()
        .vocab_and_merges(ids.into_iter().collect::<tokenizers::models::bpe::Vocab>(), merges)
        .ignore_merges(pre.ignore_merges)
        // Its cache would keep words of one researcher's prompt beyond their job.
        .cache_capacity(0)
        .build()
        .map_err(|error| EngineError::Tokenizer(error.to_string()))?;
    let add_bos = pre.add_bos;
    Ok((TokenModel::ByteLevel { pre, bpe: Box::new(bpe) }, add_bos))
}

fn specials(vocab: &Vocab) -> Result<Vec<u32>, EngineError> {
    let special = |kind: &TokenKind| {
        matches!(kind, TokenKind::Control | TokenKind::UserDefined | TokenKind::Unknown)
    };
    let mut specials: Vec<u32> = (0u32..)
        .zip(&vocab.kinds)
        .filter(|(id, kind)| special(kind) && vocab.text(*id) != Some(""))
        .map(|(id, _)| id)
        .collect();
    if specials.len() > SPECIALS_LEN_MAX {
        let problem = format!("{} special tokens, at most {SPECIALS_LEN_MAX}", specials.len());
        return Err(EngineError::Tokenizer(problem));
    }
    specials.sort_by_key(|&id| (std::cmp::Reverse(vocab.text(id).map_or(0, str::len)), id));
    Ok(specials)
}

fn cut<'t>(text: &'t str, special: &str, id: u32) -> Vec<Fragment<'t>> {
    let mut fragments = Vec::new();
    for (index, piece) in text.split(special).enumerate() {
        if index > 0 {
            fragments.push(Fragment::Token(id));
        }
        fragments.push(Fragment::Text(piece));
    }
    fragments
}

#[cfg(test)]
mod tests;
