//! Reads the header of a GGUF file (versions 2 and 3, little-endian), trusting nothing in it.
//!
//! Everything borrows from the mapped bytes: a header that claims a billion array elements costs a
//! bounds check, not an allocation. What is checked here holds for every [`Gguf`]: counts below their
//! limits, strings in bounds and UTF-8, unique keys, tensors aligned, inside the file and disjoint.
//! Deliberately not here: what the keys mean (`spec`), and the weights themselves (`weights`).

use std::collections::BTreeMap;

use candle_core::quantized::GgmlDType;

/// More key-value pairs than any known model has (about 60), few enough to walk at once.
const METADATA_LEN_MAX: u64 = 4_096;
/// The largest known dense models have a few thousand tensors.
const TENSORS_LEN_MAX: u64 = 65_536;
/// Vocabularies are the longest arrays; the largest known one has 262,144 entries.
const ARRAY_LEN_MAX: u64 = 4 << 20;
/// Arrays of arrays are legal and unused; the recursion of the reader must still end.
const ARRAY_DEPTH_MAX: u32 = 4;
/// Keys and tensor names; the format itself says 65,535 and 64.
const NAME_BYTES_MAX: usize = 256;
/// Chat templates are the longest strings (about 20 KiB); licence texts come near.
const STRING_BYTES_MAX: u64 = 1 << 20;
/// GGUF tensors have at most four dimensions.
const DIMENSIONS_MAX: u32 = 4;
/// Alignment when `general.alignment` is absent.
const ALIGNMENT_DEFAULT: u64 = 32;

/// What is wrong with a GGUF file.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum GgufError {
    /// The first four bytes are something else.
    #[error("not a GGUF file (it begins with {0:02x?})")]
    NotGguf(Vec<u8>),
    /// A GGUF version or byte order that this build does not read.
    #[error("GGUF version {0} is not supported (supported: 2 and 3, little-endian)")]
    Version(u32),
    /// The file ends before something that it announced.
    #[error("truncated or damaged: {what} needs {need} bytes at offset {offset}, {have} are left")]
    Truncated {
        /// What was being read.
        what: &'static str,
        /// Where.
        offset: u64,
        /// Bytes needed.
        need: u64,
        /// Bytes there.
        have: u64,
    },
    /// A count or size is beyond its limit.
    #[error("{what} is {value}, the limit is {limit}")]
    Limit {
        /// What was counted.
        what: &'static str,
        /// What the file says.
        value: u64,
        /// The most this build accepts.
        limit: u64,
    },
    /// Anything else that breaks the format's rules.
    #[error("damaged at offset {offset}: {problem}")]
    Damaged {
        /// Where it was noticed.
        offset: u64,
        /// What is wrong.
        problem: String,
    },
    /// A tensor breaks the format's rules.
    #[error("tensor {name}: {problem}")]
    Tensor {
        /// The tensor's name.
        name: String,
        /// What is wrong.
        problem: String,
    },
    /// A tensor is stored in a type that this build cannot compute with.
    #[error("tensor {tensor} is stored as {type_name}, which is not supported")]
    UnsupportedType {
        /// The tensor's name.
        tensor: String,
        /// The type's name in ggml, or its number.
        type_name: String,
    },
}

type Result<T> = std::result::Result<T, GgufError>;

/// One metadata value, borrowed from the file.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Value<'a> {
    Unsigned(u64),
    Signed(i64),
    Float(f64),
    Bool(bool),
    String(&'a str),
    Array(Array<'a>),
}

/// A metadata array: checked once, decoded element by element on demand.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Array<'a> {
    kind: Kind,
    len: u64,
    bytes: &'a [u8],
}

impl<'a> Array<'a> {
    /// Number of elements; at most [`ARRAY_LEN_MAX`].
    pub(crate) fn len(&self) -> usize {
        self.len as usize
    }

