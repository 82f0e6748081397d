//! What a valid policy says that its author is not likely to mean.

use std::collections::BTreeMap;

use serde_json::Value;

use super::{Code, Finding, Severity};
use crate::load::{Loaded, Rule};
use crate::reads::path;
use crate::vocabulary::{ANNOTATIONS, NO_FURTHER_RESTRICTION, closest};

/// Adds what it finds.
pub(super) fn lint(loaded: &Loaded, findings: &mut Vec<Finding>) {
    let rules = &loaded.rules;
    for rule in rules {
        annotations(rule, findings);
        obligations(rule, findings);
        never(rule, findings);
    }
    shadows(rules, findings);
    permits(rules, findings);
    withdrawn(rules, findings);
}

fn warn(rule: &Rule, code: Code, text: impl Into<String>, hint: impl Into<String>) -> Finding {
    Finding::new(Severity::Warning, code, Some(rule.line), text, hint).in_policy(rule.id())
}

fn annotations(rule: &Rule, findings: &mut Vec<Finding>) {
    if rule.id().is_none() {
        findings.push(warn(
            rule,
            Code::MissingId,
            "the rule has no @id, so a refusal cannot name it",
            "give it a short name: @id(\"research-only\")",
        ));
    }
    if !rule.permits && rule.reason().is_none() {
        findings.push(warn(
            rule,
            Code::MissingReason,
            "the rule refuses without @reason: the researcher would not learn why",
            "say it in a sentence: @reason(\"The people in it agreed to research only\")",
        ));
    }
    for key in rule.annotations.keys().filter(|key| !ANNOTATIONS.contains(&key.as_str())) {
        let hint = closest(key, ANNOTATIONS.into_iter()).map_or_else(
            || "known are @id, @reason, @change, @obligation".to_owned(),
            |meant| format!("did you mean @{meant}?"),
        );
        findings.push(warn(
            rule,
            Code::UnknownAnnotation,
            format!("@{key} has no meaning here"),
            hint,
        ));
    }
}

fn obligations(rule: &Rule, findings: &mut Vec<Finding>) {
    let Some(name) = rule.obligation() else { return };
    if rule.permits {
        findings.push(warn(
            rule,
            Code::MisplacedObligation,
            format!("@obligation({name:?}) has no effect on a permit"),
            format!("write forbid … unless {{ context.approvals.given.contains({name:?}) }}; and annotate that"),
        ));
        return;
    }
    let person = rule.reads.contains("context.approvals.by")
        || rule.reads.contains("context.approvals.documents");
    if !person && !contains_given(&rule.tree, name) {
        findings.push(warn(
            rule,
            Code::UselessObligation,
            format!("nothing changes when {name} is given: the rule goes on forbidding"),
            format!("add: unless {{ context.approvals.given.contains({name:?}) }}"),
        ));
    } else if !rule.reads.contains("context.stage") {
        findings.push(
            Finding::new(
                Severity::Note,
                Code::AsksTwice,
                Some(rule.line),
                format!(
                    "{name} is asked for twice: before a run, and before its output is released"
                ),
                "to be asked once, add: when { context.stage == Stage::\"run\" }",
            )
            .in_policy(rule.id()),
        );
    }
}

/// Whether somewhere `context.approvals.given` is asked for `name`.
fn contains_given(node: &Value, name: &str) -> bool {
    match node {
        Value::Object(object) => {
            let asks = ["contains", "containsAll", "containsAny"].iter().any(|method| {
                object.get(*method).is_some_and(|call| {
                    path(&call["left"]).as_deref() == Some("context.approvals.given")
                        && mentions(&call["right"], name)
                })
            });
            asks || object.values().any(|inner| contains_given(inner, name))
        }
        Value::Array(list) => list.iter().any(|inner| contains_given(inner, name)),
        _ => false,
    }
}

fn mentions(node: &Value, name: &str) -> bool {
    match node {
        Value::String(text) => text == name,
        Value::Object(object) => object.values().any(|inner| mentions(inner, name)),
        Value::Array(list) => list.iter().any(|inner| mentions(inner, name)),
        _ => false,
    }
}

