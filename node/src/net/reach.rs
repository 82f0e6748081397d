//! Dialling a member back at its request, so that it learns whether others can reach it.
//!
//! Only the asker's own IP address is dialled, as we see it, so nobody can aim us at a third party.

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::Arc,
};

use allmend_protocol::ids::NodeId;
use futures::future::join_all;
use libp2p::{
    Multiaddr, Transport as _,
    core::{
        Endpoint,
        muxing::StreamMuxerExt as _,
        transport::{DialOpts, PortUse},
    },
    multiaddr::Protocol,
};
use tokio::time::timeout;

use super::{
    ReachKind, ReachOutcome, ReachResult,
    bulk::{Commons, connect},
    hello::Gatekeeper,
    identity::peer_of,
    limits::{PROBE_DIAL_TIMEOUT, REASON_BYTES_MAX},
    tls, transport,
    wire::{Reached, Target},
};

/// Dials back for other members.
pub(super) struct Prober {
    pub(super) commons: Arc<Commons>,
    pub(super) gatekeeper: Arc<Gatekeeper>,
    pub(super) disable_udp: bool,
    pub(super) gso: bool,
}

impl Prober {
    /// Tries each target whose address is one at which we see `node`.
    pub(super) async fn probe(
        &self,
        node: NodeId,
        observed: &BTreeSet<IpAddr>,
        targets: Vec<Target>,
    ) -> Reached {
        self.commons.counters.probes_served.add();
        let attempts = targets.into_iter().map(|target| async move {
            let outcome = match target.address.parse::<SocketAddr>() {
                Ok(address) if observed.contains(&address.ip().to_canonical()) => {
                    match timeout(PROBE_DIAL_TIMEOUT, self.dial(node, target.kind, address)).await {
                        Ok(Ok(())) => ReachOutcome::Reached,
                        Ok(Err(mut reason)) => {
                            reason.truncate(reason.floor_char_boundary(REASON_BYTES_MAX));
                            ReachOutcome::Failed(reason)
                        }
                        Err(_) => ReachOutcome::Failed("no answer in time".to_owned()),
                    }
                }
                Ok(_) | Err(_) => ReachOutcome::NotTried,
            };
            ReachResult { kind: target.kind, address: target.address, outcome }
        });
        Reached { results: join_all(attempts).await }
    }

    /// One dial-back from fresh sockets, so that no existing mapping in a firewall helps it.
    async fn dial(&self, node: NodeId, kind: ReachKind, address: SocketAddr) -> Result<(), String> {
        if self.disable_udp && kind != ReachKind::ControlTcp {
            return Err("the testing node itself has no UDP".to_owned());
        }
        let peer = peer_of(&node).ok_or("not an Ed25519 identity")?;
        if kind == ReachKind::Bulk {
            let local: IpAddr = match address {
                SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
                SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
            };
            let endpoint = quinn::Endpoint::client(SocketAddr::new(local, 0))
                .map_err(|error| error.to_string())?;
            let config = tls::client(&self.commons.keypair, peer, tls::ALPN_PROBE, self.gso)
                .map_err(|error| error.to_string())?;
            let connection = connect(&endpoint, config, &address.to_string())
                .await
                .map_err(|error| error.to_string())?;
            connection.close(quinn::VarInt::from_u32(0), b"reached");
            endpoint.wait_idle().await;
            return Ok(());
        }
        let gatekeeper = Arc::clone(&self.gatekeeper);
        let mut transport = transport::build(&self.commons.keypair, self.disable_udp, gatekeeper)
            .map_err(|error| error.to_string())?;
        let options = DialOpts { role: Endpoint::Dialer, port_use: PortUse::New };
        let (answered, muxer) = transport
            .dial(multiaddress(kind, address), options)
            .map_err(|error| error.to_string())?
            .await
            .map_err(|error| error.to_string())?;
        muxer.close().await.ok();
        if answered == peer { Ok(()) } else { Err("another node answers there".to_owned()) }
    }
}

/// The multiaddress of a control socket.
fn multiaddress(kind: ReachKind, address: SocketAddr) -> Multiaddr {
    let base = Multiaddr::from(address.ip());
    match kind {
        ReachKind::ControlTcp => base.with(Protocol::Tcp(address.port())),
        ReachKind::ControlQuic | ReachKind::Bulk => {
            base.with(Protocol::Udp(address.port())).with(Protocol::QuicV1)
        }
    }
}

/// The `ip:port` of a control multiaddress, if it is one with a literal IP.
pub(super) fn target_of(address: &Multiaddr) -> Option<(ReachKind, SocketAddr)> {
    let mut parts = address.iter();
    let ip = match parts.next()? {
        Protocol::Ip4(ip) => IpAddr::V4(ip),
        Protocol::Ip6(ip) => IpAddr::V6(ip),
        _ => return None,
    };
    match parts.next()? {
        Protocol::Tcp(port) => Some((ReachKind::ControlTcp, SocketAddr::new(ip, port))),
        Protocol::Udp(port) => Some((ReachKind::ControlQuic, SocketAddr::new(ip, port))),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_addresses_become_targets_and_back() {
        for text in ["/ip4/192.0.2.1/tcp/1", "/ip6/2001:db8::1/udp/2/quic-v1"] {
            let address: Multiaddr = text.parse().unwrap();
            let (kind, socket) = target_of(&address).unwrap();
            assert_eq!(multiaddress(kind, socket), address);
        }
        assert_eq!(target_of(&"/dns4/example.org/tcp/1".parse().unwrap()), None);
    }
}
