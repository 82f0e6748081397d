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
use crate::spool::OutputToken;

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
                Ok(Said::End {}) => {
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

    async fn count(&self, tokens: u32) {
        let input = Input::Streamed { job: self.job, attempt: self.attempt, tokens };
        let _ = self.events.send(Event::Input(Box::new(input))).await;
    }
}
