//! What this node believes of all adverts: the newest per member, for as long as it holds.
//!
//! Deliberately no opinion on who is best; that is [`crate::filter`] and [`crate::score`].
//! Format: specs/advert.md.

use std::collections::BTreeMap;

use allmend_protocol::advert::CapacityAdvert;
use allmend_protocol::envelope::Verified;
use allmend_protocol::ids::NodeId;
use allmend_protocol::message::Versions;
use allmend_protocol::roster::{ROSTER_MAX, Roster};
use allmend_protocol::time::{DurationMs, Timestamp};

/// Pairs of contradicting adverts kept as evidence: one per node is enough to convict, and more
/// than so many cheats at once need no further proof.
pub const EVIDENCE_MAX: usize = 256;

/// A node that could not be reached is not asked again for so long, unless it is heard from.
pub const UNREACHABLE_FOR: DurationMs = DurationMs::from_secs(5);

/// Everything known of other nodes' capacity.
#[derive(Clone, Debug, Default)]
pub struct View {
    known: BTreeMap<NodeId, Known>,
    versions: BTreeMap<NodeId, Versions>,
    unreachable: BTreeMap<NodeId, Timestamp>,
    evidence: BTreeMap<NodeId, Equivocation>,
    generation: u64,
}

/// One node's newest advert.
#[derive(Clone, Debug)]
pub struct Known {
    /// The advert.
    pub advert: Verified<CapacityAdvert>,
    /// When it arrived here.
    pub heard: Timestamp,
    /// Until when it is believed, on this node's clock.
    pub believed_until: Timestamp,
}

/// Two adverts of one node for one place in its sequence: a conviction from bytes alone (S7).
#[derive(Clone, Debug)]
pub struct Equivocation {
    /// The first heard.
    pub first: Verified<CapacityAdvert>,
    /// The one that contradicts it.
    pub second: Verified<CapacityAdvert>,
}

/// What became of an advert.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Admission {
    /// It is the newest now and says something new.
    News,
    /// It is the newest now and says what the one before said.
    Repeated,
    /// It is not newer than what is known.
    Stale,
    /// Its signer is no member, its time is not now, or its institution is wrong.
    Refused,
    /// It contradicts another one.
    Equivocation,
}

impl View {
    /// Takes note of `advert` at `now` if a member says it and it is newer than what is known.
    pub fn admit(
        &mut self,
        now: Timestamp,
        roster: &Roster,
        advert: Verified<CapacityAdvert>,
    ) -> Admission {
        let Ok(cert) = roster.node_at(now, advert.signer) else { return Admission::Refused };
        let skew = roster.skew();
        if advert.charter != roster.charter().id()
            || advert.institution != cert.signer
            || advert.jurisdiction != cert.jurisdiction
            || advert.issued > now.plus(skew)
            || advert.expires.plus(skew) <= now
        {
            return Admission::Refused;
        }
        if self.known.len() >= ROSTER_MAX && !self.known.contains_key(&advert.signer) {
            return Admission::Refused;
        }
        let mut admission = Admission::News;
        if let Some(known) = self.known.get(&advert.signer) {
            if advert.order < known.advert.order {
                return Admission::Stale;
            }
            if advert.order == known.advert.order {
                if advert.id() == known.advert.id() {
                    return Admission::Stale;
                }
                let node = advert.signer;
                if self.evidence.len() < EVIDENCE_MAX || self.evidence.contains_key(&node) {
                    let first = known.advert.clone();
                    self.evidence
                        .entry(node)
                        .or_insert_with(|| Equivocation { first, second: advert });
                }
                self.generation += 1;
                return Admission::Equivocation;
            }
            if same_content(&known.advert, &advert) {
                admission = Admission::Repeated;
            }
        }
        if admission == Admission::News {
            self.generation += 1;
        }
        // No longer than the charter's ttl from here: a far expiry must not keep a dead node.
        let ttl = roster.charter().timing.advert_ttl_ms;
        let believed_until = advert.expires.plus(skew).min(now.plus(ttl));
        self.unreachable.remove(&advert.signer);
        self.known.insert(advert.signer, Known { advert, heard: now, believed_until });
        admission
    }

