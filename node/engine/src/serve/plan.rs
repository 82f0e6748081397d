//! What to compute next: who is let in, whose rows make up the step, who has to make room.

use std::collections::BTreeSet;

use super::keys::PageKey;
use super::sequence::Sequence;
use super::{Server, Words};
use crate::decoder::PAGE_TOKENS;
use crate::error::EngineError;
use crate::request::{Event, Finish, Ticket};

/// Rows of one step whose outputs are wanted only to tell how likely a prompt was. Each costs a row of
/// the vocabulary's length, so this bounds memory.
const ECHO_ROWS_MAX: usize = 64;

/// Consecutive rows of one sequence.
#[derive(Debug)]
pub(super) struct Part {
    /// Place among the running sequences.
    pub(super) index: usize,
    /// Position of the first row.
    pub(super) start: usize,
    pub(super) tokens: Vec<u32>,
    /// How many of the tokens, at the end, are guesses.
    pub(super) guessed: usize,
}

impl Part {
    /// Reads the outputs of the rows that the sequence wants, in order, and reports what follows.
    ///
    /// # Errors
    /// When the logits are not finite.
    pub(super) fn settle<'o>(
        &self,
        sequence: &mut Sequence,
        outputs: &mut impl Iterator<Item = &'o mut [f32]>,
        words: &dyn Words,
        out: &mut Vec<(Ticket, Event)>,
    ) -> Result<Option<Finish>, EngineError> {
        let mut echoed = Vec::new();
        let certain = self.tokens.len() - self.guessed;
        let mut last = None;
        for position in self.start..self.start + certain {
            sequence.advance();
            if sequence.echo_wants(position) {
                let log_probs = match outputs.next() {
                    Some(logits) => sequence.echo_log_probs(position, logits)?,
                    None => None,
                };
                sequence.echo_upto(position + 2, log_probs, words, &mut echoed);
            } else if sequence.wants(position) {
                last = outputs.next();
            }
        }
        sequence.echo_upto(1, None, words, &mut echoed);
        if !echoed.is_empty() {
            out.push((sequence.ticket, Event::Prompt(echoed)));
        }
        out.extend(sequence.progress().map(|event| (sequence.ticket, event)));
        let mut guesses = self.tokens[certain..].iter();
        let mut right = 0;
        let finish = loop {
            let Some(logits) = last else { break None };
            let (token, finish) = sequence.choose(logits, words)?;
            let id = token.id;
            out.push((sequence.ticket, Event::Token(token)));
            if finish.is_some() || guesses.next() != Some(&id) {
                break finish;
            }
            // The guess was right, so its row is that of the token just chosen.
            right += 1;
            sequence.advance();
            last = outputs.next();
        };
        sequence.drafting.learn(self.guessed, right);
        Ok(finish)
    }
}

impl Server {
    /// Lets waiting sequences in, first come first served.
    pub(super) fn admit(&mut self) {
        while self.running.len() < self.options.sequences_max
            && let Some(mut sequence) = self.waiting.pop_front()
        {
            if !self.fits(&mut sequence) {
                self.waiting.push_front(sequence);
                break;
            }
            // It may have been let in before, ahead of some that run now.
            let at = self.running.partition_point(|other| other.ticket < sequence.ticket);
            self.running.insert(at, sequence);
            self.skip_cached(at);
            let sequence = &mut self.running[at];
            while sequence.pages.len() < sequence.pages_to_begin()
                && let Some(page) = self.pages.take()
            {
                sequence.pages.push(page);
            }
        }
    }

    /// The rows of the next step, and whether somebody reads along.
    pub(super) fn plan(&mut self) -> (Vec<Part>, bool) {
        let mut parts = Vec::new();
        let mut answering = false;
        // Those with one token to compute come first: nearly always that is the one chosen last.
        let mut index = 0;
        while index < self.running.len() {
            let sequence = &self.running[index];
            if sequence.pending() == 1 {
                let tokens = sequence.tokens.len();
                if !self.reserve(index, tokens) {
                    break;
                }
                answering |= self.running[index].is_answering();
                parts.push(self.part(index, 1));
            }
            index += 1;
        }
        let singles = parts.len();
        self.plan_prefill(&mut parts, answering);
        if parts.len() == singles {
            self.plan_guesses(&mut parts);
        }
        (parts, answering)
    }

    /// Adds parts of prompts, oldest first.
    fn plan_prefill(&mut self, parts: &mut Vec<Part>, answering: bool) {
        let mut rows_left = self.options.step_rows_max - parts.len();
        if answering {
            rows_left = rows_left.min(self.options.prefill_rows_while_decoding);
        }
        let mut echo_left = ECHO_ROWS_MAX;
        // Keys of pages that this step completes. Who needs the same waits for the next step, and finds
        // them in the cache then.
        let mut coming = BTreeSet::new();
        for index in 0..self.running.len() {
            if rows_left == 0 {
                break;
            }
            if self.running[index].pending() == 1 {
                continue;
            }
            self.skip_cached(index);
            let next = self.running[index].computed / PAGE_TOKENS;
            if self.shared_key(index, next).is_some_and(|key| coming.contains(&key)) {
                continue;
            }
            let sequence = &self.running[index];
            let mut rows = self.prefill_rows(sequence, rows_left);
            let computed = sequence.computed;
            if let Some(free) = (0..rows).find(|row| sequence.echo_wants(computed + row)) {
                rows = rows.min(free + echo_left);
                echo_left -= rows - free;
            }
            if rows > 0 {
                rows_left -= rows;
                let full = (sequence.computed + rows) / PAGE_TOKENS;
                coming.extend((next..full).filter_map(|page| self.shared_key(index, page)));
                parts.push(self.part(index, rows));
            }
        }
    }

