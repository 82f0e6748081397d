//! What data stewards ask of the daemon, and what becomes of rows afterwards (specs/approval.md,
//! specs/deletion.md).

use std::sync::Arc;

use allmend_protocol::envelope::{Signed, Verified};
use allmend_protocol::ids::{Digest, MessageId, PublicKey};
use allmend_protocol::message::AnyMessage;
use allmend_protocol::stewardship::{Approval, Deletion};
use allmend_scheduler::io::Input;
use serde_json::json;

use super::documents::document;
use super::{Daemon, Event};
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
}
