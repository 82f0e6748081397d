//! Tokenizers from `tokenizer.json`, the format of the Hugging Face `tokenizers` crate.
//!
//! Each part of the pipeline is either understood or refused by its name, as is each of its settings.
//! What only matters to offsets, training or batches (`trim_offsets`, `dropout` of 0, `truncation`,
//! `padding`) is read over.

mod model;
mod steps;

use std::borrow::Cow;

use serde::Deserialize;
use serde::de::IgnoredAny;

use self::model::Spelling;
use super::added::{Added, Rules};
use super::vocab::{TokenKind, VOCAB_LEN_MAX, Vocab, broken};
use super::{Surface, Tokenizer};
use crate::error::EngineError;

/// The largest known file has some 33 MiB.
pub(super) const FILE_BYTES_MAX: usize = 64 << 20;
/// Longest part that is read whole; the largest known, a precompiled map, has some 400 KiB.
const PART_BYTES_MAX: usize = 8 << 20;

/// What other files of a model say about its tokens.
#[derive(Clone, Debug, Default)]
pub(super) struct Roles {
    pub(super) bos: Option<Role>,
    pub(super) eos: Option<Role>,
    /// Further tokens at which generation stops.
    pub(super) ends: Vec<u32>,
    pub(super) add_bos: Option<bool>,
    pub(super) add_eos: Option<bool>,
}

/// A token by its text or by its id.
#[derive(Clone, Debug)]
pub(super) enum Role {
    Text(String),
    Id(u32),
}

/// The parts of the file, still as text.
#[derive(Default)]
struct Parts<'a> {
    added_tokens: Option<&'a str>,
    normalizer: Option<&'a str>,
    pre_tokenizer: Option<&'a str>,
    post_processor: Option<&'a str>,
    decoder: Option<&'a str>,
    model: Option<&'a str>,
}

impl<'a> Parts<'a> {
    fn read(bytes: &'a [u8]) -> Result<Self, EngineError> {
        let text = std::str::from_utf8(bytes).map_err(|_| broken("tokenizer.json is not UTF-8"))?;
        let mut parts = Self::default();
        members(text, &mut |key, value| {
            let slot = match key {
                "version" | "truncation" | "padding" => return Ok(()),
                "added_tokens" => &mut parts.added_tokens,
                "normalizer" => &mut parts.normalizer,
                "pre_tokenizer" => &mut parts.pre_tokenizer,
                "post_processor" => &mut parts.post_processor,
                "decoder" => &mut parts.decoder,
                "model" => &mut parts.model,
                other => {
                    let key = other.chars().take(64).collect::<String>();
                    return Err(broken(format!("tokenizer.json has an unknown key {key:?}")));
                }
            };
            match slot.replace(value) {
                None => Ok(()),
                Some(_) => Err(broken(format!("tokenizer.json has two members {key}"))),
            }
        })?;
        Ok(parts)
    }

    /// Reads a part that may be absent or null.
    fn optional<T: Deserialize<'a>>(
        key: &str,
        text: Option<&'a str>,
    ) -> Result<Option<T>, EngineError> {
        text.map_or(Ok(None), |text| part(key, text))
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct AddedToken<'a> {
    id: u32,
    #[serde(borrow)]
    content: Cow<'a, str>,
    single_word: bool,
    lstrip: bool,
    rstrip: bool,
    normalized: bool,
    special: bool,
}

