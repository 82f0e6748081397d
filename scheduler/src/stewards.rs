//! The seam to whoever decides about datasets: policies in three layers and people's approvals. The core
//! asks at every probe, assignment and renewal; the answer is never remembered.

use std::fmt;

use allmend_protocol::cert::ResearcherCert;
use allmend_protocol::finetune::FinetuneWork;
use allmend_protocol::ids::{Digest, InstitutionId, MessageId};
use allmend_protocol::job::JobSpec;
use allmend_protocol::offer::Reason;
use allmend_protocol::time::Timestamp;
use allmend_protocol::units::Jurisdiction;

/// Decides what may be done with the datasets of one node, and what was made from them.
pub trait Stewards: fmt::Debug + Send + Sync {
    /// Whether `question` may run now. Whatever goes wrong is a refusal.
    fn decide(&self, question: &DataQuestion<'_>) -> DataVerdict;

    /// Whether an adapter that this node serves may be used now.
    ///
    /// # Errors
    /// Every reason against it; whatever goes wrong is one.
    fn may_use(&self, question: &AdapterQuestion<'_>) -> Result<(), Vec<Reason>>;
}

/// A job that would use an adapter.
#[derive(Clone, Copy, Debug)]
pub struct AdapterQuestion<'a> {
    /// The adapter's id.
    pub adapter: Digest,
    /// What the researcher signed.
    pub spec: &'a JobSpec,
    /// The researcher's certificate.
    pub cert: &'a ResearcherCert,
    /// Where the researcher's institution is.
    pub jurisdiction: Jurisdiction,
    /// Whose node this is.
    pub node_institution: InstitutionId,
    /// Where this node stands.
    pub node_jurisdiction: Jurisdiction,
    /// When.
    pub now: Timestamp,
}

/// A job that would read datasets of this node.
#[derive(Clone, Copy, Debug)]
pub struct DataQuestion<'a> {
    /// The job's id.
    pub job: MessageId,
    /// What the researcher signed.
    pub spec: &'a JobSpec,
    /// Its work.
    pub work: &'a FinetuneWork,
    /// The researcher's certificate.
    pub cert: &'a ResearcherCert,
    /// Where the researcher's institution is, as the charter or its certificate says.
    pub jurisdiction: Jurisdiction,
    /// Whose node this is.
    pub node_institution: InstitutionId,
    /// Where this node stands.
    pub node_jurisdiction: Jurisdiction,
    /// On what occasion.
    pub occasion: Occasion,
    /// When.
    pub now: Timestamp,
}

/// On what occasion stewards are asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Occasion {
    /// Somebody wants to know what would be said. Nobody is bothered, and nothing is kept.
    Quote,
    /// The job would start here.
    Start,
    /// It has a lease here already, and asks to go on.
    Renewal,
}

/// What is said to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DataVerdict {
    /// Every layer allows it.
    Allow,
    /// Some layer refuses, for these reasons.
    Refuse(Vec<Reason>),
    /// A person must decide first.
    Pending {
        /// Whose approval is missing.
        obligations: Vec<String>,
        /// Finds the question again.
        ticket: Vec<u8>,
        /// When the question lapses.
        expires: Timestamp,
    },
}
