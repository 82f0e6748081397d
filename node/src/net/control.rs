//! The control plane's event loop: connections, dialling, expiry, gossip. What members say to one
//! another in requests is in [`super::dialogue`].
//!
//! The loop never waits for the daemon: what does not fit into its queue is refused or dropped.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, VecDeque},
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::Arc,
    time::{Duration, Instant},
};

use allmend_protocol::ids::NodeId;
use futures::{StreamExt as _, stream::FuturesUnordered};
use libp2p::{
    Multiaddr, PeerId, Swarm,
    core::{ConnectedPoint, upgrade::Version},
    gossipsub::{self, MessageAcceptance, PublishError},
    identify, kad, ping, request_response,
    swarm::{
        self, ConnectionId, DialError, SwarmEvent,
        dial_opts::{DialOpts, PeerCondition},
    },
};
use tokio::{
    sync::{Semaphore, mpsc, oneshot, watch},
    time::{MissedTickBehavior, interval, timeout},
};

use super::{
    BulkStream, Gossip, Members, NetError, NetEvent, NetHandle, NetOptions,
    admission::{Admissions, Instance, now_unix_ms},
    behaviour::{Behaviour, BehaviourEvent, Names},
    book::{Book, Dial, is_udp},
    bulk::{Bulk, Commons, jitter, soon},
    dialogue::{Outbound, PendingAnswer},
    gate::ip_of,
    handle::{Command, ControlPath, ControlTransport, PeerStatus},
    hello::Gatekeeper,
    identity::{keypair, node_of, peer_of},
    limits::{
        BOOTSTRAP_MAX, COMMANDS_MAX, CONTROL_IDLE, EVENTS_MAX, EVENTS_RESERVED_FROM_GOSSIP,
        FALLBACK_STREAMS_MAX, MEMBERSHIP_EVENTS_MAX, META_INTERVAL, OBSERVED_MAX,
        PING_FAILURES_MAX, SHUTDOWN_TIMEOUT, TICK,
    },
    reach::Prober,
    tap::{Direction, Plane, Taps},
    tls, transport,
    wire::Meta,
};

/// How long listening sockets may take to report their addresses.
const LISTEN_TIMEOUT: Duration = Duration::from_secs(5);
/// How often members unknown to our neighbours are searched for.
const SEARCH_INTERVAL: Duration = Duration::from_secs(120);
/// Pause between address exchanges that a change caused.
const META_PAUSE: Duration = Duration::from_millis(500);

/// The state of the loop.
pub(super) struct Control {
    pub(super) swarm: Swarm<Behaviour>,
    pub(super) commons: Arc<Commons>,
    pub(super) gatekeeper: Arc<Gatekeeper>,
    pub(super) bulk: Arc<Bulk>,
    pub(super) prober: Arc<Prober>,
    pub(super) probes: Arc<Semaphore>,
    pub(super) options: Advertised,
    pub(super) peers: BTreeMap<PeerId, Peer>,
    pub(super) outbound: HashMap<request_response::OutboundRequestId, Outbound>,
    pub(super) answers: FuturesUnordered<PendingAnswer>,
    pub(super) book: Book,
    pub(super) observed: VecDeque<IpAddr>,
    pub(super) meta_changed: bool,
    names: Names,
    commands: mpsc::Receiver<Command>,
    membership: VecDeque<NetEvent>,
    listening: watch::Sender<Vec<Multiaddr>>,
    meta_sent: Instant,
    search_next: Instant,
}

/// What the operator wants others to know.
pub(super) struct Advertised {
    pub(super) advertise: bool,
    pub(super) control_external: Vec<Multiaddr>,
    pub(super) bulk_external: Vec<String>,
}

/// A connected member.
pub(super) struct Peer {
    pub(super) node: NodeId,
    pub(super) paths: BTreeMap<ConnectionId, Path>,
    pub(super) rtt: Option<Duration>,
    /// Our requests that it has not answered.
    pub(super) in_flight: usize,
    /// Its requests that we have not answered.
    pub(super) answering: usize,
    pub(super) meta: Meta,
    pub(super) fallback_streams: Arc<Semaphore>,
}

/// One control connection of a member.
pub(super) struct Path {
    pub(super) remote: Multiaddr,
    dialled: bool,
    instance: Instance,
    ping_failures: u32,
}

