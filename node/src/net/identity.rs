//! One Ed25519 key, three names: signing key, libp2p identity, [`NodeId`].

use allmend_protocol::ids::NodeId;
use ed25519_dalek::{SigningKey, VerifyingKey};
use libp2p::{
    PeerId,
    identity::{Keypair, PublicKey, ed25519},
};

use super::NetError;

/// Multihash code under which libp2p stores small public keys verbatim.
const IDENTITY_HASH: u64 = 0;

/// The libp2p identity of `key`.
pub(super) fn keypair(key: &SigningKey) -> Result<Keypair, NetError> {
    let mut secret = zeroize::Zeroizing::new(key.to_bytes());
    Keypair::ed25519_from_bytes(&mut secret[..])
        .map_err(|error| NetError::Identity(error.to_string()))
}

/// The Ed25519 key behind `peer`, or `None` for another kind of key or a weak one.
///
/// libp2p verifies signatures of small-order keys, for which anybody can sign; we admit none.
pub(super) fn key_of(peer: &PeerId) -> Option<[u8; 32]> {
    let hash = peer.as_ref();
    if hash.code() != IDENTITY_HASH {
        return None;
    }
    let public = PublicKey::try_decode_protobuf(hash.digest()).ok()?;
    let bytes = public.try_into_ed25519().ok()?.to_bytes();
    let strict = VerifyingKey::from_bytes(&bytes).ok()?;
    (!strict.is_weak()).then_some(bytes)
}

/// As [`key_of`], as a node's id.
pub(super) fn node_of(peer: &PeerId) -> Option<NodeId> {
    key_of(peer).map(NodeId::from_bytes)
}

/// The libp2p name of `node`, or `None` if its bytes are no curve point.
pub fn peer_of(node: &NodeId) -> Option<PeerId> {
    let key = ed25519::PublicKey::try_from_bytes(node.as_bytes()).ok()?;
    Some(PublicKey::from(key).to_peer_id())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_one_key_agree() {
        let key = SigningKey::from_bytes(&[7; 32]);
        let peer = keypair(&key).unwrap().public().to_peer_id();
        let node = node_of(&peer).unwrap();
        assert_eq!(node.as_bytes(), key.verifying_key().as_bytes());
        assert_eq!(peer_of(&node), Some(peer));
    }

    #[test]
    fn weak_keys_have_no_name() {
        let mut identity_point = [0; 32];
        identity_point[0] = 1;
        let peer = peer_of(&NodeId::from_bytes(identity_point)).unwrap();
        assert_eq!(key_of(&peer), None);
    }
}
