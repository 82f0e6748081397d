//! Requests of clients and a node's answers (specs/client.md).

use allmend_protocol::bytes::ByteString;
use allmend_protocol::cert::Role;
use allmend_protocol::ids::{Digest, MessageId, NodeId, ResearcherId};
use allmend_scheduler::io::Phase;
use serde::{Deserialize, Serialize};

use crate::seal::SealedResult;

/// The largest frame to or from a client, but for a sealed input, which has its own limit.
pub const CLIENT_FRAME_BYTES_MAX: usize = 4 * 1024 * 1024;

/// What a client asks. One per stream.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub enum Ask {
    /// Anybody with an invitation: let me in.
    Join {
        /// The envelope of a join request.
        request: ByteString,
    },
    /// Who the node is and who it takes the caller for.
    Hello {},
    /// The node's state, as a JSON document.
    Status {},
    /// The capacity table, as a JSON document.
    Nodes {},
    /// Submit a job. The sealed input follows as one frame.
    Submit {
        /// The job spec's envelope.
        spec: ByteString,
        /// The salt of its input's digest.
        salt: ByteString,
        /// Whether events shall follow on this stream until the job is over.
        follow: bool,
    },
    /// The caller's jobs (an operator: all), newest first, as a JSON document.
    Jobs {
        /// At most so many.
        limit: u32,
    },
    /// One job with everything known of it, as a JSON document.
    Show {
        /// The job.
        job: MessageId,
        /// With the signed messages themselves.
        signed: bool,
    },
    /// The job's signed messages and records in the order of the journal, as a JSON document.
    Logs {
        /// The job.
        job: MessageId,
    },
    /// Events of a job until it is over.
    Watch {
        /// The job.
        job: MessageId,
        /// The first token wanted.
        from: u32,
    },
    /// Cancel a job.
    Cancel {
        /// The cancellation's envelope, signed by the caller.
        cancel: ByteString,
    },
    /// A job's result, sealed to its researcher.
    Result {
        /// The job.
        job: MessageId,
    },
    /// What a job's output gate released, sealed to its researcher: parts, then the end of the stream.
    Artifact {
        /// The job.
        job: MessageId,
    },
    /// What waits for the caller to decide, as a JSON document.
    Inbox {},
    /// An approval or refusal, signed by the caller.
    Approve {
        /// Its envelope.
        approval: ByteString,
    },
    /// Steward: take a released adapter back.
    Recall {
        /// The adapter's id.
        adapter: Digest,
        /// Why.
        why: String,
    },
    /// The caller's recalls and who has answered them (an operator: all), as a JSON document.
    Recalls {},
    /// Adapters that this node serves, as a JSON document.
    Adapters {},
    /// Operator: adapters have been added to or removed from disk.
    AdaptersChanged {},
    /// Where a job like this could run and why not elsewhere, as a JSON document.
    Explain {
        /// An unsigned-for job spec's envelope; nothing is submitted.
        spec: ByteString,
    },
    /// Operator: make an invitation.
    Invite {
        /// As what.
        role: Role,
        /// How long it holds, in seconds.
        ttl_seconds: u64,
        /// For a researcher: what their certificate is to say of them.
        credentials: Vec<String>,
    },
    /// Operator: finish what runs, take nothing new.
    Drain {
        /// Why, for whoever is refused.
        why: String,
    },
    /// Operator: take work again.
    Resume {},
    /// Operator: stop the daemon, after what runs if `drain`.
    Stop {
        /// Wait for running work.
        drain: bool,
    },
    /// Disk use against caps, as a JSON document.
    Storage {},
    /// Operator: have another member test that this node can be reached, as a JSON document.
    Reach {},
    /// Operator: the register of researchers, as a JSON document.
    Members {},
    /// Operator: forget name, salts and stored inputs and results of a researcher.
    Erase {
        /// Whom.
        researcher: ResearcherId,
    },
    /// Operator: models have been added to or removed from disk.
    ModelsChanged {},
    /// Operator: datasets have been added, changed, forgotten in part or withdrawn on disk, or policies
    /// changed.
    DataChanged {},
}

/// What a node answers.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub enum Answer {
    /// It is done.
    Done {},
    /// A JSON document.
    Document {
        /// Its text.
        json: String,
    },
    /// The newcomer is in.
    Joined(Joined),
    /// The job is in the journal of its home node.
    Submitted {
        /// Its id.
        job: MessageId,
    },
    /// Something happened to the job.
    Event(JobEvent),
    /// The result.
    Result {
        /// How the job ended.
        phase: Phase,
        /// Sealed to the researcher.
        result: SealedResult,
    },
    /// A part of what was released.
    Part {
        /// The part.
        bytes: ByteString,
    },
    /// An invitation.
    Invitation {
        /// Its envelope.
        envelope: ByteString,
    },
    /// It cannot be.
    Refused(Problem),
}

/// Everything that a newcomer needs to be a member.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Joined {
    /// The charter's envelope; its id is the invitation's.
    pub charter: ByteString,
    /// Certificates of institutions and nodes known to the answering node.
    pub certificates: Vec<ByteString>,
    /// The newcomer's own: an institution's, a node's or a researcher's certificate.
    pub own: ByteString,
}

/// An event of a job, in order; tokens are numbered from 0 over all attempts.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub enum JobEvent {
    /// The job is somewhere else now.
    Phase {
        /// Where.
        phase: Phase,
        /// Why, in words.
        why: String,
        /// The attempt, if there is one.
        attempt: u16,
        /// Who has it.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        node: Option<NodeId>,
    },
    /// A token of the answer.
    Token {
        /// The attempt that wrote it.
        attempt: u16,
        /// Its place in the answer.
        index: u32,
        /// Its id.
        id: u32,
        /// Text that has become certain with it.
        text: String,
    },
    /// A report from training.
    Progress {
        /// The attempt that it is of.
        attempt: u16,
        /// Its place among the reports.
        index: u32,
        /// Tokens trained on since the report before.
        tokens: u32,
        /// What it says, as JSON (specs/finetune.md §6).
        report: String,
    },
    /// The job is over; nothing follows.
    Over {
        /// How.
        phase: Phase,
        /// Why, in words.
        why: String,
        /// What each node said, where that explains a refusal: node and verdict.
        verdicts: Vec<(String, String)>,
    },
}

/// Why a request is refused, for a person and for the exit code.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Problem {
    /// What sort.
    pub class: ProblemClass,
    /// What is wrong.
    pub error: String,
    /// Why, if there is more to say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cause: Option<String>,
    /// What would help.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
}

/// What sort of problem.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ProblemClass {
    /// The request is malformed.
    Usage,
    /// There is no such thing.
    NotFound,
    /// The caller may not.
    Refused,
    /// The node cannot at the moment.
    Unavailable,
    /// The disk is full.
    NoRoom,
    /// A fault of the node.
    Internal,
}

impl Problem {
    /// A problem of that class.
    pub fn new(class: ProblemClass, error: impl Into<String>) -> Problem {
        Problem { class, error: error.into(), cause: None, hint: None }
    }

    /// Says why.
    #[must_use]
    pub fn because(mut self, cause: impl std::fmt::Display) -> Problem {
        self.cause = Some(cause.to_string());
        self
    }

    /// Says what would help.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Problem {
        self.hint = Some(hint.into());
        self
    }
}
