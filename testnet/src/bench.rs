//! What the way through the federation costs: the same prompt through command line, home node and
//! remote node, and through the engine alone, in turn, on one machine.
//!
//! Each round has a prompt of its own: the node would have kept the last one's for its researcher, and
//! the engine alone would not.
//!
//! Rounds alternate so that whatever else the machine does falls on both; the figures are medians.
//! Only one of the two computes at any time.

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{ChildStdin, ChildStdout, Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use serde::Serialize;
use serde_json::Value;

use crate::demo::Narrator;
use crate::world::reap::{self, Group, Scratch};
use crate::world::{Cli, Executable, Model, Plan, World, target_dir, text, wait_for};

/// Aims, as ratios of the way through the federation to the engine alone.
const FIRST_TOKEN_MAX: f64 = 1.1;
const TOKENS_PER_S_MIN: f64 = 0.95;
/// Rounds before the ones that count: the worker loads its model, files come into memory.
const WARM_UP_ROUNDS: u32 = 1;
const EXAMPLE: &str = "complete";
/// The report beside cargo's own files.
const REPORT: &str = "bench-report.json";

/// What the caller decides.
#[derive(Clone, Debug)]
pub struct Options {
    /// Tokens of the prompt.
    pub prompt_tokens: u32,
    /// Tokens of the answer at most.
    pub answer_tokens: u32,
    /// Threads of the engine, there as here; none for all cores.
    pub threads: Option<u32>,
    /// Rounds that count.
    pub rounds: u32,
    /// Print the report as JSON on standard output.
    pub json: bool,
}

/// What came of it.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// Tokens of the prompt.
    pub prompt_tokens: u32,
    /// Tokens of each answer.
    pub answer_tokens: u64,
    /// Threads of the engine.
    pub threads: u32,
    /// Whether this was an optimised build.
    pub optimised: bool,
    /// The model.
    pub model: Model,
    /// Medians through the federation.
    pub federation: Figures,
    /// Medians of the engine alone.
    pub engine: Figures,
    /// Time to the first token, federation to engine: the median of the rounds' own ratios.
    pub first_token_ratio: f64,
    /// Tokens per second after it, likewise.
    pub tokens_per_s_ratio: f64,
    /// Whether the first is at most 1.1 and the second at least 0.95.
    pub aims_met: bool,
    /// Every round that counts.
    pub rounds: Vec<Round>,
}

/// Times of one run, or their medians.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Figures {
    /// From the command's start to the first byte of its answer; for the engine alone, from the
    /// request to the first token. In milliseconds.
    pub first_token_ms: f64,
    /// From the first token to the last.
    pub tokens_per_s: f64,
}

/// One round.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Round {
    /// Through the federation.
    pub federation: Figures,
    /// The engine alone.
    pub engine: Figures,
}

