//! Serving over a decoder that notices every fault of paging: random mixes of requests, and the scenes
//! that serving was built for.

mod mixes;
mod recorder;
mod reference;
mod scenes;
mod sharing;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use self::recorder::{Log, Recorder};
use self::reference::{Answer, Letters};
use super::{Job, ServeOptions, Server, Stats};
use crate::error::EngineError;
use crate::request::{Completion, Event, Input, Request, Ticket};
use crate::sampling::Sampling;

/// A server over a recorder, and what came out of it.
struct World {
    server: Server,
    log: Arc<Mutex<Log>>,
    told: BTreeMap<Ticket, Told>,
}

/// What was told of one request.
#[derive(Debug, Default)]
struct Told {
    answer: Answer,
    prefilled: Vec<(u32, u32)>,
    completion: Option<Completion>,
    failure: Option<EngineError>,
}

impl World {
    fn new(pages: usize, options: ServeOptions) -> Self {
        let recorder = Recorder::new(pages, 1_024);
        let log = Arc::clone(&recorder.log);
        Self { server: Server::new(Box::new(recorder), &options), log, told: BTreeMap::new() }
    }

    fn submit(&mut self, job: Job) -> Ticket {
        let ticket = self.server.submit(job, &Letters).unwrap();
        self.told.insert(ticket, Told::default());
        ticket
    }

    /// One step; returns whether there is more to do and how many tokens each request got.
    fn step(&mut self) -> (bool, BTreeMap<Ticket, usize>) {
        let mut events = Vec::new();
        let more = self.server.step(&Letters, &mut events);
        let mut tokens = BTreeMap::new();
        for (ticket, event) in events {
            let told = self.told.get_mut(&ticket).unwrap();
            assert!(
                told.completion.is_none() && told.failure.is_none(),
                "something follows the end"
            );
            match event {
                Event::Prefilled { done_tokens, total_tokens } => {
                    told.prefilled.push((done_tokens, total_tokens));
                }
                Event::Prompt(part) => told.answer.prompt.extend(part),
                Event::Token(token) => {
                    *tokens.entry(ticket).or_default() += 1;
                    told.answer.tokens.push(token);
                }
                Event::Done(completion) => {
                    told.answer.finish = Some(completion.finish);
                    told.completion = Some(completion);
                }
                Event::Failed(error) => told.failure = Some(error),
            }
        }
        (more, tokens)
    }

    /// Steps until nothing is left to do.
    fn run(&mut self) {
        for _ in 0..100_000 {
            if !self.step().0 {
                return;
            }
        }
        panic!("no end in sight: {:?}", self.server.stats());
    }

    /// Submits, runs, and returns what was told.
    fn ask(&mut self, job: Job) -> &Told {
        let ticket = self.submit(job);
        self.run();
        &self.told[&ticket]
    }

    fn rows_computed(&self) -> usize {
        self.log.lock().unwrap().batches.iter().map(Vec::len).sum()
    }
}

/// A greedy request of nobody in particular.
fn job(prompt: Vec<u32>, max_tokens: u32) -> Job {
    let request = Request::new(Input::Prompt(String::new()), max_tokens);
    Job { request, prompt, public_tokens: 0, adapter: None }
}

fn warm(seed: u64) -> Sampling {
    Sampling { temperature_milli: 800, seed, ..Sampling::GREEDY }
}

/// Tokens that depend on `seed` and stay clear of the end.
fn tokens(seed: u64, len: usize) -> Vec<u32> {
    (0..len as u64).map(|at| 1 + (recorder::mix(seed << 32 | at) % 89) as u32).collect()
}

fn copy(job: &Job) -> Job {
    Job {
        request: job.request.clone(),
        prompt: job.prompt.clone(),
        public_tokens: job.public_tokens,
        adapter: job.adapter.clone(),
    }
}
