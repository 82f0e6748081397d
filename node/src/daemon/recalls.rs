//! Taking adapters back: recalls of this node until every member has answered, and answers to those of others
//! (specs/recall.md).

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use allmend_protocol::envelope::Verified;
use allmend_protocol::ids::{Digest, MessageId, NodeId, PublicKey};
use allmend_protocol::message::AnyMessage;
use allmend_protocol::stewardship::{Recall, RecallAnswer, RecallDone};
use allmend_scheduler::io::Input;
use serde_json::{Value, json};

use super::Daemon;
use super::documents::document;
use crate::client::proto::{Answer, Problem, ProblemClass};
use crate::membership::now;

/// Members that have not answered are asked again after this, then twice as long, up to the last.
const AGAIN_FIRST: Duration = Duration::from_secs(5);
const AGAIN_LAST: Duration = Duration::from_secs(600);

/// Every recall that this node has made, and every one that it has answered.
#[derive(Debug, Default)]
pub(crate) struct Recalls {
    own: BTreeMap<MessageId, Own>,
    answered: BTreeMap<MessageId, Verified<RecallAnswer>>,
}

/// A recall of this node's.
#[derive(Debug)]
struct Own {
    recall: Verified<Recall>,
    answers: BTreeMap<NodeId, RecallDone>,
    again: Instant,
    pause: Duration,
}

impl Own {
    fn new(recall: Verified<Recall>) -> Own {
        let (again, pause) = (Instant::now() + AGAIN_FIRST, AGAIN_FIRST);
        Own { recall, answers: BTreeMap::new(), again, pause }
    }
}

impl Recalls {
    /// From what the log says.
    pub(crate) fn open<'a>(
        node: NodeId,
        leaves: impl IntoIterator<Item = &'a AnyMessage>,
    ) -> Recalls {
        let mut recalls = Recalls::default();
        for leaf in leaves {
            match leaf {
                AnyMessage::Recall(recall) if recall.signer == node => {
                    recalls.own.insert(recall.id(), Own::new(recall.clone()));
                }
                AnyMessage::RecallAnswer(answer) => {
                    recalls.heard(answer);
                    if answer.signer == node {
                        recalls.answered.insert(answer.recall, answer.clone());
                    }
                }
                _ => {}
            }
        }
        recalls
    }

    /// Takes note of an answer; says whether it is one to a recall of this node's, and new.
    fn heard(&mut self, answer: &RecallAnswer) -> bool {
        match self.own.get_mut(&answer.recall) {
            Some(own) if own.recall.adapter == answer.adapter => {
                own.answers.insert(answer.signer, answer.done).is_none()
            }
            _ => false,
        }
    }
}

impl Daemon {
    /// Takes an adapter back in the name of a steward, and tells every member.
    pub(super) async fn recall(
        &mut self,
        caller: PublicKey,
        adapter: Digest,
        why: String,
    ) -> anyhow::Result<Answer> {
        let Some(release) = self.stewards.release(adapter) else {
            return Ok(Answer::Refused(
                Problem::new(ProblemClass::NotFound, "this node has released no such adapter")
                    .hint("see what was released: allmend data show NAME"),
            ));
        };
        if !release.stewards.contains(&caller) && caller != self.local.node.into() {
            return Ok(Answer::Refused(Problem::new(
                ProblemClass::Refused,
                "only a steward of the dataset, or the operator, can recall its adapters",
            )));
        }
        let before = self.recalls.own.values().find(|own| own.recall.adapter == adapter);
        if let Some(own) = before {
            // There is no way back, so there is nothing to repeat.
            return Ok(document(&json!({ "recall": own.recall.id(), "adapter": adapter })));
        }
        let body = Recall {
            federation: self.local.federation,
            signer: self.local.node,
            charter: self.core.roster().charter().id(),
            steward: caller,
            adapter,
            report: release.report,
            why,
            issued: now(),
        };
        let recall = match Verified::sign(self.local.identity.signing(), body) {
            Ok(recall) => recall,
            Err(error) => {
                let problem = Problem::new(ProblemClass::Usage, "the recall cannot be signed");
                return Ok(Answer::Refused(problem.because(error)));
            }
        };
        self.step(vec![Input::Note(Box::new(recall.clone().into()))]).await?;
        let id = recall.id();
        self.recalls.own.insert(id, Own::new(recall.clone()));
        for node in self.unanswered(id) {
            self.tell(&recall, node);
        }
        // This node obeys first of all.
        self.heed(&recall).await?;
        Ok(document(&json!({ "recall": id, "adapter": adapter })))
    }

    /// The recalls of this node, for their steward or for the operator.
    pub(super) fn recalls_document(&self, steward: Option<PublicKey>) -> Answer {
        let theirs = |own: &&Own| steward.is_none_or(|steward| own.recall.steward == steward);
        let rows = self.recalls.own.values().filter(theirs).map(|own| {
            let answers = own.answers.iter().map(|(node, done)| {
                json!({ "node": node, "node_name": self.node_name(*node), "done": done })
            });
            let missing = self.unanswered(own.recall.id()).into_iter();
            let missing = missing.map(|node| self.node_name(node));
            json!({
                "recall": own.recall.id(),
                "adapter": own.recall.adapter,
                "why": own.recall.why,
                "issued": own.recall.issued,
                "answers": answers.collect::<Vec<Value>>(),
                "missing": missing.collect::<Vec<String>>(),
            })
        });
        document(&Value::Array(rows.collect()))
    }

