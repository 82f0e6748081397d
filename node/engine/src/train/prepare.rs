//! Rows to examples: tokens, and which of them the model is to learn to say.
//!
//! # Labels
//! A conversation is rendered with the model's own template; with [`LossOn::Assistant`] the labels are what
//! the assistant says, with the token that ends its turn, because that is what the model will have to
//! choose (`spans`). What a template prints behind that token is never chosen and is no label. Of a prompt and
//! its completion, the completion and the end of the sequence; of a text, everything. With [`LossOn::All`]
//! everything is, whatever the row. The first token of a sequence is never a label, for nothing precedes it.
//!
//! Tokens are those of the text as a whole. Where one of them would reach over the place at which the
//! assistant begins or ends, the text is divided there before it is tokenised: so it is when the model
//! answers, for then the prompt is tokenised by itself.
//!
//! # Length
//! A conversation or completion that is too long loses its end; when no label is left it is left out. A
//! text is divided into windows that follow each other. All of it is counted ([`Counts`]).

use std::ops::Range;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::Example;
use super::rows::{Body, Row};
use super::spans::{Chat, Rendered, SpanError};
use crate::error::{EngineError, TemplateError};
use crate::files::checkpoint::Checkpoint;
use crate::tokenizer::Tokenizer;

/// Tokens of all examples of a run together: 4 GiB of memory for them. More is not fine-tuning.
pub const TOKENS_MAX: u64 = 1 << 29;

/// On which tokens of conversations and completions the loss is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LossOn {
    /// On what the model is to answer.
    Assistant,
    /// On everything.
    All,
}

/// How rows are made into examples.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Preparation {
    /// On which tokens the loss is taken.
    pub loss_on: LossOn,
    /// Longest example, in tokens; at least 2.
    pub sequence_tokens: usize,
    /// The time that templates see, in seconds since the Unix epoch, UTC.
    pub clock: i64,
}

/// What became of rows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    /// Rows read.
    pub rows: u64,
    /// Examples made of them.
    pub examples: u64,
    /// Tokens of all examples.
    pub tokens: u64,
    /// Tokens on which the loss is taken.
    pub label_tokens: u64,
    /// Examples that lost their end.
    pub truncated: u64,
    /// Examples left out because no label was left.
    pub left_out: u64,
    /// Conversations that became an example for each answer, for their template prints earlier answers
    /// in another way.
    pub unrolled: u64,
    /// Texts that were divided before tokenising, so that no token reached over the border of an answer.
    pub divided: u64,
}

impl Counts {
    /// The sums.
    #[must_use]
    pub fn and(&self, other: &Self) -> Self {
        Self {
            rows: self.rows + other.rows,
            examples: self.examples + other.examples,
            tokens: self.tokens + other.tokens,
            label_tokens: self.label_tokens + other.label_tokens,
            truncated: self.truncated + other.truncated,
            left_out: self.left_out + other.left_out,
            unrolled: self.unrolled + other.unrolled,
            divided: self.divided + other.divided,
        }
    }
}

/// Why rows cannot be trained on. None of them quotes a row.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RowsError {
    /// One row is at fault.
    #[error("row {row}: {problem}")]
    Row {
        /// Counted from 1, in the order of the dataset.
        row: u64,
        /// What is wrong, and what to do.
        problem: String,
    },
    /// There is more than one run may hold.
    #[error("the rows have more than {TOKENS_MAX} tokens; train on fewer rows at a time")]
    TooMuch,
    /// The settings contradict themselves.
    #[error("{0}")]
    Settings(String),
}

/// A model's tokenizer and chat template: all of it that rows need.
pub struct Texts {
    tokenizer: Tokenizer,
    chat: Result<Chat, TemplateError>,
}

impl Texts {
    /// Reads what concerns texts from a GGUF file or a model's folder; no weight is touched.
    ///
    /// # Errors
    /// Everything that can be wrong with headers and tokenizer. A missing or broken template only matters
    /// to conversations.
    pub fn open(model: &Path) -> Result<Self, EngineError> {
        let checkpoint = Checkpoint::open(model)?;
        let (tokenizer, source) = match checkpoint.gguf() {
            Some(gguf) => {
                let source = gguf.string("tokenizer.chat_template")?.map(str::to_owned);
                (Tokenizer::from_gguf(&gguf)?, source)
            }
            None => Tokenizer::from_folder(model)?,
        };
        Ok(Self::new(tokenizer, source.as_deref()))
    }

    pub(crate) fn new(tokenizer: Tokenizer, template: Option<&str>) -> Self {
        let chat = match template {
            Some(source) => Chat::compile(source, tokenizer.bos_text(), tokenizer.eos_text()),
            None => Err(TemplateError::Missing),
        };
        Self { tokenizer, chat }
    }

