//! Admission, inside the transport: two nodes show each other who they are on the first substream
//! of an authenticated connection, before the swarm or any protocol sees that connection.
//!
//! So the swarm holds members only, and a stranger's gossip, requests and streams meet nobody.
//! Frames: `specs/transport.md §4`.

use std::{future::poll_fn, io, sync::Arc, task::Poll};

use allmend_protocol::ids::NodeId;
use futures::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use libp2p::{
    PeerId,
    core::{
        ConnectedPoint, Endpoint,
        muxing::{StreamMuxerBox, StreamMuxerExt as _},
    },
};

use super::{
    Counters, Members,
    admission::{Admission, Admissions, Instance, now_unix_ms},
    identity::node_of,
    limits::{HELLO_BYTES_MAX, HELLO_TIMEOUT, REASON_BYTES_MAX, REFUSAL_LINGER},
    tap::{Direction, Plane, Taps},
};

/// First bytes on a connection, naming the version of this exchange.
const MAGIC: &[u8; 16] = b"allmend-hello/1\n";
const WELCOME: u8 = 0;
const REFUSED: u8 = 1;

/// Why a connection did not become a member's.
#[derive(Debug, thiserror::Error)]
pub(super) enum HelloError {
    #[error("refused: {0}")]
    Refused(String),
    #[error("refused by the peer: {0}")]
    RefusedByPeer(String),
    #[error("no hello in time")]
    Timeout,
    #[error("not a hello")]
    Malformed,
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// What a node needs to introduce itself and to judge others.
pub(super) struct Gatekeeper {
    pub(super) ourselves: NodeId,
    pub(super) federation: [u8; 32],
    pub(super) instance: Instance,
    pub(super) members: Arc<dyn Members>,
    pub(super) admissions: Arc<Admissions>,
    pub(super) counters: Arc<Counters>,
    pub(super) taps: Taps,
}

impl Gatekeeper {
    /// Lets a connection through if both ends admit each other in time.
    pub(super) async fn admit(
        self: Arc<Self>,
        peer: PeerId,
        mut muxer: StreamMuxerBox,
        point: ConnectedPoint,
    ) -> Result<(PeerId, StreamMuxerBox), HelloError> {
        let outcome = tokio::time::timeout(HELLO_TIMEOUT, self.exchange(peer, &mut muxer, &point))
            .await
            .unwrap_or(Err(HelloError::Timeout));
        match outcome {
            Ok(()) => {
                self.counters.hello_admitted.add();
                Ok((peer, muxer))
            }
            Err(error) => {
                self.note(&peer, &error);
                // Wait for the other side to have read the verdict; then the connection goes.
                if matches!(error, HelloError::Refused(_)) {
                    let gone = poll_fn(|cx| match muxer.poll_inbound_unpin(cx) {
                        Poll::Ready(Ok(_)) => {
                            cx.waker().wake_by_ref();
                            Poll::Pending
                        }
                        Poll::Ready(Err(_)) => Poll::Ready(()),
                        Poll::Pending => match muxer.poll_unpin(cx) {
                            Poll::Ready(Err(_)) => Poll::Ready(()),
                            _ => Poll::Pending,
                        },
                    });
                    tokio::time::timeout(REFUSAL_LINGER, gone).await.ok();
                }
                Err(error)
            }
        }
    }

    /// Judges a hello received later, when a member shows a renewed certificate.
    pub(super) fn renew(&self, node: &NodeId, hello: &[u8]) -> Result<(), String> {
        let expires_unix_ms = self.judge(*node, hello)?;
        if self.admissions.renew(node, expires_unix_ms) {
            Ok(())
        } else {
            Err("not a member".to_owned())
        }
    }

