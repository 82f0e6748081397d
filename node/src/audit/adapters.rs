//! Follows adapters and rows after a run: recalls and their answers, no work with an adapter that the
//! node has answered for, deletions of rows that a job brought along (specs/recall.md §3,
//! specs/deletion.md §3).

use std::collections::{BTreeMap, BTreeSet};

use allmend_protocol::envelope::Verified;
use allmend_protocol::finetune::Task;
use allmend_protocol::ids::{Digest, MessageId, NodeId};
use allmend_protocol::lease::Lease;
use allmend_protocol::message::AnyMessage;
use allmend_protocol::stewardship::{Deletion, GateReport, Recall, RecallAnswer};

use super::chain::Chain;
use super::members::Said;
use super::report::{Fault, Notes};

pub(super) fn check(chain: &mut Chain<'_>, notes: &mut Notes) {
    let all = chain.all;
    let mut adapters = Adapters::new(chain);
    for said in all {
        match &said.message {
            AnyMessage::Recall(recall) => adapters.recall(said, recall, notes),
            AnyMessage::RecallAnswer(answer) => adapters.answer(said, answer, notes),
            AnyMessage::Lease(lease) => adapters.lease(said, lease, notes),
            AnyMessage::Receipt(receipt) => {
                adapters.ended.insert(receipt.lease);
            }
            AnyMessage::Deletion(deletion) => adapters.deletion(said, deletion, notes),
            _ => {}
        }
    }
}

struct Adapters<'c, 'a> {
    chain: &'c mut Chain<'a>,
    reports: BTreeMap<MessageId, (u64, &'a Verified<GateReport>)>,
    recalls: BTreeMap<MessageId, &'a Verified<Recall>>,
    /// So far in each node's log: what it answered for, the leases of each job, leases with a
    /// receipt, jobs whose rows it deleted.
    answered: BTreeMap<(NodeId, Digest), u64>,
    leases: BTreeMap<(NodeId, MessageId), Vec<MessageId>>,
    ended: BTreeSet<MessageId>,
    deleted: BTreeMap<(NodeId, MessageId), u64>,
}

impl<'c, 'a> Adapters<'c, 'a> {
    fn new(chain: &'c mut Chain<'a>) -> Self {
        let all = chain.all;
        let mut adapters = Self {
            chain,
            reports: BTreeMap::new(),
            recalls: BTreeMap::new(),
            answered: BTreeMap::new(),
            leases: BTreeMap::new(),
            ended: BTreeSet::new(),
            deleted: BTreeMap::new(),
        };
        for said in all {
            let id = said.message.id();
            match &said.message {
                AnyMessage::GateReport(report) => {
                    adapters.reports.insert(id, (said.entry.index, report));
                }
                AnyMessage::Recall(recall) => drop(adapters.recalls.insert(id, recall)),
                _ => {}
            }
        }
        adapters
    }

    fn recall(&mut self, said: &Said<'_>, recall: &Recall, notes: &mut Notes) {
        let Some((at, report)) = self.reports.get(&recall.report).copied() else {
            return self.chain.unmatched(said, recall.signer, "gate report", notes);
        };
        let same = report.signer == recall.signer;
        // Others log the recall as they hear it; only in its own log the order says something.
        let own = same && said.log.node == Some(recall.signer);
        let rules = [
            (same, "another node released the adapter"),
            (report.released == Some(recall.adapter), "its report did not release this adapter"),
            (!own || at < said.entry.index, "its gate report comes after it"),
        ];
        said.require(&rules, Fault::Inconsistent, notes);
    }

    fn answer(&mut self, said: &Said<'_>, answer: &RecallAnswer, notes: &mut Notes) {
        let own = said.log.node == Some(answer.signer);
        if own {
            // Only in its own log the order says something.
            self.answered.entry((answer.signer, answer.adapter)).or_insert(said.entry.index);
        }
        let Some(recall) = self.recalls.get(&answer.recall).copied() else {
            return self.chain.unmatched_somewhere(said, "recall", notes);
        };
        let heard = answer.issued.plus(self.chain.members.skew());
        if !own && said.log.node != Some(recall.signer) {
            let why = "the answer of another node to another's recall belongs into their logs";
            return notes.find(&said.place(), Fault::Misplaced, why.to_owned());
        }
        let rules = [
            (recall.adapter == answer.adapter, "the recall is of another adapter"),
            (recall.issued <= heard, "it was issued before its recall"),
        ];
        said.require(&rules, Fault::Inconsistent, notes);
    }

    fn lease(&mut self, said: &Said<'_>, lease: &Verified<Lease>, notes: &mut Notes) {
        let slot = (lease.signer, lease.job);
        self.leases.entry(slot).or_default().push(lease.id());
        if let Some(at) = self.deleted.get(&slot) {
            let why = format!("the job's rows were deleted before, by entry {at}");
            notes.find(&said.place(), Fault::Inconsistent, why);
        }
        // A node without answers has used no adapter against one.
        if self.answered.is_empty() {
            return;
        }
        let work = self.chain.jobs.get(&lease.job).map(|job| Task::from_work(&job.work));
        let Some(Ok(Task::Infer(infer))) = work else { return };
        let recalled =
            infer.adapter.and_then(|adapter| self.answered.get(&(lease.signer, adapter)));
        if let Some(at) = recalled {
            let why = format!("the node answered a recall of the job's adapter, by entry {at}");
            notes.find(&said.place(), Fault::Unpermitted, why);
        }
    }

    fn deletion(&mut self, said: &Said<'_>, deletion: &Deletion, notes: &mut Notes) {
        let slot = (deletion.signer, deletion.job);
        if let Some(before) = self.deleted.insert(slot, said.entry.index) {
            let why = format!("the job's rows were deleted before, by entry {before}");
            notes.find(&said.place(), Fault::Inconsistent, why);
        }
        let Some(leases) = self.leases.get(&slot) else {
            return self.chain.unmatched(said, deletion.signer, "lease", notes);
        };
        let ended = leases.iter().all(|lease| self.ended.contains(lease))
            || self.chain.damaged.contains(&deletion.signer);
        said.require(&[(ended, "a lease of its job had no receipt")], Fault::Inconsistent, notes);
        match self.chain.jobs.get(&deletion.job) {
            Some(job) => {
                let rules = [
                    (job.input.digest == deletion.input, "the job's input is another"),
                    (job.input.bytes == deletion.bytes, "the job's input has another size"),
                ];
                said.require(&rules, Fault::Inconsistent, notes);
            }
            None => self.chain.unmatched_somewhere(said, "job spec", notes),
        }
    }
}