impl Tokenizer {
    /// # Errors
    /// When the file is too large, does not parse, uses something unknown (named), or contradicts itself.
    pub(super) fn from_json(bytes: &[u8], roles: &Roles) -> Result<Self, EngineError> {
        if bytes.len() > FILE_BYTES_MAX {
            let problem =
                format!("tokenizer.json has {} bytes, at most {FILE_BYTES_MAX}", bytes.len());
            return Err(broken(problem));
        }
        let file = Parts::read(bytes)?;
        let normalizer = match Parts::optional("normalizer", file.normalizer)? {
            Some(raw) => steps::normalizer(raw)?,
            None => Vec::new(),
        };
        let (pre, byte_level) = match Parts::optional("pre_tokenizer", file.pre_tokenizer)? {
            Some(raw) => steps::pre_tokenizer(raw)?,
            None => Default::default(),
        };
        let added_tokens: Vec<AddedToken<'_>> =
            Parts::optional("added_tokens", file.added_tokens)?.unwrap_or_default();
        let model = model::parse(file.model.ok_or_else(|| broken("tokenizer.json has no model"))?)?;
        let mut vocab = vocabulary(&model, &added_tokens)?;
        let surface = match Parts::optional("decoder", file.decoder)? {
            Some(raw) => steps::surface(raw, &mut vocab)?,
            None if byte_level => Surface::ByteLevel,
            None => Surface::Plain,
        };
        let (before, after) = match Parts::optional("post_processor", file.post_processor)? {
            Some(raw) => steps::around(raw, &vocab)?,
            None => Default::default(),
        };
        let mut contents = Vec::new();
        for token in added_tokens.iter().filter(|token| token.normalized) {
            let mut content = token.content.clone().into_owned();
            for step in &normalizer {
                content = step.apply(&content)?;
            }
            contents.push((token.id, content, token.rules()));
        }
        let raw = added_tokens.iter().filter(|token| !token.normalized);
        let mut tokenizer = Self {
            added: Added::new(raw.map(|token| (token.id, &*token.content, token.rules())))?,
            added_normalised: Added::new(
                contents.iter().map(|(id, content, rules)| (*id, content.as_str(), *rules)),
            )?,
            normalizer,
            pre,
            model: model.build(&mut vocab, byte_level)?,
            surface,
            before,
            after,
            vocab,
        };
        tokenizer.assign(roles)?;
        Ok(tokenizer)
    }

    /// Reads a `tokenizer.json` of which no other file says anything.
    ///
    /// # Errors
    /// When the file is too large, does not parse, uses something unknown (named), or contradicts itself.
    pub(crate) fn from_json_alone(bytes: &[u8]) -> Result<Self, EngineError> {
        Self::from_json(bytes, &Roles::default())
    }

    /// Gives tokens the roles that other files know of.
    fn assign(&mut self, roles: &Roles) -> Result<(), EngineError> {
        let vocab = &mut self.vocab;
        let id = |vocab: &Vocab, key: &str, role: &Option<Role>| match role {
            None => Ok(None),
            Some(Role::Id(id)) => Ok(Some(*id).filter(|&id| (id as usize) < vocab.len())),
            Some(Role::Text(text)) => vocab.id(text).map(Some).ok_or_else(|| {
                let text: String = text.chars().take(64).collect();
                EngineError::metadata(key, format!("{text:?} is no token"))
            }),
        };
        vocab.bos = id(vocab, "bos_token", &roles.bos)?;
        vocab.eos = id(vocab, "eos_token", &roles.eos)?;
        vocab.set_ends(vocab.eos.into_iter().chain(roles.ends.iter().copied()));
        // What the configuration says about the beginning and the end goes before the post-processor's
        // own, which older files do not have and newer ones contradict.
        adjust(&mut self.before, vocab.bos, roles.add_bos, |ids, bos| ids.insert(0, bos));
        adjust(&mut self.after, vocab.eos, roles.add_eos, Vec::push);
        Ok(())
    }
}

fn adjust(
    ids: &mut Vec<u32>,
    token: Option<u32>,
    wanted: Option<bool>,
    add: impl Fn(&mut Vec<u32>, u32),
) {
    match (token, wanted) {
        (Some(token), Some(true)) if !ids.contains(&token) => add(ids, token),
        (Some(token), Some(false)) => ids.retain(|&id| id != token),
        _ => {}
    }
}

impl AddedToken<'_> {
    fn rules(&self) -> Rules {
        Rules { single_word: self.single_word, strips_left: self.lstrip, strips_right: self.rstrip }
    }
}

