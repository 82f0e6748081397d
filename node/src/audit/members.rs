//! Who was a member when, from charters and certificates found in the logs; and with that, every
//! entry verified (specs/membership.md §4).

use std::collections::{BTreeMap, BTreeSet};

use allmend_protocol::cert::{InstitutionCert, NodeCert, ResearcherCert};
use allmend_protocol::charter::Charter;
use allmend_protocol::envelope::{Envelope, EnvelopeError, Verified};
use allmend_protocol::ids::{FederationId, InstitutionId, MessageId, NodeId, PublicKey};
use allmend_protocol::message::{AnyMessage, Kind, Message};
use allmend_protocol::time::{DurationMs, Timestamp};
use serde::Deserialize;

use super::log_reader::{Entry, ReadLog};
use super::report::{Fault, Notes, Place};

/// How many sponsors may stand between an institution and the charter. Longer chains than any
/// federation has are taken for none.
const SPONSORS_MAX: u8 = 16;

/// Charters and certificates whose signatures hold.
#[derive(Debug, Default)]
pub(super) struct Members {
    federation: Option<FederationId>,
    charters: BTreeMap<MessageId, Verified<Charter>>,
    institutions: BTreeMap<InstitutionId, BTreeMap<MessageId, Verified<InstitutionCert>>>,
    nodes: BTreeMap<NodeId, BTreeMap<MessageId, Verified<NodeCert>>>,
    researchers: BTreeMap<MessageId, Verified<ResearcherCert>>,
}

/// An entry that holds a message with a strict signature, in the log of its place.
#[derive(Debug)]
pub(super) struct Said<'a> {
    pub(super) log: &'a ReadLog,
    pub(super) entry: &'a Entry,
    pub(super) message: AnyMessage,
}

impl<'a> Said<'a> {
    pub(super) fn place(&self) -> Place<'a> {
        self.log.place(self.entry)
    }
}

/// Of any body, which federation it names; for logs in which no charter is found.
#[derive(Deserialize)]
struct Named {
    federation: FederationId,
}

impl Members {
    pub(super) fn collect(logs: &[ReadLog], notes: &mut Notes) -> Self {
        let mut members = Self::default();
        for log in logs {
            members.take_genesis(log, notes);
        }
        let Some(federation) = members.federation else {
            for log in logs {
                notes.find_log(&log.name, Fault::Federation, "no charter is among its blobs");
            }
            members.federation = logs.iter().flat_map(|log| &log.entries).find_map(|entry| {
                let body = entry.envelope.body();
                Some(serde_ipld_dagcbor::from_slice::<Named>(body).ok()?.federation)
            });
            return members;
        };
        for log in logs {
            let entries = log.entries.iter().map(|entry| &entry.envelope);
            for envelope in log.blobs.iter().chain(entries) {
                members.take(&federation, envelope);
            }
        }
        members
    }

    /// The first genesis charter found names the federation; every log must hold the same.
    fn take_genesis(&mut self, log: &ReadLog, notes: &mut Notes) {
        for envelope in &log.blobs {
            let federation = FederationId::from(envelope.id());
            let Some(charter) = open::<Charter>(envelope, &federation) else { continue };
            if charter.federation.is_some() {
                continue;
            }
            match self.federation {
                Some(known) if known != federation => {
                    let why = format!(
                        "its charter founds federation {}, that of the other logs {}",
                        federation.short(),
                        known.short()
                    );
                    notes.find_log(&log.name, Fault::Federation, why);
                }
                _ => {
                    self.federation = Some(federation);
                    self.charters.insert(charter.id(), charter);
                }
            }
        }
    }

    fn take(&mut self, federation: &FederationId, envelope: &Envelope) {
        let kind = envelope.payload_type();
        if kind.contains(".institution-cert.") {
            if let Some(cert) = open::<InstitutionCert>(envelope, federation) {
                self.institutions.entry(cert.institution).or_default().insert(cert.id(), cert);
            }
        } else if kind.contains(".node-cert.") {
            if let Some(cert) = open::<NodeCert>(envelope, federation) {
                self.nodes.entry(cert.node).or_default().insert(cert.id(), cert);
            }
        } else if kind.contains(".researcher-cert.")
            && let Some(cert) = open::<ResearcherCert>(envelope, federation)
        {
            self.researchers.insert(cert.id(), cert);
        }
    }

    pub(super) const fn federation(&self) -> Option<FederationId> {
        self.federation
    }

    pub(super) fn knows_charter(&self, charter: MessageId) -> bool {
        self.charters.contains_key(&charter)
    }

