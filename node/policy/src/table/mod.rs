//! `allmend policy test`: a table of expected decisions, run against a policy (specs/policy.md §7).
//!
//! A table is TOML. Each case begins with a named request ([`REQUESTS_TEXT`]), changes what it is about, and says what
//! should come out. A case is about one thing, so that a table reads like the rules in a steward's own words.

mod case;
mod requests;

use std::collections::BTreeSet;

use serde::Serialize;
use toml::{Table, Value};

use self::case::Case;
pub use self::requests::REQUESTS_TEXT;
use crate::decide::decide_document;
use crate::decision::{Decision, Verdict};
use crate::layer::{LayerName, Layers};
use crate::load::load;
use crate::shipped;

/// The largest table, in bytes.
pub const TABLE_BYTES_MAX: usize = 512 * 1024;
/// The most cases in one table.
pub const CASES_MAX: usize = 1_000;

/// Why a table is not understood.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{place}: {problem}")]
pub struct TableError {
    /// Which case and key.
    pub place: String,
    /// What is wrong with it, and what to write.
    pub problem: String,
}

impl TableError {
    fn new(place: impl Into<String>, problem: impl Into<String>) -> TableError {
        TableError { place: place.into(), problem: problem.into() }
    }
}

/// What a run of a table gave.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Report {
    /// Each case, in the table's order.
    pub cases: Vec<CaseReport>,
    /// Rules of the tested policy that settled no case: nobody knows whether they do what they should.
    pub untested: Vec<String>,
}

impl Report {
    /// Whether every case gave what was expected.
    pub fn passed(&self) -> bool {
        self.cases.iter().all(|case| case.differences.is_empty())
    }
}

/// What one case gave.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct CaseReport {
    /// The case's name.
    pub name: String,
    /// `allow`, `refuse` or `pending`.
    pub verdict: &'static str,
    /// Ids of the reasons, or names of the obligations.
    pub because: Vec<String>,
    /// The reasons in words.
    pub sentences: Vec<String>,
    /// What is not as expected; empty when the case passed.
    pub differences: Vec<String>,
}

/// Runs the table `text` against the policy `tested`.
///
/// # Errors
/// [`TableError`] for anything not understood, unknown keys included: a case that is misread proves nothing.
pub fn run(text: &str, tested: Option<&str>) -> Result<Report, TableError> {
    if text.len() > TABLE_BYTES_MAX {
        return Err(TableError::new("table", format!("at most {TABLE_BYTES_MAX} bytes")));
    }
    let table: Table = text
        .parse()
        .map_err(|error: toml::de::Error| TableError::new("table", error.to_string()))?;
    let requests = requests::named()?;
    let mut suite =
        Suite { tested, texts: Table::new(), layers: Table::new(), request: "ordinary".to_owned() };
    let mut cases = Vec::new();
    for (key, value) in &table {
        match (key.as_str(), value) {
            ("request", Value::String(name)) => suite.request.clone_from(name),
            ("texts", Value::Table(texts)) => suite.texts.clone_from(texts),
            ("layers", Value::Table(layers)) => suite.layers.clone_from(layers),
            ("case", Value::Array(list)) => cases.clone_from(list),
            _ => {
                return Err(TableError::new(
                    key,
                    "expected request = \"…\", [layers], [texts] or [[case]]",
                ));
            }
        }
    }
    if cases.is_empty() || cases.len() > CASES_MAX {
        return Err(TableError::new("table", format!("expected 1 to {CASES_MAX} [[case]]")));
    }
    let mut reports = Vec::with_capacity(cases.len());
    let mut reached = BTreeSet::new();
    for (index, value) in cases.iter().enumerate() {
        let case = Case::read(index, value, &suite.request)?;
        let (layers, tested_layers) = suite.layers(&case)?;
        let document = case.document(&requests, &layers)?;
        let decision = decide_document(&layers, &document);
        for report in decision.layers.iter().filter(|report| tested_layers.contains(&report.layer))
        {
            reached.extend(report.decided_by.iter().cloned());
        }
        reports.push(judge(&case, &decision));
    }
    let untested = tested
        .and_then(|text| load(text).ok())
        .map(|loaded| {
            loaded
                .rules
                .iter()
                .map(|rule| rule.name())
                .filter(|name| !reached.contains(name))
                .collect()
        })
        .unwrap_or_default();
    Ok(Report { cases: reports, untested })
}

/// What a table says for all its cases.
struct Suite<'a> {
    tested: Option<&'a str>,
    texts: Table,
    layers: Table,
    request: String,
}

/// The layer adds nothing.
const OPEN_TEXT: &str = "@id(\"no-further-restriction\") permit (principal, action, resource);";

