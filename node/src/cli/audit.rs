//! Checking logs, offline.

use std::io;
use std::process::ExitCode;

use allmend_protocol::units::Credits;

use super::args::AuditCommand;
use super::context::Context;
use crate::audit::{Report, verify_dirs};
use crate::ui::{self, Align, ExitClass, Style, Table, Terminal};

pub(super) fn run(context: &Context<'_>, command: AuditCommand) -> anyhow::Result<ExitCode> {
    let AuditCommand::Verify { dirs } = command;
    let report = verify_dirs(&dirs);
    context.terminal.answer(&report, print)?;
    Ok(if report.ok() { ExitCode::SUCCESS } else { ExitClass::Audit.into() })
}

fn print(terminal: &Terminal, report: &Report) -> io::Result<()> {
    let mut table = Table::new()
        .squeezable("LOG")
        .squeezable("INSTITUTION")
        .column("ENTRIES", Align::Right)
        .column("ROOT", Align::Left)
        .squeezable("KINDS");
    for log in &report.logs {
        let root = log.root.as_ref().map_or_else(|| "–".to_owned(), ToString::to_string);
        let kinds: Vec<String> =
            log.kinds.iter().map(|(kind, count)| format!("{count} {kind}")).collect();
        table.row([
            log.node_name.clone().unwrap_or_else(|| log.dir.clone()),
            log.institution_name.clone().unwrap_or_default(),
            log.size.to_string(),
            ui::short_id(&root).to_owned(),
            kinds.join(", "),
        ]);
    }
    terminal.table(&table)?;
    if !report.balances.is_empty() {
        terminal.line("")?;
        let mut table = Table::new()
            .squeezable("INSTITUTION")
            .column("PAID", Align::Right)
            .column("EARNED", Align::Right);
        for balance in &report.balances {
            let credits = |micro: u128| {
                ui::credits(Credits::from_micro(u64::try_from(micro).unwrap_or(u64::MAX)))
            };
            table.row([
                balance.name.clone().unwrap_or_else(|| "unknown".to_owned()),
                credits(balance.debit_micro),
                credits(balance.credit_micro),
            ]);
        }
        terminal.table(&table)?;
    }
    terminal.line("")?;
    for node in &report.missing_logs {
        terminal.line(format!("not given: the log of node {}", node.short()))?;
    }
    if report.not_checked > 0 {
        terminal.line(format!(
            "{} references could not be followed: their log was not given or is damaged",
            report.not_checked
        ))?;
    }
    for finding in &report.findings {
        terminal.line(terminal.paint(Style::Bad, &format!("found: {finding}")))?;
    }
    if report.findings_left_out > 0 {
        terminal.line(format!("and {} more", report.findings_left_out))?;
    }
    if report.ok() {
        terminal.line(terminal.paint(Style::Good, "everything adds up"))
    } else {
        let count = report.findings.len() as u64 + report.findings_left_out;
        terminal.line(terminal.paint(Style::Bad, &format!("{count} findings")))
    }
}
