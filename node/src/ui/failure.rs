//! Failures as people and scripts see them: what, why, what to do, and an exit code by class.
//!
//! Library code returns typed errors; [`Failure::from_error`] is the one place that turns them
//! into words. An error type takes part by implementing [`Explain`].

use std::error::Error;
use std::fmt;
use std::io;
use std::process::ExitCode;

use serde::Serialize;

use super::human::printable;

/// Why a command ended badly; each class has its own exit code.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
#[repr(u8)]
pub enum ExitClass {
    /// A fault of Allmend itself or of the machine.
    Internal = 1,
    /// The command line was not understood (clap uses the same code).
    Usage = 2,
    /// The configuration, a key file or the data directory is not usable as it is.
    Config = 3,
    /// What was named does not exist: a job, a model, a node, a file.
    NotFound = 4,
    /// Somebody's policy said no.
    Refused = 5,
    /// The node, a peer or a download source could not be reached.
    Unreachable = 6,
    /// The job ran and failed, or ran out of attempts or time.
    JobFailed = 7,
    /// An audit found that something does not add up.
    Audit = 8,
    /// The thing is in use, already there, or named ambiguously.
    Conflict = 9,
    /// A disk cap or the disk itself is full.
    NoRoom = 10,
    /// `doctor` found something that must be put right.
    Unhealthy = 11,
    /// Interrupted by the person (Ctrl-C).
    Interrupted = 130,
}

impl ExitClass {
    /// Every class, by ascending exit code.
    pub const ALL: [Self; 12] = [
        Self::Internal,
        Self::Usage,
        Self::Config,
        Self::NotFound,
        Self::Refused,
        Self::Unreachable,
        Self::JobFailed,
        Self::Audit,
        Self::Conflict,
        Self::NoRoom,
        Self::Unhealthy,
        Self::Interrupted,
    ];

    /// The process exit code.
    #[must_use]
    pub fn code(self) -> u8 {
        self as u8
    }

    /// One phrase for the table in `docs/operate.md`.
    #[must_use]
    pub fn meaning(self) -> &'static str {
        match self {
            Self::Internal => "a fault of Allmend itself or of the machine",
            Self::Usage => "the command line was not understood",
            Self::Config => "the configuration, a key file or the data directory is not usable",
            Self::NotFound => "what was named does not exist",
            Self::Refused => "a policy refused it",
            Self::Unreachable => "a node, a peer or a download source could not be reached",
            Self::JobFailed => "the job failed, or ran out of attempts or time",
            Self::Audit => "an audit found problems",
            Self::Conflict => "in use, already there, or named ambiguously",
            Self::NoRoom => "a disk cap or the disk is full",
            Self::Unhealthy => "`doctor` found something that must be put right",
            Self::Interrupted => "interrupted",
        }
    }
}

impl From<ExitClass> for ExitCode {
    fn from(class: ExitClass) -> Self {
        Self::from(class.code())
    }
}

/// What an error means to the person at the terminal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Explanation {
    /// Decides the exit code.
    pub class: ExitClass,
    /// What to do about it, as a whole sentence or a command.
    pub hint: Option<String>,
}

impl Explanation {
    /// An explanation without a hint.
    #[must_use]
    pub fn of(class: ExitClass) -> Self {
        Self { class, hint: None }
    }

    /// An explanation that says what to do.
    #[must_use]
    pub fn hinting(class: ExitClass, hint: impl Into<String>) -> Self {
        Self { class, hint: Some(hint.into()) }
    }
}

/// An error that can say which class it belongs to and what to do about it.
pub trait Explain: Error {
    /// Class and hint of this error, without its causes.
    fn explain(&self) -> Explanation;
}

/// Tries to explain one error of a chain; see [`explainer`].
pub type Explainer = fn(&(dyn Error + 'static)) -> Option<Explanation>;

/// The [`Explainer`] of an error type, for [`Failure::from_error_with`].
pub fn explainer<E: Explain + 'static>(error: &(dyn Error + 'static)) -> Option<Explanation> {
    error.downcast_ref::<E>().map(Explain::explain)
}

/// Class and hint attached to an `anyhow` error where no typed error fits.
///
/// Use it as context: `.context(Advice::new(ExitClass::NotFound, "no such job").hint("…"))`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Advice {
    message: String,
    explanation: Explanation,
}

