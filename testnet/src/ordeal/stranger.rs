//! A libp2p node that is not ours: it speaks the federation's protocols, and introduces itself as the
//! test wants, rightly, wrongly or not at all (specs/transport.md §4).
//!
//! Written against the specification rather than with the node's code, so that a fault which both ends
//! share does not go unseen.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use allmend_protocol::bytes::ByteString;
use allmend_protocol::ids::{FederationId, MessageId};
use allmend_protocol::message::Versions;
use anyhow::{Context as _, bail};
use ed25519_dalek::SigningKey;
use futures::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, StreamExt as _};
use libp2p::core::muxing::{StreamMuxerBox, StreamMuxerExt as _};
use libp2p::core::upgrade::Version;
use libp2p::swarm::{NetworkBehaviour, SwarmEvent};
use libp2p::{
    Multiaddr, PeerId, StreamProtocol, Swarm, Transport as _, gossipsub, identity, noise, quic,
    request_response, tcp, yamux,
};
use serde::{Deserialize, Serialize};

/// First bytes of an introduction.
const MAGIC: &[u8; 16] = b"allmend-hello/1\n";
/// The verdict that lets in.
const WELCOME: u8 = 0;

/// Names one run of a node; any value serves.
const INSTANCE: [u8; 16] = *b"a test, no node!";
/// The largest answer read.
const ANSWER_BYTES_MAX: u64 = 256 * 1024;
/// First byte of an application's request, and of an answered one.
const APPLICATION: u8 = 0;
/// How long a connection may take.
const DIAL_MAX: Duration = Duration::from_secs(15);

/// How to introduce oneself.
#[derive(Clone, Debug)]
pub enum Greeting {
    /// Not at all: straight to the protocols, as any other libp2p program would.
    None,
    /// Open nothing and say nothing.
    Mute,
    /// With these bytes as the federation's name and as hello.
    Hello {
        /// The federation claimed.
        federation: [u8; 32],
        /// The hello itself.
        hello: Vec<u8>,
    },
}

/// What a node shows of itself.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Hello {
    /// Which federation.
    pub federation: FederationId,
    /// Its genesis charter.
    pub charter: MessageId,
    /// Certificates, the node's own last.
    pub chain: Vec<ByteString>,
    /// Message versions spoken.
    pub versions: Versions,
}

/// What the other end said to the introduction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Come in.
    Welcome,
    /// Stay out, for this reason.
    Refused(String),
    /// It said nothing and closed.
    Silence,
}

/// The protocols of a federation.
#[derive(NetworkBehaviour)]
struct Protocols {
    gossip: gossipsub::Behaviour,
    requests: request_response::Behaviour<Raw>,
}

/// A stranger with at most one connection.
pub struct Stranger {
    swarm: Swarm<Protocols>,
    topic: gossipsub::IdentTopic,
    verdict: Arc<Mutex<Option<Verdict>>>,
    peer: Option<PeerId>,
}

impl Stranger {
    /// One with this key that introduces itself like this.
    ///
    /// # Errors
    /// When the key or the protocols are not accepted by libp2p.
    pub fn new(
        key: &SigningKey,
        federation: &FederationId,
        greeting: Greeting,
    ) -> anyhow::Result<Stranger> {
        let keypair = identity::Keypair::ed25519_from_bytes(key.to_bytes())?;
        let verdict = Arc::new(Mutex::new(None));
        let told = Arc::clone(&verdict);
        let tcp = tcp::tokio::Transport::new(tcp::Config::default().nodelay(true))
            .upgrade(Version::V1Lazy)
            .authenticate(noise::Config::new(&keypair)?)
            .multiplex(yamux::Config::default())
            .map(|(peer, muxer), _| (peer, StreamMuxerBox::new(muxer)));
        let quic = quic::tokio::Transport::new(quic::Config::new(&keypair))
            .map(|(peer, muxer), _| (peer, StreamMuxerBox::new(muxer)));
        let transport = quic
            .or_transport(tcp)
            .map(|output, _| output.into_inner())
            .and_then(move |(peer, muxer), _| greet(peer, muxer, greeting, told))
            .boxed();
        let short = data_encoding::HEXLOWER.encode(&federation.as_bytes()[..8]);
        let prefix = format!("/allmend/{short}");
        let topic = gossipsub::IdentTopic::new(format!("{prefix}/adverts/1"));
        let config = gossipsub::ConfigBuilder::default()
            .protocol_id_prefix(format!("{prefix}/gossip"))
            .heartbeat_initial_delay(Duration::from_millis(100))
            .heartbeat_interval(Duration::from_millis(300))
            .build()?;
        let mut gossip = gossipsub::Behaviour::new(
            gossipsub::MessageAuthenticity::Signed(keypair.clone()),
            config,
        )
        .map_err(anyhow::Error::msg)?;
        gossip.subscribe(&topic)?;
        let requests = request_response::Behaviour::with_codec(
            Raw,
            [(
                StreamProtocol::try_from_owned(format!("{prefix}/req/1"))?,
                request_response::ProtocolSupport::Full,
            )],
            request_response::Config::default(),
        );
        let config = libp2p::swarm::Config::with_tokio_executor()
            .with_idle_connection_timeout(Duration::from_secs(60));
        let swarm = Swarm::new(
            transport,
            Protocols { gossip, requests },
            keypair.public().to_peer_id(),
            config,
        );
        Ok(Stranger { swarm, topic, verdict, peer: None })
    }

