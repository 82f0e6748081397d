//! The core as the journal tells it: each machine exactly as it was when the last record was
//! written.

use std::collections::BTreeMap;

use allmend_protocol::advert::AdvertOrder;
use allmend_protocol::bytes::ByteString;
use allmend_protocol::envelope::{Envelope, EnvelopeError};
use allmend_protocol::ids::MessageId;
use allmend_protocol::message::AnyMessage;
use allmend_protocol::roster::Roster;

use super::{Core, Counters};
use crate::broker::Broker;
use crate::io::{Entry, LocalState, Record};
use crate::leasebook::{Assigned, LeaseBook};
use crate::ledger::Ledger;
use crate::settings::{Identity, Settings};
use crate::view::View;

/// Why a journal does not tell a state.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RecoverError {
    /// A message of another signer in the journal does not verify.
    #[error("the journal holds a message that does not verify: {0}")]
    Message(#[from] EnvelopeError),
    /// The journal refers to something that it does not hold.
    #[error("the journal lacks the {what} of {of}")]
    Missing {
        /// What.
        what: &'static str,
        /// Of which message.
        of: MessageId,
    },
    /// The journal is of a later log epoch than the node was told that it is in.
    #[error("the journal is of log epoch {journal}, this node is configured for {configured}")]
    LaterEpoch {
        /// The journal's.
        journal: u32,
        /// The configured one.
        configured: u32,
    },
    /// There are no incarnations left.
    #[error("the node was started too often in this log epoch; begin a new one")]
    IncarnationsUsedUp,
}

impl Core {
    /// Replays a journal. The node's new incarnation is the last one plus one; it becomes durable
    /// with the first effect of [`crate::io::Input::Started`].
    ///
    /// Leaves that the machines do not use (certificates of others, charters) are skipped.
    ///
    /// # Errors
    /// [`RecoverError`] for a journal that no core has written.
    pub fn recover(
        identity: Identity,
        settings: Settings,
        roster: Roster,
        records: impl IntoIterator<Item = Entry>,
    ) -> Result<Core, RecoverError> {
        let mut core = Core {
            incarnation: 0,
            started: None,
            local: LocalState::default(),
            local_changed: false,
            view: View::default(),
            own_order: AdvertOrder::default(),
            own_advert: None,
            broker: Broker::default(),
            ledger: Ledger::default(),
            book: LeaseBook::default(),
            counters: Counters::default(),
            identity,
            settings,
            roster,
        };
        let mut assigned = Assigned::default();
        for entry in records {
            match entry {
                Entry::Leaf(message) => core.replay_leaf(message, &mut assigned)?,
                Entry::Private(record) => core.replay_record(record, &mut assigned)?,
            }
        }
        core.incarnation =
            core.incarnation.checked_add(1).ok_or(RecoverError::IncarnationsUsedUp)?;
        let faults = core.settings.faults;
        if faults.attempt_reused_after_restart {
            core.broker.forget_attempts();
        }
        Ok(core)
    }

    fn replay_leaf(
        &mut self,
        message: AnyMessage,
        assigned: &mut Assigned,
    ) -> Result<(), RecoverError> {
        match message {
            AnyMessage::ResearcherCert(cert) => self.broker.replay_cert(cert),
            AnyMessage::JobSpec(job) => {
                let remembered_max = self.settings.limits.jobs_remembered_max;
                self.broker.replay_job(remembered_max, &mut self.ledger, job)?;
            }
            AnyMessage::Grant(grant) => self.broker.replay_grant(&mut self.ledger, grant),
            AnyMessage::Assign(assign) => self.broker.replay_assign(assign),
            AnyMessage::Settlement(settlement) => self.ledger.replay_settlement(settlement),
            AnyMessage::Lease(lease) => {
                self.book.replay_lease(assigned, lease, self.roster.skew())?;
            }
            AnyMessage::Receipt(receipt) => self.book.replay_receipt(receipt),
            AnyMessage::Contract(contract) => {
                self.book.replay_contract(contract.lease, contract.id());
            }
            _ => {}
        }
        Ok(())
    }

    fn replay_record(
        &mut self,
        record: Record,
        assigned: &mut Assigned,
    ) -> Result<(), RecoverError> {
        match record {
            Record::Started { epoch, incarnation } => self.replay_started(epoch, incarnation)?,
            Record::Heard { envelope, attached } => {
                let message = self.reopen(&envelope)?;
                match message {
                    AnyMessage::Lease(lease) => self.broker.replay_lease(&mut self.ledger, lease),
                    AnyMessage::Receipt(receipt) => self.ledger.replay_receipt(receipt),
                    AnyMessage::Settlement(settlement) => self.book.replay_settlement(&settlement),
                    AnyMessage::Assign(assign) => {
                        let attached = attached.iter().map(|bytes| self.reopen(bytes));
                        assigned.insert(assign, attached.collect::<Result<_, _>>()?);
                    }
                    _ => {}
                }
            }
            Record::Progress { lease, tokens } => self.book.replay_progress(lease, tokens),
            Record::Streamed { job, attempt, tokens } => {
                if let Some(grant) = self.broker.grant_of(job) {
                    self.ledger.replay_streamed(grant, attempt, tokens);
                }
            }
            Record::AttemptOver { job, attempt, why } => {
                self.broker.replay_attempt_over(job, attempt, why);
            }
            Record::JobOver { job, outcome, why } => {
                let skew = self.roster.skew();
                self.broker.replay_job_over(&mut self.ledger, skew, job, outcome, why);
            }
        }
        Ok(())
    }

    fn replay_started(&mut self, epoch: u32, incarnation: u32) -> Result<(), RecoverError> {
        let configured = self.identity.epoch;
        if epoch > configured {
            return Err(RecoverError::LaterEpoch { journal: epoch, configured });
        }
        // Incarnations count within an epoch.
        if epoch == configured {
            self.incarnation = self.incarnation.max(incarnation);
        }
        Ok(())
    }

    fn reopen(&self, bytes: &ByteString) -> Result<AnyMessage, RecoverError> {
        let envelope = Envelope::from_bytes(&bytes.0)?;
        Ok(AnyMessage::verify(&envelope, &self.identity.federation)?)
    }

    /// What the journal keeps of this state, as text: equal after a replay.
    #[doc(hidden)]
    pub fn durable_projection(&self) -> BTreeMap<&'static str, String> {
        BTreeMap::from([
            ("broker", format!("{:?}", self.broker.durable())),
            ("ledger", format!("{:?}", self.ledger.durable())),
            ("leasebook", format!("{:?}", self.book.durable())),
        ])
    }
}
