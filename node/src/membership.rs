//! Who may talk to this node: the shared roster, certificates on disk, and the judgement of hellos
//! and gossip (specs/membership.md).

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{SystemTime, UNIX_EPOCH};

use allmend_protocol::bytes::ByteString;
use allmend_protocol::cert::NodeCert;
use allmend_protocol::charter::Charter;
use allmend_protocol::encoding;
use allmend_protocol::envelope::{Envelope, Signed, Verified};
use allmend_protocol::ids::{FederationId, MessageId, NodeId};
use allmend_protocol::message::{AnyMessage, Versions};
use allmend_protocol::roster::Roster;
use allmend_protocol::time::Timestamp;
use anyhow::{Context as _, bail};
use serde::{Deserialize, Serialize};

use crate::config::write_private;
use crate::net::{Admitted, Gossip, Members};

/// The most certificates in one hello: a node's own, its institution's, and its sponsors'.
const HELLO_CERTS_MAX: usize = 8;

/// What a node shows of itself when a connection is made.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Hello {
    federation: FederationId,
    charter: MessageId,
    /// Certificates from the charter's institutions down to the node's own, in that order.
    chain: Vec<ByteString>,
    versions: Versions,
}

/// The roster and this node's own standing, shared between the daemon and the network.
#[derive(Debug)]
pub struct Membership {
    federation: FederationId,
    versions: Versions,
    own: NodeId,
    certs_dir: PathBuf,
    state: RwLock<State>,
}

#[derive(Debug)]
struct State {
    roster: Roster,
    peer_versions: BTreeMap<NodeId, Versions>,
    /// Certificates accepted since the daemon last looked.
    fresh: Vec<AnyMessage>,
}

