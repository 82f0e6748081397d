//! Clients of a node: how they connect, and how many a node serves.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use allmend_protocol::ids::NodeId;
use ed25519_dalek::SigningKey;
use quinn::{Connection, Endpoint, VarInt};
use tokio::time::timeout;

use super::{
    BulkStream, NetError,
    gate::bucket,
    identity::{keypair, peer_of},
    limits::{
        BULK_HANDSHAKE_TIMEOUT, BULK_OPEN_TIMEOUT, CLIENTS_KNOWN_MAX, CLIENTS_PER_KEY_MAX,
        CLIENTS_UNKNOWN_MAX, CLIENTS_UNKNOWN_PER_IP_MAX, SHUTDOWN_TIMEOUT,
    },
    tls,
};

/// A client's connection with its node.
#[derive(Debug)]
pub struct ClientConnection {
    endpoint: Endpoint,
    connection: Connection,
}

/// Connects to `server` at `address` (`host:port`), proving `key` and requiring the server's.
///
/// # Errors
/// [`NetError::KeyLog`]; [`NetError::Resolve`]; [`NetError::Timeout`] if nobody answers; and
/// [`NetError::Connection`], also when somebody else answers at that address.
pub async fn connect_client(
    key: &SigningKey,
    address: &str,
    server: &NodeId,
) -> Result<ClientConnection, NetError> {
    tls::refuse_key_log()?;
    let peer = peer_of(server)
        .ok_or_else(|| NetError::Identity("the server's id is no Ed25519 key".to_owned()))?;
    let config = tls::client(&keypair(key)?, peer, tls::ALPN_CLIENT, true)?;
    let addresses: Vec<SocketAddr> = tokio::net::lookup_host(address)
        .await
        .map_err(|_| NetError::Resolve(address.to_owned()))?
        .collect();
    let mut last = NetError::Resolve(address.to_owned());
    for address in addresses {
        let local: IpAddr = match address {
            SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
            SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
        };
        let endpoint = Endpoint::client(SocketAddr::new(local, 0))?;
        let attempt = match endpoint.connect_with(config.clone(), address, "allmend") {
            Ok(connecting) => timeout(BULK_HANDSHAKE_TIMEOUT, connecting).await,
            Err(error) => {
                last = NetError::Connection(error.to_string());
                continue;
            }
        };
        match attempt {
            Ok(Ok(connection)) => return Ok(ClientConnection { endpoint, connection }),
            Ok(Err(error)) => last = NetError::Connection(error.to_string()),
            Err(_) => last = NetError::Timeout,
        }
    }
    Err(last)
}

impl ClientConnection {
    /// Opens a stream. The node sees it when the first bytes are sent.
    ///
    /// # Errors
    /// [`NetError::Busy`] if too many streams are open; [`NetError::Connection`] with the node's
    /// reason if the connection is closed.
    pub async fn open(&self) -> Result<BulkStream, NetError> {
        match timeout(BULK_OPEN_TIMEOUT, self.connection.open_bi()).await {
            Ok(Ok(pair)) => {
                Ok(BulkStream::quic(pair, None, Some(Arc::new(self.connection.clone()))))
            }
            Ok(Err(error)) => Err(NetError::Connection(error.to_string())),
            Err(_) => Err(NetError::Busy),
        }
    }

    /// Where the node was reached.
    #[must_use]
    pub fn remote_address(&self) -> SocketAddr {
        self.connection.remote_address()
    }

    /// Closes the connection and waits shortly until the node knows.
    pub async fn close(self) {
        self.connection.close(VarInt::from_u32(0), b"done");
        timeout(SHUTDOWN_TIMEOUT, self.endpoint.wait_idle()).await.ok();
    }
}

/// Counts the clients of a node.
#[derive(Debug, Default)]
pub(super) struct Clients(Mutex<Counts>);

#[derive(Debug, Default)]
struct Counts {
    known: usize,
    unknown: usize,
    by_key: BTreeMap<[u8; 32], usize>,
    unknown_by_ip: BTreeMap<IpAddr, usize>,
}

