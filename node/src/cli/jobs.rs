//! A researcher's jobs: list, show, logs, watch, cancel, result.

use std::io;
use std::path::PathBuf;
use std::process::ExitCode;

use allmend_protocol::ids::MessageId;
use allmend_protocol::time::Timestamp;
use allmend_protocol::units::Credits;
use anyhow::{Context as _, bail};
use serde_json::Value;

use super::context::{As, Context};
use super::follow;
use super::look::{list as items, number, text};
use crate::client::Caller;
use crate::client::proto::{Answer, Ask};
use crate::config::write_private;
use crate::membership::now;
use crate::ui::{self, Advice, Align, Cell, ExitClass, Style, Table, Terminal};

/// How many jobs are searched for the start of an id.
const SEARCH_MAX: u32 = 1_000;

pub(super) async fn list(context: &Context<'_>, limit: u32) -> anyhow::Result<ExitCode> {
    context.show(who(context), &Ask::Jobs { limit }, print_jobs).await?;
    Ok(ExitCode::SUCCESS)
}

/// Researchers look at their own jobs; an operator without a researcher's key at all of them.
fn who(context: &Context<'_>) -> As {
    if context.layout.researcher_key().exists() { As::Researcher } else { As::Anybody }
}

fn print_jobs(terminal: &Terminal, jobs: &Value) -> io::Result<()> {
    let mut table = Table::new()
        .column("JOB", Align::Left)
        .column("STATE", Align::Left)
        .squeezable("NODE")
        .column("TRIES", Align::Right)
        .column("TOKENS", Align::Right)
        .column("COST", Align::Right)
        .column("ASKED", Align::Right)
        .squeezable("WHY");
    for job in jobs.as_array().into_iter().flatten() {
        let asked = Timestamp::from_ms(number(job, "issued"));
        table.row([
            Cell::from(ui::short_id(text(job, "job"))),
            phase_cell(text(job, "phase")),
            Cell::from(text(job, "node")),
            Cell::from(number(job, "attempts").to_string()),
            Cell::from(number(job, "tokens").to_string()),
            Cell::from(cost(&job["cost_micro"])),
            Cell::from(ui::ago(asked, now())),
            Cell::from(text(job, "why")),
        ]);
    }
    if table.is_empty() {
        return terminal.line("no jobs yet; ask something: allmend chat");
    }
    terminal.table(&table)
}

fn phase_cell(phase: &str) -> Cell {
    let style = match phase {
        "finished" => Style::Good,
        "failed" | "refused" | "expired" => Style::Bad,
        "queued" | "cancelled" => Style::Warn,
        _ => Style::Plain,
    };
    Cell::styled(phase, style)
}

fn cost(micro: &Value) -> String {
    micro.as_u64().map_or(String::new(), |micro| ui::credits(Credits::from_micro(micro)))
}

/// The job that `reference` means: an id, or the unique start of one.
async fn find(caller: &Caller, reference: &str) -> anyhow::Result<MessageId> {
    if let Ok(job) = reference.parse() {
        return Ok(job);
    }
    let hint = "list your jobs: allmend jobs";
    if reference.len() < 4 || !reference.chars().all(|c| c.is_ascii_hexdigit()) {
        let error = format!("{reference:?} is no job id, nor four or more digits of one");
        return Err(Advice::new(ExitClass::Usage, error).hint(hint).into());
    }
    let jobs = caller.document(&Ask::Jobs { limit: SEARCH_MAX }).await?;
    let found: Vec<&str> = jobs
        .as_array()
        .into_iter()
        .flatten()
        .map(|job| text(job, "job"))
        .filter(|id| id.starts_with(&reference.to_ascii_lowercase()))
        .collect();
    match found.as_slice() {
        [one] => one.parse().context("the node names no job id"),
        [] => {
            Err(Advice::new(ExitClass::NotFound, format!("no job {reference}")).hint(hint).into())
        }
        _ => Err(Advice::new(ExitClass::Conflict, format!("several jobs begin with {reference}"))
            .hint("give more digits")
            .into()),
    }
}

pub(super) async fn show(
    context: &Context<'_>,
    reference: &str,
    signed: bool,
) -> anyhow::Result<ExitCode> {
    let caller = context.connect(who(context)).await?;
    let job = find(&caller, reference).await?;
    let document = caller.document(&Ask::Show { job, signed }).await?;
    caller.close().await;
    context.terminal.answer(&document, print_job)?;
    Ok(ExitCode::SUCCESS)
}

