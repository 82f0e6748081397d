//! The configuration file: TOML to written values with places, unknown keys refused by name.

use std::ops::Range;
use std::path::Path;

use toml::de::{DeTable, DeValue};

use super::check::{Written, nearest};
use super::error::{Origin, Place, Problem};
use super::settings::{Kind, SETTINGS, Setting};

/// A hand-written file is a few KiB; a larger one is the wrong file.
pub(super) const FILE_BYTES_MAX: u64 = 256 * 1024;
/// Beyond this many problems the person has enough to do.
const PROBLEMS_MAX: usize = 20;

/// What a file says about one setting.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) setting: &'static Setting,
    pub(super) written: Written,
    pub(super) place: Place,
    /// Places of the elements if the value is a list.
    pub(super) elements: Vec<Place>,
}

/// A parsed file.
#[derive(Debug, Default)]
pub(super) struct Parsed {
    pub(super) entries: Vec<Entry>,
    pub(super) policy: toml::Table,
}

/// Parses `text`, which was read from `file`.
pub(super) fn parse(file: &Path, text: &str) -> Result<Parsed, Vec<Problem>> {
    let mut reader = Reader { file, text, entries: Vec::new(), problems: Vec::new() };
    let (document, errors) = DeTable::parse_recoverable(text);
    if errors.is_empty() {
        reader.table("", document.get_ref());
    }
    for error in errors {
        let span = error.span().unwrap_or(0..0);
        let hint = "strings need quotes, lists need [ ], and a key may appear once".to_owned();
        reader.problem(&span, "", error.message().to_owned(), Some(hint));
    }
    if !reader.problems.is_empty() {
        reader.problems.truncate(PROBLEMS_MAX);
        return Err(reader.problems);
    }
    let entries = reader.entries;
    // `policy` is a table here, or `table` would have said so; the second parse cannot fail.
    let policy = match toml::from_str::<toml::Table>(text).map(|mut table| table.remove("policy")) {
        Ok(Some(toml::Value::Table(policy))) => policy,
        _ => toml::Table::new(),
    };
    Ok(Parsed { entries, policy })
}

struct Reader<'a> {
    file: &'a Path,
    text: &'a str,
    entries: Vec<Entry>,
    problems: Vec<Problem>,
}

impl Reader<'_> {
    fn table(&mut self, section: &str, table: &DeTable<'_>) {
        for (name, value) in table {
            let key = match section {
                "" => name.get_ref().to_string(),
                _ => format!("{section}.{}", name.get_ref()),
            };
            let setting = SETTINGS.iter().find(|setting| setting.key == key);
            let is_section = SETTINGS.iter().any(|setting| setting.section().0 == key);
            match (setting, value.get_ref()) {
                (Some(Setting { kind: Kind::Table, .. }), DeValue::Table(_)) => {}
                (Some(setting), written) => self.entries.push(Entry {
                    setting,
                    written: convert(written),
                    place: self.place(&value.span()),
                    elements: match written {
                        DeValue::Array(items) => {
                            items.iter().map(|item| self.place(&item.span())).collect()
                        }
                        _ => Vec::new(),
                    },
                }),
                (None, DeValue::Table(inner)) if is_section => self.table(&key, inner),
                (None, _) if is_section => self.problem(
                    &value.span(),
                    &key,
                    "this is a section, not a value".to_owned(),
                    Some(format!("write [{key}] on a line of its own and its settings below")),
                ),
                (None, _) => {
                    let hint = meant(&key);
                    self.problem(&name.span(), &key, "there is no such setting".to_owned(), hint);
                }
            }
        }
    }

    fn place(&self, span: &Range<usize>) -> Place {
        Place::at(self.file, self.text, span.start)
    }

    fn problem(&mut self, span: &Range<usize>, key: &str, what: String, hint: Option<String>) {
        let origin = Origin::File(self.place(span));
        self.problems.push(Problem { origin, key: key.to_owned(), what, hint });
    }
}

/// A hint for an unknown key: the setting that was probably meant.
pub(super) fn meant(key: &str) -> Option<String> {
    let sections = SETTINGS.iter().map(|setting| setting.section().0).filter(|s| !s.is_empty());
    let name = key.rsplit('.').next().unwrap_or(key);
    // The right name in the wrong section comes before a similar spelling.
    let named = || SETTINGS.iter().filter(|setting| setting.kind != Kind::Table);
    let moved = named().find(|setting| setting.section().1 == name).map(|s| s.key);
    let close = || nearest(key, SETTINGS.iter().map(|setting| setting.key).chain(sections));
    let close_name = || {
        let found = nearest(name, named().map(|setting| setting.section().1))?;
        named().find(|setting| setting.section().1 == found).map(|setting| setting.key)
    };
    moved
        .or_else(close)
        .or_else(close_name)
        .map(|known| format!("did you mean `{known}`?"))
        .or_else(|| Some("docs/config.md lists every setting".to_owned()))
}

fn convert(value: &DeValue<'_>) -> Written {
    match value {
        DeValue::String(text) => Written::Text(text.to_string()),
        DeValue::Integer(number) => {
            Written::Integer(i128::from_str_radix(number.as_str(), number.radix()).ok())
        }
        DeValue::Boolean(on) => Written::Switch(*on),
        DeValue::Array(items) => {
            Written::List(items.iter().map(|item| convert(item.get_ref())).collect())
        }
        DeValue::Table(_) => Written::Table,
        DeValue::Float(_) => Written::Other("a number with a fraction"),
        DeValue::Datetime(_) => Written::Other("a date"),
    }
}
