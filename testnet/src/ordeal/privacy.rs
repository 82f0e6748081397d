//! A text is planted in a prompt and comes back in the answer. Where is it then?
//!
//! It may be where its researcher and the executing node talk with home, and nowhere else: not in a log,
//! journal, index or trace, not in a spool but sealed, not in a frame to or from anybody else. The tap of
//! the executing node must have it, or the search itself is at fault.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use serde::Serialize;

use super::taps::{self, Direction, Stream};
use super::{Stage, plan, say};
use crate::world::{Cli, Plan, World, text, wait_for};

/// The planted word: no text on this machine has it by chance.
const MARKER: &str = "Quillfeather";
/// How often the prompt says it; the model's likeliest continuation is to go on.
const REPEATS: usize = 24;
/// Enough tokens for the word to come back whole, few enough to be quick.
const TOKENS: &str = "96";
/// A name that no text on this machine has by chance.
const PERSON: &str = "Wilhelmina Teststrup-Okonkwo";
/// Files of a node's directory that hold no data of jobs: weights, and what the test itself taps.
const NOT_SEARCHED: [&str; 2] = ["models", "tap"];
/// Housekeeping runs every ten seconds.
const CLEANED_WITHIN: Duration = Duration::from_secs(40);

/// What was searched.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Report {
    /// The answer.
    pub answer: String,
    /// Files searched at rest, over all nodes and times.
    pub files: usize,
    /// Taps searched.
    pub streams: usize,
    /// Streams in which the marker may be, and is.
    pub carried: usize,
    /// Streams between the third node and others.
    pub elsewhere: usize,
}

/// Runs it.
///
/// # Errors
/// With the first promise that was not kept.
pub fn run() -> anyhow::Result<Report> {
    let mut stage = Stage::set("Privacy", &plans())?;
    for member in stage.world.members() {
        super::tap(member)?;
    }
    stage.start()?;
    let researcher = stage.world.researcher("researcher", PERSON, "home")?;
    let mut report = Report::default();
    let job = repeat_after_me(&stage.world, &researcher, &mut report)?;
    say("privacy: at rest, after the job");
    search_at_rest(&stage.world, &mut report)?;
    search_taps(&stage.world, &mut report)?;
    spool_is_emptied(&stage.world, &job)?;
    erase(&stage.world, &mut report)?;
    stage.stop_and_audit()?;
    say("privacy: at rest, after the end");
    search_at_rest(&stage.world, &mut report)?;
    Ok(report)
}

fn plans() -> [Plan; 3] {
    let mut plans = [
        plan("home", "Home Institute", "CH"),
        plan("executor", "Executing Institute", "NO"),
        plan("third", "Third Institute", "DE"),
    ];
    for plan in &mut plans {
        // Whatever a node would tell at its most talkative is searched too.
        plan.set.extend(["log_level=trace", "storage.retention_hours=0"].map(str::to_owned));
    }
    plans
}

/// Runs the job; the nodes' directories are searched while it runs, too. Gives the job's id.
fn repeat_after_me(world: &World, researcher: &Cli, report: &mut Report) -> anyhow::Result<String> {
    say("privacy: a job whose prompt and answer hold the marker");
    let prompt = vec![MARKER; REPEATS].join(" ");
    let arguments = [
        "submit",
        "infer",
        "--raw",
        &prompt,
        "--at",
        "Executing Institute",
        "--max-tokens",
        TOKENS,
    ];
    let mut searched = false;
    let streamed = researcher.stream(&arguments, |_, so_far| {
        if !searched && so_far.contains(MARKER) {
            searched = true;
            say("privacy: at rest, during the job");
            search_at_rest(world, report)?;
        }
        Ok(())
    })?;
    ensure!(streamed.output.code == Some(0), "the job failed: {}", streamed.output.stderr);
    report.answer = streamed.output.stdout;
    ensure!(report.answer.contains(MARKER), "the answer has no marker: {:?}", report.answer);
    let jobs = researcher.json(&["jobs"])?;
    let job = &jobs[0];
    ensure!(text(job, "node") == "executor", "the job ran elsewhere: {job}");
    Ok(text(job, "job").to_owned())
}

