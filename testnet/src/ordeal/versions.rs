//! A node that speaks only the first version of every message, among nodes of this release.

use anyhow::{Context as _, ensure};
use serde::Serialize;
use serde_json::Value;

use super::taps::{self, Direction};
use super::wrapper::Case;
use super::{Stage, ask, plan, say};
use crate::world::{Cli, Plan, World, text};

/// What the owners of all nodes forbid.
const FORBIDDEN: &str = "surveillance";
/// Exit code of a refused job.
const REFUSED: i32 = 5;

/// Which versions of refusals went where.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Report {
    /// Versions that the node of the first release sent.
    pub old_to_new: Vec<u16>,
    /// Versions that a node of this release sent to it.
    pub new_to_old: Vec<u16>,
    /// Versions that nodes of this release sent to one another.
    pub new_to_new: Vec<u16>,
}

/// Runs it.
///
/// # Errors
/// With the first promise that was not kept.
pub fn run() -> anyhow::Result<Report> {
    let old = Case {
        dir: "old".to_owned(),
        before: String::new(),
        run_options: "--first-versions".to_owned(),
    };
    let mut stage = Stage::set_with(&[old], "Versions", &plans())?;
    for member in stage.world.members() {
        super::tap(member)?;
    }
    stage.start()?;
    let world = &stage.world;
    let [old, new] =
        ["old", "new"].map(|home| world.researcher(&format!("of-{home}"), "Ruth", home));
    let (old, new) = (old?, new?);
    say("versions: jobs from old to new and from new to old");
    ask(&old, "New Institute", "What is the capital of Norway?", 12)?;
    ask(&new, "Old Institute", "What is the capital of Norway?", 12)?;
    say("versions: refusals from new to old, from old to new, and from new to new");
    refused(&old, "New Institute")?;
    refused(&new, "Old Institute")?;
    refused(&new, "Other Institute")?;
    let report = Report {
        old_to_new: refusals(world, "old", "new")?,
        new_to_old: refusals(world, "new", "old")?,
        new_to_new: refusals(world, "other", "new")?,
    };
    ensure!(report.old_to_new == [1], "an old node refuses in versions {:?}", report.old_to_new);
    ensure!(report.new_to_old == [1], "an old node is refused in versions {:?}", report.new_to_old);
    ensure!(report.new_to_new == [2], "new nodes refuse in versions {:?}", report.new_to_new);
    stage.stop_and_audit()?;
    Ok(report)
}

fn plans() -> [Plan; 3] {
    let mut plans = [
        plan("new", "New Institute", "CH"),
        plan("old", "Old Institute", "NO"),
        plan("other", "Other Institute", "DE"),
    ];
    for plan in &mut plans {
        plan.policy = Some(format!(
            "\n[[policy.allow]]\nname = \"members\"\ninstitutions = [\"*\"]\n\
             \n[[policy.deny]]\nname = \"not for this\"\npurposes = [\"{FORBIDDEN}\"]\n"
        ));
    }
    plans
}

/// A job that the policy at `at` forbids is refused, and the researcher reads whose rule it was.
fn refused(researcher: &Cli, at: &str) -> anyhow::Result<()> {
    let arguments = [
        "--json",
        "submit",
        "infer",
        "Hello",
        "--at",
        at,
        "--purpose",
        FORBIDDEN,
        "--max-tokens",
        "4",
    ];
    let output = researcher.run(&arguments)?;
    ensure!(output.code == Some(REFUSED), "exit code {:?}: {}", output.code, output.stderr);
    let answer: Value = serde_json::from_str(&output.stdout).context("no JSON")?;
    let mut verdicts = answer["verdicts"].as_array().into_iter().flatten();
    let named = verdicts.any(|verdict| text(verdict, "verdict").contains("not for this"));
    ensure!(named, "the refusal does not name the rule: {answer}");
    Ok(())
}

/// Versions in which `from` sent refusals to `to`, by the payload types in its tap.
fn refusals(world: &World, from: &str, to: &str) -> anyhow::Result<Vec<u16>> {
    let to = world.member(to).node_key();
    let streams = taps::read(&super::tap_dir(world.member(from)))?;
    let spoken = |version: &u16| {
        let payload_type = format!("application/vnd.allmend.refusal.v{version}+dag-cbor");
        streams.iter().any(|stream| {
            stream.peer == to && stream.direction == Direction::Out && stream.carries(&payload_type)
        })
    };
    Ok((1..=3).filter(spoken).collect())
}
