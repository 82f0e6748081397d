//! Bulk streams over a control connection, for peers between whom no UDP gets through.
//!
//! Written by hand rather than with `libp2p-stream`, which drops an inbound stream when two arrive
//! in one poll, picks a random connection, and keeps an entry for every connection ever made
//! (`docs/design/transport.md`). The handler also keeps members' connections open.

use std::{
    collections::{BTreeMap, VecDeque},
    convert::Infallible,
    task::{Context, Poll},
};

use libp2p::{
    Multiaddr, PeerId, Stream, StreamProtocol,
    core::{Endpoint, transport::PortUse, upgrade::ReadyUpgrade},
    swarm::{
        ConnectionDenied, ConnectionHandler, ConnectionHandlerEvent, ConnectionId, FromSwarm,
        NetworkBehaviour, NotifyHandler, StreamUpgradeError, SubstreamProtocol, THandler,
        THandlerInEvent, THandlerOutEvent, ToSwarm,
        handler::{
            ConnectionEvent, DialUpgradeError, FullyNegotiatedInbound, FullyNegotiatedOutbound,
        },
    },
};
use tokio::sync::oneshot;

use super::{
    NetError,
    limits::{COMMANDS_MAX, FALLBACK_STREAMS_MAX},
};

/// A stream that a member opened.
#[derive(Debug)]
pub(super) struct Inbound {
    pub(super) peer: PeerId,
    pub(super) stream: Stream,
}

/// Where an opened stream goes.
pub(super) type Opened = oneshot::Sender<Result<Stream, NetError>>;

/// Opens and accepts streams of one protocol.
pub(super) struct Behaviour {
    protocol: StreamProtocol,
    connections: BTreeMap<ConnectionId, PeerId>,
    actions: VecDeque<ToSwarm<Inbound, Opened>>,
}

impl Behaviour {
    pub(super) fn new(protocol: StreamProtocol) -> Self {
        Self { protocol, connections: BTreeMap::new(), actions: VecDeque::new() }
    }

    /// Opens a stream on `connection`; the outcome goes to `opened`.
    pub(super) fn open(&mut self, peer: PeerId, connection: ConnectionId, opened: Opened) {
        if self.actions.len() >= COMMANDS_MAX || !self.connections.contains_key(&connection) {
            opened.send(Err(NetError::Busy)).ok();
            return;
        }
        self.actions.push_back(ToSwarm::NotifyHandler {
            peer_id: peer,
            handler: NotifyHandler::One(connection),
            event: opened,
        });
    }

    fn handler(&self) -> Handler {
        Handler {
            protocol: self.protocol.clone(),
            opening: VecDeque::new(),
            inbound: VecDeque::new(),
        }
    }
}

impl NetworkBehaviour for Behaviour {
    type ConnectionHandler = Handler;
    type ToSwarm = Inbound;

    fn handle_established_inbound_connection(
        &mut self,
        _connection: ConnectionId,
        _peer: PeerId,
        _local: &Multiaddr,
        _remote: &Multiaddr,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        Ok(self.handler())
    }

    fn handle_established_outbound_connection(
        &mut self,
        _connection: ConnectionId,
        _peer: PeerId,
        _address: &Multiaddr,
        _role: Endpoint,
        _port: PortUse,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        Ok(self.handler())
    }

    fn on_swarm_event(&mut self, event: FromSwarm<'_>) {
        match event {
            FromSwarm::ConnectionEstablished(established) => {
                self.connections.insert(established.connection_id, established.peer_id);
            }
            FromSwarm::ConnectionClosed(closed) => {
                self.connections.remove(&closed.connection_id);
            }
            _ => {}
        }
    }

    fn on_connection_handler_event(
        &mut self,
        peer: PeerId,
        _connection: ConnectionId,
        stream: THandlerOutEvent<Self>,
    ) {
        // Bounded by streams per connection times connections; polled before more are produced.
        self.actions.push_back(ToSwarm::GenerateEvent(Inbound { peer, stream }));
    }

    fn poll(
        &mut self,
        _cx: &mut Context<'_>,
    ) -> Poll<ToSwarm<Self::ToSwarm, THandlerInEvent<Self>>> {
        match self.actions.pop_front() {
            Some(action) => Poll::Ready(action),
            None => Poll::Pending,
        }
    }
}

/// The per-connection half of [`Behaviour`].
pub(super) struct Handler {
    protocol: StreamProtocol,
    opening: VecDeque<Opened>,
    inbound: VecDeque<Stream>,
}

impl ConnectionHandler for Handler {
    type FromBehaviour = Opened;
    type ToBehaviour = Stream;
    type InboundProtocol = ReadyUpgrade<StreamProtocol>;
    type OutboundProtocol = ReadyUpgrade<StreamProtocol>;
    type InboundOpenInfo = ();
    type OutboundOpenInfo = Opened;

    fn listen_protocol(&self) -> SubstreamProtocol<Self::InboundProtocol> {
        SubstreamProtocol::new(ReadyUpgrade::new(self.protocol.clone()), ())
    }

    /// Members stay connected: the next job message must not wait for a handshake.
    fn connection_keep_alive(&self) -> bool {
        true
    }

    fn poll(
        &mut self,
        _cx: &mut Context<'_>,
    ) -> Poll<ConnectionHandlerEvent<Self::OutboundProtocol, Opened, Stream>> {
        if let Some(stream) = self.inbound.pop_front() {
            return Poll::Ready(ConnectionHandlerEvent::NotifyBehaviour(stream));
        }
        match self.opening.pop_front() {
            Some(opened) => Poll::Ready(ConnectionHandlerEvent::OutboundSubstreamRequest {
                protocol: SubstreamProtocol::new(ReadyUpgrade::new(self.protocol.clone()), opened),
            }),
            None => Poll::Pending,
        }
    }

    fn on_behaviour_event(&mut self, opened: Opened) {
        if self.opening.len() >= FALLBACK_STREAMS_MAX {
            opened.send(Err(NetError::Busy)).ok();
        } else {
            self.opening.push_back(opened);
        }
    }

    fn on_connection_event(
        &mut self,
        event: ConnectionEvent<'_, Self::InboundProtocol, Self::OutboundProtocol, (), Opened>,
    ) {
        match event {
            // A stream too many is dropped, which resets it.
            ConnectionEvent::FullyNegotiatedInbound(FullyNegotiatedInbound {
                protocol: stream,
                ..
            }) if self.inbound.len() < FALLBACK_STREAMS_MAX => {
                self.inbound.push_back(stream);
            }
            ConnectionEvent::FullyNegotiatedOutbound(FullyNegotiatedOutbound {
                protocol: stream,
                info: opened,
            }) => {
                opened.send(Ok(stream)).ok();
            }
            ConnectionEvent::DialUpgradeError(DialUpgradeError { info: opened, error }) => {
                opened.send(Err(upgrade_error(error))).ok();
            }
            _ => {}
        }
    }
}

fn upgrade_error(error: StreamUpgradeError<Infallible>) -> NetError {
    match error {
        StreamUpgradeError::Timeout => NetError::Timeout,
        StreamUpgradeError::Apply(never) => match never {},
        StreamUpgradeError::NegotiationFailed => {
            NetError::Connection("the peer does not speak our bulk protocol".to_owned())
        }
        StreamUpgradeError::Io(error) => NetError::Io(error),
    }
}
