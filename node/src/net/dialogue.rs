//! What members say to one another in requests: the daemon's messages, and the transport's own
//! about addresses, renewed certificates and reachability.

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use futures::future::BoxFuture;
use libp2p::{
    Multiaddr, PeerId,
    request_response::{self, OutboundFailure, ResponseChannel},
};
use tokio::{sync::oneshot, time::timeout};

use super::{
    NetError, NetEvent, ReachKind, ReachResult, Reply,
    control::{Control, not_connected},
    gate::ip_of,
    limits::{
        ADDRESSES_PER_PEER_MAX, META_PEERS_MAX, PROBE_TARGETS_MAX, REQUEST_TIMEOUT,
        REQUESTS_IN_FLIGHT_MAX, REQUESTS_PENDING_PER_PEER_MAX,
    },
    reach::target_of,
    tap::{Direction, Plane},
    wire::{Body as _, Known, Meta, ProbeReach, Reached, Target, kind, status},
};

/// A request of ours that awaits its answer.
pub(super) enum Outbound {
    /// The daemon's.
    Application(PeerId, oneshot::Sender<Result<Vec<u8>, NetError>>),
    /// For a test of our reachability.
    Probe(PeerId, oneshot::Sender<Result<Vec<ReachResult>, NetError>>),
    /// Nobody waits: addresses or a renewed hello.
    Notice(PeerId),
}

/// An answer of ours that is being made.
pub(super) type PendingAnswer = BoxFuture<'static, Answer>;

/// An answer of ours that is ready.
pub(super) struct Answer {
    pub(super) peer: PeerId,
    pub(super) channel: ResponseChannel<Vec<u8>>,
    pub(super) bytes: Vec<u8>,
}

impl Control {
    /// Sends the daemon's request; `bytes` start with their kind.
    pub(super) fn ask(
        &mut self,
        peer: PeerId,
        bytes: Vec<u8>,
        reply: oneshot::Sender<Result<Vec<u8>, NetError>>,
    ) {
        match self.room_for_request(&peer) {
            Ok(()) => {
                self.commons.counters.requests_sent.add();
                self.send(peer, bytes, Outbound::Application(peer, reply));
            }
            Err(NetError::NotConnected(_)) => not_connected(&peer, reply),
            Err(error) => {
                reply.send(Err(error)).ok();
            }
        }
    }

    /// Asks `via` to dial us back at every address that may be ours.
    pub(super) fn ask_probe(
        &mut self,
        via: PeerId,
        reply: oneshot::Sender<Result<Vec<ReachResult>, NetError>>,
    ) {
        match self.room_for_request(&via) {
            Ok(()) => {
                let probe = ProbeReach { targets: self.probe_targets() };
                self.send(via, probe.encode(kind::PROBE), Outbound::Probe(via, reply));
            }
            Err(NetError::NotConnected(_)) => not_connected(&via, reply),
            Err(error) => {
                reply.send(Err(error)).ok();
            }
        }
    }

    /// Tells one member where we and other members can be reached.
    pub(super) fn tell_addresses(&mut self, peer: PeerId) {
        let bytes = self.meta_for(&peer).encode(kind::META);
        self.send(peer, bytes, Outbound::Notice(peer));
    }

    /// Shows our hello to everybody again.
    pub(super) fn show_hello(&mut self) {
        let mut bytes = vec![kind::HELLO];
        bytes.extend_from_slice(&self.commons.members.hello());
        for peer in self.peers.keys().copied().collect::<Vec<_>>() {
            self.send(peer, bytes.clone(), Outbound::Notice(peer));
        }
    }

    pub(super) fn on_request_event(&mut self, event: request_response::Event<Vec<u8>, Vec<u8>>) {
        use request_response::{Event, Message};
        match event {
            Event::Message { peer, message: Message::Request { request, channel, .. }, .. } => {
                self.on_request(peer, request, channel);
            }
            Event::Message { message: Message::Response { request_id, response }, .. } => {
                if let Some(outbound) = self.outbound.remove(&request_id) {
                    self.on_response(outbound, response);
                }
            }
            Event::OutboundFailure { request_id, error, .. } => {
                if let Some(outbound) = self.outbound.remove(&request_id) {
                    self.fail(outbound, failure(error));
                }
            }
            Event::InboundFailure { peer, error, .. } => {
                tracing::debug!(%peer, %error, "request not answered");
            }
            Event::ResponseSent { .. } => {}
        }
    }

