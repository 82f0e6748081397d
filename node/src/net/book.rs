//! Which addresses to dial, and when to try again. Pure: time and jitter come in.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use libp2p::{Multiaddr, PeerId, multiaddr::Protocol};

use super::limits::{
    ADDRESS_BYTES_MAX, ADDRESSES_PER_PEER_MAX, BOOK_PEERS_MAX, REDIAL_FIRST, REDIAL_MAX,
};

/// When to try something again: doubling pauses, with jitter.
#[derive(Clone, Copy, Debug)]
pub(super) struct Backoff {
    pause: Duration,
    next: Instant,
    failures: u32,
}

impl Backoff {
    pub(super) fn new(first: Instant) -> Self {
        Self { pause: REDIAL_FIRST, next: first, failures: 0 }
    }

    /// When the next attempt may be made.
    pub(super) fn next(&self) -> Instant {
        self.next
    }

    pub(super) fn is_due(&self, now: Instant) -> bool {
        self.next <= now
    }

    /// After a failure: waits between half and all of the pause, then doubles it.
    pub(super) fn failed(&mut self, now: Instant, jitter: u8) {
        self.next = now + jittered(self.pause, jitter);
        self.pause = (self.pause * 2).min(REDIAL_MAX);
        self.failures = self.failures.saturating_add(1);
    }

    /// After a success: the next attempt may come soon.
    pub(super) fn succeeded(&mut self, now: Instant, jitter: u8) {
        self.pause = REDIAL_FIRST;
        self.next = now + jittered(REDIAL_FIRST, jitter);
        self.failures = 0;
    }
}

/// Between a half and all of `pause`, so that peers that fail together do not return together.
pub(super) fn jittered(pause: Duration, jitter: u8) -> Duration {
    let half = pause / 2;
    half + half * u32::from(jitter) / u32::from(u8::MAX)
}

/// Something to dial now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Dial {
    /// A peer, at any of its addresses.
    Peer(PeerId, Vec<Multiaddr>),
    /// An address of which nobody knows yet who answers there.
    Unknown(Multiaddr),
}

#[derive(Debug)]
struct Entry {
    addresses: Vec<Multiaddr>,
    backoff: Backoff,
    bootstrap: bool,
}

#[derive(Debug)]
struct Boot {
    address: Multiaddr,
    peer: Option<PeerId>,
    backoff: Backoff,
}

/// All addresses worth dialling.
#[derive(Debug)]
pub(super) struct Book {
    ourselves: PeerId,
    allow_udp: bool,
    peers: BTreeMap<PeerId, Entry>,
    bootstrap: Vec<Boot>,
}

impl Book {
    pub(super) fn new(
        ourselves: PeerId,
        allow_udp: bool,
        bootstrap: &[Multiaddr],
        now: Instant,
    ) -> Self {
        let mut book = Self { ourselves, allow_udp, peers: BTreeMap::new(), bootstrap: Vec::new() };
        for address in bootstrap {
            match split_peer(address) {
                (address, Some(peer)) => {
                    book.learn(peer, address, now);
                    if let Some(entry) = book.peers.get_mut(&peer) {
                        entry.bootstrap = true;
                    }
                }
                (address, None) => {
                    book.bootstrap.push(Boot { address, peer: None, backoff: Backoff::new(now) })
                }
            }
        }
        book
    }

    /// Notes that `peer` may be reached at `address`, first tried at `first`.
    pub(super) fn learn(&mut self, peer: PeerId, address: Multiaddr, first: Instant) {
        let (address, named) = split_peer(&address);
        if peer == self.ourselves
            || named.is_some_and(|named| named != peer)
            || address.is_empty()
            || address.to_string().len() > ADDRESS_BYTES_MAX
        {
            return;
        }
        if self.peers.len() >= BOOK_PEERS_MAX && !self.peers.contains_key(&peer) {
            let hopeless = self
                .peers
                .iter()
                .filter(|(_, entry)| !entry.bootstrap)
                .max_by_key(|(_, entry)| entry.backoff.failures)
                .map(|(peer, _)| *peer);
            match hopeless {
                Some(peer) => self.peers.remove(&peer),
                None => return,
            };
        }
        let entry = self.peers.entry(peer).or_insert_with(|| Entry {
            addresses: Vec::new(),
            backoff: Backoff::new(first),
            bootstrap: false,
        });
        if entry.addresses.contains(&address) {
            return;
        }
        if entry.addresses.len() >= ADDRESSES_PER_PEER_MAX {
            // The oldest gives way; what the operator configured comes first in the list and stays.
            let oldest = usize::from(entry.bootstrap);
            entry.addresses.remove(oldest);
        }
        entry.addresses.push(address);
    }

