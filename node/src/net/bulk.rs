//! The bulk plane: one quinn endpoint for members and clients, a pool of members' connections, and
//! for each connected member a task that keeps one such connection alive.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use allmend_protocol::ids::NodeId;
use futures::{StreamExt as _, stream::FuturesUnordered};
use libp2p::identity::Keypair;
use quinn::{Connection, Endpoint, VarInt};
use tokio::{
    sync::{Semaphore, mpsc, watch},
    task::AbortHandle,
    time::timeout,
};

use super::{
    BulkStream, Counters, Members, NetError, NetEvent,
    admission::Admissions,
    book::{Backoff, jittered},
    client::{Clients, Standing},
    gate::Budgets,
    identity::peer_of,
    limits::{
        ADDRESSES_PER_PEER_MAX, BULK_CONNECTIONS_PER_PEER_MAX, BULK_DIAL_GRACE,
        BULK_HANDSHAKE_TIMEOUT, BULK_HANDSHAKES_MAX, BULK_MEMBER_WINDOW, BULK_MEMORY_MAX,
        BULK_OPEN_TIMEOUT, BULK_RETRY_ABOVE, BULK_SEND_WINDOW, BULK_STREAMS_MAX, BULK_WINDOW_MIN,
        CLIENT_UNKNOWN_LIFETIME, EVENTS_RESERVED_FROM_CLIENTS, SHUTDOWN_TIMEOUT,
    },
    tap::{Plane, Taps},
    tls,
};

/// Close codes, for the other side's log.
mod code {
    pub(super) const DONE: u32 = 0;
    pub(super) const NOT_ADMITTED: u32 = 1;
    pub(super) const WRONG_PROTOCOL: u32 = 2;
    pub(super) const TOO_MANY: u32 = 3;
}

/// A connection that closes sooner after its handshake than this counts as a failed attempt.
const SETTLED: Duration = Duration::from_secs(10);

/// What both planes share.
pub(super) struct Commons {
    pub(super) ourselves: NodeId,
    pub(super) keypair: Keypair,
    pub(super) members: Arc<dyn Members>,
    pub(super) admissions: Arc<Admissions>,
    pub(super) counters: Arc<Counters>,
    pub(super) taps: Taps,
    pub(super) events: mpsc::Sender<NetEvent>,
}

impl Commons {
    /// Passes an event on if that leaves `reserve` places in the daemon's queue; never waits.
    pub(super) fn offer(&self, event: NetEvent, reserve: usize) -> bool {
        self.events.capacity() > reserve && self.events.try_send(event).is_ok()
    }
}

/// The bulk plane of one node.
pub(super) struct Bulk {
    commons: Arc<Commons>,
    /// `None` where not even this machine's clients are served.
    endpoint: Option<Endpoint>,
    /// Whether members use it too, or clients on this machine alone.
    members: bool,
    gso: bool,
    pool: Mutex<BTreeMap<NodeId, Vec<Live>>>,
    /// Counts changes of the pool, so that keepers can wait for one.
    changes: watch::Sender<u64>,
    keepers: Mutex<BTreeMap<NodeId, Keeper>>,
    clients: Arc<Clients>,
}

struct Live {
    connection: Connection,
    dialled: bool,
}

struct Keeper {
    targets: watch::Sender<BTreeSet<String>>,
    task: AbortHandle,
}

