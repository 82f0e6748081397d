//! The seam between what is decided here and what the daemon (or a simulation) does: inputs in,
//! effects out, records to rebuild from.

use allmend_protocol::advert::{CapacityAdvert, DeviceCapacity, ModelHeld};
use allmend_protocol::bytes::ByteString;
use allmend_protocol::cert::ResearcherCert;
use allmend_protocol::envelope::Verified;
use allmend_protocol::grant::{Assign, Grant};
use allmend_protocol::ids::{Digest, MessageId, NodeId};
use allmend_protocol::job::JobSpec;
use allmend_protocol::lease::{Cancel, Fence, Lease};
use allmend_protocol::message::{AnyMessage, Versions};
use allmend_protocol::receipt::{JobOutcome, Outcome, Usage};
use allmend_protocol::stewardship::{Contract, GateReport, GateStop, PolicyInForce, PrivacyTerms};
use allmend_protocol::time::DurationMs;
use allmend_protocol::units::Rates;
use serde::{Deserialize, Serialize};

/// Something happened.
#[derive(Clone, Debug)]
pub enum Input {
    /// First input after [`crate::core::Core::recover`]: the process is up again.
    Started,
    /// A verified message arrived. `from` is the authenticated neighbour that delivered it, which
    /// for everything but gossip must be the signer.
    Message {
        /// Who delivered it.
        from: NodeId,
        /// The message.
        message: AnyMessage,
        /// What it refers to.
        attached: Vec<AnyMessage>,
    },
    /// An admitted peer said which message versions it reads.
    PeerVersions {
        /// The peer.
        node: NodeId,
        /// What it reads.
        versions: Versions,
    },
    /// A message that we sent has arrived (the transport's acknowledgement).
    Delivered {
        /// At whom.
        to: NodeId,
    },
    /// A message that we sent could not be delivered.
    Undelivered {
        /// To whom.
        to: NodeId,
        /// Which.
        message: MessageId,
    },
    /// A researcher of this home node submits a job; its sealed input is in the spool already.
    Submit {
        /// The job.
        job: Verified<JobSpec>,
        /// The researcher's certificate.
        cert: Verified<ResearcherCert>,
    },
    /// A researcher of this home node cancels a job.
    Cancel(Verified<Cancel>),
    /// What this node can do has changed.
    Local(LocalState),
    /// The worker or the stream of one of our leases says something.
    Work {
        /// Whose.
        lease: MessageId,
        /// What.
        event: WorkEvent,
    },
    /// At home: so many tokens of this attempt have arrived (forced ones left out).
    Streamed {
        /// The job.
        job: MessageId,
        /// The attempt.
        attempt: u16,
        /// Tokens of this attempt seen so far.
        tokens: u32,
    },
    /// A message for this node's log that changes nothing here: an approval, a recall and its answers, a
    /// deletion.
    Note(Box<AnyMessage>),
    /// Time has passed. Comes at least every [`TICK_EVERY`].
    Tick,
}

/// How often a driver sends [`Input::Tick`].
pub const TICK_EVERY: DurationMs = DurationMs::from_ms(100);

/// What happens to work under a lease.
#[derive(Clone, Debug)]
pub enum WorkEvent {
    /// The worker wrote so many tokens in this attempt so far (forced ones left out).
    Progress {
        /// Tokens.
        tokens: u32,
    },
    /// The terms of a run on others' data are ready; the core signs and logs them.
    Contracted(Box<Terms>),
    /// The output gate has decided; the core signs and logs it.
    Gated(Box<Gated>),
    /// The worker is done, one way or another.
    Ended {
        /// How.
        outcome: Outcome,
        /// What it used.
        usage: Usage,
        /// Salted digest of the output.
        output: Option<Digest>,
        /// The model's licence.
        model_licence: Option<String>,
    },
}

/// What a node is about to promise for one run; the rest of a [`Contract`] is known from the lease.
#[derive(Clone, Debug)]
pub struct Terms {
    /// The dataset versions, sorted.
    pub datasets: Vec<Digest>,
    /// The policies in force.
    pub policies: Vec<PolicyInForce>,
    /// Ids of the policies that said yes.
    pub reasons: Vec<String>,
    /// The approvals it rests on.
    pub approvals: Vec<MessageId>,
    /// The base model's licence.
    pub model_licence: Option<String>,
    /// The kind of output.
    pub output: String,
    /// The room's strength.
    pub room: String,
    /// What was verified about it.
    pub room_facts: Vec<String>,
    /// What it costs of privacy budgets.
    pub privacy: Option<PrivacyTerms>,
}

