//! The node's two planes as one component that carries opaque bytes and decides nothing about them.
//!
//! - The *control plane* (libp2p over QUIC and TCP) carries small messages: requests with replies,
//!   and gossip. Only members get onto it: see [`Members`].
//! - The *bulk plane* (quinn on its own UDP port) carries streams between members and between
//!   clients and this node. Where no UDP gets through, streams between members travel over the
//!   control connection instead, whichever side dialled it.
//!
//! What crosses the wire is specified in `specs/transport.md`; why it is built so is in
//! `docs/design/transport.md`. Everything here is bounded: see [`limits`].

mod admission;
mod behaviour;
mod book;
mod bulk;
mod client;
mod codec;
mod control;
mod counters;
mod dialogue;
mod error;
mod gate;
mod handle;
mod hello;
mod identity;
pub mod limits;
mod reach;
mod stream;
mod substream;
mod tap;
mod tls;
mod transport;
mod wire;

use std::{net::SocketAddr, sync::Arc};

use allmend_protocol::ids::NodeId;
use ed25519_dalek::SigningKey;
pub use libp2p::Multiaddr;
use tokio::sync::{mpsc, oneshot};

pub use self::{
    client::{ClientConnection, connect_client},
    counters::Counters,
    error::NetError,
    handle::{ControlPath, ControlTransport, ListenAddresses, NetHandle, PeerStatus, ReachReport},
    identity::peer_of,
    stream::{BulkReader, BulkStream, BulkWriter, Via},
    tap::{Direction, Plane, Tap, TapFrame},
    tls::{ALPN_BULK, ALPN_CLIENT, ALPN_PROBE},
    wire::{ReachKind, ReachOutcome, ReachResult},
};

/// How a node takes part in the network.
pub struct NetOptions {
    /// The node's key: its identity on both planes.
    pub key: SigningKey,
    /// Digest of the genesis charter; nodes of another federation are refused.
    pub federation: [u8; 32],
    /// Where the control plane listens, e.g. `/ip4/0.0.0.0/tcp/7700` and
    /// `/ip4/0.0.0.0/udp/7700/quic-v1`. May be empty: the node then only dials out.
    pub control_listen: Vec<Multiaddr>,
    /// Where the bulk plane listens (UDP).
    pub bulk_listen: SocketAddr,
    /// Control addresses to tell others instead of the listening ones, behind a port forwarding.
    pub control_external: Vec<Multiaddr>,
    /// Bulk addresses (`host:port`) to tell others instead of the listening one.
    pub bulk_external: Vec<String>,
    /// Addresses dialled for ever, with or without a final `/p2p/…`.
    pub bootstrap: Vec<Multiaddr>,
    /// Whether to tell others any address at all; a node that nobody can reach says no.
    pub advertise: bool,
    /// Use TCP alone between members: no QUIC on the control plane, no bulk plane. Clients are then
    /// served on the loopback interface only.
    pub disable_udp: bool,
    /// Whether to use UDP segmentation offload on the bulk plane; some networks drop its packets.
    pub gso: bool,
    /// Sees application bytes in clear, for tests.
    pub tap: Option<Arc<dyn Tap>>,
}

impl NetOptions {
    /// Options of a node that listens on free ports of the loopback interface and knows nobody.
    #[must_use]
    pub fn loopback(key: SigningKey, federation: [u8; 32]) -> Self {
        let listen = ["/ip4/127.0.0.1/tcp/0", "/ip4/127.0.0.1/udp/0/quic-v1"];
        Self {
            key,
            federation,
            control_listen: listen.iter().filter_map(|address| address.parse().ok()).collect(),
            bulk_listen: SocketAddr::from(([127, 0, 0, 1], 0)),
            control_external: Vec::new(),
            bulk_external: Vec::new(),
            bootstrap: Vec::new(),
            advertise: true,
            disable_udp: false,
            gso: true,
            tap: None,
        }
    }
}

/// Who is a member, decided by the daemon. Called from many tasks; must answer quickly.
pub trait Members: Send + Sync + 'static {
    /// What this node shows of itself, e.g. its certificate chain. At most
    /// [`limits::HELLO_BYTES_MAX`].
    fn hello(&self) -> Vec<u8>;

    /// Judges a hello shown by the holder of `peer`'s key.
    ///
    /// # Errors
    /// The reason for a refusal, which is sent to the peer.
    fn admit(&self, peer: NodeId, hello: &[u8]) -> Result<Admitted, String>;

    /// Judges a gossip message, whoever brought it.
    fn validate_gossip(&self, bytes: &[u8]) -> Gossip;

    /// Whether a client's key is known. Unknown clients are accepted too, since they may want to
    /// join, but few at a time and not for long.
    fn knows_client(&self, key: &[u8; 32]) -> bool {
        let _ = key;
        false
    }
}

/// A member's standing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Admitted {
    /// When the admission ends unless renewed; milliseconds since the Unix epoch.
    pub expires_unix_ms: u64,
}

/// What becomes of a gossip message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gossip {
    /// Deliver it and pass it on.
    Accept,
    /// Drop it: stale or not for us, but no offence.
    Ignore,
    /// Drop it: nobody honest would have passed it on.
    Reject,
}

/// What the network has for the daemon.
#[derive(Debug)]
pub enum NetEvent {
    /// A member is connected now.
    Joined(NodeId),
    /// The last control connection with a member has closed.
    Left(NodeId),
    /// A valid gossip message.
    Gossip(Vec<u8>),
    /// A member asks something.
    Request {
        /// Who asks.
        from: NodeId,
        /// What it asks.
        bytes: Vec<u8>,
        /// Takes the answer.
        reply: Reply,
    },
    /// A member opened a stream.
    Bulk {
        /// Who opened it.
        from: NodeId,
        /// The stream.
        stream: BulkStream,
    },
    /// A client opened a stream.
    Client {
        /// The Ed25519 key that the client proved to hold. Nothing else is known about it.
        key: [u8; 32],
        /// Where it connects from.
        remote: SocketAddr,
        /// The stream.
        stream: BulkStream,
    },
}

/// Takes the answer to one request; dropping it tells the asker that there is none.
#[derive(Debug)]
pub struct Reply(oneshot::Sender<Vec<u8>>);

impl Reply {
    /// Answers with at most [`limits::MESSAGE_BYTES_MAX`] bytes. The asker may have given up.
    ///
    /// # Errors
    /// [`NetError::TooLarge`]; the asker is then told that there is no answer.
    pub fn send(self, bytes: Vec<u8>) -> Result<(), NetError> {
        let (length, limit) = (bytes.len(), limits::MESSAGE_BYTES_MAX);
        if length > limit {
            return Err(NetError::TooLarge { length, limit });
        }
        self.0.send(bytes).ok();
        Ok(())
    }
}

/// The network component.
#[derive(Clone, Copy, Debug)]
pub struct Net;

impl Net {
    /// Opens the sockets and starts both planes on the current tokio runtime.
    ///
    /// The network runs until [`NetHandle::shutdown`] or until every handle is dropped.
    ///
    /// # Errors
    /// [`NetError::KeyLog`], [`NetError::Identity`], [`NetError::Options`] or
    /// [`NetError::Listen`].
    pub async fn start(
        options: NetOptions,
        members: Arc<dyn Members>,
    ) -> Result<(NetHandle, mpsc::Receiver<NetEvent>), NetError> {
        control::start(options, members).await
    }
}
