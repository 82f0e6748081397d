//! Metadata as MLCommons Croissant 1.1 with the vocabulary of its RAI extension 1.0: JSON-LD that
//! other catalogues read (specs/dataset.md §6).
//!
//! Written from what the registry knows, read back into [`Metadata`]. The rows themselves cannot be
//! fetched: the file object names them by digest, so that whoever reads it knows what a job would
//! be trained on.

use allmend_protocol::ids::Digest;
use allmend_protocol::time::Timestamp;
use serde_json::{Map, Value, json};

use super::{LanguageTag, Metadata, MetadataError, Sensitivity};
use crate::row::Kind;
use crate::version::Counts;

/// The largest description read.
const BYTES_MAX: usize = 1 << 20;
const CONFORMS_TO: &str = "http://mlcommons.org/croissant/1.1";
const CONFORMS_TO_RAI: &str = "http://mlcommons.org/croissant/RAI/1.0";
/// Versions whose terms are read here in the same way.
const READABLE: [&str; 2] = [CONFORMS_TO, "http://mlcommons.org/croissant/1.0"];
/// Marks a sensitivity of ours among the texts about sensitive attributes.
const SENSITIVITY: &str = "sensitivity: ";

/// A version of a dataset, for its description in Croissant.
#[derive(Clone, Copy, Debug)]
pub struct Croissant<'a> {
    /// The dataset's name in the registry.
    pub name: &'a str,
    /// What may be said about it.
    pub metadata: &'a Metadata,
    /// The version's digest.
    pub version: Digest,
    /// Which version it is, counted from 1.
    pub ordinal: u64,
    /// What is in it.
    pub counts: Counts,
    /// Size of its file of rows.
    pub rows_bytes: u64,
    /// SHA-256 of that file.
    pub rows_sha256: Digest,
    /// When the version was made.
    pub made: Timestamp,
}

/// Why a description cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CroissantError {
    /// Not JSON, or too much of it.
    #[error("not JSON of at most {BYTES_MAX} bytes")]
    NotJson,
    /// JSON that is no Croissant description of a dataset.
    #[error("no Croissant description: {0}")]
    NotCroissant(String),
    /// A property that is missing or of another type.
    #[error("the property {name:?} {what}")]
    Property {
        /// Its name.
        name: &'static str,
        /// What is wrong with it.
        what: &'static str,
    },
    /// A value that cannot be used.
    #[error(transparent)]
    Metadata(#[from] MetadataError),
}

impl Croissant<'_> {
    /// The description as JSON-LD.
    #[must_use]
    pub fn to_json(&self) -> Value {
        let Self { metadata, counts, .. } = self;
        let mut dataset = Map::new();
        let mut put = |name: &str, value: Value| dataset.insert(name.to_owned(), value);
        put("@context", context());
        put("@type", json!("sc:Dataset"));
        put("conformsTo", json!([CONFORMS_TO, CONFORMS_TO_RAI]));
        put("name", json!(metadata.title));
        put("alternateName", json!(self.name));
        put("identifier", json!(format!("sha256:{}", self.version)));
        if let Some(description) = &metadata.description {
            put("description", json!(description));
        }
        put("license", json!(metadata.licence.url()));
        put("url", json!(metadata.url.clone().unwrap_or_else(|| urn("dataset", &self.version))));
        if let Some(creator) = &metadata.creator {
            put("creator", json!({ "@type": "sc:Organization", "name": creator }));
        }
        put("datePublished", json!(self.made.to_string()));
        // Forgetting and adding change which rows there are, so every version is a major one.
        put("version", json!(format!("{}.0.0", self.ordinal)));
        put("inLanguage", json!(metadata.languages));
        put("rai:dataUseCases", json!(metadata.purposes));
        put(
            "rai:personalSensitiveInformation",
            json!([format!("{SENSITIVITY}{}", metadata.sensitivity)]),
        );
        put("allmend:rows", json!(counts.rows()));
        put("allmend:subjects", json!(counts.subjects));
        put("distribution", json!([self.file()]));
        let sets: Vec<Value> = counts.kinds().into_iter().map(record_set).collect();
        put("recordSet", json!(sets));
        Value::Object(dataset)
    }

    fn file(&self) -> Value {
        json!({
            "@type": "cr:FileObject",
            "@id": "rows",
            "name": "rows",
            "description": "Not for download: jobs travel to the node that keeps it.",
            "contentUrl": urn("rows", &self.version),
            "contentSize": format!("{} B", self.rows_bytes),
            "encodingFormat": "application/octet-stream",
            "sha256": self.rows_sha256.to_string(),
        })
    }
}

fn urn(what: &str, digest: &Digest) -> String {
    format!("urn:allmend:{what}:{digest}")
}

