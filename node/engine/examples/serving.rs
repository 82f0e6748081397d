//! Shows what many people at one engine get: 64 chats on memory for 12, a long prompt among them, and prefixes that
//! were computed before.
//!
//! ```text
//! cargo run --release -p allmend-engine --example serving -- MODEL [--pairs N] [--json]
//! ```
//! `crowd`: 64 chats of mixed lengths at once, on a cache that holds 12 of mean length. Once most of the first are
//! being answered, a prompt of 4,096 tokens is asked for too. Afterwards all are asked again one by one. Reported are
//! the longest wait for a next token, in milliseconds and in rows of the step, for requests that went on without a
//! break and for those that had to make room, and the most memory ever resident.
//!
//! `prefix`: pairs of requests of one researcher that begin with the same 1,000 tokens; each pair with others. Reported
//! are the medians of the times to the first token.
//!
//! Exits with 1 when an answer differs from the one alone, a step exceeds the stated rows, memory exceeds the plan,
//! nobody was being answered beside the long prompt, or a known prefix is less than ten times as fast.

#![allow(clippy::print_stdout, reason = "printing is what it is for")]

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use allmend_engine::{
    ChatMessage, Completion, Engine, EngineError, Event, Input, LoadOptions, ModelInfo,
    NUMERICS_VERSION, Request, Ticket,
};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

type Failure = Box<dyn std::error::Error>;

const USAGE: &str = "usage: serving MODEL [--pairs N] [--json]";

const CHATS: usize = 64;
/// Chats of mean length for which the cache has memory.
const CHATS_THAT_FIT: usize = 12;
const LONG_PROMPT_TOKENS: usize = 4_096;
const LONG_ANSWER_TOKENS: u32 = 32;
const PREFIX_TOKENS: usize = 1_000;
const RATIO_MIN: f64 = 10.0;
/// Room for the long prompt and what a template puts around it.
const CONTEXT_TOKENS: u32 = 4_352;

