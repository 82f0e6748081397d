//! Whether this machine would let us listen where the configuration says.

use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener, UdpSocket};

use libp2p::Multiaddr;
use libp2p::multiaddr::Protocol;

use crate::config::Config;

/// One port the node listens on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Port {
    pub(super) address: SocketAddr,
    pub(super) udp: bool,
    pub(super) purpose: &'static str,
}

impl Port {
    /// Binds it for an instant.
    pub(super) fn try_bind(&self) -> io::Result<()> {
        if self.udp {
            UdpSocket::bind(self.address).map(drop)
        } else {
            TcpListener::bind(self.address).map(drop)
        }
    }

    pub(super) fn in_words(&self) -> String {
        let kind = if self.udp { "UDP" } else { "TCP" };
        format!("{} {kind} {}", self.purpose, self.address)
    }
}

/// Every port that `config` listens on.
pub(super) fn ports(config: &Config) -> Vec<Port> {
    let control = config.control_listen.iter().filter_map(|address| {
        let (address, udp) = socket(address)?;
        Some(Port { address, udp, purpose: "control" })
    });
    let bulk = Port { address: config.bulk_listen, udp: true, purpose: "bulk" };
    control.chain(config.transport.udp.then_some(bulk)).collect()
}

/// The socket address of a multiaddr such as `/ip4/…/tcp/…`, and whether it is UDP.
fn socket(address: &Multiaddr) -> Option<(SocketAddr, bool)> {
    let mut parts = address.iter();
    let ip: IpAddr = match parts.next()? {
        Protocol::Ip4(ip) => ip.into(),
        Protocol::Ip6(ip) => ip.into(),
        _ => return None,
    };
    match parts.next()? {
        Protocol::Tcp(port) => Some((SocketAddr::new(ip, port), false)),
        Protocol::Udp(port) => Some((SocketAddr::new(ip, port), true)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_taken_port_is_noticed() {
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = taken.local_addr().unwrap();
        let port = Port { address, udp: false, purpose: "control" };
        assert_eq!(port.try_bind().unwrap_err().kind(), io::ErrorKind::AddrInUse);
        assert!(port.in_words().starts_with("control TCP 127.0.0.1:"));
    }

    #[test]
    fn multiaddrs_become_sockets() {
        let parse = |text: &str| socket(&text.parse().unwrap());
        assert_eq!(parse("/ip4/1.2.3.4/tcp/5"), Some(("1.2.3.4:5".parse().unwrap(), false)));
        assert_eq!(parse("/ip6/::1/udp/5/quic-v1"), Some(("[::1]:5".parse().unwrap(), true)));
        assert_eq!(parse("/dns/x.example/tcp/5"), None);
    }
}
