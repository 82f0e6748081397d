//! Follows every job through all logs: spec, grant, assign, lease, receipt, settlement. Each must
//! find the one before it in the log of whoever signed that, and agree with it.

use std::collections::{BTreeMap, BTreeSet};

use allmend_protocol::envelope::Verified;
use allmend_protocol::grant::{Assign, Grant};
use allmend_protocol::ids::{InstitutionId, MessageId, NodeId};
use allmend_protocol::job::JobSpec;
use allmend_protocol::lease::Lease;
use allmend_protocol::message::AnyMessage;
use allmend_protocol::receipt::{Receipt, Settlement, Share};

use super::members::{Members, Said};
use super::report::{Balance, Fault, Notes};

pub(super) struct Chain<'a> {
    pub(super) members: &'a Members,
    /// Nodes whose logs were given, and those of them whose logs are damaged.
    present: BTreeSet<NodeId>,
    pub(super) damaged: BTreeSet<NodeId>,
    missing: BTreeSet<NodeId>,
    pub(super) all: &'a [Said<'a>],
    pub(super) jobs: BTreeMap<MessageId, &'a Verified<JobSpec>>,
    pub(super) grants: BTreeMap<MessageId, &'a Verified<Grant>>,
    assigns: BTreeMap<MessageId, &'a Verified<Assign>>,
    pub(super) leases: BTreeMap<MessageId, &'a Verified<Lease>>,
    pub(super) receipts: BTreeMap<MessageId, &'a Verified<Receipt>>,
    /// Leases under each grant so far.
    leases_of: BTreeMap<MessageId, u16>,
    /// Entry of the receipt of each lease, and of the settlement of each grant.
    receipt_of: BTreeMap<MessageId, u64>,
    settled: BTreeMap<MessageId, u64>,
    debits: BTreeMap<InstitutionId, u128>,
    credits: BTreeMap<InstitutionId, u128>,
}

