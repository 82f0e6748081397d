//! The daemon's side of the network: cheap to clone, talks to the event loop by bounded channel.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use allmend_protocol::ids::NodeId;
use libp2p::{Multiaddr, PeerId, Stream};
use tokio::sync::{mpsc, oneshot, watch};

use super::{
    BulkStream, Counters, NetError, ReachResult,
    bulk::{Bulk, Commons},
    identity::peer_of,
    limits::{GOSSIP_BYTES_MAX, MESSAGE_BYTES_MAX},
    tap::Plane,
    wire::kind,
};

/// The network of a running node.
#[derive(Clone)]
pub struct NetHandle {
    pub(super) commands: mpsc::Sender<Command>,
    pub(super) bulk: Arc<Bulk>,
    pub(super) commons: Arc<Commons>,
    pub(super) listening: watch::Receiver<Vec<Multiaddr>>,
}

/// What a handle asks of the event loop.
pub(super) enum Command {
    Request { peer: PeerId, bytes: Vec<u8>, reply: oneshot::Sender<Result<Vec<u8>, NetError>> },
    Publish { bytes: Vec<u8>, done: oneshot::Sender<Result<(), NetError>> },
    OpenSubstream { peer: PeerId, opened: oneshot::Sender<Result<Stream, NetError>> },
    AddAddress { peer: PeerId, address: Multiaddr },
    Peers { reply: oneshot::Sender<Vec<PeerStatus>> },
    Renew,
    Evict { node: NodeId },
    Probe { via: PeerId, reply: oneshot::Sender<Result<Vec<ReachResult>, NetError>> },
    Shutdown { done: oneshot::Sender<()> },
}

/// Where this node listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListenAddresses {
    /// Control plane; wildcard addresses are replaced by those of the interfaces.
    pub control: Vec<Multiaddr>,
    /// Bulk plane, as bound; `None` where UDP is disabled.
    pub bulk: Option<SocketAddr>,
}

/// A member that is connected now.
#[derive(Clone, Debug)]
pub struct PeerStatus {
    /// Who.
    pub node: NodeId,
    /// Its control connections.
    pub control: Vec<ControlPath>,
    /// Its bulk connections: remote address and whether we dialled. Empty: bulk streams travel
    /// over the control connection.
    pub bulk: Vec<(SocketAddr, bool)>,
    /// Round-trip time of the last heartbeat, or of the bulk connection before the first one.
    pub rtt: Option<Duration>,
    /// When its admission ends; milliseconds since the Unix epoch.
    pub admitted_until_unix_ms: u64,
    /// Requests to it that await an answer.
    pub requests_in_flight: usize,
}

/// One control connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ControlPath {
    /// Which protocol carries it.
    pub transport: ControlTransport,
    /// Whether we dialled it.
    pub dialled: bool,
    /// The other end's address.
    pub remote: Multiaddr,
}

/// Which protocol carries a control connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ControlTransport {
    /// TCP with noise and yamux.
    Tcp,
    /// QUIC.
    Quic,
}

/// What another member found when it dialled us back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReachReport {
    /// Who dialled.
    pub via: NodeId,
    /// One result per address we believe to be ours.
    pub results: Vec<ReachResult>,
}

impl NetHandle {
    /// This node's id.
    #[must_use]
    pub fn node(&self) -> NodeId {
        self.commons.ourselves
    }

    /// Asks a connected member and waits for its answer.
    ///
    /// # Errors
    /// [`NetError::NotConnected`]; [`NetError::Busy`] if too much is in flight here or there;
    /// [`NetError::TooLarge`]; [`NetError::Timeout`] and [`NetError::Connection`], after which it
    /// is unknown whether the member has seen the request; [`NetError::Unanswered`].
    pub async fn request(&self, to: NodeId, bytes: Vec<u8>) -> Result<Vec<u8>, NetError> {
        let (length, limit) = (bytes.len(), MESSAGE_BYTES_MAX);
        if length > limit {
            return Err(NetError::TooLarge { length, limit });
        }
        let peer = peer_of(&to).ok_or(NetError::NotConnected(to))?;
        let mut framed = Vec::with_capacity(length + 1);
        framed.push(kind::APPLICATION);
        framed.extend_from_slice(&bytes);
        let (reply, answer) = oneshot::channel();
        self.command(Command::Request { peer, bytes: framed, reply }).await?;
        answer.await.map_err(|_| NetError::Closed)?
    }

