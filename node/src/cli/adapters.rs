//! `allmend adapters`: what this machine's node serves beside its models.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use allmend_gate::Bundle;
use allmend_protocol::encoding;
use allmend_protocol::ids::{Digest, MessageId};
use allmend_scheduler::io::Phase;
use anyhow::{Context as _, bail};
use serde_json::Value;

use super::args::AdaptersCommand;
use super::context::{As, Context};
use super::look::{list as items, text};
use crate::adapters::{About, AdapterStore, FILES};
use crate::client::Caller;
use crate::client::proto::{Answer, Ask};
use crate::config::Identity;
use crate::seal::SealedResult;
use crate::spool::ARTIFACT_BYTES_MAX;
use crate::ui::{self, Advice, Align, ExitClass, Table};

/// The largest file of an adapter that is added.
const FILE_BYTES_MAX: u64 = 1 << 30;

pub(super) async fn run(
    context: &Context<'_>,
    command: AdaptersCommand,
) -> anyhow::Result<ExitCode> {
    context.layout.require()?;
    let store = AdapterStore::new(context.layout.adapters_dir());
    match command {
        AdaptersCommand::Ls => list(context, &store)?,
        AdaptersCommand::Add { folder } => {
            let id = add(&store, &folder)?;
            tell(context).await?;
            context.terminal.answer(&serde_json::json!({ "adapter": id }), |terminal, _| {
                terminal.line(id.to_string())
            })?;
        }
        AdaptersCommand::Rm { adapter } => {
            let id = find(&store, &adapter)?;
            store.remove(id).with_context(|| format!("cannot delete adapter {}", id.short()))?;
            tell(context).await?;
            context.terminal.note(format!("deleted adapter {}", id.short()));
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// A fine-tuning job's result: how it went, and the adapter, opened with the researcher's key.
pub(super) async fn result(
    context: &Context<'_>,
    caller: &Caller,
    identity: &Identity,
    job: MessageId,
    phase: Phase,
    mut document: Value,
    output: Option<PathBuf>,
) -> anyhow::Result<ExitCode> {
    let losses: Vec<f64> = items(&document, "reports")
        .iter()
        .filter_map(|report| report["loss_micro"].as_i64().map(|micro| micro as f64 / 1e6))
        .collect();
    let mut code = ExitCode::SUCCESS;
    if phase == Phase::Finished {
        let bundle = fetch(caller, identity, job).await?;
        let id = bundle.id();
        document["adapter"] = serde_json::json!(id);
        if let Some(dir) = &output {
            bundle.unpack(dir).with_context(|| format!("cannot write {}", dir.display()))?;
            document["written"] = serde_json::json!(dir);
        }
    } else {
        code = ExitCode::from(ExitClass::JobFailed.code());
    }
    context.terminal.answer(&document, |terminal, document| {
        let curve = ui::sparkline(&losses, 48);
        if let (Some(first), Some(last)) = (losses.first(), losses.last()) {
            terminal.line(format!("loss      {curve}  {first:.3} → {last:.3}"))?;
        }
        match text(document, "adapter") {
            "" => terminal.line("no adapter was released")?,
            id => terminal.line(format!("adapter   {id}"))?,
        }
        match text(document, "written") {
            "" if phase == Phase::Finished => terminal.note(format!(
                "write it: allmend result {} --output DIR",
                ui::short_id(text(document, "job"))
            )),
            "" => {}
            dir => terminal.line(format!("written   {dir}"))?,
        }
        Ok(())
    })?;
    Ok(code)
}

/// The released bundle, opened.
async fn fetch(caller: &Caller, identity: &Identity, job: MessageId) -> anyhow::Result<Bundle> {
    let mut answers = caller.open(&Ask::Artifact { job }, None).await?;
    let mut sealed = Vec::new();
    loop {
        match answers.next().await? {
            Some(Answer::Part { bytes }) => {
                anyhow::ensure!(
                    (sealed.len() + bytes.0.len()) as u64 <= ARTIFACT_BYTES_MAX,
                    "the adapter is larger than any may be"
                );
                sealed.extend_from_slice(&bytes.0);
            }
            Some(Answer::Done {}) => break,
            _ => bail!("the node broke off in the middle of the adapter; ask again"),
        }
    }
    let sealed: SealedResult = encoding::decode(&sealed, sealed.len())
        .map_err(|error| anyhow::anyhow!("what was released is damaged: {error}"))?;
    let plain = sealed.open(job, identity.sealing()).context("the adapter cannot be opened")?;
    Bundle::read(&plain).context("what was released is no adapter")
}

fn list(context: &Context<'_>, store: &AdapterStore) -> anyhow::Result<()> {
    let rows: Vec<Value> = store
        .list()
        .into_iter()
        .map(|(id, about)| {
            serde_json::json!({ "adapter": id, "model": about.model, "report": about.report,
                "users": about.users })
        })
        .collect();
    context.terminal.answer(&Value::Array(rows), |terminal, rows| {
        let mut table = Table::new()
            .column("ADAPTER", Align::Left)
            .column("MODEL", Align::Left)
            .column("FOR", Align::Left);
        for row in rows.as_array().into_iter().flatten() {
            let users = row["users"].as_array().map_or(0, Vec::len);
            let whom = match users {
                0 => "everybody".to_owned(),
                1 => "1 person".to_owned(),
                many => format!("{many} people"),
            };
            table.row([
                text(row, "adapter").to_owned(),
                ui::short_id(text(row, "model")).to_owned(),
                whom,
            ]);
        }
        if table.is_empty() {
            return terminal.line("no adapters yet: allmend adapters add DIR");
        }
        terminal.table(&table)
    })?;
    Ok(())
}

/// Keeps a folder that `allmend result` wrote, or PEFT: its files make its id.
fn add(store: &AdapterStore, dir: &Path) -> anyhow::Result<Digest> {
    let mut files = Vec::new();
    for name in FILES {
        let path = dir.join(name);
        let size = std::fs::metadata(&path)
            .map_err(|_| {
                let error = format!("{} has no {name}", dir.display());
                Advice::new(ExitClass::NotFound, error)
                    .hint("name the folder that allmend result --output wrote")
            })?
            .len();
        anyhow::ensure!(size <= FILE_BYTES_MAX, "{} is too large", path.display());
        files
            .push(std::fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?);
    }
    let bundle = Bundle::from_files(&files[0], &files[1], &files[2])
        .with_context(|| format!("{} is no adapter", dir.display()))?;
    let id = bundle.id();
    let base = &bundle.config().base_model_name_or_path;
    let model = base.strip_prefix("sha256:").and_then(|digest| digest.parse().ok());
    let model =
        model.with_context(|| format!("the adapter names its model {base:?}, not a digest"))?;
    let about = About { model, report: None, users: vec![], stewards: vec![] };
    let named: Vec<(&str, &[u8])> =
        FILES.iter().zip(&files).map(|(name, bytes)| (*name, bytes.as_slice())).collect();
    store.put(id, &about, &named).with_context(|| format!("adapter {} is not kept", id.short()))?;
    Ok(id)
}

fn find(store: &AdapterStore, reference: &str) -> anyhow::Result<Digest> {
    let wanted = reference.to_ascii_lowercase();
    let all = store.list();
    let found: Vec<&Digest> =
        all.keys().filter(|id| wanted.len() >= 4 && id.to_string().starts_with(&wanted)).collect();
    match found.as_slice() {
        [one] => Ok(**one),
        [] => Err(Advice::new(ExitClass::NotFound, format!("no adapter {reference}"))
            .hint("see them: allmend adapters ls")
            .into()),
        _ => Err(Advice::new(
            ExitClass::Conflict,
            format!("several adapters begin with {reference}"),
        )
        .hint("give more digits")
        .into()),
    }
}

/// A running node learns of it.
async fn tell(context: &Context<'_>) -> anyhow::Result<()> {
    if context.layout.daemon_running() {
        let caller = context.connect(As::Operator).await?;
        caller.ask(&Ask::AdaptersChanged {}).await?;
        caller.close().await;
    }
    Ok(())
}