    /// The elements in order. Arrays inside arrays have been checked and are yielded as such.
    pub(crate) fn iter(&self) -> impl Iterator<Item = Value<'a>> + use<'a> {
        let mut reader = Reader { bytes: self.bytes, at: 0 };
        let kind = self.kind;
        // The bytes were walked once when the header was read, so this cannot fail half-way.
        (0..self.len).map_while(move |_| reader.value(kind, 0).ok())
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    U8,
    I8,
    U16,
    I16,
    U32,
    I32,
    F32,
    Bool,
    String,
    Array,
    U64,
    I64,
    F64,
}

impl Kind {
    fn from_u32(code: u32) -> Option<Self> {
        const KINDS: [Kind; 13] = [
            Kind::U8,
            Kind::I8,
            Kind::U16,
            Kind::I16,
            Kind::U32,
            Kind::I32,
            Kind::F32,
            Kind::Bool,
            Kind::String,
            Kind::Array,
            Kind::U64,
            Kind::I64,
            Kind::F64,
        ];
        KINDS.get(usize::try_from(code).ok()?).copied()
    }

    /// Smallest number of bytes that one element takes, exact for all but strings and arrays.
    fn bytes_min(self) -> u64 {
        match self {
            Self::U8 | Self::I8 | Self::Bool => 1,
            Self::U16 | Self::I16 => 2,
            Self::U32 | Self::I32 | Self::F32 => 4,
            Self::String | Self::U64 | Self::I64 | Self::F64 => 8,
            Self::Array => 12,
        }
    }
}

/// Where one tensor lies and how it is stored.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct TensorInfo {
    /// Row-major, slowest dimension first (GGUF itself stores them the other way round).
    pub(crate) shape: Vec<usize>,
    pub(crate) dtype: GgmlDType,
    /// Bytes from the beginning of the file.
    pub(crate) range: std::ops::Range<usize>,
}

/// A checked GGUF header over the bytes of the file.
#[derive(Debug)]
pub(crate) struct Gguf<'a> {
    pub(crate) bytes: &'a [u8],
    pub(crate) metadata: BTreeMap<&'a str, Value<'a>>,
    pub(crate) tensors: BTreeMap<&'a str, TensorInfo>,
}

impl<'a> Gguf<'a> {
    /// Checks the header of the GGUF file whose bytes are given, whole.
    ///
    /// # Errors
    /// [`GgufError`] naming what is wrong and where. Never panics, and allocates in proportion to the
    /// number of keys and tensors only.
    pub(crate) fn parse(bytes: &'a [u8]) -> Result<Self> {
        let mut reader = Reader { bytes, at: 0 };
        if bytes.get(..4) != Some(b"GGUF") {
            return Err(GgufError::NotGguf(bytes.iter().take(4).copied().collect()));
        }
        reader.at = 4;
        let version = reader.u32("version")?;
        if !matches!(version, 2 | 3) {
            return Err(GgufError::Version(version));
        }
        let tensors_len = limit("number of tensors", reader.u64("tensor count")?, TENSORS_LEN_MAX)?;
        let metadata_len =
            limit("number of metadata keys", reader.u64("metadata count")?, METADATA_LEN_MAX)?;
        let metadata = reader.metadata(metadata_len)?;
        let raw = reader.tensor_infos(tensors_len)?;
        let tensors = place(bytes.len() as u64, reader.at as u64, alignment(&metadata)?, raw)?;
        Ok(Self { bytes, metadata, tensors })
    }
}

fn limit(what: &'static str, value: u64, limit: u64) -> Result<u64> {
    if value > limit { Err(GgufError::Limit { what, value, limit }) } else { Ok(value) }
}

fn alignment(metadata: &BTreeMap<&str, Value<'_>>) -> Result<u64> {
    let alignment = match metadata.get("general.alignment") {
        None => ALIGNMENT_DEFAULT,
        Some(Value::Unsigned(value)) => *value,
        Some(other) => {
            return Err(GgufError::Damaged {
                offset: 0,
                problem: format!("general.alignment is {other:?}, not an unsigned number"),
            });
        }
    };
    // Eight is the format's own minimum, and what keeps casts of the mapped bytes aligned.
    if alignment.is_power_of_two() && (8..=65_536).contains(&alignment) {
        Ok(alignment)
    } else {
        Err(GgufError::Damaged {
            offset: 0,
            problem: format!("general.alignment is {alignment}, not a power of two in 8..=65536"),
        })
    }
}

