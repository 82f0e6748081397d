//! A wiretap before transport encryption, for tests that ask where a byte string travels.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

/// Sees every application byte that crosses a plane, in clear. `None` in production.
pub trait Tap: Send + Sync + 'static {
    /// Called on the sending or receiving path; must return quickly.
    fn frame(&self, frame: TapFrame<'_>);
}

/// One piece of application data on its way.
#[derive(Clone, Copy, Debug)]
pub struct TapFrame<'a> {
    /// Which way it goes, seen from this node.
    pub direction: Direction,
    /// The other end's Ed25519 key; `None` for gossip sent, which goes to everybody.
    pub peer: Option<[u8; 32]>,
    /// What kind of traffic it belongs to.
    pub plane: Plane,
    /// Names the stream or message. Streams are seen in pieces as the transport takes them:
    /// concatenate the pieces with equal `stream` and `direction` before searching.
    pub stream: u64,
    /// The bytes.
    pub bytes: &'a [u8],
}

/// Which way bytes go, seen from this node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Direction {
    /// Towards us.
    In,
    /// Away from us.
    Out,
}

/// A kind of traffic.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Plane {
    /// The mutual introduction before admission.
    Hello,
    /// A request, including the transport's own.
    Request,
    /// A reply.
    Reply,
    /// A gossip message.
    Gossip,
    /// A stream between members, whichever transport carries it.
    Bulk,
    /// A stream between a client and a node.
    Client,
}

/// The tap of one node, with the counter that names streams.
#[derive(Clone, Default)]
pub(super) struct Taps(Option<Arc<Line>>);

struct Line {
    tap: Arc<dyn Tap>,
    next: AtomicU64,
}

impl Taps {
    pub(super) fn new(tap: Option<Arc<dyn Tap>>) -> Self {
        Self(tap.map(|tap| Arc::new(Line { tap, next: AtomicU64::new(0) })))
    }

    /// Reports one whole message.
    pub(super) fn message(
        &self,
        direction: Direction,
        peer: Option<[u8; 32]>,
        plane: Plane,
        bytes: &[u8],
    ) {
        if let Some(line) = &self.0 {
            let stream = line.next.fetch_add(1, Ordering::Relaxed);
            line.tap.frame(TapFrame { direction, peer, plane, stream, bytes });
        }
    }

    /// A tap for the pieces of one stream.
    pub(super) fn stream(&self, peer: [u8; 32], plane: Plane) -> Option<StreamTap> {
        let line = self.0.clone()?;
        let stream = line.next.fetch_add(1, Ordering::Relaxed);
        Some(StreamTap { line, peer, plane, stream })
    }
}

/// Reports the pieces of one stream.
#[derive(Clone)]
pub(super) struct StreamTap {
    line: Arc<Line>,
    peer: [u8; 32],
    plane: Plane,
    stream: u64,
}

impl StreamTap {
    pub(super) fn piece(&self, direction: Direction, bytes: &[u8]) {
        if !bytes.is_empty() {
            self.line.tap.frame(TapFrame {
                direction,
                peer: Some(self.peer),
                plane: self.plane,
                stream: self.stream,
                bytes,
            });
        }
    }
}