/// See [`super::Net::start`].
pub(super) async fn start(
    options: NetOptions,
    members: Arc<dyn Members>,
) -> Result<(NetHandle, mpsc::Receiver<NetEvent>), NetError> {
    tls::refuse_key_log()?;
    if options.bootstrap.len() > BOOTSTRAP_MAX {
        let reason = format!("more than {BOOTSTRAP_MAX} bootstrap addresses");
        return Err(NetError::Options(reason));
    }
    let keypair = keypair(&options.key)?;
    let ourselves = NodeId::from_bytes(options.key.verifying_key().to_bytes());
    let mut instance = Instance::default();
    getrandom::fill(&mut instance)
        .map_err(|error| NetError::Options(format!("no randomness: {error}")))?;
    let (events, receiver) = mpsc::channel(EVENTS_MAX);
    let commons = Arc::new(Commons {
        ourselves,
        keypair: keypair.clone(),
        members: Arc::clone(&members),
        admissions: Arc::new(Admissions::default()),
        counters: Arc::default(),
        taps: Taps::new(options.tap),
        events,
    });
    let gatekeeper = Arc::new(Gatekeeper {
        ourselves,
        federation: options.federation,
        instance,
        members,
        admissions: Arc::clone(&commons.admissions),
        counters: Arc::clone(&commons.counters),
        taps: commons.taps.clone(),
    });
    let names = Names::new(&options.federation);
    let behaviour =
        Behaviour::new(&keypair, &names, options.advertise, Arc::clone(&commons.counters))?;
    let mut swarm = Swarm::new(
        transport::build(&keypair, options.disable_udp, Arc::clone(&gatekeeper))?,
        behaviour,
        keypair.public().to_peer_id(),
        swarm::Config::with_tokio_executor()
            .with_idle_connection_timeout(CONTROL_IDLE)
            .with_substream_upgrade_protocol_override(Version::V1Lazy),
    );
    let control_listen: Vec<Multiaddr> = options
        .control_listen
        .into_iter()
        .filter(|address| !options.disable_udp || !is_udp(address))
        .collect();
    listen(&mut swarm, &control_listen).await?;
    if options.advertise {
        for address in &options.control_external {
            swarm.add_external_address(address.clone());
        }
    }
    // Without UDP between members, this machine's own command line is still served on loopback.
    let bulk_listen = if options.disable_udp {
        SocketAddr::new(Ipv4Addr::LOCALHOST.into(), options.bulk_listen.port())
    } else {
        options.bulk_listen
    };
    let secret = zeroize::Zeroizing::new(options.key.to_bytes());
    let bulk = Bulk::start(
        Arc::clone(&commons),
        &secret,
        Some(bulk_listen),
        !options.disable_udp,
        options.gso,
    )?;

    let now = Instant::now();
    let peer = *swarm.local_peer_id();
    let book = Book::new(peer, !options.disable_udp, &options.bootstrap, now);
    let (commands, commanded) = mpsc::channel(COMMANDS_MAX);
    let listening = watch::Sender::new(swarm.listeners().cloned().collect());
    let handle = NetHandle {
        commands,
        bulk: Arc::clone(&bulk),
        commons: Arc::clone(&commons),
        listening: listening.subscribe(),
    };
    let prober = Arc::new(Prober {
        commons: Arc::clone(&commons),
        gatekeeper: Arc::clone(&gatekeeper),
        disable_udp: options.disable_udp,
        gso: options.gso,
    });
    let control = Control {
        swarm,
        commons,
        gatekeeper,
        bulk,
        prober,
        probes: Arc::new(Semaphore::new(super::limits::PROBES_MAX)),
        options: Advertised {
            advertise: options.advertise,
            control_external: options.control_external,
            bulk_external: options.bulk_external,
        },
        peers: BTreeMap::new(),
        outbound: HashMap::new(),
        answers: FuturesUnordered::new(),
        book,
        observed: VecDeque::new(),
        meta_changed: false,
        names,
        commands: commanded,
        membership: VecDeque::new(),
        listening,
        meta_sent: now,
        search_next: now + SEARCH_INTERVAL,
    };
    tokio::spawn(control.run());
    Ok((handle, receiver))
}

