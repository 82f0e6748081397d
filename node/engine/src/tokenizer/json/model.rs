//! The model part of `tokenizer.json`: vocabulary, merges, scores.

use std::borrow::Cow;
use std::fmt;
use std::marker::PhantomData;

use serde::Deserialize;
use serde::de::{Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};

use super::bad;
use crate::error::EngineError;
use crate::tokenizer::Model;
use crate::tokenizer::bpe::{Bpe, Options};
use crate::tokenizer::unigram::Unigram;
use crate::tokenizer::vocab::{TokenKind, Vocab, broken};
use crate::tokenizer::wordpiece::WordPiece;

/// BERT's own bound on words is 100 characters.
const WORD_CHARS_MAX: usize = 1_024;

/// A model as the file describes it.
pub(super) enum Spelling<'a> {
    Bpe(RawBpe<'a>),
    Unigram(RawUnigram<'a>),
    WordPiece(RawWordPiece<'a>),
}

/// What tells models apart; older files have no `type`.
#[derive(Deserialize)]
struct Traits<'a> {
    #[serde(default, borrow, rename = "type")]
    kind: Option<Cow<'a, str>>,
    #[serde(default)]
    merges: Option<IgnoredAny>,
    #[serde(default)]
    max_input_chars_per_word: Option<IgnoredAny>,
    #[serde(default)]
    unk_id: Option<IgnoredAny>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawBpe<'a> {
    #[serde(default, rename = "type")]
    _kind: IgnoredAny,
    #[serde(default)]
    dropout: Option<f64>,
    #[serde(default, borrow)]
    unk_token: Option<Cow<'a, str>>,
    #[serde(default, borrow)]
    continuing_subword_prefix: Option<Cow<'a, str>>,
    #[serde(default, borrow)]
    end_of_word_suffix: Option<Cow<'a, str>>,
    #[serde(default)]
    fuse_unk: bool,
    #[serde(default)]
    byte_fallback: bool,
    #[serde(default)]
    ignore_merges: bool,
    #[serde(borrow)]
    vocab: Entries<'a>,
    #[serde(borrow)]
    merges: Vec<Merge<'a>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawUnigram<'a> {
    #[serde(default, rename = "type")]
    _kind: IgnoredAny,
    #[serde(default)]
    unk_id: Option<u32>,
    #[serde(default)]
    byte_fallback: bool,
    #[serde(borrow)]
    vocab: Vec<Scored<'a>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawWordPiece<'a> {
    #[serde(default, rename = "type")]
    _kind: IgnoredAny,
    #[serde(borrow)]
    unk_token: Cow<'a, str>,
    #[serde(borrow)]
    continuing_subword_prefix: Cow<'a, str>,
    max_input_chars_per_word: usize,
    #[serde(borrow)]
    vocab: Entries<'a>,
}

/// Reads the model part.
///
/// # Errors
/// When it does not parse, or is of a kind that is not known, which is named.
pub(super) fn parse(text: &str) -> Result<Spelling<'_>, EngineError> {
    let refused = |error: serde_json::Error| bad("model", &error);
    let traits: Traits<'_> = serde_json::from_str(text).map_err(refused)?;
    let kind = match &traits.kind {
        Some(kind) => kind,
        None if traits.merges.is_some() => "BPE",
        None if traits.max_input_chars_per_word.is_some() => "WordPiece",
        None if traits.unk_id.is_some() => "Unigram",
        None => "of no type",
    };
    match kind {
        "BPE" => serde_json::from_str(text).map(Spelling::Bpe).map_err(refused),
        "Unigram" => serde_json::from_str(text).map(Spelling::Unigram).map_err(refused),
        "WordPiece" => serde_json::from_str(text).map(Spelling::WordPiece).map_err(refused),
        other => Err(EngineError::UnsupportedFeature {
            key: "tokenizer.json model".to_owned(),
            value: other.chars().take(64).collect(),
            reason: "known are BPE, Unigram and WordPiece",
        }),
    }
}

impl Spelling<'_> {
    /// The tokens with their ids.
    pub(super) fn tokens(&self) -> Box<dyn Iterator<Item = (&str, u32)> + '_> {
        match self {
            Self::Bpe(RawBpe { vocab, .. }) | Self::WordPiece(RawWordPiece { vocab, .. }) => {
                Box::new(vocab.0.iter().map(|(text, id)| (&**text, *id)))
            }
            Self::Unigram(raw) => {
                let texts = raw.vocab.iter().map(|scored| &*scored.0);
                Box::new(texts.zip(0u32..))
            }
        }
    }

    /// Builds the model over the whole vocabulary, in which it marks the token of the unknown.
    pub(super) fn build(self, vocab: &mut Vocab, byte_level: bool) -> Result<Model, EngineError> {
        let token = |vocab: &mut Vocab, text: &str| {
            let id = vocab
                .id(text)
                .ok_or_else(|| broken(format!("unk_token {text:.64} is no token")))?;
            if vocab.kind(id) == Some(TokenKind::Normal) {
                vocab.set_kind(id, TokenKind::Unknown);
            }
            Ok::<u32, EngineError>(id)
        };
        match self {
            Self::Bpe(raw) => {
                let unsupported = [
                    ("dropout", raw.dropout.is_some_and(|dropout| dropout != 0.0)),
                    ("continuing_subword_prefix", is_set(&raw.continuing_subword_prefix)),
                    ("end_of_word_suffix", is_set(&raw.end_of_word_suffix)),
                ];
                if let Some((key, _)) = unsupported.iter().find(|(_, is_set)| *is_set) {
                    return Err(EngineError::UnsupportedFeature {
                        key: "tokenizer.json model".to_owned(),
                        value: (*key).to_owned(),
                        reason: "no known model of our families sets it",
                    });
                }
                let unknown = raw.unk_token.as_deref().filter(|text| !text.is_empty());
                let options = Options {
                    ignore_merges: raw.ignore_merges,
                    unknown: unknown.map(|text| token(vocab, text)).transpose()?,
                    fuse_unknown: raw.fuse_unk,
                };
                let merges = raw.merges.iter().map(|merge| Ok((&*merge.0, &*merge.1)));
                Ok(Model::Bpe(match byte_level {
                    true => Bpe::byte_level(vocab, merges, options)?,
                    false => Bpe::characters(vocab, merges, raw.byte_fallback, options)?,
                }))
            }
            _ if byte_level => Err(EngineError::UnsupportedFeature {
                key: "tokenizer.json pre_tokenizer".to_owned(),
                value: "ByteLevel".to_owned(),
                reason: "known only before BPE",
            }),
            Self::Unigram(raw) => {
                let scores = raw.vocab.iter().map(|scored| scored.1).collect();
                Ok(Model::Unigram(Unigram::new(vocab, scores, raw.unk_id, raw.byte_fallback)?))
            }
            Self::WordPiece(raw) => {
                if raw.max_input_chars_per_word > WORD_CHARS_MAX {
                    return Err(broken(format!(
                        "max_input_chars_per_word is {}, at most {WORD_CHARS_MAX}",
                        raw.max_input_chars_per_word
                    )));
                }
                let unknown = token(vocab, &raw.unk_token)?;
                let (prefix, max) = (&raw.continuing_subword_prefix, raw.max_input_chars_per_word);
                Ok(Model::WordPiece(WordPiece::new(vocab, unknown, prefix, max)?))
            }
        }
    }
}

