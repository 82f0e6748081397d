//! The filter `tojson` as transformers defines it: Python's `json.dumps(…, ensure_ascii=False)` instead
//! of Jinja2's own HTML-safe one.

use std::io::Write;

use minijinja::value::Kwargs;
use minijinja::{Error, ErrorKind, Value};
use serde::Serialize;
use serde_json::ser::Formatter;

use super::program::Bounded;

/// Writes a value as JSON; `indent`, `separators`, `sort_keys` and `ensure_ascii` are Python's.
pub(super) fn to_json(value: Value, arguments: Kwargs) -> Result<String, Error> {
    let indent: Option<usize> = arguments.get("indent")?;
    let separators: Option<Vec<String>> = arguments.get("separators")?;
    let sort_keys: Option<bool> = arguments.get("sort_keys")?;
    let ensure_ascii: Option<bool> = arguments.get("ensure_ascii")?;
    arguments.assert_all_used()?;
    let item = if indent.is_some() { "," } else { ", " };
    let (item, key) = match separators.as_deref() {
        None => (item, ": "),
        Some([item, key]) if item.len() + key.len() <= 64 => (item.as_str(), key.as_str()),
        Some(_) => {
            return Err(Error::new(ErrorKind::InvalidOperation, "separators are two short texts"));
        }
    };
    let python = Python {
        item,
        key,
        indent: indent.map(|indent| indent.min(16)),
        ascii: ensure_ascii == Some(true),
        depth: 0,
        is_empty: false,
    };
    if sort_keys == Some(true) {
        // Written once to be bounded before it is held as a tree.
        let bytes = write(&value, python)?;
        let mut tree: serde_json::Value =
            serde_json::from_slice(&bytes).map_err(|_| Error::from(ErrorKind::BadSerialization))?;
        tree.sort_all_objects();
        return text(write(&tree, python)?);
    }
    text(write(&value, python)?)
}

fn text(bytes: Vec<u8>) -> Result<String, Error> {
    String::from_utf8(bytes).map_err(|_| Error::from(ErrorKind::BadSerialization))
}

/// Minijinja charges for a filter's result, but only once it is there, so it is bounded here.
fn write<T: Serialize>(value: &T, python: Python<'_>) -> Result<Vec<u8>, Error> {
    let mut out = Bounded::default();
    let mut serializer = serde_json::Serializer::with_formatter(&mut out, python);
    value
        .serialize(&mut serializer)
        .map_err(|error| Error::new(ErrorKind::BadSerialization, error.to_string()))?;
    Ok(out.bytes)
}

/// Python's way of writing JSON.
#[derive(Clone, Copy)]
struct Python<'s> {
    item: &'s str,
    key: &'s str,
    indent: Option<usize>,
    ascii: bool,
    depth: usize,
    /// Nothing has been written inside of the innermost bracket.
    is_empty: bool,
}

impl Python<'_> {
    fn line<W: ?Sized + Write>(&self, writer: &mut W) -> std::io::Result<()> {
        match self.indent {
            None => Ok(()),
            Some(indent) => {
                writer.write_all(b"\n")?;
                (0..self.depth).try_for_each(|_| writer.write_all(" ".repeat(indent).as_bytes()))
            }
        }
    }

    fn open<W: ?Sized + Write>(&mut self, writer: &mut W, bracket: u8) -> std::io::Result<()> {
        self.depth += 1;
        self.is_empty = true;
        writer.write_all(&[bracket])
    }

    fn close<W: ?Sized + Write>(&mut self, writer: &mut W, bracket: u8) -> std::io::Result<()> {
        self.depth -= 1;
        if !std::mem::take(&mut self.is_empty) {
            self.line(writer)?;
        }
        writer.write_all(&[bracket])
    }

    fn next<W: ?Sized + Write>(&mut self, writer: &mut W, first: bool) -> std::io::Result<()> {
        self.is_empty = false;
        if !first {
            writer.write_all(self.item.as_bytes())?;
        }
        self.line(writer)
    }
}

impl Formatter for Python<'_> {
    fn begin_array<W: ?Sized + Write>(&mut self, writer: &mut W) -> std::io::Result<()> {
        self.open(writer, b'[')
    }

    fn end_array<W: ?Sized + Write>(&mut self, writer: &mut W) -> std::io::Result<()> {
        self.close(writer, b']')
    }

    fn begin_array_value<W: ?Sized + Write>(
        &mut self,
        writer: &mut W,
        first: bool,
    ) -> std::io::Result<()> {
        self.next(writer, first)
    }

    fn begin_object<W: ?Sized + Write>(&mut self, writer: &mut W) -> std::io::Result<()> {
        self.open(writer, b'{')
    }

    fn end_object<W: ?Sized + Write>(&mut self, writer: &mut W) -> std::io::Result<()> {
        self.close(writer, b'}')
    }

    fn begin_object_key<W: ?Sized + Write>(
        &mut self,
        writer: &mut W,
        first: bool,
    ) -> std::io::Result<()> {
        self.next(writer, first)
    }

    fn begin_object_value<W: ?Sized + Write>(&mut self, writer: &mut W) -> std::io::Result<()> {
        writer.write_all(self.key.as_bytes())
    }

    fn write_string_fragment<W: ?Sized + Write>(
        &mut self,
        writer: &mut W,
        fragment: &str,
    ) -> std::io::Result<()> {
        if !self.ascii {
            return writer.write_all(fragment.as_bytes());
        }
        let mut units = [0; 2];
        for character in fragment.chars() {
            match character.is_ascii() {
                true => writer.write_all(&[character as u8])?,
                false => character
                    .encode_utf16(&mut units)
                    .iter()
                    .try_for_each(|unit| write!(writer, "\\u{unit:04x}"))?,
            }
        }
        Ok(())
    }
}
