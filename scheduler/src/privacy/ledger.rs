//! The privacy budgets of a node's datasets (specs/privacy.md §4): reserved before a run, charged for
//! the steps that were made, added up over all jobs and requesters.
//!
//! A pure machine of records. Every change is first a [`LedgerRecord`] and then applied, by the same
//! function that replays it, so a replay cannot differ from what was lived. Who calls it MUST make
//! the record of a reservation durable before the run begins.
//!
//! Nothing is ever subtracted: what was revealed is a sum that only grows, beside the reservations
//! that are open. Of two jobs that race for the last of a budget the second one finds the first one's
//! reservation there, whole.

use std::collections::{BTreeMap, BTreeSet};

use allmend_protocol::ids::{MessageId, ResearcherId};
use serde::{Deserialize, Serialize};

use super::{Delta, Lineage, RdpVector};
use crate::core::Broken;

mod answers;
#[cfg(test)]
mod tests;

pub use answers::{Quote, Refused, Reserved};

/// The most datasets that one job may read, as in a mix.
pub const CHARGES_MAX: usize = 16;
/// The most reservations that may be open at once, over all datasets; a node runs a few at a time.
pub const OPEN_MAX: usize = 1_024;

/// How much a dataset may reveal over all of its versions, jobs and requesters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Budget {
    /// The largest ε, in thousandths.
    pub milli_epsilon_max: u64,
    /// At this δ.
    pub delta: Delta,
}

/// One dataset that a job reads.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Charge {
    /// The dataset, through all of its versions.
    pub lineage: Lineage,
    /// Its budget, if its policy sets one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub budget: Option<Budget>,
}

/// What a job asks for before it runs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Reservation {
    /// The job.
    pub job: MessageId,
    /// Who asks.
    pub requester: ResearcherId,
    /// Steps at most.
    pub steps: u32,
    /// What one step reveals; absent: the run is not private.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub per_step: Option<RdpVector>,
    /// The datasets, in order of their lineages.
    pub charges: Vec<Charge>,
}

/// A change of the ledger. Applied in order, records give the ledger again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum LedgerRecord {
    /// A run may begin.
    Reserved(Box<Reservation>),
    /// A run has made so many steps.
    Progressed {
        /// The job.
        job: MessageId,
        /// Steps since it began.
        steps: u32,
    },
    /// A run is over.
    Settled {
        /// The job.
        job: MessageId,
        /// Steps that are charged.
        steps: u32,
    },
}

/// The privacy budgets of one node's datasets.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PrivacyLedger {
    accounts: BTreeMap<Lineage, Account>,
    open: BTreeMap<MessageId, Open>,
}

/// What one dataset has revealed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Account {
    /// By runs that are over.
    settled: RdpVector,
    /// Jobs with a reservation.
    open: BTreeSet<MessageId>,
    /// Private runs that are over and made a step.
    pub private_runs: u32,
    /// Runs without privacy that are over and made a step: they are counted, and in no ε.
    pub other_runs: u32,
    /// Runs of each requester that are over and made a step.
    runs: BTreeMap<ResearcherId, u32>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Open {
    reservation: Reservation,
    steps_made: u32,
}

impl Default for Account {
    fn default() -> Account {
        Account {
            settled: RdpVector::ZERO,
            open: BTreeSet::new(),
            private_runs: 0,
            other_runs: 0,
            runs: BTreeMap::new(),
        }
    }
}

impl PrivacyLedger {
    /// What `reservation` would cost each of its datasets, at their budgets' δ or else at `delta`.
    /// Changes nothing.
    pub fn quote(&self, reservation: &Reservation, delta: Delta) -> Vec<Quote> {
        let job = reservation.cost();
        let quote = |charge: &Charge| {
            let delta = charge.budget.map_or(delta, |budget| budget.delta);
            let before = self.committed(charge.lineage, Some(reservation.job));
            Quote {
                lineage: charge.lineage,
                delta,
                milli_epsilon_job: job.milli_epsilon(delta),
                milli_epsilon_before: before.milli_epsilon(delta),
                milli_epsilon_after: before.plus(&job).milli_epsilon(delta),
            }
        };
        reservation.charges.iter().map(quote).collect()
    }

