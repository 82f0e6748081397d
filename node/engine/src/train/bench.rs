//! Drives the engine for measuring: continuations and likelihoods of rows that are tokens already.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::Path;

use sha2::{Digest, Sha256};

use super::canary::Canaries;
use super::example::Example;
use super::measure::{MeasureError, MeasureOptions, MeasuredRows, Measures, Trial, measure};
use super::peft::AdapterFiles;
use super::prepare::{Preparation, Texts};
use crate::engine::{Engine, LoadOptions};
use crate::info::ModelInfo;
use crate::request::{Event, Input, Request, Ticket};

/// An adapter to measure, and with what.
pub struct Bench<'a> {
    /// The base model.
    pub engine: &'a mut Engine,
    /// The digest under which the engine has the adapter.
    pub adapter: [u8; 32],
    /// Asked before every step of the engine.
    pub keep_going: &'a mut dyn FnMut() -> ControlFlow<()>,
}

/// Sequences that the engine has room for while it measures.
const SEQUENCES: u32 = 8;

/// An adapter whose model is loaded for measuring, and given up again.
pub(super) struct AdapterUnderTest<'a> {
    pub(super) model: &'a Path,
    pub(super) adapter: &'a AdapterFiles,
    /// Longest example.
    pub(super) context_tokens: u32,
    pub(super) memory_bytes: Option<u64>,
}

impl AdapterUnderTest<'_> {
    /// As [`measure`].
    pub(super) fn measure(
        &self,
        texts: &Texts,
        preparation: &Preparation,
        rows: &MeasuredRows,
        canaries: Option<&Canaries>,
        options: &MeasureOptions,
        keep_going: &mut dyn FnMut() -> ControlFlow<()>,
    ) -> Result<Measures, MeasureError> {
        let context = self.context_tokens.saturating_add(options.longest_tokens + 1);
        let context = context.min(ModelInfo::read(self.model)?.context_tokens);
        let load = LoadOptions {
            context_tokens: Some(context),
            cache_tokens: Some(context.saturating_mul(SEQUENCES)),
            memory_mib: self.memory_bytes.map(|bytes| bytes >> 20),
            ..LoadOptions::default()
        };
        let mut engine = Engine::load(self.model, &load)?;
        let AdapterFiles { config_json, safetensors } = self.adapter;
        let adapter: [u8; 32] = Sha256::digest(safetensors).into();
        engine.load_adapter_files(adapter, config_json, safetensors)?;
        let mut bench = Bench { engine: &mut engine, adapter, keep_going };
        measure(&mut bench, texts, preparation, rows, canaries, options)
    }
}

/// Requests of one kind in flight at once; a step of the engine takes what fits.
const IN_FLIGHT: usize = 16;

/// Whose computed prompts these are; the engine serves nobody else.
const KEEPER: [u8; 32] = [0; 32];

/// What came of one request.
#[derive(Default)]
struct Heard {
    /// Tokens chosen.
    said: Vec<u32>,
    /// Log-probability of each prompt token, in millionths.
    micro: BTreeMap<u32, i32>,
    /// Log-probabilities of the tokens weighed after the prompt, in millionths.
    weighed: Vec<i32>,
}

/// Tokens that could follow a prompt.
pub(super) struct Weighed {
    pub(super) prompt: Vec<u32>,
    pub(super) tokens: Vec<u32>,
}

