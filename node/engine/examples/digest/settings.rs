//! The ways of computing the same answers that are compared, and how one of them is taken.

use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroUsize;
use std::path::Path;

use allmend_engine::{
    ChatMessage, Compute, Engine, EngineError, Event, Finish, Input, Isa, LoadOptions, Request,
    Sampling, ServeOptions, Stats,
};
use sha2::{Digest as _, Sha256};

use crate::prompts::PROMPTS;

pub(crate) type Failure = Box<dyn std::error::Error>;

/// Longest prompt and answer together that are served.
const CONTEXT_TOKENS: u32 = 2_048;
/// Tokens of one page of the cache.
const PAGE_TOKENS: usize = 16;
/// End tokens that are looked for; no model is known to have as many.
const END_TOKENS_MAX: usize = 16;

/// What every setting computes.
///
/// Answers have the full length: the tokens with which the model would end one are banned by a logit bias of
/// -100, so that no comparison is cut short.
pub(crate) struct Work {
    requests: BTreeMap<&'static str, Vec<Request>>,
    /// Tokens of each prompt.
    prompt_tokens: Vec<usize>,
    answer_tokens: usize,
}

impl Work {
    /// Takes the first `prompts` prompts, every second one as a chat where the model has a template, once
    /// greedily and once with temperature 0.8, top-p 0.95 and a seed each. Which tokens end an answer is learnt
    /// by trying.
    ///
    /// # Errors
    /// When the model cannot be loaded, or banning its end tokens does not help.
    pub(crate) fn prepare(model: &Path, prompts: usize, tokens: u32) -> Result<Self, Failure> {
        let options = LoadOptions { context_tokens: Some(CONTEXT_TOKENS), ..Default::default() };
        let mut engine = Engine::load(model, &options)?;
        let chat = engine.info().chat;
        let inputs: Vec<Input> = PROMPTS[..prompts.clamp(1, PROMPTS.len())]
            .iter()
            .enumerate()
            .map(|(index, prompt)| match chat && index % 2 == 0 {
                true => Input::Chat(vec![ChatMessage {
                    role: "user".to_owned(),
                    content: (*prompt).to_owned(),
                }]),
                false => Input::Prompt((*prompt).to_owned()),
            })
            .collect();
        let prompt_tokens =
            inputs.iter().map(|input| engine.count_tokens(input, 0)).collect::<Result<_, _>>()?;
        let mut banned = BTreeSet::new();
        loop {
            let requests = requests(&inputs, tokens, &banned);
            let all: Vec<Request> = requests.values().flatten().cloned().collect();
            let answers = answers(&mut engine, &all)?;
            let ended = answers.iter().filter(|answer| answer.finish == Some(Finish::Stop));
            let ended: BTreeSet<u32> =
                ended.filter_map(|answer| answer.ids.last().copied()).collect();
            if ended.is_empty() {
                let answer_tokens = tokens as usize;
                return Ok(Self { requests, prompt_tokens, answer_tokens });
            }
            if banned.len() >= END_TOKENS_MAX || !banned.is_disjoint(&ended) {
                return Err("answers end although their end tokens are banned".into());
            }
            banned.extend(ended);
        }
    }

    /// Tokens that are compared, of one sampling.
    pub(crate) fn answered_tokens(&self) -> usize {
        self.prompt_tokens.len() * self.answer_tokens
    }

    /// Tokens of cache in which nothing ever has to make room.
    fn tokens_for_all(&self) -> usize {
        let pages = |prompt: &usize| (prompt + self.answer_tokens).div_ceil(PAGE_TOKENS) + 1;
        self.prompt_tokens.iter().map(pages).sum::<usize>() * PAGE_TOKENS
    }

    /// Tokens of cache with which as many as `sequences` can begin, but hardly grow.
    fn tokens_for_too_few(&self, sequences: usize) -> usize {
        let begin = |prompt: &usize| (prompt + 1).div_ceil(PAGE_TOKENS) + 1;
        let pages: usize = self.prompt_tokens.iter().take(sequences).map(begin).sum();
        let longest =
            self.prompt_tokens.iter().max().map_or(0, |longest| longest + self.answer_tokens);
        (pages - 1).max(longest.div_ceil(PAGE_TOKENS)) * PAGE_TOKENS
    }
}

fn requests(
    inputs: &[Input],
    tokens: u32,
    banned: &BTreeSet<u32>,
) -> BTreeMap<&'static str, Vec<Request>> {
    let logit_bias: Vec<_> = banned.iter().map(|&id| (id, -100_000)).collect();
    let greedy = Sampling { logit_bias, ..Sampling::GREEDY };
    let seeded = Sampling { temperature_milli: 800, top_p_milli: 950, ..greedy.clone() };
    let all = |sampling: &Sampling| {
        let request = |(seed, input): (u64, &Input)| Request {
            sampling: Sampling { seed, ..sampling.clone() },
            ..Request::new(input.clone(), tokens)
        };
        (1..).zip(inputs).map(request).collect()
    };
    BTreeMap::from([("greedy", all(&greedy)), ("seeded", all(&seeded))])
}

/// One way of computing.
#[derive(Clone, Debug)]
pub(crate) struct Setting {
    pub(crate) name: String,
    threads: usize,
    /// Sequences computed together at most.
    sequences: usize,
    isa: Isa,
    /// Rows of a step at most, by which prompts are cut.
    step_rows: usize,
    /// With a prefix cache, and everything is asked twice.
    cached: bool,
    drafts: bool,
    /// With so little cache that sequences give up their pages and are computed again.
    crowded: bool,
}

