//! Where weights come from: GGUF files, and folders with `config.json` and safetensors.
//!
//! Everything is read through a mapping and trusted only after it has been checked. What the numbers mean
//! is the business of `spec`; what is computed with them that of the decoders.

pub(crate) mod checkpoint;
pub(crate) mod gguf;
pub(crate) mod map;
pub(crate) mod metadata;
pub(crate) mod safetensors;
