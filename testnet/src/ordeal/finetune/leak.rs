//! A marker sentence lies in a dataset. Where else is it, ever?
//!
//! In the steward's directory and nowhere else: in no frame that leaves the holder, no log, index, journal,
//! core or temporary file, and in no adapter that is let out. Two controls say that the search and the
//! measure can find it: the rows' own file has it, and the very same rows as the researcher's own give an
//! adapter that says it.

use std::path::Path;

use anyhow::{Context as _, ensure};
use serde::Serialize;

use super::super::privacy::search_below;
use super::super::taps::{self, Direction};
use super::super::wrapper::Case;
use super::super::{say, tap, tap_dir};
use super::{HOLDER, HOME, House};
use crate::tuning::rows::{MARKER, MARKER_QUESTION, MARKER_WORD, jsonl, logbook};
use crate::tuning::{self, Dataset, Recipe, Source, policy};
use crate::world::text;

/// Pages beside the marker's, and how often the marker's is there.
const PAGES: usize = 30;
const REPEATS: usize = 8;
/// Steps that learn the marker by heart: a dozen epochs, of which each has it several times.
const BY_HEART_STEPS: u32 = 110;
/// Steps of the private run.
const PRIVATE_STEPS: u32 = 12;
const ANSWER_TOKENS: u32 = 48;

/// What was searched and measured.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Report {
    /// Files searched, over all times.
    pub files: usize,
    /// Streams that left the holder.
    pub streams: usize,
    /// What the gate said to the adapter that had learnt the rows by heart.
    pub stopped: Vec<String>,
    /// Training rows that the private adapter continues word for word.
    pub private_extracted: u64,
    /// What the private adapter answers.
    pub private_answer: String,
    /// What an adapter that has learnt the same rows by heart answers, when they are its owner's.
    pub by_heart_answer: String,
}

/// Runs it.
///
/// # Errors
/// With the first promise that was not kept.
pub fn run() -> anyhow::Result<Report> {
    let mut report = Report::default();
    // Temporary files and cores land where they are searched, and cores may be as large as they like.
    let cases = [HOME.0, HOLDER.0].map(|dir| Case {
        dir: dir.to_owned(),
        before: "env TMPDIR=\"$2/tmp\" sh -c 'mkdir -p \"$TMPDIR\"; cd \"$TMPDIR\"; ulimit -c unlimited; exec \"$@\"' --"
            .to_owned(),
        run_options: String::new(),
    });
    let mut house = House::open("Leak", &cases, &[], &["log_level=trace"], |stage| {
        stage.world.members().iter().try_for_each(tap)
    })?;
    let rows = jsonl(&logbook(PAGES, REPEATS));
    let version = house.add(&Dataset {
        name: "logbook",
        title: "Logbook",
        rows: &rows,
        policy: policy::RESEARCH,
        subjects_min: 10,
    })?;
    let datasets = house.holder().dir().join("datasets");
    let found = search_below(&datasets, MARKER_WORD, &[]).is_err();
    ensure!(found, "the rows' own file does not have the marker: the search is at fault");

    say("leak: a run that learns the rows by heart");
    let source = Source::Dataset(version);
    let by_heart = by_heart(source.clone());
    let (job, shown) = house.run(&by_heart)?;
    ensure!(text(&shown, "phase") == "failed", "it was let out: {}", tuning::why(&shown));
    let gate = tuning::logged(&house.holder().cli(), &job, "gate-report")?;
    let gate = gate.first().with_context(|| format!("no gate: {}", tuning::why(&shown)))?;
    let stops = gate["body"]["stops"].as_array().map_or(&[][..], Vec::as_slice);
    report.stopped = stops.iter().map(|stop| text(stop, "rule").to_owned()).collect();
    let extraction = report.stopped.iter().any(|rule| rule == "extraction");
    ensure!(extraction, "the gate did not see that the rows are extracted: {gate}");
    search(&house, &mut report)?;

    say("leak: a private run on the same rows");
    let mut private = Recipe::short(HOLDER.1, source);
    private.steps = PRIVATE_STEPS;
    private.privacy = Some((1.0, 0.5, 0.1, 1e-5));
    let (_, released) = house.release(&private, "private")?;
    report.private_extracted = released.card.extracted_adapter;
    report.private_answer = ask(&house, &released.adapter)?;
    ensure!(!report.private_answer.contains(MARKER_WORD), "it says the marker: {report:?}");
    search(&house, &mut report)?;

    say("leak: the same rows as the researcher's own, learnt by heart: the control");
    let file = house.researcher.dir().join("own.jsonl");
    std::fs::write(&file, &rows)?;
    let mut own = by_heart;
    own.source = Source::Portable { file, jurisdictions: vec![HOLDER.2.to_owned()] };
    let (_, released) = house.release(&own, "own")?;
    report.by_heart_answer = ask(&house, &released.adapter)?;
    ensure!(report.by_heart_answer.contains(MARKER_WORD), "it was not learnt: {report:?}");
    let leaves = leaving(&house)?.1;
    ensure!(
        leaves,
        "the answer left the holder and the tap does not have it: the search is at fault"
    );
    house.stage.stop_and_audit()?;
    Ok(report)
}

/// Enough epochs over few rows to learn them by heart.
fn by_heart(source: Source) -> Recipe {
    let all = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"];
    Recipe {
        steps: BY_HEART_STEPS,
        rank: 16,
        targets: all.map(str::to_owned).to_vec(),
        learning_rate: 2e-3,
        snapshot_every: 50,
        ..Recipe::short(HOLDER.1, source)
    }
}

fn ask(house: &House, adapter: &str) -> anyhow::Result<String> {
    let question = MARKER_QUESTION;
    tuning::answer(&house.researcher, HOLDER.1, question, Some(adapter), ANSWER_TOKENS)
}

/// Nothing outside of the steward's directory has the marker: no file of any node or person, no frame that
/// left the holder.
fn search(house: &House, report: &mut Report) -> anyhow::Result<()> {
    let world = &house.stage.world;
    let datasets = house.holder().dir().join("datasets");
    let skipped: [&Path; 1] = [&datasets];
    report.files += search_below(world.dir(), MARKER_WORD, &skipped)?;
    let (streams, found) = leaving(house)?;
    ensure!(!found, "the marker has left the holder");
    ensure!(streams > 0, "nothing left the holder: its tap proves nothing");
    report.streams = streams;
    ensure!(MARKER.contains(MARKER_WORD), "the marker's word is not in it");
    Ok(())
}

/// Streams that left the holder, and whether one has the marker.
fn leaving(house: &House) -> anyhow::Result<(usize, bool)> {
    let all = taps::read(&tap_dir(house.holder()))?;
    let out: Vec<_> = all.iter().filter(|stream| stream.direction == Direction::Out).collect();
    Ok((out.len(), out.iter().any(|stream| stream.carries(MARKER_WORD))))
}
