//! Measures one model on this machine and prints a line of JSON.
//!
//! ```text
//! cargo run --release -p allmend-engine --example bench -- MODEL [--task all|single|batch]
//!     [--prompt-tokens N] [--answer-tokens N] [--batches 1,4,16,32] [--runs N] [--threads N]
//!     [--isa portable|avx2|avx512] [--prompts FILE] [--drafts] [--json]
//! ```
//! `single`: one sequence, greedy, no drafts: loading, the first request's time to its first token, then the
//! medians of later runs' prefill and decode rates, and the answers' ids. `batch`: with each number of sequences
//! the rate at which all of them together get tokens while all of them are being answered. `all`, the default: both,
//! `batch` with prompts and answers of 64 tokens.
//!
//! Times in milliseconds, rates in tokens per second, memory in MiB: the most that was resident at any time.
//! Each figure comes from a process of its own, so that none is charged for another one's memory.
//! `--prompts`: a JSON object from lengths to lists of `{"text": …}`, such as `testnet/interop` writes; by default
//! words in a random order. No prompt comes twice. `--drafts`: with prompt-lookup drafts, which are off otherwise.

#![allow(clippy::print_stdout, reason = "printing is what it is for")]

use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Instant;

use allmend_engine::{
    Completion, Compute, Engine, EngineError, Event, Input, Isa, LoadOptions, NUMERICS_VERSION,
    Request, ServeOptions, THREADS_ENV, Ticket,
};
use serde_json::{Value, json};

type Failure = Box<dyn std::error::Error>;

/// Tokens of each prompt and of each answer when many sequences run and nothing else is said.
const BATCH_TOKENS: usize = 64;

