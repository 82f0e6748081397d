//! The worker is killed under several jobs, and the node lives: every one of them is a failed attempt with
//! the reason, goes on in a new worker, and ends with the answer that it would have had.

use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};
use serde::Serialize;
use serde_json::Value;

use super::{Stage, ask, plan, say};
use crate::world::{Cli, Plan, text, wait_for};

/// The node that computes, and what `--at` calls it.
const NODE: (&str, &str) = ("far", "Far Institute");
/// One question each that takes the model a while; the answers must be as they are without a kill.
const PROMPTS: [&str; 3] = [
    "Write a long story about a shepherd in the Alps.",
    "Why should people drink enough water?",
    "Why are bees important for farmers?",
];
const MAX_TOKENS: u32 = 80;
/// A fast machine may finish one before the last has begun.
const TRIES_MAX: u32 = 5;
/// Tokens that each job has written before the kill: some are on their way home, some have arrived.
const TOKENS_BEFORE: u64 = 4;
/// How long three short answers may take on a busy machine.
const ANSWERED_WITHIN: Duration = Duration::from_secs(180);

/// What happened.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// The worker that was killed.
    pub killed_pid: u64,
    /// Jobs that it was computing.
    pub jobs: usize,
    /// The worker that came after it.
    pub next_pid: u64,
    /// Attempts of each job.
    pub attempts: Vec<usize>,
    /// What was said of each first attempt.
    pub said: Vec<String>,
}

/// Runs it.
///
/// # Errors
/// With the first promise that was not kept.
pub fn run() -> anyhow::Result<Report> {
    let home =
        Plan { set: vec!["limits.slots=0".to_owned()], ..plan("home", "Home Institute", "DE") };
    let mut stage = Stage::set("Workers", &[home, plan(NODE.0, NODE.1, "CH")])?;
    stage.world.start()?;
    let researcher = stage.world.researcher("researcher", "R. Searcher", "home")?;
    wait_until_offered(&stage.world.member("home").cli())?;
    let node = stage.world.member(NODE.0).cli();

    say("worker: three jobs, one after the other");
    let mut expected = Vec::new();
    for prompt in PROMPTS {
        let answer = ask(&researcher, NODE.1, prompt, MAX_TOKENS)?;
        expected.push(text(&answer, "text").to_owned());
    }
    say("worker: the same three at once, and the worker is killed under them");
    let (killed_pid, jobs) = (0..TRIES_MAX)
        .find_map(|_| submit_together(&researcher, &node).transpose())
        .context("the jobs were never all computed at once")??;
    let pid = i32::try_from(killed_pid).ok().and_then(Pid::from_raw).context("no process")?;
    kill_process(pid, Signal::KILL)?;

    let (mut attempts, mut said) = (Vec::new(), Vec::new());
    for (job, expected) in jobs.iter().zip(&expected) {
        let shown = wait_for("a job to be over", ANSWERED_WITHIN, || {
            let shown = researcher.json(&["show", job])?;
            Ok((text(&shown, "phase") == "finished").then_some(shown))
        })?;
        let answer = researcher.json(&["result", job])?;
        ensure!(text(&answer, "text") == expected, "a kill changed an answer: {answer}");
        let rows = shown["attempts"].as_array().context("no attempts")?;
        ensure!(rows.iter().all(|row| text(row, "node_name") == NODE.0), "not there: {rows:?}");
        attempts.push(rows.len());
        said.push(text(&rows[0], "status").to_owned());
    }
    let status = node.json(&["status"])?;
    let next_pid = status["workers"][0]["pid"].as_u64().context("no worker any more")?;
    let report = Report { killed_pid, jobs: jobs.len(), next_pid, attempts, said };
    ensure!(report.attempts == [2; PROMPTS.len()], "attempts: {report:?}");
    ensure!(next_pid != killed_pid, "the worker lives: {report:?}");
    let told = report.said.iter().all(|said| said.contains("the worker process ended"));
    ensure!(told, "the reason was not told: {report:?}");
    ensure!(stage.world.member(NODE.0).starts() == 1, "the node was started again");
    say("worker: the logs are audited");
    stage.stop_and_audit()?;
    Ok(report)
}

/// Submits all jobs at once; their worker and their ids, once each has written something; nothing if they
/// were over too early.
fn submit_together(researcher: &Cli, node: &Cli) -> anyhow::Result<Option<(u64, Vec<String>)>> {
    let submitted: anyhow::Result<Vec<String>> = std::thread::scope(|scope| {
        let threads = PROMPTS.map(|prompt| scope.spawn(move || submit(researcher, prompt)));
        let joined = threads.into_iter().map(|thread| thread.join());
        joined.map(|job| job.unwrap_or_else(|_| bail!("a thread panicked"))).collect()
    });
    let jobs = submitted?;
    let pid = wait_for("one worker to compute all three", ANSWERED_WITHIN, || {
        if let Some(pid) = under_way(&node.json(&["status"])?)? {
            return Ok(Some(Some(pid)));
        }
        let rows = researcher.json(&["jobs", "--limit", "3"])?;
        let over = |row: &Value| text(row, "phase") == "finished";
        Ok(rows.as_array().is_some_and(|rows| rows.iter().all(over)).then_some(None))
    })?;
    Ok(pid.map(|pid| (pid, jobs)))
}

fn submit(researcher: &Cli, prompt: &str) -> anyhow::Result<String> {
    let tokens = MAX_TOKENS.to_string();
    let arguments =
        ["submit", "infer", prompt, "--at", NODE.1, "--max-tokens", tokens.as_str(), "--detach"];
    let answer = researcher.json(&arguments)?;
    Ok(text(&answer, "job").to_owned())
}

/// The process of the one worker that computes all jobs, once each has written something.
fn under_way(status: &Value) -> anyhow::Result<Option<u64>> {
    let writing = |lease: &Value| lease["tokens"].as_u64().unwrap_or_default() >= TOKENS_BEFORE;
    let leases = status["leases"].as_array().context("no leases in the status")?;
    let workers = status["workers"].as_array().context("no workers in the status")?;
    ensure!(workers.len() <= 1, "one model has several workers: {workers:?}");
    let all = leases.len() == PROMPTS.len() && leases.iter().all(writing);
    Ok(workers.first().filter(|_| all).and_then(|worker| worker["pid"].as_u64()))
}

/// A home that computes nothing itself has no model; it needs to know of the other's.
fn wait_until_offered(home: &Cli) -> anyhow::Result<()> {
    wait_for("home to know the other's model", crate::world::SOON, || {
        let nodes = home.json(&["nodes"])?;
        let offers = |row: &Value| {
            row["slots_free"].as_u64() > Some(0)
                && row["models"].as_array().is_some_and(|models| !models.is_empty())
        };
        Ok(nodes.as_array().is_some_and(|rows| rows.iter().any(offers)).then_some(()))
    })
}