    /// Sets aside what a job may reveal at most, on all of its datasets or on none.
    ///
    /// A reservation that is open already, and the same, is answered without a new record: a job that
    /// goes on from a snapshot is one run.
    ///
    /// # Errors
    /// [`Refused`]; the ledger is then as it was.
    pub fn reserve(&mut self, reservation: Reservation) -> Result<Reserved, Refused> {
        reservation.check()?;
        if let Some(open) = self.open.get(&reservation.job) {
            return match open.reservation == reservation {
                true => Ok(Reserved { record: None }),
                false => Err(Refused::AlreadyReserved { job: reservation.job }),
            };
        }
        if self.open.len() >= OPEN_MAX {
            return Err(Refused::TooManyOpen);
        }
        let job = reservation.cost();
        for charge in &reservation.charges {
            let Some(budget) = charge.budget else { continue };
            if reservation.per_step.is_none() {
                return Err(Refused::NotPrivate { lineage: charge.lineage });
            }
            let before = self.committed(charge.lineage, None);
            let after = before.plus(&job).milli_epsilon(budget.delta);
            if after > budget.milli_epsilon_max {
                return Err(Refused::OverBudget {
                    lineage: charge.lineage,
                    milli_epsilon_job: job.milli_epsilon(budget.delta),
                    milli_epsilon_before: before.milli_epsilon(budget.delta),
                    milli_epsilon_after: after,
                    milli_epsilon_max: budget.milli_epsilon_max,
                });
            }
        }
        let record = LedgerRecord::Reserved(Box::new(reservation));
        self.apply(&record);
        Ok(Reserved { record: Some(record) })
    }

    /// Takes note that `steps` steps were made since the run began, so that nobody charges for fewer.
    /// A record when that is news.
    pub fn progress(&mut self, job: MessageId, steps: u32) -> Option<LedgerRecord> {
        let open = self.open.get(&job)?;
        (steps > open.steps_made).then(|| {
            let record = LedgerRecord::Progressed { job, steps };
            self.apply(&record);
            record
        })
    }

    /// Ends a run that made `steps` steps and charges for them: for more when more had been noted, and
    /// for more than was reserved when more were made, since what is revealed is revealed.
    ///
    /// Whoever does not know how many were made charges for all: [`PrivacyLedger::commit_all`].
    ///
    /// # Errors
    /// [`Refused::UnknownJob`] when no reservation of `job` is open.
    pub fn commit(&mut self, job: MessageId, steps: u32) -> Result<LedgerRecord, Refused> {
        let open = self.open.get(&job).ok_or(Refused::UnknownJob { job })?;
        let record = LedgerRecord::Settled { job, steps: steps.max(open.steps_made) };
        self.apply(&record);
        Ok(record)
    }

    /// Ends a run of which nobody knows how far it came: all that was reserved is charged.
    ///
    /// # Errors
    /// [`Refused::UnknownJob`].
    pub fn commit_all(&mut self, job: MessageId) -> Result<LedgerRecord, Refused> {
        let open = self.open.get(&job).ok_or(Refused::UnknownJob { job })?;
        let steps = open.reservation.steps;
        self.commit(job, steps)
    }

    /// Gives back what was set aside, but for steps that were noted.
    ///
    /// # Errors
    /// [`Refused::UnknownJob`].
    pub fn refund(&mut self, job: MessageId) -> Result<LedgerRecord, Refused> {
        self.commit(job, 0)
    }

    /// Applies a record that was made before.
    ///
    /// Budgets are not asked again: they were when the record was made, and may have changed since.
    ///
    /// # Errors
    /// [`Refused`] for a record that can not follow those before it; the ledger is then as it was, and
    /// its records are damaged.
    pub fn replay(&mut self, record: &LedgerRecord) -> Result<(), Refused> {
        match record {
            LedgerRecord::Reserved(reservation) => {
                reservation.check()?;
                if self.open.contains_key(&reservation.job) {
                    return Err(Refused::AlreadyReserved { job: reservation.job });
                }
                if self.open.len() >= OPEN_MAX {
                    return Err(Refused::TooManyOpen);
                }
            }
            LedgerRecord::Progressed { job, steps } | LedgerRecord::Settled { job, steps } => {
                let open = self.open.get(job).ok_or(Refused::UnknownJob { job: *job })?;
                if *steps < open.steps_made {
                    return Err(Refused::Malformed("fewer steps than were noted before"));
                }
            }
        }
        self.apply(record);
        Ok(())
    }

    /// What a dataset has revealed or may reveal by what is reserved: all that a budget is compared
    /// with.
    pub fn revealed(&self, lineage: Lineage) -> RdpVector {
        self.committed(lineage, None)
    }

    /// The account of a dataset that was ever asked for.
    pub fn account(&self, lineage: Lineage) -> Option<&Account> {
        self.accounts.get(&lineage)
    }