impl Suite<'_> {
    /// The three texts for a case, and in which layers the tested one is.
    fn layers(&self, case: &Case) -> Result<(Layers<'_>, Vec<LayerName>), TableError> {
        let mut layers = Layers::default();
        let mut tested = Vec::new();
        for overrides in [&self.layers, &case.layers] {
            if let Some(key) =
                overrides.keys().find(|key| LayerName::ALL.iter().all(|layer| layer.name() != *key))
            {
                return Err(TableError::new(
                    &case.place,
                    format!("layers.{key}: expected charter, institution or dataset"),
                ));
            }
        }
        for layer in LayerName::ALL {
            let name = case.layers.get(layer.name()).or_else(|| self.layers.get(layer.name()));
            let name = match name {
                Some(name) => name.as_str().ok_or_else(|| {
                    TableError::new(&case.place, format!("layers.{layer}: expected a name"))
                })?,
                None if layer == LayerName::Dataset => "tested",
                None => "open",
            };
            let text = match name {
                "none" => None,
                "open" => Some(OPEN_TEXT),
                "tested" => {
                    tested.push(layer);
                    self.tested
                }
                "shipped" => match layer {
                    LayerName::Charter => Some(shipped::CHARTER),
                    LayerName::Institution => Some(shipped::INSTITUTION),
                    LayerName::Dataset => {
                        return Err(TableError::new(&case.place, "no dataset policy is shipped; name an example"));
                    }
                },
                _ => Some(self.text(name).ok_or_else(|| {
                    let problem = format!(
                        "layers.{layer}: {name:?} is neither none, open, tested, shipped, an example, nor in [texts]"
                    );
                    TableError::new(&case.place, problem)
                })?),
            };
            match layer {
                LayerName::Charter => layers.charter = text,
                LayerName::Institution => layers.institution = text,
                LayerName::Dataset => layers.dataset = text,
            }
        }
        Ok((layers, tested))
    }

    fn text(&self, name: &str) -> Option<&str> {
        let own = self.texts.get(name).and_then(Value::as_str);
        own.or_else(|| shipped::example(name).map(|example| example.policy))
    }
}

/// Compares a decision with what the case expects.
fn judge(case: &Case, decision: &Decision) -> CaseReport {
    let (because, sentences): (Vec<String>, Vec<String>) = match &decision.verdict {
        Verdict::Allow => (Vec::new(), Vec::new()),
        Verdict::Refuse(reasons) => {
            reasons.iter().map(|reason| (reason.id.clone(), reason.sentence())).unzip()
        }
        Verdict::Pending(duties) => {
            duties.iter().map(|duty| (duty.name.clone(), duty.reason.clone())).unzip()
        }
    };
    let mut differences = Vec::new();
    let verdict = decision.verdict.name();
    if verdict != case.expect {
        let why = if sentences.is_empty() {
            String::new()
        } else {
            format!(": {}", sentences.join("; "))
        };
        differences.push(format!("expected {}, got {verdict}{why}", case.expect));
    } else if let Some(reason) = &case.reason
        && !because.contains(reason)
    {
        differences.push(format!("expected the reason {reason:?}, got {}", because.join(", ")));
    }
    let same = |expected: &[String], got: &[String]| {
        let set = |list: &[String]| list.iter().cloned().collect::<BTreeSet<_>>();
        set(expected) == set(got)
    };
    if let Some(expected) = &case.obligations
        && !same(expected, &because)
    {
        differences.push(format!(
            "expected the obligations {}, got {}",
            expected.join(", "),
            because.join(", ")
        ));
    }
    let later: Vec<String> = decision.at_release.iter().map(|duty| duty.name.clone()).collect();
    if let Some(expected) = &case.at_release
        && !same(expected, &later)
    {
        differences.push(format!(
            "expected at release {}, got {}",
            expected.join(", "),
            later.join(", ")
        ));
    }
    if let Some(words) = &case.says
        && !sentences.iter().any(|sentence| sentence.contains(words.as_str()))
    {
        differences.push(format!("expected the words {words:?} in: {}", sentences.join("; ")));
    }
    CaseReport { name: case.name.clone(), verdict, because, sentences, differences }
}

#[cfg(test)]
mod tests {
    use super::*;

    const POLICY: &str = "@id(\"all\") permit (principal, action, resource);
@id(\"research\") @reason(\"research only\") forbid (principal, action, resource) unless { context.purpose == \"research\" };
@id(\"never-met\") @reason(\"x\") forbid (principal, action, resource) when { context.runs > 7 };";

    fn problem(text: &str) -> String {
        run(text, Some(POLICY)).expect_err(text).to_string()
    }

    #[test]
    fn differences_and_rules_without_a_case_are_named() {
        let report = run(
            "[[case]]\nname = \"a\"\nexpect = \"allow\"\n
             [[case]]\nname = \"b\"\nexpect = \"allow\"\nset.context.purpose = \"sale\"\n
             [[case]]\nname = \"c\"\nexpect = \"refuse\"\nreason = \"other\"\nset.context.purpose = \"sale\"\n",
            Some(POLICY),
        )
        .expect("a table");
        assert!(!report.passed());
        assert_eq!(report.cases[0].differences, Vec::<String>::new());
        assert!(
            report.cases[1].differences[0]
                .starts_with("expected allow, got refuse: dataset rule \"research\"")
        );
        assert!(
            report.cases[2].differences[0].contains("expected the reason \"other\", got research")
        );
        assert_eq!(report.untested, ["never-met"]);
    }

    #[test]
    fn a_table_that_is_misread_is_an_error() {
        let case = "[[case]]\nname = \"a\"\nexpect = \"allow\"\n";
        for (text, words) in [
            ("", "expected 1 to"),
            ("[[case]]\nname = \"a\"\n", "expect"),
            ("[[case]]\nname = \"a\"\nexpect = \"maybe\"\n", "allow, refuse or pending"),
            (&format!("{case}colour = \"red\"\n"), "colour"),
            (&format!("{case}request = \"odd\"\n"), "odd"),
            (&format!("{case}unset = [\"context.porpoise\"]\n"), "context.porpoise"),
            (&format!("{case}layers.dataset = \"odd\"\n"), "odd"),
            (&format!("{case}layers.planet = \"open\"\n"), "planet"),
            (&format!("{case}approvals = [{{ obligation = \"x\", colour = 1 }}]\n"), "colour"),
            (&format!("colour = 1\n{case}"), "colour"),
        ] {
            let problem = problem(text);
            assert!(problem.contains(words), "{text}: {problem}");
        }
    }
}