    fn room_for_request(&self, peer: &PeerId) -> Result<(), NetError> {
        let node = self.admitted(peer);
        match (self.peers.get(peer), node) {
            (Some(known), Some(_)) if known.in_flight < REQUESTS_IN_FLIGHT_MAX => Ok(()),
            (Some(_), Some(_)) => {
                self.commons.counters.requests_refused_busy.add();
                Err(NetError::Busy)
            }
            (known, _) => Err(match known {
                Some(known) => NetError::NotConnected(known.node),
                None => NetError::NotConnected(
                    super::identity::node_of(peer).unwrap_or(self.commons.ourselves),
                ),
            }),
        }
    }

    fn send(&mut self, peer: PeerId, bytes: Vec<u8>, outbound: Outbound) {
        if let Some(known) = self.peers.get_mut(&peer) {
            known.in_flight += 1;
            let key = Some(*known.node.as_bytes());
            self.commons.taps.message(Direction::Out, key, Plane::Request, &bytes);
        }
        let id = self.swarm.behaviour_mut().requests.send_request(&peer, bytes);
        self.outbound.insert(id, outbound);
    }

    fn landed(&mut self, peer: &PeerId) {
        if let Some(known) = self.peers.get_mut(peer) {
            known.in_flight = known.in_flight.saturating_sub(1);
        }
    }

    fn fail(&mut self, outbound: Outbound, error: NetError) {
        match outbound {
            Outbound::Application(peer, reply) => {
                self.landed(&peer);
                reply.send(Err(error)).ok();
            }
            Outbound::Probe(peer, reply) => {
                self.landed(&peer);
                reply.send(Err(error)).ok();
            }
            Outbound::Notice(peer) => self.landed(&peer),
        }
    }

    fn on_response(&mut self, outbound: Outbound, mut bytes: Vec<u8>) {
        let (Outbound::Application(peer, _) | Outbound::Probe(peer, _) | Outbound::Notice(peer)) =
            &outbound;
        if let Some(known) = self.peers.get(peer) {
            let key = Some(*known.node.as_bytes());
            self.commons.taps.message(Direction::In, key, Plane::Reply, &bytes);
        }
        let error = match bytes.first() {
            Some(&status::OK) => None,
            Some(&status::BUSY) => Some(NetError::Busy),
            Some(&status::UNANSWERED) => Some(NetError::Unanswered),
            Some(&status::REFUSED) => Some(NetError::Connection("refused".to_owned())),
            _ => Some(NetError::Malformed),
        };
        if let Some(error) = error {
            return self.fail(outbound, error);
        }
        match outbound {
            Outbound::Application(peer, reply) => {
                self.landed(&peer);
                bytes.remove(0);
                reply.send(Ok(bytes)).ok();
            }
            Outbound::Probe(peer, reply) => {
                self.landed(&peer);
                let reached = Reached::decode(&bytes[1..]);
                reply.send(reached.map(|reached| reached.results).ok_or(NetError::Malformed)).ok();
            }
            Outbound::Notice(peer) => self.landed(&peer),
        }
    }

