//! `kill -9` of random nodes at random instants during jobs.
//!
//! Every node is home of a researcher who asks without a pause, and runs what the others ask. After each
//! kill the node is started again as it is; in the end every job must be over, every grant settled once,
//! and nothing that anybody had been told may be missing (see [`super::reckoning`]).

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use serde::Serialize;
use serde_json::Value;

use super::leaves::Leaves;
use super::reckoning::{self, Reckoning};
use super::{Dice, Stage, everywhere, plan, say};
use crate::world::{Cli, text, wait_for};

/// Jobs that one researcher keeps open: one runs, one waits or runs elsewhere.
const OPEN_MAX: usize = 2;
/// How often a researcher looks whether a job is over.
const LOOK_EVERY: Duration = Duration::from_millis(250);
/// From a node being up again to the next kill, in milliseconds.
const PAUSE_MS: std::ops::Range<u64> = 100..6_000;
/// How long jobs may take after the last kill: some wait for a lease to lapse, several times.
const DRAIN_MAX: Duration = Duration::from_secs(240);
/// One attempt is lost with each kill that meets it.
const ATTEMPTS: &str = "24";

/// How to go about it.
#[derive(Clone, Debug, clap::Args)]
pub struct Options {
    /// How many nodes to kill, one after the other
    #[arg(long, default_value_t = 50)]
    pub kills: u32,
    /// Victims and instants; printed, so that a run can be repeated [default: from the clock]
    #[arg(long)]
    pub seed: Option<u64>,
}

/// What happened.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// The seed.
    pub seed: u64,
    /// Nodes killed.
    pub kills: u32,
    /// Of these, with open jobs as home.
    pub kills_as_home: usize,
    /// Of these, with a lease.
    pub kills_as_executor: usize,
    /// The slowest start after a kill, until the node answered its operator.
    pub slowest_start_ms: u64,
    /// The reckoning at the end.
    #[serde(flatten)]
    pub reckoning: Reckoning,
}

/// What researchers were told.
#[derive(Debug, Default)]
struct Board {
    stop: AtomicBool,
    /// Jobs open now, over all researchers.
    open: AtomicUsize,
    told: Mutex<reckoning::Told>,
}

/// Runs it.
///
/// # Errors
/// With the first promise that was not kept.
pub fn run(options: &Options) -> anyhow::Result<Report> {
    let seed = match options.seed {
        Some(seed) => seed,
        None => crate::ordeal::now_ms(),
    };
    say(format_args!("crash: {} kills, SEED={seed}", options.kills));
    let outcome = kill_and_reckon(options.kills, seed);
    outcome.with_context(|| format!("repeat with --kills {} --seed {seed}", options.kills))
}

fn kill_and_reckon(kills: u32, seed: u64) -> anyhow::Result<Report> {
    let mut stage = Stage::set(
        "Crash",
        &[
            plan("alpha", "Alpha Institute", "CH"),
            plan("beta", "Beta Institute", "NO"),
            plan("gamma", "Gamma Institute", "DE"),
        ],
    )?;
    stage.start()?;
    let board = Arc::new(Board::default());
    let at = everywhere(&stage.world);
    let mut researchers = Vec::new();
    for (index, home) in ["alpha", "beta", "gamma"].into_iter().enumerate() {
        let cli = stage.world.researcher(&format!("researcher-{home}"), "R. Searcher", home)?;
        let (board, at) = (Arc::clone(&board), at.clone());
        let dice = Dice(seed ^ (index as u64 + 1) << 32);
        let home = stage.world.member(home).node_key().to_owned();
        researchers.push(std::thread::spawn(move || research(&cli, &home, &at, dice, &board)));
    }
    let slowest_start = kill_nodes(&mut stage, &board, kills, Dice(seed));
    board.stop.store(true, Ordering::Relaxed);
    for researcher in researchers {
        let ended =
            researcher.join().map_err(|_| anyhow::anyhow!("a researcher's thread panicked"))?;
        ended.context("a researcher")?;
    }
    let (slowest_start, deaths) = slowest_start?;
    say("crash: waiting until every job is over");
    reckoning::wait_over(&stage.world, DRAIN_MAX)?;
    let told = board.told.lock().unwrap_or_else(PoisonError::into_inner).clone();
    let heard = reckoning::heard_by_homes(&stage.world)?;
    stage.stop_and_audit()?;
    let reckoning = reckoning::reckon(&stage.world, &told, &heard)?;
    for (name, before) in &deaths.logs {
        let after = Leaves::read(&stage.world.member(name).log_dir())?;
        ensure!(before.lost_in(&after).is_none(), "the log of {name} has lost or changed an entry");
    }
    let kills_as_home = deaths
        .moments
        .iter()
        .filter(|(name, at)| reckoning.open_at(stage.world.member(name).node_key(), *at));
    let kills_as_executor = deaths
        .moments
        .iter()
        .filter(|(name, at)| reckoning.leased_at(stage.world.member(name).node_key(), *at));
    Ok(Report {
        seed,
        kills,
        kills_as_home: kills_as_home.count(),
        kills_as_executor: kills_as_executor.count(),
        slowest_start_ms: u64::try_from(slowest_start.as_millis()).unwrap_or(u64::MAX),
        reckoning,
    })
}

