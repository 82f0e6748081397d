//! What the daemon and a training room say to each other: the frames of [`crate::worker::pipe`], with
//! bounds of their own. What comes out of the room was written with the data in view: it is read as a
//! stranger's, and nothing of it goes anywhere before the output gate.

use std::io::{self, Read, Write};

use allmend_protocol::bytes::ByteString;
use allmend_protocol::encoding;
use allmend_protocol::finetune::FinetuneWork;
use allmend_protocol::job::WORK_BYTES_MAX;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// The largest frame: an adapter, or a snapshot with both of its moments.
pub const TRAIN_FRAME_BYTES_MAX: usize = 1 << 30;
/// The name under which the room is handed the model's file; rows are `rows-0` and so on.
pub const MODEL: &str = "model";

/// To the room.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub enum ToTrainer {
    /// Train.
    Train(Box<Training>),
    /// Make a snapshot, and stop.
    Stop {},
}

/// What is to be trained.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Training {
    /// The work, as the job has it.
    pub work: ByteString,
    /// The weight of each file of rows, in their order.
    pub weights: Vec<u32>,
    /// The published number of distinct subjects of all rows.
    pub subjects: u64,
    /// Memory that it may take.
    pub memory_mib: u64,
    /// Where to go on, if there was an earlier attempt.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub snapshot: Option<ByteString>,
    /// Of the canaries that are put among the rows, so that the gate can measure what sticks.
    #[serde(with = "serde_bytes")]
    pub canary_seed: [u8; 32],
    /// Of the noise of a private run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub noise_key: Option<ByteString>,
    /// A fault to play, in tests of what follows from it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fault: Option<Fault>,
}

/// A fault that tests and `testnet` play.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub enum Fault {
    /// The loss of this step is not a number.
    NotFinite {
        /// Counted from 1.
        step: u64,
    },
    /// Losses are ten times what they are from this step on.
    LossTimesTen {
        /// Counted from 1.
        step: u64,
    },
    /// This step never ends.
    Hang {
        /// Counted from 1.
        step: u64,
    },
    /// From this step on the processor is not used.
    Idle {
        /// Counted from 1.
        step: u64,
    },
}

impl Fault {
    /// Reads `not-finite:7` and the like; none for an empty text.
    ///
    /// # Errors
    /// In words.
    pub fn parse(text: &str) -> Result<Option<Fault>, String> {
        if text.is_empty() {
            return Ok(None);
        }
        let wrong = || format!("{text:?} is no fault such as not-finite:7");
        let (kind, step) = text.split_once(':').ok_or_else(wrong)?;
        let step = step.parse().map_err(|_| wrong())?;
        Ok(Some(match kind {
            "not-finite" => Fault::NotFinite { step },
            "loss-times-ten" => Fault::LossTimesTen { step },
            "hang" => Fault::Hang { step },
            "idle" => Fault::Idle { step },
            _ => return Err(wrong()),
        }))
    }
}

/// From the room.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub enum FromTrainer {
    /// Model and rows are read, the checks before the first step passed.
    Ready {
        /// The model's licence, as its file says.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        licence: Option<String>,
        /// The step that it goes on from.
        step: u64,
    },
    /// Something that takes its time has begun, or goes on: a sign of life.
    Phase {
        /// What, in a word.
        phase: String,
    },
    /// A step has been taken.
    Step {
        /// Which, counted from 1.
        step: u64,
        /// Steps in all.
        steps: u64,
        /// Tokens trained on in it.
        tokens: u32,
        /// Rows that took part.
        rows: u32,
        /// Its mean loss, in millionths of a nat per token; a private run does not say it.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        loss_micro: Option<i64>,
    },
    /// Where another attempt could go on.
    Snapshot {
        /// Steps taken.
        step: u64,
        /// The snapshot.
        bytes: ByteString,
    },
    /// The adapter. Nothing follows.
    Adapter {
        /// `adapter_config.json`.
        config: String,
        /// `adapter_model.safetensors`.
        tensors: ByteString,
        /// The metrics record (specs/gate.md §3).
        metrics: ByteString,
        /// What it remembers (specs/gate.md §4).
        measures: ByteString,
    },
    /// It has stopped, as it was told. Nothing follows.
    Stopped {
        /// Steps taken.
        step: u64,
    },
    /// It cannot go on. Nothing follows.
    Aborted {
        /// What sort of reason, e.g. `not-finite`, `diverged`, `plateau`, `memory`.
        kind: String,
        /// Whether it would fail anywhere.
        permanent: bool,
        /// In words, without any of the data.
        why: String,
    },
}

impl Training {
    /// The work.
    ///
    /// # Errors
    /// `InvalidData` when it is none.
    pub fn work(&self) -> io::Result<FinetuneWork> {
        work(&self.work)
    }
}

fn work(bytes: &ByteString) -> io::Result<FinetuneWork> {
    encoding::decode(&bytes.0, WORK_BYTES_MAX)
        .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
}

/// Writes one frame.
///
/// # Errors
/// Those of the writer; a frame beyond the limit is `InvalidData`.
pub fn write<T: Serialize>(to: &mut impl Write, frame: &T) -> io::Result<()> {
    let body = encoding::encode(frame);
    let length = u32::try_from(body.len())
        .ok()
        .filter(|_| body.len() <= TRAIN_FRAME_BYTES_MAX)
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "frame beyond the limit"))?;
    to.write_all(&length.to_be_bytes())?;
    to.write_all(&body)?;
    to.flush()
}

/// Reads one frame; `None` at the end of the pipe.
///
/// # Errors
/// Those of the reader; a malformed frame is `InvalidData`.
pub fn read<T: Serialize + DeserializeOwned>(from: &mut impl Read) -> io::Result<Option<T>> {
    let mut length = [0; 4];
    match from.read_exact(&mut length) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        Err(error) => return Err(error),
    }
    let length = u32::from_be_bytes(length) as usize;
    let malformed = |why: &str| io::Error::new(io::ErrorKind::InvalidData, why.to_owned());
    if length > TRAIN_FRAME_BYTES_MAX {
        return Err(malformed("frame beyond the limit"));
    }
    // Grows as bytes come, so that a claimed length alone allocates nothing.
    let mut bytes = Vec::new();
    from.take(length as u64).read_to_end(&mut bytes)?;
    if bytes.len() < length {
        return Ok(None);
    }
    // The decoder's own words could quote what it read.
    encoding::decode(&bytes, TRAIN_FRAME_BYTES_MAX)
        .map(Some)
        .map_err(|_| malformed("not a frame of a training room"))
}
