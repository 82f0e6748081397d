//! Typed, range-checked access to the keys of a JSON object that remembers which keys were asked for.

use std::cell::RefCell;
use std::collections::BTreeSet;

use serde_json::{Map, Value};

use crate::error::EngineError;

type Result<T> = std::result::Result<T, EngineError>;

/// An object of `config.json`. A key that is `null` counts as absent, as it does for transformers.
pub(crate) struct Keys<'a> {
    /// Where in the file the object is, as a prefix for messages.
    path: String,
    map: &'a Map<String, Value>,
    asked: RefCell<BTreeSet<String>>,
}

impl<'a> Keys<'a> {
    pub(crate) fn new(path: impl Into<String>, map: &'a Map<String, Value>) -> Self {
        Self { path: path.into(), map, asked: RefCell::default() }
    }

    pub(crate) fn value(&self, key: &str) -> Option<&'a Value> {
        self.asked.borrow_mut().insert(key.to_owned());
        self.map.get(key).filter(|value| !value.is_null())
    }

    /// The key is there and is `null`.
    pub(crate) fn is_null(&self, key: &str) -> bool {
        self.map.get(key).is_some_and(Value::is_null)
    }

    pub(crate) fn string(&self, key: &str) -> Result<Option<&'a str>> {
        self.typed(key, "a string", Value::as_str)
    }

    pub(crate) fn bool_or(&self, key: &str, default: bool) -> Result<bool> {
        Ok(self.typed(key, "true or false", Value::as_bool)?.unwrap_or(default))
    }

    pub(crate) fn object(&self, key: &str) -> Result<Option<Keys<'a>>> {
        let map = self.typed(key, "an object", Value::as_object)?;
        Ok(map.map(|map| Keys::new(format!("{}{key}.", self.path), map)))
    }

    pub(crate) fn array(&self, key: &str) -> Result<Option<&'a Vec<Value>>> {
        self.typed(key, "an array", Value::as_array)
    }

    /// A finite number in a range.
    pub(crate) fn number(
        &self,
        key: &str,
        range: std::ops::RangeInclusive<f64>,
    ) -> Result<Option<f64>> {
        match self.typed(key, "a number", Value::as_f64)? {
            Some(number) if !range.contains(&number) => {
                let (low, high) = (range.start(), range.end());
                Err(self.wrong(key, format!("{number} is not in {low}..={high}")))
            }
            other => Ok(other),
        }
    }

    /// A whole number in `1..=max`, where it is there.
    pub(crate) fn size(&self, key: &str, max: u32) -> Result<Option<usize>> {
        // Some writers have 16.0 for 16.
        let whole = |value: &Value| {
            value.as_u64().or_else(|| {
                let number = value.as_f64()?;
                (number >= 0.0 && number.fract() == 0.0 && number < 9e15).then_some(number as u64)
            })
        };
        match self.typed(key, "a whole number", whole)? {
            None => Ok(None),
            Some(number) if (1..=u64::from(max)).contains(&number) => Ok(Some(number as usize)),
            Some(number) => Err(self.wrong(key, format!("{number} is not in 1..={max}"))),
        }
    }

    /// A size that must be there.
    pub(crate) fn required(&self, key: &str, max: u32) -> Result<usize> {
        self.size(key, max)?.ok_or_else(|| self.wrong(key, "is missing"))
    }

    /// Refuses the model unless the key is absent or has the one value that is supported.
    pub(crate) fn only(&self, key: &str, supported: Value, reason: &'static str) -> Result<()> {
        match self.value(key) {
            Some(value) if *value != supported => Err(self.unsupported(key, reason)),
            _ => Ok(()),
        }
    }

    /// Refuses the first key, in the file's order, that nobody asked for and that is not known to leave the
    /// arithmetic alone.
    pub(crate) fn finish(&self, irrelevant: &[&str]) -> Result<()> {
        let asked = self.asked.borrow();
        let unknown = self.map.iter().find(|(key, value)| {
            !value.is_null() && !asked.contains(*key) && !irrelevant.contains(&key.as_str())
        });
        match unknown {
            None => Ok(()),
            Some((key, _)) => {
                Err(self.unsupported(key, "this build does not know what the key changes"))
            }
        }
    }

    pub(crate) fn wrong(&self, key: &str, problem: impl Into<String>) -> EngineError {
        EngineError::metadata(self.name(key), problem)
    }

    pub(crate) fn unsupported(&self, key: &str, reason: &'static str) -> EngineError {
        let value = self.map.get(key).map(Value::to_string).unwrap_or_default();
        EngineError::UnsupportedFeature {
            key: self.name(key),
            value: value.chars().take(64).collect(),
            reason,
        }
    }

    fn name(&self, key: &str) -> String {
        // A hostile key may be as long as the file.
        format!("{}{}", self.path, key.chars().take(64).collect::<String>())
    }

    fn typed<T>(
        &self,
        key: &str,
        wanted: &str,
        read: impl Fn(&'a Value) -> Option<T>,
    ) -> Result<Option<T>> {
        match self.value(key) {
            None => Ok(None),
            Some(value) => match read(value) {
                Some(read) => Ok(Some(read)),
                None => {
                    let value: String = value.to_string().chars().take(64).collect();
                    Err(self.wrong(key, format!("should be {wanted} but is {value}")))
                }
            },
        }
    }
}