/// Listens on every address and waits until each has reported where.
async fn listen(swarm: &mut Swarm<Behaviour>, addresses: &[Multiaddr]) -> Result<(), NetError> {
    let failed = |address: &Multiaddr, cause: String| NetError::Listen {
        address: address.to_string(),
        cause,
    };
    let mut waiting = BTreeMap::new();
    for address in addresses {
        let listener =
            swarm.listen_on(address.clone()).map_err(|error| failed(address, error.to_string()))?;
        waiting.insert(listener.to_string(), address);
    }
    let reported = timeout(LISTEN_TIMEOUT, async {
        while !waiting.is_empty() {
            match swarm.select_next_some().await {
                SwarmEvent::NewListenAddr { listener_id, .. } => {
                    waiting.remove(&listener_id.to_string());
                }
                SwarmEvent::ListenerClosed { listener_id, reason, .. } => {
                    if let Some(address) = waiting.remove(&listener_id.to_string()) {
                        let cause = reason.err().map_or_else(String::new, |e| e.to_string());
                        return Err(failed(address, cause));
                    }
                }
                _ => {}
            }
        }
        Ok(())
    });
    match reported.await {
        Ok(outcome) => outcome,
        Err(_) => {
            let address = waiting.values().next().map_or_else(String::new, ToString::to_string);
            Err(NetError::Listen { address, cause: "no address reported".to_owned() })
        }
    }
}

impl Control {
    async fn run(mut self) {
        let events = self.commons.events.clone();
        let mut tick = interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let done = loop {
            tokio::select! {
                event = self.swarm.select_next_some() => self.on_swarm(event),
                command = self.commands.recv() => match command {
                    Some(Command::Shutdown { done }) => break Some(done),
                    Some(command) => self.on_command(command),
                    None => break None,
                },
                Some(answer) = self.answers.next(), if !self.answers.is_empty() => {
                    self.on_answer(answer);
                }
                permit = events.reserve(), if !self.membership.is_empty() => {
                    match (permit, self.membership.pop_front()) {
                        (Ok(permit), Some(event)) => permit.send(event),
                        (Ok(_), None) => {}
                        (Err(_), _) => self.membership.clear(),
                    }
                }
                _ = tick.tick() => self.on_tick(),
            }
        };
        self.close().await;
        if let Some(done) = done {
            done.send(()).ok();
        }
    }

    async fn close(&mut self) {
        self.bulk.shutdown().await;
        for peer in self.peers.keys().copied().collect::<Vec<_>>() {
            self.swarm.disconnect_peer_id(peer).ok();
        }
        let silence = async {
            while self.swarm.network_info().num_peers() > 0 {
                self.swarm.select_next_some().await;
            }
        };
        timeout(SHUTDOWN_TIMEOUT, silence).await.ok();
    }

    fn on_command(&mut self, command: Command) {
        match command {
            Command::Request { peer, bytes, reply } => self.ask(peer, bytes, reply),
            Command::Publish { bytes, done } => {
                done.send(self.publish(bytes)).ok();
            }
            Command::OpenSubstream { peer, opened } => {
                // The newest connection: an older one may belong to a process that is gone.
                let newest = self.peers.get(&peer).and_then(|peer| peer.paths.keys().next_back());
                if let Some(connection) = newest {
                    self.swarm.behaviour_mut().substream.open(peer, *connection, opened);
                }
            }
            Command::AddAddress { peer, address } => self.learn(peer, address),
            Command::Peers { reply } => {
                reply.send(self.statuses()).ok();
            }
            Command::Renew => self.show_hello(),
            Command::Evict { node } => {
                self.commons.admissions.remove(&node);
                self.disconnect(&node, "evicted");
            }
            Command::Probe { via, reply } => self.ask_probe(via, reply),
            // Handled by the loop itself.
            Command::Shutdown { done } => {
                done.send(()).ok();
            }
        }
    }

    fn on_tick(&mut self) {
        let now = Instant::now();
        for node in self.commons.admissions.expire(now_unix_ms()) {
            if peer_of(&node).is_some_and(|peer| self.peers.contains_key(&peer)) {
                self.commons.counters.admission_expired.add();
                tracing::info!(peer = %node, "admission expired");
            }
            self.disconnect(&node, "admission expired");
        }
        let peers = &self.peers;
        for dial in self.book.due(now, jitter, |peer| peers.contains_key(peer)) {
            // From the listening port, which is libp2p's habit, answers would not pass a firewall
            // that keeps everything from that port (specs/transport.md §1).
            let options = match dial {
                Dial::Peer(peer, addresses) => DialOpts::peer_id(peer)
                    .addresses(addresses)
                    .condition(PeerCondition::DisconnectedAndNotDialing)
                    .allocate_new_port()
                    .build(),
                Dial::Unknown(address) => {
                    DialOpts::unknown_peer_id().address(address).allocate_new_port().build()
                }
            };
            if let Err(error) = self.swarm.dial(options) {
                tracing::trace!(%error, "not dialled");
            }
        }
        let pause = if self.meta_changed { META_PAUSE } else { META_INTERVAL };
        if now.saturating_duration_since(self.meta_sent) >= pause {
            self.meta_changed = false;
            self.meta_sent = now;
            for peer in self.peers.keys().copied().collect::<Vec<_>>() {
                self.tell_addresses(peer);
            }
        }
        if self.search_next <= now {
            self.search_next = now + SEARCH_INTERVAL;
            let ourselves = *self.swarm.local_peer_id();
            self.swarm.behaviour_mut().discovery.get_closest_peers(ourselves);
        }
    }

