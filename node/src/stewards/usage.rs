//! Who may use an adapter that this node serves. One that was released here is under the policies of every
//! dataset that it was made from, for as long as it is served; any other is for those whom its keeper named.

use allmend_data::{Dataset, VersionRecord};
use allmend_policy::{
    Action, Approvals, Decision, OutputKind, Request, Room, Stage, Verdict, decide,
};
use allmend_protocol::ids::{NodeId, PublicKey};
use allmend_protocol::offer::{Reason, ReasonClass};
use allmend_scheduler::stewards::AdapterQuestion;

use super::State;
use super::judge::{facts, principal};
use crate::adapters::About;

impl State {
    /// Whether an adapter may be used; `about` is what the store knows of it.
    pub(super) fn may_use(
        &self,
        node: NodeId,
        question: &AdapterQuestion<'_>,
        about: Option<&About>,
    ) -> Result<(), Vec<Reason>> {
        let no = |text: String| vec![Reason::new(ReasonClass::Policy, text)];
        let adapter = question.adapter;
        let about = about.ok_or_else(|| no(format!("adapter {} is not here", adapter.short())))?;
        let listing = self
            .registry
            .list()
            .map_err(|error| no(format!("the datasets cannot be read: {error}")))?;
        let made_from = listing.datasets.iter().flat_map(|dataset| {
            let of = dataset.releases.iter().filter(|release| release.adapter == adapter);
            of.map(move |release| (dataset, release.version))
        });
        let made_from: Vec<_> = made_from.collect();
        if made_from.is_empty() {
            // It was brought here, or made of rows that its requester brought.
            let signer = PublicKey::from(question.spec.signer);
            return match about.users.is_empty() || about.users.contains(&signer) {
                true => Ok(()),
                false => Err(no(format!(
                    "adapter {} is for the people whom its keeper named: ask this node's operator",
                    adapter.short()
                ))),
            };
        }
        let mut reasons = Vec::new();
        for (dataset, version) in made_from {
            match dataset.version(&version) {
                Some((_, version)) => {
                    reasons.extend(refused(&self.usage(node, question, dataset, version)));
                }
                None => reasons.extend(no(format!("version {} is not on record", version.short()))),
            }
        }
        if reasons.is_empty() { Ok(()) } else { Err(reasons) }
    }

    fn usage(
        &self,
        node: NodeId,
        question: &AdapterQuestion<'_>,
        dataset: &Dataset,
        version: &VersionRecord,
    ) -> Decision {
        let spec = question.spec;
        let run = allmend_policy::Run {
            purpose: spec.purpose.clone(),
            project: spec.project.clone(),
            stage: Stage::Run,
            model: allmend_policy::Model {
                digest: spec.model,
                licence: self.licences.get(&spec.model).cloned(),
            },
            adapter: Some(question.adapter),
            node: allmend_policy::Node {
                key: node,
                institution: question.node_institution,
                jurisdiction: question.node_jurisdiction,
            },
            output: OutputKind::Text,
            result_jurisdiction: question.jurisdiction,
            egress: false,
            // The rows are not opened; the model and its adapter are served by an ordinary worker.
            room: Some(Room::Process),
            approvals: Approvals::default(),
            privacy: None,
            rows: version.counts.rows(),
            runs: 0,
            now: question.now,
        };
        let request = Request {
            action: Action::UseAdapter,
            principal: principal(spec, question.cert, question.jurisdiction),
            dataset: facts(dataset, version),
            run,
        };
        decide(&self.layers(dataset), &request)
    }
}

/// Why not, in words; nobody waits for a person before each answer of a model.
fn refused(decision: &Decision) -> Vec<Reason> {
    let reason = |text: String| Reason::new(ReasonClass::Policy, text);
    match &decision.verdict {
        Verdict::Allow => Vec::new(),
        Verdict::Refuse(why) => why.iter().map(|why| reason(why.sentence())).collect(),
        Verdict::Pending(obligations) => obligations
            .iter()
            .map(|obligation| {
                reason(format!(
                    "the dataset's policy asks for {} before each use of an adapter, which is not put to \
                     anybody: its steward can narrow that rule to finetune",
                    obligation.name
                ))
            })
            .collect(),
    }
}
