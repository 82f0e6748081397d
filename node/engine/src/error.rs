//! Why the engine refused or failed, in types that a caller can act on.

use std::path::PathBuf;

use crate::files::gguf::GgufError;
use crate::files::safetensors::SafetensorsError;

/// Who can do something about an [`EngineError`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The request is wrong; every node would refuse it.
    Request,
    /// The model file is damaged or of a kind that this build does not know.
    Model,
    /// This machine cannot: memory, disk, threads. Another one may.
    Machine,
    /// The arithmetic failed; an engine bug or damaged weights.
    Internal,
}

/// Everything that loading or generating can fail with.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EngineError {
    /// The model file could not be opened or mapped.
    #[error("cannot read model file {}: {source}", path.display())]
    Io {
        /// The file asked for.
        path: PathBuf,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// The file is not a well-formed GGUF file.
    #[error(transparent)]
    Gguf(#[from] GgufError),
    /// A file of a folder is not a well-formed safetensors file.
    #[error("{}: {source}", path.display())]
    Safetensors {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: SafetensorsError,
    },
    /// The weights belong to a family that this build has no description of.
    #[error("architecture \"{name}\" is not supported (supported: {supported})")]
    UnsupportedArchitecture {
        /// `general.architecture` as the file says it.
        name: String,
        /// Comma-separated names that would have worked.
        supported: String,
    },
    /// The family is known, but this file uses something of it that is not.
    #[error("{key} = {value} is not supported: {reason}")]
    UnsupportedFeature {
        /// The metadata key or tensor name.
        key: String,
        /// What it holds.
        value: String,
        /// Why that stops us.
        reason: &'static str,
    },
    /// A metadata value is missing, of the wrong type or out of its range.
    #[error("metadata {key}: {problem}")]
    Metadata {
        /// The metadata key.
        key: String,
        /// What is wrong with it.
        problem: String,
    },
    /// A tensor is missing, misshapen or superfluous.
    #[error("tensor {name}: {problem}")]
    Tensor {
        /// The tensor's name in the file.
        name: String,
        /// What is wrong with it.
        problem: String,
    },
    /// `tokenizer.ggml.pre` names a splitting rule that this build does not know.
    #[error("tokenizer.ggml.pre = \"{name}\" is not supported (supported: {supported})")]
    UnknownPreTokenizer {
        /// The name in the file.
        name: String,
        /// Comma-separated names that would have worked.
        supported: String,
    },
    /// The tokenizer in the file contradicts itself.
    #[error("tokenizer: {0}")]
    Tokenizer(String),
    /// The chat template is missing, broken, refused the conversation or exceeded its bounds.
    #[error("chat template: {0}")]
    Template(#[from] TemplateError),
    /// The plan for weights and cache exceeds the budget.
    #[error(
        "model needs {need_mib} MiB ({weights_mib} MiB weights and buffers, {cache_mib} MiB cache \
         for {context_tokens} tokens) but {budget_mib} MiB are available; \
         a context of {context_fits} tokens would fit"
    )]
    Memory {
        /// Total of the plan.
        need_mib: u64,
        /// Weights as held in memory, and working buffers.
        weights_mib: u64,
        /// Key-value cache at full context.
        cache_mib: u64,
        /// Context planned for.
        context_tokens: u32,
        /// What may be used.
        budget_mib: u64,
        /// The longest context that would fit; 0 when not even the weights do.
        context_fits: u32,
    },
    /// The process was started with another thread count than the one asked for.
    #[error(
        "asked for {wanted} threads but this process computes with {effective}: \
         start it with {}={wanted}",
        crate::THREADS_ENV
    )]
    Threads {
        /// Asked for in `LoadOptions`.
        wanted: usize,
        /// What the environment gave.
        effective: usize,
    },
    /// Prompt and answer do not fit the context window.
    #[error(
        "context limit: {prompt_tokens} prompt tokens + {max_tokens} answer tokens \
         exceed the context of {context_tokens} tokens by {}",
        (u64::from(*prompt_tokens) + u64::from(*max_tokens))
            .saturating_sub(u64::from(*context_tokens))
    )]
    ContextExceeded {
        /// Tokens of the prompt.
        prompt_tokens: u32,
        /// Tokens asked for.
        max_tokens: u32,
        /// Tokens that the loaded engine can hold.
        context_tokens: u32,
    },
    /// Prompt and answer do not fit the page cache, even with nothing else in it.
    #[error(
        "the request may need {need_tokens} tokens of cache (prompt and answer), \
         {cache_tokens} can be had: ask for a shorter answer, or load with a larger cache_tokens"
    )]
    CacheExceeded {
        /// Tokens of prompt and answer.
        need_tokens: u64,
        /// Tokens that the cache can hold for it.
        cache_tokens: u64,
    },
    /// Too many requests wait already.
    #[error("{waiting} requests are waiting already; try again later")]
    Busy {
        /// How many wait.
        waiting: usize,
    },
    /// The request contradicts itself or exceeds a bound.
    #[error("request: {0}")]
    InvalidRequest(String),
    /// Logits are NaN or infinite, so no token can be chosen honestly.
    #[error("logits for token {index} are not finite; the weights are damaged")]
    NotFinite {
        /// Index of the token that was to be chosen.
        index: u32,
    },
    /// The arithmetic layer failed.
    #[error("compute: {0}")]
    Compute(#[from] candle_core::Error),
}

impl EngineError {
    /// Says who can do something about it: retry elsewhere only helps for [`Fault::Machine`].
    pub fn fault(&self) -> Fault {
        match self {
            Self::ContextExceeded { .. } | Self::InvalidRequest(_) => Fault::Request,
            Self::Template(error) => error.fault(),
            Self::Io { .. }
            | Self::Memory { .. }
            | Self::Threads { .. }
            | Self::CacheExceeded { .. }
            | Self::Busy { .. } => Fault::Machine,
            Self::Compute(_) => Fault::Internal,
            _ => Fault::Model,
        }
    }

    pub(crate) fn metadata(key: impl Into<String>, problem: impl Into<String>) -> Self {
        Self::Metadata { key: key.into(), problem: problem.into() }
    }

    pub(crate) fn tensor(name: impl Into<String>, problem: impl Into<String>) -> Self {
        Self::Tensor { name: name.into(), problem: problem.into() }
    }
}

/// Why a chat could not be turned into a prompt.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TemplateError {
    /// The file carries no template.
    #[error("this model has none; send a raw prompt instead of a chat")]
    Missing,
    /// The template does not parse.
    #[error("does not parse: {0}")]
    Syntax(String),
    /// The template itself refused the conversation (`raise_exception`).
    #[error("refused the conversation: {0}")]
    Refused(String),
    /// Rendering stopped at a bound.
    #[error("stopped at its bound of {0}")]
    Bound(&'static str),
    /// Anything else that happened while rendering.
    #[error("failed: {0}")]
    Render(String),
}

impl TemplateError {
    fn fault(&self) -> Fault {
        match self {
            // Asking a model without a template to chat is the caller's mistake, as is a conversation
            // that the template rejects (for instance two user turns in a row).
            Self::Missing | Self::Refused(_) => Fault::Request,
            Self::Syntax(_) | Self::Bound(_) | Self::Render(_) => Fault::Model,
        }
    }
}
