//! Serving: many requests over one decoder, step by step.
//!
//! A [`Server`] owns the sequences, their page tables and the free list; the [`Decoder`] behind it owns
//! weights and page memory. [`Server::step`] computes one batch: a row for every sequence that is being
//! answered, then parts of prompts up to a bound ([`ServeOptions`]), or guesses to verify when there is
//! room. Requests join and leave between steps. There is no clock, no thread and no randomness here:
//! equal calls give equal events.
//!
//! # Pages
//! A request is let in when the pages of its prompt and of one more token are there and every running
//! sequence could still grow by a page. It then grows page by page. When no page is left, the youngest
//! running sequence gives up all of its pages and waits to be computed again; the oldest is never made to
//! wait, and [`Server::submit`] refuses what would not fit alone, so there is always progress. What a
//! sequence is answered does not depend on any of this, as long as the decoder is batch-invariant
//! ([`Decoder::batch_invariant`]).
//!
//! # What is shared
//! Full pages are kept under keys that include who may share them ([`keys`]): one researcher's requests,
//! or everybody where the prefix was declared public. See [`pages`] for when they are given up.

mod draft;
mod keys;
mod options;
mod pages;
mod plan;
mod sequence;
mod stats;

use std::collections::VecDeque;
use std::sync::Arc;

pub use self::options::ServeOptions;
pub use self::stats::Stats;

use self::pages::Pages;
use self::plan::Part;
use self::sequence::Sequence;
use crate::adapter::Adapter;
use crate::decoder::{Batch, Decoder, Output, PAGE_TOKENS, Row, SequenceView};
use crate::error::EngineError;
use crate::request::{Event, Finish, Request, Ticket};

/// What serving must know of the vocabulary.
pub(crate) trait Words {
    /// Whether the model ends its answer with this token.
    fn is_end(&self, id: u32) -> bool;

    /// The bytes that a token stands for; possibly none, possibly part of a character.
    fn bytes(&self, id: u32) -> Vec<u8>;
}

/// A request whose input has been made into tokens, and everything in it checked but its size.
pub(crate) struct Job {
    pub(crate) request: Request,
    pub(crate) prompt: Vec<u32>,
    /// Leading tokens of the prompt that were declared public.
    pub(crate) public_tokens: usize,
    /// The adapter to compute with, and the digest that names it.
    pub(crate) adapter: Option<([u8; 32], Arc<Adapter>)>,
}

/// Sequences over one decoder.
pub(crate) struct Server {
    decoder: Box<dyn Decoder>,
    options: ServeOptions,
    pages: Pages,
    /// By ticket, as `running` is: who came first goes first, also after giving up its pages.
    waiting: VecDeque<Sequence>,
    running: Vec<Sequence>,
    next_ticket: u64,
    stats: Stats,
    /// Outputs of the last step; kept for its memory.
    outputs: Vec<f32>,
}

impl Server {
    pub(crate) fn new(decoder: Box<dyn Decoder>, options: &ServeOptions) -> Self {
        Self {
            options: options.fitted(decoder.rows_max()),
            pages: Pages::new(decoder.pages()),
            decoder,
            waiting: VecDeque::new(),
            running: Vec::new(),
            next_ticket: 0,
            stats: Stats::default(),
            outputs: Vec::new(),
        }
    }

    /// The options as they are in effect with this decoder.
    pub(crate) fn options(&self) -> &ServeOptions {
        &self.options
    }

    pub(crate) fn decoder(&self) -> &dyn Decoder {
        &*self.decoder
    }

    pub(crate) fn stats(&self) -> Stats {
        Stats {
            running: self.running.len(),
            waiting: self.waiting.len(),
            pages: self.pages.total(),
            pages_used: self.pages.used(),
            pages_cached: self.pages.cached(),
            pages_free: self.pages.free(),
            pages_evicted: self.pages.evictions(),
            ..self.stats
        }
    }

    /// Queues a request; its events come out of [`Server::step`].
    ///
    /// # Errors
    /// [`EngineError::CacheExceeded`] when it would not fit even alone, [`EngineError::Busy`] when too
    /// many wait already, and what is wrong with its stop strings.
    pub(crate) fn submit(&mut self, job: Job, words: &dyn Words) -> Result<Ticket, EngineError> {
        let longest = job.prompt.len() + job.request.max_tokens as usize;
        let pages = self.pages.total();
        if longest.div_ceil(PAGE_TOKENS) > pages {
            return Err(EngineError::CacheExceeded {
                need_tokens: longest as u64,
                cache_tokens: (pages * PAGE_TOKENS) as u64,
            });
        }
        if self.waiting.len() >= self.options.waiting_max {
            return Err(EngineError::Busy { waiting: self.waiting.len() });
        }
        let ticket = Ticket(self.next_ticket);
        self.waiting.push_back(Sequence::new(ticket, job, words)?);
        self.next_ticket += 1;
        Ok(ticket)
    }

