//! The jobs as the journal tells them.

use allmend_protocol::cert::ResearcherCert;
use allmend_protocol::envelope::Verified;
use allmend_protocol::finetune::Task;
use allmend_protocol::grant::{Assign, Grant};
use allmend_protocol::ids::MessageId;
use allmend_protocol::job::JobSpec;
use allmend_protocol::lease::Lease;
use allmend_protocol::time::{DurationMs, Timestamp};

use super::Broker;
use super::job::Attempt;
use crate::core::RecoverError;
use crate::io::JobOutcomeRecord;
use crate::ledger::Ledger;

impl Broker {
    pub(crate) fn replay_cert(&mut self, cert: Verified<ResearcherCert>) {
        self.certs.insert(cert.id(), cert);
    }

    pub(crate) fn replay_job(
        &mut self,
        remembered_max: usize,
        ledger: &mut Ledger,
        spec: Verified<JobSpec>,
    ) -> Result<(), RecoverError> {
        let id = spec.id();
        if self.jobs.contains_key(&id) {
            return Ok(());
        }
        let cert = self.certs.get(&spec.certificate).cloned();
        let cert = cert.ok_or(RecoverError::Missing { what: "certificate", of: id })?;
        let task = Task::from_work(&spec.work)
            .map_err(|_| RecoverError::Missing { what: "readable work", of: id })?;
        self.enter(remembered_max, ledger, spec, cert, task);
        Ok(())
    }

    pub(crate) fn replay_grant(&mut self, ledger: &mut Ledger, grant: Verified<Grant>) {
        if let Some(job) = self.jobs.get_mut(&grant.job) {
            ledger.open(grant.clone(), job.task.prompt_tokens_max());
            job.grant = Some(grant);
        }
    }

    pub(crate) fn replay_assign(&mut self, assign: Verified<Assign>) {
        if let Some(job) = self.jobs.get_mut(&assign.job) {
            let number = assign.attempt;
            job.next_attempt = job.next_attempt.max(number.saturating_add(1));
            job.attempts.insert(number, Attempt::new(assign, Timestamp::ZERO));
        }
    }

    pub(crate) fn replay_lease(&mut self, ledger: &mut Ledger, lease: Verified<Lease>) {
        if let Some(job) = self.jobs.get_mut(&lease.job)
            && let Some(attempt) = job.attempts.get_mut(&lease.attempt)
        {
            attempt.lease = Some(lease.clone());
            ledger.enter_lease(lease);
        }
    }

    pub(crate) fn replay_attempt_over(&mut self, job: MessageId, attempt: u16, why: String) {
        if let Some(job) = self.jobs.get_mut(&job)
            && let Some(attempt) = job.attempts.get_mut(&attempt)
        {
            attempt.over = Some(why);
        }
    }

    pub(crate) fn replay_job_over(
        &mut self,
        ledger: &mut Ledger,
        skew: DurationMs,
        job: MessageId,
        outcome: JobOutcomeRecord,
        why: String,
    ) {
        self.enter_end(ledger, skew, job, outcome, why);
    }

    /// The grant of a job, for records that name only the job.
    pub(crate) fn grant_of(&self, job: MessageId) -> Option<MessageId> {
        self.jobs.get(&job)?.grant.as_ref().map(Verified::id)
    }

    /// The deliberate fault: a broker that lost its count of attempts.
    pub(crate) fn forget_attempts(&mut self) {
        for id in self.open.values() {
            if let Some(job) = self.jobs.get_mut(id) {
                job.attempts.clear();
                job.next_attempt = 1;
            }
        }
    }
}