/// Measures and says what came of it.
///
/// # Errors
/// When something cannot be built or run, or the two answers differ.
pub fn run(options: &Options) -> anyhow::Result<Report> {
    let mut narrator = Narrator::new(options.json);
    let threads = options.threads.unwrap_or_else(cores);
    narrator.step("Building");
    let executable = Executable::find()?;
    let example = Executable::example("allmend-engine", EXAMPLE)?;
    let model = Model::pull(&executable.path)?;
    narrator.tick("node and engine are built, the model is there");

    narrator.step("A federation of two: one is home, the other computes");
    let scratch = Scratch::new()?;
    let mut world = World::new(&executable.path, &scratch.path().join("world"))?;
    let home = Plan {
        set: vec!["limits.slots=0".to_owned()],
        ..Plan::new("home", "Lakeside University", "DE", threads)
    };
    let remote = Plan::new("remote", "Alpine Supercomputing", "CH", threads);
    world.found("Bench", &[home, remote])?;
    model.give(&world.member("remote").cli())?;
    world.start()?;
    wait_until_offered(&world.member("home").cli())?;
    let researcher = world.researcher("researcher", "Robin Example", "home")?;
    narrator.tick("up");

    narrator.step("The engine alone is loaded");
    let mut engine = Alone::start(&example, &model, options, threads)?;
    narrator.tick(&format!("prompts of {} tokens", options.prompt_tokens));
    let prompt = scratch.path().join("prompt");

    narrator.step("In turn");
    let (mut rounds, mut answer_tokens) = (Vec::new(), 0);
    for round in 0..WARM_UP_ROUNDS + options.rounds {
        let (alone, alone_answer, text) = engine.run(round)?;
        std::fs::write(&prompt, &text)?;
        let (through, answer, tokens) = ask(&researcher, &prompt, options.answer_tokens)?;
        ensure!(answer == alone_answer, "the answers differ:\n{answer:?}\n{alone_answer:?}");
        if round < WARM_UP_ROUNDS {
            continue;
        }
        answer_tokens = tokens;
        narrator.tick(&format!(
            "federation {:.0} ms, {:.1} tokens/s; engine alone {:.0} ms, {:.1} tokens/s",
            through.first_token_ms, through.tokens_per_s, alone.first_token_ms, alone.tokens_per_s
        ));
        rounds.push(Round { federation: through, engine: alone });
    }
    drop(engine);
    world.stop()?;

    let first = median(&rounds, |r| r.federation.first_token_ms / r.engine.first_token_ms);
    let rate = median(&rounds, |r| r.federation.tokens_per_s / r.engine.tokens_per_s);
    let report = Report {
        prompt_tokens: options.prompt_tokens,
        answer_tokens,
        threads,
        optimised: !cfg!(debug_assertions),
        model,
        federation: medians(&rounds, |round| round.federation),
        engine: medians(&rounds, |round| round.engine),
        first_token_ratio: first,
        tokens_per_s_ratio: rate,
        aims_met: first <= FIRST_TOKEN_MAX && rate >= TOKENS_PER_S_MIN,
        rounds,
    };
    let path = target_dir()?.join(REPORT);
    std::fs::write(&path, serde_json::to_vec_pretty(&report)?)?;
    narrator.line("");
    narrator.line(&format!(
        "Time to first token: {first:.3} of the engine alone (aim: at most {FIRST_TOKEN_MAX}); tokens per \
         second: {rate:.3} (aim: at least {TOKENS_PER_S_MIN})."
    ));
    narrator.line(&format!("The report: {}", path.display()));
    Ok(report)
}

/// Runs the measurement as a command.
///
/// # Errors
/// Those of [`run`].
pub fn command(options: &Options) -> anyhow::Result<std::process::ExitCode> {
    reap::on_signals()?;
    let report = run(options)?;
    if options.json {
        let text = serde_json::to_string(&report)?;
        std::io::stdout().lock().write_all(format!("{text}\n").as_bytes())?;
    }
    // Missed aims are a figure, not a failure: a busy machine misses them too.
    Ok(std::process::ExitCode::SUCCESS)
}

/// Asks through the federation; gives the times, the answer and its number of tokens.
fn ask(researcher: &Cli, prompt: &Path, tokens: u32) -> anyhow::Result<(Figures, String, u64)> {
    let (prompt, tokens) = (prompt.to_str().context("the path is no text")?, tokens.to_string());
    let arguments = [
        "submit",
        "infer",
        "--raw",
        "--file",
        prompt,
        "--max-tokens",
        &tokens,
        "--jurisdiction",
        "CH",
    ];
    let streamed = researcher.stream(&arguments, |_, _| Ok(()))?;
    let said = streamed.output.stderr.trim();
    ensure!(streamed.output.code == Some(0), "exit code {:?}: {said}", streamed.output.code);
    let jobs = researcher.json(&["jobs", "--limit", "1"])?;
    let tokens = jobs[0]["tokens"].as_u64().unwrap_or_default();
    ensure!(jobs[0]["attempts"] == 1, "it took several attempts; is the machine too busy?");
    let first = streamed.first_after.context("there was no answer")?;
    let rest = streamed.last_token_after.saturating_sub(first).as_secs_f64();
    let figures = Figures {
        first_token_ms: first.as_secs_f64() * 1e3,
        tokens_per_s: tokens.saturating_sub(1) as f64 / rest,
    };
    let answer = streamed.output.stdout;
    Ok((figures, answer.strip_suffix('\n').unwrap_or(&answer).to_owned(), tokens))
}

