//! What an audit says.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use allmend_protocol::ids::{FederationId, InstitutionId, NodeId};
use allmend_protocol::log::TreeHash;
use serde::Serialize;

use super::log_reader::ReadLog;

/// Findings that are written out; the rest is counted. A log of garbage has one per entry.
const FINDINGS_MAX: usize = 1_000;

/// The result of an audit.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Report {
    /// The federation whose logs these are, if a charter was found.
    pub federation: Option<FederationId>,
    /// Each log that was read.
    pub logs: Vec<LogSummary>,
    /// Entries of each kind over all logs.
    pub kinds: BTreeMap<String, u64>,
    /// What each institution owes and is owed, by the settlements found.
    pub balances: Vec<Balance>,
    /// Nodes whose messages are referred to but whose logs were not given.
    pub missing_logs: Vec<NodeId>,
    /// Checks that could not be made, because a log is missing or damaged there.
    pub not_checked: u64,
    /// What is wrong, in the order of logs and entries.
    pub findings: Vec<Finding>,
    /// Findings above the number that is written out.
    pub findings_left_out: u64,
}

impl Report {
    /// Whether nothing is wrong.
    #[must_use]
    pub const fn ok(&self) -> bool {
        self.findings.is_empty() && self.findings_left_out == 0
    }
}

/// One log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct LogSummary {
    /// Its directory, as it was named.
    pub dir: String,
    /// Its name, by its checkpoint; else its directory.
    pub log: String,
    /// The node whose key signs it.
    pub node: Option<NodeId>,
    /// The node's name in its certificate.
    pub node_name: Option<String>,
    /// The node's institution, by its certificate.
    pub institution: Option<InstitutionId>,
    /// The institution's name.
    pub institution_name: Option<String>,
    /// Entries, by the checkpoint.
    pub size: u64,
    /// Root, by the checkpoint.
    pub root: Option<TreeHash>,
    /// Entries of each kind.
    pub kinds: BTreeMap<String, u64>,
}

/// What an institution paid and was paid.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Balance {
    /// The institution.
    pub institution: Option<InstitutionId>,
    /// Its name, if a charter or certificate gives one.
    pub name: Option<String>,
    /// Paid for its researchers, in micro-credits.
    pub debit_micro: u128,
    /// Earned by its nodes, in micro-credits.
    pub credit_micro: u128,
}

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// In which log.
    pub log: String,
    /// At which entry, if it is about one.
    pub entry: Option<u64>,
    /// What kind of message that entry is, as far as can be told.
    pub kind: Option<String>,
    /// What sort of fault it is.
    pub what: Fault,
    /// The particulars.
    pub why: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "log {}", self.log)?;
        if let Some(entry) = self.entry {
            write!(f, ", entry {entry}")?;
        }
        if let Some(kind) = &self.kind {
            write!(f, " ({kind})")?;
        }
        write!(f, ": {}", self.why)
    }
}

/// Sorts of fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Fault {
    /// A file is missing, unreadable or too large.
    File,
    /// The key or the checkpoint does not hold.
    Checkpoint,
    /// An entry is not the one that was signed for.
    EntryChanged,
    /// A tile does not agree with the entries and the signed root.
    TileChanged,
    /// An entry is no strict envelope of a known message with a strict signature.
    Message,
    /// A message belongs to another federation.
    Federation,
    /// A message of this kind, or by this signer, has no place in this log.
    Misplaced,
    /// Who signed had no certificate that held.
    Membership,
    /// A message refers to one that is not where it must be.
    Unmatched,
    /// Two messages that belong together disagree.
    Inconsistent,
    /// Data were read, something made of them was released, or an adapter was used, without the
    /// permission that it needs.
    Unpermitted,
    /// Two live leases in one slot (S1).
    SlotTaken,
    /// A fence was used twice (S2).
    FenceReused,
    /// A grant was settled twice (S3).
    SettledTwice,
    /// More was paid than was granted or earned (S3).
    Overpaid,
    /// More leases than attempts, or an attempt outside its range (S4).
    Attempts,
    /// Credits and debits differ (S6).
    Imbalance,
    /// One key signed two different things for one place (S7).
    Equivocation,
}

/// Where a finding is.
#[derive(Clone, Debug)]
pub(super) struct Place<'a> {
    pub(super) log: &'a str,
    pub(super) entry: Option<u64>,
    pub(super) kind: Option<&'a str>,
}

/// Findings as they come.
#[derive(Debug, Default)]
pub(super) struct Notes {
    findings: Vec<Finding>,
    left_out: u64,
    not_checked: u64,
    /// Logs whose own bytes are not in order.
    damaged: BTreeSet<String>,
}

impl Notes {
    /// Something is wrong.
    pub(super) fn find(&mut self, place: &Place<'_>, what: Fault, why: impl Into<String>) {
        let harms_log =
            matches!(what, Fault::File | Fault::Checkpoint | Fault::EntryChanged | Fault::Message);
        if harms_log {
            self.damaged.insert(place.log.to_owned());
        }
        if self.findings.len() == FINDINGS_MAX {
            self.left_out += 1;
            return;
        }
        self.findings.push(Finding {
            log: place.log.to_owned(),
            entry: place.entry,
            kind: place.kind.map(str::to_owned),
            what,
            why: why.into(),
        });
    }

    /// Something about a whole log is wrong.
    pub(super) fn find_log(&mut self, log: &str, what: Fault, why: impl Into<String>) {
        self.find(&Place { log, entry: None, kind: None }, what, why);
    }

    /// A check could not be made.
    pub(super) const fn skip(&mut self) {
        self.not_checked += 1;
    }

    /// Whether bytes of this log are not in order, so that something may be missing from it.
    pub(super) fn is_damaged(&self, log: &str) -> bool {
        self.damaged.contains(log)
    }

    /// Nodes from whose logs a message may be missing for a reason that is already a finding.
    pub(super) fn damaged_nodes(&self, logs: &[ReadLog]) -> BTreeSet<NodeId> {
        let damaged = logs.iter().filter(|log| self.damaged.contains(&log.name));
        damaged.filter_map(|log| log.node).collect()
    }

    pub(super) fn into_report(
        mut self,
        logs: Vec<LogSummary>,
        kinds: BTreeMap<String, u64>,
        federation: Option<FederationId>,
        balances: Vec<Balance>,
        missing_logs: Vec<NodeId>,
    ) -> Report {
        let order = |log: &str| logs.iter().position(|known| known.log == log);
        self.findings.sort_by_cached_key(|finding| (order(&finding.log), finding.entry));
        Report {
            federation,
            kinds,
            balances,
            missing_logs,
            not_checked: self.not_checked,
            findings: self.findings,
            findings_left_out: self.left_out,
            logs,
        }
    }
}
