//! The erasable register of a home node: names behind pseudonymous keys, and which invitations
//! have been used. Never in the log; erasing an entry leaves every log verifying.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use allmend_protocol::bytes::ByteString;
use allmend_protocol::cert::ResearcherCert;
use allmend_protocol::envelope::{Signed, Verified};
use allmend_protocol::ids::{FederationId, PublicKey, ResearcherId};
use allmend_protocol::time::Timestamp;
use anyhow::Context as _;
use serde::{Deserialize, Serialize};

use crate::config::write_private;

/// The most researchers of one home node: a large university; beyond it the file would want to be
/// a database.
const RESEARCHERS_MAX: usize = 100_000;
/// Used invitations remembered; older ones have expired long before so many are made.
const NONCES_MAX: usize = 100_000;

/// Names and used invitations, in one private file.
#[derive(Debug)]
pub(crate) struct Register {
    path: PathBuf,
    content: Content,
    certs: BTreeMap<ResearcherId, Verified<ResearcherCert>>,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Content {
    researchers: BTreeMap<ResearcherId, Entry>,
    invitations_used: BTreeMap<String, Used>,
    serial: u64,
}

/// By whom an invitation was used, until it would have expired anyway. The same key may ask again:
/// the first answer may have been lost.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Used {
    by: PublicKey,
    expires: Timestamp,
}

/// One researcher.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Entry {
    /// The person's name, as given when joining.
    pub(crate) name: String,
    /// The certificate's envelope.
    cert: ByteString,
    /// When they joined.
    pub(crate) since: Timestamp,
}

impl Register {
    /// Reads the register at `path`; an absent one is empty.
    pub(crate) fn load(path: PathBuf, federation: FederationId) -> anyhow::Result<Register> {
        let content: Content = match std::fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes)
                .with_context(|| format!("{} is damaged", path.display()))?,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Content::default(),
            Err(error) => {
                return Err(error).with_context(|| format!("cannot read {}", path.display()));
            }
        };
        let mut certs = BTreeMap::new();
        for (key, entry) in &content.researchers {
            let cert = Signed::<ResearcherCert>::from_bytes(&entry.cert.0)
                .and_then(|signed| signed.verify(&federation))
                .with_context(|| format!("{}: certificate of {}", path.display(), key.short()))?;
            certs.insert(*key, cert);
        }
        Ok(Register { path, content, certs })
    }

    /// The researcher's certificate.
    pub(crate) fn cert(&self, key: ResearcherId) -> Option<&Verified<ResearcherCert>> {
        self.certs.get(&key)
    }

    /// All researchers.
    pub(crate) fn researchers(&self) -> impl Iterator<Item = (ResearcherId, &Entry)> {
        self.content.researchers.iter().map(|(key, entry)| (*key, entry))
    }

    /// Keys of all researchers.
    pub(crate) fn keys(&self) -> BTreeSet<[u8; 32]> {
        self.content.researchers.keys().map(|key| *key.as_bytes()).collect()
    }

    /// Enters a researcher.
    pub(crate) fn add(
        &mut self,
        name: String,
        cert: Verified<ResearcherCert>,
        now: Timestamp,
    ) -> anyhow::Result<()> {
        anyhow::ensure!(self.certs.len() < RESEARCHERS_MAX, "the register is full");
        let bytes = ByteString(cert.envelope().as_bytes().to_vec());
        let entry = Entry { name, cert: bytes, since: now };
        self.content.researchers.insert(cert.researcher, entry);
        self.certs.insert(cert.researcher, cert);
        self.save()
    }

    /// Forgets a researcher; says whether there was one.
    pub(crate) fn erase(&mut self, key: ResearcherId) -> anyhow::Result<bool> {
        let there = self.content.researchers.remove(&key).is_some();
        self.certs.remove(&key);
        self.save()?;
        Ok(there)
    }

    /// Uses an invitation up; says false when another key has used it before.
    pub(crate) fn use_invitation(
        &mut self,
        nonce: &[u8; 16],
        by: PublicKey,
        expires: Timestamp,
        now: Timestamp,
    ) -> anyhow::Result<bool> {
        // Expired ones are refused by their date and need not be remembered.
        self.content.invitations_used.retain(|_, used| used.expires > now);
        anyhow::ensure!(self.content.invitations_used.len() < NONCES_MAX, "too many invitations");
        let nonce = data_encoding::HEXLOWER.encode(nonce);
        if let Some(used) = self.content.invitations_used.get(&nonce) {
            return Ok(used.by == by);
        }
        self.content.invitations_used.insert(nonce, Used { by, expires });
        self.save()?;
        Ok(true)
    }

    /// A certificate serial that this register has not given out before.
    pub(crate) fn next_serial(&mut self) -> anyhow::Result<u64> {
        self.content.serial += 1;
        self.save()?;
        Ok(self.content.serial)
    }

    fn save(&self) -> anyhow::Result<()> {
        let bytes = serde_json::to_vec_pretty(&self.content)?;
        write_private(&self.path, &bytes)
            .with_context(|| format!("cannot write {}", self.path.display()))
    }
}
