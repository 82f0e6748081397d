//! Cutting text at the matches of a pattern.
//!
//! Published rules end in `\s+(?!\S)|\s+`: a run of white space leaves its last character to the word
//! after it. Here the run is matched whole and shortened afterwards, so that no expression needs
//! backtracking and a prompt of a million blanks takes linear time. Expressions that look around in any
//! other way are refused: they would need an engine that hostile ones can stall.

use std::borrow::Cow;
use std::ops::Range;

use regex::{Regex, RegexBuilder};

use crate::error::EngineError;

/// The longest published rule has some 600 bytes.
const PATTERN_BYTES_MAX: usize = 8 << 10;
/// Compiled size; also what one byte of text may cost in the worst case. Published rules stay below
/// half of it.
const PROGRAM_BYTES_MAX: usize = 4 << 20;
/// How published rules spell "all white space but the last, or all of it".
const LOOK_AHEAD: &str = r"|\s+(?!\S)|\s+";

/// What becomes of the matches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Deserialize)]
pub(super) enum Behaviour {
    Removed,
    Isolated,
    MergedWithPrevious,
    MergedWithNext,
    Contiguous,
}

/// A regular expression that takes linear time.
pub(super) struct Pattern {
    regex: Regex,
    /// The rule ends in `\s+`, whose matches give their last character back.
    yields_space: bool,
    /// The rule takes white space that ends a line as a word of its own.
    keeps_line_ends: bool,
}

impl Pattern {
    /// Compiles an expression as it stands in `key` of a file.
    ///
    /// # Errors
    /// [`EngineError::UnsupportedFeature`] for one that looks around, is too large, or does not parse.
    pub(super) fn new(key: &str, expression: &str) -> Result<Self, EngineError> {
        let refused = |reason| EngineError::UnsupportedFeature {
            key: key.to_owned(),
            value: expression.chars().take(256).collect(),
            reason,
        };
        if expression.len() > PATTERN_BYTES_MAX {
            return Err(refused("expressions may have at most 8 KiB"));
        }
        let head = expression.strip_suffix(LOOK_AHEAD);
        let regex = match head {
            Some(head) => compile(&format!(r"{head}|\s+")),
            None => compile(expression),
        };
        Ok(Self {
            regex: regex.map_err(|error| match error {
                regex::Error::CompiledTooBig(_) => refused("the expression is too large"),
                _ => refused("not a regular expression without look-around"),
            })?,
            yields_space: head.is_some(),
            keeps_line_ends: head.is_some_and(|head| head.contains(r"\s*[\r\n]")),
        })
    }

    /// Exactly this text.
    pub(super) fn literal(key: &str, text: &str) -> Result<Self, EngineError> {
        Self::new(key, &regex::escape(text))
    }

    /// Gives the matches and what lies between them, in order; only matches may be empty.
    pub(super) fn cut(&self, text: &str, piece: &mut dyn FnMut(Range<usize>, bool)) {
        let (mut done, mut from, mut matched) = (0, 0, None);
        while let Some(found) = self.regex.find_at(text, from) {
            let end = self.shortened(text, found.as_str(), found.end());
            from = end;
            if found.is_empty() {
                // It must not be found again, nor count when it only touches the match before.
                let next = text.get(end..).and_then(|rest| rest.chars().next());
                from += next.map_or(1, char::len_utf8);
            }
            if !found.is_empty() || matched != Some(end) {
                if done < found.start() {
                    piece(done..found.start(), false);
                }
                piece(found.start()..end, true);
                done = end;
                matched = Some(end);
            }
            if from > text.len() {
                break;
            }
        }
        if done < text.len() {
            piece(done..text.len(), false);
        }
    }

    /// Where a match ends once the look-ahead of `\s+(?!\S)` has been heeded.
    fn shortened(&self, text: &str, matched: &str, end: usize) -> usize {
        let line_end = matched.ends_with(['\r', '\n']) && self.keeps_line_ends;
        if !self.yields_space || line_end || !matched.chars().all(char::is_whitespace) {
            return end;
        }
        let last = matched.chars().next_back().map_or(0, char::len_utf8);
        let followed = text.get(end..).is_some_and(|rest| !rest.is_empty());
        if followed && matched.len() > last { end - last } else { end }
    }
}

fn compile(expression: &str) -> Result<Regex, regex::Error> {
    RegexBuilder::new(expression).size_limit(PROGRAM_BYTES_MAX).build()
}

/// Cuts wherever a character is of a class.
pub(super) fn cut_class(
    text: &str,
    class: impl Fn(char) -> bool,
    piece: &mut dyn FnMut(Range<usize>, bool),
) {
    let mut done = 0;
    for (at, character) in text.char_indices().filter(|(_, character)| class(*character)) {
        if done < at {
            piece(done..at, false);
        }
        done = at + character.len_utf8();
        piece(at..done, true);
    }
    if done < text.len() {
        piece(done..text.len(), false);
    }
}

/// Collects the pieces of one text as a behaviour wants them; empty ones are dropped.
pub(super) struct Pieces<'o, 't> {
    text: Cow<'t, str>,
    behaviour: Behaviour,
    /// The piece that may still grow, and whether it is a match (or ends in one).
    held: Option<(Range<usize>, bool)>,
    out: &'o mut Vec<Cow<'t, str>>,
}

impl<'o, 't> Pieces<'o, 't> {
    pub(super) fn new(
        text: Cow<'t, str>,
        behaviour: Behaviour,
        out: &'o mut Vec<Cow<'t, str>>,
    ) -> Self {
        Self { text, behaviour, held: None, out }
    }

    pub(super) fn push(&mut self, range: Range<usize>, is_match: bool) {
        if self.behaviour == Behaviour::Removed && is_match {
            return;
        }
        let joins = self.held.as_ref().is_some_and(|(_, held_match)| match self.behaviour {
            Behaviour::Removed | Behaviour::Isolated => false,
            Behaviour::Contiguous => is_match == *held_match,
            Behaviour::MergedWithPrevious => is_match && !held_match,
            Behaviour::MergedWithNext => !is_match && *held_match,
        });
        match &mut self.held {
            Some((held, held_match)) if joins => {
                held.end = range.end;
                *held_match = is_match;
            }
            _ => {
                self.flush();
                self.held = Some((range, is_match));
            }
        }
    }

    pub(super) fn finish(mut self) {
        self.flush();
    }

    fn flush(&mut self) {
        let Some((range, _)) = self.held.take().filter(|(range, _)| !range.is_empty()) else {
            return;
        };
        let piece = match &self.text {
            Cow::Borrowed(text) => text.get(range).map(Cow::Borrowed),
            Cow::Owned(text) => text.get(range).map(|piece| Cow::Owned(piece.to_owned())),
        };
        self.out.extend(piece);
    }
}
