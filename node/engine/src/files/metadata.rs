//! Typed, range-checked access to GGUF metadata, with errors that name the key.

use crate::error::EngineError;
use crate::files::gguf::{Array, Gguf, Value};

type Result<T> = std::result::Result<T, EngineError>;

impl<'a> Gguf<'a> {
    pub(crate) fn string(&self, key: &str) -> Result<Option<&'a str>> {
        match self.metadata.get(key) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(other) => Err(wrong_type(key, "a string", other)),
        }
    }

    pub(crate) fn bool(&self, key: &str) -> Result<Option<bool>> {
        match self.metadata.get(key) {
            None => Ok(None),
            Some(Value::Bool(value)) => Ok(Some(*value)),
            Some(other) => Err(wrong_type(key, "a boolean", other)),
        }
    }

    pub(crate) fn array(&self, key: &str) -> Result<Option<Array<'a>>> {
        match self.metadata.get(key) {
            None => Ok(None),
            Some(Value::Array(array)) => Ok(Some(*array)),
            Some(other) => Err(wrong_type(key, "an array", other)),
        }
    }

    /// An unsigned number of any width; writers disagree about widths and signs.
    pub(crate) fn u32(&self, key: &str) -> Result<Option<u32>> {
        let value = match self.metadata.get(key) {
            None => return Ok(None),
            Some(Value::Unsigned(value)) => u32::try_from(*value).ok(),
            Some(Value::Signed(value)) => u32::try_from(*value).ok(),
            Some(other) => return Err(wrong_type(key, "a number", other)),
        };
        match value {
            Some(value) => Ok(Some(value)),
            None => Err(EngineError::metadata(key, "is negative or does not fit 32 bits")),
        }
    }

    /// A finite number.
    pub(crate) fn f64(&self, key: &str) -> Result<Option<f64>> {
        match self.metadata.get(key) {
            None => Ok(None),
            Some(Value::Float(value)) if value.is_finite() => Ok(Some(*value)),
            Some(Value::Unsigned(value)) => Ok(Some(*value as f64)),
            Some(other) => Err(wrong_type(key, "a finite number", other)),
        }
    }

    /// A number that must be there and lie in `1..=max`.
    pub(crate) fn size(&self, key: &str, max: u32) -> Result<usize> {
        match self.u32(key)? {
            None => Err(missing(key)),
            Some(value) if (1..=max).contains(&value) => Ok(value as usize),
            Some(value) => Err(EngineError::metadata(key, format!("{value} is not in 1..={max}"))),
        }
    }
}

pub(crate) fn missing(key: &str) -> EngineError {
    EngineError::metadata(key, "is missing")
}

fn wrong_type(key: &str, wanted: &str, found: &Value<'_>) -> EngineError {
    let found = match found {
        Value::Unsigned(_) | Value::Signed(_) => "an integer".to_owned(),
        Value::Float(value) => format!("the number {value}"),
        Value::Bool(_) => "a boolean".to_owned(),
        Value::String(_) => "a string".to_owned(),
        Value::Array(array) => format!("an array of {}", array.len()),
    };
    EngineError::metadata(key, format!("should be {wanted} but is {found}"))
}