/// What a setting gave.
pub(crate) struct Outcome {
    /// The sampling and the digest of its answers; twice the same sampling where everything is asked twice.
    pub(crate) digests: Vec<(&'static str, String)>,
    pub(crate) stats: Stats,
}

impl Setting {
    /// One by one, and then everything that is to make no difference, each by itself.
    pub(crate) fn all() -> Vec<Self> {
        let together = Self {
            name: "16 together".to_owned(),
            threads: 2,
            sequences: 16,
            isa: Isa::detect(),
            step_rows: 512,
            cached: false,
            drafts: false,
            crowded: false,
        };
        let called = |name: &str| Self { name: name.to_owned(), ..together.clone() };
        let mut all = vec![
            Self { sequences: 1, ..called("one by one") },
            together.clone(),
            Self { threads: 1, ..called("one thread") },
            Self { sequences: 4, step_rows: 7, ..called("prompts in chunks of 7") },
            Self { cached: true, ..called("prefix cache, twice") },
            Self { sequences: 2, drafts: true, ..called("drafts") },
            Self { crowded: true, ..called("too little cache") },
        ];
        // The slowest comes last.
        let others: Vec<Isa> = Isa::available().filter(|isa| *isa != together.isa).collect();
        all.extend(others.into_iter().rev().map(|isa| Self { isa, ..called(isa.name()) }));
        all[1].name = format!("16 together ({})", together.isa.name());
        all
    }

    /// Computes everything in a freshly loaded engine.
    ///
    /// # Errors
    /// When it cannot, an answer has not the full length, or the setting did not do what it is there for.
    pub(crate) fn run(&self, model: &Path, work: &Work) -> Result<Outcome, Failure> {
        let mut engine = self.load(model, work)?;
        let mut digests = Vec::new();
        for (&sampling, requests) in &work.requests {
            let researcher = self.cached.then_some([1; 32]);
            let requests: Vec<Request> =
                requests.iter().map(|request| Request { researcher, ..request.clone() }).collect();
            for _ in 0..if self.cached { 2 } else { 1 } {
                let answers = answers(&mut engine, &requests)?;
                if answers.iter().any(|answer| answer.ids.len() != work.answer_tokens) {
                    return Err("an answer has not the full length".into());
                }
                digests.push((sampling, digest(&answers)));
            }
        }
        let stats = engine.stats();
        for (wanted, happened, what) in [
            (self.cached, stats.cached_tokens, "found anything in the prefix cache"),
            (self.drafts, stats.accepted, "guessed anything right"),
            (self.crowded, stats.preemptions, "had to make room"),
        ] {
            if wanted && happened == 0 {
                return Err(
                    format!("{}: no request has {what}, so it shows nothing", self.name).into()
                );
            }
        }
        Ok(Outcome { digests, stats })
    }

    fn load(&self, model: &Path, work: &Work) -> Result<Engine, Failure> {
        let cache_tokens = match self.crowded {
            true => work.tokens_for_too_few(self.sequences),
            false => work.tokens_for_all(),
        };
        let standard = ServeOptions::default();
        let options = LoadOptions {
            compute: Compute::Fused(Some(self.isa)),
            threads: NonZeroUsize::new(self.threads),
            context_tokens: Some(CONTEXT_TOKENS),
            cache_tokens: Some(u32::try_from(cache_tokens)?),
            serve: ServeOptions {
                sequences_max: self.sequences,
                step_rows_max: self.step_rows,
                prefill_rows_while_decoding: self.step_rows,
                draft_rows_max: if self.drafts { standard.draft_rows_max } else { 0 },
                prefix_cache: self.cached,
                ..standard
            },
            ..LoadOptions::default()
        };
        Ok(Engine::load(model, &options)?)
    }
}

#[derive(Default)]
struct Answer {
    ids: Vec<u32>,
    text: String,
    finish: Option<Finish>,
}

/// All answers, asked for at once.
fn answers(engine: &mut Engine, requests: &[Request]) -> Result<Vec<Answer>, EngineError> {
    let mut places = BTreeMap::new();
    for (place, request) in requests.iter().enumerate() {
        places.insert(engine.submit(request.clone())?, place);
    }
    let mut answers: Vec<Answer> = requests.iter().map(|_| Answer::default()).collect();
    let (mut events, mut more) = (Vec::new(), true);
    while more {
        more = engine.step(&mut events)?;
        for (ticket, event) in events.drain(..) {
            let Some(&place) = places.get(&ticket) else { continue };
            match event {
                Event::Token(token) => {
                    answers[place].ids.push(token.id);
                    answers[place].text.push_str(&token.text);
                }
                Event::Done(completion) => answers[place].finish = Some(completion.finish),
                Event::Failed(error) => return Err(error),
                _ => {}
            }
        }
    }
    Ok(answers)
}

/// SHA-256 of all ids and texts, each with its length before it.
fn digest(answers: &[Answer]) -> String {
    let mut hash = Sha256::new();
    for answer in answers {
        hash.update((answer.ids.len() as u64).to_le_bytes());
        answer.ids.iter().for_each(|id| hash.update(id.to_le_bytes()));
        hash.update((answer.text.len() as u64).to_le_bytes());
        hash.update(&answer.text);
    }
    hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}
