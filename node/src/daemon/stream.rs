//! The stream of one attempt between home and the executing node (specs/stream.md): home gives the
//! sealed input, the node gives tokens. May break and be opened again at any token.

use std::sync::Arc;
use std::time::Duration;

use allmend_protocol::bytes::ByteString;
use allmend_protocol::encoding;
use allmend_protocol::ids::{MessageId, NodeId};
use allmend_protocol::job::KeyWrap;
use allmend_scheduler::io::Input;
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::output::JobOutput;
use super::{Event, Local};
use crate::net::{BulkStream, NetError, NetHandle};
use crate::spool::{ARTIFACT_BYTES_MAX, OutputToken, Spool};

/// The largest frame: a sealed input at its limit and forced token ids.
pub(crate) const STREAM_FRAME_BYTES_MAX: usize = 72 * 1024 * 1024;
/// The largest frame that an executing node sends: one token, or the end.
pub(crate) const TOKEN_FRAME_BYTES_MAX: usize = 256 * 1024;
/// Tokens between two counts for the ledger.
const COUNT_EVERY: u32 = 4;
/// The first wait before a broken stream is opened again; doubles up to the last.
const REOPEN_FIRST: Duration = Duration::from_millis(50);
const REOPEN_LAST: Duration = Duration::from_secs(2);

/// Home's first and only frame.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Open {
    /// Under which lease.
    pub(crate) lease: MessageId,
    /// The input's key, wrapped for the executing node.
    pub(crate) wrap: KeyWrap,
    /// The salt of the input's digest.
    pub(crate) salt: ByteString,
    /// The sealed input.
    pub(crate) sealed: ByteString,
    /// Token ids that earlier attempts have emitted.
    pub(crate) forced: Vec<u32>,
    /// The first token wanted.
    pub(crate) from: u32,
}

/// What the executing node answers.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(crate) enum Said {
    /// A token.
    Token {
        /// Its place in the answer, over all attempts.
        index: u32,
        /// Its id.
        id: u32,
        /// Text that has become certain with it.
        text: String,
    },
    /// A report from training.
    Progress {
        /// Its place among the reports, over all attempts.
        index: u32,
        /// Tokens trained on since the report before.
        tokens: u32,
        /// What it says, as JSON (specs/finetune.md §6).
        report: String,
    },
    /// A part of what the output gate released, sealed to the researcher. The parts come in order and
    /// without gaps, after all reports.
    Output {
        /// Bytes before this part.
        offset: u64,
        /// Bytes in all.
        total: u64,
        /// The part.
        bytes: ByteString,
    },
    /// Nothing follows; the receipt says how it ended.
    End {},
    /// There is no such lease here, or the input is not what the job says.
    No {
        /// Why.
        why: String,
    },
}

/// Home's side of one attempt.
pub(crate) struct HomeStream {
    pub(crate) local: Arc<Local>,
    pub(crate) net: NetHandle,
    pub(crate) events: mpsc::Sender<Event>,
    pub(crate) job: MessageId,
    pub(crate) attempt: u16,
    pub(crate) node: NodeId,
    pub(crate) output: Arc<JobOutput>,
    /// With `from` still to be set.
    pub(crate) open: Open,
    /// Tokens before the first of this attempt.
    pub(crate) base: u32,
    pub(crate) close: CancellationToken,
}

impl HomeStream {
    /// Follows the attempt until it ends or is closed.
    pub(crate) async fn run(mut self) {
        let close = self.close.clone();
        tokio::select! {
            () = close.cancelled() => {}
            () = self.follow() => {}
        }
        // Also when the attempt was cut short: its node is paid for what arrived.
        self.count(self.output.written_by(self.attempt)).await;
        let _ = self.events.send(Event::StreamOver { job: self.job, attempt: self.attempt }).await;
    }

    async fn follow(&mut self) {
        let mut wait = REOPEN_FIRST;
        loop {
            let before = self.output.token_ids().len();
            match self.once().await {
                Ok(true) => return,
                Ok(false) => {}
                Err(error) => {
                    tracing::debug!(job = %self.job.short(), %error, "stream broke; opening again");
                }
            }
            // A lease that lapses closes this stream from outside, so trying again is bounded.
            wait = if self.output.token_ids().len() > before {
                REOPEN_FIRST
            } else {
                (wait * 2).min(REOPEN_LAST)
            };
            tokio::time::sleep(wait).await;
        }
    }