/// Puts the tokens of the model and the added ones into the order of their ids.
fn vocabulary(model: &Spelling<'_>, added: &[AddedToken<'_>]) -> Result<Vocab, EngineError> {
    let mut slots: Vec<Option<(&str, TokenKind)>> = Vec::new();
    let mut place = |id: u32, text, kind| -> Result<(), EngineError> {
        let at = id as usize;
        if at >= VOCAB_LEN_MAX {
            return Err(broken(format!("token id {id}, at most {}", VOCAB_LEN_MAX - 1)));
        }
        if slots.len() <= at {
            slots.resize(at + 1, None);
        }
        match slots.get_mut(at) {
            Some(Some((other, _))) if *other != text => {
                Err(broken(format!("token id {id} is given to two texts")))
            }
            Some(slot) => {
                *slot = Some((text, kind));
                Ok(())
            }
            None => Ok(()),
        }
    };
    for (text, id) in model.tokens() {
        place(id, text, TokenKind::Normal)?;
    }
    for token in added {
        let kind = if token.special { TokenKind::Control } else { TokenKind::UserDefined };
        place(token.id, &token.content, kind)?;
    }
    let mut vocab = Vocab::new(slots.len())?;
    for slot in slots {
        match slot {
            Some((text, kind)) => vocab.push(Some(text), kind)?,
            None => vocab.push(None, TokenKind::Unused)?,
        }
    }
    Ok(vocab)
}

/// Reads one part of the file.
fn part<'a, T: Deserialize<'a>>(key: &str, text: &'a str) -> Result<T, EngineError> {
    if text.len() > PART_BYTES_MAX {
        return Err(broken(format!("{key} has {} bytes, at most {PART_BYTES_MAX}", text.len())));
    }
    serde_json::from_str(text).map_err(|error| bad(key, &error))
}

/// Gives each member of a JSON object with its value as text, so that nothing of a part is held in
/// memory before its size is known to be sensible.
fn members<'a>(
    text: &'a str,
    member: &mut dyn FnMut(&str, &'a str) -> Result<(), EngineError>,
) -> Result<(), EngineError> {
    let mut rest = expect(text, '{')?;
    let mut ended = expect(rest, '}');
    while ended.is_err() {
        let (key, after) = value::<String>(rest)?;
        let start = expect(after, ':')?;
        let (IgnoredAny, after) = value(start)?;
        let value = start.get(..start.len() - after.len()).unwrap_or_default();
        member(&key, value.trim_matches(BLANKS))?;
        ended = expect(after, '}');
        if ended.is_err() {
            rest = expect(after, ',')?;
        }
    }
    match ended?.trim_matches(BLANKS) {
        "" => Ok(()),
        _ => Err(broken("tokenizer.json goes on after its end")),
    }
}

/// What JSON calls white space.
const BLANKS: [char; 4] = [' ', '\t', '\n', '\r'];

/// What comes after a token that must be there.
fn expect(text: &str, token: char) -> Result<&str, EngineError> {
    text.trim_start_matches(BLANKS)
        .strip_prefix(token)
        .ok_or_else(|| broken(format!("tokenizer.json is no JSON object: it lacks a {token:?}")))
}

/// The JSON value that `text` begins with, and what comes after it.
fn value<'a, T: Deserialize<'a>>(text: &'a str) -> Result<(T, &'a str), EngineError> {
    let mut values = serde_json::Deserializer::from_str(text).into_iter::<T>();
    match values.next() {
        Some(Ok(value)) => Ok((value, text.get(values.byte_offset()..).unwrap_or_default())),
        Some(Err(error)) => Err(bad("", &error)),
        None => Err(broken("tokenizer.json ends early")),
    }
}

fn bad(key: &str, error: &serde_json::Error) -> EngineError {
    let problem: String = error.to_string().chars().take(512).collect();
    EngineError::metadata(format!("tokenizer.json {key}").trim_end(), problem)
}

#[cfg(test)]
mod tests;
