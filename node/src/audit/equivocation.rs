//! Several copies of one log: either one continues the other, or its key is convicted (S7).

use allmend_protocol::log::{FullTree, root_of};

use super::log_reader::ReadLog;
use super::report::{Fault, Notes, Place};

/// Keeps the longest copy of each log, and finds copies that do not continue one another.
pub(super) fn without_copies(read: Vec<ReadLog>, notes: &mut Notes) -> Vec<ReadLog> {
    let mut kept: Vec<ReadLog> = Vec::new();
    for log in read {
        let known = kept.iter_mut().find(|known| log.node.is_some() && known.node == log.node);
        let Some(known) = known else {
            kept.push(log);
            continue;
        };
        compare(known, &log, notes);
        if size(&log) > size(known) && log.leaves.len() >= known.leaves.len() {
            *known = log;
        }
    }
    kept
}

fn size(log: &ReadLog) -> u64 {
    log.checkpoint.as_ref().map_or(0, |checkpoint| checkpoint.size)
}

fn compare(one: &ReadLog, other: &ReadLog, notes: &mut Notes) {
    let (Some(first), Some(second)) = (&one.checkpoint, &other.checkpoint) else { return };
    if first.size == second.size && first.root != second.root {
        let why = format!(
            "its key signed two roots for {} entries: in {} and in {}",
            first.size, one.dir, other.dir
        );
        notes.find_log(&one.name, Fault::Equivocation, why);
        return;
    }
    // Damaged copies prove nothing against the key.
    if !(leads_to_checkpoint(one) && leads_to_checkpoint(other)) {
        notes.skip();
        return;
    }
    let differs = one.leaves.iter().zip(&other.leaves).position(|(a, b)| a != b);
    if let Some(index) = differs {
        let place = Place { log: &one.name, entry: Some(index as u64), kind: None };
        let why = format!(
            "its key signed two histories: {} and {} differ from this entry on",
            one.dir, other.dir
        );
        notes.find(&place, Fault::Equivocation, why);
    }
}

fn leads_to_checkpoint(log: &ReadLog) -> bool {
    let tree: FullTree = log.leaves.iter().copied().collect();
    log.checkpoint
        .as_ref()
        .is_some_and(|checkpoint| root_of(&tree, checkpoint.size) == Ok(checkpoint.root))
}
