//! What may go wrong while a model is trained, played on purpose: each ends the job within its bound, with
//! its own reason in the receipt, and what was set aside and not used goes back.

use std::time::Instant;

use anyhow::{Context as _, ensure};
use serde::Serialize;
use serde_json::Value;

use super::super::say;
use super::{HOLDER, House, configure};
use crate::tuning::rows::{archive, jsonl};
use crate::tuning::{self, Dataset, Recipe, Source, TRAINED_WITHIN, policy};
use crate::world::{SOON, text, wait_for};

/// The faults, in step 7, and the word by which each reason begins.
const FAULTS: [(&str, &str); 4] = [
    ("not-finite:7", "not-finite"),
    ("loss-times-ten:7", "diverged"),
    ("hang:7", "stalled"),
    ("idle:7", "idle"),
];
const ROWS: usize = 40;

/// How to go about it.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct Options {
    /// Only these, e.g. not-finite:7 [default: all four]
    #[arg(long)]
    pub only: Vec<String>,
}

/// What came of them.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// One for each.
    pub faults: Vec<Fault>,
}

/// What came of one.
#[derive(Clone, Debug, Serialize)]
pub struct Fault {
    /// As the node was configured.
    pub fault: String,
    /// The receipt's reason.
    pub why: String,
    /// From training being under way to the job's end.
    pub seconds: f64,
    /// What it cost.
    pub cost_micro: u64,
    /// What had been set aside.
    pub cap_micro: u64,
}

/// Runs it.
///
/// # Errors
/// With the first promise that was not kept.
pub fn run(options: &Options) -> anyhow::Result<Report> {
    let mut house = House::open("Faults", &[], &[], &[], |_| Ok(()))?;
    let rows = jsonl(&archive(ROWS));
    let version = house.add(&Dataset {
        name: "notes",
        title: "Notes",
        rows: &rows,
        policy: policy::RESEARCH,
        subjects_min: 10,
    })?;
    let mut recipe = Recipe::short(HOLDER.1, Source::Dataset(version));
    // What could go better elsewhere is not tried again here: the reason is what is looked for.
    (recipe.steps, recipe.snapshot_every, recipe.attempts) = (40, 5, 1);
    let mut report = Report { faults: Vec::new() };
    let mut line = "#training_fault = \"\"".to_owned();
    for (fault, word) in FAULTS {
        if !options.only.is_empty() && !options.only.iter().any(|only| only == fault) {
            continue;
        }
        say(format_args!("faults: {fault}"));
        let with = format!("training_fault = {fault:?}");
        restart(&mut house, &line, &with)?;
        line = with;
        report.faults.push(play(&house, &recipe, fault, word)?);
    }
    house.stage.stop_and_audit()?;
    Ok(report)
}

/// Starts the holder's node anew with another setting.
fn restart(house: &mut House, line: &str, with: &str) -> anyhow::Result<()> {
    let member = house.stage.world.member_mut(HOLDER.0);
    member.ask_to_stop();
    member.wait_stopped()?;
    configure(member, line, with)?;
    member.start()?;
    member.wait_up()?;
    house.stage.world.wait_acquainted(1)
}

fn play(house: &House, recipe: &Recipe, fault: &str, word: &str) -> anyhow::Result<Fault> {
    let job = tuning::submit(&house.researcher, recipe)?;
    let holder = house.holder().cli();
    tuning::wait_step(&holder, &house.researcher, &job, 1, TRAINED_WITHIN)?;
    let begun = Instant::now();
    let shown = tuning::wait_over(&house.researcher, &job, TRAINED_WITHIN)?;
    let seconds = begun.elapsed().as_secs_f64();
    ensure!(text(&shown, "phase") == "failed", "{fault}: {}", tuning::why(&shown));
    let receipt = wait_for("the receipt", SOON, || {
        Ok(tuning::logged(&holder, &job, "receipt")?.into_iter().next())
    })?;
    let why = reason(&receipt["body"]["outcome"])
        .with_context(|| format!("the receipt names no reason: {receipt}"))?;
    ensure!(why.starts_with(&format!("{word}: ")), "{fault}: the receipt says {why:?}");
    let told = tuning::why(&shown);
    ensure!(told.contains(word), "the researcher is not told: {told}");
    let settled = wait_for("the settlement", SOON, || {
        let shown = house.researcher.json(&["show", &job])?;
        Ok((!text(&shown, "settlement").is_empty()).then_some(shown))
    })?;
    let cost_micro = settled["cost_micro"].as_u64().context("no cost")?;
    let cap_micro = settled["spec"]["cap"].as_u64().context("no cap")?;
    ensure!(cost_micro < cap_micro, "nothing went back: {cost_micro} of {cap_micro}");
    let settlement =
        tuning::logged(&house.stage.world.member(super::HOME.0).cli(), &job, "settlement")?;
    let refunded = settlement.first().and_then(|row| row["body"]["refunded"].as_u64());
    ensure!(
        refunded == Some(cap_micro - cost_micro),
        "{refunded:?} went back of {cap_micro}, of which {cost_micro} were used"
    );
    Ok(Fault { fault: fault.to_owned(), why, seconds, cost_micro, cap_micro })
}

/// The words of an outcome that failed.
fn reason(outcome: &Value) -> Option<String> {
    outcome["failed"]["why"].as_str().or_else(|| outcome["why"].as_str()).map(str::to_owned)
}
