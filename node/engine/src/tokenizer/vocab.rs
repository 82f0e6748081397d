//! The vocabulary of a GGUF file: texts, kinds, scores, and the tokens with a special role.

use std::collections::HashMap;

use crate::error::EngineError;
use crate::files::gguf::{Gguf, Value};
use crate::files::metadata::missing;

/// The longest published tokens are runs of some 500 blanks.
const TOKEN_BYTES_MAX: usize = 4_096;

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

/// What a token is, by `tokenizer.ggml.token_type`.
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
    fn from_code(code: u64) -> Option<Self> {
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

/// Tokens by id and by text. Texts are unique.
pub(super) struct Vocab {
    pub(super) texts: Vec<String>,
    pub(super) kinds: Vec<TokenKind>,
    pub(super) ids: HashMap<String, u32>,
    pub(super) bos: Option<u32>,
    pub(super) eos: Option<u32>,
    /// Sorted ids at which generation stops.
    pub(super) ends: Vec<u32>,
}

impl Vocab {
    pub(super) fn from_gguf(gguf: &Gguf<'_>) -> Result<Self, EngineError> {
        let texts = strings(gguf, "tokenizer.ggml.tokens")?;
        let mut ids = HashMap::with_capacity(texts.len());
        for (id, text) in (0u32..).zip(&texts) {
            if text.len() > TOKEN_BYTES_MAX {
                let problem =
                    format!("token {id} has {} bytes, at most {TOKEN_BYTES_MAX}", text.len());
                return Err(EngineError::Tokenizer(problem));
            }
            if let Some(other) = ids.insert(text.clone(), id) {
                let problem = format!("tokens {other} and {id} have the same text");
                return Err(EngineError::Tokenizer(problem));
            }
        }
        let kinds = kinds(gguf, texts.len())?;
        let id = |key: &str| -> Result<Option<u32>, EngineError> {
            let key = format!("tokenizer.ggml.{key}");
            match gguf.u32(&key)? {
                Some(id) if id as usize >= texts.len() => Err(EngineError::metadata(
                    key,
                    format!("{id} is not among the {} tokens", texts.len()),
                )),
                id => Ok(id),
            }
        };
        let (bos, eos) = (id("bos_token_id")?, id("eos_token_id")?);
        let mut ends: Vec<u32> =
            [eos, id("eot_token_id")?, id("eom_token_id")?].into_iter().flatten().collect();
        let by_text = END_TEXTS.iter().filter_map(|text| ids.get(*text).copied());
        ends.extend(by_text.filter(|&id| kinds.get(id as usize) == Some(&TokenKind::Control)));
        ends.sort_unstable();
        ends.dedup();
        Ok(Self { texts, kinds, ids, bos, eos, ends })
    }

    pub(super) fn text(&self, id: u32) -> Option<&str> {
        self.texts.get(id as usize).map(String::as_str)
    }

    pub(super) fn kind(&self, id: u32) -> Option<TokenKind> {
        self.kinds.get(id as usize).copied()
    }
}

/// A required array of strings.
pub(super) fn strings(gguf: &Gguf<'_>, key: &str) -> Result<Vec<String>, EngineError> {
    let array = gguf.array(key)?.ok_or_else(|| missing(key))?;
    array
        .iter()
        .map(|value| match value {
            Value::String(text) => Ok(text.to_owned()),
            _ => Err(EngineError::metadata(key, "holds something other than strings")),
        })
        .collect()
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
