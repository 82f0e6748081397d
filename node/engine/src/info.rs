//! What can be said about a model file from its header alone, and how much memory it will need.

use std::path::Path;

use crate::compute::Compute;
use crate::error::EngineError;
use crate::files::checkpoint::Checkpoint;
use crate::tokenizer;

/// Tokenizer tables, thread stacks and allocator slack; measured at about 40 MiB, rounded up.
const FIXED_BYTES: u64 = 64 << 20;

/// Rows whose activations are planned for.
const SCRATCH_ROWS: u64 = 512;
/// Rows of logits that are planned for.
const LOGIT_ROWS: u64 = 64;
/// Weights are packed as compactly as they are stored, but for the rarer types, whose packed form is up to
/// this part larger on the whole.
const PACKING_SHARE: u64 = 8;

/// A model as its header describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModelInfo {
    /// Model family, for instance `llama`, as file or folder names it.
    pub architecture: String,
    /// `general.name`, which is whatever its publisher wrote; a folder has none.
    pub name: Option<String>,
    /// `general.license`, usually an SPDX name; a folder has none.
    pub license: Option<String>,
    /// Weights, counted one by one.
    pub parameters: u64,
    /// The type that holds most of the weights, for instance `Q4_1`.
    pub quantisation: String,
    /// Longest sequence the model was trained for, prompt and answer together.
    pub context_tokens: u32,
    /// Number of different tokens.
    pub vocabulary_tokens: u32,
    /// There is a chat template.
    pub chat: bool,
    /// Size of the file or, for a folder, of the tensors in bytes.
    pub file_bytes: u64,
    /// Weights as held in memory, and working buffers, in bytes.
    pub weights_bytes: u64,
    /// What one token of context adds to the cache, in bytes.
    pub cache_bytes_per_token: u64,
}

impl ModelInfo {
    /// Reads the header of a GGUF file, or what the files of a folder say; the weights are not touched.
    ///
    /// # Errors
    /// As [`crate::Engine::load`] for anything that the headers alone give away: an `Ok` here means
    /// that family, features and storage types are supported.
    pub fn read(path: &Path) -> Result<Self, EngineError> {
        Self::of(&Checkpoint::open(path)?)
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

    pub(crate) fn of(checkpoint: &Checkpoint) -> Result<Self, EngineError> {
        let spec = checkpoint.spec();
        let gguf = checkpoint.gguf();
        let text = |key| -> Result<Option<String>, EngineError> {
            let text = gguf.as_ref().map_or(Ok(None), |gguf| gguf.string(key))?;
            Ok(text.map(|text| text.chars().take(256).collect()))
        };
        let chat = match &gguf {
            Some(gguf) => gguf.metadata.contains_key("tokenizer.chat_template"),
            None => tokenizer::folder::chat_template(checkpoint.path())?.is_some(),
        };
        let mut by_type = std::collections::BTreeMap::<&str, u64>::new();
        let (mut parameters, mut stored) = (0u64, 0u64);
        for (dtype, elements, bytes) in checkpoint.sizes() {
            *by_type.entry(dtype).or_default() += elements;
            // Each tensor lies inside its file and apart from the others, so the sums cannot overflow.
            parameters += elements;
            stored += bytes;
        }
        let file_bytes = gguf.as_ref().map_or(stored, |gguf| gguf.bytes.len() as u64);
        let quantisation = by_type.iter().max_by_key(|(_, elements)| **elements);
        let widest = spec.mlp_width.max(spec.query_width()).max(spec.width) as u64;
        // A batch's activations in the widest block, and some rows of logits.
        let scratch = 4 * (SCRATCH_ROWS * widest * 8 + spec.vocab as u64 * LOGIT_ROWS);
        Ok(Self {
            architecture: spec.family.to_owned(),
            name: text("general.name")?,
            license: text("general.license")?,
            parameters,
            quantisation: quantisation.map_or_else(String::new, |(name, _)| (*name).to_owned()),
            context_tokens: spec.context as u32,
            vocabulary_tokens: spec.vocab as u32,
            chat,
            file_bytes,
            weights_bytes: stored + stored / PACKING_SHARE + scratch + FIXED_BYTES,
            cache_bytes_per_token: Compute::default().cache_bytes_per_token(checkpoint),
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
