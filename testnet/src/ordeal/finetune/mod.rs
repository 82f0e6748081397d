//! Fine-tuning where the data lives, at its worst: leaks, kills, faults, withdrawals, rows that travel.
//!
//! Each scenario is an ordeal of its own, on a world with a researcher's home and a holder of data.

pub mod faults;
pub mod kill;
pub mod leak;
pub mod longer;
pub mod portable;
pub mod withdraw;

use std::path::Path;

use anyhow::Context as _;
use serde_json::Value;

use super::Stage;
use super::wrapper::Case;
use crate::tuning::{self, Dataset, Recipe, Steward};
use crate::world::{Cli, Member, Plan, text};

/// The researcher's home: its node's directory, its institution, its country.
const HOME: (&str, &str, &str) = ("home", "Home Institute", "DE");
/// Threads of each node's engine.
const THREADS: u32 = 2;
/// The holder of the data.
const HOLDER: (&str, &str, &str) = ("holder", "Holding Archive", "CH");

/// The scenarios, as subcommands.
#[derive(Clone, Debug, clap::Subcommand)]
pub enum Scenario {
    /// A planted sentence leaves the steward's directory nowhere, and the gate stops who learnt it by heart
    Leak,
    /// Kill room and node at random instants of a run; it ends with the bytes of one that nobody disturbed
    Kill(kill::Options),
    /// A loss that is no number, one that explodes, a step that hangs, a device that idles
    Faults(faults::Options),
    /// A steward withdraws a dataset in the middle of a run, and recalls what was released
    Withdraw,
    /// A researcher's own rows travel to a country that they may, are deleted there, and go nowhere else
    Portable,
    /// More rows, more steps
    Longer(longer::Options),
}

impl Scenario {
    /// Goes through with it and prints the report.
    ///
    /// # Errors
    /// With the first promise that was not kept.
    pub fn run(&self) -> anyhow::Result<()> {
        match self {
            Scenario::Leak => super::print(&leak::run()?),
            Scenario::Kill(options) => super::print(&kill::run(options)?),
            Scenario::Faults(options) => super::print(&faults::run(options)?),
            Scenario::Withdraw => super::print(&withdraw::run()?),
            Scenario::Portable => super::print(&portable::run()?),
            Scenario::Longer(options) => super::print(&longer::run(options)?),
        }
    }
}

/// A world with a researcher at home and a steward at the holder.
struct House {
    stage: Stage,
    researcher: Cli,
    steward: Steward,
}

impl House {
    /// Opens it with further institutions; `prepare` sees it before anything runs.
    fn open(
        name: &str,
        cases: &[Case],
        others: &[Plan],
        set: &[&str],
        prepare: impl FnOnce(&Stage) -> anyhow::Result<()>,
    ) -> anyhow::Result<House> {
        // Only one of them computes.
        let plan = |(name, institution, country)| Plan::new(name, institution, country, THREADS);
        let mut plans = vec![plan(HOME), plan(HOLDER)];
        plans.extend_from_slice(others);
        for plan in &mut plans {
            plan.set.extend(set.iter().map(|&set| set.to_owned()));
        }
        let mut stage = Stage::set_with(cases, name, &plans)?;
        prepare(&stage)?;
        stage.start()?;
        let researcher = stage.world.researcher("researcher", "R. Searcher", HOME.0)?;
        let steward = tuning::steward(&stage.world, "steward", "S. Teward", HOLDER.0)?;
        Ok(House { stage, researcher, steward })
    }

    fn holder(&self) -> &Member {
        self.stage.world.member(HOLDER.0)
    }

    fn add(&self, dataset: &Dataset<'_>) -> anyhow::Result<String> {
        tuning::add_dataset(&self.stage.world, self.holder(), &self.steward, dataset)
    }

    /// Submits a job that no person decides about, and waits for its end.
    fn run(&self, recipe: &Recipe) -> anyhow::Result<(String, Value)> {
        let job = tuning::submit(&self.researcher, recipe)?;
        let shown = tuning::wait_over(&self.researcher, &job, tuning::TRAINED_WITHIN)?;
        Ok((job, shown))
    }

    /// A run that must release an adapter.
    fn release(&self, recipe: &Recipe, name: &str) -> anyhow::Result<(String, tuning::Released)> {
        let (job, shown) = self.run(recipe)?;
        anyhow::ensure!(text(&shown, "phase") == "finished", "{name}: {}", tuning::why(&shown));
        let dir = self.stage.world.dir().join("adapters").join(name);
        std::fs::create_dir_all(dir.parent().context("no parent")?)?;
        Ok((job.clone(), tuning::fetch(&self.researcher, &job, &dir)?))
    }
}

/// Sets a value in the configuration of a node that does not run; `line` is its commented default.
fn configure(member: &Member, line: &str, with: &str) -> anyhow::Result<()> {
    let config = member.dir().join("config.toml");
    let written = std::fs::read_to_string(&config)?;
    anyhow::ensure!(written.contains(line), "{} has no line {line}", config.display());
    std::fs::write(&config, written.replace(line, with))?;
    Ok(())
}

/// The bytes of an adapter's weights.
fn weights(dir: &Path) -> anyhow::Result<Vec<u8>> {
    let path = dir.join("adapter_model.safetensors");
    std::fs::read(&path).with_context(|| format!("cannot read {}", path.display()))
}
