//! Where in a rendered conversation the assistant speaks.
//!
//! Two ways, both exact. A template that marks it for training (`{% generation %}` … `{% endgeneration %}`)
//! is rendered once more with a character in place of each mark that cannot stand in text. Otherwise the
//! conversation is rendered up to where the assistant is to speak, as it is when answering, and up to
//! where it has spoken; the latter must continue the former. A template that prints a turn in another way
//! once others follow it (leaving out what was thought, say) gives a text per turn, each as it was when
//! that turn was spoken. What cannot be found is an error, never a guess.

use std::ops::Range;
use std::sync::LazyLock;

use regex::{Captures, Regex};

use super::rows::TURNS_MAX;
use crate::error::TemplateError;
use crate::template::{ChatMessage, ChatTemplate};

/// Noncharacters of Unicode, which are for use inside of a program and not in texts.
const OPEN: char = '\u{fdd0}';
const CLOSE: char = '\u{fdd1}';

/// Texts that one conversation may become, all together. Each of its turns may be printed anew.
const TEXT_BYTES_MAX: usize = 64 << 20;

/// A text and the parts of it, in bytes and in order, that the assistant says.
#[derive(PartialEq, Eq)]
#[cfg_attr(test, derive(Debug))]
pub(super) struct Rendered {
    pub(super) text: String,
    pub(super) spans: Vec<Range<usize>>,
}

/// Why the assistant's words could not be found.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum SpanError {
    #[error("chat template: {0}")]
    Template(#[from] TemplateError),
    #[error(
        "the assistant never speaks in it, so there is nothing to learn: train on whole rows (loss_on = \
         all), or leave the row out"
    )]
    Silent,
    #[error("{0} turns, at most {TURNS_MAX}: divide the conversation")]
    Turns(usize),
    #[error(
        "its turns become {0} bytes of text, at most {TEXT_BYTES_MAX}: divide the conversation"
    )]
    Long(usize),
    #[error(
        "turn {turn} does not continue what the chat template prints when the assistant is asked to speak, \
         so where it begins is not known: use rows of prompt and completion for this model"
    )]
    NoContinuation { turn: usize },
    #[error("it contains the character U+{0:04X}, which no text may contain: take it out")]
    Noncharacter(u32),
    #[error("the chat template prints other words when its marks for training are shown")]
    Marks,
}

/// A template and, when it marks the assistant's words, the same with its marks showing.
pub(super) struct Chat {
    plain: ChatTemplate,
    marked: Option<ChatTemplate>,
}

impl Chat {
    pub(super) fn compile(source: &str, bos: &str, eos: &str) -> Result<Self, TemplateError> {
        let marked = match with_marks(source) {
            Some(marked) => Some(ChatTemplate::compile(&marked, bos, eos)?),
            None => None,
        };
        Ok(Self { plain: ChatTemplate::compile(source, bos, eos)?, marked })
    }

    /// The conversation as it stands, as a text to learn from as a whole.
    pub(super) fn whole(&self, messages: &[ChatMessage], clock: i64) -> Result<String, SpanError> {
        check(messages)?;
        Ok(self.plain.render(messages, clock, false)?)
    }

    /// Texts of which the assistant's words are known: mostly one, else one for each of its turns.
    pub(super) fn spans(
        &self,
        messages: &[ChatMessage],
        clock: i64,
    ) -> Result<Vec<Rendered>, SpanError> {
        check(messages)?;
        if !messages.iter().any(speaks) {
            return Err(SpanError::Silent);
        }
        let whole = self.plain.render(messages, clock, false)?;
        if let Some(marked) = &self.marked {
            let (text, spans) = parse_marks(&marked.render(messages, clock, false)?)?;
            if text != whole {
                return Err(SpanError::Marks);
            }
            if !spans.is_empty() {
                return Ok(vec![Rendered { text, spans }]);
            }
        }
        let turns = self.turns(messages, clock, &whole)?;
        if turns.iter().all(|turn| whole.starts_with(&turn.text)) {
            let spans = turns.into_iter().flat_map(|turn| turn.spans).collect();
            return Ok(vec![Rendered { text: whole, spans }]);
        }
        Ok(turns)
    }

    /// The conversation up to each of the assistant's turns, that turn alone being marked.
    fn turns(
        &self,
        messages: &[ChatMessage],
        clock: i64,
        whole: &str,
    ) -> Result<Vec<Rendered>, SpanError> {
        let (mut turns, mut bytes) = (Vec::new(), 0);
        for (index, _) in messages.iter().enumerate().filter(|(_, message)| speaks(message)) {
            let turn = index + 1;
            let asked = self.plain.render(&messages[..index], clock, true)?;
            let text = match turn == messages.len() {
                true => whole.to_owned(),
                false => self.plain.render(&messages[..turn], clock, false)?,
            };
            if !text.starts_with(&asked) || text.len() == asked.len() {
                return Err(SpanError::NoContinuation { turn });
            }
            bytes += text.len();
            if bytes > TEXT_BYTES_MAX {
                return Err(SpanError::Long(bytes));
            }
            let span = asked.len()..text.len();
            turns.push(Rendered { text, spans: vec![span] });
        }
        Ok(turns)
    }
}

fn speaks(message: &ChatMessage) -> bool {
    message.role == "assistant"
}

fn check(messages: &[ChatMessage]) -> Result<(), SpanError> {
    if messages.len() > TURNS_MAX {
        return Err(SpanError::Turns(messages.len()));
    }
    let words = messages.iter().flat_map(|message| [&message.role, &message.content]);
    match words.flat_map(|text| text.chars()).find(|&char| char == OPEN || char == CLOSE) {
        Some(found) => Err(SpanError::Noncharacter(found.into())),
        None => Ok(()),
    }
}

/// The template with a character printed for each of its marks; None if it has none. The blocks around
/// the character keep the marks' control of white space, on the side where the mark had it.
fn with_marks(source: &str) -> Option<String> {
    static MARKS: LazyLock<Option<Regex>> =
        LazyLock::new(|| Regex::new(r"\{%([-+]?)\s*(end)?generation\s*([-+]?)%\}").ok());
    let marks = MARKS.as_ref().filter(|marks| marks.is_match(source))?;
    let block = |found: &Captures<'_>| {
        let part = |group| found.get(group).map_or("", |part| part.as_str());
        let (word, shown) = if part(2).is_empty() { ("if true", OPEN) } else { ("endif", CLOSE) };
        format!("{{%{} {word} %}}{{{{ '{shown}' }}}}{{% {word} {}%}}", part(1), part(3))
    };
    Some(marks.replace_all(source, block).into_owned())
}

/// Takes the characters for marks out again; spans that touch become one.
fn parse_marks(shown: &str) -> Result<(String, Vec<Range<usize>>), SpanError> {
    let (mut text, mut spans, mut open) = (String::new(), Vec::<Range<usize>>::new(), None);
    for char in shown.chars() {
        match (char, open) {
            (OPEN, None) => open = Some(text.len()),
            (CLOSE, Some(start)) => {
                open = None;
                match spans.last_mut() {
                    Some(last) if last.end == start => last.end = text.len(),
                    _ if start == text.len() => {}
                    _ => spans.push(start..text.len()),
                }
            }
            (OPEN | CLOSE, _) => return Err(SpanError::Marks),
            (char, _) => text.push(char),
        }
    }
    if open.is_some() {
        return Err(SpanError::Marks);
    }
    Ok((text, spans))
}

#[cfg(test)]
#[path = "tests/spans.rs"]
mod tests;
