//! Follows what was done with data: every contract rests on a lease and on approvals in the same log,
//! nothing was trained without a contract, and nothing left without the gate's report (specs/contract.md
//! §6, specs/receipt.md §4.7).
//!
//! Not here: whether a signer of an approval was a steward. Logs do not say whose a dataset is.

use std::collections::BTreeMap;

use allmend_policy::digest_of_layers;
use allmend_protocol::envelope::Verified;
use allmend_protocol::finetune::{FinetuneWork, Task, WORK_FINETUNE};
use allmend_protocol::ids::{Digest, MessageId, NodeId};
use allmend_protocol::job::JobSpec;
use allmend_protocol::message::AnyMessage;
use allmend_protocol::receipt::{Outcome, Receipt};
use allmend_protocol::stewardship::{Approval, ApprovalDecision, Contract, GateReport};
use allmend_protocol::time::Timestamp;
use allmend_protocol::units::Decimal;

use super::chain::Chain;
use super::members::Said;
use super::report::{Fault, Notes};

/// Strengths of rooms, strongest first (specs/contract.md §3.2).
const ROOMS: [&str; 3] = ["sealed-v1", "confined-v1", "process-v1"];

pub(super) fn check(chain: &mut Chain<'_>, notes: &mut Notes) {
    let all = chain.all;
    let mut contracts = Contracts::new(chain);
    for said in all {
        match &said.message {
            AnyMessage::Contract(contract) => contracts.contract(said, contract, notes),
            AnyMessage::GateReport(report) => contracts.report(said, report, notes),
            AnyMessage::Receipt(receipt) => contracts.receipt(said, receipt, notes),
            _ => {}
        }
    }
}

/// The entry of a message in the log of its node, and the message.
type At<'a, T> = (u64, &'a Verified<T>);

/// Whose log, and which message that something belongs to: entries are compared within one log only.
type Of = (NodeId, MessageId);

struct Contracts<'c, 'a> {
    chain: &'c mut Chain<'a>,
    /// Entries of leases, and of the first receipt of each lease.
    leases: BTreeMap<MessageId, u64>,
    receipt_of: BTreeMap<Of, u64>,
    approvals: BTreeMap<MessageId, At<'a, Approval>>,
    contracts: BTreeMap<MessageId, At<'a, Contract>>,
    /// The first contract of each lease, and the first report of each contract.
    contract_of: BTreeMap<Of, At<'a, Contract>>,
    report_of: BTreeMap<Of, At<'a, GateReport>>,
    /// Contracts that rest on each approval so far.
    runs: BTreeMap<MessageId, u16>,
}

impl<'c, 'a> Contracts<'c, 'a> {
    fn new(chain: &'c mut Chain<'a>) -> Self {
        let all = chain.all;
        let mut found = Self {
            chain,
            leases: BTreeMap::new(),
            receipt_of: BTreeMap::new(),
            approvals: BTreeMap::new(),
            contracts: BTreeMap::new(),
            contract_of: BTreeMap::new(),
            report_of: BTreeMap::new(),
            runs: BTreeMap::new(),
        };
        for said in all {
            let (id, at) = (said.message.id(), said.entry.index);
            match &said.message {
                AnyMessage::Lease(_) => drop(found.leases.entry(id).or_insert(at)),
                AnyMessage::Receipt(receipt) => {
                    found.receipt_of.entry((receipt.signer, receipt.lease)).or_insert(at);
                }
                AnyMessage::Approval(approval) => {
                    found.approvals.entry(id).or_insert((at, approval));
                }
                AnyMessage::Contract(contract) => {
                    let of = (contract.signer, contract.lease);
                    found.contracts.entry(id).or_insert((at, contract));
                    found.contract_of.entry(of).or_insert((at, contract));
                }
                AnyMessage::GateReport(report) => {
                    let of = (report.signer, report.contract);
                    found.report_of.entry(of).or_insert((at, report));
                }
                _ => {}
            }
        }
        found
    }

