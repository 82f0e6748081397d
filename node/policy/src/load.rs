//! From a text to policies that may be asked: bounds, syntax, strict validation against the schema.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::LazyLock;

use cedar_policy::{
    Effect, PolicyId, PolicySet, Schema, ValidationMode, ValidationWarning, Validator,
};
use miette::Diagnostic;
use serde_json::Value;

use crate::SCHEMA_TEXT;
use crate::check::{Code, FINDINGS_MAX, Finding, Severity};
use crate::reads::reads;
use crate::request::Action;
use crate::statements::{Statement, line_at, statements};
use crate::vocabulary::{CHANGE, ID, OBLIGATION, OBLIGATIONS, REASON, closest, obligation};

/// The longest part of an error of Cedar's that is passed on, in bytes.
const CEDAR_TEXT_BYTES_MAX: usize = 400;

/// Our schema. It is a constant of this crate: a test reads it, so it can be read here.
pub(crate) fn schema() -> &'static Schema {
    static SCHEMA: LazyLock<Schema> = LazyLock::new(|| {
        let (schema, _warnings) =
            Schema::from_cedarschema_str(SCHEMA_TEXT).expect("the crate's own schema is valid");
        schema
    });
    &SCHEMA
}

/// A text that may be asked.
#[derive(Debug)]
pub(crate) struct Loaded {
    /// As Cedar evaluates it.
    pub(crate) set: PolicySet,
    /// What is known of each policy, in the order of the text.
    pub(crate) rules: Vec<Rule>,
    /// What Cedar warns of.
    pub(crate) warnings: Vec<Finding>,
}

/// One policy of a text.
#[derive(Clone, Debug)]
pub(crate) struct Rule {
    /// Cedar's own name for it.
    pub(crate) cedar_id: PolicyId,
    /// Where it begins.
    pub(crate) line: u32,
    /// Whether it permits; else it forbids.
    pub(crate) permits: bool,
    /// Its annotations.
    pub(crate) annotations: BTreeMap<String, String>,
    /// Attributes that it names.
    pub(crate) reads: BTreeSet<String>,
    /// Its syntax tree in Cedar's JSON form.
    pub(crate) tree: Value,
}

impl Rule {
    /// Its `@id`, if it has one.
    pub(crate) fn id(&self) -> Option<&str> {
        self.annotation(ID)
    }

    /// What to call it.
    pub(crate) fn name(&self) -> String {
        self.id().map_or_else(|| format!("line-{}", self.line), str::to_owned)
    }

    pub(crate) fn reason(&self) -> Option<&str> {
        self.annotation(REASON)
    }

    pub(crate) fn change(&self) -> Option<&str> {
        self.annotation(CHANGE)
    }

    pub(crate) fn obligation(&self) -> Option<&str> {
        self.annotation(OBLIGATION)
    }

    fn annotation(&self, key: &str) -> Option<&str> {
        self.annotations.get(key).map(String::as_str).filter(|text| !text.trim().is_empty())
    }
}

impl Loaded {
    /// The rule behind one of Cedar's ids.
    pub(crate) fn rule(&self, id: &PolicyId) -> Option<&Rule> {
        self.rules.iter().find(|rule| &rule.cedar_id == id)
    }
}

/// Reads a policy's text.
///
/// # Errors
/// Findings, at least one of them an error: the text may not be asked.
pub(crate) fn load(text: &str) -> Result<Loaded, Vec<Finding>> {
    let places = statements(text).map_err(|finding| vec![finding])?;
    if places.is_empty() {
        return Err(vec![Finding::error(
            Code::Empty,
            None,
            "there is no policy in the text, so it permits nothing",
            "to add no restriction write: @id(\"no-further-restriction\") permit (principal, action, resource);",
        )]);
    }
    let set: PolicySet = text.parse().map_err(|errors: cedar_policy::ParseErrors| {
        errors
            .iter()
            .take(FINDINGS_MAX)
            .map(|error| from_cedar(text, Code::Syntax, error))
            .collect::<Vec<_>>()
    })?;
    let mut findings = Vec::new();
    if set.num_of_templates() > 0 {
        findings.push(Finding::error(
            Code::Template,
            None,
            "a policy with ?principal or ?resource is a template, and nothing here fills it in",
            "name whom it is for, or leave the scope open and write a condition",
        ));
        return Err(findings);
    }
    let rules = rules(&set, &places)?;
    for rule in &rules {
        findings.extend(rule_errors(rule, &rules));
    }
    let result = Validator::new(schema().clone()).validate(&set, ValidationMode::Strict);
    let id_of = |id: &PolicyId| rules.iter().find(|rule| &rule.cedar_id == id).and_then(Rule::id);
    for error in result.validation_errors().take(FINDINGS_MAX) {
        let finding = from_cedar(text, Code::Schema, error).in_policy(id_of(error.policy_id()));
        push_once(&mut findings, finding);
    }
    if !result.validation_passed() || !findings.is_empty() {
        return Err(findings);
    }
    let mut warnings: Vec<Finding> = Vec::new();
    for warning in result.validation_warnings().take(FINDINGS_MAX) {
        let code = match warning {
            ValidationWarning::ImpossiblePolicy(_)
            | ValidationWarning::InvalidActionApplication(_) => Code::NeverApplies,
            _ => Code::Confusable,
        };
        let finding = from_cedar(text, code, warning).in_policy(id_of(warning.policy_id()));
        let finding = Finding { severity: Severity::Warning, ..finding };
        push_once(&mut warnings, finding);
    }
    Ok(Loaded { set, rules, warnings })
}

