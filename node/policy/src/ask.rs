//! Asking one layer: the request as Cedar takes it, and what the layer's answer means in words.

use std::collections::BTreeSet;

use cedar_policy::{
    AuthorizationError, Authorizer, Context, Decision as CedarDecision, Entities, EntityUid,
    Request as CedarRequest, Response,
};
use serde_json::{Value, json};

use crate::attributes::{at, complaints, for_cedar, shown};
use crate::decision::{LayerOutcome, Obligation, Reason, ReasonKind};
use crate::layer::LayerName;
use crate::load::{Loaded, Rule, schema, shorten};
use crate::request::Action;
use crate::vocabulary::obligation;

/// The most attributes that a generated explanation lists.
const EXPLAINED_MAX: usize = 4;
/// The longest value in a generated explanation, in characters.
const EXPLAINED_VALUE_MAX: usize = 60;

/// A request that is complete and of the right kinds.
pub(crate) struct Question {
    principal: EntityUid,
    action: EntityUid,
    resource: EntityUid,
    entities: Entities,
    context: Context,
    /// Whether it would read the dataset itself.
    pub(crate) acts_on_data: bool,
}

/// Builds what Cedar asks, validated against the schema.
pub(crate) fn question(document: &Value) -> Result<Question, Vec<Reason>> {
    let mut problems = complaints(document);
    let action = document["action"].as_str().and_then(Action::from_name);
    let known: Vec<&str> = Action::ALL.iter().map(|action| action.name()).collect();
    if action.is_none() {
        problems.push(Reason::about_request(
            ReasonKind::TypeMismatch,
            format!("action must be one of {}", known.join(", ")),
            "ask for one of them",
        ));
    }
    let Some(action) = action.filter(|_| problems.is_empty()) else { return Err(problems) };
    build(document, action).map_err(|problem| {
        vec![Reason::about_request(
            ReasonKind::BadRequest,
            format!("the request does not fit the schema: {}", shorten(&problem)),
            "the node that asks must state it as specs/policy.md §2 says",
        )]
    })
}

fn build(document: &Value, action: Action) -> Result<Question, String> {
    fn words(error: impl std::fmt::Display) -> String {
        error.to_string()
    }
    let document = for_cedar(document);
    let uid = |kind: &str, id: &Value| {
        EntityUid::from_json(json!({ "type": kind, "id": id })).map_err(words)
    };
    let principal = uid("Researcher", &document["principal"]["key"])?;
    let resource = uid("Dataset", &document["resource"]["digest"])?;
    let action_uid = uid("Action", &json!(action.name()))?;
    let entity = |kind: &str, id: &Value, attributes: &Value| json!({ "uid": { "type": kind, "id": id }, "attrs": attributes, "parents": [] });
    let entities = json!([
        entity("Researcher", &document["principal"]["key"], &document["principal"]),
        entity("Dataset", &document["resource"]["digest"], &document["resource"]),
    ]);
    let entities = Entities::from_json_value(entities, Some(schema())).map_err(words)?;
    let context =
        Context::from_json_value(document["context"].clone(), Some((schema(), &action_uid)))
            .map_err(words)?;
    let acts_on_data = action != Action::UseAdapter;
    Ok(Question { principal, action: action_uid, resource, entities, context, acts_on_data })
}

impl Question {
    fn ask(&self, loaded: &Loaded) -> Result<Response, String> {
        let request = CedarRequest::new(
            self.principal.clone(),
            self.action.clone(),
            self.resource.clone(),
            self.context.clone(),
            Some(schema()),
        )
        .map_err(|error| error.to_string())?;
        Ok(Authorizer::new().is_authorized(&request, &loaded.set, &self.entities))
    }
}

/// What one layer says.
#[derive(Default)]
pub(crate) struct Answer {
    pub(crate) allowed: bool,
    pub(crate) decided_by: Vec<String>,
    pub(crate) reasons: Vec<Reason>,
    pub(crate) obligations: Vec<Obligation>,
}

impl Answer {
    pub(crate) fn outcome(&self) -> LayerOutcome {
        if self.allowed {
            LayerOutcome::Allow
        } else if self.reasons.is_empty() && !self.obligations.is_empty() {
            LayerOutcome::Pending
        } else {
            LayerOutcome::Refuse
        }
    }
}