/// Conditions that are false whatever the request is. Cedar's validator finds those of types; here those of values.
fn never(rule: &Rule, findings: &mut Vec<Finding>) {
    let contradiction = conditions(rule).find_map(|(when, body)| {
        let literal = body["Value"].as_bool();
        if literal == Some(!when) {
            return Some(format!(
                "{} {{ {} }} never holds",
                if when { "when" } else { "unless" },
                !when
            ));
        }
        if !when {
            return None;
        }
        let mut required: BTreeMap<String, &Value> = BTreeMap::new();
        let mut clash = None;
        equalities(body, &mut |path, value| {
            if let Some(first) = required.get(&path)
                && *first != value
            {
                clash.get_or_insert(format!("{path} would have to be two things at once"));
            }
            required.entry(path).or_insert(value);
        });
        clash
    });
    if let Some(what) = contradiction {
        let already = findings.iter().any(|known| {
            known.code == Code::NeverApplies
                && known.policy.as_deref() == rule.id()
                && known.policy.is_some()
        });
        if !already {
            findings.push(warn(
                rule,
                Code::NeverApplies,
                what,
                "to mean either of two, write [a, b].contains(…)",
            ));
        }
    }
}

/// Calls `found` for each `path == literal` that must hold for a conjunction to hold.
fn equalities<'a>(node: &'a Value, found: &mut impl FnMut(String, &'a Value)) {
    if let Some(both) = node.get("&&") {
        equalities(&both["left"], found);
        equalities(&both["right"], found);
    } else if let Some(equal) = node.get("==") {
        for (left, right) in [("left", "right"), ("right", "left")] {
            if let (Some(path), Some(value)) = (path(&equal[left]), equal[right].get("Value")) {
                found(path, value);
            }
        }
    }
}

fn conditions(rule: &Rule) -> impl Iterator<Item = (bool, &Value)> {
    rule.tree["conditions"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|condition| (condition["kind"] == "when", &condition["body"]))
}

/// Whether the rule applies to everything in its scope.
fn unconditional(rule: &Rule) -> bool {
    conditions(rule).all(|(when, body)| body["Value"].as_bool() == Some(when))
}

/// Whether every request in the scope of `narrow` is in that of `wide`, as far as their forms tell.
fn covers(wide: &Rule, narrow: &Rule) -> bool {
    ["principal", "action", "resource"].iter().all(|scope| {
        let (wide, narrow) = (&wide.tree[*scope], &narrow.tree[*scope]);
        if wide["op"] == "All" || wide == narrow {
            return true;
        }
        // There is one type of principal and one of resource: `is` is no narrower than everything.
        if wide["op"] == "is" && wide.get("in").is_none() {
            return true;
        }
        let listed = |scope: &Value| -> Vec<Value> {
            match (&scope["entity"], scope["entities"].as_array()) {
                (_, Some(list)) => list.clone(),
                (Value::Null, None) => Vec::new(),
                (entity, None) => vec![entity.clone()],
            }
        };
        let (wide, narrow) = (listed(wide), listed(narrow));
        !narrow.is_empty() && narrow.iter().all(|entity| wide.contains(entity))
    })
}

fn shadows(rules: &[Rule], findings: &mut Vec<Finding>) {
    for (index, rule) in rules.iter().enumerate() {
        // A rule that forbids everything makes all permits within it vain; otherwise like shadows like.
        let by = rules.iter().enumerate().find(|(other_index, other)| {
            if *other_index == index || !covers(other, rule) {
                return false;
            }
            let same_conditions = other.tree["conditions"] == rule.tree["conditions"];
            let first = *other_index < index || !covers(rule, other);
            match (other.permits, rule.permits) {
                (false, true) => unconditional(other),
                (true, true) | (false, false) => {
                    // A rule with an obligation is not the same as one without: the one without is stronger.
                    let weaker =
                        other.obligation().is_some() && other.obligation() != rule.obligation();
                    !weaker
                        && ((unconditional(other) && (!unconditional(rule) || first))
                            || (same_conditions && first))
                }
                (true, false) => false,
            }
        });
        let Some((_, by)) = by else { continue };
        let text = match (by.permits, rule.permits) {
            (false, true) => format!("the rule at line {} forbids all of it", by.line),
            (true, _) => format!("the rule at line {} permits all of it already", by.line),
            (false, false) => format!("the rule at line {} forbids all of it already", by.line),
        };
        findings.push(warn(
            rule,
            Code::Shadowed,
            text,
            if rule.permits && by.permits {
                "to restrict, permit in general and write forbid … unless { … }"
            } else {
                "remove one of the two, or narrow the other"
            },
        ));
    }
}