    /// The key of a page that the sequence may share but has yet to compute.
    fn shared_key(&mut self, index: usize, page: usize) -> Option<PageKey> {
        let sequence = &mut self.running[index];
        let shared = self.options.prefix_cache && sequence.may_skip_page(page);
        shared.then(|| sequence.chain.upto(&sequence.tokens, page + 1).get(page).copied())?
    }

    /// How many of at most `rows_left` rows the sequence's next part has.
    fn prefill_rows(&self, sequence: &Sequence, rows_left: usize) -> usize {
        let (start, pending) = (sequence.computed, sequence.pending());
        if !self.decoder.batch_invariant() {
            // Tokens of an answer were computed one by one when they were chosen; doing the same again
            // is the closest that such a decoder comes to an unchanged answer.
            match sequence.prompt_tokens.checked_sub(start) {
                Some(prompt) if prompt > 0 => return prompt.min(rows_left),
                _ => return 1,
            }
        }
        if pending <= rows_left {
            return pending;
        }
        // Ending with a page lets others share it sooner.
        let whole = (start + rows_left) / PAGE_TOKENS * PAGE_TOKENS;
        if whole > start { whole - start } else { rows_left }
    }

    /// Appends guesses to parts of one row while few sequences are answered.
    fn plan_guesses(&mut self, parts: &mut [Part]) {
        let invariant = self.decoder.batch_invariant();
        if !invariant || parts.len() > self.options.draft_sequences_max {
            return;
        }
        let step = self.options.step_rows_max - parts.len();
        let mut rows_left = self.options.draft_rows_max.min(step);
        let mut sharers = parts.len();
        for part in parts {
            let sequence = &mut self.running[part.index];
            // The last token that may be chosen needs no row of its own.
            let most = (rows_left / sharers).min(sequence.left().saturating_sub(1));
            sharers -= 1;
            let guesses = sequence.drafting.guess(&sequence.tokens, most).to_vec();
            let end = sequence.tokens.len() + guesses.len();
            while sequence.pages.len() * PAGE_TOKENS < end
                && let Some(page) = self.pages.take()
            {
                sequence.pages.push(page);
            }
            let room = sequence.pages.len() * PAGE_TOKENS - sequence.tokens.len();
            part.guessed = guesses.len().min(room);
            part.tokens.extend(&guesses[..part.guessed]);
            rows_left -= part.guessed;
        }
    }

    fn part(&self, index: usize, rows: usize) -> Part {
        let sequence = &self.running[index];
        let start = sequence.computed;
        Part { index, start, tokens: sequence.tokens[start..start + rows].to_vec(), guessed: 0 }
    }

    /// Whether a sequence could be let in now, and every running one still grow by a page.
    fn fits(&self, sequence: &mut Sequence) -> bool {
        let (mut hits, mut idle_hits) = (0, 0);
        while self.options.prefix_cache && sequence.may_skip_page(hits) {
            let key = sequence.chain.upto(&sequence.tokens, hits + 1).get(hits);
            let Some(page) = key.and_then(|key| self.pages.find(key)) else { break };
            idle_hits += usize::from(self.pages.is_idle(page));
            hits += 1;
        }
        let need = sequence.pages_to_begin().saturating_sub(hits) + self.running.len();
        need + idle_hits <= self.pages.available()
    }

    /// Takes what the prefix cache knows of the sequence's next pages instead of computing it.
    fn skip_cached(&mut self, index: usize) {
        let sequence = &mut self.running[index];
        while self.options.prefix_cache
            && let at = sequence.computed / PAGE_TOKENS
            && sequence.may_skip_page(at)
        {
            let key = sequence.chain.upto(&sequence.tokens, at + 1).get(at);
            let Some(page) = key.and_then(|key| self.pages.find(key)) else { break };
            self.pages.share(page);
            match sequence.pages.get_mut(at) {
                Some(own) => self.pages.release(std::mem::replace(own, page)),
                None => sequence.pages.push(page),
            }
            sequence.published = sequence.published.max(at + 1);
            self.stats.cached_tokens += sequence.skip_page() as u64;
        }
    }

    /// Gives the sequence pages for `tokens` tokens, taking them from younger ones if need be; false
    /// when it was the youngest itself and had to make room.
    fn reserve(&mut self, index: usize, tokens: usize) -> bool {
        while self.running[index].pages.len() * PAGE_TOKENS < tokens {
            match self.pages.take() {
                Some(page) => self.running[index].pages.push(page),
                None => {
                    let youngest = self.running.len() - 1;
                    self.preempt(youngest);
                    if youngest == index {
                        return false;
                    }
                }
            }
        }
        true
    }

    fn preempt(&mut self, index: usize) {
        let mut sequence = self.running.remove(index);
        self.pages.release_table(&mut sequence.pages);
        sequence.restart();
        self.stats.preemptions += 1;
        let at = self.waiting.partition_point(|other| other.ticket < sequence.ticket);
        self.waiting.insert(at, sequence);
    }
}
