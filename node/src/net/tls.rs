//! TLS for the bulk plane: libp2p's self-signed certificates, which carry a signature of the
//! node's Ed25519 key, under our own protocol names (ALPN).

use std::sync::Arc;

use libp2p::{PeerId, identity::Keypair};
use quinn::{
    IdleTimeout, VarInt,
    crypto::{
        CryptoError, HmacKey,
        rustls::{HandshakeData, QuicClientConfig, QuicServerConfig},
    },
};
use rustls::{NoKeyLog, client::Resumption, pki_types::CertificateDer};
use sha2::{Digest as _, Sha256};

use super::{
    NetError,
    identity::key_of,
    limits::{
        BULK_IDLE, BULK_INCOMING_BYTES, BULK_INCOMING_BYTES_TOTAL, BULK_INCOMING_MAX,
        BULK_KEEP_ALIVE, BULK_STREAM_WINDOW, CLIENT_STREAMS_MAX, CLIENT_WINDOW,
    },
};

/// Protocol name between members.
pub const ALPN_BULK: &[u8] = b"allmend-bulk/1";
/// Protocol name between a client (a researcher's command line) and a node.
pub const ALPN_CLIENT: &[u8] = b"allmend-client/1";
/// Protocol name of a reachability test: the handshake is all there is.
pub const ALPN_PROBE: &[u8] = b"allmend-probe/1";

/// What the environment variable would do is described in [`NetError::KeyLog`].
pub(super) fn refuse_key_log() -> Result<(), NetError> {
    match std::env::var_os("SSLKEYLOGFILE") {
        Some(_) => Err(NetError::KeyLog),
        None => Ok(()),
    }
}

/// Accepts all three protocols from anybody who proves an Ed25519 key.
pub(super) fn server(keypair: &Keypair, gso: bool) -> Result<quinn::ServerConfig, NetError> {
    let mut tls = libp2p_tls::make_server_config(keypair)
        .map_err(|error| NetError::Identity(error.to_string()))?;
    tls.alpn_protocols = [ALPN_BULK, ALPN_CLIENT, ALPN_PROBE].map(<[u8]>::to_vec).to_vec();
    tls.key_log = Arc::new(NoKeyLog);
    // Every connection proves its key anew; a resumed one would rest on an older proof.
    tls.send_tls13_tickets = 0;
    let crypto =
        QuicServerConfig::try_from(tls).map_err(|error| NetError::Identity(error.to_string()))?;
    let mut config = quinn::ServerConfig::with_crypto(Arc::new(crypto));
    config
        .transport_config(transport(gso))
        .max_incoming(BULK_INCOMING_MAX)
        .incoming_buffer_size(BULK_INCOMING_BYTES)
        .incoming_buffer_size_total(BULK_INCOMING_BYTES_TOTAL);
    Ok(config)
}

/// Speaks `alpn` to `server` and to nobody else.
pub(super) fn client(
    keypair: &Keypair,
    server: PeerId,
    alpn: &[u8],
    gso: bool,
) -> Result<quinn::ClientConfig, NetError> {
    let mut tls = libp2p_tls::make_client_config(keypair, Some(server))
        .map_err(|error| NetError::Identity(error.to_string()))?;
    tls.alpn_protocols = vec![alpn.to_vec()];
    tls.key_log = Arc::new(NoKeyLog);
    tls.resumption = Resumption::disabled();
    tls.enable_sni = false;
    let crypto =
        QuicClientConfig::try_from(tls).map_err(|error| NetError::Identity(error.to_string()))?;
    let mut config = quinn::ClientConfig::new(Arc::new(crypto));
    config.transport_config(transport(gso));
    Ok(config)
}

/// A connection starts with a client's limits; a member's are raised once it is known as one.
///
/// The stream window cannot be changed later, so it is a member's; the connection window, which
/// can, bounds what a client may make us hold.
fn transport(gso: bool) -> Arc<quinn::TransportConfig> {
    let mut transport = quinn::TransportConfig::default();
    transport
        .stream_receive_window(VarInt::from_u32(BULK_STREAM_WINDOW))
        .receive_window(VarInt::from_u32(CLIENT_WINDOW))
        .send_window(u64::from(CLIENT_WINDOW))
        .max_concurrent_bidi_streams(VarInt::from_u32(CLIENT_STREAMS_MAX))
        .max_concurrent_uni_streams(VarInt::from_u32(0))
        .datagram_receive_buffer_size(None)
        .keep_alive_interval(Some(BULK_KEEP_ALIVE))
        .max_idle_timeout(IdleTimeout::try_from(BULK_IDLE).ok())
        .enable_segmentation_offload(gso);
    Arc::new(transport)
}

/// Endpoint settings; the reset key outlives a restart, so that peers of a node that was killed
/// learn at their next packet that their connection is gone.
pub(super) fn endpoint(secret: &[u8; 32]) -> quinn::EndpointConfig {
    let key = Sha256::new()
        .chain_update(b"allmend bulk stateless reset key v1")
        .chain_update(secret)
        .finalize();
    let mut config = quinn::EndpointConfig::new(Arc::new(ResetKey(key.into())));
    config.supported_versions(vec![1]);
    config
}

/// HMAC-SHA-256 (RFC 2104) for stateless reset tokens.
struct ResetKey([u8; 32]);

const BLOCK: usize = 64;

impl HmacKey for ResetKey {
    fn sign(&self, data: &[u8], signature: &mut [u8]) {
        let mut inner_pad = [0x36; BLOCK];
        let mut outer_pad = [0x5c; BLOCK];
        for (index, byte) in self.0.iter().enumerate() {
            inner_pad[index] ^= byte;
            outer_pad[index] ^= byte;
        }
        let inner = Sha256::new().chain_update(inner_pad).chain_update(data).finalize();
        let outer = Sha256::new().chain_update(outer_pad).chain_update(inner).finalize();
        let length = signature.len().min(outer.len());
        signature[..length].copy_from_slice(&outer[..length]);
    }

    fn signature_len(&self) -> usize {
        32
    }

    fn verify(&self, data: &[u8], signature: &[u8]) -> Result<(), CryptoError> {
        let mut expected = [0; 32];
        self.sign(data, &mut expected);
        // Reset tokens are compared by the peer; here only our own bytes ever come back.
        if expected == *signature { Ok(()) } else { Err(CryptoError) }
    }
}

/// The Ed25519 key that the other end proved, and the protocol it asked for.
pub(super) fn remote(connection: &quinn::Connection) -> Option<([u8; 32], Vec<u8>)> {
    let identity = connection.peer_identity()?;
    let certificates = identity.downcast::<Vec<CertificateDer<'static>>>().ok()?;
    let certificate = certificates.first()?;
    let peer = libp2p_tls::certificate::parse(certificate).ok()?.peer_id();
    let handshake = connection.handshake_data()?.downcast::<HandshakeData>().ok()?;
    Some((key_of(&peer)?, handshake.protocol?))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 4231, test case 2, with its short key padded by zeros as HMAC does.
    #[test]
    fn reset_tokens_are_hmac_sha_256() {
        let mut key = [0; 32];
        key[..4].copy_from_slice(b"Jefe");
        let mut signature = [0; 32];
        ResetKey(key).sign(b"what do ya want for nothing?", &mut signature);
        assert_eq!(
            data_encoding::HEXLOWER.encode(&signature),
            "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843"
        );
    }
}
