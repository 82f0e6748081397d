//! Every bound of the two planes, with its reason. Reaching one is counted in [`super::Counters`].

use std::time::Duration;

// ---- membership -------------------------------------------------------------------------------

/// A hello is a certificate chain of a few kilobytes; 64 KiB leaves room for long chains and still
/// lets every pending stranger be buffered at once.
pub const HELLO_BYTES_MAX: usize = 64 * 1024;
/// From an authenticated transport to admission; a stranger may hold a connection no longer.
pub const HELLO_TIMEOUT: Duration = Duration::from_secs(5);
/// A refused peer gets this long to read the reason before the connection is dropped.
pub const REFUSAL_LINGER: Duration = Duration::from_millis(500);
/// Longest refusal reason sent or kept, in bytes.
pub const REASON_BYTES_MAX: usize = 256;
/// Members we remember at once. Federations have tens of nodes; a charter that certifies more than
/// this many is served only up to here.
pub const MEMBERS_MAX: usize = 1024;
/// Refused peers whose reason is remembered so that it is logged once.
pub const REFUSED_REMEMBERED_MAX: usize = 256;

// ---- control plane ----------------------------------------------------------------------------

/// Largest request or reply; job messages are at most 32 KiB, with certificate chains beside them.
pub const MESSAGE_BYTES_MAX: usize = 256 * 1024;
/// Largest gossip payload: adverts are at most a few kilobytes.
pub const GOSSIP_BYTES_MAX: usize = 16 * 1024;
/// What gossipsub wraps around a payload: signature, key, topic and sequence number.
pub const GOSSIP_OVERHEAD: usize = 1024;
/// Gossip messages queued towards one peer before gossipsub drops forwards.
pub const GOSSIP_QUEUE_MAX: usize = 256;
/// Requests in flight to one peer; more fail with [`super::NetError::Busy`].
pub const REQUESTS_IN_FLIGHT_MAX: usize = 64;
/// Requests of one peer that wait for our answer; more are answered `Busy`.
pub const REQUESTS_PENDING_PER_PEER_MAX: usize = 64;
/// How long a request may take, there and back.
pub const REQUEST_TIMEOUT: Duration = Duration::from_secs(15);
/// Commands queued from handles to the event loop; senders wait beyond it.
pub const COMMANDS_MAX: usize = 1024;
/// Events queued from the event loop to the daemon; the loop never waits for room.
pub const EVENTS_MAX: usize = 1024;
/// Part of the event queue that clients leave free, so that strangers cannot crowd out members.
pub const EVENTS_RESERVED_FROM_CLIENTS: usize = EVENTS_MAX / 2;
/// Part of the event queue that gossip leaves free, so that adverts cannot crowd out job messages.
pub const EVENTS_RESERVED_FROM_GOSSIP: usize = EVENTS_MAX / 4;
/// Joined/left events that wait for room in the event queue; beyond it the oldest are dropped,
/// which only a daemon that has stopped reading can cause.
pub const MEMBERSHIP_EVENTS_MAX: usize = 4 * MEMBERS_MAX;
/// A connection without any stream is closed after this long (libp2p's default of 10 s flaps).
pub const CONTROL_IDLE: Duration = Duration::from_secs(60);
/// Heartbeat of a control connection; two missed ones close it.
pub const PING_INTERVAL: Duration = Duration::from_secs(5);
/// A heartbeat without an answer for this long has failed.
pub const PING_TIMEOUT: Duration = Duration::from_secs(10);
/// Failed heartbeats in a row that close a connection.
pub const PING_FAILURES_MAX: u32 = 2;
/// From an accepted or dialled socket to an authenticated, multiplexed connection.
pub const UPGRADE_TIMEOUT: Duration = Duration::from_secs(10);
/// Streams of one TCP connection, both directions; each may buffer 256 KiB.
pub const YAMUX_STREAMS_MAX: usize = 128;
/// Streams of one libp2p QUIC connection that the remote may have open.
pub const QUIC_CONTROL_STREAMS_MAX: u32 = 128;
/// Inbound connections that are not yet admitted, over all addresses.
pub const PENDING_INBOUND_MAX: u32 = 128;
/// Outbound connection attempts at once.
pub const PENDING_OUTBOUND_MAX: u32 = 128;
/// Connections per member: both sides may dial over both transports.
pub const CONNECTIONS_PER_PEER_MAX: u32 = 4;
/// Admitted connections in total.
pub const CONNECTIONS_MAX: u32 = 2048;
/// Inbound connections of one IP (IPv6: /64) that are not yet admitted.
pub const PENDING_PER_IP_MAX: u32 = 16;
/// Inbound connection attempts of one IP in a burst.
pub const ATTEMPTS_PER_IP_BURST: u32 = 64;
/// Inbound connection attempts of one IP per second in the long run.
pub const ATTEMPTS_PER_IP_PER_SECOND: u32 = 8;
/// IP addresses whose rates are tracked; beyond it new addresses are refused until some are idle.
pub const IPS_TRACKED_MAX: usize = 4096;
/// Period of the event loop's housekeeping: due dials, expiries, address exchange.
pub const TICK: Duration = Duration::from_millis(200);
/// How often addresses are exchanged with every peer even when nothing changed.
pub const META_INTERVAL: Duration = Duration::from_secs(60);

