//! The leases as the journal tells them.

use std::collections::BTreeMap;

use allmend_protocol::envelope::Verified;
use allmend_protocol::finetune::Task;
use allmend_protocol::grant::Assign;
use allmend_protocol::ids::MessageId;
use allmend_protocol::lease::Lease;
use allmend_protocol::message::AnyMessage;
use allmend_protocol::receipt::{Receipt, Settlement};
use allmend_protocol::time::DurationMs;

use super::{Held, LeaseBook};
use crate::core::RecoverError;
use crate::io::Work;

/// Assignments heard, waiting for the lease that answers them: at most a few at a time, for the
/// lease follows at once.
#[derive(Debug, Default)]
pub(crate) struct Assigned(BTreeMap<MessageId, (Verified<Assign>, Vec<AnyMessage>)>);

impl Assigned {
    pub(crate) fn insert(&mut self, assign: Verified<Assign>, attached: Vec<AnyMessage>) {
        self.0.insert(assign.id(), (assign, attached));
    }
}

impl LeaseBook {
    pub(crate) fn replay_lease(
        &mut self,
        assigned: &mut Assigned,
        lease: Verified<Lease>,
        skew: DurationMs,
    ) -> Result<(), RecoverError> {
        let of = lease.id();
        let missing = |what| RecoverError::Missing { what, of };
        let (assign, attached) =
            assigned.0.remove(&lease.assign).ok_or_else(|| missing("assignment"))?;
        let (mut job, mut grant, mut cert) = (None, None, None);
        for message in attached {
            match message {
                AnyMessage::JobSpec(found) => job = Some(found),
                AnyMessage::Grant(found) => grant = Some(found),
                AnyMessage::ResearcherCert(found) => cert = Some(found),
                _ => {}
            }
        }
        let job = job.ok_or_else(|| missing("job spec"))?;
        let grant = grant.ok_or_else(|| missing("grant"))?;
        let cert = cert.ok_or_else(|| missing("certificate"))?;
        let task = Task::from_work(&job.work).map_err(|_| missing("readable work"))?;
        let home = assign.signer;
        self.enter(Held::new(Work { lease, job, grant, assign, cert, home }, task), skew);
        Ok(())
    }

    pub(crate) fn replay_progress(&mut self, lease: MessageId, tokens: u32) {
        if let Some(held) = self.leases.get_mut(&lease) {
            held.tokens = held.tokens.max(tokens);
            held.tokens_recorded = held.tokens;
        }
    }

    pub(crate) fn replay_contract(&mut self, lease: MessageId, contract: MessageId) {
        if let Some(held) = self.leases.get_mut(&lease) {
            held.contract.get_or_insert(contract);
        }
    }

    pub(crate) fn replay_receipt(&mut self, receipt: Verified<Receipt>) {
        let id = receipt.lease;
        if let Some(held) = self.leases.get_mut(&id) {
            held.receipt = Some(receipt);
            self.live.remove(&id);
            self.unsettled.insert(id);
        }
    }

    pub(crate) fn replay_settlement(&mut self, settlement: &Settlement) {
        for id in self.unsettled.iter().copied().collect::<Vec<_>>() {
            let grant = self.leases.get(&id).map(|held| held.work.lease.grant);
            if grant == Some(settlement.grant) {
                self.enter_settled(id);
            }
        }
    }
}