    /// What to dial at `now`; each is not offered again before its back-off.
    pub(super) fn due(
        &mut self,
        now: Instant,
        mut jitter: impl FnMut() -> u8,
        is_connected: impl Fn(&PeerId) -> bool,
    ) -> Vec<Dial> {
        let mut dials = Vec::new();
        for (peer, entry) in &mut self.peers {
            if is_connected(peer) || !entry.backoff.is_due(now) {
                continue;
            }
            let addresses: Vec<Multiaddr> = entry
                .addresses
                .iter()
                .filter(|address| self.allow_udp || !is_udp(address))
                .cloned()
                .collect();
            entry.backoff.failed(now, jitter());
            if !addresses.is_empty() {
                dials.push(Dial::Peer(*peer, addresses));
            }
        }
        for boot in &mut self.bootstrap {
            let connected = boot.peer.as_ref().is_some_and(&is_connected);
            if connected || !boot.backoff.is_due(now) || (!self.allow_udp && is_udp(&boot.address))
            {
                continue;
            }
            boot.backoff.failed(now, jitter());
            dials.push(Dial::Unknown(boot.address.clone()));
        }
        dials
    }

    /// A connection that we dialled at `address` (if we did) reached `peer`.
    pub(super) fn connected(
        &mut self,
        peer: PeerId,
        address: Option<&Multiaddr>,
        now: Instant,
        jitter: u8,
    ) {
        if let Some(entry) = self.peers.get_mut(&peer) {
            entry.backoff.succeeded(now, jitter);
        }
        if let Some(address) = address {
            let (address, _) = split_peer(address);
            for boot in self.bootstrap.iter_mut().filter(|boot| boot.address == address) {
                boot.peer = Some(peer);
                boot.backoff.succeeded(now, jitter);
            }
        }
    }

    /// Somebody else answers at this address of `peer`.
    pub(super) fn wrong_peer(&mut self, peer: &PeerId, address: &Multiaddr) {
        let (address, _) = split_peer(address);
        if let Some(entry) = self.peers.get_mut(peer).filter(|entry| !entry.bootstrap) {
            entry.addresses.retain(|known| *known != address);
            if entry.addresses.is_empty() {
                self.peers.remove(peer);
            }
        }
    }

    /// The addresses known for `peer`.
    #[cfg(test)]
    pub(super) fn addresses(&self, peer: &PeerId) -> &[Multiaddr] {
        self.peers.get(peer).map_or(&[], |entry| &entry.addresses)
    }
}

/// Splits `/…/p2p/PEER` into the address and the peer.
pub(super) fn split_peer(address: &Multiaddr) -> (Multiaddr, Option<PeerId>) {
    let mut address = address.clone();
    let last = address.iter().last();
    match last {
        Some(Protocol::P2p(peer)) => {
            address.pop();
            (address, Some(peer))
        }
        _ => (address, None),
    }
}

/// Whether packets to this address are UDP.
pub(super) fn is_udp(address: &Multiaddr) -> bool {
    address.iter().any(|part| matches!(part, Protocol::Udp(_)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> Multiaddr {
        text.parse().unwrap()
    }

    fn none(_: &PeerId) -> bool {
        false
    }

    #[test]
    fn failures_back_off_and_bootstrap_is_tried_for_ever() {
        let start = Instant::now();
        let boot = address("/ip4/192.0.2.1/tcp/1");
        let mut book = Book::new(PeerId::random(), true, std::slice::from_ref(&boot), start);
        let mut now = start;
        let mut dials = 0;
        for _ in 0..3600 {
            dials += book.due(now, || 255, none).len();
            now += Duration::from_secs(1);
        }
        assert!((60..90).contains(&dials), "{dials}");
        book.connected(PeerId::random(), Some(&boot), now, 0);
        assert!(book.due(now, || 0, |_| true).is_empty());
    }

    #[test]
    fn udp_is_not_dialled_when_disabled() {
        let start = Instant::now();
        let peer = PeerId::random();
        let mut book = Book::new(PeerId::random(), false, &[], start);
        book.learn(peer, address("/ip4/192.0.2.1/udp/1/quic-v1"), start);
        assert!(book.due(start, || 0, none).is_empty());
        book.learn(peer, address("/ip4/192.0.2.1/tcp/1"), start);
        let later = start + REDIAL_MAX;
        let expected = Dial::Peer(peer, vec![address("/ip4/192.0.2.1/tcp/1")]);
        assert_eq!(book.due(later, || 0, none), vec![expected]);
    }

    #[test]
    fn entries_and_addresses_are_bounded() {
        let start = Instant::now();
        let mut book = Book::new(PeerId::random(), true, &[], start);
        for _ in 0..BOOK_PEERS_MAX + 10 {
            book.learn(PeerId::random(), address("/ip4/192.0.2.1/tcp/1"), start);
        }
        assert_eq!(book.peers.len(), BOOK_PEERS_MAX);
        let peer = PeerId::random();
        for port in 1..100 {
            book.learn(peer, address(&format!("/ip4/192.0.2.1/tcp/{port}")), start);
        }
        assert_eq!(book.addresses(&peer).len(), ADDRESSES_PER_PEER_MAX);
        book.learn(book.ourselves, address("/ip4/192.0.2.1/tcp/1"), start);
        assert!(book.addresses(&book.ourselves).is_empty());
    }

    #[test]
    fn an_address_of_somebody_else_is_forgotten() {
        let start = Instant::now();
        let peer = PeerId::random();
        let wrong = address("/ip4/192.0.2.1/tcp/1");
        let mut book = Book::new(PeerId::random(), true, &[], start);
        book.learn(peer, wrong.clone(), start);
        book.wrong_peer(&peer, &wrong);
        assert!(book.addresses(&peer).is_empty());
    }
}
