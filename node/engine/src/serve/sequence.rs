//! One request on its way: its tokens, how far they are computed, and what has been told of them.

use std::sync::Arc;

use super::draft::Drafting;
use super::keys::{KeyChain, Scopes};
use super::{Job, Words};
use crate::adapter::Adapter;
use crate::decoder::{PAGE_TOKENS, PageId};
use crate::error::EngineError;
use crate::request::{
    Completion, Event, Finish, Likelihood, Logprobs, PromptToken, Ticket, Timings, Token, Usage,
};
use crate::sampling::{History, LogProb, Logits, Sampling};
use crate::text::{Released, TextStream};

/// A request that waits or runs.
#[derive(Debug)]
pub(super) struct Sequence {
    pub(super) ticket: Ticket,
    /// Prompt, forced tokens and answer; the last one is not computed while it is the answer's newest.
    pub(super) tokens: Vec<u32>,
    pub(super) prompt_tokens: usize,
    forced_tokens: usize,
    max_tokens: usize,
    /// Leading tokens whose keys and values are in `pages`.
    pub(super) computed: usize,
    /// The most that `computed` has been; less than that is computed again after a preemption.
    reached: usize,
    /// The page table.
    pub(super) pages: Vec<PageId>,
    /// Keys of full pages, for the prefix cache.
    pub(super) chain: KeyChain,
    /// Leading pages that the prefix cache knows.
    pub(super) published: usize,
    pub(super) adapter: Option<Arc<Adapter>>,
    pub(super) drafting: Drafting,
    pub(super) cancelled: bool,
    /// Set when the forced tokens alone end the answer.
    pub(super) ended: Option<Finish>,
    sampling: Sampling,
    history: History,
    text: TextStream,
    /// How many alternatives to report with each token.
    logprobs: Option<usize>,
    /// Tokens to weigh beside each token that is chosen.
    weighed: Vec<u32>,
    echo: Option<Echo>,
    cached_tokens: usize,
    /// Computed tokens that progress was reported for.
    reported: usize,
}

/// What has been repeated of the prompt.
#[derive(Debug)]
struct Echo {
    text: TextStream,
    /// Tokens of the prompt that have been reported.
    done: usize,
}

impl Sequence {
    /// # Errors
    /// When stop strings are out of bounds.
    pub(super) fn new(ticket: Ticket, job: Job, words: &dyn Words) -> Result<Self, EngineError> {
        let Job { request, prompt, public_tokens, adapter } = job;
        let scopes = Scopes {
            adapter: adapter.as_ref().map(|(digest, _)| *digest),
            researcher: request.researcher,
            public_tokens,
        };
        let echo = match request.echo {
            true => Some(Echo { text: TextStream::new(&[])?, done: request.echo_from as usize }),
            false => None,
        };
        let mut sequence = Self {
            ticket,
            prompt_tokens: prompt.len(),
            forced_tokens: request.forced.len(),
            max_tokens: request.max_tokens as usize,
            computed: 0,
            reached: 0,
            pages: Vec::new(),
            chain: KeyChain::new(scopes),
            published: 0,
            adapter: adapter.map(|(_, adapter)| adapter),
            drafting: Drafting::default(),
            cancelled: false,
            ended: None,
            history: History::new(&request.sampling, &prompt),
            sampling: request.sampling,
            text: TextStream::new(&request.stop)?,
            logprobs: request.logprobs.map(|top| top as usize),
            weighed: request.weighed,
            echo,
            cached_tokens: 0,
            reported: 0,
            tokens: prompt,
        };
        for id in request.forced {
            // What earlier attempts showed is dropped; what they held back is still held back.
            if let Some(finish) = sequence.accept(id, words).1 {
                sequence.ended = Some(finish);
                break;
            }
        }
        Ok(sequence)
    }

    /// Tokens that are not computed yet.
    pub(super) fn pending(&self) -> usize {
        self.tokens.len() - self.computed
    }

    /// Whether the first new token has been chosen: from then on somebody reads along.
    pub(super) fn is_answering(&self) -> bool {
        self.tokens.len() > self.prompt_tokens + self.forced_tokens
    }

    /// Tokens that may still be chosen.
    pub(super) fn left(&self) -> usize {
        self.max_tokens - self.answered()
    }

    fn answered(&self) -> usize {
        self.tokens.len() - self.prompt_tokens
    }

    /// Pages to begin with: those of all tokens so far and of the next, but never more than the longest
    /// answer needs.
    pub(super) fn pages_to_begin(&self) -> usize {
        let longest = self.prompt_tokens + self.max_tokens;
        (self.tokens.len() + 1).min(longest).div_ceil(PAGE_TOKENS)
    }

    /// Whether the outputs of the row at `position` are needed: to choose a token after it, or to say
    /// how likely the prompt's next token was.
    pub(super) fn wants(&self, position: usize) -> bool {
        position + 1 >= self.tokens.len() || self.echo_wants(position)
    }

    /// Whether the prompt is echoed with log-probabilities that are not told yet at `position`.
    pub(super) fn echo_wants(&self, position: usize) -> bool {
        let next = position + 1;
        self.logprobs.is_some()
            && next < self.prompt_tokens
            && self.echo.as_ref().is_some_and(|echo| next >= echo.done)
    }

    /// Whether the page with this index, in which or at whose beginning computing stands, may be taken
    /// from the prefix cache. The last token is always computed, because its outputs are needed.
    pub(super) fn may_skip_page(&self, page: usize) -> bool {
        let (start, end) = (page * PAGE_TOKENS, (page + 1) * PAGE_TOKENS);
        end < self.tokens.len() && !(start..end).any(|position| self.echo_wants(position))
    }

