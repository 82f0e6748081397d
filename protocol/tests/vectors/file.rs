//! The shape of a vector file (specs/README.md §3).

use serde::{Deserialize, Serialize};

use crate::splice::Splice;

/// All vectors of one kind of message.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Vectors {
    pub(crate) kind: String,
    pub(crate) good: Vec<Good>,
    pub(crate) bad: Vec<Bad>,
}

/// A message that must be accepted.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Good {
    pub(crate) name: String,
    #[serde(rename = "type")]
    pub(crate) payload_type: String,
    /// Each signing key's seed is this number, 32 times.
    pub(crate) seeds: Vec<u8>,
    pub(crate) federation: String,
    pub(crate) id: String,
    pub(crate) fields: serde_json::Value,
    pub(crate) body: Place,
    pub(crate) envelope: String,
}

/// A part of an envelope: from where, how many bytes.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Place(usize, usize);

impl Place {
    pub(crate) fn of(whole: &[u8], part: &[u8]) -> Place {
        let from = whole.windows(part.len()).position(|window| window == part).unwrap();
        Place(from, part.len())
    }

    pub(crate) fn in_bytes(self, whole: &[u8]) -> &[u8] {
        &whole[self.0..self.0 + self.1]
    }
}

/// Bytes that must be refused when the message `of` is expected.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Bad {
    pub(crate) name: String,
    /// Why: see `specs/README.md` §3.
    pub(crate) class: String,
    /// With class `invalid`: the field at fault.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) field: Option<String>,
    /// In which federation it is read, if not in that of the good one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) federation: Option<String>,
    /// Index of the good one that it is made from.
    pub(crate) of: usize,
    /// How its envelope differs.
    pub(crate) splice: Vec<Splice>,
}

impl Vectors {
    /// As JSON with one vector per line, so that a difference can be read.
    pub(crate) fn to_text(&self) -> String {
        fn lines<T: Serialize>(list: &[T]) -> String {
            let lines: Vec<String> =
                list.iter().map(|one| serde_json::to_string(one).unwrap()).collect();
            lines.join(",\n")
        }
        let Vectors { kind, good, bad } = self;
        format!(
            "{{\n\"kind\": {kind:?},\n\"good\": [\n{}\n],\n\"bad\": [\n{}\n]\n}}\n",
            lines(good),
            lines(bad)
        )
    }
}