impl Drop for Keeper {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Bulk {
    /// Opens the endpoint at `listen` and starts to accept, unless UDP is disabled.
    pub(super) fn start(
        commons: Arc<Commons>,
        secret: &[u8; 32],
        listen: Option<SocketAddr>,
        members: bool,
        gso: bool,
    ) -> Result<Arc<Self>, NetError> {
        let endpoint = match listen {
            None => None,
            Some(address) => {
                let failed = |error: std::io::Error| NetError::Listen {
                    address: format!("{address} (UDP)"),
                    cause: error.to_string(),
                };
                let socket = std::net::UdpSocket::bind(address).map_err(failed)?;
                let server = tls::server(&commons.keypair, gso)?;
                let runtime = Arc::new(quinn::TokioRuntime);
                let config = tls::endpoint(secret);
                Some(Endpoint::new(config, Some(server), socket, runtime).map_err(failed)?)
            }
        };
        let bulk = Arc::new(Self {
            commons,
            endpoint,
            members,
            gso,
            pool: Mutex::default(),
            changes: watch::Sender::new(0),
            keepers: Mutex::default(),
            clients: Arc::default(),
        });
        if let Some(endpoint) = bulk.endpoint.clone() {
            tokio::spawn(accept(Arc::clone(&bulk), endpoint));
        }
        Ok(bulk)
    }

    /// The address of the bulk socket, if there is one.
    pub(super) fn local_address(&self) -> Option<SocketAddr> {
        self.endpoint.as_ref()?.local_addr().ok()
    }

    /// The address that members may use; none where UDP is for local clients alone.
    pub(super) fn member_address(&self) -> Option<SocketAddr> {
        self.local_address().filter(|_| self.members)
    }

    /// Opens a stream over a live bulk connection, or `None` if there is none with room.
    pub(super) async fn open(&self, node: &NodeId) -> Option<BulkStream> {
        for connection in self.live(node) {
            if let Ok(Ok(pair)) = timeout(BULK_OPEN_TIMEOUT, connection.open_bi()).await {
                self.commons.counters.bulk_opened.add();
                return Some(self.member_stream(node, &connection, pair));
            }
        }
        None
    }

    /// Round-trip times and directions of the live connections with `node`, newest first.
    pub(super) fn paths(&self, node: &NodeId) -> Vec<(SocketAddr, bool, Duration)> {
        let pool = lock(&self.pool);
        let lives = pool.get(node).map_or(&[][..], Vec::as_slice);
        lives
            .iter()
            .rev()
            .map(|live| (live.connection.remote_address(), live.dialled, live.connection.rtt()))
            .collect()
    }

    /// From now on keeps a connection with `node`, reachable at `targets` (`host:port`) if at all.
    pub(super) fn keep(self: &Arc<Self>, node: NodeId, targets: BTreeSet<String>) {
        if self.member_address().is_none() {
            return;
        }
        let mut keepers = lock(&self.keepers);
        if let Some(keeper) = keepers.get(&node) {
            keeper.targets.send_if_modified(|known| {
                let changed = *known != targets;
                *known = targets;
                changed
            });
            return;
        }
        let (sender, receiver) = watch::channel(targets);
        let task = tokio::spawn(keep(Arc::clone(self), node, receiver)).abort_handle();
        keepers.insert(node, Keeper { targets: sender, task });
    }

    /// No longer dials `node`; live connections stay.
    pub(super) fn forsake(&self, node: &NodeId) {
        lock(&self.keepers).remove(node);
    }

    /// Closes every connection with `node`: it is no longer a member, or has restarted.
    pub(super) fn disconnect(&self, node: &NodeId, reason: &str) {
        let lives = lock(&self.pool).remove(node).unwrap_or_default();
        for live in lives {
            live.connection.close(VarInt::from_u32(code::NOT_ADMITTED), reason.as_bytes());
        }
        self.changed();
    }

    /// Says goodbye to everybody, for at most [`SHUTDOWN_TIMEOUT`].
    pub(super) async fn shutdown(&self) {
        lock(&self.keepers).clear();
        if let Some(endpoint) = &self.endpoint {
            endpoint.close(VarInt::from_u32(code::DONE), b"shutdown");
            timeout(SHUTDOWN_TIMEOUT, endpoint.wait_idle()).await.ok();
        }
    }

