//! Reads the header of a safetensors file, trusting nothing in it.
//!
//! A file is eight bytes of header length (little-endian), a JSON object with an entry per tensor, and the
//! data, which the entries must cover exactly: no gap, no overlap, nothing left over. Memory is taken in
//! proportion to the header, which is bounded.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;

use serde::de::{IgnoredAny, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};

/// The largest known files have some ten thousand tensors of a hundred bytes of header each.
const HEADER_BYTES_MAX: u64 = 16 << 20;
const TENSORS_LEN_MAX: usize = 65_536;
const DIMENSIONS_MAX: usize = 8;
const NAME_BYTES_MAX: usize = 256;

/// What is wrong with a safetensors file.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SafetensorsError {
    /// The file is shorter than its own header says.
    #[error("truncated: the header needs {need} bytes, the file has {have}")]
    Truncated {
        /// Bytes needed.
        need: u64,
        /// Bytes there.
        have: u64,
    },
    /// The header is longer than any real one.
    #[error("the header of {0} bytes exceeds the limit of {HEADER_BYTES_MAX}")]
    HeaderTooLong(u64),
    /// The header is not what the format says.
    #[error("damaged header: {0}")]
    Header(String),
    /// A tensor breaks the format's rules.
    #[error("tensor {name}: {problem}")]
    Tensor {
        /// The tensor's name.
        name: String,
        /// What is wrong.
        problem: String,
    },
}

/// One tensor of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    /// As the format names it (`F32`, `BF16`); it need not be one that we compute with.
    pub(crate) dtype: String,
    /// Row-major.
    pub(crate) shape: Vec<usize>,
    /// Bytes from the beginning of the file.
    pub(crate) range: Range<usize>,
}

/// Reads and checks the header of a file whose bytes are given, whole.
///
/// # Errors
/// [`SafetensorsError`] naming what is wrong. Never panics.
pub(crate) fn parse(bytes: &[u8]) -> Result<BTreeMap<String, Entry>, SafetensorsError> {
    let have = bytes.len() as u64;
    let truncated = |need| SafetensorsError::Truncated { need, have };
    let (len, rest) = bytes.split_first_chunk::<8>().ok_or_else(|| truncated(8))?;
    let len = u64::from_le_bytes(*len);
    if len > HEADER_BYTES_MAX {
        return Err(SafetensorsError::HeaderTooLong(len));
    }
    // At most 16 MiB, so the sum fits and the cast is exact.
    let header = rest.get(..len as usize).ok_or_else(|| truncated(8 + len))?;
    let Header(raw) = serde_json::from_slice(header)
        .map_err(|error| SafetensorsError::Header(error.to_string()))?;
    place(raw, 8 + header.len(), bytes.len())
}

fn place(
    raw: Vec<(String, RawEntry<'_>)>,
    data_start: usize,
    file_len: usize,
) -> Result<BTreeMap<String, Entry>, SafetensorsError> {
    let data_len = file_len - data_start;
    let mut tensors = BTreeMap::new();
    let mut spans = Vec::with_capacity(raw.len());
    for (name, entry) in raw {
        let bad = |problem: String| SafetensorsError::Tensor { name: name.clone(), problem };
        let bits = dtype_bits(&entry.dtype)
            .ok_or_else(|| bad(format!("is stored as {:.32}, which is not known", entry.dtype)))?;
        if entry.shape.len() > DIMENSIONS_MAX {
            return Err(bad(format!("has {} dimensions", entry.shape.len())));
        }
        let size = entry
            .shape
            .iter()
            .try_fold(bits, |size, &dimension| size.checked_mul(dimension))
            .ok_or_else(|| bad("its size overflows".to_owned()))?
            / 8;
        let [start, end] = entry.data_offsets;
        if start > end || end > data_len {
            return Err(bad(format!("bytes {start}..{end} of {data_len} bytes of data")));
        }
        if end - start != size {
            let shape = &entry.shape;
            return Err(bad(format!("{} bytes for {} {shape:?}", end - start, entry.dtype)));
        }
        spans.push((start, end, name.clone()));
        let range = data_start + start..data_start + end;
        let entry = Entry { dtype: entry.dtype.into_owned(), shape: entry.shape, range };
        tensors.insert(name, entry);
    }
    spans.sort_unstable();
    let mut covered = 0;
    for (start, end, name) in spans {
        if start != covered {
            let problem = if start < covered { "overlaps another" } else { "follows a gap" };
            return Err(SafetensorsError::Tensor { name, problem: problem.to_owned() });
        }
        covered = end;
    }
    if covered != data_len {
        let left = data_len - covered;
        return Err(SafetensorsError::Header(format!("{left} bytes of data belong to no tensor")));
    }
    Ok(tensors)
}

/// Bits of one element.
fn dtype_bits(dtype: &str) -> Option<usize> {
    Some(match dtype {
        "F64" | "I64" | "U64" => 64,
        "F32" | "I32" | "U32" => 32,
        "F16" | "BF16" | "I16" | "U16" => 16,
        "BOOL" | "U8" | "I8" | "F8_E4M3" | "F8_E5M2" => 8,
        _ => return None,
    })
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawEntry<'a> {
    #[serde(borrow)]
    dtype: Cow<'a, str>,
    shape: Vec<usize>,
    data_offsets: [usize; 2],
}

/// The header's entries in the file's order. A map would let a second entry of the same name win.
struct Header<'a>(Vec<(String, RawEntry<'a>)>);

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
        use serde::de::Error;
        let mut entries = Vec::new();
        let mut names = std::collections::BTreeSet::new();
        while let Some(name) = map.next_key::<String>()? {
            if name.len() > NAME_BYTES_MAX {
                return Err(A::Error::custom(format!("a name of {} bytes", name.len())));
            }
            if !names.insert(name.clone()) {
                return Err(A::Error::custom(format!("{name} appears twice")));
            }
            if name == "__metadata__" {
                // Free text about the file.
                map.next_value::<IgnoredAny>()?;
                continue;
            }
            if entries.len() == TENSORS_LEN_MAX {
                return Err(A::Error::custom(format!("more than {TENSORS_LEN_MAX} tensors")));
            }
            entries.push((name, map.next_value()?));
        }
        Ok(Header(entries))
    }
}

#[cfg(test)]
mod tests;
