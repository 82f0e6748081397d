//! What a researcher asks for (specs/job.md).

use serde::{Deserialize, Serialize};

use crate::advert::DeviceKind;
use crate::bytes::ByteString;
use crate::encoding::{self, DecodeError};
use crate::ids::{
    Digest, FederationId, InstitutionId, MessageId, NodeId, PublicKey, ResearcherId, fixed_bytes,
};
use crate::message::{Invalid, Kind, Message, require, require_text};
use crate::time::{DurationMs, Timestamp};
use crate::units::{Credits, Decimal, Jurisdiction};

/// The most attempts a job may have over all brokers.
pub const ATTEMPTS_MAX: u16 = 64;
/// The most entries in one placement list.
pub const PLACEMENT_LIST_MAX: usize = 64;
/// The most keys an input is wrapped for.
pub const WRAPS_MAX: usize = 16;
/// The largest work description, in bytes.
pub const WORK_BYTES_MAX: usize = 8 * 1024;
/// The longest a job may be asked to wait and run: thirty days.
pub const JOB_LIFETIME_MAX: DurationMs = DurationMs::from_secs(30 * 86_400);

/// The type of work that [`InferWork`] describes.
pub const WORK_INFER: &str = "infer.v1";

/// A job, as its researcher signed it. Its message id is the job's id.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JobSpec {
    /// Which federation.
    pub federation: FederationId,
    /// The researcher's pseudonymous key.
    pub signer: ResearcherId,
    /// The researcher's certificate.
    pub certificate: MessageId,
    /// The charter version relied on.
    pub charter: MessageId,
    /// The governance checkpoint relied on, if any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub governance: Option<Digest>,
    /// The node that brokers and pays.
    pub home: NodeId,
    /// Random: equal requests are different jobs.
    #[serde(with = "fixed_bytes")]
    pub nonce: [u8; 16],
    /// Which project it is for.
    pub project: String,
    /// What it is for, as policies name purposes.
    pub purpose: String,
    /// What to do.
    pub work: Work,
    /// The model, by digest of its file.
    pub model: Digest,
    /// The dataset it reads, if any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dataset: Option<Digest>,
    /// What it reads: sealed, by salted digest.
    pub input: SealedInput,
    /// Where it may run.
    pub placement: Placement,
    /// The most it may cost over all attempts.
    pub cap: Credits,
    /// The most attempts over all brokers.
    pub attempts: u16,
    /// When it was asked.
    pub issued: Timestamp,
    /// When it is of no use any more.
    pub deadline: Timestamp,
    /// Terms that the researcher accepts beforehand.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub terms: Option<Terms>,
    /// The delegation under which another key signed for the researcher.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub delegation: Option<MessageId>,
}

/// A kind of work and its description in that kind's own encoding.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Work {
    /// E.g. `infer.v1`.
    #[serde(rename = "type")]
    pub kind: String,
    /// Strict DAG-CBOR of that kind's description.
    pub bytes: ByteString,
}

/// An encrypted input: where its key is wrapped and how to recognise it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SealedInput {
    /// Salted digest of the ciphertext.
    pub digest: Digest,
    /// Size of the ciphertext in bytes.
    pub bytes: u64,
    /// The content key, wrapped for each node that may open it.
    #[serde(deserialize_with = "crate::encoding::list")]
    pub wraps: Vec<KeyWrap>,
}

/// A content key sealed to one node (HPKE base mode, X25519, HKDF-SHA256, ChaCha20-Poly1305).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KeyWrap {
    /// For whom.
    pub node: NodeId,
    /// The encapsulated key, 32 bytes.
    #[serde(with = "fixed_bytes")]
    pub enc: [u8; 32],
    /// The sealed content key: 32 bytes and a 16-byte tag.
    #[serde(with = "fixed_bytes")]
    pub sealed: [u8; 48],
}

/// Where a job may run. Empty lists of what is allowed mean: at the researcher's own institution
/// only, for whoever computes on a prompt can read it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Placement {
    /// Institutions that may run it.
    #[serde(deserialize_with = "crate::encoding::list")]
    pub at: Vec<InstitutionId>,
    /// Institutions that may not.
    #[serde(deserialize_with = "crate::encoding::list")]
    pub not_at: Vec<InstitutionId>,
    /// Jurisdictions in which it may run.
    #[serde(deserialize_with = "crate::encoding::list")]
    pub jurisdictions: Vec<Jurisdiction>,
    /// Jurisdictions in which it may not.
    #[serde(deserialize_with = "crate::encoding::list")]
    pub not_jurisdictions: Vec<Jurisdiction>,
    /// The kind of device it needs, if it matters.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device: Option<DeviceKind>,
    /// The least memory of the device.
    pub memory_mib: u64,
}

/// Terms accepted beforehand.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Terms {
    /// The dataset version.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dataset: Option<Digest>,
    /// The policy; absent means any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub policy: Option<Digest>,
    /// The kind of output, e.g. `adapter`.
    pub output: String,
    /// The weakest room accepted, e.g. `sealed-v1`.
    pub room: String,
}

