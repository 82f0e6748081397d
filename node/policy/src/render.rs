//! A decision as text for people.

use std::fmt::Write as _;

use crate::decision::{Decision, LayerOutcome, Verdict};
use crate::vocabulary::obligation;

/// The whole decision: verdict, reasons, layers, attributes. Ends with a line break.
pub fn explain(decision: &Decision) -> String {
    let mut out = String::new();
    // Writing to a String cannot fail.
    let _ = match &decision.verdict {
        Verdict::Allow => writeln!(out, "allowed"),
        Verdict::Refuse(_) => writeln!(out, "refused"),
        Verdict::Pending(_) => writeln!(out, "waiting for approval"),
    };
    if let Verdict::Refuse(reasons) = &decision.verdict {
        for reason in reasons {
            let _ = writeln!(out, "  - {}", reason.sentence());
        }
    }
    if let Verdict::Pending(duties) = &decision.verdict {
        for duty in duties {
            let who = obligation(&duty.name).map_or(duty.name.as_str(), |known| known.who);
            let _ = writeln!(
                out,
                "  - {who}: {} ({} rule \"{}\")",
                duty.reason, duty.layer, duty.policy
            );
        }
    }
    if !decision.at_release.is_empty() {
        let _ = writeln!(out, "before the output leaves");
        for duty in &decision.at_release {
            let who = obligation(&duty.name).map_or(duty.name.as_str(), |known| known.who);
            let _ = writeln!(
                out,
                "  - {who}: {} ({} rule \"{}\")",
                duty.reason, duty.layer, duty.policy
            );
        }
    }
    let _ = writeln!(out, "\nlayers");
    for report in &decision.layers {
        let word = match report.outcome {
            LayerOutcome::Allow => "allows",
            LayerOutcome::Refuse => "refuses",
            LayerOutcome::Pending => "waits",
            LayerOutcome::NotAsked => "not asked",
        };
        let by = if report.decided_by.is_empty() {
            String::new()
        } else {
            format!("  by {}", report.decided_by.join(", "))
        };
        let _ = writeln!(out, "  {:<11}  {word}{by}", report.layer);
    }
    let _ = writeln!(out, "\nattributes");
    let width = |cells: &mut dyn Iterator<Item = usize>| cells.max().unwrap_or(0);
    let path_width = width(&mut decision.attributes.iter().map(|line| line.path.len()));
    for line in &decision.attributes {
        let by = if line.read_by.is_empty() {
            String::new()
        } else {
            format!("   [{}]", line.read_by.join(", "))
        };
        let _ = writeln!(out, "  {:<path_width$}  {}{by}", line.path, line.value);
    }
    let _ = writeln!(out, "\npolicy {}", decision.policies.all);
    out
}
