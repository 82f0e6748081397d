//! What holder, steward and researcher do, a command each.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use serde_json::Value;

use super::{ASKED_WITHIN, Card, Recipe};
use crate::world::{Cli, Member, Output, World, text, wait_for};

/// Each attempt of a job is a run: enough for those that are disturbed on purpose.
const RUNS: &str = "64";

/// Whoever decides about a dataset, with a key of their own.
#[derive(Clone, Debug)]
pub struct Steward {
    /// Their command line.
    pub cli: Cli,
    /// Their public key, in hexadecimal.
    pub key: String,
}

/// A dataset that an institution adds.
#[derive(Clone, Debug)]
pub struct Dataset<'a> {
    /// What its steward calls it.
    pub name: &'a str,
    /// What people call it.
    pub title: &'a str,
    /// Its rows, as JSONL.
    pub rows: &'a str,
    /// Its policy (Cedar).
    pub policy: &'a str,
    /// Distinct subjects that a release needs at least.
    pub subjects_min: u64,
}

/// What came of a run.
#[derive(Clone, Debug)]
pub struct Released {
    /// The adapter's id.
    pub adapter: String,
    /// The losses that were told on the way, in nats per token.
    pub losses: Vec<f64>,
    /// Its card.
    pub card: Card,
    /// Where its files were written.
    pub dir: PathBuf,
}

/// Makes a steward: someone of the institution `home`, by invitation, in the directory `name`.
///
/// # Errors
/// When the invitation or joining fails.
pub fn steward(world: &World, name: &str, person: &str, home: &str) -> anyhow::Result<Steward> {
    let (cli, key) = world.person(name, person, home)?;
    Ok(Steward { cli, key })
}

/// Adds a dataset at `member`; gives its version. The rows' file is removed afterwards: the steward's
/// directory alone has them then.
///
/// # Errors
/// When the command fails.
pub fn add_dataset(
    world: &World,
    member: &Member,
    steward: &Steward,
    dataset: &Dataset<'_>,
) -> anyhow::Result<String> {
    let dir = world.dir().join("to-add").join(dataset.name);
    fs::create_dir_all(&dir)?;
    let (rows, policy) = (dir.join("rows.jsonl"), dir.join("policy.cedar"));
    fs::write(&rows, dataset.rows)?;
    fs::write(&policy, dataset.policy)?;
    let least = dataset.subjects_min.to_string();
    let added = member.cli().json(&[
        "data",
        "add",
        path(&rows)?,
        "--name",
        dataset.name,
        "--policy",
        path(&policy)?,
        "--title",
        dataset.title,
        "--licence",
        "CC-BY-4.0",
        "--language",
        "eng_Latn",
        "--purpose",
        "research",
        "--sensitivity",
        "internal",
        "--steward",
        &steward.key,
        "--min-subjects",
        &least,
    ]);
    fs::remove_dir_all(&dir)?;
    added?;
    let shown = member.cli().json(&["data", "show", dataset.name])?;
    let version = text(&shown, "version").to_owned();
    ensure!(version.len() == 64, "the dataset has no version: {shown}");
    Ok(version)
}

/// Submits a job and does not wait for it; gives its id.
///
/// # Errors
/// When home does not take it.
pub fn submit(researcher: &Cli, recipe: &Recipe) -> anyhow::Result<String> {
    let file = researcher.dir().join("job.toml");
    fs::write(&file, recipe.toml())?;
    let answer = researcher.json(&["submit", "finetune", path(&file)?, "--detach"])?;
    let job = text(&answer, "job").to_owned();
    ensure!(!job.is_empty(), "home gave no job: {answer}");
    Ok(job)
}

/// Waits until the steward is asked about `job`; gives the question. A job that is over meanwhile is an
/// error that says why.
///
/// # Errors
/// When nothing is asked in time.
pub fn question_of(steward: &Steward, researcher: &Cli, job: &str) -> anyhow::Result<Value> {
    wait_for("a question in the steward's inbox", ASKED_WITHIN, || {
        let inbox = steward.cli.json(&["inbox"])?;
        let asked = inbox.as_array().into_iter().flatten().find(|row| text(row, "job") == job);
        if asked.is_none() {
            let shown = researcher.json(&["show", job])?;
            ensure!(!is_over(&shown), "nobody was asked: {}", why(&shown));
        }
        Ok(asked.cloned())
    })
}

/// Approves what waits.
///
/// # Errors
/// When the command fails.
pub fn decide(steward: &Steward, question: &Value) -> anyhow::Result<()> {
    steward.cli.ok(&["approve", text(question, "question"), "--yes", "--runs", RUNS])?;
    Ok(())
}

/// Waits for the question about `job` and approves it; gives the question.
///
/// # Errors
/// Those of [`question_of`] and [`decide`].
pub fn approve(steward: &Steward, researcher: &Cli, job: &str) -> anyhow::Result<Value> {
    let question = question_of(steward, researcher, job)?;
    decide(steward, &question)?;
    Ok(question)
}

