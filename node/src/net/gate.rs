//! Refuses inbound connections by address, before any cryptography is spent on them.
//!
//! Two bounds per IP (IPv6: per /64, which is what one customer gets): connections that are not
//! yet admitted, and attempts over time.

use std::{
    collections::{BTreeMap, HashMap},
    convert::Infallible,
    net::{IpAddr, Ipv6Addr},
    sync::Arc,
    task::{Context, Poll},
    time::Instant,
};

use libp2p::{
    Multiaddr, PeerId,
    core::{Endpoint, transport::PortUse},
    multiaddr::Protocol,
    swarm::{
        ConnectionDenied, ConnectionId, FromSwarm, NetworkBehaviour, THandler, THandlerInEvent,
        THandlerOutEvent, ToSwarm, dummy,
    },
};

use super::{
    Counters,
    limits::{
        ATTEMPTS_PER_IP_BURST, ATTEMPTS_PER_IP_PER_SECOND, IPS_TRACKED_MAX, PENDING_PER_IP_MAX,
    },
};

/// The IP whose budget an address uses.
pub(super) fn bucket(ip: IpAddr) -> IpAddr {
    match ip.to_canonical() {
        IpAddr::V4(ip) => IpAddr::V4(ip),
        IpAddr::V6(ip) => {
            let network = u128::from(ip) >> 64 << 64;
            IpAddr::V6(Ipv6Addr::from(network))
        }
    }
}

/// The IP an address starts with, if it starts with one.
pub(super) fn ip_of(address: &Multiaddr) -> Option<IpAddr> {
    match address.iter().next()? {
        Protocol::Ip4(ip) => Some(IpAddr::V4(ip)),
        Protocol::Ip6(ip) => Some(IpAddr::V6(ip).to_canonical()),
        _ => None,
    }
}

/// A connection attempt was refused by its address.
#[derive(Debug, thiserror::Error)]
#[error("too many connection attempts from this address")]
pub(super) struct TooManyAttempts;

/// Budgets of the addresses that have lately tried to connect.
#[derive(Debug, Default)]
pub(super) struct Budgets {
    ips: BTreeMap<IpAddr, Budget>,
}

#[derive(Debug)]
struct Budget {
    pending: u32,
    /// Attempts left, in thousandths.
    tokens_milli: u64,
    refilled: Instant,
}

const BURST_MILLI: u64 = ATTEMPTS_PER_IP_BURST as u64 * 1000;

impl Budget {
    fn refill(&mut self, now: Instant) {
        let elapsed_ms = now.saturating_duration_since(self.refilled).as_millis();
        let earned = u64::try_from(elapsed_ms)
            .unwrap_or(u64::MAX)
            .saturating_mul(u64::from(ATTEMPTS_PER_IP_PER_SECOND));
        self.tokens_milli = self.tokens_milli.saturating_add(earned).min(BURST_MILLI);
        self.refilled = now;
    }
}

impl Budgets {
    /// Charges one attempt by `ip`; each success must be followed by one [`Self::settle`].
    pub(super) fn charge(&mut self, ip: IpAddr, now: Instant) -> Result<(), TooManyAttempts> {
        let ip = bucket(ip);
        if self.ips.len() >= IPS_TRACKED_MAX && !self.ips.contains_key(&ip) {
            self.ips.retain(|_, budget| {
                budget.refill(now);
                budget.pending > 0 || budget.tokens_milli < BURST_MILLI
            });
            if self.ips.len() >= IPS_TRACKED_MAX {
                return Err(TooManyAttempts);
            }
        }
        let budget = self.ips.entry(ip).or_insert(Budget {
            pending: 0,
            tokens_milli: BURST_MILLI,
            refilled: now,
        });
        budget.refill(now);
        if budget.pending >= PENDING_PER_IP_MAX || budget.tokens_milli < 1000 {
            return Err(TooManyAttempts);
        }
        budget.tokens_milli -= 1000;
        budget.pending += 1;
        Ok(())
    }

    /// An attempt by `ip` has succeeded or failed.
    pub(super) fn settle(&mut self, ip: IpAddr) {
        if let Some(budget) = self.ips.get_mut(&bucket(ip)) {
            budget.pending = budget.pending.saturating_sub(1);
        }
    }
}

/// The swarm behaviour that applies [`Budgets`].
pub(super) struct Behaviour {
    budgets: Budgets,
    pending: HashMap<ConnectionId, IpAddr>,
    counters: Arc<Counters>,
}

