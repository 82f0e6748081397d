//! Where output goes and what that place can show.

use std::io::{self, IsTerminal, Write};
use std::process::ExitCode;

use serde::Serialize;

use super::failure::Failure;
use super::human::printable;
use super::progress::Progress;
use super::table::Table;

/// Width assumed for a terminal that does not tell its size.
const WIDTH_DEFAULT: usize = 80;

/// The few ways text may stand out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Style {
    /// As the terminal shows it.
    Plain,
    /// Titles.
    Strong,
    /// Asides.
    Faint,
    /// All is well.
    Good,
    /// Worth a look.
    Warn,
    /// Wrong.
    Bad,
}

impl Style {
    /// `text` with the escape sequences of this style, if `colour`.
    #[must_use]
    pub fn paint(self, text: &str, colour: bool) -> String {
        let code = match self {
            Self::Plain => return text.to_owned(),
            _ if !colour || text.is_empty() => return text.to_owned(),
            Self::Strong => "1",
            Self::Faint => "2",
            Self::Good => "32",
            Self::Warn => "33",
            Self::Bad => "1;31",
        };
        format!("\u{1b}[{code}m{text}\u{1b}[0m")
    }
}

/// Standard output and standard error, as this command may use them.
#[derive(Clone, Debug)]
pub struct Terminal {
    json: bool,
    width: Option<usize>,
    stderr_tty: bool,
    colour_out: bool,
    colour_err: bool,
}

impl Terminal {
    /// Looks at the streams and the environment (`NO_COLOR`, `TERM`).
    #[must_use]
    pub fn detect(json: bool) -> Self {
        let stdout_tty = io::stdout().is_terminal();
        let stderr_tty = io::stderr().is_terminal();
        let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
        let colour = set("NO_COLOR").is_none() && set("TERM").is_none_or(|term| term != "dumb");
        Self {
            json,
            width: stdout_tty.then(terminal_width),
            stderr_tty,
            colour_out: colour && stdout_tty,
            colour_err: colour && stderr_tty,
        }
    }

    /// A place without colours, width or bars, as a pipe is.
    #[must_use]
    pub fn plain(json: bool) -> Self {
        Self { json, width: None, stderr_tty: false, colour_out: false, colour_err: false }
    }

    /// Whether `--json` was asked for.
    #[must_use]
    pub fn is_json(&self) -> bool {
        self.json
    }

    /// Whether a person can watch standard error.
    #[must_use]
    pub fn is_interactive(&self) -> bool {
        self.stderr_tty
    }

    /// `text` in `style`, for standard output.
    #[must_use]
    pub fn paint(&self, style: Style, text: &str) -> String {
        style.paint(text, self.colour_out)
    }

    /// Prints one line of the answer to stdout.
    ///
    /// # Errors
    /// When stdout is gone; see [`Self::finish`] for a pipe that was closed early.
    pub fn line(&self, text: impl AsRef<str>) -> io::Result<()> {
        let mut out = io::stdout().lock();
        out.write_all(text.as_ref().as_bytes())?;
        out.write_all(b"\n")
    }

    /// Prints a piece of streamed, foreign text to stdout at once, without a newline.
    ///
    /// # Errors
    /// When stdout is gone.
    pub fn stream(&self, text: &str) -> io::Result<()> {
        let mut out = io::stdout().lock();
        out.write_all(printable(text).as_bytes())?;
        out.flush()
    }

    /// Prints a table to stdout, cut to the terminal's width.
    ///
    /// # Errors
    /// When stdout is gone.
    pub fn table(&self, table: &Table) -> io::Result<()> {
        io::stdout().lock().write_all(table.render(self.width, self.colour_out).as_bytes())
    }

    /// Prints `value` as JSON to stdout: indented for a person, on one line for a pipe.
    ///
    /// # Errors
    /// When stdout is gone, or `value` has a map whose keys are not strings.
    pub fn json<T: Serialize + ?Sized>(&self, value: &T) -> io::Result<()> {
        let text = if self.width.is_some() {
            serde_json::to_string_pretty(value)
        } else {
            serde_json::to_string(value)
        };
        self.line(text?)
    }

    /// Prints `value` as JSON if that was asked for, else calls `human`.
    ///
    /// # Errors
    /// Those of [`Self::json`] and of `human`.
    pub fn answer<T: Serialize + ?Sized>(
        &self,
        value: &T,
        human: impl FnOnce(&Self, &T) -> io::Result<()>,
    ) -> io::Result<()> {
        if self.json { self.json(value) } else { human(self, value) }
    }

    /// Tells the person something beside the answer, on stderr. Silent if stderr is gone.
    pub fn note(&self, text: impl AsRef<str>) {
        let _ = writeln!(io::stderr().lock(), "{}", printable(text.as_ref()));
    }

    /// Like [`Self::note`], marked as a warning.
    pub fn warn(&self, text: impl AsRef<str>) {
        let label = Style::Warn.paint("warning:", self.colour_err);
        let _ = writeln!(io::stderr().lock(), "{label} {}", printable(text.as_ref()));
    }

    /// A progress display on stderr for work of `total` bytes, if known.
    #[must_use]
    pub fn progress(&self, label: &str, total: Option<u64>) -> Progress {
        Progress::new(label, total, self.stderr_tty)
    }

    /// Shows `failure` on stderr and gives the exit code.
    #[must_use]
    pub fn fail(&self, failure: &Failure) -> ExitCode {
        let mut err = io::stderr().lock();
        let text = if self.json {
            format!("{}\n", failure.to_json())
        } else {
            failure.labelled(|label| {
                let style = match label {
                    "error:" => Style::Bad,
                    "hint:" => Style::Good,
                    _ => Style::Strong,
                };
                style.paint(label, self.colour_err)
            })
        };
        let _ = err.write_all(text.as_bytes());
        failure.class().into()
    }

    /// Ends a command: success, or the failure shown.
    ///
    /// A reader that closed the pipe (`allmend nodes | head -1`) has what it wanted: success.
    #[must_use]
    pub fn finish(&self, result: Result<(), anyhow::Error>) -> ExitCode {
        match result {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) if closed_pipe(&error) => ExitCode::SUCCESS,
            Err(error) => self.fail(&Failure::from_error(&error)),
        }
    }
}

fn closed_pipe(error: &anyhow::Error) -> bool {
    // Only our own write to stdout comes up bare; a broken socket has context or another type.
    error.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
}

fn terminal_width() -> usize {
    rustix::termios::tcgetwinsize(io::stdout())
        .map(|size| usize::from(size.ws_col))
        .ok()
        .filter(|width| *width > 0)
        .unwrap_or(WIDTH_DEFAULT)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paints_only_with_colour() {
        assert_eq!(Style::Good.paint("ok", false), "ok");
        assert_eq!(Style::Good.paint("ok", true), "\u{1b}[32mok\u{1b}[0m");
        assert_eq!(Style::Plain.paint("ok", true), "ok");
    }

    #[test]
    fn a_closed_pipe_is_success() {
        let error = anyhow::Error::from(io::Error::from(io::ErrorKind::BrokenPipe));
        assert!(closed_pipe(&error));
        assert!(!closed_pipe(&anyhow::anyhow!("other")));
    }
}
