//! Joining the answers of the three layers (specs/policy.md §3, §4).

use std::collections::BTreeSet;

use serde_json::{Value, json};

use crate::ask::{Answer, Question, answer, question};
use crate::attributes::{ATTRIBUTES, at, shown};
use crate::check::Severity;
use crate::decision::{
    AttributeLine, Decision, LayerOutcome, LayerReport, Obligation, PolicyDigests, Reason,
    ReasonKind, Verdict,
};
use crate::layer::{LayerName, Layers, digest_of_text};
use crate::load::{Loaded, Rule, load, shorten};
use crate::request::Request;
use crate::vocabulary::OBLIGATIONS;

/// Decides on `request`.
pub fn decide(layers: &Layers<'_>, request: &Request) -> Decision {
    let mut decision = decide_document(layers, &request.to_document());
    if let Verdict::Refuse(reasons) = &mut decision.verdict {
        // What the person said is for the researcher; policies never see it.
        for reason in reasons.iter_mut().filter(|reason| reason.kind == ReasonKind::Declined) {
            let words =
                request.run.approvals.declined().find(|(name, _)| reason.text.contains(name));
            if let Some((_, why)) = words.filter(|(_, why)| !why.is_empty()) {
                reason.text = format!("{} (\"{}\")", reason.text, shorten(why));
            }
        }
    }
    decision
}

/// Decides on a request in the form that policies see: `action`, `principal`, `resource` and `context`.
///
/// For tables of tests; a node uses [`decide`], which cannot leave anything out by mistake.
pub fn decide_document(layers: &Layers<'_>, document: &Value) -> Decision {
    let loaded = LayerName::ALL.map(|layer| (layer, read(layer, layers.text(layer))));
    let attributes = attribute_lines(document, &loaded);
    let digest = |text: Option<&str>| text.map(digest_of_text);
    let policies = PolicyDigests {
        all: layers.digest(),
        charter: digest(layers.charter),
        institution: digest(layers.institution),
        dataset: digest(layers.dataset),
    };
    let (verdict, reports, at_release) = match question(document) {
        Ok(question) => judge(&loaded, document, &question),
        Err(mut reasons) => {
            // A bad policy is worth hearing about even if the request is bad as well.
            reasons.extend(
                loaded.iter().filter_map(|(_, result)| result.as_ref().err()).flatten().cloned(),
            );
            let not_asked = |layer| LayerReport {
                layer,
                outcome: LayerOutcome::NotAsked,
                decided_by: Vec::new(),
            };
            (Verdict::Refuse(reasons), LayerName::ALL.map(not_asked).to_vec(), Vec::new())
        }
    };
    Decision { verdict, layers: reports, policies, attributes, at_release }
}

type LoadedLayer = (LayerName, Result<Loaded, Vec<Reason>>);

/// Reads one layer's text; whatever is wrong with it is a refusal.
fn read(layer: LayerName, text: Option<&str>) -> Result<Loaded, Vec<Reason>> {
    let Some(text) = text else {
        return Err(vec![Reason::about_layer(
            layer,
            ReasonKind::NoPolicy,
            format!("{} has no policy, and without one nothing is allowed", layer.whose()),
            format!("{} writes one: allmend policy new", layer.keeper()),
        )]);
    };
    load(text).map_err(|findings| {
        findings
            .into_iter()
            .filter(|finding| finding.severity == Severity::Error)
            .take(4)
            .map(|finding| Reason {
                line: finding.line,
                ..Reason::about_layer(
                    layer,
                    ReasonKind::BadPolicy,
                    format!("the policy of {} cannot be used: {finding}", layer.whose()),
                    format!(
                        "{} corrects it: {} (allmend policy check)",
                        layer.keeper(),
                        finding.hint
                    ),
                )
            })
            .collect()
    })
}

fn judge(
    loaded: &[LoadedLayer; 3],
    document: &Value,
    question: &Question,
) -> (Verdict, Vec<LayerReport>, Vec<Obligation>) {
    let answers: Vec<Answer> =
        loaded.iter().map(|(layer, result)| answer(*layer, result, document, question)).collect();
    let reports = loaded
        .iter()
        .zip(&answers)
        .map(|((layer, _), answer)| LayerReport {
            layer: *layer,
            outcome: answer.outcome(),
            decided_by: answer.decided_by.clone(),
        })
        .collect();
    let mut reasons = invariants(document, question);
    reasons.extend(answers.iter().flat_map(|answer| answer.reasons.iter().cloned()));
    let obligations: Vec<Obligation> =
        answers.iter().flat_map(|answer| answer.obligations.iter().cloned()).collect();
    if !reasons.is_empty() {
        return (Verdict::Refuse(reasons), reports, Vec::new());
    }
    if obligations.is_empty() {
        // Each layer that does not allow has left a reason or an obligation.
        debug_assert!(answers.iter().all(|answer| answer.allowed));
        return (Verdict::Allow, reports, at_release(loaded, document));
    }
    match once_approved(loaded, document, obligations) {
        Ok((obligations, approved)) => {
            let later = at_release(loaded, &approved);
            (Verdict::Pending(obligations), reports, later)
        }
        Err(reasons) => (Verdict::Refuse(reasons), reports, Vec::new()),
    }
}