    /// Stops a request; [`Event::Done`] with [`Finish::Cancelled`] comes out of the next step, at whose
    /// beginning its pages are freed. Does nothing when the request has ended.
    pub(crate) fn cancel(&mut self, ticket: Ticket) {
        let all = self.running.iter_mut().chain(&mut self.waiting);
        if let Some(sequence) = all.into_iter().find(|sequence| sequence.ticket == ticket) {
            sequence.cancelled = true;
        }
    }

    /// Computes one batch and appends what happened. Returns whether there is more to do.
    pub(crate) fn step(&mut self, words: &dyn Words, out: &mut Vec<(Ticket, Event)>) -> bool {
        self.sweep(out);
        self.admit();
        let (parts, answering) = self.plan();
        if !parts.is_empty() {
            self.count(&parts, answering);
            self.compute(&parts, words, out);
        }
        debug_assert_eq!(self.broken_invariant(), None);
        // Whoever is first in line alone can always be let in, so this is never a standstill.
        debug_assert!(!parts.is_empty() || self.running.is_empty() && self.waiting.is_empty());
        !(self.running.is_empty() && self.waiting.is_empty())
    }

    /// Outputs of all of `tokens`, computed `chunk` at a time beside everything else.
    ///
    /// # Shapes
    /// Returns (tokens, [`Output::width`]), flat.
    ///
    /// # Errors
    /// [`EngineError::CacheExceeded`] when the pages that running requests leave are too few.
    pub(crate) fn outputs(
        &mut self,
        tokens: &[u32],
        chunk: usize,
        output: Output,
    ) -> Result<Vec<f32>, EngineError> {
        let need = tokens.len().div_ceil(PAGE_TOKENS);
        if need > self.pages.available() {
            return Err(EngineError::CacheExceeded {
                need_tokens: tokens.len() as u64,
                cache_tokens: (self.pages.available() * PAGE_TOKENS) as u64,
            });
        }
        let mut table: Vec<_> = (0..need).map_while(|_| self.pages.take()).collect();
        let chunk = chunk.clamp(1, self.decoder.rows_max().max(1));
        let (mut outputs, mut all, mut outcome) = (Vec::new(), Vec::new(), Ok(()));
        for (index, part) in tokens.chunks(chunk).enumerate() {
            let rows: Vec<Row> = (index * chunk..)
                .zip(part)
                .map(|(position, &token)| Row { sequence: 0, position, token, wanted: true })
                .collect();
            let sequences = [SequenceView { pages: &table, adapter: None }];
            let batch = Batch { sequences: &sequences, rows: &rows };
            outcome = self.decoder.forward(&batch, output, &mut outputs);
            if outcome.is_err() {
                break;
            }
            all.extend_from_slice(&outputs);
        }
        self.pages.release_table(&mut table);
        outcome.map(|()| all)
    }

    /// The decoder with all of its pages, whose contents are given up.
    ///
    /// # Errors
    /// [`EngineError::Busy`] when requests are running.
    pub(crate) fn whole_decoder(&mut self) -> Result<&mut dyn Decoder, EngineError> {
        if self.running.is_empty() {
            self.pages.clear();
            return Ok(&mut *self.decoder);
        }
        Err(EngineError::Busy { waiting: self.running.len() + self.waiting.len() })
    }

    /// Ends what was cancelled, and what its forced tokens ended already.
    fn sweep(&mut self, out: &mut Vec<(Ticket, Event)>) {
        let (pages, stats) = (&mut self.pages, &mut self.stats);
        let mut keep = |sequence: &mut Sequence| {
            let finish = match (sequence.cancelled, sequence.ended) {
                (true, _) => Finish::Cancelled,
                (false, Some(finish)) => finish,
                (false, None) => return true,
            };
            pages.release_table(&mut sequence.pages);
            match finish {
                Finish::Cancelled => stats.cancelled += 1,
                _ => stats.finished += 1,
            }
            out.push((sequence.ticket, Event::Done(sequence.completion(finish))));
            false
        };
        self.running.retain_mut(&mut keep);
        self.waiting.retain_mut(&mut keep);
    }

    fn count(&mut self, parts: &[Part], answering: bool) {
        let rows = parts.iter().map(|part| part.tokens.len()).sum();
        self.stats.steps += 1;
        self.stats.rows += rows as u64;
        self.stats.step_rows = rows;
        self.stats.drafted += parts.iter().map(|part| part.guessed as u64).sum::<u64>();
        if answering {
            self.stats.stall_rows = self.stats.stall_rows.max(rows);
        }
    }

    /// Computes the parts in one batch. Should that fail, each is tried by itself, so that only the
    /// requests at fault fail.
    fn compute(&mut self, parts: &[Part], words: &dyn Words, out: &mut Vec<(Ticket, Event)>) {
        let mut over = vec![false; self.running.len()];
        let mut outputs = std::mem::take(&mut self.outputs);
        match self.forward(parts, &mut outputs) {
            Ok(()) => self.settle(parts, &mut outputs, words, &mut over, out),
            Err(error) if parts.len() == 1 => self.fail(parts, error, &mut over, out),
            Err(_) => {
                for part in parts.chunks(1) {
                    match self.forward(part, &mut outputs) {
                        Ok(()) => self.settle(part, &mut outputs, words, &mut over, out),
                        Err(error) => self.fail(part, error, &mut over, out),
                    }
                }
            }
        }
        self.outputs = outputs;
        let mut over = over.into_iter();
        let pages = &mut self.pages;
        self.running.retain_mut(|sequence| {
            let over = over.next().unwrap_or(false);
            if over {
                pages.release_table(&mut sequence.pages);
            }
            !over
        });
    }