impl Bench<'_> {
    /// What follows each prompt, greedily.
    pub(super) fn continuations(
        &mut self,
        trials: &[Trial<'_>],
        adapted: bool,
        options: &MeasureOptions,
    ) -> Result<Vec<Vec<u32>>, MeasureError> {
        let job = |trial: &Trial<'_>| {
            let room = (self.engine.context_tokens() as usize).saturating_sub(trial.prompt.len());
            let most = trial.rest.len().min(options.longest_tokens as usize).min(room).max(1);
            let mut request = Request::new(Input::Prompt(String::new()), most as u32);
            request.adapter = adapted.then_some(self.adapter);
            (trial.prompt.to_vec(), request)
        };
        let jobs = trials.iter().map(job).collect();
        Ok(self.run(jobs)?.into_iter().map(|heard| heard.said).collect())
    }

    /// Negative log-likelihood of each example's labels, in nats.
    pub(super) fn likelihoods(
        &mut self,
        examples: &[Example],
        adapted: bool,
    ) -> Result<Vec<f64>, MeasureError> {
        let job = |example: &Example| {
            let mut request = Request::new(Input::Prompt(String::new()), 1);
            request.adapter = adapted.then_some(self.adapter);
            request.echo = true;
            request.logprobs = Some(0);
            let room = (self.engine.context_tokens() as usize).saturating_sub(1);
            (example.ids.iter().copied().take(room).collect(), request)
        };
        let jobs = examples.iter().map(job).collect();
        let heard = self.run(jobs)?;
        let sum = |(example, heard): (&Example, Heard)| {
            let labelled = (0u32..).zip(&example.labels).skip(1).filter(|(_, label)| **label);
            let micro = labelled.filter_map(|(at, _)| heard.micro.get(&at));
            -micro.map(|&micro| f64::from(micro) * 1e-6).sum::<f64>()
        };
        Ok(examples.iter().zip(heard).map(sum).collect())
    }

    /// Negative log-likelihood of each token after its prompt, with the adapter, in nats. What prompts have
    /// in common is computed once.
    pub(super) fn weigh(&mut self, weighed: Vec<Weighed>) -> Result<Vec<Vec<f64>>, MeasureError> {
        let room = (self.engine.context_tokens() as usize).saturating_sub(1);
        let job = |Weighed { mut prompt, tokens }| {
            let mut request = Request::new(Input::Prompt(String::new()), 1);
            request.adapter = Some(self.adapter);
            request.researcher = Some(KEEPER);
            request.logprobs = Some(0);
            request.weighed = tokens;
            prompt.truncate(room);
            (prompt, request)
        };
        let heard = self.run(weighed.into_iter().map(job).collect())?;
        let nats = |micro: i32| -f64::from(micro) * 1e-6;
        Ok(heard.into_iter().map(|heard| heard.weighed.into_iter().map(nats).collect()).collect())
    }

    fn run(&mut self, jobs: Vec<(Vec<u32>, Request)>) -> Result<Vec<Heard>, MeasureError> {
        let mut heard: Vec<Heard> = jobs.iter().map(|_| Heard::default()).collect();
        let mut waiting = jobs.into_iter().enumerate();
        let mut running: BTreeMap<Ticket, usize> = BTreeMap::new();
        let mut events = Vec::new();
        loop {
            while running.len() < IN_FLIGHT.min(self.engine.serve_options().waiting_max) {
                let Some((at, (ids, request))) = waiting.next() else { break };
                running.insert(self.engine.submit_ids(ids, request)?, at);
            }
            if running.is_empty() {
                return Ok(heard);
            }
            if (self.keep_going)().is_break() {
                running.keys().for_each(|&ticket| self.engine.cancel(ticket));
                return Err(MeasureError::Stopped);
            }
            self.engine.step(&mut events)?;
            for (ticket, event) in events.drain(..) {
                let Some(&at) = running.get(&ticket) else { continue };
                match event {
                    Event::Token(token) => {
                        heard[at].said.push(token.id);
                        heard[at].weighed =
                            token.logprobs.map_or_else(Vec::new, |of| of.weighed_micro);
                    }
                    Event::Prompt(tokens) => {
                        let known = tokens.into_iter().filter_map(|token| {
                            Some((token.index, token.logprobs?.chosen.logprob_micro))
                        });
                        heard[at].micro.extend(known);
                    }
                    Event::Done(_) => drop(running.remove(&ticket)),
                    Event::Failed(error) => return Err(error.into()),
                    Event::Prefilled { .. } => {}
                }
            }
        }
    }
}