/// Adds a finding unless it is there already: the validator says it once for each action.
fn push_once(findings: &mut Vec<Finding>, finding: Finding) {
    let essence = |finding: &Finding| {
        let nameless = |text: &String, action: Action| text.replace(action.name(), "");
        let text = Action::ALL.into_iter().fold(finding.text.clone(), |text, a| nameless(&text, a));
        (finding.line, finding.policy.clone(), text)
    };
    let new = essence(&finding);
    if !findings.iter().any(|known| essence(known) == new) {
        findings.push(finding);
    }
}

/// What of a rule is read here and not by Cedar.
fn rule_errors(rule: &Rule, all: &[Rule]) -> Vec<Finding> {
    let mut findings = Vec::new();
    if let Some(name) = rule.obligation()
        && obligation(name).is_none()
    {
        let known = || OBLIGATIONS.iter().map(|known| known.name);
        let hint = closest(name, known()).map_or_else(
            || format!("known are {}", known().collect::<Vec<_>>().join(", ")),
            |meant| format!("did you mean {meant:?}?"),
        );
        findings.push(
            Finding::error(
                Code::UnknownObligation,
                Some(rule.line),
                format!("nobody can meet the obligation {:?}", shorten(name)),
                hint,
            )
            .in_policy(rule.id()),
        );
    }
    if let Some(id) = rule.id()
        && let Some(first) = all.iter().find(|other| other.id() == Some(id))
        && first.line < rule.line
    {
        findings.push(
            Finding::error(
                Code::DuplicateId,
                Some(rule.line),
                format!("the policy at line {} has the same @id", first.line),
                "a refusal is told apart by its @id: give each policy its own",
            )
            .in_policy(Some(id)),
        );
    }
    findings
}

/// What is known of each policy. Cedar numbers policies in the order of the text.
fn rules(set: &PolicySet, places: &[Statement]) -> Result<Vec<Rule>, Vec<Finding>> {
    let broken = |what: String| {
        vec![Finding::error(
            Code::Syntax,
            None,
            what,
            "write each policy as permit (…) …; or forbid (…) …;",
        )]
    };
    if set.num_of_policies() != places.len() {
        return Err(broken(format!(
            "the text has {} statements but {} policies",
            places.len(),
            set.num_of_policies()
        )));
    }
    let mut rules = Vec::with_capacity(places.len());
    for (number, place) in places.iter().enumerate() {
        let cedar_id = PolicyId::new(format!("policy{number}"));
        let policy = set
            .policy(&cedar_id)
            .ok_or_else(|| broken(format!("the statement at line {} is no policy", place.line)))?;
        let tree = policy
            .to_json()
            .map_err(|error| broken(format!("the policy at line {}: {error}", place.line)))?;
        rules.push(Rule {
            line: place.line,
            permits: policy.effect() == Effect::Permit,
            annotations: policy
                .annotations()
                .map(|(key, value)| (key.to_owned(), value.to_owned()))
                .collect(),
            reads: reads(&tree),
            tree,
            cedar_id,
        });
    }
    Ok(rules)
}