impl Advice {
    /// A message of the given class.
    pub fn new(class: ExitClass, message: impl Into<String>) -> Self {
        Self { message: message.into(), explanation: Explanation::of(class) }
    }

    /// Says what to do.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.explanation.hint = Some(hint.into());
        self
    }
}

impl fmt::Display for Advice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl Error for Advice {}

impl Explain for Advice {
    fn explain(&self) -> Explanation {
        self.explanation.clone()
    }
}

/// More causes than this help nobody; a deeper chain is cut.
const CAUSES_MAX: usize = 8;

/// A failed command, ready to be shown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    class: ExitClass,
    error: String,
    causes: Vec<String>,
    hint: Option<String>,
}

impl Failure {
    /// A failure without causes or hint.
    pub fn new(class: ExitClass, error: impl Into<String>) -> Self {
        Self { class, error: error.into(), causes: Vec::new(), hint: None }
    }

    /// Adds a cause below those already there.
    #[must_use]
    pub fn cause(mut self, cause: impl Into<String>) -> Self {
        if self.causes.len() < CAUSES_MAX {
            self.causes.push(cause.into());
        }
        self
    }

    /// Says what to do.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// Turns an error into words with the explanations this module knows.
    #[must_use]
    pub fn from_error(error: &anyhow::Error) -> Self {
        Self::from_error_with(error, &[])
    }

    /// Like [`Self::from_error`], asking `extra` before the built-in explanations.
    ///
    /// The outermost error that anybody can explain decides the class; the outermost hint wins.
    #[must_use]
    pub fn from_error_with(error: &anyhow::Error, extra: &[Explainer]) -> Self {
        let advice = error.downcast_ref::<Advice>().map(Explain::explain);
        let explained: Vec<Explanation> = advice
            .into_iter()
            .chain(error.chain().filter_map(|link| explain_link(link, extra)))
            .collect();
        let class = explained.first().map_or(ExitClass::Internal, |e| e.class);
        let hint = explained.into_iter().find_map(|e| e.hint);

        let mut said = error.to_string();
        let mut failure = Self::new(class, said.clone());
        for link in error.chain().skip(1) {
            let cause = link.to_string();
            // Many errors already print their source; saying it twice reads like a stutter.
            if !cause.is_empty() && !said.ends_with(&cause) {
                failure = failure.cause(cause.clone());
            }
            said = cause;
        }
        failure.hint = hint;
        failure
    }

    /// The class, hence the exit code.
    #[must_use]
    pub fn class(&self) -> ExitClass {
        self.class
    }

    /// The lines `error: …`, `cause: …`, `hint: …`, without colour, each ending in a newline.
    ///
    /// Text of several lines is indented under its label.
    #[must_use]
    pub fn lines(&self) -> String {
        self.labelled(|label| label.to_owned())
    }

    pub(super) fn labelled(&self, label: impl Fn(&str) -> String) -> String {
        let mut text = String::new();
        let mut say = |name: &str, what: &str| {
            let indent = " ".repeat(name.len() + 2);
            let what = printable(what.trim_end()).replace('\n', &format!("\n{indent}"));
            text.push_str(&format!("{} {what}\n", label(&format!("{name}:"))));
        };
        say("error", &self.error);
        for cause in &self.causes {
            say("cause", cause);
        }
        if let Some(hint) = &self.hint {
            say("hint", hint);
        }
        text
    }

    /// The failure as one JSON object, for `--json`.
    #[must_use]
    pub fn to_json(&self) -> serde_json::Value {
        serde_json::json!({
            "error": self.error,
            "causes": self.causes,
            "hint": self.hint,
            "class": self.class,
            "exit_code": self.class.code(),
        })
    }
}

impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Self {
        Self::from_error(&error)
    }
}

