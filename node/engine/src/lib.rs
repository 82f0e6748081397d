//! Local inference: weights, tokenizer, template, sampling, and the arithmetic. No network, no policy.
//!
//! [`Engine::load`] maps a GGUF file or a folder of safetensors and checks every byte of its headers;
//! [`Engine::submit`] queues a [`Request`], [`Engine::step`] moves all of them on together and reports
//! [`Event`]s; [`Engine::generate`] answers one at a time.
//! [`ModelInfo::read`] says what a file is, and what memory it will need, from the header alone.
//!
//! Files are taken to be hostile: damage gives an [`EngineError`] that says what and where, never a panic
//! and never memory out of proportion.
//!
//! # Two ways
//! A model is described by data (`spec`) and computed by one of two decoders: the engine's own kernels on
//! the processor (`cpu`, [`Compute::Fused`]), or plain candle operations on any device (`candle`). With the
//! former, answers depend on (weights, request, [`NUMERICS_VERSION`]) alone: not on what else is in the
//! batch, on how the prompt is cut, on what was cached, on threads, or on the processor's instructions. The
//! latter is the oracle of tests and the way to GPUs; its answers may depend on the batch.
//!
//! # Threads
//! The engine keeps a team of its own. Candle counts its threads once per process from [`THREADS_ENV`];
//! whoever starts a process that computes with it sets that.

mod adapter;
mod candle;
mod compute;
#[doc(hidden)]
pub mod cpu;
mod decoder;
mod embed;
mod engine;
mod error;
mod files;
#[doc(hidden)]
pub mod fuzzing;
mod info;
pub mod parity;
mod probe;
mod request;
mod sampling;
mod serve;
mod spec;
mod template;
mod text;
mod tokenizer;
pub mod train;

#[cfg(test)]
#[path = "../tests/support/gguf_writer.rs"]
#[allow(dead_code, reason = "shared with the integration tests, which use more of it")]
mod gguf_writer;

pub use crate::compute::Compute;
pub use crate::cpu::isa::Isa;
pub use crate::engine::{Engine, LoadOptions};
pub use crate::error::{EngineError, Fault, TemplateError};
pub use crate::files::gguf::GgufError;
pub use crate::files::map::hand_in;
pub use crate::files::safetensors::SafetensorsError;
pub use crate::info::ModelInfo;
pub use crate::probe::{GpuProbe, ProbeError, built_with_cuda, probe_gpu};
pub use crate::request::{
    Completion, Event, Finish, Input, Likelihood, Logprobs, PromptToken, Request, Ticket, Timings,
    Token, Usage,
};
pub use crate::sampling::Sampling;
pub use crate::serve::{ServeOptions, Stats};
pub use crate::template::ChatMessage;

/// Names the arithmetic of this build: two builds with the same name give the same tokens for the same
/// request. It changes whenever an order of operations may have.
pub const NUMERICS_VERSION: &str = "allmend-cpu-2";

/// Environment variable from which the number of computing threads is taken when a process first
/// computes.
pub const THREADS_ENV: &str = "RAYON_NUM_THREADS";
