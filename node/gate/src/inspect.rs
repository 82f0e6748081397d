//! The structure of an adapter: exactly the declared tensors, finite, of bounded norm, and not a byte
//! beside them.

use std::io::Read;

use crate::declared::{Declared, DeclaredTensor, Dtype};
use crate::header;
use crate::stop::{Rule, Stop, distinct};

/// What an adapter may be at most.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AdapterLimits {
    /// Bytes of its file.
    pub bytes_max: u64,
    /// The Frobenius norm of each factor A and B, in thousandths.
    pub factor_norm_max_milli: u64,
    /// `alpha/r ‖A‖ ‖B‖` of each module, in thousandths: no less than the Frobenius norm, and so than
    /// the spectral norm, of what the module adds to its weight.
    pub update_norm_max_milli: u64,
}

impl Default for AdapterLimits {
    /// Fresh factors A have norms of about `sqrt(r/3)`, trained adapters updates of some ten: a
    /// thousand is far from both.
    fn default() -> AdapterLimits {
        AdapterLimits {
            bytes_max: 512 << 20,
            factor_norm_max_milli: 1_000_000,
            update_norm_max_milli: 1_000_000,
        }
    }
}

/// How values are stored when they leave.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Precision {
    /// As they came.
    AsTrained,
    /// Rounded to the nearest bfloat16: half of the bytes, and none of the low bits in which most
    /// could be hidden.
    #[default]
    Bf16,
}

/// An adapter that is what was declared. Only [`inspect`] makes one.
#[derive(Clone, PartialEq)]
pub struct Inspected {
    declared: Declared,
    data: Vec<u8>,
}

impl std::fmt::Debug for Inspected {
    /// Without values: they are not released yet.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (tensors, bytes) = (self.declared.tensors().len(), self.data.len());
        write!(f, "Inspected({tensors} tensors, {bytes} bytes)")
    }
}

impl Inspected {
    /// What was declared.
    pub fn declared(&self) -> &Declared {
        &self.declared
    }

    /// The safetensors file in which it leaves.
    pub fn file(&self, precision: Precision) -> Vec<u8> {
        let rounds = precision == Precision::Bf16 && self.declared.dtype() == Dtype::F32;
        let declared = match rounds {
            true => self.declared.stored_as(Dtype::Bf16),
            false => self.declared.clone(),
        };
        let mut file = header::canonical(&declared);
        if rounds {
            let values = Dtype::F32.values(&self.data);
            file.extend(values.flat_map(|value| half::bf16::from_f32(value).to_le_bytes()));
        } else {
            file.extend_from_slice(&self.data);
        }
        file
    }
}

/// Reads an adapter of `len` bytes that a worker made, and checks that it is the declared one.
///
/// What is too long is not read at all, and a header that is wrong ends the reading. Memory is bounded
/// by the declared adapter's size, at most `limits.bytes_max`, and 64 KiB.
///
/// # Errors
/// Every rule that is found broken, each with its own reason and once.
pub fn inspect(
    mut source: impl Read,
    len: u64,
    declared: &Declared,
    limits: &AdapterLimits,
) -> Result<Inspected, Vec<Stop>> {
    let stop = |rule, text: &str| Err(vec![Stop::new(rule, text)]);
    let expected = header::canonical(declared);
    let expected_bytes = declared.data_bytes().saturating_add(expected.len() as u64);
    if len > limits.bytes_max || expected_bytes > limits.bytes_max {
        let text = format!("the adapter is larger than {} bytes", limits.bytes_max);
        return stop(Rule::AdapterTooLarge, &text);
    }
    let truncated = || stop(Rule::AdapterTruncated, "the adapter ends before its announced length");
    let mut head = [0; 8];
    if source.read_exact(&mut head).is_err() {
        return truncated();
    }
    let header_len = u64::from_le_bytes(head);
    if header_len > header::longest(&expected) {
        let text = "the adapter's header is much longer than that of the declared adapter";
        return stop(Rule::AdapterSlack, text);
    }
    let Some(data_len) = len.checked_sub(8 + header_len) else { return truncated() };
    let Some(found) = exactly(&mut source, header_len) else { return truncated() };
    if expected.get(..8) != Some(&head) || expected.get(8..) != Some(&found) {
        return Err(distinct(header::reasons(&found, declared, data_len)));
    }
    match data_len.cmp(&declared.data_bytes()) {
        std::cmp::Ordering::Less => return truncated(),
        std::cmp::Ordering::Greater => {
            return stop(Rule::AdapterSlack, "the adapter has bytes behind its last tensor");
        }
        std::cmp::Ordering::Equal => {}
    }
    let Some(data) = exactly(&mut source, data_len) else { return truncated() };
    // A source that is longer than it said.
    if !matches!(source.read(&mut [0]), Ok(0)) {
        return stop(Rule::AdapterSlack, "the adapter has bytes behind its announced length");
    }
    let stops = distinct(values(&data, declared, limits));
    if stops.is_empty() { Ok(Inspected { declared: declared.clone(), data }) } else { Err(stops) }
}

/// Exactly `len` bytes; memory grows with what is really there.
fn exactly(source: &mut impl Read, len: u64) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    let read = source.take(len).read_to_end(&mut bytes);
    (read.is_ok() && bytes.len() as u64 == len).then_some(bytes)
}

fn values(data: &[u8], declared: &Declared, limits: &AdapterLimits) -> Vec<Stop> {
    let mut stops = Vec::new();
    let mut rest = data;
    let mut norm_of = |tensor: &DeclaredTensor| {
        // The lengths have been compared; a shorter rest would give a shorter tensor, never a panic.
        let bytes = usize::try_from(declared.bytes(tensor)).unwrap_or(usize::MAX);
        let (bytes, after) = rest.split_at(bytes.min(rest.len()));
        rest = after;
        declared.dtype().values(bytes).map(|value| f64::from(value).powi(2)).sum::<f64>().sqrt()
    };
    let scale = f64::from(declared.alpha()) / f64::from(declared.rank());
    let cap = |milli: u64| milli as f64 / 1e3;
    for pair in declared.tensors().chunks(2) {
        let norms = pair.iter().map(&mut norm_of).collect::<Vec<f64>>();
        let mut finite = true;
        for (tensor, norm) in pair.iter().zip(&norms) {
            // Squares of floats are finite as doubles, and sums of 2^48 of them too.
            if !norm.is_finite() {
                finite = false;
                let text = format!("{} holds a value that is not a finite number", tensor.name);
                stops.push(Stop::new(Rule::AdapterNotFinite, text));
            } else if *norm > cap(limits.factor_norm_max_milli) {
                let most = cap(limits.factor_norm_max_milli);
                let text = format!("{} has a Frobenius norm above {most}", tensor.name);
                stops.push(Stop::new(Rule::AdapterNorm, text));
            }
        }
        let update = scale * norms.iter().product::<f64>();
        if finite && update > cap(limits.update_norm_max_milli) {
            let most = cap(limits.update_norm_max_milli);
            let name = pair.first().map_or("", |tensor| &tensor.name);
            let text = format!("the update of which {name} is half has a norm above {most}");
            stops.push(Stop::new(Rule::AdapterNorm, text));
        }
    }
    stops
}
