//! What can be said about a model file from its header alone, and how much memory it will need.

use std::path::Path;

use candle_core::quantized::GgmlDType;

use crate::error::EngineError;
use crate::files::gguf::{Gguf, dtype_name};
use crate::files::map;
use crate::spec::{self, ModelSpec};

/// Tokenizer tables, thread stacks and allocator slack; measured at about 40 MiB, rounded up.
const FIXED_BYTES: u64 = 64 << 20;

/// Rows whose activations are planned for.
const SCRATCH_ROWS: u64 = 256;

/// A model as its header describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModelInfo {
    /// Model family, for instance `llama`.
    pub architecture: String,
    /// `general.name`, which is whatever its publisher wrote.
    pub name: Option<String>,
    /// `general.license`, usually an SPDX name.
    pub license: Option<String>,
    /// Weights, counted one by one.
    pub parameters: u64,
    /// The type that holds most of the weights, for instance `Q4_1`.
    pub quantisation: String,
    /// Longest sequence the model was trained for, prompt and answer together.
    pub context_tokens: u32,
    /// Number of different tokens.
    pub vocabulary_tokens: u32,
    /// The file carries a chat template.
    pub chat: bool,
    /// Size of the file in bytes.
    pub file_bytes: u64,
    /// Weights as held in memory, and working buffers, in bytes.
    pub weights_bytes: u64,
    /// What one token of context adds to the cache, in bytes.
    pub cache_bytes_per_token: u64,
}

impl ModelInfo {
    /// Reads the header of a GGUF file; the weights are not touched.
    ///
    /// # Errors
    /// As [`crate::Engine::load`] for anything that the header alone gives away: an `Ok` here means
    /// that family, features and storage types are supported.
    pub fn read(path: &Path) -> Result<Self, EngineError> {
        let map = map::map(path)?;
        let gguf = Gguf::parse(&map)?;
        let spec = spec::gguf::read(&gguf)?.0;
        Self::from_parts(&gguf, &spec)
    }

    /// Memory planned for this model with the given context, in MiB, rounded up.
    pub fn memory_mib(&self, context_tokens: u32) -> u64 {
        let cache = self.cache_bytes_per_token.saturating_mul(context_tokens.into());
        self.weights_bytes.saturating_add(cache).div_ceil(1 << 20)
    }

    /// The longest context that `memory_mib` allows, at most the model's own; 0 when not even the
    /// weights fit.
    pub fn context_that_fits(&self, memory_mib: u64) -> u32 {
        let room = memory_mib.saturating_mul(1 << 20).saturating_sub(self.weights_bytes);
        let tokens = room / self.cache_bytes_per_token.max(1);
        u32::try_from(tokens).unwrap_or(u32::MAX).min(self.context_tokens)
    }

    pub(crate) fn from_parts(gguf: &Gguf<'_>, spec: &ModelSpec) -> Result<Self, EngineError> {
        let text = |key| -> Result<Option<String>, EngineError> {
            Ok(gguf.string(key)?.map(|text| text.chars().take(256).collect()))
        };
        let mut by_type = std::collections::BTreeMap::<&str, u64>::new();
        let (mut parameters, mut held, mut largest) = (0u64, 0u64, 0u64);
        for info in gguf.tensors.values() {
            // Each tensor lies inside the file and apart from the others, so the sums cannot overflow.
            let elements = info.elements() as u64;
            *by_type.entry(dtype_name(info.dtype)).or_default() += elements;
            parameters += elements;
            largest = largest.max(elements);
            held += match info.dtype {
                // Held as F32: that is what the float kernels compute with.
                GgmlDType::F32 | GgmlDType::F16 | GgmlDType::BF16 => elements * 4,
                _ => info.range.len() as u64,
            };
        }
        let quantisation = by_type.iter().max_by_key(|(_, elements)| **elements);
        let widest = spec.mlp_width.max(spec.heads * spec.head_dim).max(spec.width) as u64;
        // A chunk's activations in the widest block, rows of logits, and one matrix expanded to F32.
        let scratch = 4 * (SCRATCH_ROWS * widest * 8 + spec.vocab as u64 * 4 + largest);
        Ok(Self {
            architecture: text("general.architecture")?.unwrap_or_default(),
            name: text("general.name")?,
            license: text("general.license")?,
            parameters,
            quantisation: quantisation.map_or_else(String::new, |(name, _)| (*name).to_owned()),
            context_tokens: spec.context as u32,
            vocabulary_tokens: spec.vocab as u32,
            chat: gguf.metadata.contains_key("tokenizer.chat_template"),
            file_bytes: gguf.bytes.len() as u64,
            weights_bytes: held + scratch + FIXED_BYTES,
            cache_bytes_per_token: spec.cache_elements_per_token() * 4,
        })
    }
}

/// Memory that the operating system could give without swapping, in MiB; None where it does not say.
pub(crate) fn available_mib() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kib: u64 = line.trim().strip_suffix(" kB")?.parse().ok()?;
    Some(kib / 1_024)
}
