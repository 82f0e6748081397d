//! Renders a model's chat template with minijinja: fuel, output and clock are given from outside.
//!
//! Templates come out of downloaded files, so they are programs of strangers. They see the messages, two
//! token strings and a pinned clock, nothing else.
//!
//! # Bounds
//! Fuel bounds instructions and, since minijinja charges for every byte produced, the memory of texts.
//! It does not charge for comparing or printing lists of lists, of which a few instructions can build
//! one of any size. So a template runs on a thread of its own: its stack is large enough for values as
//! deep as the fuel allows, and one that does not end is left behind and never run again. What such a
//! thread still costs (one processor, and memory if it prints instead of comparing) ends with the
//! process only; engines run in worker processes for that reason too.

mod clock;
mod json;
mod program;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::thread;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use self::program::Program;
use crate::error::TemplateError;

/// The longest published template has some 25 KiB.
pub(crate) const SOURCE_BYTES_MAX: usize = 256 << 10;
/// Thousands of times what the longest conversation takes, for machines are shared: only a template that
/// never ends gets here.
const PATIENCE: Duration = Duration::from_secs(30);
/// One byte short of a kilobyte for each level that all the fuel can nest (840 bytes measured for the
/// thirstiest operation). Reserved, not used: a conversation touches some 100 KiB of it.
const STACK_BYTES: usize = 1 << 30;

/// One turn of a conversation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChatMessage {
    /// Who speaks: `system`, `user`, `assistant`, or what else the template knows.
    pub role: String,
    /// What they say.
    pub content: String,
}

/// A compiled chat template.
pub(crate) struct ChatTemplate {
    program: Arc<Program>,
    patience: Duration,
    /// A rendering has not ended in time.
    is_stuck: AtomicBool,
}

impl ChatTemplate {
    /// Compiles `source`; `bos` and `eos` are the texts of the model's tokens of those names.
    ///
    /// # Errors
    /// When the source is too long or does not parse.
    pub(crate) fn compile(source: &str, bos: &str, eos: &str) -> Result<Self, TemplateError> {
        let program = Arc::new(Program::compile(source, bos, eos)?);
        Ok(Self { program, patience: PATIENCE, is_stuck: AtomicBool::new(false) })
    }

    /// Renders a conversation, with `generation_prompt` up to where the assistant is to speak.
    ///
    /// Templates see what transformers gives them: the messages, `add_generation_prompt`, the texts of
    /// two tokens, and `tools` and `documents` as none. `enable_thinking` and the like stay undefined,
    /// which is a template's own default.
    ///
    /// # Units
    /// `clock`: seconds since the Unix epoch, UTC; what `strftime_now` shows.
    ///
    /// # Errors
    /// [`TemplateError::Refused`] when the template itself refuses the conversation, otherwise what
    /// failed or which bound was reached. No error quotes the conversation.
    pub(crate) fn render(
        &self,
        messages: &[ChatMessage],
        clock: i64,
        generation_prompt: bool,
    ) -> Result<String, TemplateError> {
        if self.is_stuck.load(Ordering::Relaxed) {
            return Err(TemplateError::Bound("time, in an earlier conversation"));
        }
        let (program, messages) = (Arc::clone(&self.program), messages.to_vec());
        let (send, receive) = sync_channel(1);
        thread::Builder::new()
            .name("chat-template".to_owned())
            .stack_size(STACK_BYTES)
            .spawn(move || {
                // Nobody waits any more when this fails.
                let _: Result<_, _> =
                    send.send(program.render(&messages, clock, generation_prompt));
            })
            .map_err(|error| TemplateError::Render(format!("no thread to run on: {error}")))?;
        match receive.recv_timeout(self.patience) {
            Ok(outcome) => outcome,
            Err(RecvTimeoutError::Timeout) => {
                self.is_stuck.store(true, Ordering::Relaxed);
                Err(TemplateError::Bound("time"))
            }
            Err(RecvTimeoutError::Disconnected) => {
                Err(TemplateError::Render("its interpreter panicked".to_owned()))
            }
        }
    }
}

#[cfg(test)]
mod tests;
