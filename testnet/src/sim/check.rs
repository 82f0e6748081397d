//! The global checker: sees every durable append of every node and every home's decisions, and
//! knows the design's safety rules (S1–S7) independently of the code that keeps them.

use std::collections::{BTreeMap, BTreeSet};

use allmend_protocol::advert::AdvertOrder;
use allmend_protocol::envelope::Verified;
use allmend_protocol::grant::{Assign, Grant};
use allmend_protocol::ids::{InstitutionId, MessageId, NodeId};
use allmend_protocol::job::{InferWork, JobSpec};
use allmend_protocol::lease::{Fence, Lease};
use allmend_protocol::message::AnyMessage;
use allmend_protocol::receipt::{Receipt, Settlement};
use allmend_protocol::time::{DurationMs, Timestamp};
use allmend_scheduler::io::{Entry, Record};
use allmend_scheduler::policy::{OperatorPolicy, Question};

use super::federation::{Federation, SKEW_MS};

const SKEW: DurationMs = DurationMs::from_ms(SKEW_MS);

/// A rule that the run has broken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// Which rule, e.g. `S2`.
    pub rule: &'static str,
    /// How.
    pub what: String,
}

impl std::fmt::Display for Violation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.rule, self.what)
    }
}

type Verdict = Result<(), Violation>;

fn broken(rule: &'static str, what: impl Into<String>) -> Verdict {
    Err(Violation { rule, what: what.into() })
}

/// What all logs say together.
#[derive(Debug, Default)]
pub(crate) struct Checker {
    jobs: BTreeMap<MessageId, Verified<JobSpec>>,
    grants: BTreeMap<MessageId, Verified<Grant>>,
    assigns: BTreeMap<(MessageId, u16), Verified<Assign>>,
    leases: BTreeMap<MessageId, Verified<Lease>>,
    leases_per_grant: BTreeMap<MessageId, u16>,
    lease_of_attempt: BTreeMap<(MessageId, u16), MessageId>,
    fences: BTreeMap<(NodeId, Fence), MessageId>,
    /// Live lease of each slot.
    slots: BTreeMap<(NodeId, u32, u16), MessageId>,
    receipts: BTreeMap<MessageId, Verified<Receipt>>,
    settlements: BTreeMap<MessageId, Verified<Settlement>>,
    attempts_over: BTreeSet<(MessageId, u16)>,
    jobs_over: BTreeSet<MessageId>,
    adverts: BTreeMap<(NodeId, AdvertOrder), MessageId>,
    debits: BTreeMap<InstitutionId, u128>,
    credits: BTreeMap<InstitutionId, u128>,
}

impl Checker {
    /// A node appends `entry` when its clock says `clock` and its owner's policy is `policy`.
    pub(crate) fn appended(
        &mut self,
        federation: &Federation,
        node: usize,
        policy: &OperatorPolicy,
        entry: &Entry,
    ) -> Verdict {
        match entry {
            Entry::Leaf(AnyMessage::JobSpec(job)) => {
                self.jobs.insert(job.id(), job.clone());
            }
            Entry::Leaf(AnyMessage::Grant(grant)) => {
                self.grants.insert(grant.id(), grant.clone());
            }
            Entry::Leaf(AnyMessage::Assign(assign)) => return self.assign(assign),
            Entry::Leaf(AnyMessage::Lease(lease)) => {
                return self.lease(federation, node, policy, lease);
            }
            Entry::Leaf(AnyMessage::Receipt(receipt)) => return self.receipt(receipt),
            Entry::Leaf(AnyMessage::Settlement(settlement)) => {
                return self.settlement(federation, settlement);
            }
            Entry::Private(Record::AttemptOver { job, attempt, .. }) => {
                self.attempts_over.insert((*job, *attempt));
            }
            Entry::Private(Record::JobOver { job, .. }) if !self.jobs_over.insert(*job) => {
                return broken("jobs", format!("job {} is over twice", job.short()));
            }
            _ => {}
        }
        Ok(())
    }

    /// A node publishes an advert: one per place in its sequence (S7).
    pub(crate) fn published(
        &mut self,
        advert: &Verified<allmend_protocol::advert::CapacityAdvert>,
    ) -> Verdict {
        let place = (advert.signer, advert.order);
        match self.adverts.insert(place, advert.id()) {
            Some(other) if other != advert.id() => {
                broken("S7", format!("two adverts of {} for one place", advert.signer.short()))
            }
            _ => Ok(()),
        }
    }

