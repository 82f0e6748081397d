//! `allmend policy check`: what is wrong with a policy before a researcher finds out.
//!
//! *Errors* make the layer refuse everything, *warnings* mean that it does something else than its author is likely to
//! think, *notes* only tell.

mod lint;

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::load::load;
pub use crate::statements::{NESTING_MAX, OPERATORS_MAX, POLICIES_MAX, TEXT_BYTES_MAX};

/// The most findings about one text: they are for people.
pub const FINDINGS_MAX: usize = 200;

/// How bad.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Severity {
    /// Worth knowing.
    Note,
    /// Probably not meant.
    Warning,
    /// The text refuses everything as it stands.
    Error,
}

/// What sort of finding.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Code {
    /// A bound of size is broken.
    TooLarge,
    /// There is no policy in the text.
    Empty,
    /// It is not Cedar.
    Syntax,
    /// It does not fit the schema.
    Schema,
    /// A template: nothing ever fills its slots.
    Template,
    /// The obligation is none that anybody can meet.
    UnknownObligation,
    /// Two policies have the same `@id`.
    DuplicateId,
    /// Nothing is ever permitted.
    NothingPermitted,
    /// Everything is permitted, and nobody has said that this is meant.
    UnconditionalPermit,
    /// A rule without `@id`.
    MissingId,
    /// A rule that refuses without `@reason`.
    MissingReason,
    /// An annotation without meaning here.
    UnknownAnnotation,
    /// An obligation where it has no effect.
    MisplacedObligation,
    /// An obligation that changes nothing when it is met.
    UselessObligation,
    /// The person is asked before a run and again before what comes of it is released.
    AsksTwice,
    /// The policy can never apply.
    NeverApplies,
    /// Another policy makes it meaningless.
    Shadowed,
    /// It does not look at whether the dataset has been withdrawn.
    NoWithdrawnCheck,
    /// Characters that look like others, or turn the direction of reading.
    Confusable,
    /// The layer adds nothing, and says so.
    NoFurtherRestriction,
}

/// Something found in a policy's text.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Finding {
    /// How bad.
    pub severity: Severity,
    /// What sort.
    pub code: Code,
    /// Where, from 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub line: Option<u32>,
    /// The `@id` of the policy that it is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub policy: Option<String>,
    /// In words.
    pub text: String,
    /// What to do.
    pub hint: String,
}

impl Finding {
    pub(crate) fn new(
        severity: Severity,
        code: Code,
        line: Option<u32>,
        text: impl Into<String>,
        hint: impl Into<String>,
    ) -> Finding {
        Finding { severity, code, line, policy: None, text: text.into(), hint: hint.into() }
    }

    pub(crate) fn error(
        code: Code,
        line: Option<u32>,
        text: impl Into<String>,
        hint: impl Into<String>,
    ) -> Finding {
        Finding::new(Severity::Error, code, line, text, hint)
    }

    pub(crate) fn in_policy(self, id: Option<&str>) -> Finding {
        Finding { policy: id.map(str::to_owned), ..self }
    }
}

impl fmt::Display for Severity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Severity::Note => "note",
            Severity::Warning => "warning",
            Severity::Error => "error",
        })
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(line) = self.line {
            write!(f, "line {line}: ")?;
        }
        write!(f, "{}: ", self.severity)?;
        if let Some(policy) = &self.policy {
            write!(f, "\"{policy}\": ")?;
        }
        f.write_str(&self.text)
    }
}

/// Everything that can be said about a policy's text, by line.
pub fn check(text: &str) -> Vec<Finding> {
    let mut findings = match load(text) {
        Ok(loaded) => {
            let mut findings = loaded.warnings.clone();
            lint::lint(&loaded, &mut findings);
            findings
        }
        Err(findings) => findings,
    };
    findings.sort_by_key(|finding| (finding.line, std::cmp::Reverse(finding.severity)));
    findings.truncate(FINDINGS_MAX);
    findings
}

/// Whether there is anything that should keep the text from being used: more than notes.
pub fn needs_attention(findings: &[Finding]) -> bool {
    findings.iter().any(|finding| finding.severity > Severity::Note)
}
