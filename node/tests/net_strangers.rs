//! What strangers, expired members and garbage can do to a node: nothing that lasts.

mod net_common;

use std::{
    net::{SocketAddr, TcpStream, UdpSocket},
    process::Command,
    sync::atomic::Ordering,
    time::Duration,
};

use allmend_node::net::{Multiaddr, Net, NetError, connect_client, limits};
use futures::StreamExt as _;
use libp2p::{
    Swarm, SwarmBuilder, gossipsub,
    multiaddr::Protocol,
    noise,
    swarm::{ConnectionError, SwarmEvent, dummy},
    tcp, yamux,
};
use net_common::{
    Club, DEADLINE, FEDERATION, Node, Seen, exchange, key, node_id, now_ms, options, until, within,
};

fn socket(address: &Multiaddr) -> (bool, SocketAddr) {
    let mut parts = address.iter();
    let Some(Protocol::Ip4(ip)) = parts.next() else { panic!("{address}") };
    match parts.next() {
        Some(Protocol::Tcp(port)) => (false, (ip, port).into()),
        Some(Protocol::Udp(port)) => (true, (ip, port).into()),
        _ => panic!("{address}"),
    }
}

/// A libp2p node with valid keys that knows our gossip protocol but has no certificate.
fn stranger() -> Swarm<gossipsub::Behaviour> {
    let short = data_encoding::HEXLOWER.encode(&FEDERATION[..8]);
    SwarmBuilder::with_new_identity()
        .with_tokio()
        .with_tcp(tcp::Config::default(), noise::Config::new, yamux::Config::default)
        .unwrap()
        .with_quic()
        .with_behaviour(|keypair| {
            let config = gossipsub::ConfigBuilder::default()
                .protocol_id_prefix(format!("/allmend/{short}/gossip"))
                .heartbeat_initial_delay(Duration::from_millis(10))
                .build()
                .unwrap();
            let authenticity = gossipsub::MessageAuthenticity::Signed(keypair.clone());
            let mut gossip: gossipsub::Behaviour =
                gossipsub::Behaviour::new(authenticity, config).unwrap();
            let topic = gossipsub::IdentTopic::new(format!("/allmend/{short}/adverts/1"));
            gossip.subscribe(&topic).unwrap();
            gossip
        })
        .unwrap()
        .with_swarm_config(|config| config.with_idle_connection_timeout(Duration::from_secs(60)))
        .build()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stranger_without_hello_is_disconnected_and_its_gossip_ignored() {
    let short = data_encoding::HEXLOWER.encode(&FEDERATION[..8]);
    let topic = gossipsub::IdentTopic::new(format!("/allmend/{short}/adverts/1"));
    let mut node = Node::start(options(1)).await;
    for address in node.control() {
        let mut stranger = stranger();
        stranger.dial(address).unwrap();
        let mut connected = false;
        let end = async {
            loop {
                match stranger.select_next_some().await {
                    SwarmEvent::ConnectionEstablished { .. } => {
                        connected = true;
                        stranger.behaviour_mut().publish(topic.clone(), b"good gossip").ok();
                    }
                    SwarmEvent::ConnectionClosed { cause, .. } => return cause,
                    SwarmEvent::OutgoingConnectionError { error, .. } => panic!("{error}"),
                    _ => {}
                }
            }
        };
        let cause: Option<ConnectionError> = within(end).await;
        assert!(connected && cause.is_some());
    }
    assert!(node.net.peers().await.unwrap().is_empty());
    assert!(node.counter("hello_absent") >= 2);
    assert_eq!(node.counter("gossip_accepted"), 0);
    assert!(node.seen.try_recv().is_err());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stranger_that_says_nothing_is_disconnected() {
    let node = Node::start(options(1)).await;
    for address in node.control() {
        let mut silent = SwarmBuilder::with_new_identity()
            .with_tokio()
            .with_tcp(tcp::Config::default(), noise::Config::new, yamux::Config::default)
            .unwrap()
            .with_quic()
            .with_behaviour(|_| dummy::Behaviour)
            .unwrap()
            .with_swarm_config(|config| config.with_idle_connection_timeout(DEADLINE * 2))
            .build();
        silent.dial(address).unwrap();
        within(async {
            while !matches!(
                silent.select_next_some().await,
                SwarmEvent::ConnectionClosed { cause: Some(_), .. }
            ) {}
        })
        .await;
    }
    assert_eq!(node.counter("hello_absent"), 2);
    assert!(node.net.peers().await.unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stranger_whose_hello_is_refused_does_not_get_in() {
    let mut node = Node::start(options(1)).await;
    let stranger = Node::start_as(options(2), Club::with_hello(b"forged")).await;
    stranger.know(&node).await;
    until("the refusal", || async { node.counter("hello_refused") >= 1 }).await;
    until("news of it", || async { stranger.counter("hello_refused") >= 1 }).await;
    assert!(node.net.peers().await.unwrap().is_empty());
    assert!(stranger.net.peers().await.unwrap().is_empty());
    assert!(node.seen.try_recv().is_err());
    let error = stranger.net.open_bulk(node.id()).await.unwrap_err();
    assert!(matches!(error, NetError::NotConnected(_)), "{error}");
    let error = stranger.net.request(node.id(), vec![]).await.unwrap_err();
    assert!(matches!(error, NetError::NotConnected(_)), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_of_another_federation_does_not_get_in() {
    let node = Node::start(options(1)).await;
    let mut foreign = options(2);
    foreign.federation = [8; 32];
    let foreign = Node::start(foreign).await;
    foreign.know(&node).await;
    until("the refusal", || async { node.counter("hello_refused") >= 1 }).await;
    assert!(node.net.peers().await.unwrap().is_empty());
    assert!(foreign.net.peers().await.unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_expired_member_is_disconnected_and_not_let_in_again() {
    let mut a = Node::start(options(1)).await;
    // A admits anybody until three seconds from now, and nobody after that.
    a.club.expires_unix_ms.store(now_ms() + 3_000, Ordering::SeqCst);
    let b = Node::start(options(2)).await;
    b.know(&a).await;
    a.sees(|seen| *seen == Seen::Joined(b.id())).await;
    a.sees(|seen| *seen == Seen::Left(b.id())).await;
    assert_eq!(a.counter("admission_expired"), 1);
    until("the refusal", || async { a.counter("hello_refused") >= 1 }).await;
    assert!(a.net.peers().await.unwrap().is_empty());
    let error = a.net.open_bulk(b.id()).await.unwrap_err();
    assert!(matches!(error, NetError::NotConnected(_)), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_renewed_certificate_keeps_a_member_in_and_eviction_puts_it_out() {
    let mut a = Node::start(options(1)).await;
    a.club.expires_unix_ms.store(now_ms() + 20_000, Ordering::SeqCst);
    let b = Node::start(options(2)).await;
    b.know(&a).await;
    a.meets(&[b.id()]).await;
    let before = a.net.peers().await.unwrap()[0].admitted_until_unix_ms;
    a.club.expires_unix_ms.store(now_ms() + 3_600_000, Ordering::SeqCst);
    b.net.renew().await.unwrap();
    until("the renewal", || async {
        a.net.peers().await.unwrap()[0].admitted_until_unix_ms > before
    })
    .await;

    a.club.expires_unix_ms.store(0, Ordering::SeqCst);
    a.net.evict(b.id()).await.unwrap();
    a.sees(|seen| *seen == Seen::Left(b.id())).await;
    until("the refusal", || async { a.counter("hello_refused") >= 1 }).await;
    assert!(a.net.peers().await.unwrap().is_empty());
}

/// Goal: 10 MB of random bytes on each listening port leave the node serving.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn garbage_on_every_port_leaves_the_node_serving() {
    let node = Node::start(options(1)).await;
    let friend = Node::start(options(2)).await;
    friend.know(&node).await;
    friend.meets(&[node.id()]).await;
    friend.has_bulk(node.id()).await;

    let mut ports: Vec<(bool, SocketAddr)> = node.control().iter().map(socket).collect();
    ports.push((true, node.net.listen_addresses().bulk.unwrap()));
    assert_eq!(ports.len(), 3);
    for (udp, address) in ports {
        let flood = move || if udp { flood_udp(address) } else { flood_tcp(address) };
        tokio::task::spawn_blocking(flood).await.unwrap();
    }

    let answer = within(friend.net.request(node.id(), b"still there?".to_vec())).await.unwrap();
    assert_eq!(answer, b"echo:still there?");
    exchange(&mut friend.net.open_bulk(node.id()).await.unwrap()).await;
    // Newcomers get in too, once the address has earned new attempts.
    let newcomer = Node::start(options(3)).await;
    newcomer.know(&node).await;
    newcomer.meets(&[node.id(), friend.id()]).await;
    let bulk = node.net.listen_addresses().bulk.unwrap().to_string();
    let client = within(connect_client(&key(50), &bulk, &node.id())).await.unwrap();
    exchange(&mut client.open().await.unwrap()).await;
}

const GARBAGE: usize = 10_000_000;

/// Bytes that no protocol expects; a different start each time.
fn garbage(state: &mut u64, length: usize) -> Vec<u8> {
    (0..length)
        .map(|_| {
            *state ^= *state << 13;
            *state ^= *state >> 7;
            *state ^= *state << 17;
            state.to_le_bytes()[3]
        })
        .collect()
}

fn flood_udp(address: SocketAddr) {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let mut state = 0x9e37_79b9_7f4a_7c15;
    let mut sent = 0;
    while sent < GARBAGE {
        let mut packet = garbage(&mut state, 1200);
        // Half of it looks like a QUIC version 1 initial packet.
        if sent % 2400 == 0 {
            packet[0] |= 0xc0;
            packet[1..5].copy_from_slice(&[0, 0, 0, 1]);
        }
        socket.send_to(&packet, address).ok();
        sent += packet.len();
    }
}

fn flood_tcp(address: SocketAddr) {
    use std::io::Write as _;
    let mut state = 0x0123_4567_89ab_cdef;
    let mut sent = 0;
    while sent < GARBAGE {
        // The node hangs up early; what it was offered counts.
        let chunk = garbage(&mut state, 500_000);
        sent += chunk.len();
        if let Ok(mut stream) = TcpStream::connect(address) {
            stream.set_write_timeout(Some(Duration::from_secs(5))).unwrap();
            stream.write_all(&chunk).ok();
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_proves_its_key_and_requires_the_nodes() {
    let mut node = Node::start(options(1)).await;
    let address = node.net.listen_addresses().bulk.unwrap().to_string();
    let client = within(connect_client(&key(40), &address, &node.id())).await.unwrap();
    exchange(&mut client.open().await.unwrap()).await;
    let seen = node.sees(|seen| matches!(seen, Seen::Client(_))).await;
    assert_eq!(seen, Seen::Client(*node_id(&key(40)).as_bytes()));
    within(client.close()).await;

    let error = within(connect_client(&key(40), &address, &node_id(&key(99)))).await.unwrap_err();
    assert!(matches!(error, NetError::Connection(_)), "{error}");

    // Clients whose key nobody knows are few. A refusal may show at any step.
    let ask = async |byte| -> Result<_, NetError> {
        let client = connect_client(&key(byte), &address, &node.id()).await?;
        let mut stream = client.open().await?;
        stream.write_frame(b"x", 1).await?;
        stream.read_frame(10).await?.ok_or(NetError::Unanswered)?;
        Ok((client, stream))
    };
    let mut clients = Vec::new();
    for byte in 100..120 {
        match within(ask(byte)).await {
            Ok(client) => clients.push(client),
            Err(_) => break,
        }
    }
    assert_eq!(clients.len(), limits::CLIENTS_UNKNOWN_PER_IP_MAX);
    assert_eq!(node.counter("clients_refused"), 1);
    node.club.clients.lock().unwrap().push(*node_id(&key(41)).as_bytes());
    let known = within(connect_client(&key(41), &address, &node.id())).await.unwrap();
    exchange(&mut known.open().await.unwrap()).await;
}

/// Goal: a node does not start where session keys would be written to a file. Method: this test
/// runs itself again with the variable set, since tests may not change their environment.
#[tokio::test]
async fn a_key_log_file_is_refused() {
    const INNER: &str = "ALLMEND_TEST_KEY_LOG";
    if std::env::var_os(INNER).is_some() {
        let error = Net::start(options(1), Club::member()).await.unwrap_err();
        assert!(matches!(error, NetError::KeyLog), "{error}");
        let error = connect_client(&key(1), "127.0.0.1:1", &node_id(&key(2))).await.unwrap_err();
        assert!(matches!(error, NetError::KeyLog), "{error}");
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let log = directory.path().join("keys");
    let status = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "a_key_log_file_is_refused"])
        .env(INNER, "1")
        .env("SSLKEYLOGFILE", &log)
        .status()
        .unwrap();
    assert!(status.success());
    assert!(!log.exists());
}
