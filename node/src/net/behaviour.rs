//! What the control plane speaks: libp2p's protocols, configured so that each is bounded.

use std::{sync::Arc, time::Duration};

use libp2p::{
    PeerId, StreamProtocol, connection_limits, gossipsub, identify, identity::Keypair, kad, ping,
    request_response, swarm::NetworkBehaviour,
};
use sha2::{Digest as _, Sha256};

use super::{
    Counters, NetError,
    codec::RawCodec,
    gate,
    limits::{
        CONNECTIONS_MAX, CONNECTIONS_PER_PEER_MAX, GOSSIP_BYTES_MAX, GOSSIP_OVERHEAD,
        GOSSIP_QUEUE_MAX, PENDING_INBOUND_MAX, PENDING_OUTBOUND_MAX, PING_INTERVAL, PING_TIMEOUT,
        REQUEST_TIMEOUT, REQUESTS_IN_FLIGHT_MAX,
    },
    substream,
};

/// How often kademlia looks for members it does not know.
const DISCOVERY_INTERVAL: Duration = Duration::from_secs(300);

/// Asked in this order, so what refuses comes first.
#[derive(NetworkBehaviour)]
pub(super) struct Behaviour {
    pub(super) limits: connection_limits::Behaviour,
    pub(super) gate: gate::Behaviour,
    pub(super) substream: substream::Behaviour,
    pub(super) ping: ping::Behaviour,
    pub(super) identify: identify::Behaviour,
    pub(super) gossip: gossipsub::Behaviour,
    pub(super) discovery: kad::Behaviour<kad::store::MemoryStore>,
    pub(super) requests: request_response::Behaviour<RawCodec>,
}

/// Names of the protocols of one federation.
pub(super) struct Names {
    prefix: String,
}

impl Names {
    pub(super) fn new(federation: &[u8; 32]) -> Self {
        let short = data_encoding::HEXLOWER.encode(&federation[..8]);
        Self { prefix: format!("/allmend/{short}") }
    }

    fn protocol(&self, rest: &str) -> Result<StreamProtocol, NetError> {
        StreamProtocol::try_from_owned(format!("{}/{rest}", self.prefix))
            .map_err(|error| NetError::Options(error.to_string()))
    }

    pub(super) fn topic(&self) -> gossipsub::IdentTopic {
        gossipsub::IdentTopic::new(format!("{}/adverts/1", self.prefix))
    }
}

impl Behaviour {
    pub(super) fn new(
        keypair: &Keypair,
        names: &Names,
        advertise: bool,
        counters: Arc<Counters>,
    ) -> Result<Self, NetError> {
        let peer = keypair.public().to_peer_id();
        Ok(Self {
            limits: connection_limits::Behaviour::new(
                connection_limits::ConnectionLimits::default()
                    .with_max_pending_incoming(Some(PENDING_INBOUND_MAX))
                    .with_max_pending_outgoing(Some(PENDING_OUTBOUND_MAX))
                    .with_max_established_per_peer(Some(CONNECTIONS_PER_PEER_MAX))
                    .with_max_established(Some(CONNECTIONS_MAX)),
            ),
            gate: gate::Behaviour::new(counters),
            substream: substream::Behaviour::new(names.protocol("bulk/1")?),
            ping: ping::Behaviour::new(
                ping::Config::new().with_interval(PING_INTERVAL).with_timeout(PING_TIMEOUT),
            ),
            identify: identify::Behaviour::new(
                identify::Config::new(format!("{}/id/1", names.prefix), keypair.public())
                    .with_agent_version(concat!("allmend/", env!("CARGO_PKG_VERSION")).to_owned())
                    .with_push_listen_addr_updates(true)
                    .with_hide_listen_addrs(!advertise),
            ),
            gossip: gossip(keypair, names)?,
            discovery: discovery(peer, names, advertise)?,
            requests: request_response::Behaviour::with_codec(
                RawCodec,
                [(names.protocol("req/1")?, request_response::ProtocolSupport::Full)],
                request_response::Config::default()
                    .with_request_timeout(REQUEST_TIMEOUT)
                    // Both directions, ours and theirs.
                    .with_max_concurrent_streams(4 * REQUESTS_IN_FLIGHT_MAX),
            ),
        })
    }
}

fn gossip(keypair: &Keypair, names: &Names) -> Result<gossipsub::Behaviour, NetError> {
    let config = gossipsub::ConfigBuilder::default()
        .protocol_id_prefix(format!("{}/gossip", names.prefix))
        .max_transmit_size(GOSSIP_BYTES_MAX + GOSSIP_OVERHEAD)
        .validation_mode(gossipsub::ValidationMode::Strict)
        .validate_messages()
        .flood_publish(false)
        .connection_handler_queue_len(GOSSIP_QUEUE_MAX)
        .max_publish_messages(GOSSIP_QUEUE_MAX)
        .heartbeat_initial_delay(Duration::from_millis(300))
        // Equal bytes are one message, whoever repeats them.
        .message_id_fn(|message| gossipsub::MessageId::new(&Sha256::digest(&message.data)[..20]))
        .build()
        .map_err(|error| NetError::Options(error.to_string()))?;
    let authenticity = gossipsub::MessageAuthenticity::Signed(keypair.clone());
    let mut behaviour = gossipsub::Behaviour::new(authenticity, config)
        .map_err(|error| NetError::Options(error.to_owned()))?;
    behaviour.subscribe(&names.topic()).map_err(|error| NetError::Options(error.to_string()))?;
    Ok(behaviour)
}

/// Kademlia for finding members, not for storing anything.
fn discovery(
    peer: PeerId,
    names: &Names,
    advertise: bool,
) -> Result<kad::Behaviour<kad::store::MemoryStore>, NetError> {
    let mut config = kad::Config::new(names.protocol("kad/1")?);
    config
        .set_record_filtering(kad::StoreInserts::FilterBoth)
        .set_kbucket_inserts(kad::BucketInserts::Manual)
        .set_caching(kad::Caching::Disabled)
        .set_replication_interval(None)
        .set_publication_interval(None)
        .set_provider_publication_interval(None)
        .set_periodic_bootstrap_interval(Some(DISCOVERY_INTERVAL));
    let store = kad::store::MemoryStore::new(peer);
    let mut behaviour = kad::Behaviour::with_config(peer, store, config);
    let mode = if advertise { kad::Mode::Server } else { kad::Mode::Client };
    behaviour.set_mode(Some(mode));
    Ok(behaviour)
}