/// What the output gate decided.
#[derive(Clone, Debug)]
pub struct Gated {
    /// The adapter, when it may leave.
    pub released: Option<Digest>,
    /// Why not, when it may not.
    pub stops: Vec<GateStop>,
    /// The approvals of the output.
    pub approvals: Vec<MessageId>,
}

/// What this node can do, as its probes and owner say.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct LocalState {
    /// Devices to compute on.
    pub devices: Vec<DeviceCapacity>,
    /// How many jobs run at once.
    pub slots_total: u16,
    /// Models on disk, sorted by digest.
    pub models: Vec<ModelHeld>,
    /// Models that may be fetched when asked for: digest and memory needed.
    pub fetchable: Vec<ModelHeld>,
    /// Datasets here, sorted.
    pub datasets: Vec<Digest>,
    /// Those of them that stewards let be known, sorted.
    pub datasets_public: Vec<Digest>,
    /// Adapters that are served here, sorted.
    pub adapters: Vec<Digest>,
    /// What is asked for work.
    pub rates: Rates,
    /// Finish what runs, take nothing new; why, in words.
    pub draining: Option<String>,
    /// The disk cannot take more; why, in words.
    pub disk_full: Option<String>,
    /// Control addresses to advertise.
    pub addresses: Vec<String>,
}

/// Something to be done. Effects are performed in order: an append that must be durable is durable
/// before the send that follows it.
#[derive(Clone, Debug)]
pub enum Effect {
    /// Write to the journal.
    Append {
        /// What.
        entry: Entry,
        /// Whether later effects must wait until it is on the platter. Progress need not be.
        durable: bool,
    },
    /// Deliver to one node (which may be this one: then it comes back as an input).
    Send {
        /// To whom.
        to: NodeId,
        /// The message.
        message: AnyMessage,
        /// What it refers to.
        attached: Vec<AnyMessage>,
    },
    /// Gossip our advert to everyone.
    Publish(Verified<CapacityAdvert>),
    /// Executing node: expect home's stream with the input for this lease, then run the job.
    StartWork(Work),
    /// Executing node: stop the worker of this lease; an [`WorkEvent::Ended`] must follow.
    StopWork {
        /// The lease.
        lease: MessageId,
        /// With which outcome it is to end.
        outcome: Outcome,
    },
    /// Executing node: the contract of this lease is durable; the data may be opened.
    WorkContracted {
        /// The lease.
        lease: MessageId,
        /// The contract.
        contract: Verified<Contract>,
    },
    /// Executing node: what the gate decided is durable; what it released may leave.
    WorkGated {
        /// The lease.
        lease: MessageId,
        /// The report.
        report: Verified<GateReport>,
    },
    /// Executing node: the lease has ended and its receipt is durable; tell the stream.
    WorkSettled {
        /// The lease.
        lease: MessageId,
    },
    /// Executing node: home has counted the lease, or cannot any more. If no other lease of its job is open,
    /// nothing that the job has left here is of use.
    WorkCounted {
        /// The lease.
        lease: MessageId,
    },
    /// Home: open the stream to the node that holds the lease, give the input, take tokens.
    OpenStream {
        /// The job.
        job: MessageId,
        /// The attempt.
        attempt: u16,
        /// Who holds the lease.
        node: NodeId,
        /// The lease.
        lease: MessageId,
    },
    /// Home: this attempt's stream is of no use any more.
    CloseStream {
        /// The job.
        job: MessageId,
        /// The attempt.
        attempt: u16,
    },
    /// Home: the job's state has changed; tell whoever watches. Read it with `Core::job`.
    JobChanged {
        /// The job.
        job: MessageId,
    },
}

/// What an executing node needs to run one attempt.
#[derive(Clone, Debug)]
pub struct Work {
    /// The lease.
    pub lease: Verified<Lease>,
    /// The job.
    pub job: Verified<JobSpec>,
    /// The grant.
    pub grant: Verified<Grant>,
    /// The assignment.
    pub assign: Verified<Assign>,
    /// The researcher's certificate.
    pub cert: Verified<ResearcherCert>,
    /// Home, from which input comes and to which tokens go.
    pub home: NodeId,
}

/// One journal entry as the machines see it.
#[derive(Clone, Debug)]
pub enum Entry {
    /// A public leaf of the node's log: an envelope.
    Leaf(AnyMessage),
    /// For this node alone.
    Private(Record),
}

