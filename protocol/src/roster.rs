//! Who is a member, as far as signatures show (specs/membership.md §4).
//!
//! A pure table filled from the charter and from certificates; it believes nothing that is not
//! signed by somebody it already believes.

use std::collections::BTreeMap;

use crate::cert::{InstitutionCert, NodeCert, ResearcherCert};
use crate::charter::Charter;
use crate::envelope::Verified;
use crate::ids::{FederationId, InstitutionId, MessageId, NodeId, ResearcherId};
use crate::time::{DurationMs, Timestamp};
use crate::units::Jurisdiction;

/// The most institutions and nodes remembered: many times any federation foreseen, and a bound on
/// what a misbehaving sponsor could make others store.
pub const ROSTER_MAX: usize = 4_096;

/// Why a certificate or signer is not accepted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MembershipError {
    /// The signer of a certificate is no institution of this federation.
    #[error("institution {} is not a member", .0.short())]
    UnknownInstitution(InstitutionId),
    /// No certificate is known for the node.
    #[error("node {} has no certificate", .0.short())]
    UnknownNode(NodeId),
    /// No certificate is known for the researcher.
    #[error("researcher {} has no certificate", .0.short())]
    UnknownResearcher(ResearcherId),
    /// The certificate does not hold at the time asked for.
    #[error("certificate not valid at {at} (valid {from} to {to})")]
    NotValidNow {
        /// The time asked for.
        at: Timestamp,
        /// Start of validity.
        from: Timestamp,
        /// End of validity.
        to: Timestamp,
    },
    /// The certificate relies on another charter.
    #[error("certificate relies on charter {}, not on ours", .0.short())]
    OtherCharter(MessageId),
    /// The charter lets nobody sponsor institutions.
    #[error("this charter admits institutions only by a new version")]
    NoSponsors,
    /// The sponsor is itself admitted for less long.
    #[error("certificate outlives its sponsor's, which expires at {until}")]
    OutlivesSponsor {
        /// When the sponsor's own admission ends.
        until: Timestamp,
    },
    /// The charter has expired: nobody is admitted any more.
    #[error("the charter expired at {0}")]
    CharterExpired(Timestamp),
    /// The table is full.
    #[error("too many members")]
    Full,
}

/// One institution as the roster knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InstitutionEntry {
    /// Its key.
    pub key: InstitutionId,
    /// Its name.
    pub name: String,
    /// The law it lives under.
    pub jurisdiction: Jurisdiction,
    /// The admission, for those that the charter does not list.
    pub cert: Option<Verified<InstitutionCert>>,
}

/// Members of one federation.
#[derive(Clone, Debug)]
pub struct Roster {
    charter: Verified<Charter>,
    institutions: BTreeMap<InstitutionId, InstitutionEntry>,
    nodes: BTreeMap<NodeId, Verified<NodeCert>>,
}

impl Roster {
    /// A roster of the institutions that `charter` lists.
    pub fn new(charter: Verified<Charter>) -> Roster {
        let institutions = charter
            .institutions
            .iter()
            .map(|member| {
                let entry = InstitutionEntry {
                    key: member.key,
                    name: member.name.clone(),
                    jurisdiction: member.jurisdiction,
                    cert: None,
                };
                (member.key, entry)
            })
            .collect();
        Roster { charter, institutions, nodes: BTreeMap::new() }
    }

    /// The charter.
    pub fn charter(&self) -> &Verified<Charter> {
        &self.charter
    }

    /// Which federation this is.
    pub fn federation(&self) -> FederationId {
        self.charter.federation.unwrap_or_else(|| self.charter.id().into())
    }

    /// The clock skew that the charter allows.
    pub fn skew(&self) -> DurationMs {
        self.charter.skew_ms
    }

    /// Admits an institution on a member's word. While an admission holds, only its own sponsor
    /// can replace it, by one that expires later.
    ///
    /// # Errors
    /// [`MembershipError`] when the sponsor is no member, the charter lets nobody sponsor, or the
    /// certificate does not hold at `now` or outlives the sponsor's own.
    pub fn admit_institution(
        &mut self,
        now: Timestamp,
        cert: Verified<InstitutionCert>,
    ) -> Result<(), MembershipError> {
        self.check_charter(now, cert.charter)?;
        if !self.charter.members_may_sponsor {
            return Err(MembershipError::NoSponsors);
        }
        let sponsor = self.institution_at(now, cert.signer)?;
        // Otherwise two institutions admitted for a week could prolong each other for ever.
        if let Some(until) = sponsor.cert.as_ref().map(|own| own.expires)
            && until < cert.expires
        {
            return Err(MembershipError::OutlivesSponsor { until });
        }
        self.check_window(now, cert.not_before, cert.expires)?;
        let keep = |entry: &InstitutionEntry| match &entry.cert {
            None => true, // listed in the charter: no certificate can change that
            Some(known) => {
                let holds = self.check_window(now, known.not_before, known.expires).is_ok();
                holds && (known.signer != cert.signer || known.expires >= cert.expires)
            }
        };
        match self.institutions.get(&cert.institution) {
            Some(entry) if keep(entry) => return Ok(()),
            None if self.institutions.len() >= ROSTER_MAX => return Err(MembershipError::Full),
            _ => {}
        }
        let entry = InstitutionEntry {
            key: cert.institution,
            name: cert.name.clone(),
            jurisdiction: cert.jurisdiction,
            cert: Some(cert),
        };
        self.institutions.insert(entry.key, entry);
        Ok(())
    }

