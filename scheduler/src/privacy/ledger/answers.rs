//! What the ledger answers.

use std::fmt;

use allmend_protocol::ids::MessageId;

use super::LedgerRecord;
use crate::privacy::{Delta, Lineage, MILLI_EPSILON_INFINITE};

/// A reservation is there.
#[derive(Clone, Debug, PartialEq, Eq)]
#[must_use = "the record must be durable before the run begins"]
pub struct Reserved {
    /// What must be durable before the run begins; absent when it was reserved before.
    pub record: Option<LedgerRecord>,
}

/// What a job would cost one dataset.
///
/// # Units
/// Thousandths, rounded up; [`MILLI_EPSILON_INFINITE`] without a bound.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quote {
    /// The dataset.
    pub lineage: Lineage,
    /// The δ of all three.
    pub delta: Delta,
    /// ε of the job alone.
    pub milli_epsilon_job: u64,
    /// ε of all that came before, and of what is reserved.
    pub milli_epsilon_before: u64,
    /// ε of both. Less than their sum: divergences add up, and ε is made of the sum.
    pub milli_epsilon_after: u64,
}

/// Why the ledger does not do it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refused {
    /// The run would take the dataset over its budget.
    OverBudget {
        /// The dataset.
        lineage: Lineage,
        /// ε of the job alone, in thousandths.
        milli_epsilon_job: u64,
        /// ε of what came before.
        milli_epsilon_before: u64,
        /// ε with the job.
        milli_epsilon_after: u64,
        /// The most allowed.
        milli_epsilon_max: u64,
    },
    /// The dataset has a privacy budget and the run is not private.
    NotPrivate {
        /// The dataset.
        lineage: Lineage,
    },
    /// The job has an open reservation, and another one.
    AlreadyReserved {
        /// The job.
        job: MessageId,
    },
    /// No reservation of the job is open.
    UnknownJob {
        /// The job.
        job: MessageId,
    },
    /// As many reservations are open as a node may have.
    TooManyOpen,
    /// Not a reservation or record: which rule is broken.
    Malformed(&'static str),
}

impl std::error::Error for Refused {}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Refused::OverBudget {
                milli_epsilon_job: job,
                milli_epsilon_before: before,
                milli_epsilon_after: after,
                milli_epsilon_max: max,
                ..
            } => write!(
                f,
                "the dataset's privacy budget is ε = {}, of which {} is spent or reserved; this job \
                 of ε = {} would bring it to {}: ask for fewer steps, more noise, or a lower sampling \
                 rate",
                Epsilon(*max),
                Epsilon(*before),
                Epsilon(*job),
                Epsilon(*after)
            ),
            Refused::NotPrivate { .. } => f.write_str(
                "the dataset has a privacy budget, so only differentially private training is \
                 allowed: add [privacy] to the job",
            ),
            Refused::AlreadyReserved { job } => {
                write!(f, "job {job} has already reserved something else of a privacy budget")
            }
            Refused::UnknownJob { job } => {
                write!(f, "job {job} has reserved nothing of a privacy budget")
            }
            Refused::TooManyOpen => {
                f.write_str("too many runs have reserved something of a privacy budget: try later")
            }
            Refused::Malformed(rule) => write!(f, "not a record of a privacy budget: {rule}"),
        }
    }
}

/// ε for people, from thousandths.
struct Epsilon(u64);

impl fmt::Display for Epsilon {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            MILLI_EPSILON_INFINITE.. => f.write_str("∞"),
            milli => write!(f, "{}.{:03}", milli / 1_000, milli % 1_000),
        }
    }
}
