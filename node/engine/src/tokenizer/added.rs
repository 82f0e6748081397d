//! Tokens that are found in text before all else: control tokens of templates and those added by hand.
//!
//! One automaton finds them all in one pass (Aho and Corasick 1975), the leftmost first and the longest
//! among those that begin at the same place.

use aho_corasick::{AhoCorasick, AhoCorasickKind, MatchKind};

use super::vocab::broken;
use crate::error::EngineError;

/// The most that a known vocabulary has is about 6,400.
const TOKENS_LEN_MAX: usize = 16_384;
/// The texts of all of them together take 90 KiB at most; the automaton has some 40 bytes for each.
const TEXT_BYTES_MAX: usize = 512 << 10;

/// A piece of input: already a token, or still text.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Fragment<'t> {
    Token(u32),
    Text(&'t str),
}

/// How a token is to be found.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Rules {
    /// Only where no letter, digit or underscore adjoins.
    pub(super) single_word: bool,
    /// White space before it belongs to it.
    pub(super) strips_left: bool,
    /// White space after it belongs to it.
    pub(super) strips_right: bool,
}

/// Finds tokens in text.
#[derive(Default)]
pub(super) struct Added {
    automaton: Option<AhoCorasick>,
    tokens: Vec<(u32, Rules)>,
}

impl Added {
    /// # Errors
    /// When there are too many tokens, or their texts are too long.
    pub(super) fn new<'t>(
        tokens: impl IntoIterator<Item = (u32, &'t str, Rules)>,
    ) -> Result<Self, EngineError> {
        let (mut texts, mut found) = (Vec::new(), Vec::new());
        let mut bytes = 0;
        for (id, text, rules) in tokens {
            if text.is_empty() {
                continue;
            }
            bytes += text.len();
            texts.push(text);
            found.push((id, rules));
            if texts.len() > TOKENS_LEN_MAX || bytes > TEXT_BYTES_MAX {
                return Err(broken(format!(
                    "more than {TOKENS_LEN_MAX} special tokens or {TEXT_BYTES_MAX} bytes of them"
                )));
            }
        }
        if texts.is_empty() {
            return Ok(Self::default());
        }
        let automaton = AhoCorasick::builder()
            .match_kind(MatchKind::LeftmostLongest)
            // The kind whose size is in proportion to the texts.
            .kind(Some(AhoCorasickKind::ContiguousNFA))
            .build(&texts)
            .map_err(|error| broken(error.to_string()))?;
        Ok(Self { automaton: Some(automaton), tokens: found })
    }

    /// Cuts `text` into tokens and what lies between them; texts are never empty.
    pub(super) fn fragments<'t>(&self, text: &'t str) -> Vec<Fragment<'t>> {
        let mut fragments = Vec::new();
        let mut done = 0;
        for found in self.automaton.iter().flat_map(|automaton| automaton.find_iter(text)) {
            let Some((id, rules)) = self.tokens.get(found.pattern().as_usize()) else { continue };
            let (before, after) = (text.get(..found.start()), text.get(found.end()..));
            let (before, after) = (before.unwrap_or_default(), after.unwrap_or_default());
            let in_word = before.ends_with(is_word) || after.starts_with(is_word);
            // A token that begins inside white space which the one before took is part of it.
            if (rules.single_word && in_word) || found.start() < done {
                continue;
            }
            let between = text.get(done..found.start()).unwrap_or_default();
            let between = if rules.strips_left { between.trim_end() } else { between };
            fragments.extend((!between.is_empty()).then_some(Fragment::Text(between)));
            fragments.push(Fragment::Token(*id));
            let stripped = if rules.strips_right { after.trim_start() } else { after };
            done = text.len() - stripped.len();
        }
        let rest = text.get(done..).unwrap_or_default();
        fragments.extend((!rest.is_empty()).then_some(Fragment::Text(rest)));
        fragments
    }
}

/// Roughly `\w`: what makes a word in the sense of `single_word`.
fn is_word(character: char) -> bool {
    character.is_alphanumeric() || character == '_'
}