    /// Connects; what the other end says to the introduction does not keep it from going on.
    ///
    /// # Errors
    /// When no connection can be made or it breaks during the introduction.
    pub async fn dial(&mut self, address: &Multiaddr) -> anyhow::Result<Verdict> {
        self.swarm.dial(address.clone())?;
        let dialling = async {
            loop {
                match self.swarm.select_next_some().await {
                    SwarmEvent::ConnectionEstablished { peer_id, .. } => break Ok(peer_id),
                    SwarmEvent::OutgoingConnectionError { error, .. } => break Err(error),
                    _ => {}
                }
            }
        };
        let peer =
            tokio::time::timeout(DIAL_MAX, dialling).await.context("no connection in time")??;
        self.peer = Some(peer);
        let verdict = self.verdict.lock().unwrap_or_else(PoisonError::into_inner).clone();
        Ok(verdict.unwrap_or(Verdict::Silence))
    }

    /// Goes on until the other end closes the connection, offering `gossip` to it all the while.
    ///
    /// # Errors
    /// When it is not closed within `limit`.
    pub async fn until_closed(
        &mut self,
        limit: Duration,
        gossip: Option<&[u8]>,
    ) -> anyhow::Result<Duration> {
        let since = tokio::time::Instant::now();
        let mut offer = tokio::time::interval(Duration::from_millis(100));
        let closed = async {
            loop {
                tokio::select! {
                    event = self.swarm.select_next_some() => {
                        if let SwarmEvent::ConnectionClosed { .. } = event {
                            return;
                        }
                    }
                    _ = offer.tick() => if let Some(bytes) = gossip {
                        // Fails for want of subscribers, which is as it should be.
                        let _ = self.swarm.behaviour_mut().gossip.publish(self.topic.clone(), bytes);
                    },
                }
            }
        };
        tokio::time::timeout(limit, closed).await.context("the node keeps the connection")?;
        Ok(since.elapsed())
    }

    /// Publishes `bytes` once the other end has subscribed.
    ///
    /// # Errors
    /// When the connection ends first or nobody takes it in time.
    pub async fn publish(&mut self, bytes: &[u8]) -> anyhow::Result<()> {
        let mut again = tokio::time::interval(Duration::from_millis(100));
        let published = async {
            loop {
                tokio::select! {
                    event = self.swarm.select_next_some() => {
                        if let SwarmEvent::ConnectionClosed { cause, .. } = event {
                            bail!("the node closed the connection: {cause:?}");
                        }
                    }
                    _ = again.tick() => {
                        let gossip = &mut self.swarm.behaviour_mut().gossip;
                        if gossip.publish(self.topic.clone(), bytes).is_ok() {
                            return Ok(());
                        }
                    }
                }
            }
        };
        tokio::time::timeout(DIAL_MAX, published).await.context("nobody takes gossip")?
    }

    /// Sends an application's request and gives the answer.
    ///
    /// # Errors
    /// When there is none.
    pub async fn request(&mut self, bytes: &[u8]) -> anyhow::Result<Vec<u8>> {
        let peer = self.peer.context("not connected")?;
        let request: Vec<u8> = std::iter::once(APPLICATION).chain(bytes.iter().copied()).collect();
        self.swarm.behaviour_mut().requests.send_request(&peer, request);
        let answered = async {
            loop {
                let event = self.swarm.select_next_some().await;
                let SwarmEvent::Behaviour(ProtocolsEvent::Requests(event)) = event else {
                    continue;
                };
                match event {
                    request_response::Event::Message {
                        message: request_response::Message::Response { response, .. },
                        ..
                    } => return Ok(response),
                    request_response::Event::OutboundFailure { error, .. } => {
                        return Err(anyhow::Error::from(error));
                    }
                    _ => {}
                }
            }
        };
        tokio::time::timeout(DIAL_MAX, answered).await.context("no answer in time")?
    }

    /// Keeps the connection alive while `other` is under way.
    pub async fn while_doing<T>(&mut self, other: impl Future<Output = T>) -> T {
        tokio::pin!(other);
        loop {
            tokio::select! {
                done = &mut other => return done,
                _ = self.swarm.select_next_some() => {}
            }
        }
    }
}