fn permits(rules: &[Rule], findings: &mut Vec<Finding>) {
    let mut permits = rules.iter().filter(|rule| rule.permits).peekable();
    if permits.peek().is_none() {
        findings.push(Finding::new(
            Severity::Warning,
            Code::NothingPermitted,
            None,
            "nothing is permitted, so everything is refused, whatever the other rules say",
            "begin with: @id(\"in-general\") permit (principal, action, resource); and restrict it with forbid … unless { … }",
        ));
    }
    let restricts = rules.iter().any(|rule| !rule.permits);
    for rule in permits.filter(|rule| unconditional(rule)) {
        if rule.id() == Some(NO_FURTHER_RESTRICTION) {
            if !restricts {
                findings.push(
                    Finding::new(
                        Severity::Note,
                        Code::NoFurtherRestriction,
                        Some(rule.line),
                        "this layer adds no restriction, and says so",
                        "the other layers still decide",
                    )
                    .in_policy(rule.id()),
                );
                continue;
            }
            findings.push(warn(
                rule,
                Code::UnconditionalPermit,
                "it says that there is no further restriction, and then restricts",
                "give it another @id, e.g. \"in-general\"",
            ));
        } else if !restricts {
            findings.push(warn(
                rule,
                Code::UnconditionalPermit,
                "it permits without any condition, and no rule forbids",
                format!("add forbid … unless {{ … }}, or say that this is meant: @id({NO_FURTHER_RESTRICTION:?})"),
            ));
        }
    }
}

fn withdrawn(rules: &[Rule], findings: &mut Vec<Finding>) {
    let meant_open = matches!(rules, [only] if only.id() == Some(NO_FURTHER_RESTRICTION));
    let aware = rules.iter().any(|rule| rule.reads.contains("resource.withdrawn"));
    if !meant_open && !aware {
        findings.push(Finding::new(
            Severity::Note,
            Code::NoWithdrawnCheck,
            None,
            "no rule looks at whether the dataset has been withdrawn",
            "runs on withdrawn data are always refused; to stop adapters made from it as well, add: \
             forbid (principal, action, resource) when { resource.withdrawn };",
        ));
    }
}

#[cfg(test)]
mod tests {
    use super::super::{check, needs_attention};
    use super::*;

    const WITHDRAWN: &str = "@id(\"w\") @reason(\"w\") forbid (principal, action, resource) when { resource.withdrawn };\n";
    const ALL: &str = "@id(\"in-general\") permit (principal, action, resource);\n";

    /// Codes and lines that a text gives, after two lines that are in order.
    fn found(rest: &str) -> Vec<(Code, Option<u32>)> {
        let findings = check(&format!("{WITHDRAWN}{ALL}{rest}"));
        findings.iter().map(|finding| (finding.code, finding.line)).collect()
    }

    #[test]
    fn a_text_in_order_gives_nothing() {
        assert_eq!(found(""), []);
        assert_eq!(
            found(
                "@id(\"a\") @reason(\"b\") @obligation(\"approve:ethics\") forbid (principal, action, resource) when { context.stage == Stage::\"run\" } unless { context.approvals.given.contains(\"approve:ethics\") };"
            ),
            []
        );
        let twice = found(
            "@id(\"a\") @reason(\"b\") @obligation(\"approve:ethics\") forbid (principal, action, resource) unless { context.approvals.given.contains(\"approve:ethics\") };",
        );
        assert_eq!(twice, [(Code::AsksTwice, Some(3))]);
    }

