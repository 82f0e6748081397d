//! Reading commands: status, nodes, storage, members.

use std::io;
use std::process::ExitCode;

use allmend_protocol::ids::ResearcherId;
use allmend_protocol::time::{DurationMs, Timestamp};
use serde_json::Value;

use super::args::MembersCommand;
use super::context::{As, Context};
use crate::client::proto::Ask;
use crate::membership::now;
use crate::ui::{self, Advice, Align, ExitClass, Style, Table, Terminal};

/// A text of a document, or nothing.
pub(super) fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value.get(key).and_then(Value::as_str).unwrap_or("")
}

/// A number of a document, or zero.
pub(super) fn number(value: &Value, key: &str) -> u64 {
    value.get(key).and_then(Value::as_u64).unwrap_or(0)
}

/// A list of a document, or none.
pub(super) fn list<'a>(value: &'a Value, key: &str) -> &'a [Value] {
    value.get(key).and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

pub(super) async fn status(context: &Context<'_>) -> anyhow::Result<ExitCode> {
    context.show(As::Anybody, &Ask::Status {}, print_status).await?;
    Ok(ExitCode::SUCCESS)
}

fn print_status(terminal: &Terminal, status: &Value) -> io::Result<()> {
    let line = |label: &str, value: String| terminal.line(format!("{label:<13}{value}"));
    line("node", format!("{} ({})", text(status, "name"), ui::short_id(text(status, "node"))))?;
    line("institution", text(status, "institution_name").to_owned())?;
    line("federation", text(status, "federation_name").to_owned())?;
    line("up for", ui::duration(DurationMs::from_ms(number(status, "uptime_ms"))))?;
    let state = match (status["draining"].as_str(), status["disk_full"].as_str()) {
        (Some(why), _) => terminal.paint(Style::Warn, &format!("draining: {why}")),
        (None, Some(why)) => terminal.paint(Style::Bad, &format!("takes nothing new: {why}")),
        (None, None) => terminal.paint(Style::Good, "taking work"),
    };
    line("state", state)?;
    if status["tapped"].as_bool() == Some(true) {
        line("warning", terminal.paint(Style::Bad, "debug.tap_dir writes every frame in clear"))?;
    }
    let leases = list(status, "leases").len();
    line("slots", format!("{leases} of {} in use", number(status, "slots_total")))?;
    for worker in list(status, "workers") {
        let model = ui::short_id(text(worker, "model"));
        let state = match (worker["loaded"].as_bool(), list(worker, "slots").len()) {
            (Some(true), 0) => "idle".to_owned(),
            (Some(true), 1) => "1 job".to_owned(),
            (Some(true), jobs) => format!("{jobs} jobs"),
            (_, _) => "loading".to_owned(),
        };
        line("worker", format!("model {model}, {state} (process {})", number(worker, "pid")))?;
    }
    line(
        "jobs",
        format!("{} open of {} known", number(status, "jobs_open"), number(status, "jobs_known")),
    )?;
    line("models", list(status, "models").len().to_string())?;
    let expires = Timestamp::from_ms(number(status, "certificate_expires"));
    line("certificate", format!("valid until {expires}"))?;
    let peers = list(status, "peers");
    line("peers", peers.len().to_string())?;
    for peer in peers {
        let control: Vec<&str> =
            list(peer, "control").iter().map(|path| text(path, "transport")).collect();
        let bulk = if list(peer, "bulk").is_empty() { "over control" } else { "quic" };
        let rtt = peer["rtt_us"]
            .as_u64()
            .map_or(String::new(), |us| format!(", {:.1} ms", us as f64 / 1e3));
        line(
            "",
            format!("{}: control {}, bulk {bulk}{rtt}", text(peer, "name"), control.join("+")),
        )?;
    }
    Ok(())
}

pub(super) async fn nodes(context: &Context<'_>) -> anyhow::Result<ExitCode> {
    context.show(As::Anybody, &Ask::Nodes {}, print_nodes).await?;
    Ok(ExitCode::SUCCESS)
}

