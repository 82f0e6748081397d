//! Models on this machine.

use std::io;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use allmend_engine::ModelInfo;
use serde_json::{Value, json};

use super::args::ModelsCommand;
use super::context::{As, Context};
use super::look::{number, text};
use crate::client::proto::Ask;
use crate::membership::now;
use crate::models::{CATALOGUE, Header, Model, PullOptions, Room, Source, Store};
use crate::ui::{self, Advice, Align, ExitClass, Style, Table, Terminal};

/// Reads a model's header with the engine; the words say why it cannot be run.
pub(crate) fn read_header(path: &std::path::Path) -> Result<Header, String> {
    let info = ModelInfo::read(path).map_err(|error| error.to_string())?;
    Ok(Header {
        architecture: info.architecture,
        quantisation: info.quantisation,
        parameters: info.parameters,
        context_tokens: info.context_tokens,
        chat: info.chat,
        licence: info.license,
        weights_bytes: info.weights_bytes,
        cache_bytes_per_token: info.cache_bytes_per_token,
    })
}

pub(super) async fn run(context: &Context<'_>, command: ModelsCommand) -> anyhow::Result<ExitCode> {
    let store = || -> anyhow::Result<Store> {
        context.layout.create()?;
        Ok(Store::open(context.layout.models_dir())?)
    };
    match command {
        ModelsCommand::Pull { source, name, digest, link } => {
            let model = pull(context, store()?, &source, name, digest.as_deref(), link).await?;
            context.terminal.answer(&describe(&model), print_model)?;
            tell_node(context).await;
        }
        ModelsCommand::Ls => {
            let listing = store()?.list()?;
            for damaged in &listing.damaged {
                context.terminal.warn(format!("{}: {}", damaged.path.display(), damaged.why));
            }
            let rows = Value::Array(listing.models.iter().map(describe).collect());
            context.terminal.answer(&rows, print_models)?;
        }
        ModelsCommand::Show { model } => {
            let model = store()?.find(&model)?;
            context.terminal.answer(&describe(&model), print_model)?;
        }
        ModelsCommand::Rm { model, force } => {
            let store = store()?;
            let model = store.find(&model)?;
            let bytes = store.remove(&model.meta.digest, force)?;
            context.terminal.note(format!(
                "removed {}, {} freed",
                model.meta.name,
                ui::bytes(bytes)
            ));
            tell_node(context).await;
        }
    }
    Ok(ExitCode::SUCCESS)
}

async fn pull(
    context: &Context<'_>,
    store: Store,
    source: &str,
    name: Option<String>,
    digest: Option<&str>,
    link: bool,
) -> anyhow::Result<Model> {
    let source = Source::parse(source)?;
    let expect = digest
        .map(str::parse)
        .transpose()
        .map_err(|error| Advice::new(ExitClass::Usage, format!("--digest: {error}")))?;
    let config = context.config(&[])?;
    let cancel = Arc::new(AtomicBool::new(false));
    let flag = Arc::clone(&cancel);
    let progress = context.terminal.progress("model", None);
    let task = tokio::task::spawn_blocking(move || {
        let options = PullOptions {
            name,
            expect,
            link,
            room: Some(Room {
                cap_bytes: config.storage.models_cap_mib.saturating_mul(1 << 20),
                reserve_bytes: config.storage.reserve_mib.saturating_mul(1 << 20),
            }),
            cancel: Some(&flag),
        };
        let pulled = store.pull(&source, &options, &read_header, &progress);
        progress.finish(if pulled.is_ok() { "model ready" } else { "model not fetched" });
        pulled
    });
    tokio::pin!(task);
    let pulled = tokio::select! {
        pulled = &mut task => pulled?,
        _ = tokio::signal::ctrl_c() => {
            cancel.store(true, Ordering::Relaxed);
            task.await?
        }
    }?;
    if !pulled.fresh {
        context.terminal.note(format!("{} is there already", pulled.model.meta.name));
    }
    Ok(pulled.model)
}

/// A node that runs here looks at its models by itself every few seconds; this makes it at once.
async fn tell_node(context: &Context<'_>) {
    if context.layout.daemon_file().exists()
        && let Ok(caller) = context.connect(As::Operator).await
    {
        let _ = caller.ask(&Ask::ModelsChanged {}).await;
        caller.close().await;
    }
}

fn describe(model: &Model) -> Value {
    let header = &model.meta.header;
    json!({
        "name": model.meta.name,
        "digest": model.meta.digest,
        "bytes": model.meta.bytes,
        "source": model.meta.source,
        "licence": model.meta.licence,
        "architecture": header.architecture,
        "quantisation": header.quantisation,
        "parameters": header.parameters,
        "context_tokens": header.context_tokens,
        "chat": header.chat,
        "pulled_at": model.meta.pulled_at,
        "last_used": model.last_used,
        "in_use": model.in_use,
        "path": model.path,
    })
}

fn print_models(terminal: &Terminal, models: &Value) -> io::Result<()> {
    let mut table = Table::new()
        .squeezable("NAME")
        .column("DIGEST", Align::Left)
        .column("SIZE", Align::Right)
        .column("KIND", Align::Left)
        .column("CONTEXT", Align::Right)
        .squeezable("LICENCE")
        .column("USED", Align::Right);
    for model in models.as_array().into_iter().flatten() {
        let used = allmend_protocol::time::Timestamp::from_ms(number(model, "last_used"));
        let used = if model["in_use"].as_bool() == Some(true) {
            "now".to_owned()
        } else {
            ui::ago(used, now())
        };
        table.row([
            text(model, "name").to_owned(),
            ui::short_id(text(model, "digest")).to_owned(),
            ui::bytes(number(model, "bytes")),
            format!("{} {}", text(model, "architecture"), text(model, "quantisation")),
            number(model, "context_tokens").to_string(),
            text(model, "licence").to_owned(),
            used,
        ]);
    }
    if table.is_empty() {
        let names: Vec<&str> = CATALOGUE.iter().map(|entry| entry.name).collect();
        return terminal
            .line(format!("no models yet; fetch one: allmend models pull {}", names.join(" or ")));
    }
    terminal.table(&table)
}

fn print_model(terminal: &Terminal, model: &Value) -> io::Result<()> {
    let line = |label: &str, value: String| terminal.line(format!("{label:<13}{value}"));
    line("name", terminal.paint(Style::Strong, text(model, "name")))?;
    line("digest", text(model, "digest").to_owned())?;
    line("size", ui::bytes(number(model, "bytes")))?;
    line(
        "kind",
        format!(
            "{} {}, {} parameters",
            text(model, "architecture"),
            text(model, "quantisation"),
            ui::count(number(model, "parameters"))
        ),
    )?;
    line("context", format!("{} tokens", number(model, "context_tokens")))?;
    line("licence", model["licence"].as_str().unwrap_or("not stated").to_owned())?;
    line("source", text(model, "source").to_owned())?;
    line("file", text(model, "path").to_owned())
}