    /// Runs of `requester` on a dataset: those that made a step, and those that may.
    pub fn runs(&self, lineage: Lineage, requester: ResearcherId) -> u32 {
        let Some(account) = self.accounts.get(&lineage) else { return 0 };
        let open = account.open.iter().filter_map(|job| self.open.get(job));
        let open = open.filter(|open| open.reservation.requester == requester).count();
        let over = account.runs.get(&requester).copied().unwrap_or(0);
        over.saturating_add(u32::try_from(open).unwrap_or(u32::MAX))
    }

    /// Jobs with a reservation, and the steps that were noted of each.
    pub fn open_jobs(&self) -> impl Iterator<Item = (MessageId, u32)> {
        self.open.iter().map(|(job, open)| (*job, open.steps_made))
    }

    /// The first rule that the ledger breaks.
    pub fn broken_invariant(&self) -> Option<Broken> {
        let mut listed = BTreeMap::<MessageId, usize>::new();
        for account in self.accounts.values() {
            account.open.iter().for_each(|job| *listed.entry(*job).or_default() += 1);
        }
        let whole = self
            .open
            .values()
            .all(|open| listed.get(&open.reservation.job) == Some(&open.reservation.charges.len()));
        (!whole || listed.len() != self.open.len())
            .then(|| Broken::new("privacy", "accounts and open reservations disagree".to_owned()))
    }

    /// Settled and reserved of a dataset, without the reservation of one job.
    fn committed(&self, lineage: Lineage, without: Option<MessageId>) -> RdpVector {
        let Some(account) = self.accounts.get(&lineage) else { return RdpVector::ZERO };
        let open = account.open.iter().filter(|&&job| Some(job) != without);
        let open = open.filter_map(|job| self.open.get(job)).map(Open::cost);
        open.fold(account.settled.clone(), |sum, cost| sum.plus(&cost))
    }

    /// The only place where the ledger changes. The record has been checked.
    fn apply(&mut self, record: &LedgerRecord) {
        match record {
            LedgerRecord::Reserved(reservation) => {
                for charge in &reservation.charges {
                    let account = self.accounts.entry(charge.lineage).or_default();
                    account.open.insert(reservation.job);
                }
                let open = Open { reservation: (**reservation).clone(), steps_made: 0 };
                self.open.insert(reservation.job, open);
            }
            LedgerRecord::Progressed { job, steps } => {
                if let Some(open) = self.open.get_mut(job) {
                    open.steps_made = *steps;
                }
            }
            LedgerRecord::Settled { job, steps } => {
                if let Some(open) = self.open.remove(job) {
                    for charge in &open.reservation.charges {
                        let account = self.accounts.entry(charge.lineage).or_default();
                        account.settle(&open.reservation, *steps);
                    }
                }
            }
        }
        debug_assert_eq!(self.broken_invariant(), None);
    }
}

impl Account {
    /// What runs that are over have revealed.
    pub fn settled(&self) -> &RdpVector {
        &self.settled
    }

    fn settle(&mut self, reservation: &Reservation, steps: u32) {
        self.open.remove(&reservation.job);
        if steps == 0 {
            return;
        }
        let count = match &reservation.per_step {
            Some(per_step) => {
                self.settled = self.settled.plus(&per_step.times(steps));
                &mut self.private_runs
            }
            None => &mut self.other_runs,
        };
        *count = count.saturating_add(1);
        let runs = self.runs.entry(reservation.requester).or_default();
        *runs = runs.saturating_add(1);
    }
}

impl Reservation {
    /// What all of its steps reveal; nothing that could be stated for a run that is not private.
    pub fn cost(&self) -> RdpVector {
        self.per_step.as_ref().map_or(RdpVector::ZERO, |per_step| per_step.times(self.steps))
    }

    fn check(&self) -> Result<(), Refused> {
        let malformed = |rule| Err(Refused::Malformed(rule));
        if !(1..=CHARGES_MAX).contains(&self.charges.len()) {
            return malformed("a reservation names 1 to 16 datasets");
        }
        if self.charges.windows(2).any(|pair| pair[0].lineage >= pair[1].lineage) {
            return malformed("datasets are in order, each once");
        }
        if self.steps == 0 {
            return malformed("a run has a step");
        }
        Ok(())
    }
}

impl Open {
    /// All that was reserved, or what was made when that is more.
    fn cost(&self) -> RdpVector {
        let steps = self.reservation.steps.max(self.steps_made);
        let per_step = self.reservation.per_step.as_ref();
        per_step.map_or(RdpVector::ZERO, |per_step| per_step.times(steps))
    }
}