    fn live(&self, node: &NodeId) -> Vec<Connection> {
        let pool = lock(&self.pool);
        let lives = pool.get(node).map_or(&[][..], Vec::as_slice);
        let open = lives.iter().rev().filter(|live| live.connection.close_reason().is_none());
        open.map(|live| live.connection.clone()).collect()
    }

    fn member_stream(
        &self,
        node: &NodeId,
        connection: &Connection,
        pair: (quinn::SendStream, quinn::RecvStream),
    ) -> BulkStream {
        let tap = self.commons.taps.stream(*node.as_bytes(), Plane::Bulk);
        BulkStream::quic(pair, tap, Some(Arc::new(connection.clone())))
    }

    /// Enters a member's connection into the pool and serves it until it closes.
    fn register(self: &Arc<Self>, node: NodeId, connection: Connection, dialled: bool) {
        connection.set_max_concurrent_bi_streams(VarInt::from_u32(BULK_STREAMS_MAX));
        connection.set_send_window(BULK_SEND_WINDOW);
        let mut pool = lock(&self.pool);
        let lives = pool.entry(node).or_default();
        lives.retain(|live| live.connection.close_reason().is_none());
        if lives.len() >= BULK_CONNECTIONS_PER_PEER_MAX {
            // The newest is the one the peer wants; the oldest is most likely dead.
            let oldest = lives.remove(0);
            oldest.connection.close(VarInt::from_u32(code::TOO_MANY), b"replaced");
        }
        lives.push(Live { connection: connection.clone(), dialled });
        share_memory(&pool);
        drop(pool);
        self.changed();
        tokio::spawn(serve_member(Arc::clone(self), node, connection));
    }

    fn unregister(&self, node: &NodeId, connection: &Connection) {
        let mut pool = lock(&self.pool);
        if let Some(lives) = pool.get_mut(node) {
            lives.retain(|live| live.connection.stable_id() != connection.stable_id());
            if lives.is_empty() {
                pool.remove(node);
            }
        }
        share_memory(&pool);
        drop(pool);
        self.changed();
    }

    fn changed(&self) {
        self.changes.send_modify(|count| *count = count.wrapping_add(1));
    }

