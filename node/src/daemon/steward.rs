//! What data stewards ask of the daemon, and recalls between nodes (specs/approval.md, specs/recall.md).

use std::sync::Arc;

use allmend_protocol::envelope::{Signed, Verified};
use allmend_protocol::ids::{Digest, MessageId, NodeId, PublicKey};
use allmend_protocol::message::AnyMessage;
use allmend_protocol::stewardship::{Approval, Deletion, Recall, RecallAnswer, RecallDone};
use allmend_scheduler::io::Input;
use serde_json::json;

use super::{Daemon, Event};
use super::documents::document;
use crate::client::proto::{Answer, Problem, ProblemClass};
use crate::membership::now;

impl Daemon {
    /// What waits for `who`; an operator sees everything.
    pub(super) fn inbox_document(&self, who: Option<PublicKey>) -> Answer {
        let questions = self.stewards.waiting(now(), who);
        let mut document_ = json!(questions);
        for (row, question) in document_.as_array_mut().into_iter().flatten().zip(&questions) {
            row["asker"] = json!(self.institution_name(question.asker));
        }
        document(&document_)
    }

    /// Keeps a person's decision: in the log first, then where it counts.
    pub(super) async fn approve(
        &mut self,
        caller: PublicKey,
        bytes: &[u8],
    ) -> anyhow::Result<Answer> {
        let refuse = |error: &str| {
            Answer::Refused(
                Problem::new(ProblemClass::Refused, error.to_owned())
                    .hint("see what waits for you: allmend inbox"),
            )
        };
        let approval = match Signed::<Approval>::from_bytes(bytes)
            .and_then(|signed| signed.verify(&self.local.federation))
        {
            Ok(approval) => approval,
            Err(error) => {
                let problem = Problem::new(ProblemClass::Usage, "the decision does not hold");
                return Ok(Answer::Refused(problem.because(error)));
            }
        };
        if approval.signer != caller {
            return Ok(refuse("the decision is signed by another key than yours"));
        }
        if approval.node != self.local.node {
            return Ok(refuse("the decision names another node"));
        }
        if let Err(why) = self.stewards.may_decide(&approval) {
            return Ok(refuse(&why));
        }
        let message: AnyMessage = approval.clone().into();
        self.step(vec![Input::Note(Box::new(message))]).await?;
        self.stewards.decided(approval);
        Ok(Answer::Done {})
    }

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
        let report = self.gate_report(release.job, release.report);
        let attached: Vec<AnyMessage> = report.into_iter().collect();
        self.step(vec![Input::Note(Box::new(recall.clone().into()))]).await?;
        let told: Vec<NodeId> = self
            .core
            .roster()
            .nodes()
            .map(|cert| cert.node)
            .filter(|node| *node != self.local.node)
            .collect();
        for node in &told {
            self.send(*node, &recall.clone().into(), &attached);
        }
        // This node obeys first of all.
        self.heed(&recall, &attached).await?;
        let names: Vec<String> = told.iter().map(|node| self.node_name(*node)).collect();
        Ok(document(&json!({ "recall": recall.id(), "adapter": adapter, "told": names })))
    }

    /// Home has counted a lease: what its job has left of training goes, unless the job may go on here.
    pub(super) fn counted(&self, lease: MessageId) {
        let Some(held) = self.core.lease_book().lease(lease) else { return };
        let job = &held.work().job;
        if self.core.lease_book().may_go_on(job.id()) {
            return;
        }
        self.forget_training(job.id(), Some((job.input.digest, job.input.bytes)));
    }

    /// What jobs left of training that were counted while this node was away.
    pub(super) fn forget_counted(&self) {
        for job in self.stewards.training() {
            let book = self.core.lease_book();
            if !book.may_go_on(job) {
                let input = book.work_of(job).map(|work| &work.job.input);
                self.forget_training(job, input.map(|input| (input.digest, input.bytes)));
            }
        }
    }

    /// Deletes it, and has the deletion of rows logged if a lease brought them.
    fn forget_training(&self, job: MessageId, input: Option<(Digest, u64)>) {
        let (stewards, events) = (Arc::clone(&self.stewards), self.events.clone());
        tokio::spawn(async move {
            let deleting = move || stewards.forget_training(job, now());
            let deleted = tokio::task::spawn_blocking(deleting).await;
            if let (Ok(Some(_)), Some((input, bytes))) = (deleted, input) {
                let _ = events.send(Event::Deleted { job, input, bytes }).await;
            }
        });
    }

    /// Signs and logs that the rows that a job brought are gone.
    pub(super) async fn note_deletion(
        &mut self,
        job: MessageId,
        input: Digest,
        bytes: u64,
    ) -> anyhow::Result<()> {
        let body = Deletion {
            federation: self.local.federation,
            signer: self.local.node,
            charter: self.core.roster().charter().id(),
            job,
            input,
            bytes,
            issued: now(),
        };
        let deletion = Verified::sign(self.local.identity.signing(), body)?;
        self.step(vec![Input::Note(Box::new(deletion.into()))]).await
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
        match message {
            AnyMessage::Recall(recall) if recall.signer == from => {
                if self.core.roster().node_at(now(), from).is_ok() {
                    self.heed(recall, attached).await?;
                }
                Ok(true)
            }
            AnyMessage::RecallAnswer(answer) if answer.signer == from => {
                // Asked for by this node, or of no interest.
                let ours = self.stewards.release(answer.adapter).is_some();
                if ours && self.core.roster().node_at(now(), from).is_ok() {
                    self.step(vec![Input::Note(Box::new(message.clone()))]).await?;
                }
                Ok(true)
            }
            AnyMessage::Recall(_) | AnyMessage::RecallAnswer(_) => Ok(true),
            _ => Ok(false),
        }
    }

    /// Stops serving an adapter, deletes it, remembers that, and says so: a member of the federation may
    /// recall what it has released.
    async fn heed(
        &mut self,
        recall: &Verified<Recall>,
        attached: &[AnyMessage],
    ) -> anyhow::Result<()> {
        // A node's word counts for what its own gate released.
        let theirs = attached.iter().any(|message| match message {
            AnyMessage::GateReport(report) => {
                report.id() == recall.report
                    && report.signer == recall.signer
                    && report.released == Some(recall.adapter)
            }
            _ => false,
        });
        if !theirs {
            tracing::warn!(adapter = %recall.adapter.short(), "a recall without its gate report");
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
            recall: recall.id(),
            adapter: recall.adapter,
            done: if held { RecallDone::Deleted } else { RecallDone::NotHeld },
            issued: now(),
        };
        let answer = Verified::sign(self.local.identity.signing(), answer)?;
        let mut notes = vec![Input::Local(state)];
        if recall.signer != self.local.node {
            notes.push(Input::Note(Box::new(recall.clone().into())));
        }
        notes.push(Input::Note(Box::new(answer.clone().into())));
        self.step(notes).await?;
        if recall.signer != self.local.node {
            self.send(recall.signer, &answer.into(), &[]);
        }
        Ok(())
    }
}
