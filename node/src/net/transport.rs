//! How control connections come to be: TCP (noise, yamux) or QUIC, then the mutual hello.

use std::{
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use libp2p::{
    Multiaddr, PeerId, Transport,
    core::{
        ConnectedPoint,
        muxing::StreamMuxerBox,
        transport::{
            Boxed, DialOpts, ListenerId, OptionalTransport, PortUse, TransportError, TransportEvent,
        },
        upgrade::Version,
    },
    dns,
    identity::Keypair,
    noise, quic, tcp, yamux,
};

use super::{
    NetError,
    hello::Gatekeeper,
    limits::{QUIC_CONTROL_STREAMS_MAX, UPGRADE_TIMEOUT, YAMUX_STREAMS_MAX},
};

/// A transport whose connections are authenticated, multiplexed and admitted.
pub(super) type ControlTransport = Boxed<(PeerId, StreamMuxerBox)>;

/// Builds a transport with its own sockets; `gatekeeper` decides who gets through.
///
/// # Errors
/// If the key cannot make a noise identity.
pub(super) fn build(
    keypair: &Keypair,
    disable_udp: bool,
    gatekeeper: Arc<Gatekeeper>,
) -> Result<ControlTransport, NetError> {
    // A machine without a resolver configuration can still dial plain IP addresses.
    let named = match dns::tokio::Transport::system(sockets(keypair, disable_udp)?) {
        Ok(named) => named,
        Err(_) => dns::tokio::Transport::custom(
            sockets(keypair, disable_udp)?,
            dns::ResolverConfig::default(),
            dns::ResolverOpts::default(),
        ),
    };
    Ok(OwnPort(named.boxed())
        .and_then(move |(peer, muxer): (PeerId, StreamMuxerBox), point: ConnectedPoint| {
            gatekeeper.admit(peer, muxer, point)
        })
        .map_err(io::Error::other)
        .boxed())
}

/// Dials from a port of its own, whoever asks (specs/transport.md §1).
///
/// libp2p's habit, and that of its discovery, is to dial from the listening port; the answers would
/// not pass a firewall that keeps everything from that port.
struct OwnPort(ControlTransport);

impl Transport for OwnPort {
    type Output = <ControlTransport as Transport>::Output;
    type Error = <ControlTransport as Transport>::Error;
    type ListenerUpgrade = <ControlTransport as Transport>::ListenerUpgrade;
    type Dial = <ControlTransport as Transport>::Dial;

    fn listen_on(
        &mut self,
        id: ListenerId,
        address: Multiaddr,
    ) -> Result<(), TransportError<Self::Error>> {
        self.0.listen_on(id, address)
    }

    fn remove_listener(&mut self, id: ListenerId) -> bool {
        self.0.remove_listener(id)
    }

    fn dial(
        &mut self,
        address: Multiaddr,
        options: DialOpts,
    ) -> Result<Self::Dial, TransportError<Self::Error>> {
        self.0.dial(address, DialOpts { port_use: PortUse::New, ..options })
    }

    fn poll(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<TransportEvent<Self::ListenerUpgrade, Self::Error>> {
        Pin::new(&mut self.0).poll(cx)
    }
}

/// TCP and, unless disabled, QUIC; authenticated and multiplexed.
fn sockets(keypair: &Keypair, disable_udp: bool) -> Result<ControlTransport, NetError> {
    let mut multiplexer = yamux::Config::default();
    multiplexer.set_max_num_streams(YAMUX_STREAMS_MAX);
    let noise =
        noise::Config::new(keypair).map_err(|error| NetError::Identity(error.to_string()))?;
    let tcp = tcp::tokio::Transport::new(tcp::Config::default().nodelay(true))
        .upgrade(Version::V1Lazy)
        .authenticate(noise)
        .multiplex(multiplexer)
        .timeout(UPGRADE_TIMEOUT)
        .map(|(peer, muxer), _| (peer, StreamMuxerBox::new(muxer)));
    let quic = if disable_udp {
        OptionalTransport::none()
    } else {
        let mut config = quic::Config::new(keypair);
        config.max_concurrent_stream_limit = QUIC_CONTROL_STREAMS_MAX;
        OptionalTransport::some(
            quic::tokio::Transport::new(config)
                .map(|(peer, muxer), _| (peer, StreamMuxerBox::new(muxer))),
        )
    };
    Ok(quic.or_transport(tcp).map(|output, _| output.into_inner()).boxed())
}
