//! Checks logs offline, with public keys alone.
//!
//! [`verify_dirs`] reads log directories as rsync or a web server copied them, trusts none of
//! their bytes, recomputes every hash and signature, and then follows the messages across all logs
//! (specs/log.md §8). It needs no node, no network and no clock: two auditors with the same files
//! reach the same report.

mod adapters;
mod chain;
mod contracts;
mod dir;
mod equivocation;
mod log_reader;
mod members;
mod report;
mod slots;

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use allmend_protocol::ids::NodeId;

pub use report::{Balance, Fault, Finding, LogSummary, Report};

use chain::Chain;
use log_reader::ReadLog;
use members::Members;
use report::Notes;

/// Checks the logs in these directories: each one of them, and all against one another.
///
/// A directory is a log, or holds one under `log/`, as a node's own does. Whatever is wrong becomes
/// a finding; the function itself cannot fail.
pub fn verify_dirs(dirs: &[PathBuf]) -> Report {
    let mut notes = Notes::default();
    let read: Vec<ReadLog> = dirs.iter().map(|dir| log_reader::read(dir, &mut notes)).collect();
    let logs = equivocation::without_copies(read, &mut notes);
    let members = Members::collect(&logs, &mut notes);
    let verified = members.verify_messages(&logs, &mut notes);
    let present: BTreeSet<NodeId> = logs.iter().filter_map(|log| log.node).collect();
    let damaged: BTreeSet<NodeId> = notes.damaged_nodes(&logs);
    let mut chain = Chain::new(&members, present, damaged, &verified);
    chain.check(&mut notes);
    contracts::check(&mut chain, &mut notes);
    adapters::check(&mut chain, &mut notes);
    slots::check(&verified, &mut notes);
    let (balances, missing_logs) = chain.finish();
    let mut kinds = BTreeMap::new();
    let summaries: Vec<LogSummary> = logs.iter().map(|log| log.summary(&members)).collect();
    for summary in &summaries {
        for (kind, count) in &summary.kinds {
            *kinds.entry(kind.clone()).or_default() += count;
        }
    }
    notes.into_report(summaries, kinds, members.federation(), balances, missing_logs)
}