    /// Forgets adverts that do not hold any more: at their end, or when their node has missed one
    /// and cannot be reached either.
    pub fn expire(&mut self, now: Timestamp, advert_every: DurationMs) {
        let before = self.known.len();
        let unreachable = &self.unreachable;
        self.known.retain(|node, known| {
            let silent = known.heard.plus(advert_every.times(2)) <= now;
            now < known.believed_until && !(silent && unreachable.contains_key(node))
        });
        if self.known.len() != before {
            self.generation += 1;
        }
        self.unreachable.retain(|_, until| now < *until);
    }

    /// Takes note of the message versions that `node` reads.
    pub fn set_versions(&mut self, node: NodeId, versions: Versions) {
        if self.versions.len() < ROSTER_MAX || self.versions.contains_key(&node) {
            self.versions.insert(node, versions);
        }
    }

    /// The message versions that `node` reads: as it told us when it connected, else as its advert
    /// says, else the first of everything.
    pub fn versions(&self, node: NodeId) -> Versions {
        self.versions
            .get(&node)
            .or_else(|| self.known.get(&node).map(|known| &known.advert.versions))
            .cloned()
            .unwrap_or_else(Versions::first)
    }

    /// Something was heard from `node` directly.
    pub fn reached(&mut self, node: NodeId) {
        self.unreachable.remove(&node);
    }

    /// Something could not be delivered to `node`.
    pub fn unreached(&mut self, now: Timestamp, node: NodeId) {
        if self.unreachable.len() < ROSTER_MAX {
            self.unreachable.insert(node, now.plus(UNREACHABLE_FOR));
        }
    }

    /// Whether nothing speaks against asking `node` at `now`.
    pub fn is_reachable(&self, now: Timestamp, node: NodeId) -> bool {
        self.unreachable.get(&node).is_none_or(|until| *until <= now)
    }

    /// Whether `node` has contradicted itself.
    pub fn is_distrusted(&self, node: NodeId) -> bool {
        self.evidence.contains_key(&node)
    }

    /// What is known of `node`.
    pub fn known(&self, node: NodeId) -> Option<&Known> {
        self.known.get(&node)
    }

    /// All nodes with a current advert, by id.
    pub fn iter(&self) -> impl Iterator<Item = (&NodeId, &Known)> {
        self.known.iter()
    }

    /// Contradictions found, by node.
    pub fn evidence(&self) -> impl Iterator<Item = (&NodeId, &Equivocation)> {
        self.evidence.iter()
    }

    /// Counts changes that could alter a placement.
    pub fn generation(&self) -> u64 {
        self.generation
    }
}

/// Whether two adverts say the same apart from when they say it.
fn same_content(a: &CapacityAdvert, b: &CapacityAdvert) -> bool {
    // Every field is named, so that a new one cannot be forgotten here.
    let CapacityAdvert {
        federation,
        signer,
        institution,
        charter,
        order: _,
        issued: _,
        expires: _,
        versions,
        jurisdiction,
        devices,
        slots_total,
        slots_free,
        queue_ms,
        models,
        fetches_models,
        datasets,
        adapters,
        rates,
        draining,
        addresses,
    } = a;
    (federation, signer, institution, charter)
        == (&b.federation, &b.signer, &b.institution, &b.charter)
        && (slots_total, slots_free, queue_ms) == (&b.slots_total, &b.slots_free, &b.queue_ms)
        && (fetches_models, rates, draining) == (&b.fetches_models, &b.rates, &b.draining)
        && (jurisdiction, versions) == (&b.jurisdiction, &b.versions)
        && (devices, models, datasets) == (&b.devices, &b.models, &b.datasets)
        && adapters == &b.adapters
        && addresses == &b.addresses
}