    /// One connection's worth; true when the attempt has said everything.
    async fn once(&mut self) -> Result<bool, NetError> {
        let mut stream = if self.node == self.local.node {
            let (ours, theirs) = BulkStream::local_pair();
            let arrived = Event::Bulk { from: self.node, stream: Box::new(theirs) };
            if self.events.send(arrived).await.is_err() {
                return Ok(true);
            }
            ours
        } else {
            self.net.open_bulk(self.node).await?
        };
        self.open.from = u32::try_from(self.output.token_ids().len()).unwrap_or(u32::MAX);
        stream.write_frame(&encoding::encode(&self.open), STREAM_FRAME_BYTES_MAX).await?;
        let mut artifact = Artifact::default();
        while let Some(bytes) = stream.read_frame(TOKEN_FRAME_BYTES_MAX).await? {
            match encoding::decode::<Said>(&bytes, TOKEN_FRAME_BYTES_MAX) {
                Ok(Said::Token { index, id, text }) => {
                    let token = OutputToken { attempt: self.attempt, id, text };
                    if !self.output.push(index, token) {
                        return Ok(false);
                    }
                    let count = index.saturating_add(1).saturating_sub(self.base);
                    if count.is_multiple_of(COUNT_EVERY) {
                        self.count(count).await;
                    }
                }
                Ok(Said::Progress { index, tokens, report }) => {
                    let report = OutputToken { attempt: self.attempt, id: tokens, text: report };
                    if !self.output.push(index, report) {
                        return Ok(false);
                    }
                    self.count(self.output.written_by(self.attempt)).await;
                }
                Ok(Said::Output { offset, total, bytes }) => {
                    if !artifact.take(offset, total, &bytes.0) {
                        tracing::warn!(node = %self.node.short(), "not a part of an output");
                        return Ok(false);
                    }
                }
                Ok(Said::End {}) => {
                    if let Some(sealed) = artifact.whole() {
                        self.keep(sealed);
                    }
                    return Ok(true);
                }
                Ok(Said::No { why }) => {
                    tracing::debug!(job = %self.job.short(), %why, "no stream from the node");
                    return Ok(false);
                }
                Err(error) => {
                    tracing::warn!(node = %self.node.short(), %error, "not a stream frame");
                    return Ok(false);
                }
            }
        }
        Ok(false)
    }

    /// Keeps what was released until the researcher fetches it. It is sealed to them: home reads nothing.
    fn keep(&self, sealed: &[u8]) {
        let spool = Spool::new(self.local.layout.spool_dir());
        if let Err(error) = spool.put_artifact(self.job, sealed) {
            tracing::warn!(job = %self.job.short(), %error, "the job's output is not kept");
        }
    }

    async fn count(&self, tokens: u32) {
        let input = Input::Streamed { job: self.job, attempt: self.attempt, tokens };
        let _ = self.events.send(Event::Input(Box::new(input))).await;
    }
}

/// A released output, part by part.
#[derive(Debug, Default)]
struct Artifact {
    bytes: Vec<u8>,
    total: Option<u64>,
}

impl Artifact {
    /// Takes the next part; says false for one that does not follow.
    fn take(&mut self, offset: u64, total: u64, bytes: &[u8]) -> bool {
        let fits = total <= ARTIFACT_BYTES_MAX
            && self.total.is_none_or(|known| known == total)
            && offset == self.bytes.len() as u64
            && offset.saturating_add(bytes.len() as u64) <= total;
        if fits {
            self.total = Some(total);
            self.bytes.extend_from_slice(bytes);
        }
        fits
    }

    /// All of it, when it is there.
    fn whole(&self) -> Option<&[u8]> {
        (self.total? == self.bytes.len() as u64).then_some(&self.bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_output_is_whole_or_nothing() {
        let mut artifact = Artifact::default();
        assert!(artifact.whole().is_none());
        assert!(artifact.take(0, 5, b"abc") && artifact.whole().is_none());
        for (offset, total, bytes) in
            [(0, 5, &b"abc"[..]), (4, 5, b"e"), (3, 6, b"d"), (3, 5, b"def")]
        {
            assert!(!artifact.take(offset, total, bytes), "{offset} {total}");
        }
        assert!(artifact.take(3, 5, b"de"));
        assert_eq!(artifact.whole(), Some(&b"abcde"[..]));
        assert!(!Artifact::default().take(0, ARTIFACT_BYTES_MAX + 1, b""), "too large");
    }
}