/// The engine in a process of its own, as a worker has it.
struct Alone {
    group: Group,
    stdin: Option<ChildStdin>,
    stdout: BufReader<ChildStdout>,
}

impl Alone {
    fn start(
        program: &PathBuf,
        model: &Model,
        options: &Options,
        threads: u32,
    ) -> anyhow::Result<Alone> {
        let mut command = Command::new(program);
        command
            .arg(&model.path)
            .args([options.prompt_tokens.to_string(), options.answer_tokens.to_string()])
            .env("RAYON_NUM_THREADS", threads.to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        let mut group = Group::spawn(&mut command).context("the engine cannot be started")?;
        let stdin = group.child().stdin.take();
        let stdout = BufReader::new(group.child().stdout.take().context("no pipe")?);
        let mut alone = Alone { group, stdin, stdout };
        alone.line()?;
        Ok(alone)
    }

    /// Times, answer and prompt of a round.
    fn run(&mut self, round: u32) -> anyhow::Result<(Figures, String, String)> {
        writeln!(self.stdin.as_mut().context("no pipe")?, "Round {round}")?;
        let said = self.line()?;
        let float = |key: &str| said[key].as_f64().with_context(|| format!("no {key}"));
        let figures = Figures {
            first_token_ms: float("first_token_ms")?,
            tokens_per_s: float("tokens_per_s")?,
        };
        Ok((figures, text(&said, "text").to_owned(), text(&said, "prompt").to_owned()))
    }

    fn line(&mut self) -> anyhow::Result<Value> {
        let mut line = String::new();
        let read = self.stdout.read_line(&mut line)?;
        ensure!(read > 0, "the engine has ended");
        Ok(serde_json::from_str(&line)?)
    }
}

impl Drop for Alone {
    fn drop(&mut self) {
        // Its input's end is its own; what does not listen is killed.
        self.stdin = None;
        let _ = self.group.wait(Duration::from_secs(2));
    }
}

fn wait_until_offered(home: &Cli) -> anyhow::Result<()> {
    wait_for("home to know the other's model", crate::world::SOON, || {
        let nodes = home.json(&["nodes"])?;
        let offers = |row: &Value| {
            row["slots_free"].as_u64() > Some(0)
                && row["models"].as_array().is_some_and(|m| !m.is_empty())
        };
        Ok(nodes.as_array().is_some_and(|rows| rows.iter().any(offers)).then_some(()))
    })
}

fn cores() -> u32 {
    std::thread::available_parallelism().map_or(1, |n| u32::try_from(n.get()).unwrap_or(u32::MAX))
}

fn medians(rounds: &[Round], figures: impl Fn(&Round) -> Figures) -> Figures {
    Figures {
        first_token_ms: median(rounds, |round| figures(round).first_token_ms),
        tokens_per_s: median(rounds, |round| figures(round).tokens_per_s),
    }
}

fn median(rounds: &[Round], value: impl Fn(&Round) -> f64) -> f64 {
    let mut values: Vec<f64> = rounds.iter().map(value).collect();
    values.sort_by(f64::total_cmp);
    let (lower, upper) = (values.len().saturating_sub(1) / 2, values.len() / 2);
    match (values.get(lower), values.get(upper)) {
        (Some(lower), Some(upper)) => f64::midpoint(*lower, *upper),
        _ => f64::NAN,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_lie_in_the_middle() {
        let figures = |ms| Figures { first_token_ms: ms, tokens_per_s: 1.0 };
        let rounds =
            [3.0, 1.0, 8.0, 2.0].map(|ms| Round { federation: figures(ms), engine: figures(ms) });
        assert_eq!(medians(&rounds, |round| round.engine).first_token_ms, 2.5);
        assert_eq!(medians(&rounds[..3], |round| round.engine).first_token_ms, 3.0);
    }
}