// ---- addresses --------------------------------------------------------------------------------

/// Bootstrap addresses accepted from the configuration.
pub const BOOTSTRAP_MAX: usize = 32;
/// Addresses remembered per peer, per plane.
pub const ADDRESSES_PER_PEER_MAX: usize = 8;
/// Longest textual address.
pub const ADDRESS_BYTES_MAX: usize = 256;
/// Peers whose addresses are remembered.
pub const BOOK_PEERS_MAX: usize = 512;
/// Peers named in one address exchange.
pub const META_PEERS_MAX: usize = 64;
/// First pause before an address is dialled again.
pub const REDIAL_FIRST: Duration = Duration::from_millis(500);
/// Longest pause before an address is dialled again; bootstrap addresses are tried for ever.
pub const REDIAL_MAX: Duration = Duration::from_secs(60);

// ---- bulk plane -------------------------------------------------------------------------------

/// Receive window of one bulk stream: 64 MiB sustains 640 MB/s at 100 ms.
pub const BULK_STREAM_WINDOW: u32 = 64 * 1024 * 1024;
/// Receive window of all streams of one member, over all its connections: its memory cap.
pub const BULK_MEMBER_WINDOW: u64 = 128 * 1024 * 1024;
/// Receive windows of all members together; each member's cap shrinks as more connect.
pub const BULK_MEMORY_MAX: u64 = 2 * 1024 * 1024 * 1024;
/// No connection's window shrinks below this.
pub const BULK_WINDOW_MIN: u64 = 4 * 1024 * 1024;
/// Receive and send window of a client, and of a connection not yet told apart.
pub const CLIENT_WINDOW: u32 = 2 * 1024 * 1024;
/// Bytes that may wait unacknowledged towards one member.
pub const BULK_SEND_WINDOW: u64 = 64 * 1024 * 1024;
/// Streams that a member may have open on one bulk connection.
pub const BULK_STREAMS_MAX: u32 = 64;
/// Streams that a client may have open.
pub const CLIENT_STREAMS_MAX: u32 = 16;
/// Bulk substreams that one member may have open over its control connections.
pub const FALLBACK_STREAMS_MAX: usize = 32;
/// Bytes read and forgotten of a substream that is dropped before its end: a grown yamux window.
pub const DRAIN_BYTES_MAX: u64 = 16 * 1024 * 1024;
/// How long that may take.
pub const DRAIN_TIMEOUT: Duration = Duration::from_secs(5);
/// Bulk connections kept per member: one that each side dialled.
pub const BULK_CONNECTIONS_PER_PEER_MAX: usize = 2;
/// Keep-alive of a bulk connection.
pub const BULK_KEEP_ALIVE: Duration = Duration::from_secs(10);
/// A bulk connection silent for this long is dead.
pub const BULK_IDLE: Duration = Duration::from_secs(30);
/// From a first packet to an authenticated bulk connection.
pub const BULK_HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
/// Handshakes at once; beyond it new attempts are refused.
pub const BULK_HANDSHAKES_MAX: usize = 128;
/// Handshakes at once beyond which a source address must prove itself by a retry token.
pub const BULK_RETRY_ABOVE: usize = 16;
/// Connection attempts that quinn holds before we look at them.
pub const BULK_INCOMING_MAX: usize = 256;
/// Bytes that quinn buffers per attempt, and over all attempts, before we look at them.
pub const BULK_INCOMING_BYTES: u64 = 16 * 1024;
/// See [`BULK_INCOMING_BYTES`].
pub const BULK_INCOMING_BYTES_TOTAL: u64 = 2 * 1024 * 1024;
/// Client connections whose key the daemon knows.
pub const CLIENTS_KNOWN_MAX: usize = 512;
/// Client connections whose key nobody knows yet: people who are about to join.
pub const CLIENTS_UNKNOWN_MAX: usize = 32;
/// Client connections of one key.
pub const CLIENTS_PER_KEY_MAX: usize = 16;
/// Client connections of one unknown IP (IPv6: /64).
pub const CLIENTS_UNKNOWN_PER_IP_MAX: usize = 8;
/// An unknown client is disconnected after this long; joining takes a few round trips.
pub const CLIENT_UNKNOWN_LIFETIME: Duration = Duration::from_secs(60);
/// How long the side with the higher id waits for the other to open the bulk connection.
pub const BULK_DIAL_GRACE: Duration = Duration::from_secs(1);
/// How long opening a stream on a live bulk connection may wait for a stream slot.
pub const BULK_OPEN_TIMEOUT: Duration = Duration::from_secs(2);
/// How long a goodbye may take at shutdown.
pub const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(1);

// ---- reachability -----------------------------------------------------------------------------

/// Addresses tested in one probe.
pub const PROBE_TARGETS_MAX: usize = 16;
/// Probes served at once, over all peers.
pub const PROBES_MAX: usize = 4;
/// One dial-back.
pub const PROBE_DIAL_TIMEOUT: Duration = Duration::from_secs(4);
/// Address at which others say they see us: remembered values.
pub const OBSERVED_MAX: usize = 8;