fn main() -> Result<ExitCode, Failure> {
    let (mut model, mut pairs, mut json) = (None, 5, false);
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--pairs" => pairs = arguments.next().ok_or(USAGE)?.parse()?,
            "--json" => json = true,
            flag if flag.starts_with('-') => return Err(USAGE.into()),
            _ => model = Some(PathBuf::from(argument)),
        }
    }
    let path = model.ok_or(USAGE)?;
    let info = ModelInfo::read(&path)?;
    if info.context_tokens < CONTEXT_TOKENS {
        let has = info.context_tokens;
        return Err(
            format!("a context of {CONTEXT_TOKENS} tokens is needed, this has {has}").into()
        );
    }
    let lengths: Vec<Length> = (0..CHATS).map(Length::of).collect();
    let all_tokens: usize =
        lengths.iter().map(|length| length.prompt + length.answer as usize).sum();
    let cache_tokens = u32::try_from((all_tokens * CHATS_THAT_FIT / CHATS).next_multiple_of(16))?;
    let options = LoadOptions {
        context_tokens: Some(CONTEXT_TOKENS),
        cache_tokens: Some(cache_tokens),
        ..LoadOptions::default()
    };
    let mut engine = Engine::load(&path, &options)?;
    let crowd = Crowd::of(&mut engine, &lengths)?;
    let plan_mib = info.memory_mib(cache_tokens);
    // The most so far: only loading and the crowd.
    let peak_mib = peak_mib();
    eprintln!("one by one");
    let alone: Vec<Answer> = crowd
        .requests
        .iter()
        .map(|request| {
            Ok(Run::of(&mut engine, std::slice::from_ref(request), None)?.answers.remove(0))
        })
        .collect::<Result<_, EngineError>>()?;
    let different =
        crowd.run.answers.iter().zip(&alone).filter(|(a, b)| a.said() != b.said()).count();
    eprintln!("prefixes");
    let prefix = Prefix::of(&mut engine, pairs)?;
    let judged = [
        ("all answers as alone", different == 0),
        (
            "rows within the bound",
            crowd.stall_rows <= crowd.stall_rows_max && crowd.breaks_explained(),
        ),
        ("answers beside the long prompt", crowd.beside_long > 0),
        ("memory within the plan", peak_mib.is_none_or(|peak| peak <= plan_mib as f64)),
        ("known prefixes ten times as fast", prefix.ratio >= RATIO_MIN),
    ];
    let passed = judged.iter().all(|(_, good)| *good);
    let mut told = json!({
        "model": info.name, "quantisation": info.quantisation, "numerics": NUMERICS_VERSION,
        "cache_tokens": cache_tokens, "plan_mib": plan_mib, "peak_mib": peak_mib,
        "answers": alone.len(), "answers_different": different,
        "digest_together": digest(&crowd.run.answers), "digest_alone": digest(&alone),
        "crowd": crowd.json(), "prefix": prefix.json(), "passed": passed,
    });
    told["judged"] = judged.iter().map(|(what, good)| ((*what).to_owned(), json!(good))).collect();
    if json {
        println!("{told}");
    } else {
        println!("{told:#}");
        for (what, good) in judged {
            println!("{} {what}", if good { "ok    " } else { "FAILED" });
        }
    }
    Ok(if passed { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Tokens of a chat's question and at most of its answer.
#[derive(Clone, Copy)]
struct Length {
    prompt: usize,
    answer: u32,
}

impl Length {
    /// Mixed: questions of 100 to 1,108 tokens, answers of 60 to 140.
    fn of(chat: usize) -> Self {
        Self { prompt: 100 + (chat * 37 % CHATS) * 16, answer: 60 + (chat * 29 % 81) as u32 }
    }
}

/// Many chats at once, and what there is to say of it.
struct Crowd {
    requests: Vec<Request>,
    run: Run,
    seconds: f64,
    stall_rows: usize,
    stall_rows_max: usize,
    preemptions: u64,
    /// Chats that got tokens while the long prompt was being computed.
    beside_long: usize,
}

impl Crowd {
    fn of(engine: &mut Engine, lengths: &[Length]) -> Result<Self, Failure> {
        let mut requests = Vec::new();
        for (seed, length) in lengths.iter().enumerate() {
            let question = made_up(engine, length.prompt, seed as u64)?;
            requests.push(Request::new(input(engine, question), length.answer));
        }
        let long = made_up(engine, LONG_PROMPT_TOKENS, CHATS as u64)?;
        let long = Request::new(Input::Prompt(long), LONG_ANSWER_TOKENS);
        eprintln!("{CHATS} chats at once");
        let begun = Instant::now();
        let run = Run::of(engine, &requests, Some(&long))?;
        requests.push(long);
        let stats = engine.stats();
        let beside_long = run.beside_last();
        Ok(Self {
            requests,
            seconds: begun.elapsed().as_secs_f64(),
            stall_rows: stats.stall_rows,
            stall_rows_max: engine.serve_options().stall_rows_max(),
            preemptions: stats.preemptions,
            beside_long,
            run,
        })
    }

    /// Whoever waited for more than one step had to make room.
    fn breaks_explained(&self) -> bool {
        self.run.waits.iter().filter(|wait| wait.steps > 1).count() as u64 <= self.preemptions
    }

    fn json(&self) -> Value {
        let waits = |of: &dyn Fn(&Wait) -> bool| {
            let waits: Vec<&Wait> = self.run.waits.iter().filter(|wait| of(wait)).collect();
            json!({
                "waits": waits.len(),
                "ms_max": waits.iter().map(|wait| wait.ms).fold(0.0, f64::max),
                "rows_max": waits.iter().map(|wait| wait.rows).max(),
            })
        };
        json!({
            "seconds": self.seconds,
            "stall_rows_max": self.stall_rows_max, "stall_rows": self.stall_rows,
            "running_max": self.run.running_max, "preemptions": self.preemptions,
            "answered_beside_long_prompt": self.beside_long,
            "next_token": waits(&|wait| wait.steps == 1),
            "next_token_beside_long_prompt": waits(&|wait| wait.steps == 1 && wait.beside_last),
            "next_token_after_making_room": waits(&|wait| wait.steps > 1),
        })
    }
}

/// Requests from being submitted until all are answered.
struct Run {
    answers: Vec<Answer>,
    waits: Vec<Wait>,
    running_max: usize,
}

#[derive(Default)]
struct Answer {
    ids: Vec<u32>,
    text: String,
    completion: Option<Completion>,
    /// Step and time of the last token, and how many rows had been computed by then.
    last: Option<(u64, f64, u64)>,
    beside_last: bool,
}

impl Answer {
    fn said(&self) -> (&[u32], &str) {
        (&self.ids, &self.text)
    }
}

/// The time between two tokens of an answer that did not come out of the same step.
struct Wait {
    steps: u64,
    ms: f64,
    rows: u64,
    /// The last request's prompt was being computed.
    beside_last: bool,
}

impl Run {
    /// Submits `requests`, and `last` once three quarters of the ones that run are being answered.
    fn of(
        engine: &mut Engine,
        requests: &[Request],
        mut last: Option<&Request>,
    ) -> Result<Self, EngineError> {
        let begun = Instant::now();
        let mut places: BTreeMap<Ticket, usize> = BTreeMap::new();
        for request in requests {
            places.insert(engine.submit(request.clone())?, places.len());
        }
        let count = requests.len() + usize::from(last.is_some());
        let answers = (0..count).map(|_| Answer::default()).collect();
        let mut run = Self { answers, waits: Vec::new(), running_max: 0 };
        let (mut events, mut more, mut last_begun) = (Vec::new(), true, false);
        while more || last.is_some() {
            more = engine.step(&mut events)?;
            let now_ms = begun.elapsed().as_secs_f64() * 1e3;
            let stats = engine.stats();
            run.running_max = run.running_max.max(stats.running);
            let prompting =
                last_begun && run.answers.last().is_some_and(|last| last.ids.is_empty());
            for (ticket, event) in events.drain(..) {
                let Some(&place) = places.get(&ticket) else { continue };
                match event {
                    Event::Prefilled { .. } => last_begun |= place == requests.len(),
                    Event::Token(token) => {
                        let answer = &mut run.answers[place];
                        answer.ids.push(token.id);
                        answer.text.push_str(&token.text);
                        answer.beside_last |= prompting && place < requests.len();
                        let before = answer.last.replace((stats.steps, now_ms, stats.rows));
                        let before = before.filter(|(step, ..)| *step < stats.steps);
                        run.waits.extend(before.map(|(step, ms, rows)| Wait {
                            steps: stats.steps - step,
                            ms: now_ms - ms,
                            rows: stats.rows - rows,
                            beside_last: prompting,
                        }));
                    }
                    Event::Done(completion) => run.answers[place].completion = Some(completion),
                    Event::Failed(error) => return Err(error),
                    _ => {}
                }
            }
            let answering =
                |answer: &&Answer| !answer.ids.is_empty() && answer.completion.is_none();
            let answering = run.answers.iter().filter(answering).count();
            if answering * 4 >= stats.running * 3
                && let Some(request) = last.take()
            {
                places.insert(engine.submit(request.clone())?, requests.len());
                more = true;
            }
        }
        Ok(run)
    }

    /// Answers that went on while the last request's prompt was being computed.
    fn beside_last(&self) -> usize {
        self.answers.iter().filter(|answer| answer.beside_last).count()
    }
}

/// Pairs of requests that begin alike.
struct Prefix {
    pairs: usize,
    first_ms: f64,
    second_ms: f64,
    /// The median of the pairs' ratios.
    ratio: f64,
    /// The fewest tokens that a second request found computed.
    cached_tokens: u32,
}

impl Prefix {
    fn of(engine: &mut Engine, pairs: usize) -> Result<Self, Failure> {
        let (mut first_ms, mut second_ms, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
        let mut cached_tokens = u32::MAX;
        for pair in 0..pairs {
            let prefix = made_up(engine, PREFIX_TOKENS, 1_000 + pair as u64)?;
            let mut ask = |question: &str| -> Result<(f64, u32), Failure> {
                let request = Request {
                    researcher: Some([1; 32]),
                    ..Request::new(Input::Prompt(format!("{prefix}\n\n{question}")), 2)
                };
                let run = Run::of(engine, &[request], None)?;
                let completion = run.answers[0].completion.ok_or("a request has not ended")?;
                let first_token_ms = completion.timings.prefill_us as f64 / 1e3;
                Ok((first_token_ms, completion.usage.cached_tokens))
            };
            let (first, unknown) = ask("Who may graze here?")?;
            let (second, known) = ask("And who mends the fence?")?;
            if unknown != 0 {
                return Err("a prefix was known beforehand".into());
            }
            first_ms.push(first);
            second_ms.push(second);
            ratios.push(first / second);
            cached_tokens = cached_tokens.min(known);
        }
        let (first_ms, second_ms) = (median(&mut first_ms), median(&mut second_ms));
        Ok(Self { pairs, first_ms, second_ms, ratio: median(&mut ratios), cached_tokens })
    }

    fn json(&self) -> Value {
        json!({
            "pairs": self.pairs, "prefix_tokens": PREFIX_TOKENS, "cached_tokens": self.cached_tokens,
            "first_token_ms": self.first_ms, "first_token_known_prefix_ms": self.second_ms,
            "ratio": self.ratio,
        })
    }
}

/// A chat where the model has a template.
fn input(engine: &Engine, content: String) -> Input {
    match engine.info().chat {
        true => Input::Chat(vec![ChatMessage { role: "user".to_owned(), content }]),
        false => Input::Prompt(content),
    }
}

/// Common words in an order that the seed says, as many as fit into `tokens` tokens.
fn made_up(engine: &Engine, tokens: usize, seed: u64) -> Result<String, EngineError> {
    const WORDS: &[&str] = &[
        "common", "land", "village", "feeds", "many", "herds", "river", "stone", "light", "paper",
        "house", "garden", "winter", "morning", "window", "letter", "street", "market", "table",
        "green", "small", "bright", "quiet", "early", "often", "never", "always", "between",
        "under", "across", "before", "after",
    ];
    let mut state = seed.wrapping_add(1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    let mut text = String::new();
    loop {
        let missing = tokens - engine.count_tokens(&Input::Prompt(text.clone()), 0)?.min(tokens);
        let mut longer = text.clone();
        // No word has as many as four tokens, so this is not too much until it is one.
        for _ in 0..(missing / 4).max(1) {
            // Xorshift (Marsaglia, 2003): all that is asked of it is not to repeat.
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            longer.push(' ');
            longer.push_str(WORDS[state as usize % WORDS.len()]);
        }
        if engine.count_tokens(&Input::Prompt(longer.clone()), 0)? > tokens {
            return Ok(text);
        }
        text = longer;
    }
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

/// The middle value, or the upper one of the two in the middle.
fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

/// Highest resident memory of this process so far, where the operating system says.
fn peak_mib() -> Option<f64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    Some(line.trim().strip_suffix(" kB")?.parse::<f64>().ok()? / 1_024.0)
}