    /// The clock skew of the charter; that of new charters where there is none.
    pub(super) fn skew(&self) -> DurationMs {
        let charter = self.charters.values().next();
        charter.map_or(allmend_protocol::charter::SKEW_DEFAULT, |charter| charter.skew_ms)
    }

    /// After a grant's `settle_by`, home may still count for so long.
    pub(super) fn settle_slack(&self) -> DurationMs {
        let charter = self.charters.values().next();
        charter.map_or(DurationMs::from_secs(86_400), |charter| charter.timing.settle_slack_ms)
    }

    /// The certificate under which `node` was a member at `at`.
    pub(super) fn node_at(&self, node: NodeId, at: Timestamp) -> Option<&Verified<NodeCert>> {
        self.nodes.get(&node)?.values().find(|cert| {
            cert.holds_at(at, self.skew())
                && self.knows_charter(cert.charter)
                && self.is_member(cert.signer, at, SPONSORS_MAX)
        })
    }

    /// The certificate of `node` that expires last, whether it holds or not; for naming it.
    pub(super) fn last_cert_of(&self, node: NodeId) -> Option<&Verified<NodeCert>> {
        self.nodes.get(&node)?.values().max_by_key(|cert| cert.expires)
    }

    pub(super) fn researcher(&self, cert: MessageId) -> Option<&Verified<ResearcherCert>> {
        self.researchers.get(&cert)
    }

    pub(super) fn vouches(&self, cert: &ResearcherCert, at: Timestamp) -> bool {
        cert.holds_at(at, self.skew())
            && self.knows_charter(cert.charter)
            && self.is_member(cert.signer, at, SPONSORS_MAX)
    }

    pub(super) fn institution_name(&self, institution: InstitutionId) -> Option<String> {
        let listed = self.charters.values().flat_map(|charter| &charter.institutions);
        let listed = listed.filter(|member| member.key == institution).map(|m| m.name.clone());
        let admitted = self.institutions.get(&institution).into_iter().flat_map(BTreeMap::values);
        listed.chain(admitted.map(|cert| cert.name.clone())).next()
    }

    /// Whether these are all known nodes, and each institution has one of them.
    pub(super) fn all_among(&self, present: &BTreeSet<NodeId>) -> bool {
        let listed = self.charters.values().flat_map(|charter| &charter.institutions);
        let institutions: BTreeSet<_> =
            listed.map(|member| member.key).chain(self.institutions.keys().copied()).collect();
        let certs = present.iter().filter_map(|node| self.nodes.get(node));
        let of_present: BTreeSet<_> =
            certs.flat_map(BTreeMap::values).map(|cert| cert.signer).collect();
        self.nodes.keys().all(|node| present.contains(node)) && institutions.is_subset(&of_present)
    }

    fn is_member(&self, institution: InstitutionId, at: Timestamp, sponsors: u8) -> bool {
        let lists = |charter: &Verified<Charter>| {
            charter.institutions.iter().any(|member| member.key == institution)
        };
        if self.charters.values().any(lists) {
            return true;
        }
        let Some(certs) = self.institutions.get(&institution).filter(|_| sponsors > 0) else {
            return false;
        };
        certs.values().any(|cert| {
            let charter = self.charters.get(&cert.charter);
            charter.is_some_and(|charter| charter.members_may_sponsor)
                && cert.holds_at(at, self.skew())
                && self.is_member(cert.signer, cert.not_before, sponsors - 1)
        })
    }

