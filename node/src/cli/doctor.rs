//! What works on this machine, and what to do about what does not.

use std::process::ExitCode;

use allmend_protocol::charter::SKEW_DEFAULT;
use serde_json::Value;

use super::args::DoctorOptions;
use super::context::{As, Context};
use super::look::{list, text};
use super::models::read_header;
use crate::client::proto::Ask;
use crate::config::{Overrides, load};
use crate::device::{Check, Status, Subject, examine};
use crate::ui::ExitClass;

pub(super) async fn run(
    context: &Context<'_>,
    options: &DoctorOptions,
) -> anyhow::Result<ExitCode> {
    let extra = if options.offline { Vec::new() } else { reach(context).await };
    let loaded = load(&context.layout.config_file(), std::env::vars_os(), &Overrides::default());
    let report = examine(Subject {
        layout: &context.layout,
        config: loaded.as_ref(),
        read_header: &read_header,
        extra,
    });
    context.terminal.answer(&report, |terminal, report| terminal.table(&report.table()))?;
    Ok(match report.worst() {
        Status::Fail => ExitClass::Unhealthy.into(),
        _ => ExitCode::SUCCESS,
    })
}

/// Another member tries to reach this node, if it runs.
async fn reach(context: &Context<'_>) -> Vec<Check> {
    const NAME: &str = "reachable";
    if !context.layout.daemon_file().exists() {
        return vec![
            Check::new(NAME, Status::Skipped, "no node is running here")
                .hint("start it with `allmend node run`, then ask again"),
        ];
    }
    let (document, nodes) = match ask(context).await {
        Ok(documents) => documents,
        Err(error) => {
            return vec![Check::new(NAME, Status::Fail, format!("{error:#}"))];
        }
    };
    let reports = document.as_array().cloned().unwrap_or_default();
    if reports.is_empty() {
        return vec![
            Check::new(NAME, Status::Warn, "no other member is connected, so nobody could try")
                .hint("check `bootstrap` in config.toml, and that a member is up"),
        ];
    }
    let mut checks = vec![clocks(&nodes)];
    for report in &reports {
        let via = text(report, "via_name");
        if let Some(error) = report["error"].as_str() {
            checks.push(Check::new(NAME, Status::Warn, format!("{via} could not try: {error}")));
        }
        let results = list(report, "results");
        let reached = |kind: &str| {
            let mut same = results.iter().filter(|result| text(result, "kind") == kind);
            same.any(|result| text(result, "outcome").starts_with("Reached"))
        };
        for result in results {
            let (kind, outcome) = (text(result, "kind"), text(result, "outcome"));
            let status = match outcome {
                _ if outcome.starts_with("Reached") => Status::Ok,
                // Nobody tries an address at which they do not see us, such as loopback's; that is
                // no worry where another address of the same kind serves.
                "NotTried" if reached(kind) => Status::Skipped,
                _ => Status::Warn,
            };
            let detail = format!("{kind} {} from {via}: {outcome}", text(result, "address"));
            let check = Check::new(NAME, status, detail);
            checks.push(if status != Status::Warn {
                check
            } else {
                check.hint(
                    "open the port, or leave it: the node works over connections that it dials \
                     itself, more slowly",
                )
            });
        }
    }
    checks
}

async fn ask(context: &Context<'_>) -> anyhow::Result<(Value, Value)> {
    let caller = context.connect(As::Operator).await?;
    let reach = caller.document(&Ask::Reach {}).await?;
    let nodes = caller.document(&Ask::Nodes {}).await?;
    caller.close().await;
    Ok((reach, nodes))
}

/// Members' clocks against ours, as their adverts show them.
fn clocks(nodes: &Value) -> Check {
    const NAME: &str = "clocks";
    let rows = nodes.as_array().map_or(&[][..], Vec::as_slice);
    let offsets: Vec<(&str, i64)> = rows
        .iter()
        .filter(|row| row["this_node"].as_bool() != Some(true))
        .filter_map(|row| Some((text(row, "name"), row["clock_offset_ms"].as_i64()?)))
        .collect();
    let Some((name, worst)) = offsets.iter().max_by_key(|(_, offset)| offset.abs()) else {
        return Check::new(NAME, Status::Skipped, "no other member has been heard of");
    };
    let detail = format!("{name} is {worst} ms away, the furthest of {}", offsets.len());
    if worst.abs() < i64::try_from(SKEW_DEFAULT.as_ms()).unwrap_or(i64::MAX) {
        Check::new(NAME, Status::Ok, detail)
    } else {
        Check::new(NAME, Status::Warn, detail)
            .hint("let both machines keep time with NTP; messages of the future are refused")
    }
}
