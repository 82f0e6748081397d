//! The header of an adapter's safetensors file: the one that it must have, and what is wrong with
//! another one.
//!
//! The one header (specs/adapter.md §2) is a function of the declared adapter alone. It is what the
//! reference library writes, so nothing honest is refused, and nothing can be told by the choice
//! among several.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::fmt::Write as _;

use serde::Deserialize;
use serde::de::{Deserializer, Error as _, MapAccess, Visitor};
use serde_json::{Value, json};

use crate::declared::Declared;
use crate::stop::{Rule, Stop};

/// By how much a header may be longer than it should and still be read for a reason.
const HEADER_EXCESS_MAX: u64 = 64 << 10;

/// The first bytes of the file, up to its values: length and header.
pub(crate) fn canonical(declared: &Declared) -> Vec<u8> {
    let mut header = r#"{"__metadata__":{"format":"pt"}"#.to_owned();
    let (mut start, dtype) = (0, declared.dtype().name());
    for tensor in declared.tensors() {
        let end = start + declared.bytes(tensor);
        let (name, [rows, columns]) = (&tensor.name, tensor.shape);
        // Names have no character that JSON would escape, and writing to a string does not fail.
        let _ = write!(
            header,
            r#","{name}":{{"dtype":"{dtype}","shape":[{rows},{columns}],"data_offsets":[{start},{end}]}}"#
        );
        start = end;
    }
    header.push('}');
    // The values begin at a multiple of eight, as the reference library has them.
    let len = header.len().next_multiple_of(8);
    let padding = len - header.len();
    let mut bytes = (len as u64).to_le_bytes().to_vec();
    bytes.extend_from_slice(header.as_bytes());
    bytes.extend(std::iter::repeat_n(b' ', padding));
    bytes
}

/// The longest header that is read at all, for an adapter whose right one is `canonical`.
pub(crate) fn longest(canonical: &[u8]) -> u64 {
    canonical.len() as u64 + HEADER_EXCESS_MAX
}

/// What is wrong with a header that is not the right one, of a file with `data_bytes` bytes of values.
/// At least one reason.
pub(crate) fn reasons(header: &[u8], declared: &Declared, data_bytes: u64) -> Vec<Stop> {
    let Ok(header) = serde_json::from_slice::<Header<'_>>(header) else {
        let text = "the adapter's header is not that of a safetensors file";
        return vec![Stop::new(Rule::AdapterDamaged, text)];
    };
    let mut stops = Vec::new();
    if header.metadata.is_some_and(|metadata| metadata != json!({ "format": "pt" })) {
        let text =
            "the adapter carries text beside its tensors; only {\"format\":\"pt\"} may be there";
        stops.push(Stop::new(Rule::AdapterFreeText, text));
    }
    let mut expected = BTreeMap::new();
    let mut start = 0;
    for tensor in declared.tensors() {
        let end = start + declared.bytes(tensor);
        expected.insert(tensor.name.as_str(), (tensor, [start, end]));
        start = end;
    }
    let mut extra = 0;
    for (name, entry) in &header.entries {
        let Some((tensor, offsets)) = expected.remove(name.as_str()) else {
            extra += 1;
            continue;
        };
        let (name, dtype) = (&tensor.name, declared.dtype().name());
        if entry.dtype != dtype {
            stops.push(Stop::new(Rule::AdapterWrongType, format!("{name} must be {dtype}")));
        }
        if entry.shape.iter().copied().ne(tensor.shape.map(|dimension| dimension as u64)) {
            let text = format!("{name} must have shape {:?}", tensor.shape);
            stops.push(Stop::new(Rule::AdapterWrongShape, text));
        }
        if entry.data_offsets != offsets {
            let text = format!("{name} is not where it must be: right after the tensor before it");
            stops.push(Stop::new(Rule::AdapterOffsets, text));
        }
    }
    if extra > 0 {
        let text = "the adapter has a tensor that the recipe does not declare";
        stops.push(Stop::new(Rule::AdapterExtraTensor, text));
    }
    if let Some(name) = expected.keys().next() {
        let text = format!("the adapter has no tensor {name}");
        stops.push(Stop::new(Rule::AdapterMissingTensor, text));
    }
    match data_bytes.cmp(&start) {
        std::cmp::Ordering::Less => {
            let text = "the adapter ends before its tensors do";
            stops.push(Stop::new(Rule::AdapterTruncated, text));
        }
        std::cmp::Ordering::Greater => {
            let text = "the adapter has bytes that belong to none of its declared tensors";
            stops.push(Stop::new(Rule::AdapterSlack, text));
        }
        std::cmp::Ordering::Equal => {}
    }
    if stops.is_empty() {
        let text = "the adapter's header says the right things in another way than the one allowed \
                    (order, white space, escapes)";
        stops.push(Stop::new(Rule::AdapterNotCanonical, text));
    }
    stops
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry<'a> {
    #[serde(borrow)]
    dtype: Cow<'a, str>,
    shape: Vec<u64>,
    data_offsets: [u64; 2],
}

struct Header<'a> {
    metadata: Option<Value>,
    entries: Vec<(String, Entry<'a>)>,
}

impl<'de> Deserialize<'de> for Header<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(HeaderVisitor)
    }
}

struct HeaderVisitor;

impl<'de> Visitor<'de> for HeaderVisitor {
    type Value = Header<'de>;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("an object with an entry per tensor")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut header = Header { metadata: None, entries: Vec::new() };
        let mut names = std::collections::BTreeSet::new();
        while let Some(name) = map.next_key::<String>()? {
            // A map would let the second one of a name win.
            if !names.insert(name.clone()) {
                return Err(A::Error::custom("a name appears twice"));
            }
            match name.as_str() {
                "__metadata__" => header.metadata = Some(map.next_value()?),
                _ => header.entries.push((name, map.next_value()?)),
            }
        }
        Ok(header)
    }
}

/// Names, types and shapes of the tensors that a header lists, if it is one.
pub(crate) fn listed(header: &[u8]) -> Option<Vec<(String, String, Vec<u64>)>> {
    let header = serde_json::from_slice::<Header<'_>>(header).ok()?;
    let entries = header.entries.into_iter();
    Some(entries.map(|(name, entry)| (name, entry.dtype.into_owned(), entry.shape)).collect())
}
