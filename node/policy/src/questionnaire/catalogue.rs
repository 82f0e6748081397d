//! Sentences of the questionnaire in several languages, by message id.

use std::collections::BTreeMap;

/// Languages that are there, with their catalogues.
pub const LANGUAGES: [(&str, &str); 2] = [
    ("en", include_str!("../../messages/en.toml")),
    ("de", include_str!("../../messages/de.toml")),
];

/// One language's sentences.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Catalogue {
    messages: BTreeMap<String, String>,
}

impl Catalogue {
    /// A language that comes with Allmend, by its two letters.
    pub fn built_in(language: &str) -> Option<Catalogue> {
        let (_, text) = LANGUAGES.iter().find(|(name, _)| *name == language)?;
        Catalogue::parse(text).ok()
    }

    /// Reads a catalogue: tables of texts; ids are the dotted paths to them.
    ///
    /// # Errors
    /// In words, where the text is not understood.
    pub fn parse(text: &str) -> Result<Catalogue, String> {
        let table: toml::Table =
            text.parse().map_err(|error: toml::de::Error| error.to_string())?;
        let mut messages = BTreeMap::new();
        flatten("", &table, &mut messages)?;
        Ok(Catalogue { messages })
    }

    /// The sentence; the id itself where a translation lacks it, so that nothing is ever hidden.
    pub fn text<'a>(&'a self, id: &'a str) -> &'a str {
        self.messages.get(id).map_or(id, String::as_str)
    }

    /// The sentence with `{name}` replaced.
    pub(crate) fn filled(&self, id: &str, values: &[(&str, &str)]) -> String {
        values.iter().fold(self.text(id).to_owned(), |text, (name, value)| {
            text.replace(&format!("{{{name}}}"), value)
        })
    }
}

fn flatten(
    prefix: &str,
    table: &toml::Table,
    messages: &mut BTreeMap<String, String>,
) -> Result<(), String> {
    for (key, value) in table {
        let id = if prefix.is_empty() { key.clone() } else { format!("{prefix}.{key}") };
        match value {
            toml::Value::String(text) => {
                messages.insert(id, text.clone());
            }
            toml::Value::Table(inner) => flatten(&id, inner, messages)?,
            _ => return Err(format!("{id}: expected a text")),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn placeholders(text: &str) -> Vec<&str> {
        let mut names: Vec<&str> =
            text.split('{').skip(1).filter_map(|rest| rest.split('}').next()).collect();
        names.sort_unstable();
        names
    }

    #[test]
    fn every_language_says_everything_with_the_same_gaps() {
        let english = Catalogue::built_in("en").expect("English");
        for (language, _) in LANGUAGES {
            let other = Catalogue::built_in(language).expect(language);
            assert_eq!(
                other.messages.keys().collect::<Vec<_>>(),
                english.messages.keys().collect::<Vec<_>>(),
                "{language}"
            );
            for (id, text) in &other.messages {
                assert!(!text.trim().is_empty(), "{language} {id}");
                assert_eq!(placeholders(text), placeholders(english.text(id)), "{language} {id}");
            }
        }
        assert_ne!(english, Catalogue::built_in("de").expect("German"));
    }
}
