//! How training goes, for a person: a line with the loss as a curve, the latest figures and how long it
//! will still take. On a terminal the line is drawn over; elsewhere one is written every few seconds.

use std::io::{IsTerminal as _, Write as _};
use std::time::{Duration, Instant};

use allmend_protocol::time::DurationMs;

use crate::client::report::{Report, Stage};
use crate::ui::{Terminal, duration, sparkline};

/// Blocks of the curve.
const WIDTH: usize = 32;
/// How often a line is written where it cannot be drawn over.
const LINE_EVERY: Duration = Duration::from_secs(5);

/// Reports so far.
pub(super) struct Curve {
    losses: Vec<f64>,
    live: bool,
    drawn: Option<Instant>,
    stage: Option<Stage>,
    /// Step and time at which this attempt began, for its speed.
    began: Option<(u64, u64)>,
}

impl Curve {
    /// A curve that is drawn if `live`.
    pub(super) fn new(live: bool) -> Curve {
        Curve { losses: Vec::new(), live, drawn: None, stage: None, began: None }
    }

    /// Takes a report and draws.
    pub(super) fn take(&mut self, terminal: &Terminal, report: Report, attempt: u16) {
        self.losses.extend(report.loss_micro.map(|micro| micro as f64 / 1e6));
        if let Some(step) = report.resumed_from {
            self.began = Some((step, report.elapsed_ms));
            if attempt > 1 && self.live {
                terminal.note(format!("\n[attempt {attempt}: goes on from step {step}]"));
            }
        }
        if !self.live {
            return;
        }
        let line = self.line(&report);
        let last = report.step == report.steps;
        let moved = self.stage.replace(report.stage) != Some(report.stage);
        let mut err = std::io::stderr().lock();
        if err.is_terminal() {
            let _ = write!(err, "\r\x1b[2K{line}");
            if last && report.held_out_micro.is_some() {
                let _ = writeln!(err);
            }
            let _ = err.flush();
        } else if last || moved || self.drawn.is_none_or(|at| at.elapsed() >= LINE_EVERY) {
            self.drawn = Some(Instant::now());
            let _ = writeln!(err, "{line}");
        }
    }

    fn line(&self, report: &Report) -> String {
        let mut parts = vec![format!("step {}/{}", report.step, report.steps)];
        if report.stage != Stage::Training {
            parts.insert(0, report.stage.word().to_owned());
        }
        if let Some(loss) = self.losses.last() {
            parts.push(format!("loss {loss:.3}"));
        }
        if let Some(micro) = report.held_out_micro {
            parts.push(format!("held out {:.3}", micro as f64 / 1e6));
        }
        if let Some(left) = self.left(report) {
            parts.push(format!(
                "{} left",
                duration(DurationMs::from_ms(u64::try_from(left.as_millis()).unwrap_or(u64::MAX)))
            ));
        }
        let curve = sparkline(&self.losses, WIDTH);
        if curve.is_empty() { parts.join("  ") } else { format!("{curve}  {}", parts.join("  ")) }
    }

    /// How long the rest of the steps will take at this attempt's own pace.
    fn left(&self, report: &Report) -> Option<Duration> {
        let (step, ms) = self.began?;
        let (done, took) = (report.step.checked_sub(step)?, report.elapsed_ms.checked_sub(ms)?);
        let ahead = report.steps.checked_sub(report.step).filter(|ahead| *ahead > 0)?;
        Some(Duration::from_millis(took.checked_div(done)?.saturating_mul(ahead)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rest_is_estimated_from_this_attempts_pace() {
        let mut curve = Curve::new(false);
        let terminal = Terminal::plain(true);
        let report = |step, elapsed_ms, resumed_from| Report {
            stage: Stage::Training,
            step,
            steps: 100,
            loss_micro: Some(2_500_000 - step as i64),
            resumed_from,
            elapsed_ms,
            ..Report::default()
        };
        curve.take(&terminal, report(40, 1_000, Some(40)), 2);
        let later = report(50, 21_000, None);
        curve.take(&terminal, later.clone(), 2);
        assert_eq!(curve.left(&later), Some(Duration::from_secs(100)));
        let line = curve.line(&later);
        assert!(line.contains("step 50/100") && line.contains("loss 2.500"), "{line}");
    }
}
