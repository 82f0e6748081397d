//! What can go wrong on the two planes, as the daemon needs to tell it apart.

use std::io;

use allmend_protocol::ids::NodeId;

/// An operation of `net` that failed.
#[derive(Debug, thiserror::Error)]
pub enum NetError {
    /// `SSLKEYLOGFILE` is set, which would write the session keys of every connection to a file.
    #[error("the environment variable SSLKEYLOGFILE is set; it would write session keys to a file")]
    KeyLog,
    /// The node's key cannot serve as a transport identity.
    #[error("the key is not usable as an identity: {0}")]
    Identity(String),
    /// An option has a value that cannot work.
    #[error("{0}")]
    Options(String),
    /// A listening address could not be opened.
    #[error("cannot listen on {address}: {cause}")]
    Listen {
        /// The address as configured.
        address: String,
        /// What the system said.
        cause: String,
    },
    /// A host name or address could not be resolved.
    #[error("cannot resolve {0}")]
    Resolve(String),
    /// There is no connection with this peer now.
    #[error("not connected to {0}")]
    NotConnected(NodeId),
    /// Too many operations are under way, here or at the peer; try again later.
    #[error("busy")]
    Busy,
    /// A frame or message exceeds its bound.
    #[error("{length} bytes exceed the bound of {limit}")]
    TooLarge {
        /// Length announced or given, in bytes.
        length: usize,
        /// The bound, in bytes.
        limit: usize,
    },
    /// The peer did not answer in time.
    #[error("no answer in time")]
    Timeout,
    /// The peer received the request but its daemon gave no answer.
    #[error("the peer gave no answer")]
    Unanswered,
    /// The peer answered in a way the transport does not know.
    #[error("malformed answer")]
    Malformed,
    /// The connection was closed, refused, or its handshake failed.
    #[error("connection failed: {0}")]
    Connection(String),
    /// Reading or writing failed.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// This node's network has shut down.
    #[error("the network has shut down")]
    Closed,
}
