//! A researcher's own rows travel sealed to a country that they may, are deleted there when the job is
//! settled, with a signed record, and go nowhere else.

use anyhow::{Context as _, ensure};
use serde::Serialize;

use super::super::privacy::search_below;
use super::super::{plan, say, tap, tap_dir, taps};
use super::{HOLDER, HOME, House};
use crate::tuning::rows::{MARKER_WORD, jsonl, logbook};
use crate::tuning::{self, Recipe, Source};
use crate::world::{SOON, text, wait_for};

/// Where the rows may not go.
const ELSEWHERE: (&str, &str, &str) = ("elsewhere", "Institute Elsewhere", "US");

/// What happened.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Report {
    /// Where it ran.
    pub ran_at: String,
    /// Bytes that the node says it has deleted.
    pub deleted_bytes: u64,
    /// Why a node elsewhere does not run it.
    pub refused: String,
    /// Files searched for the rows afterwards.
    pub files: usize,
}

/// Runs it.
///
/// # Errors
/// With the first promise that was not kept.
pub fn run() -> anyhow::Result<Report> {
    let elsewhere = plan(ELSEWHERE.0, ELSEWHERE.1, ELSEWHERE.2);
    let mut house = House::open("Portable", &[], &[elsewhere], &[], |stage| {
        stage.world.members().iter().try_for_each(tap)
    })?;
    let file = house.researcher.dir().join("own.jsonl");
    std::fs::write(&file, jsonl(&logbook(20, 4)))?;
    let jurisdictions = vec![HOLDER.2.to_owned()];
    let mut recipe =
        Recipe::short(HOLDER.1, Source::Portable { file: file.clone(), jurisdictions });
    recipe.at.push(ELSEWHERE.1.to_owned());
    recipe.steps = 6;

    say("portable: rows that may go to one of two countries");
    let mut report = Report::default();
    let (job, _) = house.release(&recipe, "portable")?;
    let shown = house.researcher.json(&["show", &job])?;
    report.ran_at = text(&shown["attempts"][0], "node_name").to_owned();
    ensure!(report.ran_at == HOLDER.0, "it ran at {}", report.ran_at);
    let holder = house.holder().cli();
    let deletion = wait_for("the deletion in the holder's log", SOON, || {
        Ok(tuning::logged(&holder, &job, "deletion")?.into_iter().next())
    })?;
    ensure!(deletion["leaf"].is_u64(), "the deletion is not in the public log: {deletion}");
    report.deleted_bytes = deletion["body"]["bytes"].as_u64().context("no bytes")?;
    ensure!(report.deleted_bytes > 0, "nothing was deleted: {deletion}");
    let left = holder.dir().join("datasets/.training").join(&job);
    ensure!(!left.exists(), "the run has left {}", left.display());

    say("portable: the rows are in no file of any node, and in no frame but sealed");
    for name in [HOME.0, HOLDER.0, ELSEWHERE.0] {
        let member = house.stage.world.member(name);
        report.files += search_below(member.dir(), MARKER_WORD, &[])?;
        for stream in taps::read(&tap_dir(member))? {
            ensure!(!stream.carries(MARKER_WORD), "the rows are in {}", stream.path.display());
        }
    }
    let found = search_below(house.researcher.dir(), MARKER_WORD, &[]).is_err();
    ensure!(found, "the researcher's own file does not have the rows: the search is at fault");

    say("portable: elsewhere they are refused");
    recipe.at = vec![ELSEWHERE.1.to_owned()];
    let (_, shown) = house.run(&recipe)?;
    report.refused = tuning::why(&shown);
    ensure!(text(&shown, "phase") == "refused", "it was not refused: {}", report.refused);
    ensure!(report.refused.contains("jurisdiction"), "for another reason: {}", report.refused);
    house.stage.stop_and_audit()?;
    Ok(report)
}
