//! The room of a run is killed, then its node, again and again, at random instants. The run goes on from
//! its last snapshot each time and ends with the very bytes of one that nobody disturbed.
//!
//! Two jobs are compared. Everything that training depends on is in the job's file but one thing: the seed
//! of the planted canaries, which a node draws once for each job and keeps with the data. The holder's
//! operator, who can, writes the same one for both while they wait for the steward.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use rustix::process::{Pid, Signal, kill_process};
use serde::Serialize;

use super::super::{Dice, now_ms, say};
use super::{HOLDER, House, weights};
use crate::tuning::rows::{archive, jsonl};
use crate::tuning::{self, Dataset, Recipe, Source, TRAINED_WITHIN, policy};
use crate::world::{SOON, text, wait_for};

/// Rows of the dataset.
const ROWS: usize = 40;
/// From one kill to the next, once training goes on, in milliseconds: most steps of a run are met.
const PAUSE_MS: std::ops::Range<u64> = 0..4_000;
/// Bytes of the seed that both jobs have.
const CANARIES: [u8; 32] = [7; 32];

/// How to go about it.
#[derive(Clone, Debug, clap::Args)]
pub struct Options {
    /// How many times to kill: the room, the node, the room, …
    #[arg(long, default_value_t = 20)]
    pub times: u32,
    /// Steps of the run
    #[arg(long, default_value_t = 60)]
    pub steps: u32,
    /// Instants; printed, so that a run can be repeated [default: from the clock]
    #[arg(long)]
    pub seed: Option<u64>,
}

/// What happened.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Report {
    /// The seed.
    pub seed: u64,
    /// Rooms killed under way.
    pub rooms_killed: u32,
    /// Nodes killed under way.
    pub nodes_killed: u32,
    /// Leases that it took.
    pub attempts: usize,
    /// Bytes of the weights, which are the same.
    pub bytes: usize,
    /// Whether they are.
    pub same: bool,
}

/// Runs it.
///
/// # Errors
/// With the first promise that was not kept.
pub fn run(options: &Options) -> anyhow::Result<Report> {
    let seed = options.seed.unwrap_or_else(now_ms);
    say(format_args!("kill: {} times, SEED={seed}", options.times));
    let outcome = kill_and_compare(options, seed);
    outcome.with_context(|| format!("repeat with --times {} --seed {seed}", options.times))
}

fn kill_and_compare(options: &Options, seed: u64) -> anyhow::Result<Report> {
    let mut house = House::open("Kill", &[], &[], &[], |_| Ok(()))?;
    let rows = jsonl(&archive(ROWS));
    let version = house.add(&Dataset {
        name: "notes",
        title: "Notes",
        rows: &rows,
        policy: policy::STEWARD_DECIDES,
        subjects_min: 10,
    })?;
    let mut recipe = Recipe::short(HOLDER.1, Source::Dataset(version));
    (recipe.steps, recipe.snapshot_every, recipe.attempts) = (options.steps, 2, 64);

    say("kill: a run that nobody disturbs");
    let job = submit(&house, &recipe)?;
    let undisturbed = finish(&house, &job, "undisturbed")?;

    say("kill: the same, disturbed");
    let mut report = Report { seed, ..Report::default() };
    let mut dice = Dice(seed);
    let job = submit(&house, &recipe)?;
    for kill in 0..options.times {
        let before = house.holder().cli();
        if tuning::wait_step(&before, &house.researcher, &job, 1, TRAINED_WITHIN)?.is_none() {
            say("kill: it was over before the last kill");
            break;
        }
        // The instant is what is random here: nothing is waited for.
        std::thread::sleep(Duration::from_millis(dice.within(PAUSE_MS)));
        if kill % 2 == 0 {
            report.rooms_killed += kill_room(&house)?;
        } else {
            kill_node(&mut house)?;
            report.nodes_killed += 1;
        }
        say(format_args!("kill: {} of {}", kill + 1, options.times));
    }
    ensure!(report.rooms_killed > 0, "no kill met a room: {report:?}");
    let disturbed = finish(&house, &job, "disturbed")?;
    let shown = house.researcher.json(&["show", &job])?;
    report.attempts = shown["attempts"].as_array().map_or(0, Vec::len);
    (report.bytes, report.same) = (disturbed.len(), disturbed == undisturbed);
    ensure!(report.same, "the adapters differ: {report:?}");
    house.stage.stop_and_audit()?;
    Ok(report)
}

/// Submits, gives the job its canaries' seed while it waits for the steward, and has it approved.
fn submit(house: &House, recipe: &Recipe) -> anyhow::Result<String> {
    let job = tuning::submit(&house.researcher, recipe)?;
    let question = tuning::question_of(&house.steward, &house.researcher, &job)?;
    let dir = training_dir(house, &job);
    std::fs::create_dir_all(&dir)?;
    std::fs::write(dir.join("canaries"), CANARIES)?;
    tuning::decide(&house.steward, &question)?;
    Ok(job)
}

fn training_dir(house: &House, job: &str) -> PathBuf {
    house.holder().dir().join("datasets/.training").join(job)
}

/// The weights of a run that must come to its end.
fn finish(house: &House, job: &str, name: &str) -> anyhow::Result<Vec<u8>> {
    let shown = tuning::wait_over(&house.researcher, job, TRAINED_WITHIN)?;
    ensure!(text(&shown, "phase") == "finished", "{name}: {}", tuning::why(&shown));
    let dir = house.stage.world.dir().join(name);
    tuning::fetch(&house.researcher, job, &dir)?;
    weights(&dir)
}

/// Kills the room's processes; says how many rooms that were: none when it was between two of them.
fn kill_room(house: &House) -> anyhow::Result<u32> {
    let node = house.holder().cli();
    let pid = text_pid(&node)?;
    let rooms = rooms_below(pid);
    for room in &rooms {
        if let Some(room) = i32::try_from(*room).ok().and_then(Pid::from_raw) {
            // It may have ended by itself a moment ago.
            let _ = kill_process(room, Signal::KILL);
        }
    }
    Ok(u32::from(!rooms.is_empty()))
}

fn text_pid(node: &crate::world::Cli) -> anyhow::Result<u32> {
    let info = std::fs::read(node.dir().join("run/daemon.json"))?;
    let info: serde_json::Value = serde_json::from_slice(&info)?;
    let pid = info["pid"].as_u64().context("the node has no process")?;
    Ok(u32::try_from(pid)?)
}

/// Processes of training rooms among the descendants of a process.
fn rooms_below(pid: u32) -> Vec<u32> {
    let (mut found, mut waiting) = (Vec::new(), vec![pid]);
    while let Some(pid) = waiting.pop() {
        let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
        for task in tasks {
            let children = std::fs::read_to_string(task.path().join("children"));
            let children = children.unwrap_or_default();
            waiting.extend(children.split_whitespace().filter_map(|c| c.parse::<u32>().ok()));
        }
        let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        if line.split(|byte| *byte == 0).nth(1) == Some(b"room") {
            found.push(pid);
        }
    }
    found
}

fn kill_node(house: &mut House) -> anyhow::Result<()> {
    let member = house.stage.world.member_mut(HOLDER.0);
    member.kill();
    member.start()?;
    member.wait_up()?;
    let home = house.stage.world.member(super::HOME.0).cli();
    let key = house.holder().node_key().to_owned();
    wait_for("home to know the holder again", SOON, || {
        let nodes = home.json(&["nodes"])?;
        let knows = |row: &serde_json::Value| text(row, "node") == key && row["connected"] == true;
        Ok(nodes.as_array().is_some_and(|rows| rows.iter().any(knows)).then_some(()))
    })
}