fn is_set(text: &Option<Cow<'_, str>>) -> bool {
    text.as_deref().is_some_and(|text| !text.is_empty())
}

/// A map from texts to ids as a list, borrowed from the file where it has no escapes.
pub(super) struct Entries<'a>(Vec<(Cow<'a, str>, u32)>);

impl<'de: 'a, 'a> Deserialize<'de> for Entries<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct List<'a>(PhantomData<&'a ()>);
        impl<'de: 'a, 'a> Visitor<'de> for List<'a> {
            type Value = Entries<'a>;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("a map from texts to ids")
            }

            fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<Self::Value, M::Error> {
                let mut entries = Vec::new();
                while let Some((Text(text), id)) = map.next_entry()? {
                    entries.push((text, id));
                }
                Ok(Entries(entries))
            }
        }
        deserializer.deserialize_map(List(PhantomData))
    }
}

/// Text that is borrowed where it can be; `Cow` alone would always be copied inside of other types.
struct Text<'a>(Cow<'a, str>);

impl<'de: 'a, 'a> Deserialize<'de> for Text<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Any<'a>(PhantomData<&'a ()>);
        impl<'de: 'a, 'a> Visitor<'de> for Any<'a> {
            type Value = Text<'a>;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("text")
            }

            fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Self::Value, E> {
                Ok(Text(Cow::Borrowed(text)))
            }

            fn visit_str<E>(self, text: &str) -> Result<Self::Value, E> {
                Ok(Text(Cow::Owned(text.to_owned())))
            }
        }
        deserializer.deserialize_str(Any(PhantomData))
    }
}

/// Two texts to merge, written as `["a", "b"]` or, in older files, as `"a b"`.
struct Merge<'a>(Cow<'a, str>, Cow<'a, str>);

impl<'de: 'a, 'a> Deserialize<'de> for Merge<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Pair<'a>(PhantomData<&'a ()>);
        impl<'de: 'a, 'a> Visitor<'de> for Pair<'a> {
            type Value = Merge<'a>;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("two texts with a blank between them, or a list of two texts")
            }

            fn visit_borrowed_str<E: serde::de::Error>(
                self,
                text: &'de str,
            ) -> Result<Self::Value, E> {
                match text.split_once(' ') {
                    Some((left, right)) if !right.contains(' ') => {
                        Ok(Merge(Cow::Borrowed(left), Cow::Borrowed(right)))
                    }
                    _ => Err(E::custom("a merge has no two parts")),
                }
            }

            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Self::Value, E> {
                match text.split_once(' ') {
                    Some((left, right)) if !right.contains(' ') => {
                        Ok(Merge(Cow::Owned(left.to_owned()), Cow::Owned(right.to_owned())))
                    }
                    _ => Err(E::custom("a merge has no two parts")),
                }
            }

            fn visit_seq<S: SeqAccess<'de>>(self, mut list: S) -> Result<Self::Value, S::Error> {
                let mut next = |index| -> Result<Cow<'a, str>, S::Error> {
                    let Text(text) = list
                        .next_element()?
                        .ok_or_else(|| serde::de::Error::invalid_length(index, &"two texts"))?;
                    Ok(text)
                };
                let (left, right) = (next(0)?, next(1)?);
                match list.next_element::<IgnoredAny>()? {
                    None => Ok(Merge(left, right)),
                    Some(_) => Err(serde::de::Error::invalid_length(3, &"two texts")),
                }
            }
        }
        deserializer.deserialize_any(Pair(PhantomData))
    }
}

/// A token of a unigram model and its score.
struct Scored<'a>(Cow<'a, str>, f64);

impl<'de: 'a, 'a> Deserialize<'de> for Scored<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let (Text(text), score) = Deserialize::deserialize(deserializer)?;
        Ok(Self(text, score))
    }
}