    /// Verifies every entry of every log, and that it is there by right.
    pub(super) fn verify_messages<'a>(
        &self,
        logs: &'a [ReadLog],
        notes: &mut Notes,
    ) -> Vec<Said<'a>> {
        let mut verified = Vec::new();
        for log in logs {
            for (index, kind) in &log.unreadable {
                let place = Place { log: &log.name, entry: Some(*index), kind: Some(kind) };
                notes.find(&place, Fault::Message, "the entry is not a strict envelope");
            }
            let mut seen = BTreeSet::new();
            for entry in &log.entries {
                let Some(message) = self.verify(log, entry, notes) else { continue };
                let said = Said { log, entry, message };
                if !seen.insert(said.message.id()) && once(&said.message) {
                    notes.find(&said.place(), Fault::Misplaced, "the message is in the log twice");
                    continue;
                }
                if self.belongs(&said, notes) {
                    verified.push(said);
                }
            }
        }
        verified
    }

    fn verify(&self, log: &ReadLog, entry: &Entry, notes: &mut Notes) -> Option<AnyMessage> {
        let federation = self.federation?;
        match AnyMessage::verify(&entry.envelope, &federation) {
            Ok(message) => Some(message),
            Err(error) => {
                let what = match error {
                    EnvelopeError::WrongFederation => Fault::Federation,
                    _ => Fault::Message,
                };
                notes.find(&log.place(entry), what, format!("the message is refused: {error}"));
                None
            }
        }
    }

    /// Whether the message has its place in this log and its signer was a member.
    fn belongs(&self, said: &Said<'_>, notes: &mut Notes) -> bool {
        let place = said.place();
        let by_home = |home: NodeId| Some(home) == said.log.node;
        let (by_right, charter, member) = match &said.message {
            AnyMessage::JobSpec(job) => (by_home(job.home), Some(job.charter), None),
            AnyMessage::Delegation(_)
            | AnyMessage::ResearcherCert(_)
            | AnyMessage::NodeCert(_)
            | AnyMessage::InstitutionCert(_)
            | AnyMessage::Charter(_)
            | AnyMessage::LogSuccession(_)
            | AnyMessage::Cancel(_) => (true, None, None),
            AnyMessage::Grant(grant) => own(said, grant.charter, Some(grant.issued)),
            AnyMessage::Assign(assign) => own(said, assign.charter, Some(assign.issued)),
            AnyMessage::Lease(lease) => own(said, lease.charter, Some(lease.issued)),
            // A person signed it; it lies in the log of the node that holds the dataset.
            AnyMessage::Approval(approval) => (by_home(approval.node), None, None),
            AnyMessage::Contract(contract) => own(said, contract.charter, Some(contract.issued)),
            AnyMessage::GateReport(report) => own(said, report.charter, Some(report.issued)),
            // Whoever hears a recall logs it, too.
            AnyMessage::Recall(recall) => {
                let signed = (recall.signer, recall.issued);
                (true, Some(recall.charter), Some(signed))
            }
            // Whoever recalls logs everybody's answer; which recall it is about is looked at later.
            AnyMessage::RecallAnswer(answer) => {
                (true, Some(answer.charter), Some((answer.signer, answer.issued)))
            }
            // Whoever is no member any more still has to delete.
            AnyMessage::Deletion(deletion) => own(said, deletion.charter, None),
            // Both are judged by who was a member when the lease was issued, or the grant.
            AnyMessage::Receipt(receipt) => own(said, receipt.charter, None),
            AnyMessage::Settlement(settlement) => own(said, settlement.charter, None),
            AnyMessage::Invitation(_)
            | AnyMessage::JoinRequest(_)
            | AnyMessage::CapacityAdvert(_)
            | AnyMessage::Probe(_)
            | AnyMessage::Offer(_)
            | AnyMessage::RefusalV1(_)
            | AnyMessage::Refusal(_)
            | AnyMessage::Pending(_)
            | AnyMessage::LeaseRenewal(_) => {
                notes.find(&place, Fault::Misplaced, "messages of this kind are never logged");
                return false;
            }
        };
        if !by_right {
            let why =
                format!("signed by {}, it belongs into another log", said.message.signer().short());
            notes.find(&place, Fault::Misplaced, why);
            return false;
        }
        let unknown = |charter: &MessageId| !self.knows_charter(*charter);
        if let Some(charter) = charter.filter(unknown).filter(|_| !self.charters.is_empty()) {
            let why = format!("it relies on charter {}, which is not there", charter.short());
            notes.find(&place, Fault::Membership, why);
        }
        if let Some((node, at)) = member
            && self.node_at(node, at).is_none()
        {
            if notes.is_damaged(&said.log.name) {
                notes.skip();
            } else {
                let why = format!("node {} had no certificate that held at {at}", node.short());
                notes.find(&place, Fault::Membership, why);
            }
        }
        true
    }
}

type Place3 = (bool, Option<MessageId>, Option<(NodeId, Timestamp)>);

/// A message that only the log's own node may put there.
fn own(said: &Said<'_>, charter: MessageId, at: Option<Timestamp>) -> Place3 {
    let signer = said.message.signer();
    let by_right = said.log.node.map(PublicKey::from) == Some(signer);
    (by_right, Some(charter), at.map(|at| (signer.into(), at)))
}

/// Messages that a log holds once; certificates may be repeated.
fn once(message: &AnyMessage) -> bool {
    matches!(
        message.kind().0,
        Kind::JobSpec
            | Kind::Grant
            | Kind::Assign
            | Kind::Lease
            | Kind::Receipt
            | Kind::Settlement
            | Kind::LogSuccession
            | Kind::Approval
            | Kind::Contract
            | Kind::GateReport
            | Kind::Recall
            | Kind::RecallAnswer
            | Kind::Deletion
    )
}

fn open<T: Message>(envelope: &Envelope, federation: &FederationId) -> Option<Verified<T>> {
    envelope.open::<T>().ok()?.verify(federation).ok()
}
