//! Progress on standard error: a bar for a person, a line every few seconds for a log.

use std::io::Write;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::human::{bytes, printable};

/// How often a line is written when stderr is not a terminal.
const LINE_EVERY: Duration = Duration::from_secs(5);

/// Progress of one piece of work, counted in bytes.
///
/// Cheap to update from a hot loop. Cleared when dropped unless it was finished.
#[derive(Debug)]
pub struct Progress(Kind);

#[derive(Debug)]
enum Kind {
    Bar(ProgressBar),
    Lines(Mutex<Lines>),
}

#[derive(Debug)]
struct Lines {
    label: String,
    total: Option<u64>,
    done: u64,
    written: Instant,
}

impl Progress {
    pub(super) fn new(label: &str, total: Option<u64>, tty: bool) -> Self {
        let label = printable(label).into_owned();
        if !tty {
            let lines = Lines { label, total, done: 0, written: Instant::now() };
            return Self(Kind::Lines(Mutex::new(lines)));
        }
        let bar = ProgressBar::with_draw_target(total, ProgressDrawTarget::stderr());
        bar.set_message(label);
        bar.set_style(style(total.is_some()));
        bar.enable_steady_tick(Duration::from_millis(120));
        Self(Kind::Bar(bar))
    }

    /// Says what is being done now.
    pub fn label(&self, label: &str) {
        let label = printable(label).into_owned();
        match &self.0 {
            Kind::Bar(bar) => bar.set_message(label),
            Kind::Lines(lines) => with(lines, |lines| {
                if lines.label != label {
                    lines.label = label;
                    lines.write();
                }
            }),
        }
    }

    /// Sets what is done and, if known, what there is to do; both in bytes.
    pub fn set(&self, done: u64, total: Option<u64>) {
        match &self.0 {
            Kind::Bar(bar) => {
                if let Some(total) = total.filter(|total| bar.length() != Some(*total)) {
                    bar.set_length(total);
                    bar.set_style(style(true));
                }
                bar.set_position(done);
            }
            Kind::Lines(lines) => with(lines, |lines| {
                lines.done = done;
                lines.total = total.or(lines.total);
                if lines.written.elapsed() >= LINE_EVERY {
                    lines.write();
                }
            }),
        }
    }

    /// Runs `print` with the bar out of the way, so that its output does not tear the line.
    pub fn suspend<R>(&self, print: impl FnOnce() -> R) -> R {
        match &self.0 {
            Kind::Bar(bar) => bar.suspend(print),
            Kind::Lines(_) => print(),
        }
    }

    /// Ends the display and leaves `message` behind.
    pub fn finish(self, message: &str) {
        if let Kind::Bar(bar) = &self.0 {
            bar.finish_and_clear();
        }
        let _ = writeln!(std::io::stderr().lock(), "{}", printable(message));
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Kind::Bar(bar) = &self.0 {
            bar.finish_and_clear();
        }
    }
}

impl Lines {
    fn write(&mut self) {
        self.written = Instant::now();
        let _ = writeln!(std::io::stderr().lock(), "{}", self.text());
    }

    fn text(&self) -> String {
        match (self.done, self.total) {
            (0, _) => self.label.clone(),
            (done, None | Some(0)) => format!("{}: {}", self.label, bytes(done)),
            (done, Some(total)) => {
                let percent = u128::from(done) * 100 / u128::from(total);
                format!("{}: {} of {} ({percent} %)", self.label, bytes(done), bytes(total))
            }
        }
    }
}

fn with(lines: &Mutex<Lines>, update: impl FnOnce(&mut Lines)) {
    // A panic while holding the lock leaves at worst a stale number; showing it is fine.
    update(&mut lines.lock().unwrap_or_else(std::sync::PoisonError::into_inner));
}

fn style(sized: bool) -> ProgressStyle {
    let template = if sized {
        "{msg}  {bar:28} {bytes} of {total_bytes}  {bytes_per_sec}  {eta} left"
    } else {
        "{msg}  {spinner} {bytes}  {elapsed}"
    };
    ProgressStyle::with_template(template)
        .unwrap_or_else(|_| ProgressStyle::default_bar())
        .progress_chars("━╸─")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_say_how_far() {
        let mut lines =
            Lines { label: "fetch".into(), total: Some(200), done: 50, written: Instant::now() };
        assert_eq!(lines.text(), "fetch: 50 B of 200 B (25 %)");
        lines.total = None;
        assert_eq!(lines.text(), "fetch: 50 B");
    }

    #[test]
    fn templates_parse() {
        for sized in [true, false] {
            let _ = style(sized);
        }
        let progress = Progress::new("x", None, false);
        progress.label("y");
        progress.set(5, Some(10));
        progress.finish("done");
    }
}
