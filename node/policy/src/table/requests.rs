//! Named requests for cases to begin with.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use super::TableError;

/// The named requests, as a file that people can read.
pub const REQUESTS_TEXT: &str = include_str!("../../tables/requests.toml");

/// How often one request may build on another.
const LIKE_MAX: usize = 8;

/// All named requests, complete.
pub(super) fn named() -> Result<BTreeMap<String, Value>, TableError> {
    let file: toml::Table = REQUESTS_TEXT
        .parse()
        .map_err(|error: toml::de::Error| TableError::new("requests.toml", error.to_string()))?;
    let names = file.keys().cloned();
    names.map(|name| Ok((name.clone(), resolve(&file, &name, 0)?))).collect()
}

fn resolve(file: &toml::Table, name: &str, depth: usize) -> Result<Value, TableError> {
    let own = file.get(name).and_then(toml::Value::as_table).filter(|_| depth < LIKE_MAX);
    let own = own.ok_or_else(|| TableError::new(name, "no such request"))?;
    let mut document = match own.get("like").and_then(toml::Value::as_str) {
        Some(base) => resolve(file, base, depth + 1)?,
        None => Value::Object(Map::new()),
    };
    for (key, value) in own.iter().filter(|(key, _)| *key != "like" && *key != "about") {
        merge(&mut document, key, value)?;
    }
    Ok(document)
}

/// Puts `value` under `key`, into the record that is there if both are records.
pub(super) fn merge(into: &mut Value, key: &str, value: &toml::Value) -> Result<(), TableError> {
    let Some(record) = into.as_object_mut() else {
        return Err(TableError::new(key, "lies within something that is no record"));
    };
    match value {
        toml::Value::Table(table) => {
            let inner = record.entry(key).or_insert_with(|| Value::Object(Map::new()));
            if !inner.is_object() {
                *inner = Value::Object(Map::new());
            }
            table.iter().try_for_each(|(key, value)| merge(inner, key, value))
        }
        other => {
            let value = serde_json::to_value(other)
                .map_err(|error| TableError::new(key, error.to_string()))?;
            record.insert(key.to_owned(), value);
            Ok(())
        }
    }
}
