//! A language with its script, as `deu_Latn`: ISO 639-3, underscore, ISO 15924.
//!
//! Data mixes need the script (Serbian is written in two), and the three-letter code, since most
//! languages have no other. BCP 47's `de-Latn` is read too and becomes the same tag.

use std::fmt;
use std::str::FromStr;

use isolang::Language;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use unicode_script::Script;

use super::MetadataError;

/// A language and the script in which it is written.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LanguageTag([u8; 8]);

/// Codes that ISO 639-3 has for what is not one language: several, undetermined, none.
const SPECIAL: [&str; 3] = ["mul", "und", "zxx"];
/// Scripts of ISO 15924 that are no script of Unicode's: Japanese, Korean, both kinds of Han.
const COMPOUND: [&str; 7] = ["Jpan", "Kore", "Hans", "Hant", "Hanb", "Zyyy", "Zxxx"];

impl LanguageTag {
    /// `deu_Latn`.
    #[must_use]
    pub fn as_str(&self) -> &str {
        // Only ASCII is ever stored.
        std::str::from_utf8(&self.0).unwrap_or("und_Zyyy")
    }

    /// The language's name in English.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match &self.as_str()[..3] {
            "mul" => "several languages",
            "und" => "undetermined",
            "zxx" => "no language",
            code => Language::from_639_3(code).map_or("unknown", |language| language.to_name()),
        }
    }

    fn new(code: &str, script: &str) -> Option<Self> {
        let code = match code.len() {
            2 => Language::from_639_1(code)?.to_639_3(),
            3 if SPECIAL.contains(&code) => code,
            3 => Language::from_639_3(code)?.to_639_3(),
            _ => return None,
        };
        if !COMPOUND.contains(&script) {
            Script::from_short_name(script)?;
        }
        let mut tag = *b"und_Zyyy";
        let (language, rest) = tag.split_at_mut(3);
        language.copy_from_slice(code.as_bytes());
        rest.get_mut(1..)?.copy_from_slice(script.as_bytes().get(..4)?);
        Some(Self(tag))
    }
}

impl FromStr for LanguageTag {
    type Err = MetadataError;

    fn from_str(text: &str) -> Result<Self, MetadataError> {
        let lower = |part: &str| part.bytes().all(|byte| byte.is_ascii_lowercase());
        let title = |part: &str| {
            part.len() == 4 && part.as_bytes()[0].is_ascii_uppercase() && lower(&part[1..])
        };
        text.split_once(['_', '-'])
            .filter(|(code, script)| text.is_ascii() && lower(code) && title(script))
            .and_then(|(code, script)| Self::new(code, script))
            .ok_or_else(|| MetadataError::Language { given: shown(text), hint: hint(text) })
    }
}

/// What may have been meant.
fn hint(text: &str) -> String {
    let general = "write e.g. deu_Latn, fra_Latn, rus_Cyrl, zho_Hans, or zxx_Zyyy for no language";
    let mut parts = text.split(['_', '-']);
    let first = parts.next().unwrap_or_default().to_ascii_lowercase();
    let language = match first.len() {
        2 => Language::from_639_1(&first),
        3 => Language::from_639_3(&first),
        _ => Language::from_name(text),
    };
    match (language, parts.next()) {
        (Some(language), None) => format!(
            "say in which script, e.g. {}_Latn if it is written in Latin letters",
            language.to_639_3()
        ),
        (Some(language), Some(_)) => format!(
            "{} is {}; then an underscore and the script with a capital, e.g. {0}_Latn",
            language.to_639_3(),
            language.to_name()
        ),
        (None, Some(_)) if matches!(first.len(), 2 | 3) => {
            format!("no language has the code {first:?}; {general}")
        }
        _ => general.to_owned(),
    }
}

fn shown(text: &str) -> String {
    text.chars().take(40).collect()
}

impl fmt::Display for LanguageTag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl fmt::Debug for LanguageTag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl Serialize for LanguageTag {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

impl<'de> Deserialize<'de> for LanguageTag {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn tags_are_normalised() {
        for (given, tag) in [
            ("deu_Latn", "deu_Latn"),
            ("de-Latn", "deu_Latn"),
            ("gsw_Latn", "gsw_Latn"),
            ("roh_Latn", "roh_Latn"),
            ("srp-Cyrl", "srp_Cyrl"),
            ("zho_Hans", "zho_Hans"),
            ("jpn_Jpan", "jpn_Jpan"),
            ("zxx_Zyyy", "zxx_Zyyy"),
        ] {
            assert_eq!(given.parse::<LanguageTag>().unwrap().as_str(), tag);
        }
        assert_eq!("de-Latn".parse::<LanguageTag>().unwrap().name(), "German");
    }

    #[test]
    fn others_are_refused_with_a_hint() {
        for (given, hinted) in [
            ("de", "deu_Latn"),
            ("deu", "deu_Latn"),
            ("German", "deu_Latn"),
            ("de-CH", "deu is German"),
            ("deu_latn", "deu is German"),
            ("DEU_Latn", "deu is German"),
            ("xxx_Latn", "no language has the code"),
            ("deu_Xxxx", "deu is German"),
            ("deu_Latn_CH", "deu is German"),
            ("", "deu_Latn"),
            ("dé_Latn", "deu_Latn"),
        ] {
            let error = given.parse::<LanguageTag>().unwrap_err();
            assert!(error.hint().unwrap().contains(hinted), "{given}: {:?}", error.hint());
        }
    }

    proptest! {
        #[test]
        fn no_text_panics(text: String) {
            if let Ok(tag) = text.parse::<LanguageTag>() {
                prop_assert_eq!(tag.as_str().parse::<LanguageTag>(), Ok(tag));
            }
        }
    }
}