/// Waits until `job` is over; gives what `show` says then.
///
/// # Errors
/// When it does not end in time.
pub fn wait_over(researcher: &Cli, job: &str, limit: Duration) -> anyhow::Result<Value> {
    wait_for(&format!("job {} to be over", &job[..12.min(job.len())]), limit, || {
        let shown = researcher.json(&["show", job])?;
        Ok(is_over(&shown).then_some(shown))
    })
}

/// Waits until the run at `member` has made at least `tokens` tokens' worth of steps; gives them. None once
/// the job is over.
///
/// # Errors
/// When neither comes in time.
pub fn wait_step(
    member: &Cli,
    researcher: &Cli,
    job: &str,
    tokens: u64,
    limit: Duration,
) -> anyhow::Result<Option<u64>> {
    wait_for("training to be under way", limit, || {
        // A node that was killed a moment ago answers nothing.
        if let Ok(status) = member.json(&["status"]) {
            let leases = status["leases"].as_array().map_or(&[][..], Vec::as_slice);
            let lease = leases.iter().find(|lease| text(lease, "job") == job);
            let made = lease.and_then(|lease| lease["tokens"].as_u64()).unwrap_or_default();
            if made > 0 && made >= tokens {
                return Ok(Some(Some(made)));
            }
        }
        let shown = researcher.json(&["show", job])?;
        Ok(is_over(&shown).then_some(None))
    })
}

/// The result of a job that finished: the adapter's files in `dir`, and what its card says.
///
/// # Errors
/// When the job released none.
pub fn fetch(researcher: &Cli, job: &str, dir: &Path) -> anyhow::Result<Released> {
    let output = researcher.run(&["--json", "result", job, "--output", path(dir)?])?;
    let result: Value = read(&output)?;
    let adapter = text(&result, "adapter").to_owned();
    ensure!(!adapter.is_empty(), "no adapter was released: {result}");
    let card = fs::read_to_string(dir.join("README.md")).context("the adapter has no card")?;
    let reports = result["reports"].as_array().map_or(&[][..], Vec::as_slice);
    let losses = reports.iter().filter_map(|report| report["loss_micro"].as_i64());
    Ok(Released {
        adapter,
        losses: losses.map(|micro| micro as f64 / 1e6).collect(),
        card: Card::read(&card)?,
        dir: dir.to_owned(),
    })
}

/// The answer to `question` at the institution `at`, with an adapter or without.
///
/// # Errors
/// When the job does not finish.
pub fn answer(
    researcher: &Cli,
    at: &str,
    question: &str,
    adapter: Option<&str>,
    max_tokens: u32,
) -> anyhow::Result<String> {
    let tokens = max_tokens.to_string();
    let mut arguments = vec!["submit", "infer", question, "--at", at, "--max-tokens", &tokens];
    arguments.extend(adapter.iter().flat_map(|id| ["--adapter", *id]));
    let said = researcher.json(&arguments)?;
    ensure!(text(&said, "phase") == "finished", "no answer: {said}");
    Ok(text(&said, "text").trim().to_owned())
}

/// The messages about `job` of one kind, as `member`'s operator sees them.
///
/// # Errors
/// When the command fails.
pub fn logged(member: &Cli, job: &str, kind: &str) -> anyhow::Result<Vec<Value>> {
    let rows = member.json(&["logs", job])?;
    let rows = rows.as_array().cloned().unwrap_or_default();
    Ok(rows.into_iter().filter(|row| text(row, "kind") == kind).collect())
}

/// The contract of `job` in the log of `member`: its body.
///
/// # Errors
/// When there is none.
pub fn contract_of(member: &Cli, job: &str) -> anyhow::Result<Value> {
    let contracts = logged(member, job, "contract")?;
    let contract = contracts.first().context("no contract is in the node's log")?;
    ensure!(contract["leaf"].is_u64(), "the contract is not in the public log: {contract}");
    Ok(contract["body"].clone())
}

/// Why a job is where it is: its own words, and those of each attempt and each node asked.
pub(crate) fn why(shown: &Value) -> String {
    let mut words = vec![format!("{}: {}", text(shown, "phase"), text(shown, "why"))];
    let mut add = |list: &str, key: &str| {
        for row in shown[list].as_array().into_iter().flatten() {
            words.push(format!("{}: {}", text(row, "node_name"), text(row, key)));
        }
    };
    add("attempts", "status");
    add("considered", "verdict");
    words.join("; ")
}

pub(crate) fn is_over(shown: &Value) -> bool {
    let over = ["finished", "failed", "refused", "cancelled", "expired"];
    over.contains(&text(shown, "phase"))
}

fn read(output: &Output) -> anyhow::Result<Value> {
    match serde_json::from_str(&output.stdout) {
        Ok(value) => Ok(value),
        Err(_) => bail!("exit code {:?}: {}", output.code, output.stderr.trim()),
    }
}

fn path(path: &Path) -> anyhow::Result<&str> {
    path.to_str().context("the path is no text")
}