    /// Makes a row into examples: one, or several for a long text and for some conversations.
    ///
    /// # Errors
    /// In words that do not quote the row.
    pub fn prepare(
        &self,
        row: &Row,
        preparation: &Preparation,
        counts: &mut Counts,
    ) -> Result<Vec<Example>, String> {
        if preparation.sequence_tokens < 2 {
            return Err("sequence_tokens must be at least 2".to_owned());
        }
        counts.rows += 1;
        let said = |error: SpanError| error.to_string();
        let mut examples = match &row.body {
            Body::Text(text) => {
                let ids =
                    self.tokenizer.encode_document(text).map_err(|error| error.to_string())?;
                windows(&self.ended(ids), preparation.sequence_tokens)
            }
            Body::Completion { prompt, completion } => {
                let span = prompt.len()..prompt.len() + completion.len();
                let rendered =
                    Rendered { text: format!("{prompt}{completion}"), spans: vec![span] };
                let (ids, mut labels) = self.mask(&rendered, false, counts)?;
                let ids = self.ended(ids);
                labels.resize(ids.len(), true);
                vec![(ids, labels)]
            }
            Body::Chat(messages) => {
                let chat = self.chat.as_ref().map_err(|error| said(error.clone().into()))?;
                match preparation.loss_on {
                    LossOn::All => {
                        let text = chat.whole(messages, preparation.clock).map_err(said)?;
                        let ids = self.encode(&text)?;
                        let labels = vec![true; ids.len()];
                        vec![(ids, labels)]
                    }
                    LossOn::Assistant => {
                        let texts = chat.spans(messages, preparation.clock).map_err(said)?;
                        counts.unrolled += u64::from(texts.len() > 1);
                        let mask = |text| self.mask(text, true, counts);
                        texts.iter().map(mask).collect::<Result<_, _>>()?
                    }
                }
            }
        };
        let mut kept = Vec::with_capacity(examples.len());
        for (mut ids, mut labels) in examples.drain(..) {
            if preparation.loss_on == LossOn::All {
                labels.fill(true);
            }
            if ids.len() > preparation.sequence_tokens {
                ids.truncate(preparation.sequence_tokens);
                labels.truncate(preparation.sequence_tokens);
                counts.truncated += 1;
            }
            if let Some(first) = labels.first_mut() {
                *first = false;
            }
            if !labels.contains(&true) {
                counts.left_out += 1;
                continue;
            }
            counts.examples += 1;
            counts.tokens += ids.len() as u64;
            counts.label_tokens += labels.iter().filter(|&&label| label).count() as u64;
            kept.push(Example { ids, labels, subject: row.subject });
        }
        Ok(kept)
    }

    /// With the token that ends sequences, if the model has one and it is not there.
    fn ended(&self, mut ids: Vec<u32>) -> Vec<u32> {
        if let Some(end) = self.tokenizer.eos().filter(|end| ids.last() != Some(end)) {
            ids.push(end);
        }
        ids
    }

    fn encode(&self, text: &str) -> Result<Vec<u32>, String> {
        self.tokenizer.encode_prompt(text).map_err(|error| error.to_string())
    }

    /// Tokens of a text, and which of them lie in its spans. `to_end` leaves out what follows the last
    /// token of a span that ends answers.
    fn mask(
        &self,
        rendered: &Rendered,
        to_end: bool,
        counts: &mut Counts,
    ) -> Result<(Vec<u32>, Vec<bool>), String> {
        let Spoken { ids, spans } = match self.whole(rendered)? {
            Some(whole) => whole,
            None => {
                counts.divided += 1;
                self.divided(rendered)?
            }
        };
        let mut labels = vec![false; ids.len()];
        for span in spans {
            let said = ids.get(span.clone()).unwrap_or_default();
            let last = said.iter().rposition(|&id| to_end && self.tokenizer.is_end(id));
            let len = last.map_or(said.len(), |last| last + 1);
            labels[span].iter_mut().take(len).for_each(|label| *label = true);
        }
        Ok((ids, labels))
    }

    /// Tokens of the text as a whole and the spans in tokens; None where a token reaches over a border.
    fn whole(&self, rendered: &Rendered) -> Result<Option<Spoken>, String> {
        let ids = self.encode(&rendered.text)?;
        // Equal tokens stand for equal text, so if those of the beginning begin those of the whole, none
        // of them reaches further.
        let index = |end: usize| -> Result<Option<usize>, String> {
            let before = self.encode(rendered.text.get(..end).unwrap_or_default())?;
            Ok(ids.starts_with(&before).then_some(before.len()))
        };
        let mut spans = Vec::with_capacity(rendered.spans.len());
        for span in &rendered.spans {
            let (Some(start), Some(end)) = (index(span.start)?, index(span.end)?) else {
                return Ok(None);
            };
            spans.push(start..end);
        }
        Ok(Some(Spoken { ids, spans }))
    }

    /// Tokens of the text divided at the borders of its spans.
    fn divided(&self, rendered: &Rendered) -> Result<Spoken, String> {
        let part = |range: Range<usize>| rendered.text.get(range).unwrap_or_default();
        let further = |text: &str| {
            self.tokenizer.encode_continuation(text).map_err(|error| error.to_string())
        };
        let first = rendered.spans.first().map_or(rendered.text.len(), |span| span.start);
        let mut ids = self.encode(part(0..first))?;
        let (mut spans, mut at) = (Vec::with_capacity(rendered.spans.len()), first);
        for span in &rendered.spans {
            ids.extend(further(part(at..span.start))?);
            let start = ids.len();
            ids.extend(further(part(span.clone()))?);
            spans.push(start..ids.len());
            at = span.end;
        }
        ids.extend(further(part(at..rendered.text.len()))?);
        Ok(Spoken { ids, spans })
    }
}

/// Tokens, and the ranges of them that lie in a text's spans.
struct Spoken {
    ids: Vec<u32>,
    spans: Vec<Range<usize>>,
}

/// Consecutive parts of a text. Each but the first begins with the last token of the one before, so that
/// every token but the very first is a label once.
fn windows(ids: &[u32], tokens: usize) -> Vec<(Vec<u32>, Vec<bool>)> {
    let (mut parts, mut start) = (Vec::new(), 0);
    loop {
        let end = ids.len().min(start + tokens);
        parts.push((ids[start..end].to_vec(), vec![true; end - start]));
        if end == ids.len() {
            return parts;
        }
        start = end - 1;
    }
}

#[cfg(test)]
#[path = "tests/prepare.rs"]
pub(super) mod tests;
