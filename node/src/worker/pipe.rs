//! What the daemon and its worker say to each other over the worker's pipes: length-prefixed
//! DAG-CBOR frames. Many runs share the pipes; every frame about one carries its number. The worker
//! is our own child, yet what it says is read as if it were not.

use std::io::{self, Read, Write};
use std::path::PathBuf;

use allmend_protocol::encoding;
use allmend_protocol::ids::{Digest, ResearcherId};
use allmend_protocol::job::{InferInput, InferWork};
use serde::{Deserialize, Serialize};

/// The largest frame in either direction: a prompt at its limit, with room for framing.
pub const PIPE_FRAME_BYTES_MAX: usize = 66 * 1024 * 1024;

/// From the daemon.
///
/// Not `Debug`: it holds what researchers wrote, and their keys.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub enum ToWorker {
    /// Load a model, once and before anything else; answered by [`FromWorker::Loaded`] or
    /// [`FromWorker::NotLoaded`].
    Load {
        /// The file.
        path: PathBuf,
        /// Threads to compute with.
        threads: u32,
        /// The longest context to plan for.
        context_tokens_max: u32,
        /// Memory that the model and all of its runs may take.
        memory_mib: u64,
        /// Runs at once.
        slots: u16,
        /// The NVIDIA GPU to compute on, by its number; none for the processor.
        gpu: Option<u32>,
    },
    /// Begin one inference beside those that are under way.
    Run {
        /// Names it in every frame about it; never used twice.
        run: u64,
        /// What to do.
        work: Box<InferWork>,
        /// What to read.
        input: InferInput,
        /// Token ids that earlier attempts have emitted.
        forced: Vec<u32>,
        /// Whose it is: what was computed for a prompt may serve the same researcher's next one.
        researcher: ResearcherId,
        /// The folder of the adapter that the work names, if it names one.
        adapter: Option<PathBuf>,
    },
    /// Forget an adapter; runs that are under way keep it until they end.
    Forget {
        /// Its id.
        adapter: Digest,
    },
    /// Stop a run at the next step; its end follows. Nothing happens if it has ended.
    Cancel {
        /// Which.
        run: u64,
    },
}

/// From the worker.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub enum FromWorker {
    /// The model is loaded.
    Loaded {
        /// Its licence, as the file says.
        licence: Option<String>,
        /// The engine's numerics version.
        numerics: String,
    },
    /// The model cannot be loaded; the worker is of no further use.
    NotLoaded {
        /// In words.
        why: String,
    },
    /// Another part of a prompt has been computed.
    Prefilled {
        /// Whose.
        run: u64,
        /// Tokens computed so far, forced ones counted.
        done_tokens: u32,
        /// Tokens to compute before the first new one.
        total_tokens: u32,
    },
    /// One token.
    Token {
        /// Whose.
        run: u64,
        /// Its place in the answer, forced tokens counted.
        index: u32,
        /// Its id.
        id: u32,
        /// Text that has become certain with it; may be empty.
        text: String,
    },
    /// A run is over; no further frame names it.
    Ended {
        /// Which.
        run: u64,
        /// How.
        ended: Ended,
    },
}

impl FromWorker {
    /// The run that it is about, if it is about one.
    pub fn run(&self) -> Option<u64> {
        match self {
            FromWorker::Loaded { .. } | FromWorker::NotLoaded { .. } => None,
            FromWorker::Prefilled { run, .. }
            | FromWorker::Token { run, .. }
            | FromWorker::Ended { run, .. } => Some(*run),
        }
    }

    /// Whether a run has only moved on, and neither begun nor ended.
    pub fn moves_a_run_on(&self) -> bool {
        matches!(self, FromWorker::Prefilled { .. } | FromWorker::Token { .. })
    }
}

/// How a run ended.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub enum Ended {
    /// The answer is complete.
    Finished {
        /// `stop`, `stop-string` or `length`.
        reason: String,
        /// Tokens of prompt read.
        prompt_tokens: u32,
        /// Tokens of prompt that had been computed for an earlier run; counted in `prompt_tokens`.
        cached_tokens: u32,
        /// Tokens of the answer, forced ones counted.
        completion_tokens: u32,
        /// Its share of the time on the device, in milliseconds.
        device_ms: u64,
    },
    /// It was cancelled.
    Cancelled {
        /// Tokens of prompt read.
        prompt_tokens: u32,
        /// Its share of the time on the device, in milliseconds.
        device_ms: u64,
    },
    /// It failed.
    Failed {
        /// Whether it would fail anywhere.
        permanent: bool,
        /// In words, without any of the input.
        why: String,
    },
}

/// Writes one frame; whoever writes several flushes once.
///
/// # Errors
/// Those of the writer; a frame beyond the limit is `InvalidData`.
pub fn write_frame<T: Serialize>(to: &mut impl Write, frame: &T) -> io::Result<()> {
    to.write_all(&encode(frame)?)
}

/// A frame's bytes, its length in front.
///
/// # Errors
/// `InvalidData` when it is beyond the limit.
pub fn encode<T: Serialize>(frame: &T) -> io::Result<Vec<u8>> {
    let body = encoding::encode(frame);
    let length = u32::try_from(body.len())
        .ok()
        .filter(|_| body.len() <= PIPE_FRAME_BYTES_MAX)
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "frame beyond the limit"))?;
    Ok([&length.to_be_bytes()[..], &body].concat())
}

/// Reads one frame; `None` at the end of the pipe.
///
/// # Errors
/// Those of the reader; a malformed frame is `InvalidData`.
pub fn read_frame<T: Serialize + serde::de::DeserializeOwned>(
    from: &mut impl Read,
) -> io::Result<Option<T>> {
    let mut length = [0; 4];
    match from.read_exact(&mut length) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        Err(error) => return Err(error),
    }
    let length = u32::from_be_bytes(length) as usize;
    if length > PIPE_FRAME_BYTES_MAX {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "frame beyond the limit"));
    }
    let mut bytes = Vec::new();
    // Grows as bytes come, so that a claimed length alone allocates nothing.
    from.take(length as u64).read_to_end(&mut bytes)?;
    if bytes.len() < length {
        return Ok(None);
    }
    decode(&bytes).map(Some)
}

/// Decodes one frame's bytes.
///
/// # Errors
/// `InvalidData` when they are no frame of the expected kind.
pub fn decode<T: Serialize + serde::de::DeserializeOwned>(bytes: &[u8]) -> io::Result<T> {
    encoding::decode(bytes, PIPE_FRAME_BYTES_MAX)
        .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
}