    async fn exchange(
        &self,
        peer: PeerId,
        muxer: &mut StreamMuxerBox,
        point: &ConnectedPoint,
    ) -> Result<(), HelloError> {
        let node = node_of(&peer)
            .ok_or_else(|| HelloError::Refused("not an Ed25519 identity".to_owned()))?;
        if node == self.ourselves {
            return Err(HelloError::Refused("this is our own address".to_owned()));
        }
        let opens = matches!(point, ConnectedPoint::Dialer { role_override: Endpoint::Dialer, .. });
        let mut stream = if opens {
            poll_fn(|cx| {
                if let Poll::Ready(Err(error)) = muxer.poll_unpin(cx) {
                    return Poll::Ready(Err(error));
                }
                muxer.poll_outbound_unpin(cx)
            })
            .await?
        } else {
            poll_fn(|cx| muxer.poll_inbound_unpin(cx)).await?
        };
        let conversation = async {
            if opens {
                self.introduce(node, &mut stream).await
            } else {
                self.receive(node, &mut stream).await
            }
        };
        let mut conversation = std::pin::pin!(conversation);
        poll_fn(|cx| {
            if let Poll::Ready(outcome) = conversation.as_mut().poll(cx) {
                return Poll::Ready(outcome);
            }
            match muxer.poll_unpin(cx) {
                Poll::Ready(Err(error)) => Poll::Ready(Err(HelloError::Io(error))),
                _ => Poll::Pending,
            }
        })
        .await
    }

    /// The dialling side: hello, then the listener's verdict and hello, then our verdict.
    async fn introduce<S>(&self, node: NodeId, stream: &mut S) -> Result<(), HelloError>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let mut opening = Vec::with_capacity(128);
        opening.extend_from_slice(MAGIC);
        opening.extend_from_slice(&self.federation);
        self.append_hello(node, &mut opening)?;
        stream.write_all(&opening).await?;
        stream.flush().await?;

        read_verdict(stream).await?;
        let (instance, hello) = self.read_hello(node, stream).await?;
        let verdict = self.enter(node, instance, &hello);
        write_verdict(stream, verdict.as_ref().err()).await?;
        stream.close().await?;
        verdict.map_err(HelloError::Refused)
    }

    /// The listening side; says nothing about itself to a peer that it does not admit.
    async fn receive<S>(&self, node: NodeId, stream: &mut S) -> Result<(), HelloError>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let mut magic = [0; MAGIC.len()];
        stream.read_exact(&mut magic).await?;
        if &magic != MAGIC {
            return Err(HelloError::Malformed);
        }
        let mut federation = [0; 32];
        stream.read_exact(&mut federation).await?;
        if federation != self.federation {
            let reason = "another federation".to_owned();
            write_verdict(stream, Some(&reason)).await?;
            stream.close().await?;
            return Err(HelloError::Refused(reason));
        }
        let (instance, hello) = self.read_hello(node, stream).await?;
        if let Err(reason) = self.enter(node, instance, &hello) {
            write_verdict(stream, Some(&reason)).await?;
            stream.close().await?;
            return Err(HelloError::Refused(reason));
        }
        let mut answer = vec![WELCOME];
        self.append_hello(node, &mut answer)?;
        stream.write_all(&answer).await?;
        stream.flush().await?;