/// The description of inference work.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct InferWork {
    /// The most tokens to write.
    pub max_tokens: u32,
    /// Zero is greedy.
    pub temperature: Decimal,
    /// Only the likeliest so many tokens; 0 is all.
    pub top_k: u32,
    /// Only the likeliest tokens that together have this probability; 1 is all.
    pub top_p: Decimal,
    /// Of the sampler.
    pub seed: u64,
    /// The clock that a chat template sees.
    pub clock: Timestamp,
    /// Upper bound on the prompt's tokens, for planning; the engine counts for itself.
    pub prompt_tokens_max: u32,
    /// The adapter to serve beside the model, by its id; absent: the model alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub adapter: Option<Digest>,
}

impl InferWork {
    /// As the work of a job spec.
    pub fn to_work(&self) -> Work {
        Work { kind: WORK_INFER.to_owned(), bytes: ByteString(encoding::encode(self)) }
    }

    /// Reads a job spec's work.
    ///
    /// # Errors
    /// [`DecodeError`] when it is another kind of work or malformed.
    pub fn from_work(work: &Work) -> Result<InferWork, DecodeError> {
        if work.kind != WORK_INFER {
            return Err(DecodeError::Malformed(format!("work of type {:?}", work.kind)));
        }
        let infer: InferWork = encoding::decode(&work.bytes.0, WORK_BYTES_MAX)?;
        infer.check().map_err(|error| DecodeError::Malformed(error.to_string()))?;
        Ok(infer)
    }

    fn check(&self) -> Result<(), Invalid> {
        require(self.max_tokens >= 1, "max_tokens", "at least 1")?;
        require(self.max_tokens <= 1 << 20, "max_tokens", "at most 1,048,576")?;
        for (number, field) in [(self.temperature, "temperature"), (self.top_p, "top_p")] {
            require(number.mantissa >= 0, field, "not negative")?;
            require(number.exponent_fits(), field, "exponent within 18")?;
            require(number.to_f64() <= 100.0, field, "at most 100")?;
        }
        Ok(())
    }
}

/// What the engine reads for inference; only ever encrypted outside the worker.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct InferInput {
    /// A conversation, rendered by the model's chat template…
    pub messages: Vec<ChatMessage>,
    /// …or raw text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prompt: Option<String>,
    /// Texts at which to stop.
    pub stop: Vec<String>,
}

/// One turn of a conversation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ChatMessage {
    /// `system`, `user` or `assistant`.
    pub role: String,
    /// What was said.
    pub content: String,
}

impl Message for JobSpec {
    const KIND: Kind = Kind::JobSpec;
    const VERSION: u16 = 1;

    fn federation(&self) -> Option<FederationId> {
        Some(self.federation)
    }

    fn signer(&self) -> PublicKey {
        self.signer.into()
    }

    fn check(&self) -> Result<(), Invalid> {
        require_text(&self.project, 120, "project")?;
        require_text(&self.purpose, 120, "purpose")?;
        require_text(&self.work.kind, 32, "work.type")?;
        require(self.work.bytes.0.len() <= WORK_BYTES_MAX, "work.bytes", "at most 8 KiB")?;
        require(self.input.wraps.len() <= WRAPS_MAX, "input.wraps", "at most 16")?;
        require(self.attempts >= 1 && self.attempts <= ATTEMPTS_MAX, "attempts", "1 to 64")?;
        require(self.issued < self.deadline, "deadline", "after issued")?;
        require(
            self.deadline <= self.issued.plus(JOB_LIFETIME_MAX),
            "deadline",
            "at most thirty days after issued",
        )?;
        self.placement.check()?;
        if let Some(terms) = &self.terms {
            require_text(&terms.output, 32, "terms.output")?;
            require_text(&terms.room, 32, "terms.room")?;
        }
        Ok(())
    }
}

impl Placement {
    fn check(&self) -> Result<(), Invalid> {
        fn sorted<T: Ord>(list: &[T], field: &'static str) -> Result<(), Invalid> {
            require(list.len() <= PLACEMENT_LIST_MAX, field, "at most 64")?;
            require(list.windows(2).all(|pair| pair[0] < pair[1]), field, "sorted, no repeats")
        }
        sorted(&self.at, "placement.at")?;
        sorted(&self.not_at, "placement.not_at")?;
        sorted(&self.jurisdictions, "placement.jurisdictions")?;
        sorted(&self.not_jurisdictions, "placement.not_jurisdictions")
    }
}

/// A researcher lets another key submit jobs in their name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Delegation {
    /// Which federation.
    pub federation: FederationId,
    /// The researcher.
    pub signer: ResearcherId,
    /// The key that may submit.
    pub delegate: PublicKey,
    /// For which project only, if any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub project: Option<String>,
    /// The most that all jobs under it may cost.
    pub cap: Credits,
    /// Holds from here.
    pub not_before: Timestamp,
    /// Holds until here.
    pub expires: Timestamp,
}

impl Message for Delegation {
    const KIND: Kind = Kind::Delegation;
    const VERSION: u16 = 1;

    fn federation(&self) -> Option<FederationId> {
        Some(self.federation)
    }

    fn signer(&self) -> PublicKey {
        self.signer.into()
    }

    fn check(&self) -> Result<(), Invalid> {
        require(self.not_before < self.expires, "expires", "after not_before")?;
        require(
            crate::envelope::is_strong_key(&self.delegate),
            "delegate",
            "a strong Ed25519 key",
        )?;
        self.project.as_deref().map_or(Ok(()), |project| require_text(project, 120, "project"))
    }
}