impl<'a> Chain<'a> {
    pub(super) fn new(
        members: &'a Members,
        present: BTreeSet<NodeId>,
        damaged: BTreeSet<NodeId>,
        all: &'a [Said<'a>],
    ) -> Self {
        let mut chain = Self {
            members,
            present,
            damaged,
            missing: BTreeSet::new(),
            all,
            jobs: BTreeMap::new(),
            grants: BTreeMap::new(),
            assigns: BTreeMap::new(),
            leases: BTreeMap::new(),
            receipts: BTreeMap::new(),
            leases_of: BTreeMap::new(),
            receipt_of: BTreeMap::new(),
            settled: BTreeMap::new(),
            debits: BTreeMap::new(),
            credits: BTreeMap::new(),
        };
        for said in all {
            let id = said.message.id();
            match &said.message {
                AnyMessage::JobSpec(job) => drop(chain.jobs.insert(id, job)),
                AnyMessage::Grant(grant) => drop(chain.grants.insert(id, grant)),
                AnyMessage::Assign(assign) => drop(chain.assigns.insert(id, assign)),
                AnyMessage::Lease(lease) => drop(chain.leases.insert(id, lease)),
                AnyMessage::Receipt(receipt) => drop(chain.receipts.insert(id, receipt)),
                _ => {}
            }
        }
        chain
    }

    /// Checks all messages, in the order of logs and entries.
    pub(super) fn check(&mut self, notes: &mut Notes) {
        for said in self.all {
            match &said.message {
                AnyMessage::JobSpec(job) => self.job(said, job, notes),
                AnyMessage::Grant(grant) => self.grant(said, grant, notes),
                AnyMessage::Assign(assign) => self.assign(said, assign, notes),
                AnyMessage::Lease(lease) => self.lease(said, lease, notes),
                AnyMessage::Receipt(receipt) => self.receipt(said, receipt, notes),
                AnyMessage::Settlement(settlement) => self.settlement(said, settlement, notes),
                _ => {}
            }
        }
        let sum = |side: &BTreeMap<_, u128>| side.values().sum::<u128>();
        if sum(&self.credits) != sum(&self.debits) {
            notes.find_log("all", Fault::Imbalance, "credits and debits differ");
        }
    }

    /// The accounts, and the nodes whose logs would be needed to check everything.
    pub(super) fn finish(self) -> (Vec<Balance>, Vec<NodeId>) {
        let keys: BTreeSet<_> = self.debits.keys().chain(self.credits.keys()).copied().collect();
        let of = |side: &BTreeMap<_, u128>, key| side.get(&key).copied().unwrap_or_default();
        let balances = keys.into_iter().map(|key| Balance {
            institution: Some(key),
            name: self.members.institution_name(key),
            debit_micro: of(&self.debits, key),
            credit_micro: of(&self.credits, key),
        });
        (balances.collect(), self.missing.into_iter().collect())
    }

    fn job(&self, said: &Said<'_>, job: &JobSpec, notes: &mut Notes) {
        let Some(cert) = self.members.researcher(job.certificate) else {
            if self.damaged.contains(&job.home) {
                return notes.skip();
            }
            let why = "the researcher's certificate is in no log";
            notes.find(&said.place(), Fault::Membership, why);
            return;
        };
        let home = self.members.node_at(job.home, job.issued);
        let rules = [
            (cert.home == job.home, "the researcher's certificate names another home node"),
            (
                job.delegation.is_some() || cert.researcher == job.signer,
                "the certificate is another researcher's",
            ),
            (
                self.members.vouches(cert, job.issued),
                "the researcher's certificate did not hold when the job was issued",
            ),
            (
                home.is_some_and(|home| home.signer == cert.signer),
                "researcher and home node were not of one institution",
            ),
        ];
        said.require(&rules, Fault::Membership, notes);
    }

    fn grant(&mut self, said: &Said<'_>, grant: &Grant, notes: &mut Notes) {
        let Some(job) = self.jobs.get(&grant.job).copied() else {
            return self.unmatched(said, grant.signer, "job spec", notes);
        };
        let home = self.members.node_at(grant.signer, grant.issued);
        let researcher = self.members.researcher(job.certificate);
        let rules = [
            (job.home == grant.signer, "the job names another home node"),
            (job.signer == grant.researcher, "the job is another researcher's"),
            (grant.cap <= job.cap, "its cap is above the job's"),
            (grant.attempts <= job.attempts, "it has more attempts than the job"),
            (grant.deadline <= job.deadline, "its deadline is after the job's"),
            (
                home.is_none_or(|cert| grant.deadline <= cert.expires),
                "its deadline is after the end of its node's certificate",
            ),
            (
                researcher.is_none_or(|cert| grant.deadline <= cert.expires),
                "its deadline is after the end of the researcher's certificate",
            ),
        ];
        said.require(&rules, Fault::Inconsistent, notes);
    }

    fn assign(&mut self, said: &Said<'_>, assign: &Assign, notes: &mut Notes) {
        let Some(grant) = self.grants.get(&assign.grant).copied() else {
            return match self.jobs.get(&assign.job).map(|job| job.home) {
                Some(home) => self.unmatched(said, home, "grant", notes),
                None => self.unmatched_somewhere(said, "grant", notes),
            };
        };
        let allowed = grant.allows(assign.signer, assign.attempt);
        let why = "the attempt is outside of the broker's range in the grant";
        said.require(&[(allowed, why)], Fault::Attempts, notes);
        let same = [(grant.job == assign.job, "the grant is for another job")];
        said.require(&same, Fault::Inconsistent, notes);
    }

    fn lease(&mut self, said: &Said<'_>, lease: &Lease, notes: &mut Notes) {
        let grant = self.grants.get(&lease.grant).copied();
        let Some(assign) = self.assigns.get(&lease.assign).copied() else {
            let broker = grant.map(|grant| grant.signer);
            return match broker {
                Some(broker) => self.unmatched(said, broker, "assign", notes),
                None => self.unmatched_somewhere(said, "assign", notes),
            };
        };
        let skew = self.members.skew();
        let rules = [
            (assign.node == lease.signer, "the assign names another node"),
            (assign.job == lease.job, "the assign is for another job"),
            (assign.grant == lease.grant, "the assign is under another grant"),
            (assign.attempt == lease.attempt, "the assign is for another attempt"),
            (
                lease.issued <= assign.respond_by.plus(skew),
                "it was taken after the time to answer the assign",
            ),
        ];
        said.require(&rules, Fault::Inconsistent, notes);
        let Some(grant) = grant else {
            return self.unmatched(said, assign.signer, "grant", notes);
        };
        let in_time = lease.issued <= grant.deadline.plus(skew);
        said.require(
            &[(in_time, "it was taken after the grant's deadline")],
            Fault::Inconsistent,
            notes,
        );
        let count = self.leases_of.entry(lease.grant).or_default();
        *count = count.saturating_add(1);
        let within = *count <= grant.attempts;
        said.require(&[(within, "the grant has no attempts left")], Fault::Attempts, notes);
    }

    fn receipt(&mut self, said: &Said<'_>, receipt: &Receipt, notes: &mut Notes) {
        if let Some(before) = self.receipt_of.insert(receipt.lease, said.entry.index) {
            let why = format!("its lease has a receipt already, entry {before}");
            notes.find(&said.place(), Fault::Equivocation, why);
        }
        let Some(lease) = self.leases.get(&receipt.lease).copied() else {
            return self.unmatched(said, receipt.signer, "lease", notes);
        };
        let model = self.jobs.get(&receipt.job).map(|job| job.model);
        let rules = [
            (lease.signer == receipt.signer, "the lease is another node's"),
            (lease.job == receipt.job, "the lease is for another job"),
            (lease.grant == receipt.grant, "the lease is under another grant"),
            (lease.attempt == receipt.attempt, "the lease is for another attempt"),
            (model.is_none_or(|model| model == receipt.model), "the job names another model"),
        ];
        said.require(&rules, Fault::Inconsistent, notes);
    }

    fn settlement(&mut self, said: &Said<'_>, settlement: &Settlement, notes: &mut Notes) {
        if let Some(before) = self.settled.get(&settlement.grant) {
            let why = format!("its grant was settled before, by entry {before}");
            notes.find(&said.place(), Fault::SettledTwice, why);
            return;
        }
        self.settled.insert(settlement.grant, said.entry.index);
        let total = u128::from(settlement.total.as_micro());
        *self.debits.entry(settlement.payer).or_default() += total;
        for share in &settlement.shares {
            let cost = u128::from(share.cost.as_micro());
            *self.credits.entry(share.institution).or_default() += cost;
        }
        let Some(grant) = self.grants.get(&settlement.grant).copied() else {
            return self.unmatched(said, settlement.signer, "grant", notes);
        };
        let home = self.members.node_at(grant.signer, grant.issued);
        let latest = grant.settle_by.plus(self.members.settle_slack());
        let rules = [
            (grant.signer == settlement.signer, "the grant is another node's"),
            (grant.job == settlement.job, "the grant is for another job"),
            (
                home.is_none_or(|home| home.signer == settlement.payer),
                "the payer is not the institution of the home node",
            ),
            (settlement.issued <= latest, "it was counted after the time for it"),
        ];
        said.require(&rules, Fault::Inconsistent, notes);
        let counted = settlement.total.checked_add(settlement.refunded);
        let rules = [
            (settlement.total <= grant.cap, "it pays more than the grant's cap"),
            (counted == Some(grant.cap), "what is paid and refunded is not the grant's cap"),
        ];
        said.require(&rules, Fault::Overpaid, notes);
        for share in &settlement.shares {
            self.share(said, settlement, share, notes);
        }
    }

    fn share(&mut self, said: &Said<'_>, by: &Settlement, share: &Share, notes: &mut Notes) {
        let Some(receipt) = self.receipts.get(&share.receipt).copied() else {
            return self.unmatched(said, share.node, "receipt of a share", notes);
        };
        let Some(lease) = self.leases.get(&share.lease).copied() else {
            return self.unmatched(said, share.node, "lease of a share", notes);
        };
        let cert = self.members.node_at(share.node, lease.issued);
        let rules = [
            (receipt.lease == share.lease, "a share pairs a receipt with another lease"),
            (receipt.signer == share.node, "a share pays another node than the receipt's"),
            (lease.grant == by.grant, "a share pays a lease under another grant"),
            (
                cert.is_none_or(|cert| cert.signer == share.institution),
                "a share pays another institution than the node's",
            ),
        ];
        said.require(&rules, Fault::Inconsistent, notes);
        let usage = &receipt.usage;
        let worth = lease.rates.cost(usage.prompt_tokens, usage.completion_tokens);
        let rules = [
            (share.cost <= receipt.cost, "a share is more than its receipt asks"),
            (
                worth.is_none_or(|worth| share.cost <= worth),
                "a share is more than the receipt's use at the lease's rates",
            ),
        ];
        said.require(&rules, Fault::Overpaid, notes);
    }

    /// A message is not in the log of the node that must have it: a finding, if that log is here
    /// and whole.
    pub(super) fn unmatched(
        &mut self,
        said: &Said<'_>,
        node: NodeId,
        what: &str,
        notes: &mut Notes,
    ) {
        if !self.present.contains(&node) {
            self.missing.insert(node);
            notes.skip();
        } else if self.damaged.contains(&node) {
            notes.skip();
        } else {
            let why = format!("its {what} is not in the log of node {}", node.short());
            notes.find(&said.place(), Fault::Unmatched, why);
        }
    }

    /// A message is in none of these logs, and whose it would be is not known: a finding, if every
    /// institution and every known node has its log here.
    pub(super) fn unmatched_somewhere(&self, said: &Said<'_>, what: &str, notes: &mut Notes) {
        if self.damaged.is_empty() && self.members.all_among(&self.present) {
            let why = format!("its {what} is in none of these logs");
            notes.find(&said.place(), Fault::Unmatched, why);
        } else {
            notes.skip();
        }
    }
}

impl Said<'_> {
    /// Finds every rule that does not hold.
    pub(super) fn require(&self, rules: &[(bool, &str)], what: Fault, notes: &mut Notes) {
        for (_, broken) in rules.iter().filter(|(holds, _)| !holds) {
            notes.find(&self.place(), what, *broken);
        }
    }
}
