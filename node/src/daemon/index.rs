//! Under which keys the journal's records are found: messages by id, and everything of a job by
//! the job's id, in journal order.

use allmend_protocol::envelope::Envelope;
use allmend_protocol::ids::MessageId;
use allmend_scheduler::io::Record as CoreRecord;
use serde::Deserialize;

use super::effects::KIND_CORE;
use crate::journal::{IndexEntry, Indexer, Position, Record, StoredRecord};

/// Finds messages and jobs.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ByJob;

/// The key of a message: where it lies.
pub(crate) fn message_key(id: MessageId) -> Vec<u8> {
    [b"m/".as_slice(), id.as_bytes()].concat()
}

/// The prefix of a job's records.
pub(crate) fn job_prefix(job: MessageId) -> Vec<u8> {
    [b"j/".as_slice(), job.as_bytes()].concat()
}

/// A body as far as the index needs it: which job it is about. Reads any message of ours, without
/// verifying: what is in the journal was verified before.
#[derive(Deserialize)]
struct AboutJob {
    job: MessageId,
}

impl Indexer for ByJob {
    fn index(&self, stored: &StoredRecord, entries: &mut Vec<IndexEntry>) {
        let at = stored.position;
        match &stored.record {
            Record::Leaf(bytes) => index_envelope(bytes, at, entries),
            Record::Private { kind: KIND_CORE, bytes } => {
                let Ok(record) = CoreRecord::from_bytes(bytes) else { return };
                match record {
                    CoreRecord::Heard { envelope, .. } => index_envelope(&envelope.0, at, entries),
                    CoreRecord::AttemptOver { job, .. } | CoreRecord::JobOver { job, .. } => {
                        index_job(job, at, entries);
                    }
                    CoreRecord::Started { .. }
                    | CoreRecord::Progress { .. }
                    | CoreRecord::Streamed { .. } => {}
                }
            }
            Record::Private { .. } => {}
        }
    }
}

fn index_envelope(bytes: &[u8], at: Position, entries: &mut Vec<IndexEntry>) {
    let Ok(envelope) = Envelope::from_bytes(bytes) else { return };
    let id = envelope.id();
    entries.push((message_key(id), at.to_bytes().to_vec()));
    if envelope.payload_type().contains(".job-spec.") {
        index_job(id, at, entries);
    } else if let Ok(about) = serde_ipld_dagcbor::from_slice::<AboutJob>(envelope.body()) {
        index_job(about.job, at, entries);
    }
}

fn index_job(job: MessageId, at: Position, entries: &mut Vec<IndexEntry>) {
    let position = at.to_bytes();
    entries.push(([job_prefix(job), position.to_vec()].concat(), position.to_vec()));
}