impl Behaviour {
    pub(super) fn new(counters: Arc<Counters>) -> Self {
        Self { budgets: Budgets::default(), pending: HashMap::new(), counters }
    }

    fn settle(&mut self, connection: ConnectionId) {
        if let Some(ip) = self.pending.remove(&connection) {
            self.budgets.settle(ip);
        }
    }
}

impl NetworkBehaviour for Behaviour {
    type ConnectionHandler = dummy::ConnectionHandler;
    type ToSwarm = Infallible;

    fn handle_pending_inbound_connection(
        &mut self,
        connection: ConnectionId,
        _local: &Multiaddr,
        remote: &Multiaddr,
    ) -> Result<(), ConnectionDenied> {
        let Some(ip) = ip_of(remote) else {
            return Ok(());
        };
        match self.budgets.charge(ip, Instant::now()) {
            Ok(()) => {
                self.pending.insert(connection, ip);
                Ok(())
            }
            Err(refusal) => {
                self.counters.address_refused.add();
                Err(ConnectionDenied::new(refusal))
            }
        }
    }

    fn handle_established_inbound_connection(
        &mut self,
        _connection: ConnectionId,
        _peer: PeerId,
        _local: &Multiaddr,
        _remote: &Multiaddr,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        Ok(dummy::ConnectionHandler)
    }

    fn handle_established_outbound_connection(
        &mut self,
        _connection: ConnectionId,
        _peer: PeerId,
        _address: &Multiaddr,
        _role: Endpoint,
        _port: PortUse,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        Ok(dummy::ConnectionHandler)
    }

    fn on_swarm_event(&mut self, event: FromSwarm<'_>) {
        match event {
            FromSwarm::ConnectionEstablished(established) => {
                self.settle(established.connection_id);
            }
            FromSwarm::ListenFailure(failure) => self.settle(failure.connection_id),
            _ => {}
        }
    }

    fn on_connection_handler_event(
        &mut self,
        _peer: PeerId,
        _connection: ConnectionId,
        event: THandlerOutEvent<Self>,
    ) {
        match event {}
    }

    fn poll(
        &mut self,
        _cx: &mut Context<'_>,
    ) -> Poll<ToSwarm<Self::ToSwarm, THandlerInEvent<Self>>> {
        Poll::Pending
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const IP: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 1));

    #[test]
    fn pending_attempts_are_bounded() {
        let mut budgets = Budgets::default();
        let now = Instant::now();
        for _ in 0..PENDING_PER_IP_MAX {
            budgets.charge(IP, now).unwrap();
        }
        assert!(budgets.charge(IP, now).is_err());
        budgets.settle(IP);
        assert!(budgets.charge(IP, now).is_ok());
    }

    #[test]
    fn attempts_over_time_are_bounded() {
        let mut budgets = Budgets::default();
        let now = Instant::now();
        for _ in 0..ATTEMPTS_PER_IP_BURST {
            budgets.charge(IP, now).unwrap();
            budgets.settle(IP);
        }
        assert!(budgets.charge(IP, now).is_err());
        let later = now + Duration::from_secs(1);
        for _ in 0..ATTEMPTS_PER_IP_PER_SECOND {
            budgets.charge(IP, later).unwrap();
            budgets.settle(IP);
        }
        assert!(budgets.charge(IP, later).is_err());
    }

    #[test]
    fn tracked_addresses_are_bounded_and_recover() {
        let mut budgets = Budgets::default();
        let now = Instant::now();
        for index in 0..u32::try_from(IPS_TRACKED_MAX).unwrap() {
            let ip = IpAddr::V4(index.to_be_bytes().into());
            budgets.charge(ip, now).unwrap();
            budgets.settle(ip);
        }
        let other = IpAddr::V4([203, 0, 113, 9].into());
        assert!(budgets.charge(other, now).is_err());
        assert!(budgets.charge(other, now + Duration::from_secs(60)).is_ok());
        assert!(budgets.ips.len() < IPS_TRACKED_MAX);
    }

    #[test]
    fn one_customer_is_one_bucket() {
        let a: IpAddr = "2001:db8::1".parse().unwrap();
        let b: IpAddr = "2001:db8::ffff:2".parse().unwrap();
        let mapped: IpAddr = "::ffff:192.0.2.1".parse().unwrap();
        assert_eq!(bucket(a), bucket(b));
        assert_eq!(bucket(mapped), IP);
    }
}