/// A tensor entry as read, before its place in the file has been checked.
struct RawTensor<'a> {
    name: &'a str,
    shape: Vec<usize>,
    elements: u64,
    type_id: u32,
    offset: u64,
}

/// Turns entries into places, refusing any that is misaligned, outside the file or over another.
fn place<'a>(
    file_len: u64,
    header_end: u64,
    alignment: u64,
    raw: Vec<RawTensor<'a>>,
) -> Result<BTreeMap<&'a str, TensorInfo>> {
    let data_start = header_end.next_multiple_of(alignment);
    let mut tensors = BTreeMap::new();
    let mut spans = Vec::with_capacity(raw.len());
    for entry in raw {
        let bad = |problem: String| GgufError::Tensor { name: entry.name.to_owned(), problem };
        let dtype = dtype_of(entry.type_id).ok_or_else(|| GgufError::UnsupportedType {
            tensor: entry.name.to_owned(),
            type_name: type_name(entry.type_id),
        })?;
        let row = entry.shape.last().copied().unwrap_or(0) as u64;
        let block = dtype.block_size() as u64;
        if !row.is_multiple_of(block) {
            return Err(bad(format!(
                "rows of {row} elements do not divide into {dtype:?} blocks of {block}"
            )));
        }
        let size = (entry.elements / block)
            .checked_mul(dtype.type_size() as u64)
            .ok_or_else(|| bad("its size overflows".to_owned()))?;
        if !entry.offset.is_multiple_of(alignment) {
            return Err(bad(format!("offset {} is not aligned to {alignment}", entry.offset)));
        }
        let end = data_start
            .checked_add(entry.offset)
            .and_then(|start| start.checked_add(size))
            .ok_or_else(|| bad("its offset overflows".to_owned()))?;
        if end > file_len {
            return Err(bad(format!("it ends at byte {end} of a file of {file_len} bytes")));
        }
        // `end` is at most the length of a slice, so both ends fit a usize.
        let range = (end - size) as usize..end as usize;
        spans.push((range.start, range.end, entry.name));
        let info = TensorInfo { shape: entry.shape, dtype, range };
        if tensors.insert(entry.name, info).is_some() {
            return Err(bad("appears twice".to_owned()));
        }
    }
    // Overlap would let a small file stand for any amount of memory.
    spans.sort_unstable();
    for pair in spans.windows(2) {
        if let [(_, end, first), (start, _, second)] = pair
            && end > start
        {
            let problem = format!("overlaps tensor {first}");
            return Err(GgufError::Tensor { name: (*second).to_owned(), problem });
        }
    }
    Ok(tensors)
}

struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    fn take(&mut self, what: &'static str, need: u64) -> Result<&'a [u8]> {
        let rest = self.bytes.get(self.at..).unwrap_or_default();
        match usize::try_from(need).ok().and_then(|need| rest.get(..need)) {
            Some(taken) => {
                self.at += taken.len();
                Ok(taken)
            }
            None => Err(GgufError::Truncated {
                what,
                offset: self.at as u64,
                need,
                have: rest.len() as u64,
            }),
        }
    }

    fn array<const N: usize>(&mut self, what: &'static str) -> Result<[u8; N]> {
        let mut out = [0; N];
        out.copy_from_slice(self.take(what, N as u64)?);
        Ok(out)
    }

    fn u32(&mut self, what: &'static str) -> Result<u32> {
        Ok(u32::from_le_bytes(self.array(what)?))
    }

    fn u64(&mut self, what: &'static str) -> Result<u64> {
        Ok(u64::from_le_bytes(self.array(what)?))
    }

    fn damaged(&self, problem: impl Into<String>) -> GgufError {
        GgufError::Damaged { offset: self.at as u64, problem: problem.into() }
    }

    fn string(&mut self, what: &'static str) -> Result<&'a str> {
        let len = limit(what, self.u64(what)?, STRING_BYTES_MAX)?;
        let bytes = self.take(what, len)?;
        std::str::from_utf8(bytes).map_err(|_| self.damaged(format!("{what} is not UTF-8")))
    }

    fn name(&mut self, what: &'static str) -> Result<&'a str> {
        let name = self.string(what)?;
        limit(what, name.len() as u64, NAME_BYTES_MAX as u64)?;
        Ok(name)
    }

    fn kind(&mut self) -> Result<Kind> {
        let code = self.u32("value type")?;
        Kind::from_u32(code).ok_or_else(|| self.damaged(format!("unknown value type {code}")))
    }

    fn metadata(&mut self, len: u64) -> Result<BTreeMap<&'a str, Value<'a>>> {
        let mut metadata = BTreeMap::new();
        for _ in 0..len {
            let key = self.name("length of a metadata key")?;
            let kind = self.kind()?;
            let value = self.value(kind, 0)?;
            if metadata.insert(key, value).is_some() {
                return Err(self.damaged(format!("metadata key {key} appears twice")));
            }
        }
        Ok(metadata)
    }

    fn value(&mut self, kind: Kind, depth: u32) -> Result<Value<'a>> {
        const WHAT: &str = "a metadata value";
        Ok(match kind {
            Kind::U8 => Value::Unsigned(u8::from_le_bytes(self.array(WHAT)?).into()),
            Kind::U16 => Value::Unsigned(u16::from_le_bytes(self.array(WHAT)?).into()),
            Kind::U32 => Value::Unsigned(self.u32(WHAT)?.into()),
            Kind::U64 => Value::Unsigned(self.u64(WHAT)?),
            Kind::I8 => Value::Signed(i8::from_le_bytes(self.array(WHAT)?).into()),
            Kind::I16 => Value::Signed(i16::from_le_bytes(self.array(WHAT)?).into()),
            Kind::I32 => Value::Signed(i32::from_le_bytes(self.array(WHAT)?).into()),
            Kind::I64 => Value::Signed(i64::from_le_bytes(self.array(WHAT)?)),
            Kind::F32 => Value::Float(f32::from_le_bytes(self.array(WHAT)?).into()),
            Kind::F64 => Value::Float(f64::from_le_bytes(self.array(WHAT)?)),
            Kind::Bool => match self.array::<1>(WHAT)? {
                [0] => Value::Bool(false),
                [1] => Value::Bool(true),
                [other] => return Err(self.damaged(format!("{other} is not a boolean"))),
            },
            // Tokens need not be text in some vocabularies, but all that we can tokenise are.
            Kind::String => Value::String(self.string("length of a string")?),
            Kind::Array => Value::Array(self.array_value(depth)?),
        })
    }

    /// Checks an array and steps over it.
    fn array_value(&mut self, depth: u32) -> Result<Array<'a>> {
        let kind = self.kind()?;
        if kind == Kind::Array && depth >= ARRAY_DEPTH_MAX {
            let limit = ARRAY_DEPTH_MAX.into();
            return Err(GgufError::Limit { what: "depth of arrays", value: limit + 1, limit });
        }
        let len = limit("length of an array", self.u64("array length")?, ARRAY_LEN_MAX)?;
        let need = len * kind.bytes_min();
        let start = self.at;
        let body = self.take("an array", need)?;
        match kind {
            Kind::String => {
                self.at = start;
                for _ in 0..len {
                    self.string("length of a string")?;
                }
            }
            Kind::Array => {
                self.at = start;
                for _ in 0..len {
                    self.array_value(depth + 1)?;
                }
            }
            Kind::Bool if body.iter().any(|&byte| byte > 1) => {
                return Err(self.damaged("an array of booleans holds something else"));
            }
            _ => {}
        }
        let bytes = self.bytes.get(start..self.at).unwrap_or_default();
        Ok(Array { kind, len, bytes })
    }

    fn tensor_infos(&mut self, len: u64) -> Result<Vec<RawTensor<'a>>> {
        // Each entry takes at least 32 bytes, so a lying count ends the loop, not the memory.
        let mut infos = Vec::new();
        for _ in 0..len {
            let name = self.name("length of a tensor name")?;
            let bad = |problem: &str| GgufError::Tensor {
                name: name.to_owned(),
                problem: problem.to_owned(),
            };
            let rank = self.u32("number of dimensions")?;
            if !(1..=DIMENSIONS_MAX).contains(&rank) {
                return Err(bad("has no dimensions, or more than four"));
            }
            let mut elements = 1u64;
            let mut shape = Vec::with_capacity(rank as usize);
            for _ in 0..rank {
                let dimension = self.u64("a dimension")?;
                elements = elements
                    .checked_mul(dimension)
                    .filter(|&elements| elements > 0)
                    .ok_or_else(|| bad("has an empty dimension or too many elements"))?;
                shape.push(usize::try_from(dimension).map_err(|_| bad("is too large"))?);
            }
            shape.reverse();
            let type_id = self.u32("tensor type")?;
            let offset = self.u64("tensor offset")?;
            infos.push(RawTensor { name, shape, elements, type_id, offset });
        }
        Ok(infos)
    }
}