/// No file of any node has the marker, and only the node's own user may read them.
fn search_at_rest(world: &World, report: &mut Report) -> anyhow::Result<()> {
    for member in world.members() {
        report.files += search(member.dir(), MARKER)?;
        for path in files_below(&member.dir().join("spool"))? {
            // It may be removed while we look.
            let Ok(meta) = fs::metadata(&path) else { continue };
            let mode = meta.permissions().mode() & 0o777;
            ensure!(mode == 0o600, "{} has mode {mode:o}", path.display());
        }
    }
    Ok(())
}

/// No file below `dir` has `text`; gives how many there are.
fn search(dir: &Path, text: &str) -> anyhow::Result<usize> {
    search_below(dir, text, &[])
}

/// As [`search`], but for what lies below `skipped`, and models and taps, which are looked at otherwise.
pub(super) fn search_below(dir: &Path, text: &str, skipped: &[&Path]) -> anyhow::Result<usize> {
    let mut files = files_below(dir)?;
    files.retain(|file| !skipped.iter().any(|dir| file.starts_with(dir)));
    for path in &files {
        // A file that goes away while we look has nothing at rest.
        let Ok(bytes) = fs::read(path) else { continue };
        ensure!(!taps::contains(&bytes, text.as_bytes()), "{text:?} is in {}", path.display());
    }
    Ok(files.len())
}

fn files_below(dir: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let mut dirs = vec![dir.to_owned()];
    while let Some(dir) = dirs.pop() {
        let Ok(entries) = fs::read_dir(&dir) else { continue };
        for entry in entries {
            let Ok(entry) = entry else { continue };
            let name = entry.file_name();
            let Ok(kind) = entry.file_type() else { continue };
            if kind.is_dir() && !NOT_SEARCHED.iter().any(|skipped| name == *skipped) {
                dirs.push(entry.path());
            } else if kind.is_file() {
                found.push(entry.path());
            }
        }
    }
    Ok(found)
}

/// The marker went between executor and home, and from home to its researcher; nowhere else.
fn search_taps(world: &World, report: &mut Report) -> anyhow::Result<()> {
    say("privacy: what the taps have");
    let key = |name: &str| world.member(name).node_key().to_owned();
    let (home, executor, third) = (key("home"), key("executor"), key("third"));
    let (mut at_executor, mut at_home, mut to_client) = (0, 0, 0);
    for member in world.members() {
        for stream in taps::read(&super::tap_dir(member))? {
            report.streams += 1;
            let Stream { peer, plane, direction, path, .. } = &stream;
            let involves_third = member.node_key() == third || *peer == third;
            report.elsewhere += usize::from(involves_third);
            if !stream.carries(MARKER) {
                continue;
            }
            report.carried += 1;
            match (member.name(), plane.as_str(), direction) {
                ("executor", "Bulk", Direction::Out) if *peer == home => at_executor += 1,
                ("home", "Bulk", Direction::In) if *peer == executor => at_home += 1,
                ("home", "Client", Direction::Out) => to_client += 1,
                _ => bail!("the marker went where it must not: {}", path.display()),
            }
        }
    }
    ensure!(at_executor > 0, "the executor's tap does not have the marker: the search is at fault");
    ensure!(at_home > 0 && to_client > 0, "home's tap does not have the answer");
    ensure!(report.elsewhere > 0, "the third node talked to nobody: its tap proves nothing");
    Ok(())
}

/// Settled and retained for zero hours, the job leaves the spool.
fn spool_is_emptied(world: &World, job: &str) -> anyhow::Result<()> {
    say("privacy: the spool is emptied");
    for member in world.members() {
        let kept = member.dir().join("spool").join(job);
        wait_for(&format!("{} to go", kept.display()), CLEANED_WITHIN, || {
            Ok((!kept.exists()).then_some(()))
        })?;
    }
    Ok(())
}

/// Erased from the register, a name is in no file of home; the audit comes when the nodes have stopped.
fn erase(world: &World, report: &mut Report) -> anyhow::Result<()> {
    say("privacy: the researcher is erased");
    let home = world.member("home");
    ensure!(
        search(home.dir(), PERSON).is_err(),
        "home never knew the name: the search is at fault"
    );
    let members = home.cli().json(&["members", "ls"])?;
    let entries = members["researchers"].as_array().into_iter().flatten();
    let entry = entries.into_iter().find(|entry| text(entry, "name") == PERSON);
    let key =
        text(entry.context("the register does not list the researcher")?, "researcher").to_owned();
    home.cli().ok(&["members", "erase", &key])?;
    for member in world.members() {
        report.files += search(member.dir(), PERSON)?;
    }
    Ok(())
}
