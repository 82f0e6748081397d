//! The whole gate: everything is checked, and either all of it leaves or none.

use std::io::Read;

use allmend_protocol::ids::Digest;

use crate::bundle::{Bundle, BundleError};
use crate::card::CardFacts;
use crate::declared::Declared;
use crate::inspect::{AdapterLimits, Precision, inspect};
use crate::measures::Measures;
use crate::metrics::Metrics;
use crate::peft::PeftConfig;
use crate::rules::{Rules, RunFacts, judge};
use crate::stop::{Rule, Stop, distinct};

/// What a worker hands over.
#[derive(Debug)]
pub struct Worked<'a, R> {
    /// The adapter, a safetensors file.
    pub adapter: R,
    /// Bytes of it, as announced.
    pub adapter_len: u64,
    /// Its record of metrics.
    pub metrics: &'a [u8],
    /// Its record of measures.
    pub measures: &'a [u8],
}

/// One dataset's rules, and what the node knows of the run on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Terms {
    /// The rules.
    pub rules: Rules,
    /// The facts.
    pub facts: RunFacts,
}

/// What was agreed beforehand.
#[derive(Clone, Debug, PartialEq)]
pub struct Request<'a> {
    /// The adapter without its values.
    pub declared: &'a Declared,
    /// Names of the modules that are changed, and the rest that PEFT wants to know.
    pub config: &'a PeftConfig,
    /// One for each dataset; the strictest counts.
    pub terms: &'a [Terms],
    /// What the model card says.
    pub card: &'a CardFacts,
}

/// An adapter that broke no rule. It may still have to wait for a person.
#[derive(Clone, PartialEq)]
pub struct Passed {
    bundle: Bundle,
    bytes: Vec<u8>,
    id: Digest,
    metrics: Metrics,
    measures: Measures,
    second_approval: bool,
}

/// An adapter that may leave.
#[derive(Clone, PartialEq)]
pub struct Released {
    /// Its id: SHA-256 of `bytes`.
    pub id: Digest,
    /// The bundle (specs/adapter.md §1).
    pub bytes: Vec<u8>,
    /// What may be told of the run.
    pub metrics: Metrics,
}

/// Checks everything that a worker hands over.
///
/// # Errors
/// Every rule that is broken, each with its own reason and once. Nothing is released then.
///
/// # Panics
/// Never for what a worker can send; `request` is ours.
pub fn pass<R: Read>(worked: Worked<'_, R>, request: &Request<'_>) -> Result<Passed, Vec<Stop>> {
    let rules = || request.terms.iter().map(|terms| &terms.rules);
    let limits = strictest(rules().map(|rules| rules.adapter));
    let adapter = inspect(worked.adapter, worked.adapter_len, request.declared, &limits);
    let metrics = Metrics::decode(worked.metrics);
    let measures = Measures::decode(worked.measures);
    let mut stops = Vec::new();
    stops.extend(adapter.as_ref().err().into_iter().flatten().cloned());
    stops.extend(metrics.as_ref().err().cloned());
    stops.extend(measures.as_ref().err().cloned());
    for terms in request.terms {
        // Rules about rows, subjects and runs are told also when nothing was measured.
        let measured = measures.as_ref().ok();
        stops.extend(judge(&terms.rules, &terms.facts, measured));
    }
    let (Ok(adapter), Ok(metrics), Ok(measures), true) =
        (adapter, metrics, measures, stops.is_empty())
    else {
        return Err(distinct(stops));
    };
    let private = request.terms.iter().any(|terms| terms.facts.private);
    let told = !private || rules().all(|rules| rules.metrics_beside_privacy);
    let metrics = if told { metrics } else { metrics.withheld() };
    let rounded = rules().any(|rules| rules.precision == Precision::Bf16);
    let precision = if rounded { Precision::Bf16 } else { Precision::AsTrained };
    let card = request.card.card(request.declared, &metrics, &measures);
    let bundle = Bundle::of(request.config, adapter.file(precision), card).map_err(unusable)?;
    let bytes = bundle.to_bytes();
    Ok(Passed {
        id: Digest::of(&bytes),
        bundle,
        bytes,
        metrics,
        measures,
        second_approval: rules().any(|rules| rules.second_approval),
    })
}

impl Passed {
    /// The adapter's id, which an approval of the output names.
    pub fn id(&self) -> Digest {
        self.id
    }

    /// What the card, and a person who approves, are shown.
    pub fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    /// What the card, and a person who approves, are shown.
    pub fn measures(&self) -> &Measures {
        &self.measures
    }

    /// The model card.
    pub fn card(&self) -> &str {
        self.bundle.card()
    }

    /// Whether a person must approve this adapter.
    pub fn waits(&self) -> bool {
        self.second_approval
    }

    /// The bundle, for keeping it in the steward's directory while a person decides.
    pub fn bytes_held(&self) -> &[u8] {
        &self.bytes
    }

    /// Releases it: at once when no person must approve, else when one of the `approved` outputs is
    /// this one.
    ///
    /// # Errors
    /// Itself, when it has to wait.
    pub fn release(self, approved: &[Digest]) -> Result<Released, Box<Passed>> {
        if self.second_approval && !approved.contains(&self.id) {
            return Err(Box::new(self));
        }
        Ok(Released { id: self.id, bytes: self.bytes, metrics: self.metrics })
    }
}

impl std::fmt::Debug for Passed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "Passed({:?}, {} bytes, waits: {})",
            self.id,
            self.bytes.len(),
            self.second_approval
        )
    }
}

impl std::fmt::Debug for Released {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Released({:?}, {} bytes)", self.id, self.bytes.len())
    }
}

fn strictest(limits: impl Iterator<Item = AdapterLimits>) -> AdapterLimits {
    let both = |one: AdapterLimits, other: AdapterLimits| AdapterLimits {
        bytes_max: one.bytes_max.min(other.bytes_max),
        factor_norm_max_milli: one.factor_norm_max_milli.min(other.factor_norm_max_milli),
        update_norm_max_milli: one.update_norm_max_milli.min(other.update_norm_max_milli),
    };
    limits.reduce(both).unwrap_or_default()
}

/// The files that we made ourselves are refused: our own request was inconsistent.
fn unusable(error: BundleError) -> Vec<Stop> {
    vec![Stop::new(Rule::AdapterDamaged, format!("the adapter cannot be packed: {error}"))]
}