    /// Admits a node on its institution's word; of one institution's certificates, the one that
    /// expires last is kept. While it holds, no other institution can claim the node.
    ///
    /// # Errors
    /// [`MembershipError`] when the institution is no member or the certificate does not hold.
    pub fn admit_node(
        &mut self,
        now: Timestamp,
        cert: Verified<NodeCert>,
    ) -> Result<(), MembershipError> {
        self.check_charter(now, cert.charter)?;
        self.institution_at(now, cert.signer)?;
        self.check_window(now, cert.not_before, cert.expires)?;
        match self.nodes.get(&cert.node) {
            Some(known)
                if self.node_at(now, cert.node).is_ok()
                    && (known.signer != cert.signer || known.expires >= cert.expires) =>
            {
                return Ok(());
            }
            None if self.nodes.len() >= ROSTER_MAX => return Err(MembershipError::Full),
            _ => {}
        }
        self.nodes.insert(cert.node, cert);
        Ok(())
    }

    /// The certificate under which `node` is a member at `at`.
    ///
    /// # Errors
    /// [`MembershipError`] when there is none, or it does not hold at `at`.
    pub fn node_at(
        &self,
        at: Timestamp,
        node: NodeId,
    ) -> Result<&Verified<NodeCert>, MembershipError> {
        let cert = self.nodes.get(&node).ok_or(MembershipError::UnknownNode(node))?;
        self.institution_at(at, cert.signer)?;
        self.check_window(at, cert.not_before, cert.expires)?;
        Ok(cert)
    }

    /// Checks that `cert` vouches for its researcher at `at`.
    ///
    /// # Errors
    /// [`MembershipError`] when its signer is no member or it does not hold at `at`.
    pub fn check_researcher(
        &self,
        at: Timestamp,
        cert: &ResearcherCert,
    ) -> Result<(), MembershipError> {
        if cert.charter != self.charter.id() {
            return Err(MembershipError::OtherCharter(cert.charter));
        }
        self.institution_at(at, cert.signer)?;
        self.check_window(at, cert.not_before, cert.expires)
    }

    /// The member institution with that key, if it is one at `at`.
    ///
    /// # Errors
    /// [`MembershipError::UnknownInstitution`], or [`MembershipError::NotValidNow`] for an
    /// admission that does not hold at `at`.
    pub fn institution_at(
        &self,
        at: Timestamp,
        key: InstitutionId,
    ) -> Result<&InstitutionEntry, MembershipError> {
        let entry = self.institutions.get(&key).ok_or(MembershipError::UnknownInstitution(key))?;
        if let Some(cert) = &entry.cert {
            self.check_window(at, cert.not_before, cert.expires)?;
        }
        Ok(entry)
    }

    /// The end of the chain under which `node` is a member: no certificate of it holds longer.
    pub fn node_expiry(&self, node: NodeId) -> Option<Timestamp> {
        let cert = self.nodes.get(&node)?;
        let institution = self.institutions.get(&cert.signer)?;
        let admission = institution.cert.as_ref().map_or(cert.expires, |cert| cert.expires);
        Some(cert.expires.min(admission))
    }

    /// All institutions by key.
    pub fn institutions(&self) -> impl Iterator<Item = &InstitutionEntry> {
        self.institutions.values()
    }

    /// All nodes by key.
    pub fn nodes(&self) -> impl Iterator<Item = &Verified<NodeCert>> {
        self.nodes.values()
    }

    fn check_charter(&self, now: Timestamp, relied_on: MessageId) -> Result<(), MembershipError> {
        if relied_on != self.charter.id() {
            return Err(MembershipError::OtherCharter(relied_on));
        }
        // Expiry of the charter stops admissions, not jobs.
        if now >= self.charter.expires {
            return Err(MembershipError::CharterExpired(self.charter.expires));
        }
        Ok(())
    }

    fn check_window(
        &self,
        at: Timestamp,
        from: Timestamp,
        to: Timestamp,
    ) -> Result<(), MembershipError> {
        if from <= at.plus(self.skew()) && at < to {
            Ok(())
        } else {
            Err(MembershipError::NotValidNow { at, from, to })
        }
    }
}