/// The introduction, on the first substream.
async fn greet(
    peer: PeerId,
    mut muxer: StreamMuxerBox,
    greeting: Greeting,
    told: Arc<Mutex<Option<Verdict>>>,
) -> io::Result<(PeerId, StreamMuxerBox)> {
    let (federation, hello) = match greeting {
        Greeting::None => return Ok((peer, muxer)),
        Greeting::Mute => {
            // Only until the other end is tired of it.
            let gone = std::future::poll_fn(|cx| match muxer.poll_unpin(cx) {
                std::task::Poll::Ready(Err(_)) => std::task::Poll::Ready(()),
                _ => match muxer.poll_inbound_unpin(cx) {
                    std::task::Poll::Ready(Err(_)) => std::task::Poll::Ready(()),
                    _ => std::task::Poll::Pending,
                },
            });
            gone.await;
            return Err(io::ErrorKind::ConnectionReset.into());
        }
        Greeting::Hello { federation, hello } => (federation, hello),
    };
    let mut stream = std::future::poll_fn(|cx| {
        let _ = muxer.poll_unpin(cx);
        muxer.poll_outbound_unpin(cx)
    })
    .await
    .map_err(io::Error::other)?;
    let verdict = {
        let talk = introduce(&mut stream, &federation, &hello);
        let mut talk = std::pin::pin!(talk);
        std::future::poll_fn(|cx| {
            if let std::task::Poll::Ready(verdict) = talk.as_mut().poll(cx) {
                return std::task::Poll::Ready(verdict);
            }
            match muxer.poll_unpin(cx) {
                std::task::Poll::Ready(Err(error)) => {
                    std::task::Poll::Ready(Err(io::Error::other(error)))
                }
                _ => std::task::Poll::Pending,
            }
        })
        .await
    };
    *told.lock().unwrap_or_else(PoisonError::into_inner) =
        Some(verdict.unwrap_or(Verdict::Silence));
    Ok((peer, muxer))
}

async fn introduce<S: AsyncRead + AsyncWrite + Unpin>(
    stream: &mut S,
    federation: &[u8; 32],
    hello: &[u8],
) -> io::Result<Verdict> {
    let length = u32::try_from(hello.len()).map_err(io::Error::other)?;
    let mut opening = MAGIC.to_vec();
    opening.extend_from_slice(federation);
    opening.extend_from_slice(&INSTANCE);
    opening.extend_from_slice(&length.to_be_bytes());
    opening.extend_from_slice(hello);
    stream.write_all(&opening).await?;
    stream.flush().await?;
    let mut verdict = [0];
    stream.read_exact(&mut verdict).await?;
    if verdict[0] != WELCOME {
        let reason = read_bytes(stream).await?;
        return Ok(Verdict::Refused(String::from_utf8_lossy(&reason).into_owned()));
    }
    let mut instance = [0; INSTANCE.len()];
    stream.read_exact(&mut instance).await?;
    read_bytes(stream).await?;
    stream.write_all(&[WELCOME]).await?;
    stream.flush().await?;
    stream.close().await?;
    Ok(Verdict::Welcome)
}

async fn read_bytes<S: AsyncRead + Unpin>(stream: &mut S) -> io::Result<Vec<u8>> {
    let mut length = [0; 4];
    stream.read_exact(&mut length).await?;
    let mut bytes = Vec::new();
    let wanted = u64::from(u32::from_be_bytes(length)).min(ANSWER_BYTES_MAX);
    stream.take(wanted).read_to_end(&mut bytes).await?;
    Ok(bytes)
}

/// Requests and replies: one length-prefixed byte string each way (specs/transport.md §5).
#[derive(Clone, Copy, Debug, Default)]
struct Raw;

impl request_response::Codec for Raw {
    type Protocol = StreamProtocol;
    type Request = Vec<u8>;
    type Response = Vec<u8>;

    async fn read_request<T: AsyncRead + Unpin + Send>(
        &mut self,
        _: &StreamProtocol,
        io: &mut T,
    ) -> io::Result<Vec<u8>> {
        read_bytes(io).await
    }

    async fn read_response<T: AsyncRead + Unpin + Send>(
        &mut self,
        _: &StreamProtocol,
        io: &mut T,
    ) -> io::Result<Vec<u8>> {
        read_bytes(io).await
    }

    async fn write_request<T: AsyncWrite + Unpin + Send>(
        &mut self,
        _: &StreamProtocol,
        io: &mut T,
        bytes: Vec<u8>,
    ) -> io::Result<()> {
        write_bytes(io, &bytes).await
    }

    async fn write_response<T: AsyncWrite + Unpin + Send>(
        &mut self,
        _: &StreamProtocol,
        io: &mut T,
        bytes: Vec<u8>,
    ) -> io::Result<()> {
        write_bytes(io, &bytes).await
    }
}

async fn write_bytes<T: AsyncWrite + Unpin>(io: &mut T, bytes: &[u8]) -> io::Result<()> {
    let length = u32::try_from(bytes.len()).map_err(io::Error::other)?;
    io.write_all(&length.to_be_bytes()).await?;
    io.write_all(bytes).await?;
    io.flush().await
}
