//! Ports on loopback that nobody uses.

use std::fmt;
use std::net::{Ipv4Addr, TcpListener, UdpSocket};
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::bail;
use serde::Serialize;

/// Below what kernels give to outgoing connections (32768 on Linux), so that no client takes the port
/// of a node that is down for a moment; above what services use.
const RANGE: std::ops::Range<u16> = 20_000..32_000;
/// Ports tried before giving up: far more than a machine has in use.
const TRIES_MAX: usize = 2_000;

/// Those of one node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Ports {
    /// Control plane, TCP.
    pub control_tcp: u16,
    /// Control plane, QUIC.
    pub control_udp: u16,
    /// Bulk plane.
    pub bulk_udp: u16,
}

/// A port with its protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Port {
    tcp: bool,
    number: u16,
}

impl fmt::Display for Port {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} port {}", if self.tcp { "TCP" } else { "UDP" }, self.number)
    }
}

impl Ports {
    /// Chooses three that are free now. Worlds of one machine start at different places, so that two
    /// of them rarely look at the same port.
    ///
    /// # Errors
    /// When none is found, or the kernel gives no random bytes.
    pub fn choose() -> anyhow::Result<Ports> {
        Ok(Ports { control_tcp: free(true)?, control_udp: free(false)?, bulk_udp: free(false)? })
    }

    /// Those that somebody listens on.
    pub(super) fn held(&self) -> Vec<Port> {
        let udp = [self.control_udp, self.bulk_udp].map(|number| Port { tcp: false, number });
        let ports = [Port { tcp: true, number: self.control_tcp }].into_iter().chain(udp);
        ports.filter(|port| !is_free(port.tcp, port.number)).collect()
    }
}

fn free(tcp: bool) -> anyhow::Result<u16> {
    /// So that one process never gives a port twice.
    static GIVEN: AtomicU32 = AtomicU32::new(0);
    let width = u32::from(RANGE.end - RANGE.start);
    if GIVEN.load(Ordering::Relaxed) == 0 {
        let mut random = [0; 4];
        getrandom::fill(&mut random)?;
        let start = u32::from_be_bytes(random) % width + 1;
        let _ = GIVEN.compare_exchange(0, start, Ordering::Relaxed, Ordering::Relaxed);
    }
    for _ in 0..TRIES_MAX {
        let offset = GIVEN.fetch_add(1, Ordering::Relaxed) % width;
        let number = RANGE.start + u16::try_from(offset).unwrap_or(0);
        if is_free(tcp, number) {
            return Ok(number);
        }
    }
    bail!("no free port between {} and {}", RANGE.start, RANGE.end)
}

fn is_free(tcp: bool, number: u16) -> bool {
    let address = (Ipv4Addr::LOCALHOST, number);
    if tcp { TcpListener::bind(address).is_ok() } else { UdpSocket::bind(address).is_ok() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_free_different_and_seen_when_taken() {
        let _alone = crate::world::FORKS.lock();
        let ports = Ports::choose().unwrap();
        assert_ne!(ports.control_udp, ports.bulk_udp);
        assert_eq!(ports.held(), []);
        let taken = UdpSocket::bind((Ipv4Addr::LOCALHOST, ports.bulk_udp)).unwrap();
        let held: Vec<String> = ports.held().iter().map(Port::to_string).collect();
        assert_eq!(held, [format!("UDP port {}", ports.bulk_udp)]);
        drop(taken);
        assert_eq!(ports.held(), []);
    }
}
