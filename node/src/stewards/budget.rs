//! The privacy budgets' durable form: the ledger's records in one file, on the platter before a run
//! begins (specs/privacy.md §5).

use std::path::Path;

use allmend_gate::record_file::{RECORD_BYTES_MAX, RecordFile, RecordFileError};
use allmend_protocol::encoding;
use allmend_protocol::ids::MessageId;
use allmend_scheduler::privacy::{Delta, LedgerRecord, PrivacyLedger, Quote, Reservation};

/// The ledger and its file.
#[derive(Debug)]
pub(super) struct Budgets {
    ledger: PrivacyLedger,
    file: RecordFile,
}

impl Budgets {
    /// Opens the file at `path`, made when it is not there; a torn last record is cut off.
    ///
    /// # Errors
    /// [`RecordFileError`]: what was revealed must not be forgotten, so a damaged file is no shorter one.
    pub(super) fn open(path: &Path) -> Result<Budgets, RecordFileError> {
        let mut ledger = PrivacyLedger::default();
        let file = RecordFile::open(path, |bytes| {
            let record: LedgerRecord =
                encoding::decode(bytes, RECORD_BYTES_MAX).map_err(|error| error.to_string())?;
            ledger.replay(&record).map_err(|error| error.to_string())
        })?;
        Ok(Budgets { ledger, file })
    }

    /// What a run would cost.
    pub(super) fn quote(&self, reservation: &Reservation, delta: Delta) -> Vec<Quote> {
        self.ledger.quote(reservation, delta)
    }

    /// Sets aside what a run may reveal; durable when it returns.
    ///
    /// # Errors
    /// In words: over the budget, or the disk says no.
    pub(super) fn reserve(&mut self, reservation: Reservation) -> Result<(), String> {
        let before = self.ledger.clone();
        let reserved = self.ledger.reserve(reservation).map_err(|refused| refused.to_string())?;
        let Some(record) = reserved.record else { return Ok(()) };
        self.file.append(&encoding::encode(&record)).map_err(|error| {
            // Not known to be on the platter, so not reserved.
            self.ledger = before;
            format!("the privacy budget cannot be recorded: {error}")
        })
    }

    /// Charges a run for the steps it has made, and gives the rest back.
    ///
    /// # Errors
    /// Those of the file. The reservation stays open then, which errs on the safe side.
    pub(super) fn settle(&mut self, job: MessageId, steps: u64) -> Result<(), RecordFileError> {
        let before = self.ledger.clone();
        let steps = u32::try_from(steps).unwrap_or(u32::MAX);
        // Without a reservation there is nothing to settle.
        let Ok(record) = self.ledger.commit(job, steps) else { return Ok(()) };
        self.file.append(&encoding::encode(&record)).inspect_err(|_| self.ledger = before)
    }
}
