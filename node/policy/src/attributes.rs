//! What a request consists of: every attribute with its kind and meaning (specs/policy.md §2), and the check that a
//! request has all of them and nothing else.
//!
//! Cedar would refuse such a request as well. The check here comes first because it names every attribute that is
//! wrong, not only the first, and says what it is for.

use serde_json::{Value, json};

use crate::decision::{Reason, ReasonKind};

/// The longest text of one attribute, in bytes: a digest has 64, and names are short.
pub(crate) const TEXT_BYTES_MAX: usize = 256;
/// The most entries of one set.
pub(crate) const SET_LEN_MAX: usize = 256;
/// The most complaints about one request: they are for people.
const COMPLAINTS_MAX: usize = 16;

/// What sort of value an attribute has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// True or false.
    Bool,
    /// A whole number of 64 bits.
    Long,
    /// A text.
    Text,
    /// Texts without order or repetition.
    Texts,
    /// A word of a closed vocabulary: the name of Cedar's entity type, and the words.
    Word(&'static str, &'static [&'static str]),
}

/// One attribute of a request.
#[derive(Clone, Copy, Debug)]
pub struct Attribute {
    /// As a policy writes it, e.g. `context.model.licence`.
    pub path: &'static str,
    /// Its kind.
    pub kind: Kind,
    /// What it means, in words.
    pub meaning: &'static str,
}

const fn attribute(path: &'static str, kind: Kind, meaning: &'static str) -> Attribute {
    Attribute { path, kind, meaning }
}

/// Every attribute, in the order in which people are shown them. Same content as the schema (a test holds it).
pub const ATTRIBUTES: [Attribute; 38] = [
    attribute("principal.key", Kind::Text, "the requester's pseudonymous key"),
    attribute("principal.institution", Kind::Text, "the requester's institution"),
    attribute("principal.jurisdiction", Kind::Text, "the law that institution lives under"),
    attribute(
        "principal.credentials",
        Kind::Texts,
        "what the requester's certificate says of them",
    ),
    attribute("resource.digest", Kind::Text, "the dataset version"),
    attribute("resource.licence", Kind::Text, "the dataset's licence"),
    attribute(
        "resource.sensitivity",
        Kind::Word("Sensitivity", &["open", "internal", "personal", "special"]),
        "how sensitive the dataset is",
    ),
    attribute("resource.consent_purposes", Kind::Texts, "what the dataset may be used for"),
    attribute("resource.languages", Kind::Texts, "the dataset's languages"),
    attribute("resource.rows", Kind::Long, "the dataset's rows"),
    attribute(
        "resource.subjects",
        Kind::Long,
        "how many different people or subjects the dataset is about",
    ),
    attribute("resource.withdrawn", Kind::Bool, "whether the dataset has been taken back"),
    attribute("context.purpose", Kind::Text, "what the work is for"),
    attribute("context.project", Kind::Text, "the project"),
    attribute(
        "context.stage",
        Kind::Word("Stage", &["run", "release"]),
        "whether this is about a run or about letting its output go",
    ),
    attribute("context.model.digest", Kind::Text, "the model"),
    attribute("context.model.licence", Kind::Text, "the model's licence"),
    attribute("context.adapter", Kind::Text, "the adapter that would be used"),
    attribute("context.node.key", Kind::Text, "the node that would compute"),
    attribute("context.node.institution", Kind::Text, "that node's institution"),
    attribute("context.node.jurisdiction", Kind::Text, "where that node stands"),
    attribute(
        "context.result.kind",
        Kind::Word("Output", &["adapter", "evaluation", "text"]),
        "what comes out",
    ),
    attribute("context.result.jurisdiction", Kind::Text, "where the result goes"),
    attribute("context.egress", Kind::Bool, "whether anything but the result could get out"),
    attribute("context.room.name", Kind::Text, "the room in which it would run"),
    attribute(
        "context.room.strength",
        Kind::Long,
        "how strong that room is: 0 process, 1 confined, 2 sealed",
    ),
    attribute("context.approvals.given", Kind::Texts, "approvals that hold now"),
    attribute("context.approvals.declined", Kind::Texts, "approvals that were refused"),
    attribute("context.approvals.by", Kind::Texts, "who gave them"),
    attribute("context.approvals.documents", Kind::Texts, "documents they name"),
    attribute("context.privacy.dp", Kind::Bool, "whether the job is differentially private"),
    attribute("context.privacy.epsilon_milli", Kind::Long, "thousandths of epsilon of this job"),
    attribute(
        "context.privacy.epsilon_after_milli",
        Kind::Long,
        "thousandths of epsilon of everything, after this job",
    ),
    attribute("context.privacy.delta_exponent", Kind::Long, "delta, as a power of ten"),
    attribute("context.rows", Kind::Long, "rows that the job would read"),
    attribute("context.runs", Kind::Long, "runs that the requester has had on this dataset"),
    attribute("context.time.epoch_seconds", Kind::Long, "when, in seconds"),
    attribute("context.time.hour_utc", Kind::Long, "the hour of the day in UTC"),
];

/// The value at a dotted path.
pub(crate) fn at<'a>(document: &'a Value, path: &str) -> Option<&'a Value> {
    path.split('.').try_fold(document, |value, part| value.as_object()?.get(part))
}