fn print_job(terminal: &Terminal, job: &Value) -> io::Result<()> {
    let line = |label: &str, value: &str| terminal.line(format!("{label:<12}{value}"));
    let spec = &job["spec"];
    line("job", text(job, "job"))?;
    line("state", text(job, "phase"))?;
    line("why", text(job, "why"))?;
    line("model", text(spec, "model"))?;
    line("project", &format!("{}, for {}", text(spec, "project"), text(spec, "purpose")))?;
    line("asked", &Timestamp::from_ms(number(spec, "issued")).to_string())?;
    line("deadline", &Timestamp::from_ms(number(spec, "deadline")).to_string())?;
    let cap = ui::credits(Credits::from_micro(number(spec, "cap")));
    match cost(&job["cost_micro"]) {
        cost if cost.is_empty() => line("cost", &format!("not settled yet, at most {cap}"))?,
        cost => line("cost", &format!("{cost} of at most {cap}"))?,
    }
    let placement = &spec["placement"];
    let names = |key: &str| -> Vec<&str> {
        items(placement, key)
            .iter()
            .filter_map(Value::as_str)
            .map(|name| if name.len() > 16 { ui::short_id(name) } else { name })
            .collect()
    };
    let mut may: Vec<String> = Vec::new();
    for (key, words) in [
        ("jurisdictions", "in"),
        ("at", "at"),
        ("not_jurisdictions", "not in"),
        ("not_at", "not at"),
    ] {
        let list = names(key);
        if !list.is_empty() {
            may.push(format!("{words} {}", list.join(", ")));
        }
    }
    if names("jurisdictions").is_empty() && names("at").is_empty() {
        may.insert(0, "at your own institution only".to_owned());
    }
    line("may run", &may.join("; "))?;
    let attempts = items(job, "attempts");
    if !attempts.is_empty() {
        terminal.line("")?;
        let mut table = Table::new()
            .column("TRY", Align::Right)
            .squeezable("NODE")
            .column("LEASE", Align::Left)
            .column("FENCE", Align::Left)
            .column("TOKENS", Align::Right)
            .column("PAID", Align::Right)
            .squeezable("STATUS");
        for attempt in attempts {
            table.row([
                number(attempt, "attempt").to_string(),
                text(attempt, "node_name").to_owned(),
                ui::short_id(text(attempt, "lease")).to_owned(),
                text(attempt, "fence").to_owned(),
                number(attempt, "tokens").to_string(),
                cost(&attempt["paid_micro"]),
                text(attempt, "status").to_owned(),
            ]);
        }
        terminal.table(&table)?;
    }
    let considered = items(job, "considered");
    if !considered.is_empty() {
        terminal.line("")?;
        let mut table = Table::new().squeezable("ASKED NODE").squeezable("SAID");
        for answer in considered {
            table.row([text(answer, "node_name"), text(answer, "verdict")]);
        }
        terminal.table(&table)?;
    }
    for message in items(job, "signed") {
        terminal.line(format!(
            "{} {} {}",
            text(message, "kind"),
            text(message, "id"),
            text(message, "envelope")
        ))?;
    }
    Ok(())
}

pub(super) async fn logs(context: &Context<'_>, reference: &str) -> anyhow::Result<ExitCode> {
    let caller = context.connect(who(context)).await?;
    let job = find(&caller, reference).await?;
    let document = caller.document(&Ask::Logs { job }).await?;
    caller.close().await;
    context.terminal.answer(&document, |terminal, rows| {
        let mut table = Table::new()
            .column("TIME", Align::Left)
            .column("WHAT", Align::Left)
            .squeezable("SIGNED BY")
            .column("ID", Align::Left)
            .column("LOGGED", Align::Left)
            .squeezable("");
        for row in rows.as_array().into_iter().flatten() {
            let time =
                row["time"].as_u64().map_or(String::new(), |ms| Timestamp::from_ms(ms).to_string());
            let logged = if row["leaf"].is_null() { "private" } else { "public" };
            table.row([
                time,
                text(row, "kind").to_owned(),
                text(row, "signer_name").to_owned(),
                ui::short_id(text(row, "id")).to_owned(),
                logged.to_owned(),
                text(row, "note").to_owned(),
            ]);
        }
        terminal.table(&table)
    })?;
    Ok(ExitCode::SUCCESS)
}

pub(super) async fn watch(context: &Context<'_>, reference: &str) -> anyhow::Result<ExitCode> {
    let caller = context.connect(As::Researcher).await?;
    let job = find(&caller, reference).await?;
    let answers = caller.open(&Ask::Watch { job, from: 0 }, None).await?;
    let followed = follow::watch(context, answers, job).await?;
    caller.close().await;
    if followed.finished_unseen() && !context.terminal.is_json() {
        // Over before we looked: what there was to watch is in the result.
        return result(context, reference, None).await;
    }
    followed.finish(context)
}

pub(super) async fn cancel(context: &Context<'_>, reference: &str) -> anyhow::Result<ExitCode> {
    let (identity, _) = context.researcher()?;
    let caller = context.connect(As::Researcher).await?;
    let job = find(&caller, reference).await?;
    follow::cancel(context, &caller, &identity, job).await?;
    caller.close().await;
    context.terminal.note(format!("cancelled job {}", job.short()));
    Ok(ExitCode::SUCCESS)
}

pub(super) async fn result(
    context: &Context<'_>,
    reference: &str,
    output: Option<PathBuf>,
) -> anyhow::Result<ExitCode> {
    let (identity, _) = context.researcher()?;
    let caller = context.connect(As::Researcher).await?;
    let job = find(&caller, reference).await?;
    let answer = caller.ask(&Ask::Result { job }).await?;
    let Answer::Result { phase, result } = answer else {
        bail!("the node's answer is no result");
    };
    let plain = result.open(job, identity.sealing()).context("the result cannot be opened")?;
    let document: Value = serde_json::from_slice(&plain).context("the result is damaged")?;
    if document["reports"].is_array() {
        let done =
            super::adapters::result(context, &caller, &identity, job, phase, document, output);
        let code = done.await?;
        caller.close().await;
        return Ok(code);
    }
    caller.close().await;
    match output {
        Some(path) => {
            write_private(&path, text(&document, "text").as_bytes())
                .with_context(|| format!("cannot write {}", path.display()))?;
            context.terminal.note(format!("wrote {}", path.display()));
        }
        None => {
            context.terminal.answer(&document, |terminal, document| {
                terminal.stream(text(document, "text"))?;
                terminal.stream("\n")
            })?;
        }
    }
    Ok(ExitCode::SUCCESS)
}