    fn contract(&mut self, said: &Said<'_>, contract: &Verified<Contract>, notes: &mut Notes) {
        let at = said.entry.index;
        let of = (contract.signer, contract.lease);
        if let Some((first, _)) = self.contract_of.get(&of).filter(|(first, _)| *first < at) {
            let why = format!("its lease has a contract already, entry {first}");
            notes.find(&said.place(), Fault::Equivocation, why);
        }
        let Some(lease) = self.chain.leases.get(&contract.lease).copied() else {
            return self.chain.unmatched(said, contract.signer, "lease", notes);
        };
        let own = lease.signer == contract.signer;
        let before = |place: Option<&u64>| place.is_some_and(|place| *place < at);
        let rules = [
            (own, "the lease is another node's"),
            (lease.job == contract.job, "the lease is for another job"),
            (lease.issued <= contract.issued, "it was issued before its lease"),
            (!own || before(self.leases.get(&contract.lease)), "its lease comes after it"),
            (!before(self.receipt_of.get(&of)), "its lease had ended before"),
        ];
        said.require(&rules, Fault::Inconsistent, notes);
        match self.chain.jobs.get(&contract.job).copied() {
            Some(job) => of_job(said, contract, job, notes),
            None => match self.chain.grants.get(&lease.grant).map(|grant| grant.signer) {
                Some(home) => self.chain.unmatched(said, home, "job spec", notes),
                None => self.chain.unmatched_somewhere(said, "job spec", notes),
            },
        }
        for id in &contract.approvals {
            let runs = self.runs.entry(*id).or_default();
            *runs = runs.saturating_add(1);
            let runs = *runs;
            let needed = Needed { contract, output: None, at: contract.issued };
            if let Some(approval) = self.approval(said, *id, &needed, notes) {
                let within = [(runs <= approval.runs_max, "an approval has no runs left for it")];
                said.require(&within, Fault::Unpermitted, notes);
            }
        }
        self.refusals(said, contract, None, notes);
    }

    /// Whether one approval permits what is needed.
    fn approval(
        &mut self,
        said: &Said<'_>,
        id: MessageId,
        needed: &Needed<'_>,
        notes: &mut Notes,
    ) -> Option<&'a Verified<Approval>> {
        let contract = needed.contract;
        let Some((at, approval)) = self.approvals.get(&id).copied() else {
            self.chain.unmatched(said, contract.signer, "approval", notes);
            return None;
        };
        let policy = in_force(contract).any(|policy| policy == approval.policy);
        let own = approval.node == contract.signer;
        let latest = needed.at.plus(self.chain.members.skew());
        let rules = [
            (!own || at < said.entry.index, "an approval was logged after it"),
            (
                approval.decision == ApprovalDecision::Approved {},
                "it rests on a refusal as if it were an approval",
            ),
            (own, "an approval is for another node"),
            (approval.job == contract.job, "an approval is for another job"),
            (contract.datasets.contains(&approval.dataset), "an approval is for another dataset"),
            (policy, "an approval was given under another policy"),
            (
                approval.output == needed.output,
                match needed.output {
                    None => "an approval is of an output, not of a run",
                    Some(_) => "an approval is not of the adapter that was released",
                },
            ),
            (approval.issued <= latest, "an approval was issued after it"),
            (needed.at < approval.expires, "an approval had expired"),
        ];
        said.require(&rules, Fault::Unpermitted, notes);
        Some(approval)
    }

    /// A refusal stands, whatever else was approved.
    fn refusals(
        &self,
        said: &Said<'_>,
        contract: &Contract,
        output: Option<Digest>,
        notes: &mut Notes,
    ) {
        for (at, approval) in self.approvals.values() {
            let meant = approval.node == contract.signer
                && approval.job == contract.job
                && contract.datasets.contains(&approval.dataset)
                && approval.output == output;
            let refused = matches!(approval.decision, ApprovalDecision::Refused { .. });
            if meant && refused && *at < said.entry.index {
                let why = format!("it was refused before, by entry {at}");
                notes.find(&said.place(), Fault::Unpermitted, why);
            }
        }
    }

    fn report(&mut self, said: &Said<'_>, report: &Verified<GateReport>, notes: &mut Notes) {
        let at = said.entry.index;
        let of = (report.signer, report.contract);
        if let Some((first, _)) = self.report_of.get(&of).filter(|(first, _)| *first < at) {
            let why = format!("its contract has a report already, entry {first}");
            notes.find(&said.place(), Fault::Equivocation, why);
        }
        let Some((place, contract)) = self.contracts.get(&report.contract).copied() else {
            return self.chain.unmatched(said, report.signer, "contract", notes);
        };
        let own = contract.signer == report.signer;
        let ended = self.receipt_of.get(&(report.signer, contract.lease));
        let rules = [
            (own, "the contract is another node's"),
            (contract.job == report.job, "the contract is for another job"),
            (contract.issued <= report.issued, "it was issued before its contract"),
            (!own || place < at, "its contract comes after it"),
            (ended.is_none_or(|ended| at < *ended), "the lease had its receipt before"),
        ];
        said.require(&rules, Fault::Inconsistent, notes);
        let Some(released) = report.released else { return };
        for id in &report.approvals {
            let needed = Needed { contract, output: Some(released), at: report.issued };
            self.approval(said, *id, &needed, notes);
        }
        self.refusals(said, contract, Some(released), notes);
    }

    fn receipt(&mut self, said: &Said<'_>, receipt: &Receipt, notes: &mut Notes) {
        let at = said.entry.index;
        let finished = matches!(receipt.outcome, Outcome::Finished { .. });
        let Some(id) = receipt.contract else {
            if let Some((place, _)) = self.contract_of.get(&(receipt.signer, receipt.lease)) {
                let why = format!("it does not name its lease's contract, entry {place}");
                notes.find(&said.place(), Fault::Inconsistent, why);
                return;
            }
            let job = self.chain.jobs.get(&receipt.job);
            let trains = job.is_some_and(|job| job.work.kind == WORK_FINETUNE);
            let read = finished || receipt.output.is_some() || receipt.usage.completion_tokens > 0;
            let why = "it trained without a contract";
            return said.require(&[(!(trains && read), why)], Fault::Unpermitted, notes);
        };
        let Some((place, contract)) = self.contracts.get(&id).copied() else {
            return self.chain.unmatched(said, receipt.signer, "contract", notes);
        };
        let own = contract.signer == receipt.signer;
        let rules = [
            (own, "the contract is another node's"),
            (contract.lease == receipt.lease, "the contract is for another lease"),
            (!own || place < at, "its contract comes after it"),
        ];
        said.require(&rules, Fault::Inconsistent, notes);
        let report = self.report_of.get(&(receipt.signer, id)).filter(|(report, _)| *report < at);
        let released = report.is_some_and(|(_, report)| report.released.is_some());
        if !released && self.chain.damaged.contains(&receipt.signer) {
            return notes.skip();
        }
        let why = "it finished although the output gate released nothing before";
        said.require(&[(released || !finished, why)], Fault::Unpermitted, notes);
    }
}