    /// Dials all `targets` at once; the first that answers as `node` wins.
    async fn dial(&self, node: &NodeId, targets: &BTreeSet<String>) -> Option<Connection> {
        let endpoint = self.endpoint.as_ref()?;
        let peer = peer_of(node)?;
        let config = tls::client(&self.commons.keypair, peer, tls::ALPN_BULK, self.gso).ok()?;
        let mut attempts: FuturesUnordered<_> = targets
            .iter()
            .take(ADDRESSES_PER_PEER_MAX)
            .map(|target| {
                let config = config.clone();
                timeout(BULK_HANDSHAKE_TIMEOUT, connect(endpoint, config, target))
            })
            .collect();
        while let Some(outcome) = attempts.next().await {
            if let Ok(Ok(connection)) = outcome {
                return Some(connection);
            }
        }
        None
    }
}

/// Connects to the first address that `target` resolves to and that accepts.
pub(super) async fn connect(
    endpoint: &Endpoint,
    config: quinn::ClientConfig,
    target: &str,
) -> Result<Connection, NetError> {
    let addresses =
        tokio::net::lookup_host(target).await.map_err(|_| NetError::Resolve(target.to_owned()))?;
    let mut last = NetError::Resolve(target.to_owned());
    for address in addresses.take(ADDRESSES_PER_PEER_MAX) {
        let attempt = match endpoint.connect_with(config.clone(), address, "allmend") {
            Ok(connecting) => connecting.await.map_err(|error| error.to_string()),
            Err(error) => Err(error.to_string()),
        };
        match attempt {
            Ok(connection) => return Ok(connection),
            Err(error) => last = NetError::Connection(error),
        }
    }
    Err(last)
}

/// Divides the memory for receive windows among members, and a member's among its connections.
fn share_memory(pool: &BTreeMap<NodeId, Vec<Live>>) {
    let members = u64::try_from(pool.len()).unwrap_or(u64::MAX).max(1);
    let member = BULK_MEMBER_WINDOW.min(BULK_MEMORY_MAX / members);
    for lives in pool.values() {
        let count = u64::try_from(lives.len()).unwrap_or(u64::MAX).max(1);
        let window = (member / count).max(BULK_WINDOW_MIN);
        for live in lives {
            live.connection.set_receive_window(VarInt::from_u64(window).unwrap_or(VarInt::MAX));
        }
    }
}

/// Accepts connections until the endpoint closes; strangers and garbage cost bounded work.
async fn accept(bulk: Arc<Bulk>, endpoint: Endpoint) {
    let handshakes = Arc::new(Semaphore::new(BULK_HANDSHAKES_MAX));
    let budgets = Arc::new(Mutex::new(Budgets::default()));
    let counters = Arc::clone(&bulk.commons.counters);
    while let Some(incoming) = endpoint.accept().await {
        let validated = incoming.remote_address_validated();
        let under_way = BULK_HANDSHAKES_MAX.saturating_sub(handshakes.available_permits());
        if under_way >= BULK_RETRY_ABOVE && !validated && incoming.may_retry() {
            counters.bulk_retried.add();
            incoming.retry().ok();
            continue;
        }
        let ip = incoming.remote_address().ip();
        // Only a proven address is charged: a forged one must not use up somebody's budget.
        let charged = validated;
        if charged && lock(&budgets).charge(ip, Instant::now()).is_err() {
            counters.address_refused.add();
            incoming.refuse();
            continue;
        }
        let permit = Arc::clone(&handshakes).try_acquire_owned();
        let connecting = match (&permit, incoming) {
            (Ok(_), incoming) => incoming.accept().ok(),
            (Err(_), incoming) => {
                incoming.refuse();
                None
            }
        };
        let Some(connecting) = connecting else {
            counters.bulk_refused.add();
            if charged {
                lock(&budgets).settle(ip);
            }
            continue;
        };
        let (bulk, budgets) = (Arc::clone(&bulk), Arc::clone(&budgets));
        tokio::spawn(async move {
            let outcome = timeout(BULK_HANDSHAKE_TIMEOUT, connecting).await;
            drop(permit);
            if charged {
                lock(&budgets).settle(ip);
            }
            match outcome {
                Ok(Ok(connection)) => greet(bulk, connection).await,
                Ok(Err(_)) | Err(_) => bulk.commons.counters.bulk_refused.add(),
            }
        });
    }
}

/// Tells members from clients by the protocol they asked for, and turns away who may not enter.
async fn greet(bulk: Arc<Bulk>, connection: Connection) {
    let refuse = |code: u32, reason: &str| {
        bulk.commons.counters.bulk_refused.add();
        connection.close(VarInt::from_u32(code), reason.as_bytes());
    };
    let Some((key, protocol)) = tls::remote(&connection) else {
        return refuse(code::WRONG_PROTOCOL, "not an Ed25519 identity");
    };
    match protocol.as_slice() {
        tls::ALPN_BULK | tls::ALPN_PROBE if !bulk.members => {
            refuse(code::WRONG_PROTOCOL, "for local clients only");
        }
        tls::ALPN_BULK => {
            let node = NodeId::from_bytes(key);
            if bulk.commons.admissions.current(&node).is_none() {
                return refuse(code::NOT_ADMITTED, "not admitted");
            }
            bulk.register(node, connection, false);
        }
        tls::ALPN_CLIENT => {
            let known = bulk.commons.members.knows_client(&key);
            match Clients::enter(&bulk.clients, key, connection.remote_address().ip(), known) {
                Some(standing) => {
                    bulk.commons.counters.clients_accepted.add();
                    serve_client(&bulk, key, connection, standing).await;
                }
                None => {
                    bulk.commons.counters.clients_refused.add();
                    connection.close(VarInt::from_u32(code::TOO_MANY), b"too many clients");
                }
            }
        }
        tls::ALPN_PROBE => {
            // The handshake was the answer; whoever asked closes.
            timeout(BULK_HANDSHAKE_TIMEOUT, connection.closed()).await.ok();
        }
        _ => refuse(code::WRONG_PROTOCOL, "unknown protocol"),
    }
}

async fn serve_member(bulk: Arc<Bulk>, node: NodeId, connection: Connection) {
    let commons = &bulk.commons;
    while let Ok(pair) = connection.accept_bi().await {
        if commons.admissions.current(&node).is_none() {
            connection.close(VarInt::from_u32(code::NOT_ADMITTED), b"not admitted");
            break;
        }
        let stream = bulk.member_stream(&node, &connection, pair);
        if commons.offer(NetEvent::Bulk { from: node, stream }, 0) {
            commons.counters.bulk_received.add();
        } else {
            commons.counters.bulk_dropped.add();
        }
    }
    bulk.unregister(&node, &connection);
}

async fn serve_client(bulk: &Bulk, key: [u8; 32], connection: Connection, mut standing: Standing) {
    let commons = &bulk.commons;
    let remote = connection.remote_address();
    let probation = tokio::time::sleep(CLIENT_UNKNOWN_LIFETIME);
    let mut probation = std::pin::pin!(probation);
    loop {
        tokio::select! {
            accepted = connection.accept_bi() => {
                let Ok(pair) = accepted else { return };
                let tap = commons.taps.stream(key, Plane::Client);
                let stream = BulkStream::quic(pair, tap, Some(Arc::new(connection.clone())));
                let event = NetEvent::Client { key, remote, stream };
                if !commons.offer(event, EVENTS_RESERVED_FROM_CLIENTS) {
                    commons.counters.bulk_dropped.add();
                }
            }
            () = &mut probation, if !standing.is_known() => {
                if !commons.members.knows_client(&key) || !standing.become_known() {
                    connection.close(VarInt::from_u32(code::NOT_ADMITTED), b"not known here");
                    return;
                }
            }
        }
    }
}

/// Keeps one connection with `node`, whoever dials it. The side with the lower id dials first.
async fn keep(bulk: Arc<Bulk>, node: NodeId, mut targets: watch::Receiver<BTreeSet<String>>) {
    let mut changes = bulk.changes.subscribe();
    let mut backoff = Backoff::new(Instant::now());
    if bulk.commons.ourselves > node {
        let lives =
            async { while bulk.live(&node).is_empty() && changes.changed().await.is_ok() {} };
        timeout(BULK_DIAL_GRACE, lives).await.ok();
    }
    loop {
        changes.borrow_and_update();
        while !bulk.live(&node).is_empty() {
            if changes.changed().await.is_err() {
                return;
            }
        }
        let list = targets.borrow_and_update().clone();
        let started = Instant::now();
        if let Some(connection) = bulk.dial(&node, &list).await {
            bulk.register(node, connection.clone(), true);
            connection.closed().await;
            // Serving removes it from the pool; another connection may have come meanwhile.
        }
        if started.elapsed() > SETTLED {
            backoff.succeeded(Instant::now(), jitter());
        } else {
            backoff.failed(Instant::now(), jitter());
        }
        tokio::select! {
            () = tokio::time::sleep_until(backoff.next().into()) => {}
            changed = targets.changed() => if changed.is_err() { return },
        }
    }
}

/// One random byte, for spreading retries.
pub(super) fn jitter() -> u8 {
    let mut byte = [0x80];
    // Without randomness retries are merely less spread.
    getrandom::fill(&mut byte).ok();
    byte[0]
}

/// A short random pause before doing what others do at the same moment.
pub(super) fn soon(span: Duration) -> Instant {
    Instant::now() + jittered(span, jitter())
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