/// A private journal record.
///
/// Encoded as DAG-CBOR by [`Record::to_bytes`]; messages of others that replay needs are kept as
/// their envelope bytes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub enum Record {
    /// A start of the process, durable before anything else happens: fences and adverts of this
    /// incarnation were never used before.
    Started {
        /// The log epoch.
        epoch: u32,
        /// The incarnation that begins.
        incarnation: u32,
    },
    /// A message of another signer that the machines took note of.
    Heard {
        /// Its envelope.
        envelope: ByteString,
        /// What it referred to.
        attached: Vec<ByteString>,
    },
    /// Executing node: progress of a lease, so that an interrupted one can be paid.
    Progress {
        /// The lease.
        lease: MessageId,
        /// Tokens written.
        tokens: u32,
    },
    /// Home: tokens of an attempt that have arrived.
    Streamed {
        /// The job.
        job: MessageId,
        /// The attempt.
        attempt: u16,
        /// Tokens seen.
        tokens: u32,
    },
    /// Home: an attempt is given up; the next may be made.
    AttemptOver {
        /// The job.
        job: MessageId,
        /// The attempt.
        attempt: u16,
        /// Why, in words.
        why: String,
    },
    /// Home: the job has ended; only the counting is left.
    JobOver {
        /// The job.
        job: MessageId,
        /// How.
        outcome: JobOutcomeRecord,
        /// Why, in words.
        why: String,
    },
}

/// [`JobOutcome`] as recorded, with the difference between refused and failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum JobOutcomeRecord {
    /// An attempt finished.
    Finished,
    /// Every attempt failed, or one failed for good.
    Failed,
    /// No node may or will run it.
    Refused,
    /// The researcher cancelled.
    Cancelled,
    /// The deadline passed.
    Expired,
}

impl From<JobOutcomeRecord> for JobOutcome {
    fn from(record: JobOutcomeRecord) -> JobOutcome {
        match record {
            JobOutcomeRecord::Finished => JobOutcome::Finished,
            JobOutcomeRecord::Failed | JobOutcomeRecord::Refused => JobOutcome::Failed,
            JobOutcomeRecord::Cancelled => JobOutcome::Cancelled,
            JobOutcomeRecord::Expired => JobOutcome::Expired,
        }
    }
}

/// The largest encoded record: two envelopes' worth of what was heard.
pub const RECORD_BYTES_MAX: usize = 256 * 1024;

impl Record {
    /// As bytes for the journal.
    pub fn to_bytes(&self) -> Vec<u8> {
        allmend_protocol::encoding::encode(self)
    }

    /// From the journal's bytes.
    ///
    /// # Errors
    /// [`allmend_protocol::encoding::DecodeError`] when they are not a record of this release.
    pub fn from_bytes(bytes: &[u8]) -> Result<Record, allmend_protocol::encoding::DecodeError> {
        allmend_protocol::encoding::decode(bytes, RECORD_BYTES_MAX)
    }
}

/// A home node's job, for people and scripts.
#[derive(Clone, Debug, Serialize)]
pub struct JobView {
    /// The job.
    pub job: MessageId,
    /// Where it is.
    pub phase: Phase,
    /// Why it is there, in words; for a waiting job, what would have to change.
    pub why: String,
    /// The attempts so far.
    pub attempts: Vec<AttemptView>,
    /// What nodes answered or why they were not asked, newest per node.
    pub considered: Vec<Considered>,
    /// What was paid in all, once settled, in micro-credits.
    pub cost_micro: Option<u64>,
    /// The settlement, once there is one.
    pub settlement: Option<MessageId>,
}

/// Where a job is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Phase {
    /// Nothing fits at the moment.
    Queued,
    /// Nodes are being asked.
    Asking,
    /// A node was given the attempt and has not answered yet.
    Assigned,
    /// A node runs it.
    Running,
    /// Done.
    Finished,
    /// Every attempt failed.
    Failed,
    /// No node may or will run it.
    Refused,
    /// Cancelled.
    Cancelled,
    /// Its deadline passed.
    Expired,
}

impl Phase {
    /// Whether nothing more will happen but counting.
    pub const fn is_over(self) -> bool {
        matches!(
            self,
            Phase::Finished | Phase::Failed | Phase::Refused | Phase::Cancelled | Phase::Expired
        )
    }
}

/// One attempt, for people and scripts.
#[derive(Clone, Debug, Serialize)]
pub struct AttemptView {
    /// Its number.
    pub attempt: u16,
    /// To whom it was given.
    pub node: NodeId,
    /// The lease, once there is one.
    pub lease: Option<MessageId>,
    /// Its fence.
    pub fence: Option<Fence>,
    /// The receipt, once there is one.
    pub receipt: Option<MessageId>,
    /// Tokens of this attempt that reached home.
    pub tokens: u32,
    /// What it was paid, once settled, in micro-credits.
    pub paid_micro: Option<u64>,
    /// How it stands, in words.
    pub status: String,
}

/// What became of asking one node.
#[derive(Clone, Debug, Serialize)]
pub struct Considered {
    /// Which node.
    pub node: NodeId,
    /// In words, e.g. `offered`, or the reasons of a refusal.
    pub verdict: String,
}
