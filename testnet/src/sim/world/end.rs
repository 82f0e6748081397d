//! How a run must end: everything over, everything counted, everybody known to everybody.

use super::super::check::Violation;
use super::super::federation::NODES;
use super::{HEAL_AT_MS, World};

/// Views must have converged so long after healing and after the last start.
const CONVERGED_AFTER_MS: u64 = 12_000;

impl World<'_> {
    /// Liveness: every job over, every grant settled, no escrow, no lease, no receipt waiting.
    pub(super) fn is_over(&self) -> bool {
        let thawed = self.nodes.iter().map(|node| node.frozen_until_ms).max().unwrap_or_default();
        self.ms >= HEAL_AT_MS.max(self.last_start_ms).max(thawed) + CONVERGED_AFTER_MS
            && self.clients.iter().all(|client| client.done)
            && self.checker.unsettled().is_empty()
            && self.nodes.iter().all(|node| {
                node.core.as_ref().is_some_and(|core| {
                    core.open_jobs_count() == 0
                        && core.ledger().escrow_micro() == 0
                        && core.live_leases_count() == 0
                        && core.lease_book().unsettled_count() == 0
                })
            })
    }

    pub(super) fn what_is_left(&self) -> Violation {
        let mut what = Vec::new();
        for client in self.clients.iter().filter(|client| !client.done) {
            what.push(format!("job {} is not over", client.job.id().short()));
        }
        for grant in self.checker.unsettled() {
            what.push(format!("grant {} is not settled", grant.short()));
        }
        for (index, node) in self.nodes.iter().enumerate() {
            match &node.core {
                None => what.push(format!("node {index} is down")),
                Some(core) => what.push(format!(
                    "node {index}: {} jobs, {} set aside, {} live leases, {} receipts unsettled",
                    core.open_jobs_count(),
                    core.ledger().escrow_micro(),
                    core.live_leases_count(),
                    core.lease_book().unsettled_count()
                )),
            }
        }
        what.retain(|line| {
            !line.ends_with(": 0 jobs, 0 set aside, 0 live leases, 0 receipts unsettled")
        });
        Violation { rule: "liveness", what: what.join("; ") }
    }

    /// Views converge: everybody knows everybody, and nobody is taken for a cheat.
    pub(super) fn converged(&self) -> Result<(), Violation> {
        for (index, node) in self.nodes.iter().enumerate() {
            let Some(core) = &node.core else { continue };
            let known = core.view().iter().count();
            if known != NODES || core.view().evidence().next().is_some() {
                let what = format!("node {index} believes {known} adverts of {NODES}");
                return Err(Violation { rule: "convergence", what });
            }
        }
        Ok(())
    }
}