    /// A home opens the stream of an attempt: it follows only what it has not given up (S5).
    pub(crate) fn followed(
        &self,
        clock: Timestamp,
        job: MessageId,
        attempt: u16,
        again: bool,
    ) -> Verdict {
        if self.attempts_over.contains(&(job, attempt)) || self.jobs_over.contains(&job) {
            return broken(
                "S5",
                format!("attempt {attempt} of {} is followed though over", job.short()),
            );
        }
        let assign = self.assigns.values().find(|a| a.job == job && a.attempt == attempt);
        match assign {
            // A restarted home takes up what it accepted in time before.
            Some(assign) if again || clock <= assign.respond_by.plus(SKEW).plus(SKEW) => Ok(()),
            Some(_) => broken("S5", format!("a late lease for {} is followed", job.short())),
            None => broken("S5", format!("a lease for {} answers nothing", job.short())),
        }
    }

    /// What a home must have set aside: the caps of the grants in its journal without settlement.
    pub(crate) fn escrow_in<'a>(entries: impl Iterator<Item = &'a Entry>) -> u128 {
        let mut open = BTreeMap::new();
        for entry in entries {
            match entry {
                Entry::Leaf(AnyMessage::Grant(grant)) => {
                    open.insert(grant.id(), u128::from(grant.cap.as_micro()));
                }
                Entry::Leaf(AnyMessage::Settlement(settlement)) => {
                    open.remove(&settlement.grant);
                }
                _ => {}
            }
        }
        open.values().sum()
    }

    /// S6 over all logs: what institutions pay is what institutions are paid.
    pub(crate) fn balance(&self) -> Verdict {
        let sum = |sides: &BTreeMap<InstitutionId, u128>| sides.values().sum::<u128>();
        let (debits, credits) = (sum(&self.debits), sum(&self.credits));
        if debits == credits {
            Ok(())
        } else {
            broken("S6", format!("{debits} debited, {credits} credited"))
        }
    }

    /// The grants that nobody has settled.
    pub(crate) fn unsettled(&self) -> Vec<MessageId> {
        let open = |grant: &&MessageId| !self.settlements.contains_key(*grant);
        self.grants.keys().filter(open).copied().collect()
    }

    /// Forgets a grant that a crash took before anybody heard of it.
    pub(crate) fn lost(&mut self, entry: &Entry) {
        if let Entry::Leaf(AnyMessage::Grant(grant)) = entry
            && !self.assigns.values().any(|assign| assign.grant == grant.id())
        {
            self.grants.remove(&grant.id());
        }
    }

    /// How many leases and settlements there are.
    pub(crate) fn counts(&self) -> (u64, u64) {
        (self.leases.len() as u64, self.settlements.len() as u64)
    }

    fn assign(&mut self, assign: &Verified<Assign>) -> Verdict {
        let Some(grant) = self.grants.get(&assign.grant) else {
            return broken("S5", "an assignment without a grant");
        };
        if !grant.allows(assign.signer, assign.attempt) {
            return broken("S4", format!("attempt {} out of range", assign.attempt));
        }
        match self.assigns.insert((assign.grant, assign.attempt), assign.clone()) {
            Some(other) if other.id() != assign.id() => broken(
                "S4",
                format!("attempt {} of {} is given twice", assign.attempt, assign.job.short()),
            ),
            _ => Ok(()),
        }
    }

    fn lease(
        &mut self,
        federation: &Federation,
        node: usize,
        policy: &OperatorPolicy,
        lease: &Verified<Lease>,
    ) -> Verdict {
        let id = lease.id();
        if self.fences.insert((lease.signer, lease.fence), id).is_some_and(|other| other != id) {
            return broken("S2", format!("fence {} of node {node} is used twice", lease.fence));
        }
        let slot = (lease.signer, lease.fence.epoch, lease.slot);
        if let Some(live) = self.slots.insert(slot, id) {
            return broken(
                "S1",
                format!("slot {} of node {node} has {} already", lease.slot, live.short()),
            );
        }
        let attempt = (lease.grant, lease.attempt);
        if self.lease_of_attempt.insert(attempt, id).is_some() {
            return broken("S4", format!("a second lease for attempt {}", lease.attempt));
        }
        let count = self.leases_per_grant.entry(lease.grant).or_default();
        *count += 1;
        let Some(grant) = self.grants.get(&lease.grant) else {
            return broken("S5", "a lease without a grant");
        };
        if *count > grant.attempts {
            return broken("S4", format!("{count} leases under {} attempts", grant.attempts));
        }
        self.leases.insert(id, lease.clone());
        self.chain(federation, node, policy, lease)
    }

    /// S5: a valid, unexpired chain and a policy that allows, at the moment of the lease.
    fn chain(
        &self,
        federation: &Federation,
        node: usize,
        policy: &OperatorPolicy,
        lease: &Lease,
    ) -> Verdict {
        let (Some(grant), Some(assign), Some(job)) = (
            self.grants.get(&lease.grant),
            self.assigns.get(&(lease.grant, lease.attempt)),
            self.jobs.get(&lease.job),
        ) else {
            return broken("S5", "a lease whose chain is in no log");
        };
        let linked = assign.id() == lease.assign
            && assign.node == lease.signer
            && assign.signer == grant.signer
            && grant.signer == job.home
            && grant.job == lease.job
            && grant.researcher == job.signer
            && grant.cap <= job.cap;
        if !linked {
            return broken("S5", "a lease whose chain does not link");
        }
        if lease.issued >= grant.deadline || lease.issued > assign.respond_by.plus(SKEW) {
            return broken("S5", format!("a lease of {} was taken too late", lease.job.short()));
        }
        let institution = federation.institutions[federation.institution_of(node)];
        let jurisdiction = federation.jurisdictions[federation.institution_of(node)];
        let Some(asking) = federation.researcher_certs.iter().find(|c| c.researcher == job.signer)
        else {
            return broken("S5", "a lease for an unknown researcher");
        };
        let placement = &job.placement;
        let own_only = placement.at.is_empty() && placement.jurisdictions.is_empty();
        let placed = (!own_only || institution == asking.signer)
            && (placement.at.is_empty() || placement.at.contains(&institution))
            && (placement.jurisdictions.is_empty()
                || placement.jurisdictions.contains(&jurisdiction))
            && !placement.not_at.contains(&institution)
            && !placement.not_jurisdictions.contains(&jurisdiction);
        if !placed {
            return broken("S5", format!("{} runs where it may not", lease.job.short()));
        }
        let max_tokens = InferWork::from_work(&job.work).map_or(u32::MAX, |work| work.max_tokens);
        let home = federation.institutions.iter().position(|key| *key == asking.signer);
        let question = Question {
            institution: asking.signer,
            jurisdiction: federation.jurisdictions[home.unwrap_or_default()],
            own: asking.signer == institution,
            purpose: &job.purpose,
            model: job.model,
            max_tokens,
            now: lease.issued,
        };
        match policy.decide(&question) {
            Ok(()) => Ok(()),
            Err(denial) => broken("S5", format!("against policy: {}", denial.reason)),
        }
    }

    fn receipt(&mut self, receipt: &Verified<Receipt>) -> Verdict {
        let Some(lease) = self.leases.get(&receipt.lease) else {
            return broken("S5", "a receipt without a lease");
        };
        if lease.signer != receipt.signer || lease.grant != receipt.grant {
            return broken("S5", "a receipt for the lease of another");
        }
        let slot = (lease.signer, lease.fence.epoch, lease.slot);
        if self.slots.get(&slot) == Some(&receipt.lease) {
            self.slots.remove(&slot);
        }
        match self.receipts.insert(receipt.lease, receipt.clone()) {
            Some(other) if other.id() != receipt.id() => {
                broken("S7", format!("two receipts for {}", receipt.lease.short()))
            }
            _ => Ok(()),
        }
    }

    fn settlement(
        &mut self,
        federation: &Federation,
        settlement: &Verified<Settlement>,
    ) -> Verdict {
        let Some(grant) = self.grants.get(&settlement.grant) else {
            return broken("S3", "a settlement without a grant");
        };
        let cap = grant.cap.as_micro();
        if self.settlements.contains_key(&settlement.grant) {
            return broken("S3", format!("grant {} is settled twice", settlement.grant.short()));
        }
        if settlement.total.as_micro() > cap {
            return broken("S3", format!("{} paid of a cap of {}", settlement.total, grant.cap));
        }
        if settlement.total.as_micro() + settlement.refunded.as_micro() != cap {
            return broken("S6", "total and refund are not the cap");
        }
        if !self.jobs_over.contains(&settlement.job) {
            return broken("S3", "settled before the job was over");
        }
        for share in &settlement.shares {
            let (Some(lease), Some(receipt)) =
                (self.leases.get(&share.lease), self.receipts.get(&share.lease))
            else {
                return broken("S6", "a share without lease and receipt in its node's log");
            };
            let index = federation.index_of(share.node).unwrap_or_default();
            let belongs = federation.institutions[federation.institution_of(index)];
            let fits = lease.grant == settlement.grant
                && lease.signer == share.node
                && receipt.id() == share.receipt
                && share.cost <= receipt.cost
                && share.institution == belongs;
            if !fits {
                return broken("S6", "a share that its receipt does not bear out");
            }
            *self.credits.entry(share.institution).or_default() +=
                u128::from(share.cost.as_micro());
        }
        *self.debits.entry(settlement.payer).or_default() +=
            u128::from(settlement.total.as_micro());
        self.settlements.insert(settlement.grant, settlement.clone());
        self.balance()
    }
}
