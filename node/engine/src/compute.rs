//! Which of the ways through a model is taken.

use std::num::NonZeroUsize;

use candle_core::Device;

use crate::candle::{self, CandleDecoder};
use crate::cpu;
use crate::cpu::forward::CpuDecoder;
use crate::cpu::isa::Isa;
use crate::decoder::Decoder;
use crate::error::EngineError;
use crate::files::checkpoint::Checkpoint;
use crate::spec::{Kind, ModelSpec};

/// Rows of a causal model that the fused path computes at once.
const DECODER_ROWS_MAX: usize = 512;
/// An encoder computes a text at once, and the longest known ones take this many tokens.
const ENCODER_ROWS_MAX: usize = 8_192;

/// No machine has more processors than this, and a team of more would be a slip of the pen.
const THREADS_MAX: usize = 1_024;

/// How a model is computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Compute {
    /// The engine's own kernels on the processor, with at most these instructions; None takes the best
    /// that there are. Results do not depend on them.
    Fused(Option<Isa>),
    /// Plain candle operations on the processor: slow, and independent of the kernels.
    Candle,
    /// Candle on the NVIDIA GPU of this number, in a build with the feature `cuda`.
    Cuda(usize),
    /// Candle on the Apple GPU of this number, in a build with the feature `metal`.
    Metal(usize),
}

impl Default for Compute {
    fn default() -> Self {
        Self::Fused(None)
    }
}

impl Compute {
    /// Every way that this processor has, each set of instructions by itself: for comparing them.
    pub fn on_this_processor() -> impl Iterator<Item = Self> {
        let fused = Isa::available().map(|isa| Self::Fused(Some(isa)));
        std::iter::once(Self::Candle).chain(fused)
    }

    /// The name used in reports.
    pub fn name(self) -> String {
        match self {
            Self::Fused(limit) => Isa::at_most(limit).name().to_owned(),
            Self::Candle => "candle".to_owned(),
            Self::Cuda(number) => format!("cuda:{number}"),
            Self::Metal(number) => format!("metal:{number}"),
        }
    }

    /// Names the arithmetic; see [`crate::NUMERICS_VERSION`].
    pub fn numerics(self) -> &'static str {
        match self {
            Self::Fused(_) => crate::NUMERICS_VERSION,
            Self::Candle => "candle-0.11.1-cpu-f32",
            Self::Cuda(_) => "candle-0.11.1-cuda",
            Self::Metal(_) => "candle-0.11.1-metal",
        }
    }

    /// What one token of context adds to the cache, over all layers, in bytes.
    pub(crate) fn cache_bytes_per_token(self, checkpoint: &Checkpoint) -> u64 {
        match self {
            Self::Fused(_) => cpu::cache_bytes_per_token(checkpoint),
            Self::Candle | Self::Cuda(_) | Self::Metal(_) => {
                candle::cache_bytes_per_token(checkpoint.spec())
            }
        }
    }

    /// Loads the weights, with memory for `pages` pages. None of `threads` takes every processor that this
    /// process may use.
    ///
    /// # Errors
    /// When the device is not there, or something is wrong with the weights.
    pub(crate) fn load(
        self,
        checkpoint: &Checkpoint,
        threads: Option<NonZeroUsize>,
        pages: usize,
    ) -> Result<Box<dyn Decoder>, EngineError> {
        let device = match self {
            Self::Fused(limit) => {
                let (isa, rows) = (Isa::at_most(limit), rows_max(checkpoint.spec()));
                let threads = threads.map_or_else(processors, NonZeroUsize::get);
                if threads > THREADS_MAX {
                    let problem = format!("{threads} threads, at most {THREADS_MAX} are possible");
                    return Err(EngineError::InvalidRequest(problem));
                }
                return Ok(Box::new(CpuDecoder::new(checkpoint, threads, isa, pages, rows)?));
            }
            Self::Candle => Device::Cpu,
            Self::Cuda(number) => Device::new_cuda(number)?,
            Self::Metal(number) => Device::new_metal(number)?,
        };
        check_threads(threads)?;
        Ok(Box::new(CandleDecoder::load(checkpoint, &device, pages)?))
    }
}

fn processors() -> usize {
    std::thread::available_parallelism().map_or(1, NonZeroUsize::get)
}

fn rows_max(spec: &ModelSpec) -> usize {
    match spec.kind {
        Kind::Decoder => DECODER_ROWS_MAX,
        Kind::Encoder => spec.context.clamp(DECODER_ROWS_MAX, ENCODER_ROWS_MAX),
    }
}

/// Candle counts its threads once, from the environment; all one can do is look.
fn check_threads(wanted: Option<NonZeroUsize>) -> Result<(), EngineError> {
    let effective = candle_core::utils::get_num_threads();
    match wanted {
        Some(wanted) if wanted.get() != effective => {
            Err(EngineError::Threads { wanted: wanted.get(), effective })
        }
        _ => Ok(()),
    }
}