/// Asks one layer.
pub(crate) fn answer(
    layer: LayerName,
    result: &Result<Loaded, Vec<Reason>>,
    document: &Value,
    question: &Question,
) -> Answer {
    let loaded = match result {
        Ok(loaded) => loaded,
        Err(reasons) => return Answer { reasons: reasons.clone(), ..Answer::default() },
    };
    let response = match question.ask(loaded) {
        Ok(response) => response,
        Err(problem) => {
            let reason = Reason::about_layer(
                layer,
                ReasonKind::BadRequest,
                format!("the request does not fit the schema: {}", shorten(&problem)),
                "the node that asks must state it as specs/policy.md §2 says",
            );
            return Answer { reasons: vec![reason], ..Answer::default() };
        }
    };
    let mut answer = Answer::default();
    for error in response.diagnostics().errors() {
        let AuthorizationError::PolicyEvaluationError(error) = error;
        let rule = loaded.rule(error.policy_id());
        answer.reasons.push(Reason {
            line: rule.map(|rule| rule.line),
            ..Reason::about_layer(
                layer,
                ReasonKind::Evaluation,
                format!(
                    "{layer} rule \"{}\" could not be evaluated: {}",
                    rule.map(Rule::name).unwrap_or_default(),
                    shorten(&error.inner().to_string())
                ),
                format!("{} corrects it (allmend policy check)", layer.keeper()),
            )
        });
    }
    // Cedar answers in the order of a set; people read in the order of the text.
    let determining: BTreeSet<String> =
        response.diagnostics().reason().map(ToString::to_string).collect();
    let determining: Vec<&Rule> = loaded
        .rules
        .iter()
        .filter(|rule| determining.contains(&rule.cedar_id.to_string()))
        .collect();
    answer.decided_by = determining.iter().map(|rule| rule.name()).collect();
    if response.decision() == CedarDecision::Allow {
        answer.allowed = answer.reasons.is_empty();
        return answer;
    }
    for rule in &determining {
        forbidden(layer, rule, document, &mut answer);
    }
    if determining.is_empty() && answer.reasons.is_empty() {
        answer.reasons.push(not_permitted(layer, loaded, document));
    }
    answer
}

/// Adds what a rule that forbids the request means: a reason, or an obligation.
fn forbidden(layer: LayerName, rule: &Rule, document: &Value, answer: &mut Answer) {
    let text = rule.reason().map_or_else(
        || format!("{} forbids it (without saying why)", layer.whose()),
        |reason| reason.trim().trim_end_matches('.').to_owned(),
    );
    if let Some(name) = rule.obligation() {
        let declined = at(document, "context.approvals.declined")
            .and_then(Value::as_array)
            .is_some_and(|list| list.iter().any(|entry| entry == name));
        if !declined {
            answer.obligations.push(Obligation {
                name: name.to_owned(),
                layer,
                policy: rule.name(),
                reason: text,
            });
            return;
        }
        let who = obligation(name).map_or(name, |known| known.who);
        answer.reasons.push(Reason {
            id: rule.name(),
            line: Some(rule.line),
            ..Reason::about_layer(
                layer,
                ReasonKind::Declined,
                format!("{name} was asked for and refused by {who}"),
                "change what they object to and submit a new job",
            )
        });
        return;
    }
    answer.reasons.push(Reason {
        id: rule.name(),
        line: Some(rule.line),
        ..Reason::about_layer(layer, ReasonKind::Forbidden, text, change(rule, document))
    });
}

/// What would have to differ: the author's words, else what the rule looked at.
fn change(rule: &Rule, document: &Value) -> String {
    if let Some(change) = rule.change() {
        return change.trim().trim_end_matches('.').to_owned();
    }
    let looked_at: Vec<String> = rule
        .reads
        .iter()
        .filter_map(|path| {
            let value = shown(at(document, path)?);
            let cut: String = value.chars().take(EXPLAINED_VALUE_MAX).collect();
            let dots = if cut.len() < value.len() { "…" } else { "" };
            Some(format!("{path} is {cut}{dots}"))
        })
        .take(EXPLAINED_MAX)
        .collect();
    if looked_at.is_empty() {
        "nothing in the job could change that".to_owned()
    } else {
        format!("it depends on this: {}", looked_at.join("; "))
    }
}

/// No permit fits: says which come into question.
fn not_permitted(layer: LayerName, loaded: &Loaded, document: &Value) -> Reason {
    let permits: Vec<&Rule> = loaded.rules.iter().filter(|rule| rule.permits).collect();
    let text = format!("no rule of {} permits this", layer.whose());
    let change = match permits.as_slice() {
        [] => format!("{} adds a rule that permits it; there is none at all", layer.keeper()),
        [only] => format!(
            "the one that could is \"{}\"{}; {}",
            only.name(),
            only.reason()
                .map(|reason| format!(" ({})", reason.trim().trim_end_matches('.')))
                .unwrap_or_default(),
            change(only, document)
        ),
        several => {
            let names: Vec<String> = several
                .iter()
                .take(EXPLAINED_MAX)
                .map(|rule| format!("\"{}\"", rule.name()))
                .collect();
            format!("rules that could: {}", names.join(", "))
        }
    };
    Reason::about_layer(layer, ReasonKind::NotPermitted, text, change)
}