/// Every way in which `document` is not a complete request.
pub(crate) fn complaints(document: &Value) -> Vec<Reason> {
    let mut complaints = Vec::new();
    for attribute in &ATTRIBUTES {
        let problem = match at(document, attribute.path) {
            None => Some((ReasonKind::MissingAttribute, "is not known".to_owned())),
            Some(value) => {
                mismatch(value, attribute.kind).map(|what| (ReasonKind::TypeMismatch, what))
            }
        };
        if let Some((kind, what)) = problem {
            complaints.push(Reason::about_request(
                kind,
                format!("{} ({}) {what}", attribute.path, attribute.meaning),
                "the node that asks must state it; without it nothing is decided in the job's favour",
            ));
        }
    }
    unknown(document, "", &mut complaints);
    complaints.truncate(COMPLAINTS_MAX);
    complaints
}

fn mismatch(value: &Value, kind: Kind) -> Option<String> {
    let short = |text: &str| text.len() <= TEXT_BYTES_MAX && !text.chars().any(char::is_control);
    let fits = match kind {
        Kind::Bool => value.is_boolean(),
        Kind::Long => value.as_i64().is_some(),
        Kind::Text => value.as_str().is_some_and(short),
        Kind::Texts => value.as_array().is_some_and(|list| {
            list.len() <= SET_LEN_MAX && list.iter().all(|entry| entry.as_str().is_some_and(short))
        }),
        Kind::Word(_, words) => value.as_str().is_some_and(|word| words.contains(&word)),
    };
    (!fits).then(|| match kind {
        Kind::Bool => "must be true or false".to_owned(),
        Kind::Long => "must be a whole number".to_owned(),
        Kind::Text => format!("must be a text of at most {TEXT_BYTES_MAX} bytes in one line"),
        Kind::Texts => format!("must be a list of at most {SET_LEN_MAX} short texts"),
        Kind::Word(_, words) => format!("must be one of {}", words.join(", ")),
    })
}

/// Adds a complaint for each value that no attribute stands for.
fn unknown(value: &Value, path: &str, complaints: &mut Vec<Reason>) {
    let Some(object) = value.as_object() else { return };
    for (key, inner) in object {
        if complaints.len() >= COMPLAINTS_MAX {
            return;
        }
        let here = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
        if here == "action" || ATTRIBUTES.iter().any(|attribute| attribute.path == here) {
            continue;
        }
        let prefix = format!("{here}.");
        if inner.is_object() && ATTRIBUTES.iter().any(|known| known.path.starts_with(&prefix)) {
            unknown(inner, &here, complaints);
            continue;
        }
        let shown: String = here.chars().filter(|c| !c.is_control()).take(80).collect();
        let meant = crate::vocabulary::closest(&here, ATTRIBUTES.iter().map(|known| known.path));
        let change = meant
            .map_or_else(|| "leave it out".to_owned(), |meant| format!("did you mean {meant}?"));
        complaints.push(Reason::about_request(
            ReasonKind::UnknownAttribute,
            format!("{shown} is no attribute of a request"),
            change,
        ));
    }
}

/// `document` as Cedar reads it: words of closed vocabularies become references to entities. Call it on a
/// document without [`complaints`].
pub(crate) fn for_cedar(document: &Value) -> Value {
    let mut document = document.clone();
    for attribute in &ATTRIBUTES {
        let Kind::Word(entity_type, _) = attribute.kind else { continue };
        let place = attribute
            .path
            .split('.')
            .try_fold(&mut document, |value, part| value.as_object_mut()?.get_mut(part));
        if let Some(place) = place {
            *place = json!({ "__entity": { "type": entity_type, "id": place.take() } });
        }
    }
    document
}

/// One attribute's value in a line, as people and `show --json` see it.
pub(crate) fn shown(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Number(number) if number.as_i64() == Some(i64::MAX) => "no bound".to_owned(),
        Value::Array(list) => {
            let texts: Vec<&str> = list.iter().filter_map(Value::as_str).collect();
            if texts.is_empty() { "none".to_owned() } else { texts.join(", ") }
        }
        other => other.to_string(),
    }
}