/// What an approval is to permit: a run, or the release of an output.
struct Needed<'n> {
    contract: &'n Contract,
    output: Option<Digest>,
    at: Timestamp,
}

/// Whether a contract is for the work of its job, within the terms that the job accepts.
fn of_job(said: &Said<'_>, contract: &Contract, job: &JobSpec, notes: &mut Notes) {
    let work = match Task::from_work(&job.work) {
        Ok(Task::Finetune(work)) => Some(work),
        _ => None,
    };
    let work: Option<&FinetuneWork> = work.as_deref();
    let datasets: Vec<Digest> =
        work.map_or(vec![], |work| work.datasets.iter().map(|part| part.dataset).collect());
    let rules = [
        (work.is_some(), "its job is no fine-tuning that can be read"),
        (contract.recipe == Digest::of(&job.work.bytes.0), "its recipe is not the job's work"),
        (contract.model == job.model, "the job names another model"),
        (work.is_none() || contract.datasets == datasets, "its datasets are not the job's"),
        (
            work.is_none_or(|work| says_its_privacy(contract, work)),
            "what it says of privacy is not what the job's work asks for",
        ),
    ];
    said.require(&rules, Fault::Inconsistent, notes);
    let Some(terms) = &job.terms else {
        let none = contract.datasets.is_empty();
        let why = "its job accepts no terms beforehand";
        return said.require(&[(none, why)], Fault::Unpermitted, notes);
    };
    let rules = [
        (
            terms.dataset.is_none_or(|dataset| contract.datasets.contains(&dataset)),
            "the job's terms name another dataset",
        ),
        (
            terms.policy.is_none_or(|policy| in_force(contract).all(|used| used == policy)),
            "the job's terms name another policy",
        ),
        (terms.output == contract.output, "the job's terms name another kind of output"),
        (as_strong(&contract.room, &terms.room), "the room is weaker than the job's terms accept"),
    ];
    said.require(&rules, Fault::Unpermitted, notes);
}

/// The digests of the three policies together, for each policy of a dataset.
fn in_force(contract: &Contract) -> impl Iterator<Item = Digest> {
    let of = |layer: &'static str| {
        contract.policies.iter().filter(move |used| used.layer == layer).map(|used| used.digest)
    };
    let (charter, institution) = (of("charter").next(), of("institution").next());
    of("dataset").map(move |dataset| digest_of_layers([charter, institution, Some(dataset)]))
}

/// Whether a contract names a privacy budget exactly when its work is private and reads datasets, at a
/// δ no larger than the work's.
fn says_its_privacy(contract: &Contract, work: &FinetuneWork) -> bool {
    match (&contract.privacy, &work.privacy) {
        (Some(said), Some(asked)) => {
            let exponent = i8::try_from(said.delta_exp10).unwrap_or(i8::MAX);
            Decimal::new(1, -exponent).compare(asked.delta).is_le()
        }
        (Some(_), None) => false,
        (None, asked) => asked.is_none() || work.datasets.is_empty(),
    }
}

/// Whether a room is as strong as another; an unknown one is as strong as itself only.
fn as_strong(room: &str, least: &str) -> bool {
    let rank = |name: &str| ROOMS.iter().position(|known| *known == name);
    match (rank(room), rank(least)) {
        (Some(room), Some(least)) => room <= least,
        _ => room == least,
    }
}
