//! A steward takes a dataset back in the middle of a run: the run stops, the researcher is told why, and
//! what was released before is listed. Then the steward recalls that, too: every node stops serving it,
//! deletes it, and says so.

use anyhow::{Context as _, ensure};
use serde::Serialize;

use super::super::{plan, say};
use super::{HOLDER, HOME, House};
use crate::tuning::rows::{QUESTION, archive, jsonl};
use crate::tuning::{self, Dataset, Recipe, Source, TRAINED_WITHIN, policy};
use crate::world::{SOON, text, wait_for};

/// A node that has nothing to do with any of it, but is told.
const THIRD: &str = "third";
/// Rows of the dataset.
const ROWS: usize = 60;
/// Why it is withdrawn; the researcher reads it.
const WHY: &str = "two families asked for it";
/// A run that lasts until it is stopped.
const LONG_STEPS: u32 = 2_000;

/// What happened.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Report {
    /// The adapter that was released beforehand.
    pub adapter: String,
    /// What a researcher hears who would use it for what the policy does not allow.
    pub elsewise: String,
    /// What the researcher of the stopped run is told.
    pub told: String,
    /// What each node answered to the recall: `deleted` or `not-held`.
    pub answers: Vec<String>,
    /// What a researcher hears who asks for the adapter afterwards.
    pub afterwards: String,
}

/// Runs it.
///
/// # Errors
/// With the first promise that was not kept.
pub fn run() -> anyhow::Result<Report> {
    let third = plan(THIRD, "Third Institute", "NO");
    let mut house = House::open("Withdraw", &[], &[third], &[], |_| Ok(()))?;
    let rows = jsonl(&archive(ROWS));
    let version = house.add(&Dataset {
        name: "notes",
        title: "Notes",
        rows: &rows,
        policy: policy::RESEARCH,
        subjects_min: 10,
    })?;
    let mut report = Report::default();
    let mut recipe = Recipe::short(HOLDER.1, Source::Dataset(version));
    recipe.steps = 12;
    say("withdraw: an adapter is released, and its researcher's home serves it");
    let (_, released) = house.release(&recipe, "before")?;
    report.adapter = released.adapter.clone();
    let home = house.stage.world.member(HOME.0).cli();
    let dir = released.dir.to_str().context("the path is no text")?;
    let added = home.json(&["adapters", "add", dir])?;
    ensure!(text(&added, "adapter") == report.adapter, "another adapter was added: {added}");

    say("withdraw: the dataset's policy decides who may use the adapter");
    let answer = tuning::answer(&house.researcher, HOLDER.1, QUESTION, Some(&report.adapter), 8)?;
    ensure!(!answer.is_empty(), "the adapter says nothing");
    report.elsewise = refused(&house, &report.adapter, "teaching")?;
    ensure!(report.elsewise.contains("research"), "for another reason: {}", report.elsewise);

    say("withdraw: in the middle of another run");
    recipe.steps = LONG_STEPS;
    let job = tuning::submit(&house.researcher, &recipe)?;
    let holder = house.holder().cli();
    let under_way = tuning::wait_step(&holder, &house.researcher, &job, 1, TRAINED_WITHIN)?;
    ensure!(under_way.is_some(), "the run was over before it could be stopped");
    let withdrawn = holder.json(&["data", "withdraw", "notes", "--why", WHY])?;
    let listed = withdrawn["releases"].as_array().into_iter().flatten();
    let listed = listed.into_iter().any(|row| text(row, "adapter") == report.adapter);
    ensure!(listed, "the released adapter is not listed: {withdrawn}");
    let shown = tuning::wait_over(&house.researcher, &job, TRAINED_WITHIN)?;
    report.told = tuning::why(&shown);
    ensure!(text(&shown, "phase") != "finished", "it went on: {}", report.told);
    ensure!(report.told.contains("withdrawn"), "the researcher is not told why: {}", report.told);

    let served = refused(&house, &report.adapter, "research")?;
    ensure!(served.contains("withdrawn"), "the policy's reason is not told: {served}");

    say("withdraw: what was released is recalled, while a node is away");
    let third = house.stage.world.member_mut(THIRD);
    third.ask_to_stop();
    third.wait_stopped()?;
    let recalled = house.steward.cli.json(&["recall", &report.adapter, "--why", WHY])?;
    let missing = recalled[0]["missing"].as_array().cloned().unwrap_or_default();
    ensure!(missing == [THIRD], "the steward is not told who has not answered: {recalled}");
    let third = house.stage.world.member_mut(THIRD);
    third.start()?;
    third.wait_up()?;
    let answers = wait_for("every node's answer to the recall", SOON, || {
        let logged = recalls(&holder)?;
        Ok((logged.len() >= 3).then_some(logged))
    })?;
    report.answers = answers;
    let deleted = report.answers.iter().filter(|answer| *answer == "deleted").count();
    ensure!(deleted == 2, "holder and home had it: {:?}", report.answers);
    for member in house.stage.world.members() {
        let served = member.cli().json(&["adapters", "ls"])?;
        ensure!(served.as_array().is_some_and(Vec::is_empty), "{} has it: {served}", member.name());
    }
    report.afterwards = refused(&house, &report.adapter, "research")?;
    house.stage.stop_and_audit()?;
    Ok(report)
}

/// What a researcher hears who may not use the adapter at the holder's.
fn refused(house: &House, adapter: &str, purpose: &str) -> anyhow::Result<String> {
    let at = ["--at", HOLDER.1, "--adapter", adapter, "--purpose", purpose];
    let asked =
        house.researcher.run(&[&["--json", "submit", "infer", QUESTION][..], &at].concat())?;
    ensure!(asked.code != Some(0), "it is served: {}", asked.stdout);
    Ok(format!("{} {}", asked.stdout.trim(), asked.stderr.trim()))
}

/// Answers to recalls in the node's log.
fn recalls(holder: &crate::world::Cli) -> anyhow::Result<Vec<String>> {
    let leaves = super::super::leaves::Leaves::read(&holder.dir().join("log"))?;
    let status = holder.json(&["status"])?;
    let federation = text(&status, "federation").parse().context("the federation's id")?;
    let mut answers = Vec::new();
    for message in leaves.messages(&federation)? {
        if let allmend_protocol::message::AnyMessage::RecallAnswer(answer) = message {
            let done = serde_json::to_value(answer.done)?;
            answers.push(done.as_str().map_or_else(|| done.to_string(), str::to_owned));
        }
    }
    Ok(answers)
}