        read_verdict(stream).await
    }

    fn append_hello(&self, node: NodeId, out: &mut Vec<u8>) -> Result<(), HelloError> {
        let hello = self.members.hello();
        let length = u32::try_from(hello.len())
            .ok()
            .filter(|_| hello.len() <= HELLO_BYTES_MAX)
            .ok_or_else(|| HelloError::Refused("our own hello is too large".to_owned()))?;
        self.taps.message(Direction::Out, Some(*node.as_bytes()), Plane::Hello, &hello);
        out.extend_from_slice(&self.instance);
        out.extend_from_slice(&length.to_be_bytes());
        out.extend_from_slice(&hello);
        Ok(())
    }

    async fn read_hello<S>(
        &self,
        node: NodeId,
        stream: &mut S,
    ) -> Result<(Instance, Vec<u8>), HelloError>
    where
        S: AsyncRead + Unpin,
    {
        let mut instance = Instance::default();
        stream.read_exact(&mut instance).await?;
        let hello = read_bounded(stream, HELLO_BYTES_MAX).await?;
        self.taps.message(Direction::In, Some(*node.as_bytes()), Plane::Hello, &hello);
        Ok((instance, hello))
    }

    fn judge(&self, node: NodeId, hello: &[u8]) -> Result<u64, String> {
        let admitted = self.members.admit(node, hello).map_err(|reason| truncate(&reason))?;
        if admitted.expires_unix_ms <= now_unix_ms() {
            return Err("the certificate has expired".to_owned());
        }
        Ok(admitted.expires_unix_ms)
    }

    fn enter(&self, node: NodeId, instance: Instance, hello: &[u8]) -> Result<(), String> {
        let expires_unix_ms = self.judge(node, hello)?;
        if self.admissions.admit(node, Admission { expires_unix_ms, instance }) {
            Ok(())
        } else {
            Err("too many members".to_owned())
        }
    }

    fn note(&self, peer: &PeerId, error: &HelloError) {
        match error {
            HelloError::Refused(_) | HelloError::RefusedByPeer(_) => {
                self.counters.hello_refused.add();
            }
            HelloError::Timeout | HelloError::Malformed | HelloError::Io(_) => {
                self.counters.hello_absent.add();
            }
        }
        if let Some(node) = node_of(peer)
            && node != self.ourselves
            && !matches!(error, HelloError::Io(_))
            && self.admissions.note_refusal(node, &error.to_string())
        {
            tracing::info!(peer = %node, reason = %error, "not admitted");
        }
    }
}

/// Reads a verdict; a refusal becomes an error.
async fn read_verdict<S: AsyncRead + Unpin>(stream: &mut S) -> Result<(), HelloError> {
    let mut verdict = [0];
    stream.read_exact(&mut verdict).await?;
    match verdict[0] {
        WELCOME => Ok(()),
        REFUSED => {
            let reason = read_bounded(stream, REASON_BYTES_MAX).await?;
            // Foreign text ends up in a log line: keep it printable.
            let reason: String = String::from_utf8_lossy(&reason)
                .chars()
                .map(|c| if c.is_control() { ' ' } else { c })
                .collect();
            Err(HelloError::RefusedByPeer(reason))
        }
        _ => Err(HelloError::Malformed),
    }
}

async fn write_verdict<S: AsyncWrite + Unpin>(
    stream: &mut S,
    refusal: Option<&String>,
) -> Result<(), HelloError> {
    let mut bytes = vec![WELCOME];
    if let Some(reason) = refusal {
        let reason = truncate(reason);
        bytes[0] = REFUSED;
        bytes.extend_from_slice(&u32::try_from(reason.len()).unwrap_or(0).to_be_bytes());
        bytes.extend_from_slice(reason.as_bytes());
    }
    stream.write_all(&bytes).await?;
    stream.flush().await?;
    Ok(())
}

/// Reads a length-prefixed byte string; memory grows with the bytes that really arrive.
async fn read_bounded<S: AsyncRead + Unpin>(
    stream: &mut S,
    limit: usize,
) -> Result<Vec<u8>, HelloError> {
    let mut length = [0; 4];
    stream.read_exact(&mut length).await?;
    let length = u32::from_be_bytes(length);
    if usize::try_from(length).map_or(true, |length| length > limit) {
        return Err(HelloError::Malformed);
    }
    let mut bytes = Vec::new();
    stream.take(u64::from(length)).read_to_end(&mut bytes).await?;
    if u32::try_from(bytes.len()) != Ok(length) {
        return Err(HelloError::Io(io::ErrorKind::UnexpectedEof.into()));
    }
    Ok(bytes)
}

/// Cuts a reason to its bound at a character boundary.
fn truncate(reason: &str) -> String {
    let end = reason.floor_char_boundary(REASON_BYTES_MAX);
    reason[..end].to_owned()
}