/// One client's place among the clients; its drop frees the place.
pub(super) struct Standing {
    clients: Arc<Clients>,
    key: [u8; 32],
    ip: IpAddr,
    known: bool,
}

impl Clients {
    /// Takes a place for a client, or `None` if a bound is reached.
    pub(super) fn enter(
        this: &Arc<Self>,
        key: [u8; 32],
        ip: IpAddr,
        known: bool,
    ) -> Option<Standing> {
        let ip = bucket(ip);
        let mut counts = this.lock();
        let of_key = counts.by_key.get(&key).copied().unwrap_or(0);
        let of_ip = counts.unknown_by_ip.get(&ip).copied().unwrap_or(0);
        let full = if known {
            counts.known >= CLIENTS_KNOWN_MAX
        } else {
            counts.unknown >= CLIENTS_UNKNOWN_MAX || of_ip >= CLIENTS_UNKNOWN_PER_IP_MAX
        };
        if full || of_key >= CLIENTS_PER_KEY_MAX {
            return None;
        }
        *counts.by_key.entry(key).or_default() += 1;
        counts.add(ip, known);
        drop(counts);
        Some(Standing { clients: Arc::clone(this), key, ip, known })
    }

    fn lock(&self) -> MutexGuard<'_, Counts> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Counts {
    fn add(&mut self, ip: IpAddr, known: bool) {
        if known {
            self.known += 1;
        } else {
            self.unknown += 1;
            *self.unknown_by_ip.entry(ip).or_default() += 1;
        }
    }

    fn remove(&mut self, ip: IpAddr, known: bool) {
        if known {
            self.known = self.known.saturating_sub(1);
        } else {
            self.unknown = self.unknown.saturating_sub(1);
            decrement(&mut self.unknown_by_ip, &ip);
        }
    }
}

impl Standing {
    pub(super) fn is_known(&self) -> bool {
        self.known
    }

    /// Moves to the known clients, e.g. after joining; false if there is no room.
    pub(super) fn become_known(&mut self) -> bool {
        let mut counts = self.clients.lock();
        if counts.known >= CLIENTS_KNOWN_MAX {
            return false;
        }
        counts.remove(self.ip, self.known);
        counts.add(self.ip, true);
        drop(counts);
        self.known = true;
        true
    }
}

impl Drop for Standing {
    fn drop(&mut self) {
        let mut counts = self.clients.lock();
        counts.remove(self.ip, self.known);
        decrement(&mut counts.by_key, &self.key);
    }
}

fn decrement<K: Ord>(counts: &mut BTreeMap<K, usize>, key: &K) {
    if let Some(count) = counts.get_mut(key) {
        *count = count.saturating_sub(1);
        if *count == 0 {
            counts.remove(key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const IP: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

    #[test]
    fn strangers_do_not_crowd_out_known_clients() {
        let clients = Arc::new(Clients::default());
        let mut standings = Vec::new();
        for key in 0..u8::MAX {
            let ip = IpAddr::V4([10, 0, 0, key].into());
            standings.extend(Clients::enter(&clients, [key; 32], ip, false));
        }
        assert_eq!(standings.len(), CLIENTS_UNKNOWN_MAX);
        let mut known = Clients::enter(&clients, [255; 32], IP, true).unwrap();
        assert!(known.become_known());
        assert!(standings[0].become_known());
        drop((standings, known));
        let counts = clients.lock();
        assert!(counts.by_key.is_empty() && counts.unknown_by_ip.is_empty());
        assert_eq!((counts.known, counts.unknown), (0, 0));
    }

    #[test]
    fn one_address_and_one_key_have_bounds() {
        let clients = Arc::new(Clients::default());
        let from_one_ip: Vec<Standing> =
            (0..100).filter_map(|key| Clients::enter(&clients, [key; 32], IP, false)).collect();
        assert_eq!(from_one_ip.len(), CLIENTS_UNKNOWN_PER_IP_MAX);
        let of_one_key: Vec<Standing> =
            (0..100).filter_map(|_| Clients::enter(&clients, [200; 32], IP, true)).collect();
        assert_eq!(of_one_key.len(), CLIENTS_PER_KEY_MAX);
    }
}
