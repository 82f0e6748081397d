//! Members on loopback sockets for the tests of `node::net`.
#![allow(dead_code, unreachable_pub)]

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use allmend_node::net::{
    Admitted, BulkStream, Gossip, Members, Multiaddr, Net, NetEvent, NetHandle, NetOptions,
};
use allmend_protocol::ids::NodeId;
use ed25519_dalek::SigningKey;
use tokio::sync::mpsc;

/// Everything in these tests must happen within this time, on a busy machine too.
pub const DEADLINE: Duration = Duration::from_secs(60);
pub const FEDERATION: [u8; 32] = [9; 32];
pub const FRAME: usize = 1 << 20;

/// A hello is `member:<expiry>`; gossip is valid if it starts with `good`.
pub struct Club {
    pub expires_unix_ms: AtomicU64,
    pub hello: Mutex<Vec<u8>>,
    pub clients: Mutex<Vec<[u8; 32]>>,
}

impl Club {
    pub fn member() -> Arc<Self> {
        Self::with_hello(b"member")
    }

    pub fn with_hello(hello: &[u8]) -> Arc<Self> {
        Arc::new(Self {
            expires_unix_ms: AtomicU64::new(now_ms() + 3_600_000),
            hello: Mutex::new(hello.to_vec()),
            clients: Mutex::default(),
        })
    }
}

impl Members for Club {
    fn hello(&self) -> Vec<u8> {
        self.hello.lock().unwrap().clone()
    }

    fn admit(&self, _peer: NodeId, hello: &[u8]) -> Result<Admitted, String> {
        match hello {
            b"member" => {
                Ok(Admitted { expires_unix_ms: self.expires_unix_ms.load(Ordering::SeqCst) })
            }
            _ => Err("no certificate".to_owned()),
        }
    }

    fn validate_gossip(&self, bytes: &[u8]) -> Gossip {
        if bytes.starts_with(b"good") { Gossip::Accept } else { Gossip::Reject }
    }

    fn knows_client(&self, key: &[u8; 32]) -> bool {
        self.clients.lock().unwrap().contains(key)
    }
}

pub fn now_ms() -> u64 {
    u64::try_from(SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis()).unwrap()
}

pub fn key(byte: u8) -> SigningKey {
    SigningKey::from_bytes(&[byte; 32])
}

pub fn node_id(key: &SigningKey) -> NodeId {
    NodeId::from_bytes(key.verifying_key().to_bytes())
}

/// One running member whose daemon echoes requests and streams, prefixed by `echo:`.
pub struct Node {
    pub net: NetHandle,
    pub club: Arc<Club>,
    /// What else the daemon was told.
    pub seen: mpsc::Receiver<Seen>,
}

#[derive(Debug, PartialEq, Eq)]
pub enum Seen {
    Joined(NodeId),
    Left(NodeId),
    Gossip(Vec<u8>),
    Client([u8; 32]),
}

impl Node {
    pub async fn start(options: NetOptions) -> Self {
        Self::start_as(options, Club::member()).await
    }

    pub async fn start_as(options: NetOptions, club: Arc<Club>) -> Self {
        let (net, events) = Net::start(options, club.clone()).await.unwrap();
        let (sender, seen) = mpsc::channel(4096);
        tokio::spawn(serve(events, sender));
        Self { net, club, seen }
    }

    pub fn id(&self) -> NodeId {
        self.net.node()
    }

    pub fn control(&self) -> Vec<Multiaddr> {
        self.net.listen_addresses().control
    }

    pub async fn know(&self, other: &Node) {
        for address in other.control() {
            self.net.add_address(other.id(), address).await.unwrap();
        }
    }

    /// Waits until exactly these members are connected.
    pub async fn meets(&self, others: &[NodeId]) {
        let mut wanted = others.to_vec();
        wanted.sort();
        until("the members to be connected", || async {
            let peers = self.net.peers().await.unwrap();
            peers.iter().map(|peer| peer.node).collect::<Vec<_>>() == wanted
        })
        .await;
    }

    /// Waits until a bulk connection with `other` lives.
    pub async fn has_bulk(&self, other: NodeId) {
        until("a bulk connection", || async {
            let peers = self.net.peers().await.unwrap();
            peers.iter().any(|peer| peer.node == other && !peer.bulk.is_empty())
        })
        .await;
    }

    /// Waits for an event that satisfies `wanted`, dropping others.
    pub async fn sees(&mut self, wanted: impl Fn(&Seen) -> bool) -> Seen {
        let search = async {
            loop {
                let seen = self.seen.recv().await.expect("the node runs");
                if wanted(&seen) {
                    return seen;
                }
            }
        };
        tokio::time::timeout(DEADLINE, search).await.expect("event in time")
    }

    pub fn counter(&self, name: &str) -> u64 {
        let counters: BTreeMap<_, _> = self.net.counters().snapshot().into_iter().collect();
        counters[name]
    }
}

async fn serve(mut events: mpsc::Receiver<NetEvent>, seen: mpsc::Sender<Seen>) {
    while let Some(event) = events.recv().await {
        match event {
            NetEvent::Joined(node) => {
                seen.try_send(Seen::Joined(node)).ok();
            }
            NetEvent::Left(node) => {
                seen.try_send(Seen::Left(node)).ok();
            }
            NetEvent::Gossip(bytes) => {
                seen.try_send(Seen::Gossip(bytes)).ok();
            }
            NetEvent::Request { bytes, reply, .. } => match bytes.as_slice() {
                b"silence" => drop(reply),
                b"hold" => std::mem::forget(reply),
                _ => reply.send([b"echo:", bytes.as_slice()].concat()).unwrap(),
            },
            NetEvent::Bulk { stream, .. } => {
                tokio::spawn(echo(stream));
            }
            NetEvent::Client { key, stream, .. } => {
                seen.try_send(Seen::Client(key)).ok();
                tokio::spawn(echo(stream));
            }
        }
    }
}

async fn echo(mut stream: BulkStream) {
    while let Ok(Some(frame)) = stream.read_frame(FRAME).await {
        let answer = [b"echo:", frame.as_slice()].concat();
        if stream.write_frame(&answer, FRAME + 5).await.is_err() {
            return;
        }
    }
    stream.finish().await.ok();
}

/// Sends frames both ways over `stream` and checks what returns.
pub async fn exchange(stream: &mut BulkStream) {
    for size in [1, 100, 100_000] {
        let frame = vec![7; size];
        stream.write_frame(&frame, FRAME).await.unwrap();
        let answer = within(stream.read_frame(FRAME + 5)).await.unwrap().unwrap();
        assert_eq!(answer.len(), size + 5);
        assert_eq!(&answer[..5], b"echo:");
    }
    stream.finish().await.unwrap();
    assert!(within(stream.read_frame(FRAME)).await.unwrap().is_none());
}

pub async fn within<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(DEADLINE, future).await.expect("in time")
}

/// Polls a condition until it holds or the deadline passes.
pub async fn until<F: Future<Output = bool>>(what: &str, mut condition: impl FnMut() -> F) {
    let start = Instant::now();
    while !condition().await {
        assert!(start.elapsed() < DEADLINE, "waited too long for {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

pub fn options(byte: u8) -> NetOptions {
    NetOptions::loopback(key(byte), FEDERATION)
}