    fn on_swarm(&mut self, event: SwarmEvent<BehaviourEvent>) {
        match event {
            SwarmEvent::Behaviour(event) => self.on_behaviour(event),
            SwarmEvent::ConnectionEstablished { peer_id, connection_id, endpoint, .. } => {
                self.on_established(peer_id, connection_id, &endpoint);
            }
            SwarmEvent::ConnectionClosed { peer_id, connection_id, cause, .. } => {
                tracing::debug!(peer = %peer_id, ?cause, "control connection closed");
                self.on_closed(peer_id, connection_id);
            }
            SwarmEvent::OutgoingConnectionError { peer_id, error, .. } => {
                if let (Some(peer), DialError::WrongPeerId { address, .. }) = (peer_id, &error) {
                    self.book.wrong_peer(&peer, address);
                }
                tracing::debug!(peer = ?peer_id, %error, "dial failed");
            }
            SwarmEvent::IncomingConnectionError { send_back_addr, error, .. } => {
                tracing::debug!(from = %send_back_addr, %error, "inbound connection failed");
            }
            SwarmEvent::NewListenAddr { .. } | SwarmEvent::ExpiredListenAddr { .. } => {
                self.listening.send_replace(self.swarm.listeners().cloned().collect());
                self.meta_changed = true;
            }
            SwarmEvent::ListenerClosed { addresses, reason: Err(error), .. } => {
                tracing::error!(?addresses, %error, "no longer listening");
            }
            SwarmEvent::ListenerError { error, .. } => {
                tracing::debug!(%error, "listener error");
            }
            _ => {}
        }
    }

    fn on_established(
        &mut self,
        peer_id: PeerId,
        connection: ConnectionId,
        endpoint: &ConnectedPoint,
    ) {
        // The transport admitted it; a moment may have passed since.
        let admitted = node_of(&peer_id)
            .and_then(|node| Some((node, self.commons.admissions.current(&node)?)));
        let Some((node, admission)) = admitted else {
            self.swarm.close_connection(connection);
            return;
        };
        let path = Path {
            remote: endpoint.get_remote_address().clone(),
            dialled: endpoint.is_dialer(),
            instance: admission.instance,
            ping_failures: 0,
        };
        let dialled_address = path.dialled.then(|| path.remote.clone());
        self.book.connected(peer_id, dialled_address.as_ref(), Instant::now(), jitter());

        let joins = !self.peers.contains_key(&peer_id);
        let peer = self.peers.entry(peer_id).or_insert_with(|| Peer {
            node,
            paths: BTreeMap::new(),
            rtt: None,
            in_flight: 0,
            answering: 0,
            meta: Meta::default(),
            fallback_streams: Arc::new(Semaphore::new(FALLBACK_STREAMS_MAX)),
        });
        // Connections of an earlier process of this member are dead, whether we noticed or not.
        let stale: Vec<ConnectionId> = peer
            .paths
            .iter()
            .filter(|(_, known)| known.instance != path.instance)
            .map(|(connection, _)| *connection)
            .collect();
        peer.paths.insert(connection, path);
        if !stale.is_empty() {
            self.bulk.disconnect(&node, "restarted");
        }
        for connection in &stale {
            self.swarm.close_connection(*connection);
        }
        if joins {
            tracing::debug!(peer = %node, "joined");
            self.announce(NetEvent::Joined(node));
        }
        if joins || !stale.is_empty() {
            self.tell_addresses(peer_id);
        }
    }