fn print_nodes(terminal: &Terminal, nodes: &Value) -> io::Result<()> {
    let mut table = Table::new()
        .squeezable("NODE")
        .squeezable("INSTITUTION")
        .column("IN", Align::Left)
        .column("STATE", Align::Left)
        .column("SLOTS", Align::Right)
        .column("QUEUE", Align::Right)
        .squeezable("DEVICES")
        .squeezable("MODELS")
        .column("PRICE", Align::Right)
        .column("SEEN", Align::Right);
    for node in nodes.as_array().into_iter().flatten() {
        let fresh = node["advert_age_ms"].as_u64();
        let state = match (node["connected"].as_bool(), fresh, node["draining"].as_bool()) {
            (Some(true), Some(_), Some(true)) => ui::Cell::styled("draining", Style::Warn),
            (Some(true), Some(_), _) => ui::Cell::styled("up", Style::Good),
            (Some(true), None, _) => ui::Cell::styled("silent", Style::Warn),
            (_, Some(_), _) => ui::Cell::styled("heard of", Style::Warn),
            _ => ui::Cell::styled("away", Style::Bad),
        };
        let devices: Vec<String> = list(node, "devices")
            .iter()
            .map(|device| {
                format!(
                    "{} {}×, {}",
                    text(device, "kind"),
                    number(device, "cores"),
                    ui::mib(number(device, "memory_mib"))
                )
            })
            .collect();
        let models: Vec<&str> =
            list(node, "models").iter().map(|model| ui::short_id(text(model, "digest"))).collect();
        let here = if node["this_node"].as_bool() == Some(true) { " *" } else { "" };
        let price = match node["rates"].as_object() {
            Some(_) => format!(
                "{}+{}",
                number(&node["rates"], "prompt"),
                number(&node["rates"], "completion")
            ),
            None => String::new(),
        };
        table.row([
            ui::Cell::from(format!("{}{here}", text(node, "name"))),
            ui::Cell::from(text(node, "institution_name")),
            ui::Cell::from(text(node, "jurisdiction")),
            state,
            ui::Cell::from(fresh.map_or(String::new(), |_| {
                format!("{}/{}", number(node, "slots_free"), number(node, "slots_total"))
            })),
            ui::Cell::from(fresh.map_or(String::new(), |_| {
                ui::duration(DurationMs::from_ms(number(node, "queue_ms")))
            })),
            ui::Cell::from(devices.join("; ")),
            ui::Cell::from(models.join(" ")),
            ui::Cell::from(price),
            ui::Cell::from(fresh.map_or_else(
                || "never".to_owned(),
                |ms| format!("{} ago", ui::duration(DurationMs::from_ms(ms))),
            )),
        ]);
    }
    terminal.table(&table)?;
    terminal.line(
        "* this node; SLOTS are free/all; PRICE is micro-credits per 1,000 tokens read+written",
    )
}

pub(super) async fn storage(context: &Context<'_>) -> anyhow::Result<ExitCode> {
    context.show(As::Anybody, &Ask::Storage {}, print_storage).await?;
    Ok(ExitCode::SUCCESS)
}

fn print_storage(terminal: &Terminal, storage: &Value) -> io::Result<()> {
    let mut table = Table::new()
        .column("KIND", Align::Left)
        .column("USED", Align::Right)
        .column("CAP", Align::Right)
        .column("FULL", Align::Right)
        .column("ITEMS", Align::Right);
    for kind in list(storage, "kinds") {
        let (used, cap) = (number(kind, "bytes"), number(kind, "cap_bytes"));
        table.row([
            text(kind, "kind").to_owned(),
            ui::bytes(used),
            ui::bytes(cap),
            format!("{} %", used.saturating_mul(100) / cap.max(1)),
            number(kind, "items").to_string(),
        ]);
    }
    terminal.table(&table)?;
    terminal.line(format!(
        "disk: {} free of {}, {} kept in reserve; results are kept {} h after settlement",
        ui::bytes(number(storage, "disk_free_bytes")),
        ui::bytes(number(storage, "disk_total_bytes")),
        ui::bytes(number(storage, "reserve_bytes")),
        number(storage, "retention_hours"),
    ))?;
    if let Some(why) = storage["full"].as_str() {
        terminal.line(terminal.paint(Style::Bad, &format!("takes nothing new: {why}")))?;
    }
    Ok(())
}

pub(super) async fn members(
    context: &Context<'_>,
    command: MembersCommand,
) -> anyhow::Result<ExitCode> {
    match command {
        MembersCommand::Ls => {
            context.show(As::Operator, &Ask::Members {}, print_members).await?;
        }
        MembersCommand::Erase { researcher } => {
            let caller = context.connect(As::Operator).await?;
            let document = caller.document(&Ask::Members {}).await?;
            let found: Vec<ResearcherId> = list(&document, "researchers")
                .iter()
                .filter(|entry| text(entry, "researcher").starts_with(&researcher))
                .filter_map(|entry| text(entry, "researcher").parse().ok())
                .collect();
            let [researcher] = found.as_slice() else {
                let error = if found.is_empty() { "no such researcher" } else { "several match" };
                return Err(Advice::new(ExitClass::NotFound, error)
                    .hint("list them: allmend members ls")
                    .into());
            };
            caller.ask(&Ask::Erase { researcher: *researcher }).await?;
            caller.close().await;
            context.terminal.note(format!(
                "erased {}: name, certificate, kept inputs and results; the logs are unchanged",
                researcher.short()
            ));
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn print_members(terminal: &Terminal, members: &Value) -> io::Result<()> {
    let mut table = Table::new()
        .squeezable("INSTITUTION")
        .column("KEY", Align::Left)
        .column("IN", Align::Left)
        .column("ADMITTED BY", Align::Left);
    for entry in list(members, "institutions") {
        table.row([
            text(entry, "name").to_owned(),
            ui::short_id(text(entry, "institution")).to_owned(),
            text(entry, "jurisdiction").to_owned(),
            entry["admitted_by"].as_str().map_or("charter", ui::short_id).to_owned(),
        ]);
    }
    terminal.table(&table)?;
    terminal.line("")?;
    let mut table = Table::new()
        .squeezable("RESEARCHER")
        .column("KEY", Align::Left)
        .column("SINCE", Align::Right);
    for entry in list(members, "researchers") {
        table.row([
            text(entry, "name").to_owned(),
            ui::short_id(text(entry, "researcher")).to_owned(),
            ui::ago(Timestamp::from_ms(number(entry, "since")), now()),
        ]);
    }
    terminal.table(&table)
}
