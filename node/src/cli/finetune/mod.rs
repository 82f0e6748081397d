//! `submit finetune`: a job file in, an adapter out.

mod file;

use std::process::ExitCode;

use allmend_protocol::encoding;
use allmend_protocol::finetune::{FinetuneInput, FinetuneWork};
use allmend_protocol::job::Placement;
use allmend_protocol::time::DurationMs;
use allmend_protocol::units::Rates;
use anyhow::Context as _;
use serde_json::{Value, json};

use self::file::JobFile;
use super::args::FinetuneOptions;
use super::context::{Context, parse_duration};
use super::desk::{Desk, Job, Wanted, parse_credits};
use super::look::{list, number, text};
use super::submit;
use crate::client::proto::Ask;
use crate::membership::now;
use crate::ui::{self, Advice, Align, ExitClass, Table};

/// A job to begin with, every default written out.
const EXAMPLE: &str = include_str!("example.toml");
/// The largest job file; real ones have a page.
const FILE_BYTES_MAX: u64 = 256 * 1024;

pub(super) async fn run(
    context: &Context<'_>,
    options: FinetuneOptions,
) -> anyhow::Result<ExitCode> {
    let Some(path) = options.job.filter(|_| !options.example) else {
        context.terminal.stream(EXAMPLE)?;
        return Ok(ExitCode::SUCCESS);
    };
    let named = path.display();
    let size = std::fs::metadata(&path).with_context(|| format!("cannot read {named}"))?.len();
    if size > FILE_BYTES_MAX {
        return Err(Advice::new(
            ExitClass::Usage,
            format!("{named} is no job file: it is too large"),
        )
        .hint("print one to begin with: allmend submit finetune --example")
        .into());
    }
    let content = std::fs::read_to_string(&path).with_context(|| format!("cannot read {named}"))?;
    let usage = |why: String| {
        anyhow::Error::from(
            Advice::new(ExitClass::Usage, format!("{named}: {why}"))
                .hint("see every key with its default: allmend submit finetune --example"),
        )
    };
    let file: JobFile = toml::from_str(&content).map_err(|error| usage(error.to_string()))?;
    let work = file.work(now()).map_err(usage)?;
    let desk = Desk::open(context).await?;
    let job = sign(&desk, &file, &work, usage)?;
    if options.dry_run {
        return explain(context, &desk, &job, &work).await;
    }
    submit::send(context, desk, job, options.detach).await
}

fn sign(
    desk: &Desk,
    file: &JobFile,
    work: &FinetuneWork,
    usage: impl Fn(String) -> anyhow::Error,
) -> anyhow::Result<Job> {
    let mut placement = Placement {
        at: file.at.iter().map(|name| desk.institution(name)).collect::<Result<_, _>>()?,
        jurisdictions: file.jurisdictions.clone(),
        ..Placement::default()
    };
    let mut input = FinetuneInput::default();
    if let Some(portable) = &file.portable {
        input.portable = Some(super::portable::pack(
            &portable.file,
            &portable.jurisdictions,
            desk.identity.public().into(),
        )?);
        // Rows go nowhere else than where they were declared to go.
        placement.jurisdictions.clone_from(&portable.jurisdictions);
    }
    placement.at.sort();
    placement.at.dedup();
    placement.jurisdictions.sort();
    placement.jurisdictions.dedup();
    let terms = file.terms().map_err(&usage)?;
    desk.sign(Wanted {
        work: work.to_work(),
        plain: &encoding::encode(&input),
        model: desk.model(file.model.as_deref())?,
        dataset: terms.dataset,
        terms: Some(terms),
        project: &file.project,
        purpose: &file.purpose,
        placement,
        cap: parse_credits(&file.cap)?,
        attempts: file.attempts,
        lifetime: parse_duration(&file.deadline)
            .map_err(|why| usage(format!("deadline: {why}")))?,
    })
}

/// What it would take, and where, before anything is submitted.
async fn explain(
    context: &Context<'_>,
    desk: &Desk,
    job: &Job,
    work: &FinetuneWork,
) -> anyhow::Result<ExitCode> {
    let spec = allmend_protocol::bytes::ByteString(job.spec.envelope().as_bytes().to_vec());
    let document = desk.caller.document(&Ask::Explain { spec }).await?;
    let rows: Vec<Value> = document.as_array().cloned().unwrap_or_default();
    let priced: Vec<Value> = rows
        .into_iter()
        .map(|mut row| {
            let rates = desk.rates(text(&row, "node"));
            let cost = rates.and_then(|rates: Rates| rates.cost(0, work.tokens_max()));
            row["cost_micro_max"] = cost.map_or(Value::Null, |cost| json!(cost.as_micro()));
            row
        })
        .collect();
    let answer = json!({ "tokens_max": work.tokens_max(), "steps": work.steps, "nodes": priced });
    context.terminal.answer(&answer, |terminal, answer| {
        terminal.line(format!(
            "{} steps over at most {} tokens",
            work.steps,
            ui::count(work.tokens_max())
        ))?;
        let mut table = Table::new()
            .squeezable("NODE")
            .column("COULD RUN IT", Align::Left)
            .column("COSTS AT MOST", Align::Right)
            .column("MEMORY", Align::Right)
            .column("STEPS TAKE", Align::Right)
            .squeezable("WHO MUST APPROVE, OR WHY NOT");
        for row in list(answer, "nodes") {
            let words = |key: &str| -> Vec<&str> {
                list(row, key).iter().filter_map(Value::as_str).collect()
            };
            let (why, who) = (words("reasons"), words("obligations"));
            let could = match (why.is_empty(), who.is_empty()) {
                (true, _) if row["answered"] != true => "no answer",
                (true, true) => "yes",
                (true, false) => "once approved",
                (false, _) => "no",
            };
            let cost = row["cost_micro_max"].as_u64().map_or(String::new(), |micro| {
                ui::credits(allmend_protocol::units::Credits::from_micro(micro))
            });
            let memory = match number(row, "memory_mib") {
                0 => String::new(),
                mib => ui::mib(mib),
            };
            let time = match number(row, "seconds") {
                0 => String::new(),
                seconds => ui::duration(DurationMs::from_secs(seconds)),
            };
            let words = if why.is_empty() { who.join(", ") } else { why.join("; ") };
            table.row([text(row, "node_name"), could, &cost, &memory, &time, &words]);
        }
        terminal.table(&table)?;
        terminal.note(
            "nothing has been submitted; each node decides anew when the job comes. Times are of full rows on \
             an idle machine; preparing and measuring come on top",
        );
        Ok(())
    })?;
    Ok(ExitCode::SUCCESS)
}
