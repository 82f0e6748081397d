//! Tokenizers from GGUF metadata, with the ids that llama.cpp gives.
//!
//! Two kinds of model are known: byte-level byte-pair encoding (`tokenizer.ggml.model = gpt2`) and
//! SentencePiece with scores (`llama`).

use super::added::{Added, Rules};
use super::bpe::{Bpe, Options};
use super::pre::PreTokenizer;
use super::spm::Spm;
use super::vocab::{TokenKind, Vocab, broken};
use super::{BLANK, Model, Surface, Tokenizer};
use crate::error::EngineError;
use crate::files::gguf::{Gguf, Value};
use crate::files::metadata::missing;

impl Tokenizer {
    /// # Errors
    /// When the file has no tokenizer, one of an unknown kind (named), or one that contradicts itself.
    pub(crate) fn from_gguf(gguf: &Gguf<'_>) -> Result<Self, EngineError> {
        let key = "tokenizer.ggml.model";
        let kind = gguf.string(key)?.ok_or_else(|| missing(key))?;
        let parts = match kind {
            "gpt2" => byte_level,
            "llama" => sentence_piece,
            _ => {
                return Err(EngineError::UnsupportedFeature {
                    key: key.to_owned(),
                    value: kind.chars().take(64).collect(),
                    reason: "known are gpt2 (byte-level) and llama (SentencePiece)",
                });
            }
        };
        let vocab = vocabulary(gguf)?;
        let parts = parts(gguf, &vocab)?;
        let added = [TokenKind::Control, TokenKind::UserDefined, TokenKind::Unknown];
        let added = added.into_iter().flat_map(|kind| vocab.of_kind(kind));
        let added = Added::new(added.map(|(id, text)| (id, text, Rules::default())))?;
        let wanted =
            |key, default| -> Result<bool, EngineError> { Ok(gguf.bool(key)?.unwrap_or(default)) };
        let begin = wanted("tokenizer.ggml.add_bos_token", parts.add_bos)?;
        let end = wanted("tokenizer.ggml.add_eos_token", false)?;
        Ok(Self {
            added,
            added_normalised: Added::default(),
            normalizer: Vec::new(),
            pre: parts.pre,
            model: parts.model,
            surface: parts.surface,
            before: vocab.bos.filter(|_| begin).into_iter().collect(),
            after: vocab.eos.filter(|_| end).into_iter().collect(),
            vocab,
        })
    }
}

/// What differs between the kinds of model.
struct Parts {
    pre: PreTokenizer,
    model: Model,
    surface: Surface,
    add_bos: bool,
}

fn byte_level(gguf: &Gguf<'_>, vocab: &Vocab) -> Result<Parts, EngineError> {
    let key = "tokenizer.ggml.pre";
    let (pre, implied) = PreTokenizer::named(gguf.string(key)?.ok_or_else(|| missing(key))?)?;
    let merges = strings(gguf, "tokenizer.ggml.merges")?.map(|merge| {
        let merge = merge?;
        // The left part may itself begin with a blank.
        let at = merge.match_indices(' ').map(|(at, _)| at).find(|&at| at > 0);
        at.and_then(|at| Some((merge.get(..at)?, merge.get(at + 1..)?)))
            .ok_or_else(|| broken("a merge has no two parts"))
    });
    let options = Options { ignore_merges: implied.ignore_merges, ..Options::default() };
    let bpe = Bpe::byte_level(vocab, merges, options)?;
    Ok(Parts { pre, model: Model::Bpe(bpe), surface: Surface::ByteLevel, add_bos: implied.add_bos })
}

fn sentence_piece(gguf: &Gguf<'_>, vocab: &Vocab) -> Result<Parts, EngineError> {
    Ok(Parts {
        pre: PreTokenizer::default(),
        model: Model::SentencePiece(Spm::from_gguf(gguf, vocab)?),
        surface: Surface::Blanks(BLANK),
        add_bos: true,
    })
}

fn vocabulary(gguf: &Gguf<'_>) -> Result<Vocab, EngineError> {
    let texts = strings(gguf, "tokenizer.ggml.tokens")?;
    let len = texts.size_hint().1.unwrap_or(0);
    let kinds = kinds(gguf, len)?;
    let mut vocab = Vocab::new(len)?;
    for (text, kind) in texts.zip(kinds) {
        vocab.push(Some(text?), kind)?;
    }
    vocab.bos = token_id(gguf, &vocab, "bos_token_id")?;
    vocab.eos = token_id(gguf, &vocab, "eos_token_id")?;
    let (turn, message) =
        (token_id(gguf, &vocab, "eot_token_id")?, token_id(gguf, &vocab, "eom_token_id")?);
    let given = [vocab.eos, turn, message];
    vocab.set_ends(given.into_iter().flatten());
    Ok(vocab)
}

/// A token with a special role.
pub(super) fn token_id(
    gguf: &Gguf<'_>,
    vocab: &Vocab,
    key: &str,
) -> Result<Option<u32>, EngineError> {
    let key = format!("tokenizer.ggml.{key}");
    match gguf.u32(&key)? {
        Some(id) if id as usize >= vocab.len() => {
            let problem = format!("{id} is not among the {} tokens", vocab.len());
            Err(EngineError::metadata(key, problem))
        }
        id => Ok(id),
    }
}

/// The scores of SentencePiece models, one for each token.
pub(super) fn scores(gguf: &Gguf<'_>, vocab: &Vocab) -> Result<Vec<f32>, EngineError> {
    let key = "tokenizer.ggml.scores";
    let array = gguf.array(key)?.ok_or_else(|| missing(key))?;
    let scores: Vec<f32> = array
        .iter()
        .filter_map(|value| match value {
            Value::Float(score) if !score.is_nan() => Some(score as f32),
            _ => None,
        })
        .collect();
    if scores.len() != vocab.len() {
        let problem = format!("{} numbers for {} tokens", scores.len(), vocab.len());
        return Err(EngineError::metadata(key, problem));
    }
    Ok(scores)
}

/// A required array of strings, borrowed from the file.
fn strings<'g>(
    gguf: &Gguf<'g>,
    key: &'static str,
) -> Result<impl Iterator<Item = Result<&'g str, EngineError>> + use<'g>, EngineError> {
    let array = gguf.array(key)?.ok_or_else(|| missing(key))?;
    Ok(array.iter().map(move |value| match value {
        Value::String(text) => Ok(text),
        _ => Err(EngineError::metadata(key, "holds something other than strings")),
    }))
}

fn kinds(gguf: &Gguf<'_>, len: usize) -> Result<Vec<TokenKind>, EngineError> {
    let key = "tokenizer.ggml.token_type";
    let array = gguf.array(key)?.ok_or_else(|| missing(key))?;
    if array.len() != len {
        let problem = format!("{} entries for {len} tokens", array.len());
        return Err(EngineError::metadata(key, problem));
    }
    array
        .iter()
        .map(|value| {
            let code = match value {
                Value::Unsigned(code) => Some(code),
                Value::Signed(code) => u64::try_from(code).ok(),
                _ => None,
            };
            code.and_then(TokenKind::from_code)
                .ok_or_else(|| EngineError::metadata(key, "holds an unknown token type"))
        })
        .collect()
}
