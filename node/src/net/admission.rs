//! Who is a member right now: the one table that both planes ask.

use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{SystemTime, UNIX_EPOCH},
};

use allmend_protocol::ids::NodeId;

use super::limits::{MEMBERS_MAX, REFUSED_REMEMBERED_MAX};

/// Random bytes drawn at a process's start, so that a peer's restart is noticed.
pub(super) type Instance = [u8; 16];

/// Wall-clock milliseconds since the Unix epoch; certificates expire by this clock.
pub(super) fn now_unix_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// What a hello established about a member.
#[derive(Clone, Copy, Debug)]
pub(super) struct Admission {
    pub(super) expires_unix_ms: u64,
    pub(super) instance: Instance,
}

/// Admissions in force, and the reasons last given to those refused.
#[derive(Debug, Default)]
pub(super) struct Admissions {
    members: Mutex<BTreeMap<NodeId, Admission>>,
    refused: Mutex<BTreeMap<NodeId, String>>,
}

impl Admissions {
    /// Enters or renews a member; false if the table is full.
    pub(super) fn admit(&self, node: NodeId, admission: Admission) -> bool {
        let mut members = lock(&self.members);
        if members.len() >= MEMBERS_MAX && !members.contains_key(&node) {
            return false;
        }
        members.insert(node, admission);
        drop(members);
        lock(&self.refused).remove(&node);
        true
    }

    /// Extends a member's admission without a new connection; false if it is not a member.
    pub(super) fn renew(&self, node: &NodeId, expires_unix_ms: u64) -> bool {
        match lock(&self.members).get_mut(node) {
            Some(admission) => {
                admission.expires_unix_ms = expires_unix_ms;
                true
            }
            None => false,
        }
    }

    /// The admission of `node`, if it is in force now.
    pub(super) fn current(&self, node: &NodeId) -> Option<Admission> {
        let admission = lock(&self.members).get(node).copied()?;
        (admission.expires_unix_ms > now_unix_ms()).then_some(admission)
    }

    pub(super) fn remove(&self, node: &NodeId) {
        lock(&self.members).remove(node);
    }

    /// Removes and returns the members whose admission has run out at `now_unix_ms`.
    pub(super) fn expire(&self, now_unix_ms: u64) -> Vec<NodeId> {
        let mut members = lock(&self.members);
        let expired: Vec<NodeId> = members
            .iter()
            .filter(|(_, admission)| admission.expires_unix_ms <= now_unix_ms)
            .map(|(node, _)| *node)
            .collect();
        for node in &expired {
            members.remove(node);
        }
        expired
    }

    /// Notes a refusal; true if this reason is new for this peer and so worth a log line.
    pub(super) fn note_refusal(&self, node: NodeId, reason: &str) -> bool {
        let mut refused = lock(&self.refused);
        if refused.get(&node).is_some_and(|known| known == reason) {
            return false;
        }
        if refused.len() >= REFUSED_REMEMBERED_MAX && !refused.contains_key(&node) {
            refused.clear();
        }
        refused.insert(node, reason.to_owned());
        true
    }
}

/// A poisoned table is still a table: its entries are replaced whole.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(byte: u8) -> NodeId {
        NodeId::from_bytes([byte; 32])
    }

    #[test]
    fn admissions_expire_once() {
        let table = Admissions::default();
        assert!(table.admit(node(1), Admission { expires_unix_ms: u64::MAX, instance: [0; 16] }));
        assert!(table.admit(node(2), Admission { expires_unix_ms: 10, instance: [0; 16] }));
        assert!(table.current(&node(1)).is_some());
        assert!(table.current(&node(2)).is_none());
        assert_eq!(table.expire(10), vec![node(2)]);
        assert!(table.expire(10).is_empty());
        assert!(!table.renew(&node(2), u64::MAX));
    }

    #[test]
    fn a_reason_is_new_once() {
        let table = Admissions::default();
        assert!(table.note_refusal(node(1), "expired"));
        assert!(!table.note_refusal(node(1), "expired"));
        assert!(table.note_refusal(node(1), "revoked"));
    }

    #[test]
    fn the_table_is_bounded() {
        let table = Admissions::default();
        let admission = Admission { expires_unix_ms: u64::MAX, instance: [0; 16] };
        for index in 0..MEMBERS_MAX {
            let mut bytes = [0; 32];
            bytes[..8].copy_from_slice(&index.to_be_bytes());
            assert!(table.admit(NodeId::from_bytes(bytes), admission));
        }
        assert!(!table.admit(node(255), admission));
    }
}
