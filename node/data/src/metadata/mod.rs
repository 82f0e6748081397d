//! What may be said about a dataset: title, licence, languages, purposes, sensitivity
//! (specs/dataset.md §6). Never anything of what its rows hold.

mod croissant;
mod language;
mod licence;

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

pub use croissant::{Croissant, CroissantError};
pub use language::LanguageTag;
pub use licence::Licence;

/// The longest title or creator, in bytes.
const TITLE_BYTES_MAX: usize = 200;
/// The longest description, in bytes.
const DESCRIPTION_BYTES_MAX: usize = 4_000;
/// As long as a job's purpose may be.
const PURPOSE_BYTES_MAX: usize = 120;
/// The most languages or purposes.
const LIST_MAX: usize = 64;

/// Why metadata cannot be used. The words say what to do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MetadataError {
    /// A licence that nobody knows.
    #[error("the licence {given:?} is not known")]
    Licence {
        /// As it was given.
        given: String,
        /// What may have been meant.
        hint: String,
    },
    /// Not a language with its script.
    #[error(
        "the language {given:?} is not a language code of ISO 639-3 with a script of ISO 15924"
    )]
    Language {
        /// As it was given.
        given: String,
        /// What may have been meant.
        hint: String,
    },
    /// Not a known degree of sensitivity.
    #[error("the sensitivity {0:?} is not known")]
    Sensitivity(String),
    /// A field that is empty, too long or holds control characters.
    #[error("{field}: {what}")]
    Field {
        /// Which.
        field: &'static str,
        /// What is wrong with it.
        what: String,
    },
}

impl MetadataError {
    /// What to do about it.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Licence { hint, .. } | Self::Language { hint, .. } => Some(hint.clone()),
            Self::Sensitivity(_) => Some(format!("one of {}", Sensitivity::names().join(", "))),
            Self::Field { .. } => None,
        }
    }
}

/// How sensitive a dataset is, as its steward says; policies look at it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Sensitivity {
    /// Published, or could be.
    Open,
    /// Not about people, yet not for everybody: contracts, research before publication.
    Internal,
    /// About people who can be identified.
    Personal,
    /// Health, belief, origin and what else the law protects specially (GDPR art. 9, Swiss FADP art. 5 c).
    Special,
}

impl Sensitivity {
    const ALL: [Self; 4] = [Self::Open, Self::Internal, Self::Personal, Self::Special];

    /// Its name in policies and metadata.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Open => "open",
            Self::Internal => "internal",
            Self::Personal => "personal",
            Self::Special => "special",
        }
    }

    /// All names.
    #[must_use]
    pub fn names() -> Vec<&'static str> {
        Self::ALL.map(Self::as_str).to_vec()
    }

    /// Whether the rows are about people.
    #[must_use]
    pub const fn is_personal(self) -> bool {
        matches!(self, Self::Personal | Self::Special)
    }
}

impl fmt::Display for Sensitivity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl FromStr for Sensitivity {
    type Err = MetadataError;

    fn from_str(name: &str) -> Result<Self, MetadataError> {
        Self::ALL
            .into_iter()
            .find(|known| known.as_str() == name)
            .ok_or_else(|| MetadataError::Sensitivity(name.to_owned()))
    }
}

/// What may be said about a dataset.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Metadata {
    /// What people call it.
    pub title: String,
    /// What it is, in a few sentences.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// The organisation that made it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub creator: Option<String>,
    /// Where it is described.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub url: Option<String>,
    /// Under what licence.
    pub licence: Licence,
    /// In which languages, with their scripts.
    pub languages: Vec<LanguageTag>,
    /// For what its people or owners agreed that it may be used; the words that jobs use.
    pub purposes: Vec<String>,
    /// How sensitive it is.
    pub sensitivity: Sensitivity,
}