/// What no policy may permit.
fn invariants(document: &Value, question: &Question) -> Vec<Reason> {
    let mut reasons = Vec::new();
    if !question.acts_on_data {
        return reasons;
    }
    if at(document, "resource.withdrawn") != Some(&Value::Bool(false)) {
        reasons.push(Reason::about_request(
            ReasonKind::Withdrawn,
            "the dataset has been withdrawn by its steward",
            "use another dataset, or a later version if the steward publishes one",
        ));
    }
    if at(document, "context.egress") != Some(&Value::Bool(false)) {
        reasons.push(Reason::about_request(
            ReasonKind::Egress,
            "something besides the result could get out of the room in which it would run",
            "run it at a node whose room lets nothing out (allmend doctor says what this one lacks)",
        ));
    }
    reasons
}

/// Whether the approvals that are asked for would help: who waits for a person must not be refused afterwards for
/// something that was known before. Gives the obligations, with those that come to light only then, and the request
/// as it would be.
fn once_approved(
    loaded: &[LoadedLayer; 3],
    document: &Value,
    mut obligations: Vec<Obligation>,
) -> Result<(Vec<Obligation>, Value), Vec<Reason>> {
    let mut document = document.clone();
    // Each round meets at least one obligation more, and there are only so many.
    for _ in 0..=OBLIGATIONS.len() {
        let names: BTreeSet<&str> = obligations.iter().map(|duty| duty.name.as_str()).collect();
        grant(&mut document, &names);
        let question = question(&document)?;
        let mut reasons = Vec::new();
        let mut fresh = Vec::new();
        for (layer, result) in loaded {
            let answer = answer(*layer, result, &document, &question);
            reasons.extend(answer.reasons);
            for duty in answer.obligations {
                if !names.contains(duty.name.as_str()) {
                    fresh.push(duty);
                } else if !depends_on_the_person(result, &duty.policy) {
                    reasons.push(Reason {
                        id: duty.policy,
                        ..Reason::about_layer(
                            *layer,
                            ReasonKind::Forbidden,
                            duty.reason,
                            format!("{} alone would not free the way; something else that the rule looks at must differ", duty.name),
                        )
                    });
                }
            }
        }
        if !reasons.is_empty() {
            return Err(reasons);
        }
        if fresh.is_empty() {
            return Ok((obligations, document));
        }
        obligations.extend(fresh);
    }
    Ok((obligations, document))
}

/// Whether a rule looks at who approved, or with which documents: then only the approval itself can tell.
fn depends_on_the_person(result: &Result<Loaded, Vec<Reason>>, name: &str) -> bool {
    result.as_ref().is_ok_and(|loaded| {
        loaded.rules.iter().filter(|rule| rule.name() == name).any(|rule| {
            rule.reads.contains("context.approvals.by")
                || rule.reads.contains("context.approvals.documents")
        })
    })
}

fn grant(document: &mut Value, names: &BTreeSet<&str>) {
    if let Some(given) =
        document.pointer_mut("/context/approvals/given").and_then(Value::as_array_mut)
    {
        for name in names {
            if !given.iter().any(|entry| entry == name) {
                given.push(json!(name));
            }
        }
    }
}

/// What would have to be approved before the output of this run leaves.
fn at_release(loaded: &[LoadedLayer; 3], document: &Value) -> Vec<Obligation> {
    if at(document, "context.stage") != Some(&json!("run")) {
        return Vec::new();
    }
    let mut document = document.clone();
    document["context"]["stage"] = json!("release");
    let Ok(question) = question(&document) else { return Vec::new() };
    loaded
        .iter()
        .flat_map(|(layer, result)| answer(*layer, result, &document, &question).obligations)
        .collect()
}

/// The request attribute by attribute, with the rules that name each.
fn attribute_lines(document: &Value, loaded: &[LoadedLayer; 3]) -> Vec<AttributeLine> {
    let line = |path: &str, value: String| AttributeLine {
        path: path.to_owned(),
        value,
        read_by: loaded
            .iter()
            .filter_map(|(layer, result)| Some((layer, result.as_ref().ok()?)))
            .flat_map(|(layer, loaded)| {
                loaded
                    .rules
                    .iter()
                    .filter(|rule| reads(rule, path))
                    .map(move |rule| format!("{layer}/{}", rule.name()))
            })
            .collect(),
    };
    let show = |path: &str| {
        at(document, path).map_or_else(|| "not known".to_owned(), |value| shorten(&shown(value)))
    };
    std::iter::once("action")
        .chain(ATTRIBUTES.iter().map(|attribute| attribute.path))
        .map(|path| line(path, show(path)))
        .collect()
}

/// Whether a rule names the attribute, or the record that it is in.
fn reads(rule: &Rule, path: &str) -> bool {
    rule.reads.iter().any(|read| {
        path == read || path.strip_prefix(read.as_str()).is_some_and(|rest| rest.starts_with('.'))
    })
}