    /// Counts a page that was found in the prefix cache; returns how many tokens of the prompt that
    /// saved for the first time.
    pub(super) fn skip_page(&mut self) -> usize {
        let new_from = self.computed.max(self.reached);
        self.computed = (self.computed / PAGE_TOKENS + 1) * PAGE_TOKENS;
        self.reached = self.reached.max(self.computed);
        let saved = self.computed.min(self.prompt_tokens).saturating_sub(new_from);
        self.cached_tokens += saved;
        saved
    }

    /// Forgets what is computed, whose pages are gone.
    pub(super) fn restart(&mut self) {
        self.computed = 0;
        self.published = 0;
    }

    /// Counts one more computed row.
    pub(super) fn advance(&mut self) {
        self.computed += 1;
        self.reached = self.reached.max(self.computed);
    }

    /// Progress that has not been reported yet.
    pub(super) fn progress(&mut self) -> Option<Event> {
        if self.is_answering() || self.computed <= self.reported {
            return None;
        }
        self.reported = self.computed;
        let total = self.prompt_tokens + self.forced_tokens;
        Some(Event::Prefilled { done_tokens: self.computed as u32, total_tokens: total as u32 })
    }

    /// Repeats prompt tokens up to `end`, or all of them when nothing else is to be said of them.
    pub(super) fn echo_upto(
        &mut self,
        end: usize,
        log_probs: Option<(LogProb, Vec<LogProb>)>,
        words: &dyn Words,
        out: &mut Vec<PromptToken>,
    ) {
        let end = if self.logprobs.is_none() { self.prompt_tokens } else { end };
        let mut log_probs = log_probs.map(|(own, top)| likelihoods(own, &top, Vec::new(), words));
        let Some(echo) = &mut self.echo else { return };
        while echo.done < end.min(self.prompt_tokens) {
            let Some(&id) = self.tokens.get(echo.done) else { break };
            let mut text = match echo.text.push(&words.bytes(id)) {
                Released::Text(text) | Released::Stopped(text) => text,
            };
            if echo.done + 1 == self.prompt_tokens {
                text.push_str(&echo.text.finish());
            }
            // Nothing comes before the first token, so it has no probability.
            let logprobs = if echo.done == 0 { None } else { log_probs.take() };
            out.push(PromptToken { index: echo.done as u32, id, text, logprobs });
            echo.done += 1;
        }
    }

    /// Log-probabilities of the prompt token after `position`, if they are to be told.
    ///
    /// # Errors
    /// When the logits are not finite.
    pub(super) fn echo_log_probs(
        &self,
        position: usize,
        logits: &mut [f32],
    ) -> Result<Option<(LogProb, Vec<LogProb>)>, EngineError> {
        match (self.logprobs, self.tokens.get(position + 1)) {
            (Some(top), Some(&next)) => Ok(Some(Logits::new(logits, 0)?.log_probs(next, top))),
            _ => Ok(None),
        }
    }

    /// Chooses the next token from the outputs of the last one.
    ///
    /// # Errors
    /// When the logits are not finite.
    pub(super) fn choose(
        &mut self,
        logits: &mut [f32],
        words: &dyn Words,
    ) -> Result<(Token, Option<Finish>), EngineError> {
        let index = self.answered() as u32;
        // Choosing changes the logits, and log-probabilities are of the raw ones.
        let raw = self.logprobs.map(|top| (logits.to_vec(), top));
        let id = Logits::new(logits, index)?.choose(&self.sampling, &self.history, index);
        let logprobs = match raw {
            Some((mut raw, top)) => {
                let raw = Logits::new(&mut raw, index)?;
                let (own, top) = raw.log_probs(id, top);
                Some(likelihoods(own, &top, raw.micro(&self.weighed), words))
            }
            None => None,
        };
        let (text, finish) = self.accept(id, words);
        Ok((Token { index, id, text, logprobs }, finish))
    }

    /// Takes the next token of the answer: the text that it sets free, and whether it is the last.
    /// The text of a last token includes everything that was held back.
    fn accept(&mut self, id: u32, words: &dyn Words) -> (String, Option<Finish>) {
        self.tokens.push(id);
        self.history.push(id);
        if words.is_end(id) {
            return (self.text.finish(), Some(Finish::Stop));
        }
        match self.text.push(&words.bytes(id)) {
            Released::Stopped(text) => (text, Some(Finish::StopString)),
            Released::Text(text) if self.answered() >= self.max_tokens => {
                (text + &self.text.finish(), Some(Finish::Length))
            }
            Released::Text(text) => (text, None),
        }
    }

    /// How it ended. Who has a clock adds the times.
    pub(super) fn completion(&self, finish: Finish) -> Completion {
        let usage = Usage {
            prompt_tokens: self.prompt_tokens as u32,
            completion_tokens: self.answered() as u32,
            cached_tokens: self.cached_tokens as u32,
        };
        Completion { finish, usage, timings: Timings::default() }
    }
}

fn likelihoods(own: LogProb, top: &[LogProb], weighed: Vec<i32>, words: &dyn Words) -> Logprobs {
    let likelihood =
        |&(id, micro): &LogProb| Likelihood { id, bytes: words.bytes(id), logprob_micro: micro };
    let top = top.iter().map(likelihood).collect();
    Logprobs { chosen: likelihood(&own), top, weighed_micro: weighed }
}