impl Metadata {
    /// Checks lengths, characters and that nothing is said twice.
    ///
    /// # Errors
    /// [`MetadataError::Field`] for the first field that does not hold.
    pub fn check(&self) -> Result<(), MetadataError> {
        words("title", &self.title, TITLE_BYTES_MAX)?;
        if let Some(creator) = &self.creator {
            words("creator", creator, TITLE_BYTES_MAX)?;
        }
        if let Some(description) = &self.description {
            // Paragraphs are welcome here.
            let flat = description.replace(['\n', '\t'], " ");
            words("description", &flat, DESCRIPTION_BYTES_MAX)?;
        }
        if self.url.as_ref().is_some_and(|url| !licence::is_url(url)) {
            return field("url", "not an address that begins with https:// or http://");
        }
        if self.languages.is_empty() {
            return field(
                "languages",
                "none given; say at least one, e.g. deu_Latn, or zxx_Zyyy for none",
            );
        }
        if self.purposes.is_empty() {
            return field("purposes", "none given; say at least one, in the words that jobs use");
        }
        for purpose in &self.purposes {
            words("purposes", purpose, PURPOSE_BYTES_MAX)?;
        }
        no_repetition("languages", &self.languages)?;
        no_repetition("purposes", &self.purposes)
    }
}

fn field(field: &'static str, what: impl Into<String>) -> Result<(), MetadataError> {
    Err(MetadataError::Field { field, what: what.into() })
}

/// Checks a text of one line.
fn words(name: &'static str, text: &str, bytes_max: usize) -> Result<(), MetadataError> {
    if text.trim().is_empty() {
        field(name, "empty")
    } else if text.trim().len() != text.len() {
        field(name, "white space at the beginning or the end")
    } else if text.len() > bytes_max {
        field(name, format!("more than {bytes_max} bytes"))
    } else if text.chars().any(char::is_control) {
        field(name, "holds a control character")
    } else {
        Ok(())
    }
}

fn no_repetition<T: Ord>(name: &'static str, list: &[T]) -> Result<(), MetadataError> {
    if list.len() > LIST_MAX {
        return field(name, format!("more than {LIST_MAX}"));
    }
    let different: std::collections::BTreeSet<&T> = list.iter().collect();
    if different.len() == list.len() { Ok(()) } else { field(name, "one is given twice") }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn metadata() -> Metadata {
        Metadata {
            title: "Letters of a village".to_owned(),
            description: Some("Letters, 1850 to 1900.\nTranscribed.".to_owned()),
            creator: Some("Cantonal archive".to_owned()),
            url: Some("https://archive.example/letters".to_owned()),
            licence: "CC-BY-4.0".parse().unwrap(),
            languages: vec!["deu_Latn".parse().unwrap(), "roh_Latn".parse().unwrap()],
            purposes: vec!["research".to_owned()],
            sensitivity: Sensitivity::Personal,
        }
    }

    #[test]
    fn fields_are_checked() {
        metadata().check().unwrap();
        type Change = fn(&mut Metadata);
        let wrong: &[(&str, Change)] = &[
            ("title", |m| m.title.clear()),
            ("title", |m| m.title.push('\n')),
            ("title", |m| m.title = "a\u{7}b".into()),
            ("title", |m| m.title = "a".repeat(TITLE_BYTES_MAX + 1)),
            ("creator", |m| m.creator = Some(String::new())),
            ("description", |m| m.description = Some("a\0".into())),
            ("url", |m| m.url = Some("file:///etc/passwd".into())),
            ("languages", |m| m.languages.clear()),
            ("languages", |m| m.languages.push("deu_Latn".parse().unwrap())),
            ("purposes", |m| m.purposes.clear()),
            ("purposes", |m| m.purposes.push("research".into())),
            ("purposes", |m| m.purposes = (0..65).map(|n| n.to_string()).collect()),
        ];
        for (expected, change) in wrong {
            let mut changed = metadata();
            change(&mut changed);
            match changed.check() {
                Err(MetadataError::Field { field, .. }) => assert_eq!(field, *expected),
                other => panic!("{expected}: {other:?}"),
            }
        }
    }

    #[test]
    fn sensitivities_by_name() {
        for name in Sensitivity::names() {
            assert_eq!(name.parse::<Sensitivity>().unwrap().as_str(), name);
        }
        let error = "secret".parse::<Sensitivity>().unwrap_err();
        assert!(error.hint().unwrap().contains("special"));
    }
}