    /// Members that have not answered a recall of this node's.
    fn unanswered(&self, recall: MessageId) -> Vec<NodeId> {
        let Some(own) = self.recalls.own.get(&recall) else { return Vec::new() };
        let nodes = self.core.roster().nodes().map(|cert| cert.node);
        let other = nodes.filter(|node| *node != self.local.node);
        other.filter(|node| !own.answers.contains_key(node)).collect()
    }

    /// Asks members again that have not answered.
    pub(super) fn recall_again(&mut self) {
        let due = |own: &Own| own.again <= Instant::now();
        let ids: Vec<MessageId> =
            self.recalls.own.iter().filter(|(_, own)| due(own)).map(|(id, _)| *id).collect();
        for id in ids {
            let missing = self.unanswered(id);
            if let Some(own) = self.recalls.own.get_mut(&id) {
                own.pause = (own.pause * 2).min(AGAIN_LAST);
                own.again = Instant::now() + own.pause;
                let recall = own.recall.clone();
                missing.into_iter().for_each(|node| self.tell(&recall, node));
            }
        }
    }

    /// A member has come back: it hears of what it missed.
    pub(super) fn recall_to(&self, node: NodeId) {
        for (id, own) in &self.recalls.own {
            if self.unanswered(*id).contains(&node) {
                self.tell(&own.recall, node);
            }
        }
    }

    fn tell(&self, recall: &Verified<Recall>, node: NodeId) {
        let release = self.stewards.release(recall.adapter);
        let report = release.and_then(|release| self.gate_report(release.job, release.report));
        self.send(node, &recall.clone().into(), &report.into_iter().collect::<Vec<_>>());
    }

    /// A report of this node's gate, from its log.
    fn gate_report(&self, job: MessageId, report: MessageId) -> Option<AnyMessage> {
        let records = self.records_of(job).into_iter();
        records.filter_map(|(_, message, _)| message).find(|message| message.id() == report)
    }

    /// Hears of a recall, or of what came of one; says whether the message was of that kind.
    pub(super) async fn hear_recall(
        &mut self,
        from: NodeId,
        message: &AnyMessage,
        attached: &[AnyMessage],
    ) -> anyhow::Result<bool> {
        let member = self.core.roster().node_at(now(), from).is_ok();
        match message {
            AnyMessage::Recall(recall) if recall.signer == from && member => {
                // A node's word counts for what its own gate released.
                let theirs = attached.iter().any(|message| match message {
                    AnyMessage::GateReport(report) => {
                        report.id() == recall.report
                            && report.signer == recall.signer
                            && report.released == Some(recall.adapter)
                    }
                    _ => false,
                });
                match theirs {
                    true => self.heed(recall).await?,
                    false => {
                        let adapter = recall.adapter.short();
                        tracing::warn!(%adapter, "a recall without its gate report");
                    }
                }
                Ok(true)
            }
            AnyMessage::RecallAnswer(answer) if answer.signer == from && member => {
                if self.recalls.heard(answer) {
                    self.step(vec![Input::Note(Box::new(message.clone()))]).await?;
                }
                Ok(true)
            }
            AnyMessage::Recall(_) | AnyMessage::RecallAnswer(_) => Ok(true),
            _ => Ok(false),
        }
    }

    /// Stops serving an adapter, deletes it, remembers that, and says so. Who asks again gets the same answer.
    async fn heed(&mut self, recall: &Verified<Recall>) -> anyhow::Result<()> {
        let (id, own) = (recall.id(), recall.signer == self.local.node);
        if let Some(answer) = self.recalls.answered.get(&id).cloned() {
            if !own {
                self.send(recall.signer, &answer.into(), &[]);
            }
            return Ok(());
        }
        let held = self.capacity.adapters().recall(recall.adapter)?;
        self.running.forget(recall.adapter);
        let state = self.local_state();
        tracing::info!(adapter = %recall.adapter.short(), held, "adapter recalled");
        let answer = RecallAnswer {
            federation: self.local.federation,
            signer: self.local.node,
            charter: self.core.roster().charter().id(),
            recall: id,
            adapter: recall.adapter,
            done: if held { RecallDone::Deleted } else { RecallDone::NotHeld },
            issued: now(),
        };
        let answer = Verified::sign(self.local.identity.signing(), answer)?;
        let mut notes = vec![Input::Local(state)];
        if !own {
            notes.push(Input::Note(Box::new(recall.clone().into())));
        }
        notes.push(Input::Note(Box::new(answer.clone().into())));
        self.step(notes).await?;
        self.recalls.heard(&answer);
        self.recalls.answered.insert(id, answer.clone());
        if !own {
            self.send(recall.signer, &answer.into(), &[]);
        }
        Ok(())
    }
}