    fn on_closed(&mut self, peer_id: PeerId, connection: ConnectionId) {
        let Some(peer) = self.peers.get_mut(&peer_id) else { return };
        peer.paths.remove(&connection);
        if peer.paths.is_empty() {
            let node = peer.node;
            self.peers.remove(&peer_id);
            self.bulk.forsake(&node);
            tracing::debug!(peer = %node, "left");
            self.announce(NetEvent::Left(node));
        } else {
            // What was told over the closed connection may be lost: a member that restarted would
            // know nobody but us for a minute.
            self.tell_addresses(peer_id);
        }
    }

    /// Joins and leaves are never refused, so that the daemon's picture stays right.
    fn announce(&mut self, event: NetEvent) {
        if self.membership.is_empty() {
            match self.commons.events.try_send(event) {
                Ok(()) | Err(mpsc::error::TrySendError::Closed(_)) => return,
                Err(mpsc::error::TrySendError::Full(event)) => self.membership.push_back(event),
            }
            return;
        }
        if self.membership.len() >= MEMBERSHIP_EVENTS_MAX {
            self.membership.pop_front();
            self.commons.counters.events_dropped.add();
        }
        self.membership.push_back(event);
    }

    /// Passes an event on unless the queue is full or an earlier join still waits for room.
    pub(super) fn offer(&self, event: NetEvent, reserve: usize) -> bool {
        self.membership.is_empty() && self.commons.offer(event, reserve)
    }

    fn on_behaviour(&mut self, event: BehaviourEvent) {
        match event {
            BehaviourEvent::Gossip(gossipsub::Event::Message {
                propagation_source,
                message_id,
                message,
            }) => self.on_gossip(&propagation_source, &message_id, message.data),
            BehaviourEvent::Requests(event) => self.on_request_event(event),
            BehaviourEvent::Substream(inbound) => self.on_substream(inbound.peer, inbound.stream),
            BehaviourEvent::Ping(event) => self.on_ping(event),
            BehaviourEvent::Identify(identify::Event::Received { info, .. }) => {
                if let Some(ip) = ip_of(&info.observed_addr)
                    && !self.observed.contains(&ip)
                {
                    if self.observed.len() >= OBSERVED_MAX {
                        self.observed.pop_front();
                    }
                    self.observed.push_back(ip);
                }
            }
            BehaviourEvent::Discovery(event) => self.on_discovery(event),
            _ => {}
        }
    }

    fn on_gossip(&mut self, from: &PeerId, id: &gossipsub::MessageId, bytes: Vec<u8>) {
        let counters = &self.commons.counters;
        let acceptance = match self.admitted(from) {
            None => {
                counters.gossip_ignored.add();
                MessageAcceptance::Ignore
            }
            Some(node) => {
                let source = Some(*node.as_bytes());
                self.commons.taps.message(Direction::In, source, Plane::Gossip, &bytes);
                match self.commons.members.validate_gossip(&bytes) {
                    Gossip::Accept => {
                        let event = NetEvent::Gossip(bytes);
                        if self.commons.offer(event, EVENTS_RESERVED_FROM_GOSSIP) {
                            counters.gossip_accepted.add();
                        } else {
                            counters.gossip_dropped.add();
                        }
                        MessageAcceptance::Accept
                    }
                    Gossip::Ignore => {
                        counters.gossip_ignored.add();
                        MessageAcceptance::Ignore
                    }
                    Gossip::Reject => {
                        counters.gossip_rejected.add();
                        MessageAcceptance::Reject
                    }
                }
            }
        };
        let gossip = &mut self.swarm.behaviour_mut().gossip;
        gossip.report_message_validation_result(id, from, acceptance);
    }

    fn publish(&mut self, bytes: Vec<u8>) -> Result<(), NetError> {
        self.commons.taps.message(Direction::Out, None, Plane::Gossip, &bytes);
        match self.swarm.behaviour_mut().gossip.publish(self.names.topic(), bytes) {
            // Nobody to hear it, or everybody has heard it: gossip promises nothing.
            Ok(_) | Err(PublishError::NoPeersSubscribedToTopic | PublishError::Duplicate) => Ok(()),
            Err(PublishError::AllQueuesFull(_)) => Err(NetError::Busy),
            Err(error) => Err(NetError::Connection(error.to_string())),
        }
    }

