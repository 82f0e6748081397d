//! A job as people and scripts see it.

use super::job::{Job, Stage};
use crate::io::{AttemptView, JobOutcomeRecord, JobView, Phase};
use crate::ledger::Ledger;

impl Job {
    /// Where the job is.
    pub fn phase(&self) -> Phase {
        match (&self.over, self.live_attempt(), self.stage) {
            (Some(over), _, _) => match over.outcome {
                JobOutcomeRecord::Finished => Phase::Finished,
                JobOutcomeRecord::Failed => Phase::Failed,
                JobOutcomeRecord::Refused => Phase::Refused,
                JobOutcomeRecord::Cancelled => Phase::Cancelled,
                JobOutcomeRecord::Expired => Phase::Expired,
            },
            (None, Some(attempt), _) if attempt.lease.is_some() => Phase::Running,
            (None, Some(_), _) => Phase::Assigned,
            (None, None, Stage::Asking { .. }) => Phase::Asking,
            (None, None, _) => Phase::Queued,
        }
    }

    /// The job with what the ledger knows of it.
    pub(crate) fn view(&self, ledger: &Ledger) -> JobView {
        let account = self.grant.as_ref().and_then(|grant| ledger.account(grant.id()));
        let settlement = account.and_then(|account| account.settlement());
        let attempts = self.attempts.iter().map(|(number, attempt)| {
            let line = account.and_then(|account| account.line(*number));
            let status = match (&attempt.over, &attempt.lease) {
                (Some(why), _) => why.clone(),
                (None, Some(_)) => "running".to_owned(),
                (None, None) => "waiting for the lease".to_owned(),
            };
            AttemptView {
                attempt: *number,
                node: attempt.node(),
                lease: attempt.lease.as_ref().map(|lease| lease.id()),
                fence: attempt.lease.as_ref().map(|lease| lease.fence),
                receipt: line.and_then(|line| Some(line.receipt.as_ref()?.id())),
                tokens: line.map_or(0, |line| line.tokens),
                paid_micro: account
                    .and_then(|account| account.paid(*number))
                    .map(|credits| credits.as_micro()),
                status,
            }
        });
        JobView {
            job: self.spec.id(),
            phase: self.phase(),
            why: self.why.clone(),
            attempts: attempts.collect(),
            considered: self.considered.clone(),
            cost_micro: settlement.map(|settlement| settlement.total.as_micro()),
            settlement: settlement.map(|settlement| settlement.id()),
        }
    }
}
