//! The calling side: one connection to a node, one stream per request.

use std::time::Duration;

use allmend_protocol::encoding;
use allmend_protocol::ids::NodeId;
use ed25519_dalek::SigningKey;

use super::proto::{Answer, Ask, CLIENT_FRAME_BYTES_MAX, Problem};
use crate::net::{BulkStream, ClientConnection, NetError, connect_client};

/// How long to wait for a node before the next of its addresses is tried.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Why a call gave no answer.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// None of the node's addresses answered.
    #[error("node {} cannot be reached at {addresses}", node.short())]
    Unreachable {
        /// The node.
        node: NodeId,
        /// Where it was tried.
        addresses: String,
        /// What the last address said.
        #[source]
        source: Option<NetError>,
    },
    /// The connection broke.
    #[error("the connection to the node broke")]
    Broken(#[from] NetError),
    /// The node said something that is no answer to the question.
    #[error("the node's answer is not understood: {0}")]
    Nonsense(String),
    /// The node said no.
    #[error("{}", .0.error)]
    Refused(Problem),
}

/// A connection to one node under the caller's own key.
#[derive(Debug)]
pub struct Caller {
    connection: ClientConnection,
}

impl Caller {
    /// Connects to `node` at the first of `addresses` (`host:port`) that answers as that node.
    ///
    /// # Errors
    /// [`CallError::Unreachable`].
    pub async fn connect(
        key: &SigningKey,
        node: NodeId,
        addresses: &[String],
    ) -> Result<Caller, CallError> {
        let mut last = None;
        for address in addresses {
            let attempt = connect_client(key, address, &node);
            match tokio::time::timeout(CONNECT_TIMEOUT, attempt).await {
                Ok(Ok(connection)) => return Ok(Caller { connection }),
                Ok(Err(error)) => last = Some(error),
                Err(_) => {}
            }
        }
        Err(CallError::Unreachable { node, addresses: addresses.join(", "), source: last })
    }

    /// Asks and reads one answer.
    ///
    /// # Errors
    /// [`CallError`]; a refusal is [`CallError::Refused`].
    pub async fn ask(&self, ask: &Ask) -> Result<Answer, CallError> {
        self.open(ask, None).await?.next().await?.ok_or_else(silence)
    }

    /// Asks for a JSON document.
    ///
    /// # Errors
    /// As [`Caller::ask`]; any other answer is [`CallError::Nonsense`].
    pub async fn document(&self, ask: &Ask) -> Result<serde_json::Value, CallError> {
        match self.ask(ask).await? {
            Answer::Document { json } => {
                serde_json::from_str(&json).map_err(|error| CallError::Nonsense(error.to_string()))
            }
            _ => Err(CallError::Nonsense("expected a document".to_owned())),
        }
    }

    /// Asks, sends `payload` as a further frame if there is one, and leaves the stream open for
    /// answers.
    ///
    /// # Errors
    /// [`CallError::Broken`].
    pub async fn open(&self, ask: &Ask, payload: Option<&[u8]>) -> Result<Answers, CallError> {
        let mut stream = self.connection.open().await?;
        stream.write_frame(&encoding::encode(ask), CLIENT_FRAME_BYTES_MAX).await?;
        if let Some(payload) = payload {
            stream.write_frame(payload, payload.len()).await?;
        }
        Ok(Answers { stream })
    }

    /// The address that answered.
    pub fn remote_address(&self) -> std::net::SocketAddr {
        self.connection.remote_address()
    }

    /// Closes the connection and waits until the node knows.
    pub async fn close(self) {
        self.connection.close().await;
    }
}

/// The answers to one request.
#[derive(Debug)]
pub struct Answers {
    stream: BulkStream,
}

impl Answers {
    /// The next answer; `None` when the node has said everything.
    ///
    /// # Errors
    /// [`CallError`]; a refusal is [`CallError::Refused`].
    pub async fn next(&mut self) -> Result<Option<Answer>, CallError> {
        let Some(bytes) = self.stream.read_frame(CLIENT_FRAME_BYTES_MAX).await? else {
            return Ok(None);
        };
        match encoding::decode(&bytes, CLIENT_FRAME_BYTES_MAX) {
            Ok(Answer::Refused(problem)) => Err(CallError::Refused(problem)),
            Ok(answer) => Ok(Some(answer)),
            Err(error) => Err(CallError::Nonsense(error.to_string())),
        }
    }
}

fn silence() -> CallError {
    CallError::Nonsense("the node closed the stream without an answer".to_owned())
}
