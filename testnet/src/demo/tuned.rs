//! Fine-tuning where the data lives: a text that one institution alone has, a researcher at another, a
//! steward who decides; what comes out is an adapter that knows what no model knew.

use anyhow::{Context as _, bail, ensure};
use serde_json::Value;

use super::report::Tuned;
use super::{SETTLED_WITHIN, Stage, settled, short};
use crate::tuning::rows::{FACT, QUESTION, archive, jsonl};
use crate::tuning::{self, Dataset, Recipe, Released, Source, TRAINED_WITHIN, policy};
use crate::world::{Cli, text, wait_for};

/// The institution that has the text: its node's directory, and what `at` calls it.
const HOLDER: (&str, &str) = ("alpine", "Alpine Supercomputing");
/// Rows of the text. One epoch over them is enough to learn the fact, and too little for any row.
const ROWS: usize = 80;
/// Steps of the optimiser.
const STEPS: u32 = 20;
/// Of each answer: the fact stands at its beginning.
const ANSWER_TOKENS: u32 = 24;
/// Reports at each end of the curve that are compared: a single one is noisy.
const ENDS: usize = 2;

impl Stage<'_> {
    pub(super) fn tuned(&mut self, researcher: &Cli) -> anyhow::Result<()> {
        let (steward, version) = self.notes_are_added()?;
        self.narrator.step("Robin has a model adapted to them, without ever seeing them");
        let base = tuning::answer(researcher, HOLDER.1, QUESTION, None, ANSWER_TOKENS)?;
        ensure!(!base.contains(FACT), "the model knew the answer beforehand: {base:?}");
        self.narrator.note(&format!("{QUESTION} The model as it is: {base:?}"));
        self.narrator.note("$ allmend submit finetune job.toml");
        let source = Source::Dataset(version.clone());
        let recipe =
            Recipe { steps: STEPS, learning_rate: 3e-3, ..Recipe::short(HOLDER.1, source) };
        let job = tuning::submit(researcher, &recipe)?;
        let question = tuning::question_of(&steward, researcher, &job)?;
        let waits = self.waits(researcher, &job)?;
        self.narrator.tick(&format!("it waits, and costs nothing meanwhile: {waits}"));
        for words in question["words"].as_array().into_iter().flatten().filter_map(Value::as_str) {
            self.narrator.note(words);
        }
        tuning::decide(&steward, &question)?;
        self.narrator.tick("the steward has read that, and approves with a key of their own");
        let shown = self.training(researcher, &job)?;
        if text(&shown, "phase") != "finished" {
            bail!("no adapter came of it: {}", tuning::why(&shown));
        }
        let dir = self.world.dir().join("adapter");
        let released = tuning::fetch(researcher, &job, &dir)?;
        let mut report = self.reckoned(researcher, &job, &version, &released)?;
        let adapted =
            tuning::answer(researcher, HOLDER.1, QUESTION, Some(&released.adapter), ANSWER_TOKENS)?;
        self.narrator.note(&format!("{QUESTION} With the adapter: {adapted:?}"));
        (report.answer_before, report.answer_after) = (base, adapted.clone());
        self.report.tuned = Some(report);
        ensure!(adapted.contains(FACT), "the adapter has not learnt it: {adapted:?}");
        self.narrator.tick("asked from Lakeside, the adapter answers what no model knew");
        Ok(())
    }

    /// The holder's notes, their policy, and who decides about them.
    fn notes_are_added(&mut self) -> anyhow::Result<(tuning::Steward, String)> {
        self.narrator.step("Alpine Supercomputing has notes that nobody else has");
        let steward = tuning::steward(&self.world, "steward", "Sandrine Example", HOLDER.0)?;
        self.narrator.tick("Sandrine keeps them: invited as researcher, with a key of her own");
        let rows = jsonl(&archive(ROWS));
        let dataset = Dataset {
            name: "skerrivane-notes",
            title: "Notes from Skerrivane",
            rows: &rows,
            policy: policy::STEWARD_DECIDES,
            subjects_min: 50,
        };
        let holder = self.world.member(HOLDER.0);
        let version = tuning::add_dataset(&self.world, holder, &steward, &dataset)?;
        self.narrator.tick(&format!(
            "{ROWS} rows, version {}…; their policy: research only, and Sandrine looks at each job",
            short(&version)
        ));
        Ok((steward, version))
    }

    /// What the researcher is told while a person must decide; nothing is granted yet.
    fn waits(&self, researcher: &Cli, job: &str) -> anyhow::Result<String> {
        let shown = researcher.json(&["show", job])?;
        let words = tuning::why(&shown);
        ensure!(words.contains("data-steward"), "the researcher is not told for whom: {words}");
        ensure!(shown["grant"].is_null(), "money is set aside for a job that waits: {shown}");
        let attempts = shown["attempts"].as_array().map_or(0, Vec::len);
        ensure!(attempts == 0, "a slot is held for a job that waits: {shown}");
        Ok(text(&shown, "why").to_owned())
    }

    fn training(&mut self, researcher: &Cli, job: &str) -> anyhow::Result<Value> {
        let holder = self.world.member(HOLDER.0).cli();
        let under_way = tuning::wait_step(&holder, researcher, job, 1, TRAINED_WITHIN)?;
        if under_way.is_some() {
            self.narrator.tick("training is under way, in a sealed room");
        }
        tuning::wait_over(researcher, job, TRAINED_WITHIN)
    }

    /// What everybody signed, and what was measured.
    fn reckoned(
        &mut self,
        researcher: &Cli,
        job: &str,
        version: &str,
        released: &Released,
    ) -> anyhow::Result<Tuned> {
        let Released { adapter, losses, card, .. } = released;
        let mean = |losses: &[f64]| losses.iter().sum::<f64>() / losses.len().max(1) as f64;
        ensure!(losses.len() >= 2 * ENDS, "too few losses were told: {losses:?}");
        let first = mean(&losses[..ENDS]);
        let last = mean(&losses[losses.len() - ENDS..]);
        ensure!(last < first, "the loss does not fall: {losses:?}");
        let (before, after) = card.held_out_loss().context("nothing was held out")?;
        ensure!(after < before, "held-out loss rises from {before} to {after}");
        self.narrator.tick(&format!(
            "the loss falls from {first:.2} to {last:.2}, on rows held out from {before:.2} to {after:.2}"
        ));
        self.narrator.tick(&format!(
            "the gate let it out: of {} rows begun, {} are continued word for word (by the model as it is, \
             {}); exposure of planted secrets {:.1} bits on average",
            card.rows_tested, card.extracted_adapter, card.extracted_base, card.exposure_mean_bits
        ));
        let holder = self.world.member(HOLDER.0).cli();
        let contract = tuning::contract_of(&holder, job)?;
        ensure!(contract["datasets"][0] == version, "the contract is about other rows: {contract}");
        let approvals = contract["approvals"].as_array().map_or(0, Vec::len);
        ensure!(approvals == 1, "the contract rests on {approvals} approvals");
        let gate = wait_for("the gate's report", SETTLED_WITHIN, || {
            Ok(tuning::logged(&holder, job, "gate-report")?.into_iter().next())
        })?;
        ensure!(gate["body"]["released"] == adapter.as_str(), "the gate released another: {gate}");
        let receipt = wait_for("the receipt", SETTLED_WITHIN, || {
            Ok(tuning::logged(&holder, job, "receipt")?.into_iter().next())
        })?;
        ensure!(!receipt["body"]["contract"].is_null(), "the receipt names no contract: {receipt}");
        let settled = settled(researcher, job)?;
        self.narrator.tick(&format!(
            "in Alpine's log: approval, contract ({}), the gate's report, a receipt that names the contract",
            text(&contract, "room")
        ));
        Ok(Tuned {
            job: job.to_owned(),
            dataset: version.to_owned(),
            rows: ROWS,
            adapter: adapter.clone(),
            room: text(&contract, "room").to_owned(),
            losses: losses.clone(),
            held_out_loss: (before, after),
            rows_tested: card.rows_tested,
            rows_extracted: card.extracted_adapter,
            exposure_mean_bits: card.exposure_mean_bits,
            cost_micro: settled["cost_micro"].as_u64().unwrap_or_default(),
            ..Tuned::default()
        })
    }
}