/// The types that candle can both multiply with and dequantise on every platform.
fn dtype_of(type_id: u32) -> Option<GgmlDType> {
    Some(match type_id {
        0 => GgmlDType::F32,
        1 => GgmlDType::F16,
        2 => GgmlDType::Q4_0,
        3 => GgmlDType::Q4_1,
        6 => GgmlDType::Q5_0,
        7 => GgmlDType::Q5_1,
        8 => GgmlDType::Q8_0,
        10 => GgmlDType::Q2K,
        11 => GgmlDType::Q3K,
        12 => GgmlDType::Q4K,
        13 => GgmlDType::Q5K,
        14 => GgmlDType::Q6K,
        30 => GgmlDType::BF16,
        _ => return None,
    })
}

/// ggml's name for a type that we cannot use, so that the error says what the file holds.
fn type_name(type_id: u32) -> String {
    let name = match type_id {
        9 => "Q8_1",
        15 => "Q8_K",
        16 => "IQ2_XXS",
        17 => "IQ2_XS",
        18 => "IQ3_XXS",
        19 => "IQ1_S",
        20 => "IQ4_NL",
        21 => "IQ3_S",
        22 => "IQ2_S",
        23 => "IQ4_XS",
        24 => "I8",
        25 => "I16",
        26 => "I32",
        27 => "I64",
        28 => "F64",
        29 => "IQ1_M",
        34 => "TQ1_0",
        35 => "TQ2_0",
        39 => "MXFP4",
        other => return format!("type number {other}"),
    };
    name.to_owned()
}

/// The usual name of a storage type.
pub(crate) fn dtype_name(dtype: GgmlDType) -> &'static str {
    match dtype {
        GgmlDType::F32 => "F32",
        GgmlDType::F16 => "F16",
        GgmlDType::BF16 => "BF16",
        GgmlDType::Q4_0 => "Q4_0",
        GgmlDType::Q4_1 => "Q4_1",
        GgmlDType::Q5_0 => "Q5_0",
        GgmlDType::Q5_1 => "Q5_1",
        GgmlDType::Q8_0 => "Q8_0",
        GgmlDType::Q8_1 => "Q8_1",
        GgmlDType::Q2K => "Q2_K",
        GgmlDType::Q3K => "Q3_K",
        GgmlDType::Q4K => "Q4_K",
        GgmlDType::Q5K => "Q5_K",
        GgmlDType::Q6K => "Q6_K",
        GgmlDType::Q8K => "Q8_K",
    }
}

#[cfg(test)]
mod tests;