/// Who died when, and what the log had published by then.
#[derive(Debug, Default)]
struct Deaths {
    moments: Vec<(String, u64)>,
    logs: Vec<(String, Leaves)>,
}

fn kill_nodes(
    stage: &mut Stage,
    board: &Board,
    kills: u32,
    mut dice: Dice,
) -> anyhow::Result<(Duration, Deaths)> {
    let mut slowest = Duration::ZERO;
    let mut deaths = Deaths::default();
    for kill in 1..=kills {
        let victim = usize::try_from(dice.within(0..3))?;
        let name = stage.world.members()[victim].name().to_owned();
        // The instant is what is random here: nothing is waited for.
        std::thread::sleep(Duration::from_millis(dice.within(PAUSE_MS)));
        wait_for("a job to be open", Duration::from_secs(60), || {
            Ok((board.open.load(Ordering::Relaxed) > 0).then_some(()))
        })?;
        let member = stage.world.member_mut(&name);
        let before = Leaves::read(&member.log_dir())?;
        member.kill();
        deaths.moments.push((name.clone(), super::now_ms()));
        let since = Instant::now();
        member.start()?;
        member.wait_up().with_context(|| format!("kill {kill}: {name} does not come back"))?;
        slowest = slowest.max(since.elapsed());
        let after = Leaves::read(&member.log_dir())?;
        if let Some(entry) = before.lost_in(&after) {
            anyhow::bail!("kill {kill}: the log of {name} has lost or changed entry {entry}");
        }
        say(format_args!(
            "crash: kill {kill} of {kills}: {name}, back after {} ms, {} log entries, {} jobs open",
            since.elapsed().as_millis(),
            after.len(),
            board.open.load(Ordering::Relaxed),
        ));
        deaths.logs.retain(|(other, _)| *other != name);
        deaths.logs.push((name, before));
    }
    Ok((slowest, deaths))
}

/// A researcher keeps a few jobs open until told to stop, and writes down what home says.
fn research(cli: &Cli, home: &str, at: &str, mut dice: Dice, board: &Board) -> anyhow::Result<()> {
    let mut open: Vec<String> = Vec::new();
    while !board.stop.load(Ordering::Relaxed) {
        if open.len() < OPEN_MAX {
            // Mostly short, now and then long enough to be met by several kills.
            let tokens = if dice.within(0..4) == 0 { 80..240 } else { 2..24 };
            let tokens = dice.within(tokens).to_string();
            let prompt = format!("Write about the number {}.", dice.within(1..1_000));
            let arguments = [
                "--json",
                "submit",
                "infer",
                &prompt,
                "--detach",
                "--at",
                at,
                "--max-tokens",
                &tokens,
                "--attempts",
                ATTEMPTS,
                "--deadline",
                "30m",
                "--cap",
                "5",
            ];
            let output = cli.run(&arguments)?;
            if output.code == Some(0) {
                let answer: Value = serde_json::from_str(&output.stdout)?;
                let job = text(&answer, "job").to_owned();
                board.tell(|told| told.jobs.push((home.to_owned(), job.clone())));
                board.open.fetch_add(1, Ordering::Relaxed);
                open.push(job);
                continue;
            }
            // Only being away is forgiven: home was killed a moment ago.
            let away = [Some(6), Some(1)].contains(&output.code);
            ensure!(away, "home refuses ({:?}): {}", output.code, output.stderr.trim());
        }
        let mut still_open = Vec::new();
        for job in open {
            if over(cli, &job, board)? {
                board.open.fetch_sub(1, Ordering::Relaxed);
            } else {
                still_open.push(job);
            }
        }
        open = still_open;
        std::thread::sleep(LOOK_EVERY);
    }
    Ok(())
}

/// Whether home says that a job is over. Leases and receipts that it names have been acknowledged.
fn over(cli: &Cli, job: &str, board: &Board) -> anyhow::Result<bool> {
    let output = cli.run(&["--json", "show", job])?;
    ensure!(output.code != Some(4), "home has forgotten job {job}");
    let Ok(shown) = serde_json::from_str::<Value>(&output.stdout) else { return Ok(false) };
    board.tell(|told| told.note(&shown));
    Ok(reckoning::is_over(&shown))
}

impl Board {
    fn tell(&self, write: impl FnOnce(&mut reckoning::Told)) {
        write(&mut self.told.lock().unwrap_or_else(PoisonError::into_inner));
    }
}
