//! A longer run: more rows, more steps, what is learnt of rows that were never seen.

use anyhow::{Context as _, ensure};
use serde::Serialize;

use super::super::say;
use super::{HOLDER, House};
use crate::tuning::rows::{FACT, QUESTION, archive, jsonl};
use crate::tuning::{self, Card, Dataset, Recipe, Source, policy};
use crate::world::text;

/// Hours, not minutes, on a slow machine.
const WITHIN: std::time::Duration = std::time::Duration::from_secs(4 * 3_600);
const ANSWER_TOKENS: u32 = 24;

/// How to go about it.
#[derive(Clone, Debug, clap::Args)]
pub struct Options {
    /// Rows of the dataset
    #[arg(long, default_value_t = 600)]
    pub rows: usize,
    /// Steps of the run
    #[arg(long, default_value_t = 150)]
    pub steps: u32,
}

/// What came of it.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// The adapter.
    pub adapter: String,
    /// Losses that were told on the way, in nats per token.
    pub losses: Vec<f64>,
    /// What its card says.
    pub card: Card,
    /// Loss on the rows held out, before and after, in nats per token.
    pub held_out_loss: (f64, f64),
    /// Wall-clock time from submission to the adapter.
    pub seconds: f64,
    /// The answer without the adapter.
    pub before: String,
    /// The answer with it.
    pub after: String,
}

/// Runs it.
///
/// # Errors
/// With the first promise that was not kept.
pub fn run(options: &Options) -> anyhow::Result<Report> {
    let mut house = House::open("Longer", &[], &[], &[], |_| Ok(()))?;
    let rows = jsonl(&archive(options.rows));
    let version = house.add(&Dataset {
        name: "notes",
        title: "Notes",
        rows: &rows,
        policy: policy::STEWARD_DECIDES,
        subjects_min: 10,
    })?;
    let ask = |adapter: Option<&str>| {
        tuning::answer(&house.researcher, HOLDER.1, QUESTION, adapter, ANSWER_TOKENS)
    };
    let before = ask(None)?;
    let mut recipe = Recipe::short(HOLDER.1, Source::Dataset(version));
    recipe.steps = options.steps;
    say(format_args!("longer: {} rows, {} steps", options.rows, options.steps));
    let begun = std::time::Instant::now();
    let job = tuning::submit(&house.researcher, &recipe)?;
    tuning::approve(&house.steward, &house.researcher, &job)?;
    let shown = tuning::wait_over(&house.researcher, &job, WITHIN)?;
    ensure!(text(&shown, "phase") == "finished", "no adapter: {}", tuning::why(&shown));
    let seconds = begun.elapsed().as_secs_f64();
    let released =
        tuning::fetch(&house.researcher, &job, &house.stage.world.dir().join("adapter"))?;
    let after = ask(Some(&released.adapter))?;
    let held_out_loss = released.card.held_out_loss().context("nothing was held out")?;
    ensure!(held_out_loss.1 < held_out_loss.0, "held-out loss rises: {held_out_loss:?}");
    ensure!(!before.contains(FACT), "the model knew it: {before:?}");
    ensure!(after.contains(FACT), "it was not learnt: {after:?}");
    house.stage.stop_and_audit()?;
    let tuning::Released { adapter, losses, card, .. } = released;
    Ok(Report { adapter, losses, card, held_out_loss, seconds, before, after })
}