    fn on_request(&mut self, peer: PeerId, bytes: Vec<u8>, channel: ResponseChannel<Vec<u8>>) {
        // Dropping the channel tells the other side nothing, and that is all a non-member gets.
        let Some(node) = self.admitted(&peer) else { return };
        self.commons.taps.message(Direction::In, Some(*node.as_bytes()), Plane::Request, &bytes);
        let Some(known) = self.peers.get_mut(&peer) else { return };
        if known.answering >= REQUESTS_PENDING_PER_PEER_MAX {
            self.commons.counters.requests_refused_busy.add();
            return self.reply(peer, channel, vec![status::BUSY]);
        }
        match bytes.split_first() {
            Some((&kind::APPLICATION, _)) => {
                let (sender, answer) = oneshot::channel();
                let mut bytes = bytes;
                bytes.remove(0);
                let event = NetEvent::Request { from: node, bytes, reply: Reply(sender) };
                if self.offer(event, 0) {
                    self.commons.counters.requests_received.add();
                    self.answer_later(peer, channel, async move {
                        // The asker gives up at the same time; our books must not wait longer.
                        match timeout(REQUEST_TIMEOUT, answer).await {
                            Ok(Ok(answer)) => {
                                let mut bytes = Vec::with_capacity(answer.len() + 1);
                                bytes.push(status::OK);
                                bytes.extend_from_slice(&answer);
                                bytes
                            }
                            Ok(Err(_)) | Err(_) => vec![status::UNANSWERED],
                        }
                    });
                } else {
                    self.commons.counters.requests_refused_busy.add();
                    self.reply(peer, channel, vec![status::BUSY]);
                }
            }
            Some((&kind::META, body)) => match Meta::decode(body) {
                Some(meta) => {
                    self.on_meta(peer, meta);
                    self.reply(peer, channel, vec![status::OK]);
                }
                None => self.malformed(peer, channel),
            },
            Some((&kind::HELLO, hello)) => {
                let verdict = match self.gatekeeper.renew(&node, hello) {
                    Ok(()) => status::OK,
                    Err(_) => status::REFUSED,
                };
                self.reply(peer, channel, vec![verdict]);
            }
            Some((&kind::PROBE, body)) => {
                let Some(probe) = ProbeReach::decode(body) else {
                    return self.malformed(peer, channel);
                };
                match Arc::clone(&self.probes).try_acquire_owned() {
                    Ok(permit) => {
                        let observed = self.seen_at(&peer);
                        let prober = Arc::clone(&self.prober);
                        self.answer_later(peer, channel, async move {
                            let reached = prober.probe(node, &observed, probe.targets).await;
                            drop(permit);
                            reached.encode(status::OK)
                        });
                    }
                    Err(_) => self.reply(peer, channel, vec![status::BUSY]),
                }
            }
            _ => self.malformed(peer, channel),
        }
    }

    fn malformed(&mut self, peer: PeerId, channel: ResponseChannel<Vec<u8>>) {
        self.commons.counters.requests_malformed.add();
        self.reply(peer, channel, vec![status::MALFORMED]);
    }

    fn reply(&mut self, peer: PeerId, channel: ResponseChannel<Vec<u8>>, bytes: Vec<u8>) {
        if let Some(known) = self.peers.get(&peer) {
            let key = Some(*known.node.as_bytes());
            self.commons.taps.message(Direction::Out, key, Plane::Reply, &bytes);
        }
        self.swarm.behaviour_mut().requests.send_response(channel, bytes).ok();
    }

    fn answer_later(
        &mut self,
        peer: PeerId,
        channel: ResponseChannel<Vec<u8>>,
        making: impl Future<Output = Vec<u8>> + Send + 'static,
    ) {
        if let Some(known) = self.peers.get_mut(&peer) {
            known.answering += 1;
        }
        self.answers.push(Box::pin(async move {
            let bytes = making.await;
            Answer { peer, channel, bytes }
        }));
    }

    pub(super) fn on_answer(&mut self, answer: Answer) {
        if let Some(peer) = self.peers.get_mut(&answer.peer) {
            peer.answering = peer.answering.saturating_sub(1);
        }
        self.reply(answer.peer, answer.channel, answer.bytes);
    }

    fn on_meta(&mut self, peer: PeerId, meta: Meta) {
        let addresses = parse(&meta.control);
        for address in &addresses {
            self.learn(peer, address.clone());
            self.swarm.behaviour_mut().discovery.add_address(&peer, address.clone());
        }
        for known in &meta.peers {
            if let Ok(other) = known.peer.parse::<PeerId>() {
                for address in parse(&known.control) {
                    self.learn(other, address);
                }
            }
        }
        let targets = bulk_targets(&meta, &addresses, &self.seen_at(&peer));
        let Some(known) = self.peers.get_mut(&peer) else { return };
        if known.meta.control != meta.control {
            self.meta_changed = true;
        }
        known.meta = meta;
        let node = known.node;
        self.bulk.keep(node, targets);
    }