    fn on_substream(&mut self, from: PeerId, stream: libp2p::Stream) {
        let counters = &self.commons.counters;
        let permit = self
            .peers
            .get(&from)
            .filter(|_| self.admitted(&from).is_some())
            .and_then(|peer| Arc::clone(&peer.fallback_streams).try_acquire_owned().ok());
        let (Some(permit), Some(node)) = (permit, node_of(&from)) else {
            counters.bulk_dropped.add();
            return;
        };
        let tap = self.commons.taps.stream(*node.as_bytes(), Plane::Bulk);
        let stream = BulkStream::control(stream, tap, Some(Arc::new(permit)));
        if self.offer(NetEvent::Bulk { from: node, stream }, 0) {
            counters.bulk_received.add();
        } else {
            counters.bulk_dropped.add();
        }
    }

    fn on_ping(&mut self, event: ping::Event) {
        let Some(peer) = self.peers.get_mut(&event.peer) else { return };
        let Some(path) = peer.paths.get_mut(&event.connection) else { return };
        match event.result {
            Ok(rtt) => {
                path.ping_failures = 0;
                peer.rtt = Some(rtt);
            }
            Err(_) => {
                path.ping_failures = path.ping_failures.saturating_add(1);
                if path.ping_failures >= PING_FAILURES_MAX {
                    self.swarm.close_connection(event.connection);
                }
            }
        }
    }

    fn on_discovery(&mut self, event: kad::Event) {
        match event {
            kad::Event::RoutablePeer { peer, address }
            | kad::Event::PendingRoutablePeer { peer, address } => self.learn(peer, address),
            kad::Event::OutboundQueryProgressed {
                result: kad::QueryResult::GetClosestPeers(Ok(found)),
                ..
            } => {
                for info in found.peers {
                    for address in info.addrs {
                        self.learn(info.peer_id, address);
                    }
                }
            }
            _ => {}
        }
    }

    /// Notes an address. The side with the lower id dials first, so that two members that learn of
    /// each other at once do not connect twice.
    pub(super) fn learn(&mut self, peer: PeerId, address: Multiaddr) {
        let patient = node_of(&peer).is_none_or(|node| node < self.commons.ourselves);
        let first = if patient { soon(Duration::from_secs(2)) } else { Instant::now() };
        self.book.learn(peer, address, first);
    }

    /// The node behind `peer`, if its admission is in force.
    pub(super) fn admitted(&self, peer: &PeerId) -> Option<NodeId> {
        let node = node_of(peer)?;
        self.commons.admissions.current(&node).map(|_| node)
    }

    /// The IP addresses at which we see a member.
    pub(super) fn seen_at(&self, peer: &PeerId) -> BTreeSet<IpAddr> {
        let Some(peer) = self.peers.get(peer) else { return BTreeSet::new() };
        let control = peer.paths.values().filter_map(|path| ip_of(&path.remote));
        let bulk = self.bulk.paths(&peer.node);
        control.chain(bulk.into_iter().map(|(remote, ..)| remote.ip().to_canonical())).collect()
    }

    fn disconnect(&mut self, node: &NodeId, reason: &str) {
        self.bulk.forsake(node);
        self.bulk.disconnect(node, reason);
        if let Some(peer) = peer_of(node) {
            self.swarm.disconnect_peer_id(peer).ok();
        }
    }

    fn statuses(&self) -> Vec<PeerStatus> {
        let mut statuses: Vec<PeerStatus> = self
            .peers
            .values()
            .filter_map(|peer| {
                let admission = self.commons.admissions.current(&peer.node)?;
                let bulk = self.bulk.paths(&peer.node);
                Some(PeerStatus {
                    node: peer.node,
                    control: peer.paths.values().map(Path::status).collect(),
                    rtt: peer.rtt.or_else(|| bulk.first().map(|(_, _, rtt)| *rtt)),
                    bulk: bulk.into_iter().map(|(remote, dialled, _)| (remote, dialled)).collect(),
                    admitted_until_unix_ms: admission.expires_unix_ms,
                    requests_in_flight: peer.in_flight,
                })
            })
            .collect();
        statuses.sort_by_key(|status| status.node);
        statuses
    }
}

impl Path {
    fn status(&self) -> ControlPath {
        ControlPath {
            transport: if is_udp(&self.remote) {
                ControlTransport::Quic
            } else {
                ControlTransport::Tcp
            },
            dialled: self.dialled,
            remote: self.remote.clone(),
        }
    }
}

/// Answers a command whose peer is not connected.
pub(super) fn not_connected<T>(peer: &PeerId, reply: oneshot::Sender<Result<T, NetError>>) {
    let error = match node_of(peer) {
        Some(node) => NetError::NotConnected(node),
        None => NetError::Connection("not an Ed25519 identity".to_owned()),
    };
    reply.send(Err(error)).ok();
}