fn record_set(kind: Kind) -> Value {
    let (id, says, fields): (&str, &str, Vec<Value>) = match kind {
        Kind::Chat => {
            let role = field("chat/messages/role", "role", "$.content.chat.messages[*].role");
            let said =
                field("chat/messages/content", "content", "$.content.chat.messages[*].content");
            let messages = json!({
                "@type": "cr:Field",
                "@id": "chat/messages",
                "name": "messages",
                "dataType": "sc:Text",
                "isArray": true,
                "subField": [role, said],
            });
            ("chat", "Conversations.", vec![messages])
        }
        Kind::Completion => (
            "completion",
            "Prompts, each with what follows it.",
            vec![
                field("completion/prompt", "prompt", "$.content.completion.prompt"),
                field("completion/completion", "completion", "$.content.completion.completion"),
            ],
        ),
        Kind::Text => {
            ("text", "Plain texts.", vec![field("text/text", "text", "$.content.text.text")])
        }
    };
    json!({ "@type": "cr:RecordSet", "@id": id, "name": id, "description": says, "field": fields })
}

fn field(id: &str, name: &str, path: &str) -> Value {
    json!({
        "@type": "cr:Field",
        "@id": id,
        "name": name,
        "dataType": "sc:Text",
        "source": { "fileObject": { "@id": "rows" }, "extract": { "jsonPath": path } },
    })
}

/// The context that Croissant 1.1 recommends (its appendix 1), with the terms of its RAI extension
/// and two of ours.
fn context() -> Value {
    let mut context = json!({
        "@language": "en",
        "@vocab": "https://schema.org/",
        "allmend": "urn:allmend:terms:",
        "data": { "@id": "cr:data", "@type": "@json" },
        "dataType": { "@id": "cr:dataType", "@type": "@vocab" },
        "dct": "http://purl.org/dc/terms/",
        "conformsTo": "dct:conformsTo",
        "cr": "http://mlcommons.org/croissant/",
        "examples": { "@id": "cr:examples", "@type": "@json" },
        "rai": "http://mlcommons.org/croissant/RAI/",
        "sc": "https://schema.org/",
        "name": { "@container": "@language" },
        "description": { "@container": "@language" },
    });
    let terms = [
        "arrayShape",
        "citeAs",
        "column",
        "containedIn",
        "equivalentProperty",
        "extract",
        "field",
        "fileObject",
        "fileProperty",
        "fileSet",
        "format",
        "includes",
        "isArray",
        "isLiveDataset",
        "jsonPath",
        "key",
        "md5",
        "parentField",
        "path",
        "recordSet",
        "references",
        "regex",
        "repeated",
        "replace",
        "samplingRate",
        "separator",
        "source",
        "subField",
        "transform",
    ];
    for term in terms {
        context[term] = json!(format!("cr:{term}"));
    }
    context
}

impl Metadata {
    /// Reads what a Croissant description says about a dataset, ours or somebody else's.
    ///
    /// Properties are looked for under their usual short names; JSON-LD that renames them in its
    /// context is refused rather than half understood.
    ///
    /// # Errors
    /// [`CroissantError`], with the name of the property that is missing or cannot be used.
    pub fn from_croissant(bytes: &[u8]) -> Result<Metadata, CroissantError> {
        if bytes.len() > BYTES_MAX {
            return Err(CroissantError::NotJson);
        }
        let value: Value = serde_json::from_slice(bytes).map_err(|_| CroissantError::NotJson)?;
        let dataset = value.as_object().ok_or_else(|| wrong("not an object"))?;
        let is_dataset = matches!(
            dataset.get("@type").and_then(Value::as_str),
            Some("sc:Dataset" | "Dataset" | "schema.org/Dataset" | "https://schema.org/Dataset")
        );
        if !is_dataset {
            return Err(wrong("\"@type\" is not sc:Dataset"));
        }
        let conforms =
            texts(dataset, "conformsTo").or_else(|_| texts(dataset, "dct:conformsTo"))?;
        if !conforms.iter().any(|version| READABLE.contains(version)) {
            return Err(wrong("\"conformsTo\" names neither Croissant 1.0 nor 1.1"));
        }
        let metadata = Metadata {
            title: one(dataset, "name")?.to_owned(),
            description: optional(dataset, "description")?,
            creator: creator(dataset)?,
            // An address made from a digest is of one version only.
            url: optional(dataset, "url")?.filter(|url| !url.starts_with("urn:allmend:")),
            licence: one(dataset, "license")?.parse()?,
            languages: texts(dataset, "inLanguage")?
                .into_iter()
                .map(str::parse)
                .collect::<Result<Vec<LanguageTag>, MetadataError>>()?,
            purposes: texts(dataset, "rai:dataUseCases")?.into_iter().map(str::to_owned).collect(),
            sensitivity: sensitivity(dataset)?,
        };
        metadata.check()?;
        Ok(metadata)
    }
}

fn wrong(what: &str) -> CroissantError {
    CroissantError::NotCroissant(what.to_owned())
}