    fn meta_for(&self, to: &PeerId) -> Meta {
        let peers = self
            .peers
            .iter()
            .filter(|(peer, known)| *peer != to && !known.meta.control.is_empty())
            .take(META_PEERS_MAX)
            .map(|(peer, known)| Known {
                peer: peer.to_base58(),
                control: known.meta.control.clone(),
            })
            .collect();
        if !self.options.advertise {
            return Meta { peers, ..Meta::default() };
        }
        let control = self.own_control().iter().map(ToString::to_string).collect();
        let (mut bulk, mut bulk_port) = (self.options.bulk_external.clone(), None);
        if let (true, Some(local)) = (bulk.is_empty(), self.bulk.member_address()) {
            bulk_port = Some(local.port());
            if !local.ip().is_unspecified() {
                bulk.push(local.to_string());
            }
        }
        bulk.truncate(ADDRESSES_PER_PEER_MAX);
        Meta { control, bulk, bulk_port, peers }
    }

    /// Control addresses to tell others: what the operator says, else where we listen; loopback
    /// only if there is nothing else.
    fn own_control(&self) -> Vec<Multiaddr> {
        let mut addresses = self.options.control_external.clone();
        if addresses.is_empty() {
            addresses = self.swarm.listeners().cloned().collect();
            let is_loopback = |a: &Multiaddr| ip_of(a).is_some_and(|ip| ip.is_loopback());
            if !addresses.iter().all(is_loopback) {
                addresses.retain(|address| !is_loopback(address));
            }
        }
        addresses.truncate(ADDRESSES_PER_PEER_MAX);
        addresses
    }

    /// Every `ip:port` that may be ours: listening and external addresses, and our ports at the
    /// addresses at which others see us.
    fn probe_targets(&self) -> Vec<Target> {
        let listening: Vec<(ReachKind, SocketAddr)> = self
            .swarm
            .listeners()
            .chain(&self.options.control_external)
            .filter_map(target_of)
            .collect();
        let ips: BTreeSet<IpAddr> = listening
            .iter()
            .map(|(_, address)| address.ip())
            .chain(self.observed.iter().copied())
            .collect();
        let mut targets: BTreeSet<(ReachKind, SocketAddr)> = listening.iter().copied().collect();
        for (kind, address) in &listening {
            for ip in &self.observed {
                targets.insert((*kind, SocketAddr::new(*ip, address.port())));
            }
        }
        if let Some(local) = self.bulk.member_address() {
            if local.ip().is_unspecified() {
                for ip in &ips {
                    targets.insert((ReachKind::Bulk, SocketAddr::new(*ip, local.port())));
                }
            } else {
                targets.insert((ReachKind::Bulk, local));
                for ip in &self.observed {
                    targets.insert((ReachKind::Bulk, SocketAddr::new(*ip, local.port())));
                }
            }
        }
        for address in &self.options.bulk_external {
            if let Ok(address) = address.parse() {
                targets.insert((ReachKind::Bulk, address));
            }
        }
        // The addresses at which others see us come first: only those are dialled.
        let mut targets: Vec<_> = targets.into_iter().collect();
        targets.sort_by_key(|(kind, address)| {
            (!self.observed.contains(&address.ip()), *kind, *address)
        });
        targets
            .into_iter()
            .take(PROBE_TARGETS_MAX)
            .map(|(kind, address)| Target { kind, address: address.to_string() })
            .collect()
    }
}

fn parse(addresses: &[String]) -> Vec<Multiaddr> {
    addresses.iter().filter_map(|address| address.parse().ok()).collect()
}

/// Where to dial a member's bulk plane: what it says, and its port at every address it has.
fn bulk_targets(meta: &Meta, control: &[Multiaddr], seen: &BTreeSet<IpAddr>) -> BTreeSet<String> {
    let mut targets: BTreeSet<String> = meta.bulk.iter().cloned().collect();
    if let Some(port) = meta.bulk_port {
        let ips = control.iter().filter_map(ip_of).chain(seen.iter().copied());
        targets.extend(ips.map(|ip| SocketAddr::new(ip, port).to_string()));
    }
    while targets.len() > ADDRESSES_PER_PEER_MAX {
        targets.pop_last();
    }
    targets
}

fn failure(error: OutboundFailure) -> NetError {
    match error {
        OutboundFailure::Timeout => NetError::Timeout,
        OutboundFailure::Io(error) => NetError::Io(error),
        OutboundFailure::DialFailure
        | OutboundFailure::ConnectionClosed
        | OutboundFailure::UnsupportedProtocols => NetError::Connection(error.to_string()),
    }
}