    fn forward(&mut self, parts: &[Part], outputs: &mut Vec<f32>) -> Result<(), EngineError> {
        let (mut sequences, mut rows) = (Vec::with_capacity(parts.len()), Vec::new());
        for (index, part) in parts.iter().enumerate() {
            let sequence = &self.running[part.index];
            sequences
                .push(SequenceView { pages: &sequence.pages, adapter: sequence.adapter.as_ref() });
            rows.extend((part.start..).zip(&part.tokens).map(|(position, &token)| Row {
                sequence: index,
                position,
                token,
                wanted: sequence.wants(position),
            }));
        }
        let batch = Batch { sequences: &sequences, rows: &rows };
        self.decoder.forward(&batch, Output::Logits, outputs)
    }

    /// Takes in the outputs of computed parts.
    fn settle(
        &mut self,
        parts: &[Part],
        outputs: &mut [f32],
        words: &dyn Words,
        over: &mut [bool],
        out: &mut Vec<(Ticket, Event)>,
    ) {
        let mut rows = outputs.chunks_exact_mut(self.decoder.spec().vocab.max(1));
        for part in parts {
            let sequence = &mut self.running[part.index];
            let ticket = sequence.ticket;
            let wanted = (part.start..part.start + part.tokens.len())
                .filter(|&position| sequence.wants(position))
                .count();
            let mut own = rows.by_ref().take(wanted);
            let before = out.len();
            match part.settle(sequence, &mut own, words, out) {
                Ok(finish) => {
                    self.publish(part.index);
                    if let Some(finish) = finish {
                        over[part.index] = true;
                        self.stats.finished += 1;
                        let completion = self.running[part.index].completion(finish);
                        out.push((ticket, Event::Done(completion)));
                    }
                }
                Err(error) => {
                    self.fail(std::slice::from_ref(part), error, over, out);
                }
            }
            // Rows that a wrong guess left unread.
            own.for_each(drop);
            let chosen = out[before..].iter().filter(|(_, event)| matches!(event, Event::Token(_)));
            let chosen = chosen.count() as u64;
            self.stats.tokens += chosen;
            if part.guessed > 0 {
                self.stats.accepted += chosen.saturating_sub(1);
            }
        }
    }

    /// Ends the request of a part. What it computed may be damaged, so nobody shares it any more.
    fn fail(
        &mut self,
        parts: &[Part],
        error: EngineError,
        over: &mut [bool],
        out: &mut Vec<(Ticket, Event)>,
    ) {
        let Some(part) = parts.first() else { return };
        let sequence = &self.running[part.index];
        sequence.pages.iter().for_each(|&page| self.pages.forget(page));
        over[part.index] = true;
        self.stats.failed += 1;
        out.push((sequence.ticket, Event::Failed(error)));
    }

    /// Makes full pages known to the prefix cache.
    fn publish(&mut self, index: usize) {
        if !self.options.prefix_cache {
            return;
        }
        let sequence = &mut self.running[index];
        let full = sequence.computed / PAGE_TOKENS;
        let keys = sequence.chain.upto(&sequence.tokens, full);
        for (page, &key) in sequence.pages.iter_mut().zip(keys).skip(sequence.published) {
            if let Some(same) = self.pages.publish(*page, key) {
                *page = same;
            }
        }
        sequence.published = sequence.published.max(keys.len());
    }

    /// What contradicts itself; None unless there is a bug.
    fn broken_invariant(&self) -> Option<String> {
        let all = || self.running.iter().chain(&self.waiting);
        if self.running.len() > self.options.sequences_max {
            return Some(format!("{} sequences run", self.running.len()));
        }
        if !self.running.is_sorted_by_key(|sequence| sequence.ticket)
            || !self.waiting.iter().is_sorted_by_key(|sequence| sequence.ticket)
        {
            return Some("somebody jumped the queue".to_owned());
        }
        for sequence in all() {
            if sequence.computed > sequence.pages.len() * PAGE_TOKENS {
                return Some(format!("{:?} computed more than it has pages", sequence.ticket));
            }
            if sequence.computed >= sequence.tokens.len() {
                return Some(format!("{:?} has nothing to compute", sequence.ticket));
            }
        }
        if self.waiting.iter().any(|sequence| !sequence.pages.is_empty()) {
            return Some("somebody waits with pages".to_owned());
        }
        self.pages.broken_invariant(all().map(|sequence| sequence.pages.as_slice()))
    }
}

#[cfg(test)]
mod tests;