    #[test]
    fn each_fault_is_named_at_its_line() {
        for (text, code) in [
            (
                "@reason(\"b\") forbid (principal, action, resource) when { context.egress };",
                Code::MissingId,
            ),
            (
                "@id(\"a\") forbid (principal, action, resource) unless { context.purpose == \"x\" };",
                Code::MissingReason,
            ),
            (
                "@id(\"a\") @raeson(\"b\") permit (principal, action == Action::\"infer\", resource) when { context.egress };",
                Code::UnknownAnnotation,
            ),
            (
                "@id(\"a\") @reason(\"b\") @obligation(\"approve:ethics\") forbid (principal, action, resource) unless { context.purpose == \"x\" };",
                Code::UselessObligation,
            ),
            (
                "@id(\"a\") @reason(\"b\") @obligation(\"approve:ethics\") forbid (principal, action, resource) unless { context.approvals.given.contains(\"approve:legal\") };",
                Code::UselessObligation,
            ),
            (
                "@id(\"a\") @reason(\"b\") forbid (principal, action, resource) when { context.purpose == \"x\" && context.purpose == \"y\" };",
                Code::NeverApplies,
            ),
            (
                "@id(\"a\") @reason(\"b\") forbid (principal, action, resource) when { false };",
                Code::NeverApplies,
            ),
            (
                "@id(\"a\") @reason(\"b\") forbid (principal, action, resource) unless { true };",
                Code::NeverApplies,
            ),
            (
                "@id(\"a\") permit (principal, action, resource) when { context.purpose == \"x\" };",
                Code::Shadowed,
            ),
            (
                "@id(\"a\") @reason(\"b\") forbid (principal, action == Action::\"infer\", resource) when { resource.withdrawn };",
                Code::Shadowed,
            ),
        ] {
            let findings = found(text);
            assert!(findings.contains(&(code, Some(3))), "{text}: {findings:?}");
        }
    }

    #[test]
    fn an_obligation_on_a_permit_is_misplaced() {
        let text = format!(
            "{WITHDRAWN}@id(\"a\") @obligation(\"approve:ethics\") permit (principal, action, resource) when {{ context.approvals.given.contains(\"approve:ethics\") }};"
        );
        assert_eq!(
            check(&text).iter().map(|f| f.code).collect::<Vec<_>>(),
            [Code::MisplacedObligation]
        );
    }

    #[test]
    fn permitting_nothing_or_everything_must_be_meant() {
        let codes =
            |text: &str| check(text).iter().map(|f| (f.code, f.severity)).collect::<Vec<_>>();
        assert_eq!(codes(WITHDRAWN), [(Code::NothingPermitted, Severity::Warning)]);
        assert!(codes(ALL).contains(&(Code::UnconditionalPermit, Severity::Warning)));
        let open = "@id(\"no-further-restriction\") permit (principal, action, resource);";
        assert_eq!(codes(open), [(Code::NoFurtherRestriction, Severity::Note)]);
        assert!(!needs_attention(&check(open)));
        let both = format!("{WITHDRAWN}{open}");
        assert_eq!(codes(&both), [(Code::UnconditionalPermit, Severity::Warning)]);
    }

    #[test]
    fn a_forbid_for_everything_makes_permits_vain() {
        let text = "@id(\"a\") @reason(\"b\") forbid (principal, action, resource);\n@id(\"c\") permit (principal, action, resource) when { !resource.withdrawn };";
        let findings = check(text);
        assert!(
            findings.iter().any(|f| f.code == Code::Shadowed && f.line == Some(2)),
            "{findings:?}"
        );
    }

    #[test]
    fn rules_for_the_same_with_and_without_an_obligation_are_both_needed_or_said_to_be_vain() {
        // The one without the obligation is stronger, so the other is vain, not this one.
        let pair = "@id(\"a\") @reason(\"b\") @obligation(\"approve:ethics\") forbid (principal, action, resource) unless { context.approvals.given.contains(\"approve:ethics\") };
@id(\"c\") @reason(\"d\") forbid (principal, action, resource) unless { context.approvals.given.contains(\"approve:ethics\") };";
        let shadowed: Vec<_> =
            found(pair).into_iter().filter(|(code, _)| *code == Code::Shadowed).collect();
        assert_eq!(shadowed, []);
    }
}