/// A complaint of Cedar's, with the line it points at.
fn from_cedar(text: &str, code: Code, error: &dyn Diagnostic) -> Finding {
    let line = error
        .labels()
        .and_then(|mut labels| labels.next())
        .map(|label| line_at(text, label.offset()));
    let hint = error.help().map(|help| shorten(&help.to_string())).unwrap_or_else(|| {
        match code {
            Code::Syntax => "see the examples that `allmend policy new` writes",
            _ => "the attributes and their kinds are listed in docs/steward.md",
        }
        .to_owned()
    });
    Finding::error(code, line, shorten(&error.to_string()), hint)
}

/// One line of bounded length.
pub(crate) fn shorten(text: &str) -> String {
    let line: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    if line.len() <= CEDAR_TEXT_BYTES_MAX {
        return line;
    }
    let mut end = CEDAR_TEXT_BYTES_MAX;
    while !line.is_char_boundary(end) {
        end -= 1;
    }
    format!("{}…", &line[..end])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::attributes::{ATTRIBUTES, Kind};

    fn errors(text: &str) -> Vec<(Code, Option<u32>)> {
        let findings = load(text).expect_err("refused");
        findings.iter().map(|finding| (finding.code, finding.line)).collect()
    }

    #[test]
    fn faults_are_found_with_their_line() {
        assert_eq!(errors("// nothing"), [(Code::Empty, None)]);
        assert_eq!(errors("permit (principal, action, resource)"), [(Code::Syntax, Some(1))]);
        assert_eq!(
            errors(
                "permit (principal, action, resource);\nforbid (principal, action, resource) unless {\n  context.porpoise == \"x\" };"
            ),
            [(Code::Schema, Some(3))]
        );
        assert_eq!(
            errors("\n@obligation(\"make-coffee\")\nforbid (principal, action, resource);"),
            [(Code::UnknownObligation, Some(2))]
        );
        assert_eq!(
            errors(
                "@id(\"a\") permit (principal, action, resource);\n@id(\"a\") forbid (principal, action, resource);"
            ),
            [(Code::DuplicateId, Some(2))]
        );
        assert_eq!(
            errors("permit (principal == ?principal, action, resource);"),
            [(Code::Template, None)]
        );
    }

    #[test]
    fn a_misspelt_word_of_a_closed_vocabulary_is_found() {
        let text = "forbid (principal, action, resource) when { resource.sensitivity == Sensitivity::\"opne\" };";
        assert_eq!(errors(text), [(Code::Schema, Some(1))]);
    }

    #[test]
    fn rules_know_what_they_read() {
        let loaded = load(
            "@id(\"a\") @reason(\"b\") forbid (principal, action == Action::\"finetune\", resource)
             when { context.model.licence == \"x\" && resource has withdrawn }
             unless { [1, context.rows].contains(resource.rows) };",
        )
        .expect("valid");
        let reads: Vec<&str> = loaded.rules[0].reads.iter().map(String::as_str).collect();
        assert_eq!(
            reads,
            [
                "action",
                "context.model.licence",
                "context.rows",
                "resource.rows",
                "resource.withdrawn"
            ]
        );
        assert_eq!(loaded.rules[0].name(), "a");
    }

    /// Goal: the table of attributes and the schema say the same. Method: one policy per attribute that is valid
    /// only if the attribute exists and has that kind; and the schema has no attribute besides.
    #[test]
    fn the_table_of_attributes_is_the_schema() {
        for attribute in &ATTRIBUTES {
            let condition = match attribute.kind {
                Kind::Bool => attribute.path.to_owned(),
                Kind::Long => format!("{} < 1", attribute.path),
                Kind::Text => format!("{} like \"a*\"", attribute.path),
                Kind::Texts => format!("{}.contains(\"a\")", attribute.path),
                Kind::Word(name, words) => {
                    let words: Vec<String> =
                        words.iter().map(|word| format!("{name}::\"{word}\"")).collect();
                    format!("[{}].contains({})", words.join(", "), attribute.path)
                }
            };
            let text = format!("permit (principal, action, resource) when {{ {condition} }};");
            let loaded = load(&text).unwrap_or_else(|findings| panic!("{text}: {findings:?}"));
            assert!(loaded.rules[0].reads.contains(attribute.path), "{text}");
        }
        let declared = SCHEMA_TEXT
            .lines()
            .filter(|line| !line.trim_start().starts_with("//"))
            .flat_map(|line| line.split('"').skip(1).step_by(2).map(move |name| (line, name)))
            .filter(|(line, name)| line.contains(&format!("\"{name}\":")))
            .count();
        // Records count as names too: model, node, result, room, approvals, privacy, time.
        assert_eq!(declared, ATTRIBUTES.len() + 7);
    }
}
