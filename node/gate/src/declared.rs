//! The adapter that a job is to produce, known before it runs: computed from the model's description
//! and the recipe, outside of the room.

use serde::{Deserialize, Serialize};

const TENSORS_MAX: usize = 16_384;
const NAME_BYTES_MAX: usize = 160;
/// The largest dimension; vocabularies have some 2^18.
const DIMENSION_MAX: usize = 1 << 24;
const A: &str = ".lora_A.weight";
const B: &str = ".lora_B.weight";

/// How elements are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Dtype {
    /// IEEE 754 binary32.
    F32,
    /// IEEE 754 binary16.
    F16,
    /// bfloat16.
    #[serde(rename = "BF16")]
    Bf16,
}

impl Dtype {
    /// Bytes of an element.
    pub const fn size(self) -> usize {
        match self {
            Dtype::F32 => 4,
            Dtype::F16 | Dtype::Bf16 => 2,
        }
    }

    /// As a safetensors file names it.
    pub const fn name(self) -> &'static str {
        match self {
            Dtype::F32 => "F32",
            Dtype::F16 => "F16",
            Dtype::Bf16 => "BF16",
        }
    }

    /// The elements of little-endian bytes.
    pub(crate) fn values(self, bytes: &[u8]) -> impl Iterator<Item = f32> + '_ {
        bytes.chunks_exact(self.size()).map(move |bytes| match (self, bytes) {
            (Dtype::F32, &[a, b, c, d]) => f32::from_le_bytes([a, b, c, d]),
            (Dtype::F16, &[a, b]) => half::f16::from_le_bytes([a, b]).to_f32(),
            (Dtype::Bf16, &[a, b]) => half::bf16::from_le_bytes([a, b]).to_f32(),
            // `chunks_exact` gives no other length.
            _ => f32::NAN,
        })
    }
}

/// One tensor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeclaredTensor {
    /// As PEFT names it, e.g. `base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight`.
    pub name: String,
    /// Rows and columns, row-major: (rank, inputs) for A, (outputs, rank) for B.
    pub shape: [usize; 2],
}

/// A LoRA adapter without its values.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Declared {
    rank: u32,
    alpha: u32,
    dtype: Dtype,
    /// In order of their names; A before B of each module.
    tensors: Vec<DeclaredTensor>,
}

/// Why a list of tensors is no LoRA adapter: a fault of ours, not of a worker.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the declared adapter is none: tensor {name} {problem}")]
pub struct DeclaredError {
    /// The tensor; empty when it concerns all of them.
    pub name: String,
    /// What is wrong.
    pub problem: &'static str,
}

impl Declared {
    /// An adapter of this rank and `alpha` with these tensors, in any order, each with its shape and
    /// type.
    ///
    /// # Errors
    /// [`DeclaredError`] when they are not the A and B of modules, of one type.
    pub fn new(
        rank: u32,
        alpha: u32,
        tensors: impl IntoIterator<Item = (String, Vec<usize>, Dtype)>,
    ) -> Result<Declared, DeclaredError> {
        let wrong = |name: &str, problem| Err(DeclaredError { name: name.to_owned(), problem });
        let mut found = Vec::new();
        let mut one = None;
        for (name, shape, dtype) in tensors {
            let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
            if name.len() > NAME_BYTES_MAX || !name.bytes().all(plain) {
                return wrong("", "has a name with other characters than letters, digits and ._-");
            }
            if *one.get_or_insert(dtype) != dtype {
                return wrong(&name, "has another type than the first");
            }
            let &[rows, columns] = shape.as_slice() else {
                return wrong(&name, "does not have two dimensions");
            };
            let fits = |dimension| (1..=DIMENSION_MAX).contains(&dimension);
            if !fits(rows) || !fits(columns) {
                return wrong(&name, "has a dimension out of range");
            }
            found.push(DeclaredTensor { name, shape: [rows, columns] });
        }
        found.sort_by(|one, other| one.name.cmp(&other.name));
        let Some(dtype) = one.filter(|_| found.len() <= TENSORS_MAX && rank > 0 && alpha > 0)
        else {
            return wrong("", "is missing, or there are too many, or rank or alpha are zero");
        };
        // Names sort so that the two of a module are neighbours.
        for pair in found.chunks(2) {
            let [a, b] = pair else { return wrong(&pair[0].name, "has no other half") };
            let modules = (a.name.strip_suffix(A), b.name.strip_suffix(B));
            if modules.0.is_none() || modules.0 != modules.1 {
                return wrong(&a.name, "is not an A that is followed by its B");
            }
            if [a.shape[0], b.shape[1]] != [rank as usize; 2] {
                return wrong(&a.name, "has not this rank, or its other half has not");
            }
        }
        Ok(Declared { rank, alpha, dtype, tensors: found })
    }

    /// `r`.
    pub fn rank(&self) -> u32 {
        self.rank
    }

    /// `lora_alpha`.
    pub fn alpha(&self) -> u32 {
        self.alpha
    }

    /// How all elements are stored.
    pub fn dtype(&self) -> Dtype {
        self.dtype
    }

    /// In the order in which a file holds them.
    pub fn tensors(&self) -> &[DeclaredTensor] {
        &self.tensors
    }

    /// Bytes of all values.
    pub fn data_bytes(&self) -> u64 {
        // At most 2^14 tensors of 2^48 elements of 4 bytes: 2^64 saturates.
        self.tensors.iter().fold(0, |sum: u64, tensor| sum.saturating_add(self.bytes(tensor)))
    }

    /// Bytes of one tensor's values.
    pub(crate) fn bytes(&self, tensor: &DeclaredTensor) -> u64 {
        let [rows, columns] = tensor.shape.map(|dimension| dimension as u64);
        rows * columns * self.dtype.size() as u64
    }

    /// The same adapter, stored as another type.
    #[must_use]
    pub(crate) fn stored_as(&self, dtype: Dtype) -> Declared {
        Declared { dtype, ..self.clone() }
    }
}
