//! What the daemon and its worker say to each other over the worker's pipes: length-prefixed
//! DAG-CBOR frames. The worker is our own child, yet what it says is read as if it were not.

use std::io::{self, Read, Write};
use std::path::PathBuf;

use allmend_protocol::encoding;
use allmend_protocol::job::{InferInput, InferWork};
use serde::{Deserialize, Serialize};

/// The largest frame in either direction: a prompt at its limit, with room for framing.
pub const PIPE_FRAME_BYTES_MAX: usize = 66 * 1024 * 1024;

/// From the daemon.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub enum ToWorker {
    /// Load a model; answered by [`FromWorker::Loaded`] or [`FromWorker::Ended`] with an error.
    Load {
        /// The file.
        path: PathBuf,
        /// Threads to compute with.
        threads: u32,
        /// The longest context to plan for.
        context_tokens_max: u32,
    },
    /// Run one inference.
    Run {
        /// What to do.
        work: InferWork,
        /// What to read.
        input: InferInput,
        /// Token ids that earlier attempts have emitted.
        forced: Vec<u32>,
    },
    /// Stop what runs, between two tokens.
    Cancel,
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
    /// One token.
    Token {
        /// Its place in the answer, forced tokens counted.
        index: u32,
        /// Its id.
        id: u32,
        /// Text that has become certain with it; may be empty.
        text: String,
    },
    /// The run or the loading is over.
    Ended(Ended),
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
        /// Tokens of the answer, forced ones counted.
        completion_tokens: u32,
        /// Time on the device, in milliseconds.
        device_ms: u64,
    },
    /// It was cancelled.
    Cancelled {
        /// Tokens of prompt read.
        prompt_tokens: u32,
        /// Time on the device, in milliseconds.
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

/// Writes one frame and flushes it.
///
/// # Errors
/// Those of the writer; a frame beyond the limit is `InvalidData`.
pub fn write_frame<T: Serialize>(to: &mut impl Write, frame: &T) -> io::Result<()> {
    let bytes = encoding::encode(frame);
    let length = u32::try_from(bytes.len())
        .ok()
        .filter(|_| bytes.len() <= PIPE_FRAME_BYTES_MAX)
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "frame beyond the limit"))?;
    to.write_all(&length.to_be_bytes())?;
    to.write_all(&bytes)?;
    to.flush()
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
