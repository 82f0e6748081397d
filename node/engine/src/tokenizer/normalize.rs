//! What `tokenizer.json` does to text before cutting it into words.
//!
//! Steps map text to text and nothing else: offsets into the original, which the reference
//! implementation carries along, are of no use to a language model. The result of a step may be longer
//! than its input, so each is bounded.

use std::sync::LazyLock;

use regex::Regex;
use unicode_normalization::UnicodeNormalization;

use super::charsmap::Charsmap;
use super::split::Pattern;
use super::vocab::broken;
use crate::error::EngineError;

/// Four times the longest input; published steps add at most a byte or two per blank.
pub(super) const OUTPUT_BYTES_MAX: usize = 4 * super::INPUT_BYTES_MAX;

/// One step, named as in `tokenizer.json`.
pub(super) enum Step {
    Nfc,
    Nfd,
    Nfkc,
    Nfkd,
    Lowercase,
    StripAccents,
    Strip { left: bool, right: bool },
    Prepend(String),
    Replace { pattern: Pattern, content: String },
    Bert { clean_text: bool, handle_chinese_chars: bool, strip_accents: bool, lowercase: bool },
    Precompiled(Box<Charsmap>),
}

impl Step {
    /// # Errors
    /// When the result would exceed its bound.
    pub(super) fn apply(&self, text: &str) -> Result<String, EngineError> {
        match self {
            Self::Nfc => bounded(text.nfc()),
            Self::Nfd => bounded(text.nfd()),
            Self::Nfkc => bounded(text.nfkc()),
            Self::Nfkd => bounded(text.nfkd()),
            Self::Lowercase => bounded(text.chars().flat_map(char::to_lowercase)),
            Self::StripAccents => bounded(text.chars().filter(|&character| !is_mark(character))),
            Self::Strip { left, right } => {
                let text = if *left { text.trim_start() } else { text };
                Ok(if *right { text.trim_end() } else { text }.to_owned())
            }
            Self::Prepend(_) if text.is_empty() => Ok(String::new()),
            Self::Prepend(prefix) => bounded(prefix.chars().chain(text.chars())),
            Self::Replace { pattern, content } => replace(text, pattern, content),
            Self::Bert { clean_text, handle_chinese_chars, strip_accents, lowercase } => {
                let mut text = text.to_owned();
                if *clean_text {
                    text = bounded(text.chars().filter_map(clean))?;
                }
                if *handle_chinese_chars {
                    text = bounded(text.chars().flat_map(apart))?;
                }
                if *strip_accents {
                    text = bounded(text.nfd().filter(|&character| !is_nonspacing(character)))?;
                }
                if *lowercase {
                    text = bounded(text.chars().flat_map(char::to_lowercase))?;
                }
                Ok(text)
            }
            Self::Precompiled(map) => map.apply(text),
        }
    }
}

/// Collects characters as long as they fit the bound.
fn bounded(characters: impl Iterator<Item = char>) -> Result<String, EngineError> {
    let mut out = String::new();
    for character in characters {
        push(&mut out, character.encode_utf8(&mut [0; 4]))?;
    }
    Ok(out)
}

/// Appends as long as the result fits the bound.
pub(super) fn push(out: &mut String, text: &str) -> Result<(), EngineError> {
    if out.len() + text.len() > OUTPUT_BYTES_MAX {
        return Err(broken(format!("normalised text exceeds {OUTPUT_BYTES_MAX} bytes")));
    }
    out.push_str(text);
    Ok(())
}

fn replace(text: &str, pattern: &Pattern, content: &str) -> Result<String, EngineError> {
    let (mut out, mut outcome) = (String::with_capacity(text.len()), Ok(()));
    pattern.cut(text, &mut |range, is_match| {
        if outcome.is_ok() {
            let piece = if is_match { content } else { text.get(range).unwrap_or_default() };
            outcome = push(&mut out, piece);
        }
    });
    outcome.map(|()| out)
}

/// BERT's cleaning: controls vanish, white space of any kind becomes a blank.
fn clean(character: char) -> Option<char> {
    match character {
        '\t' | '\n' | '\r' => Some(' '),
        '\0' | char::REPLACEMENT_CHARACTER => None,
        _ if is_other(character) => None,
        _ if character.is_whitespace() => Some(' '),
        _ => Some(character),
    }
}

/// Puts blanks around characters of the Chinese blocks, as BERT's `tokenization.py` lists them.
fn apart(character: char) -> impl Iterator<Item = char> {
    // The gap before 2B920 is the reference's own.
    let chinese = matches!(
        u32::from(character),
        0x4e00..=0x9fff
            | 0x3400..=0x4dbf
            | 0x20000..=0x2a6df
            | 0x2a700..=0x2b73f
            | 0x2b740..=0x2b81f
            | 0x2b920..=0x2ceaf
            | 0xf900..=0xfaff
            | 0x2f800..=0x2fa1f
    );
    let blank = chinese.then_some(' ');
    blank.into_iter().chain([character]).chain(blank)
}

/// ASCII punctuation and symbols, and what Unicode calls punctuation.
pub(super) fn is_punctuation(character: char) -> bool {
    static CLASS: LazyLock<Option<Regex>> = LazyLock::new(|| Regex::new(r"\p{P}").ok());
    character.is_ascii_punctuation() || is_of(&CLASS, character)
}

fn is_mark(character: char) -> bool {
    static CLASS: LazyLock<Option<Regex>> = LazyLock::new(|| Regex::new(r"\p{M}").ok());
    is_of(&CLASS, character)
}

fn is_nonspacing(character: char) -> bool {
    static CLASS: LazyLock<Option<Regex>> = LazyLock::new(|| Regex::new(r"\p{Mn}").ok());
    is_of(&CLASS, character)
}

/// Controls, formats, private use and code points without a character.
fn is_other(character: char) -> bool {
    static CLASS: LazyLock<Option<Regex>> = LazyLock::new(|| Regex::new(r"\p{C}").ok());
    character.is_control() || is_of(&CLASS, character)
}

/// Whether a class holds a character beyond ASCII; within ASCII callers know better.
fn is_of(class: &Option<Regex>, character: char) -> bool {
    !character.is_ascii()
        && class.as_ref().is_some_and(|class| class.is_match(character.encode_utf8(&mut [0; 4])))
}