/// The texts of a property that has one or several.
fn texts<'a>(
    dataset: &'a Map<String, Value>,
    name: &'static str,
) -> Result<Vec<&'a str>, CroissantError> {
    let property = |what| CroissantError::Property { name, what };
    match dataset.get(name) {
        None => Err(property("is missing")),
        Some(Value::String(text)) => Ok(vec![text]),
        Some(Value::Array(list)) => list
            .iter()
            .map(|text| text.as_str().ok_or_else(|| property("holds something else than text")))
            .collect(),
        Some(_) => Err(property("is neither text nor a list of texts")),
    }
}

fn one<'a>(dataset: &'a Map<String, Value>, name: &'static str) -> Result<&'a str, CroissantError> {
    match texts(dataset, name)?.as_slice() {
        [text] => Ok(text),
        _ => Err(CroissantError::Property { name, what: "has to have one value" }),
    }
}

fn optional(
    dataset: &Map<String, Value>,
    name: &'static str,
) -> Result<Option<String>, CroissantError> {
    if dataset.contains_key(name) {
        one(dataset, name).map(|text| Some(text.to_owned()))
    } else {
        Ok(None)
    }
}

fn creator(dataset: &Map<String, Value>) -> Result<Option<String>, CroissantError> {
    let name = "creator";
    let creator = match dataset.get(name) {
        None => return Ok(None),
        Some(Value::Array(list)) => list.first(),
        Some(one) => Some(one),
    };
    // A person's name has no place in what is advertised.
    let organisation = creator.filter(|creator| {
        creator["@type"].as_str().is_some_and(|kind| kind.ends_with("Organization"))
    });
    Ok(organisation.and_then(|creator| creator["name"].as_str()).map(str::to_owned))
}

fn sensitivity(dataset: &Map<String, Value>) -> Result<Sensitivity, CroissantError> {
    let name = "rai:personalSensitiveInformation";
    texts(dataset, name)?
        .into_iter()
        .find_map(|text| text.strip_prefix(SENSITIVITY))
        .ok_or(CroissantError::Property {
            name,
            what: "does not say \"sensitivity: open\", \"internal\", \"personal\" or \"special\"",
        })
        .and_then(|degree| Ok(degree.parse()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metadata::tests::metadata;
    use proptest::prelude::*;

    fn written(metadata: &Metadata) -> Value {
        Croissant {
            name: "letters",
            metadata,
            version: Digest::from_bytes([0xab; 32]),
            ordinal: 2,
            counts: Counts { chat: 1, completion: 2, text: 3, subjects: 4, unattributed: 0 },
            rows_bytes: 1_234,
            rows_sha256: Digest::from_bytes([0xcd; 32]),
            made: Timestamp::from_ms(1_795_422_000_000),
        }
        .to_json()
    }

    fn read(value: &Value) -> Result<Metadata, CroissantError> {
        Metadata::from_croissant(&serde_json::to_vec(value).unwrap())
    }

    #[test]
    fn what_is_written_is_read_back() {
        let full = metadata();
        assert_eq!(read(&written(&full)).unwrap(), full);
        let sparse = Metadata { description: None, creator: None, url: None, ..full };
        assert_eq!(read(&written(&sparse)).unwrap(), sparse);
    }

    #[test]
    fn others_are_refused_by_property() {
        let good = written(&metadata());
        let cases: &[(&str, Value, &str)] = &[
            ("@type", json!("sc:Book"), "sc:Dataset"),
            ("conformsTo", json!("http://mlcommons.org/croissant/0.8"), "conformsTo"),
            ("name", json!({"en": "x"}), "\"name\" is neither"),
            ("name", json!(["a", "b"]), "one value"),
            ("license", json!("my own"), "licence"),
            ("inLanguage", json!(["deu_Latn", "de"]), "language"),
            ("inLanguage", json!([1]), "something else than text"),
            ("rai:personalSensitiveInformation", json!(["Gender"]), "does not say"),
            ("rai:personalSensitiveInformation", json!(["sensitivity: some"]), "not known"),
            ("url", json!("javascript:x"), "url"),
        ];
        for (name, value, expected) in cases {
            let mut changed = good.clone();
            changed[*name] = value.clone();
            let error = read(&changed).unwrap_err().to_string();
            assert!(error.contains(expected), "{name}: {error}");
        }
        for name in ["name", "license", "inLanguage", "rai:dataUseCases"] {
            let mut changed = good.clone();
            changed.as_object_mut().unwrap().remove(name);
            assert!(read(&changed).unwrap_err().to_string().contains("is missing"), "{name}");
        }
        assert_eq!(Metadata::from_croissant(b"{"), Err(CroissantError::NotJson));
    }

    #[test]
    fn a_person_is_no_creator() {
        let mut value = written(&metadata());
        value["creator"] = json!([{ "@type": "sc:Person", "name": "A" }]);
        assert_eq!(read(&value).unwrap().creator, None);
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes: Vec<u8>) {
            let _ = Metadata::from_croissant(&bytes);
        }
    }
}