fn main() -> Result<(), Failure> {
    let options = Options::parse(std::env::args().skip(1))?;
    let told = match (options.task, options.here) {
        (Task::All, _) => all(&options)?,
        // The thread count is read from the environment when a process first computes.
        (_, false) => elsewhere(&options, options.task, options.batches.first().copied())?,
        (Task::Single, true) => single(&options)?,
        (Task::Batch, true) => batch(&options)?,
    };
    println!("{told}");
    Ok(())
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Task {
    All,
    Single,
    Batch,
}

/// What the command line says.
struct Options {
    model: PathBuf,
    task: Task,
    prompt_tokens: usize,
    answer_tokens: u32,
    batches: Vec<usize>,
    runs: usize,
    threads: NonZeroUsize,
    isa: Option<Isa>,
    prompts: Option<PathBuf>,
    drafts: bool,
    /// Whether this process is the one that computes.
    here: bool,
}

impl Options {
    fn parse(mut arguments: impl Iterator<Item = String>) -> Result<Self, Failure> {
        let mut options = Self {
            model: PathBuf::new(),
            task: Task::All,
            prompt_tokens: 512,
            answer_tokens: 128,
            batches: vec![1, 4, 16, 32],
            runs: 3,
            threads: std::thread::available_parallelism()?,
            isa: None,
            prompts: None,
            drafts: false,
            here: false,
        };
        while let Some(argument) = arguments.next() {
            let mut value = || arguments.next().ok_or(format!("{argument} needs a value"));
            match argument.as_str() {
                "--task" => {
                    options.task = match value()?.as_str() {
                        "all" => Task::All,
                        "single" => Task::Single,
                        "batch" => Task::Batch,
                        other => return Err(format!("--task {other} is not known").into()),
                    }
                }
                "--prompt-tokens" => options.prompt_tokens = value()?.parse()?,
                "--answer-tokens" => options.answer_tokens = value()?.parse()?,
                "--batches" | "--batch" => {
                    let list = value()?;
                    options.batches = list.split(',').map(str::parse).collect::<Result<_, _>>()?;
                }
                "--runs" => options.runs = value()?.parse()?,
                "--threads" => options.threads = value()?.parse()?,
                "--isa" => options.isa = Some(isa(&value()?)?),
                "--prompts" => options.prompts = Some(value()?.into()),
                "--drafts" => options.drafts = true,
                // There is no other form; the flag says that a caller relies on it.
                "--json" => {}
                "--here" => options.here = true,
                flag if flag.starts_with('-') => return Err(format!("{flag} is not known").into()),
                _ => options.model = argument.into(),
            }
        }
        if options.model.as_os_str().is_empty() {
            return Err("usage: bench MODEL [--task all|single|batch] …".into());
        }
        if options.answer_tokens < 2 || options.runs == 0 || options.batches.contains(&0) {
            return Err("a rate takes a run of two tokens or more".into());
        }
        Ok(options)
    }

    fn load(&self, sequences: usize) -> Result<(Engine, f64), Failure> {
        let context_tokens = u32::try_from(self.prompt_tokens)? + self.answer_tokens;
        let wanted = LoadOptions {
            threads: Some(self.threads),
            context_tokens: Some(context_tokens),
            // A cache for these sequences and no more; whole pages each.
            cache_tokens: Some(context_tokens.next_multiple_of(16) * u32::try_from(sequences)?),
            slots: NonZeroUsize::new(sequences),
            serve: ServeOptions {
                sequences_max: sequences,
                // Guesses would make repetitive answers look fast, and known prompts every prompt.
                draft_rows_max: if self.drafts {
                    ServeOptions::default().draft_rows_max
                } else {
                    0
                },
                prefix_cache: false,
                ..ServeOptions::default()
            },
            compute: Compute::Fused(self.isa),
            ..LoadOptions::default()
        };
        let begun = Instant::now();
        let engine = Engine::load(&self.model, &wanted)?;
        Ok((engine, ms(begun)))
    }

    fn request(&self, prompt: &str) -> Request {
        Request::new(Input::Prompt(prompt.to_owned()), self.answer_tokens)
    }
}

/// A set of instructions by its name.
fn isa(name: &str) -> Result<Isa, Failure> {
    let mut known = Isa::available();
    known.find(|isa| isa.name() == name).ok_or_else(|| {
        let known: Vec<_> = Isa::available().map(Isa::name).collect();
        format!("{name} is not among {}", known.join(", ")).into()
    })
}

/// Both tasks, put together.
fn all(options: &Options) -> Result<Value, Failure> {
    let mut told = elsewhere(options, Task::Single, None)?;
    let mut rates = serde_json::Map::new();
    for &sequences in &options.batches {
        let one = elsewhere(options, Task::Batch, Some(sequences))?;
        rates.insert(sequences.to_string(), one["decode_tokens_per_s"].clone());
    }
    told["batch"] = rates.into();
    Ok(told)
}

/// Runs one task in a process of its own.
fn elsewhere(options: &Options, task: Task, sequences: Option<usize>) -> Result<Value, Failure> {
    let tokens = match (options.task, task) {
        (Task::All, Task::Batch) => (BATCH_TOKENS, BATCH_TOKENS as u32),
        _ => (options.prompt_tokens, options.answer_tokens),
    };
    let mut command = Command::new(std::env::current_exe()?);
    command.arg(&options.model).arg("--here");
    command.args(["--task", if task == Task::Single { "single" } else { "batch" }]);
    command.args(["--prompt-tokens", &tokens.0.to_string()]);
    command.args(["--answer-tokens", &tokens.1.to_string()]);
    command.args(["--runs", &options.runs.to_string()]);
    command.args(["--threads", &options.threads.to_string()]);
    command.args(sequences.iter().flat_map(|n| ["--batches".to_owned(), n.to_string()]));
    command.args(options.isa.iter().flat_map(|isa| ["--isa", isa.name()]));
    if options.drafts {
        command.arg("--drafts");
    }
    if let Some(prompts) = &options.prompts {
        command.arg("--prompts").arg(prompts);
    }
    command.env(THREADS_ENV, options.threads.to_string()).stderr(Stdio::inherit());
    let output = command.output()?;
    if !output.status.success() {
        return Err(format!("the measuring process ended with {}", output.status).into());
    }
    Ok(serde_json::from_slice(&output.stdout)?)
}

/// One sequence. The first run says how long the first request after loading waits; the others count.
fn single(options: &Options) -> Result<Value, Failure> {
    let (mut engine, load_ms) = options.load(1)?;
    let prompts = prompts(options, &engine, options.runs + 1)?;
    let (mut first_ms, mut prefill, mut decode) = (Vec::new(), Vec::new(), Vec::new());
    let mut answers = Vec::new();
    for prompt in &prompts {
        let run = Run::of(&mut engine, [options.request(prompt)])?;
        let (begun, ended) = (run.all_started_s(), run.steps.last().map_or(f64::NAN, |s| s.at_s));
        first_ms.push(begun * 1e3);
        prefill.push(f64::from(run.prompt_tokens) / begun);
        decode.push(
            (run.answers.values().map(Vec::len).sum::<usize>() as f64 - 1.0) / (ended - begun),
        );
        answers.extend(run.answers.into_values());
    }
    let early = answers.iter().filter(|ids| ids.len() < options.answer_tokens as usize).count();
    let mut told = about(options, &engine);
    told["load_ms"] = json!(load_ms);
    told["first_token_ms"] = json!(first_ms[0]);
    told["prefill_tokens_per_s"] = json!(median(&mut prefill[1..]));
    told["decode_tokens_per_s"] = json!(median(&mut decode[1..]));
    told["answers_ended_early"] = json!(early);
    told["answers"] = json!(answers);
    told["peak_mib"] = json!(peak_mib());
    Ok(told)
}

/// Many sequences, all asked for at once. The first run does not count.
fn batch(options: &Options) -> Result<Value, Failure> {
    let [sequences] = options.batches[..] else {
        return Err("--task batch takes one number of sequences".into());
    };
    let (mut engine, load_ms) = options.load(sequences)?;
    let prompts = prompts(options, &engine, sequences * (options.runs + 1))?;
    let (mut decode, mut total, mut together) = (Vec::new(), Vec::new(), Vec::new());
    for prompts in prompts.chunks(sequences) {
        let run = Run::of(&mut engine, prompts.iter().map(|prompt| options.request(prompt)))?;
        let (rate, tokens) = run.together();
        decode.push(rate);
        together.push(tokens as f64);
        total.push(run.tokens() as f64 / run.steps.last().map_or(f64::NAN, |step| step.at_s));
    }
    let mut told = about(options, &engine);
    told["sequences"] = json!(sequences);
    told["load_ms"] = json!(load_ms);
    told["decode_tokens_per_s"] = json!(median(&mut decode[1..]));
    // How many tokens that rate was taken over, and the rate over everything, prompts included.
    told["decoded_together"] = json!(median(&mut together[1..]));
    told["answered_tokens_per_s"] = json!(median(&mut total[1..]));
    told["peak_mib"] = json!(peak_mib());
    Ok(told)
}

/// What was measured.
fn about(options: &Options, engine: &Engine) -> Value {
    json!({
        "model": engine.info().name,
        "quantisation": engine.info().quantisation,
        "numerics": NUMERICS_VERSION,
        "isa": Compute::Fused(options.isa).name(),
        "threads": options.threads,
        "prompt_tokens": options.prompt_tokens,
        "answer_tokens": options.answer_tokens,
    })
}

/// Requests from being submitted together until all are answered.
struct Run {
    /// Steps that brought tokens, in order.
    steps: Vec<Step>,
    answers: BTreeMap<Ticket, Vec<u32>>,
    prompt_tokens: u32,
}

/// What a step of the engine brought.
struct Step {
    /// When it had come, in seconds since the requests were submitted.
    at_s: f64,
    tokens: usize,
    /// Whether every request had its first token by then.
    all_started: bool,
    /// Whether an answer had been complete before this step.
    some_over: bool,
}

impl Run {
    fn of(
        engine: &mut Engine,
        requests: impl IntoIterator<Item = Request>,
    ) -> Result<Self, EngineError> {
        let begun = Instant::now();
        let mut run = Self { steps: Vec::new(), answers: BTreeMap::new(), prompt_tokens: 0 };
        for request in requests {
            run.answers.insert(engine.submit(request)?, Vec::new());
        }
        let (mut events, mut over, mut more) = (Vec::new(), 0, true);
        while more {
            more = engine.step(&mut events)?;
            let at_s = begun.elapsed().as_secs_f64();
            let (mut tokens, some_over) = (0, over > 0);
            for (ticket, event) in events.drain(..) {
                match event {
                    Event::Token(token) => {
                        run.answers.entry(ticket).or_default().push(token.id);
                        tokens += 1;
                    }
                    Event::Done(Completion { usage, .. }) => {
                        run.prompt_tokens += usage.prompt_tokens;
                        over += 1;
                    }
                    Event::Failed(error) => return Err(error),
                    _ => {}
                }
            }
            if tokens > 0 {
                let all_started = run.answers.values().all(|answer| !answer.is_empty());
                run.steps.push(Step { at_s, tokens, all_started, some_over });
            }
        }
        Ok(run)
    }

    fn tokens(&self) -> usize {
        self.steps.iter().map(|step| step.tokens).sum()
    }

    /// When the last request got its first token, in seconds.
    fn all_started_s(&self) -> f64 {
        self.steps.iter().find(|step| step.all_started).map_or(f64::NAN, |step| step.at_s)
    }

    /// Tokens per second while every sequence was decoding: after the last one has started, until the first
    /// is complete; and how many tokens that were. Not a number when there was no such time.
    fn together(&self) -> (f64, usize) {
        let (mut begun, mut ended, mut tokens) = (f64::NAN, f64::NAN, 0);
        for step in self.steps.iter().filter(|step| step.all_started && !step.some_over) {
            if begun.is_nan() {
                begun = step.at_s;
            } else {
                (ended, tokens) = (step.at_s, tokens + step.tokens);
            }
        }
        (tokens as f64 / (ended - begun), tokens)
    }
}

/// Different prompts of the wanted length, from the file or made up.
fn prompts(options: &Options, engine: &Engine, count: usize) -> Result<Vec<String>, Failure> {
    let length = options.prompt_tokens;
    let Some(path) = &options.prompts else {
        return (0..count).map(|seed| Ok(made_up(engine, length, seed as u64)?)).collect();
    };
    let file: BTreeMap<String, Vec<Value>> = serde_json::from_slice(&std::fs::read(path)?)?;
    let listed = file.get(&length.to_string()).map_or(&[][..], Vec::as_slice);
    if listed.len() < count {
        let there = listed.len();
        return Err(
            format!("{count} prompts of {length} tokens wanted, the file has {there}").into()
        );
    }
    let mut prompts = Vec::new();
    for prompt in &listed[..count] {
        let text = prompt["text"].as_str().ok_or("a prompt has no text")?.to_owned();
        let counted = engine.count_tokens(&Input::Prompt(text.clone()), 0)?;
        if counted != length {
            return Err(format!("a prompt of {length} tokens has {counted} here").into());
        }
        prompts.push(text);
    }
    Ok(prompts)
}

/// Common words in an order that the seed says, until there are as many tokens as wanted.
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
        // Xorshift (Marsaglia, 2003): all that is asked of it is not to repeat.
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        let longer = format!("{text} {}", WORDS[state as usize % WORDS.len()]);
        if engine.count_tokens(&Input::Prompt(longer.clone()), 0)? > tokens {
            return Ok(text);
        }
        text = longer;
    }
}

fn ms(since: Instant) -> f64 {
    since.elapsed().as_secs_f64() * 1e3
}

/// The middle value, or the mean of the two in the middle.
fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    let upper = values.get(values.len() / 2).copied().unwrap_or(f64::NAN);
    match values.len() % 2 {
        0 => values.get(values.len() / 2 - 1).map_or(f64::NAN, |lower| (lower + upper) / 2.0),
        _ => upper,
    }
}

/// Highest resident memory of this process so far, where the operating system says.
fn peak_mib() -> Option<f64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    Some(line.trim().strip_suffix(" kB")?.parse::<f64>().ok()? / 1_024.0)
}