/// Milliseconds since the Unix epoch by this machine's clock.
pub fn now() -> Timestamp {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Timestamp::from_ms(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

/// Reads the charter at `path`, which must be a genesis charter that verifies.
///
/// # Errors
/// When there is none or it does not verify.
pub fn read_charter(path: &Path) -> anyhow::Result<Verified<Charter>> {
    let bytes = std::fs::read(path).with_context(|| format!("no charter at {}", path.display()))?;
    verify_charter(&bytes).with_context(|| format!("the charter at {}", path.display()))
}

/// Verifies a genesis charter's envelope; its own id is the federation. Later versions need the
/// signatures that governance asks for, which this release does not know yet.
///
/// # Errors
/// When it does not verify or is no genesis charter.
pub fn verify_charter(bytes: &[u8]) -> anyhow::Result<Verified<Charter>> {
    let signed = Signed::<Charter>::from_bytes(bytes)?;
    if signed.unverified().federation.is_some() {
        bail!("a later version of a charter, which this release cannot judge");
    }
    Ok(signed.verify(&Envelope::from_bytes(bytes)?.id().into())?)
}

impl Membership {
    /// Loads charter and certificates from disk; certificates that no longer hold are left out.
    ///
    /// # Errors
    /// When the charter or this node's own certificate is missing or does not verify.
    pub fn load(
        charter: &Path,
        certs_dir: &Path,
        own: NodeId,
        versions: Versions,
    ) -> anyhow::Result<Arc<Membership>> {
        let charter = read_charter(charter)?;
        let mut roster = Roster::new(charter);
        let federation = roster.federation();
        let (mut institutions, mut nodes) = (Vec::new(), Vec::new());
        for message in read_certificates(certs_dir, &federation)? {
            match message {
                AnyMessage::InstitutionCert(cert) => institutions.push(cert),
                AnyMessage::NodeCert(cert) => nodes.push(cert),
                _ => {}
            }
        }
        let at = now();
        // A sponsor may itself have been sponsored: repeat until nothing more is believed.
        for _ in 0..institutions.len() {
            for cert in &institutions {
                let _ = roster.admit_institution(at, cert.clone());
            }
        }
        for cert in nodes {
            let node = cert.node;
            if let Err(error) = roster.admit_node(at, cert) {
                if node == own {
                    bail!("this node's certificate does not hold: {error}");
                }
                tracing::debug!(node = %node.short(), %error, "certificate on disk left out");
            }
        }
        roster.node_at(at, own).context(
            "this node has no valid certificate; `allmend join` or the institution renews it",
        )?;
        Ok(Arc::new(Membership {
            federation,
            versions,
            own,
            certs_dir: certs_dir.to_owned(),
            state: RwLock::new(State { roster, peer_versions: BTreeMap::new(), fresh: Vec::new() }),
        }))
    }

    /// Which federation this is.
    pub fn federation(&self) -> FederationId {
        self.federation
    }

    /// The roster as it is now.
    pub fn roster(&self) -> Roster {
        self.read(|state| state.roster.clone())
    }

    /// Message versions that a connected peer reads.
    pub fn peer_versions(&self, node: NodeId) -> Option<Versions> {
        self.read(|state| state.peer_versions.get(&node).cloned())
    }

    /// Certificates accepted since the last call.
    pub fn take_fresh(&self) -> Vec<AnyMessage> {
        self.write(|state| std::mem::take(&mut state.fresh))
    }

    /// Believes a certificate that this institution has just made, and keeps it on disk.
    ///
    /// # Errors
    /// When it does not hold or the disk refuses.
    pub fn add(&self, message: AnyMessage) -> anyhow::Result<()> {
        self.write(|state| admit(&mut state.roster, now(), &message))?;
        self.keep(&message)?;
        self.write(|state| state.fresh.push(message));
        Ok(())
    }

    /// Every certificate of institutions and nodes that holds now.
    pub fn certificates(&self) -> Vec<AnyMessage> {
        self.read(|state| {
            let institutions =
                state.roster.institutions().filter_map(|entry| entry.cert.clone().map(Into::into));
            institutions.chain(state.roster.nodes().cloned().map(Into::into)).collect()
        })
    }

    /// The chain from the charter's institutions down to `node`, in that order.
    fn chain(roster: &Roster, node: NodeId) -> Vec<AnyMessage> {
        let Some(cert) = roster.nodes().find(|cert| cert.node == node) else {
            return Vec::new();
        };
        let mut chain: Vec<AnyMessage> = vec![cert.clone().into()];
        let mut institution = cert.signer;
        while chain.len() < HELLO_CERTS_MAX {
            let found = roster.institutions().find(|entry| entry.key == institution);
            let Some(cert) = found.and_then(|entry| entry.cert.clone()) else { break };
            institution = cert.signer;
            chain.push(cert.into());
        }
        chain.reverse();
        chain
    }

    fn judge(&self, peer: NodeId, bytes: &[u8]) -> anyhow::Result<Admitted> {
        let hello: Hello = encoding::decode(bytes, crate::net::limits::HELLO_BYTES_MAX)?;
        if hello.federation != self.federation {
            bail!("another federation");
        }
        if hello.chain.len() > HELLO_CERTS_MAX {
            bail!("too many certificates");
        }
        let chain = hello
            .chain
            .iter()
            .map(|bytes| {
                let envelope = Envelope::from_bytes(&bytes.0)?;
                AnyMessage::verify(&envelope, &self.federation)
            })
            .collect::<Result<Vec<_>, _>>()?;
        let at = now();
        let fresh = self.write(|state| -> anyhow::Result<Vec<AnyMessage>> {
            // Tried on a copy: a hello that fails in the end changes nothing.
            let mut roster = state.roster.clone();
            for message in &chain {
                if let AnyMessage::NodeCert(cert) = message
                    && cert.node != peer
                {
                    bail!("a certificate of another node");
                }
                admit(&mut roster, at, message)?;
            }
            roster.node_at(at, peer)?;
            // What the roster declined (an older or foreign certificate) is not kept either.
            let fresh = chain
                .iter()
                .filter(|message| !knows(&state.roster, message) && knows(&roster, message))
                .cloned()
                .collect::<Vec<_>>();
            state.roster = roster;
            state.peer_versions.insert(peer, hello.versions.clone());
            state.fresh.extend(fresh.iter().cloned());
            Ok(fresh)
        })?;
        for message in &fresh {
            if let Err(error) = self.keep(message) {
                tracing::warn!(%error, "certificate not kept on disk");
            }
        }
        let expires = self.read(|state| state.roster.node_expiry(peer)).unwrap_or(Timestamp::ZERO);
        Ok(Admitted { expires_unix_ms: expires.as_ms() })
    }

    fn keep(&self, message: &AnyMessage) -> anyhow::Result<()> {
        let path = self.certs_dir.join(format!("{}.cert", message.id()));
        if !path.exists() {
            write_private(&path, message.envelope().as_bytes())
                .with_context(|| format!("cannot write {}", path.display()))?;
        }
        self.forget_superseded(message)
    }

    /// Removes older certificates of the same subject, so that renewals do not pile up.
    fn forget_superseded(&self, by: &AnyMessage) -> anyhow::Result<()> {
        let subject = |message: &AnyMessage| match message {
            AnyMessage::NodeCert(cert) => Some((0, *cert.node.as_bytes())),
            AnyMessage::InstitutionCert(cert) => Some((1, *cert.institution.as_bytes())),
            _ => None,
        };
        for old in read_certificates(&self.certs_dir, &self.federation)? {
            if old.id() != by.id() && subject(&old).is_some() && subject(&old) == subject(by) {
                let path = self.certs_dir.join(format!("{}.cert", old.id()));
                std::fs::remove_file(&path)
                    .with_context(|| format!("cannot remove {}", path.display()))?;
            }
        }
        Ok(())
    }

    fn read<T>(&self, with: impl FnOnce(&State) -> T) -> T {
        with(&self.state.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn write<T>(&self, with: impl FnOnce(&mut State) -> T) -> T {
        with(&mut self.state.write().unwrap_or_else(PoisonError::into_inner))
    }
}

fn admit(roster: &mut Roster, at: Timestamp, message: &AnyMessage) -> anyhow::Result<()> {
    match message {
        AnyMessage::InstitutionCert(cert) => roster.admit_institution(at, cert.clone())?,
        AnyMessage::NodeCert(cert) => roster.admit_node(at, cert.clone())?,
        other => bail!("a {} is no certificate", other.kind().0),
    }
    Ok(())
}

fn knows(roster: &Roster, message: &AnyMessage) -> bool {
    match message {
        AnyMessage::InstitutionCert(cert) => roster
            .institutions()
            .any(|known| known.cert.as_ref().is_some_and(|known| known.id() == cert.id())),
        AnyMessage::NodeCert(cert) => roster.nodes().any(|known| known.id() == cert.id()),
        _ => true,
    }
}

/// Reads every certificate in `dir`; files that are none are named in a warning and left alone.
///
/// # Errors
/// When the directory cannot be read.
pub fn read_certificates(dir: &Path, federation: &FederationId) -> anyhow::Result<Vec<AnyMessage>> {
    let mut found = Vec::new();
    let entries =
        std::fs::read_dir(dir).with_context(|| format!("cannot read {}", dir.display()))?;
    for entry in entries {
        let path = entry?.path();
        if path.extension().is_none_or(|extension| extension != "cert") {
            continue;
        }
        let message = std::fs::read(&path)
            .map_err(anyhow::Error::from)
            .and_then(|bytes| Ok(Envelope::from_bytes(&bytes)?))
            .and_then(|envelope| Ok(AnyMessage::verify(&envelope, federation)?));
        match message {
            Ok(message) => found.push(message),
            Err(error) => tracing::warn!(path = %path.display(), %error, "not a certificate"),
        }
    }
    // Directory order is the file system's; make it ours.
    found.sort_by_key(AnyMessage::id);
    Ok(found)
}

impl Members for Membership {
    fn hello(&self) -> Vec<u8> {
        let hello = self.read(|state| Hello {
            federation: self.federation,
            charter: state.roster.charter().id(),
            chain: Self::chain(&state.roster, self.own)
                .iter()
                .map(|message| ByteString(message.envelope().as_bytes().to_vec()))
                .collect(),
            versions: self.versions.clone(),
        });
        encoding::encode(&hello)
    }

    fn admit(&self, peer: NodeId, hello: &[u8]) -> Result<Admitted, String> {
        self.judge(peer, hello).map_err(|error| format!("{error:#}"))
    }

    fn validate_gossip(&self, bytes: &[u8]) -> Gossip {
        let advert = Envelope::from_bytes(bytes)
            .and_then(|envelope| AnyMessage::verify(&envelope, &self.federation));
        match advert {
            Ok(AnyMessage::CapacityAdvert(advert)) => {
                let member = self.read(|state| {
                    state
                        .roster
                        .node_at(now(), advert.signer)
                        .is_ok_and(|cert: &Verified<NodeCert>| cert.signer == advert.institution)
                });
                // An advert of a member we have not met yet is no offence of whoever passes it on.
                if member { Gossip::Accept } else { Gossip::Ignore }
            }
            Ok(_) | Err(_) => Gossip::Reject,
        }
    }
}