    /// Gossips to all members. Advisory: some may not get it, and none is an error.
    ///
    /// # Errors
    /// [`NetError::TooLarge`], or [`NetError::Busy`] if every queue is full.
    pub async fn publish(&self, bytes: Vec<u8>) -> Result<(), NetError> {
        let (length, limit) = (bytes.len(), GOSSIP_BYTES_MAX);
        if length > limit {
            return Err(NetError::TooLarge { length, limit });
        }
        let (done, outcome) = oneshot::channel();
        self.command(Command::Publish { bytes, done }).await?;
        outcome.await.map_err(|_| NetError::Closed)?
    }

    /// Opens a stream to a connected member: over the bulk plane if a connection lives there,
    /// whichever side dialled it, else over the control connection. The member sees the stream
    /// when the first bytes are sent.
    ///
    /// # Errors
    /// [`NetError::NotConnected`], [`NetError::Busy`], [`NetError::Timeout`] or
    /// [`NetError::Connection`].
    pub async fn open_bulk(&self, to: NodeId) -> Result<BulkStream, NetError> {
        if self.commons.admissions.current(&to).is_none() {
            return Err(NetError::NotConnected(to));
        }
        if let Some(stream) = self.bulk.open(&to).await {
            return Ok(stream);
        }
        let peer = peer_of(&to).ok_or(NetError::NotConnected(to))?;
        let (opened, stream) = oneshot::channel();
        self.command(Command::OpenSubstream { peer, opened }).await?;
        let stream = stream.await.map_err(|_| NetError::NotConnected(to))??;
        self.commons.counters.bulk_fallback_opened.add();
        let tap = self.commons.taps.stream(*to.as_bytes(), Plane::Bulk);
        Ok(BulkStream::control(stream, tap, None))
    }

    /// Tells where a member may be reached; it is dialled until it is connected.
    ///
    /// # Errors
    /// [`NetError::Identity`] if `node` is no Ed25519 key.
    pub async fn add_address(&self, node: NodeId, address: Multiaddr) -> Result<(), NetError> {
        let peer = peer_of(&node).ok_or_else(|| NetError::Identity(node.to_string()))?;
        self.command(Command::AddAddress { peer, address }).await
    }

    /// The members that are connected now, by id.
    ///
    /// # Errors
    /// [`NetError::Closed`].
    pub async fn peers(&self) -> Result<Vec<PeerStatus>, NetError> {
        let (reply, answer) = oneshot::channel();
        self.command(Command::Peers { reply }).await?;
        answer.await.map_err(|_| NetError::Closed)
    }

    /// Where this node listens.
    #[must_use]
    pub fn listen_addresses(&self) -> ListenAddresses {
        ListenAddresses {
            control: self.listening.borrow().clone(),
            bulk: self.bulk.local_address(),
        }
    }

    /// Shows all members our hello again, because its certificate was renewed.
    ///
    /// # Errors
    /// [`NetError::Closed`].
    pub async fn renew(&self) -> Result<(), NetError> {
        self.command(Command::Renew).await
    }

    /// Ends a member's admission and its connections, because [`super::Members::admit`] would
    /// refuse it now.
    ///
    /// # Errors
    /// [`NetError::Closed`].
    pub async fn evict(&self, node: NodeId) -> Result<(), NetError> {
        self.command(Command::Evict { node }).await
    }

    /// Has the member `via` dial us back at each address we believe to be ours.
    ///
    /// # Errors
    /// As [`NetHandle::request`].
    pub async fn probe_reach(&self, via: NodeId) -> Result<ReachReport, NetError> {
        let peer = peer_of(&via).ok_or(NetError::NotConnected(via))?;
        let (reply, answer) = oneshot::channel();
        self.command(Command::Probe { via: peer, reply }).await?;
        let results = answer.await.map_err(|_| NetError::Closed)??;
        Ok(ReachReport { via, results })
    }

    /// Counts of what was done and refused since the start.
    #[must_use]
    pub fn counters(&self) -> &Counters {
        &self.commons.counters
    }

    /// Says goodbye to everybody and closes the sockets; returns when that is done.
    pub async fn shutdown(&self) {
        let (done, finished) = oneshot::channel();
        if self.command(Command::Shutdown { done }).await.is_ok() {
            finished.await.ok();
        }
    }

    async fn command(&self, command: Command) -> Result<(), NetError> {
        self.commands.send(command).await.map_err(|_| NetError::Closed)
    }
}

impl std::fmt::Debug for NetHandle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("NetHandle").field("node", &self.node()).finish_non_exhaustive()
    }
}