fn explain_link(link: &(dyn Error + 'static), extra: &[Explainer]) -> Option<Explanation> {
    const BUILT_IN: &[Explainer] = &[
        explainer::<Advice>,
        explainer::<crate::config::ConfigError>,
        explainer::<crate::config::LayoutError>,
        explainer::<crate::config::KeyError>,
        explainer::<crate::models::ModelError>,
        explain_io,
    ];
    extra.iter().chain(BUILT_IN).find_map(|explain| explain(link))
}

fn explain_io(link: &(dyn Error + 'static)) -> Option<Explanation> {
    use io::ErrorKind as Kind;
    let error = link.downcast_ref::<io::Error>()?;
    match error.kind() {
        Kind::NotFound => Some(Explanation::of(ExitClass::NotFound)),
        Kind::PermissionDenied => Some(Explanation::hinting(
            ExitClass::Config,
            "run as the user that owns the data directory, or choose another one with --dir",
        )),
        Kind::ConnectionRefused
        | Kind::ConnectionReset
        | Kind::ConnectionAborted
        | Kind::NotConnected
        | Kind::HostUnreachable
        | Kind::NetworkUnreachable
        | Kind::TimedOut => Some(Explanation::of(ExitClass::Unreachable)),
        Kind::AddrInUse => Some(Explanation::hinting(
            ExitClass::Conflict,
            "another program listens on that port; `allmend doctor` says more",
        )),
        Kind::StorageFull | Kind::QuotaExceeded => Some(Explanation::hinting(
            ExitClass::NoRoom,
            "free some space; `allmend storage show` lists what Allmend uses",
        )),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::Context;

    #[derive(Debug, thiserror::Error)]
    #[error("the lease lapsed")]
    struct Lapsed;

    impl Explain for Lapsed {
        fn explain(&self) -> Explanation {
            Explanation::hinting(ExitClass::JobFailed, "submit it again")
        }
    }

    #[test]
    fn says_error_causes_and_hint() {
        let error = anyhow::Error::new(Lapsed).context("job 12ab did not finish");
        let failure = Failure::from_error_with(&error, &[explainer::<Lapsed>]);
        assert_eq!(failure.class().code(), 7);
        assert_eq!(
            failure.lines(),
            "error: job 12ab did not finish\ncause: the lease lapsed\nhint: submit it again\n"
        );
    }

    #[test]
    fn advice_decides_class_and_hint_from_any_depth() {
        let error = Err::<(), _>(Lapsed)
            .context(Advice::new(ExitClass::NotFound, "no such job").hint("see `allmend jobs`"))
            .context("cannot show it")
            .unwrap_err();
        let failure = Failure::from_error(&error);
        assert_eq!(failure.class(), ExitClass::NotFound);
        assert!(failure.lines().ends_with("hint: see `allmend jobs`\n"));
    }

    #[test]
    fn does_not_stutter_when_an_error_prints_its_source() {
        #[derive(Debug, thiserror::Error)]
        #[error("cannot read: {0}")]
        struct Outer(#[source] Lapsed);
        let failure = Failure::from_error(&Outer(Lapsed).into());
        assert_eq!(failure.lines(), "error: cannot read: the lease lapsed\n");
    }

    #[test]
    fn an_io_error_below_gives_the_class() {
        let error = anyhow::Error::new(io::Error::from(io::ErrorKind::ConnectionRefused))
            .context("cannot reach the node");
        assert_eq!(Failure::from_error(&error).class(), ExitClass::Unreachable);
        assert_eq!(Failure::from_error(&anyhow::anyhow!("odd")).class(), ExitClass::Internal);
    }

    #[test]
    fn escapes_terminal_control_and_indents_further_lines() {
        let failure = Failure::new(ExitClass::Refused, "one\ntwo \u{1b}[31mred");
        let lines = failure.lines();
        assert!(lines.starts_with("error: one\n       two "));
        assert!(!lines.contains('\u{1b}'));
    }

    #[test]
    fn exit_codes_are_distinct_and_ascending() {
        assert!(ExitClass::ALL.windows(2).all(|pair| pair[0].code() < pair[1].code()));
    }

    #[test]
    fn the_operator_page_lists_every_code() {
        let page = include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/operate.md"));
        for class in ExitClass::ALL {
            let row = format!("| {} | {} |", class.code(), class.meaning());
            assert!(page.contains(&row), "docs/operate.md lacks: {row}");
        }
    }

    #[test]
    fn json_names_class_and_code() {
        let json = Failure::new(ExitClass::NoRoom, "full").to_json();
        assert_eq!(json["class"], "no_room");
        assert_eq!(json["exit_code"], 10);
    }
}
