//! What a node promised by numbering its leases: a slot holds one live lease, a fence is used
//! once, an attempt has one lease and one assignment (S1, S2, S7).

use std::collections::BTreeMap;

use allmend_protocol::ids::{MessageId, NodeId};
use allmend_protocol::lease::{Fence, Lease};
use allmend_protocol::message::AnyMessage;

use super::members::Said;
use super::report::{Fault, Notes};

/// What one node has used so far, in the order of its log.
#[derive(Default)]
struct Used {
    fences: BTreeMap<Fence, u64>,
    attempts: BTreeMap<(MessageId, u16), u64>,
    assigns: BTreeMap<(MessageId, u16), u64>,
    /// Entry of the live lease of each epoch and slot, and its id.
    live: BTreeMap<(u32, u16), (u64, MessageId)>,
}

pub(super) fn check(all: &[Said<'_>], notes: &mut Notes) {
    let mut nodes: BTreeMap<NodeId, Used> = BTreeMap::new();
    for said in all {
        let used = nodes.entry(said.message.signer().into()).or_default();
        match &said.message {
            AnyMessage::Lease(lease) => used.lease(said, lease.id(), lease, notes),
            AnyMessage::Receipt(receipt) => {
                used.live.retain(|_, (_, lease)| *lease != receipt.lease);
            }
            AnyMessage::Assign(assign) => {
                let attempt = (assign.grant, assign.attempt);
                if let Some(before) = used.assigns.insert(attempt, said.entry.index) {
                    let why = format!(
                        "attempt {} was assigned before, by entry {before}: this convicts the node",
                        assign.attempt
                    );
                    notes.find(&said.place(), Fault::Equivocation, why);
                }
            }
            _ => {}
        }
    }
}

impl Used {
    fn lease(&mut self, said: &Said<'_>, id: MessageId, lease: &Lease, notes: &mut Notes) {
        let index = said.entry.index;
        let place = said.place();
        if let Some(before) = self.fences.insert(lease.fence, index) {
            let why = format!("fence {} was used before, by entry {before}", lease.fence);
            notes.find(&place, Fault::FenceReused, why);
        }
        if let Some(before) = self.attempts.insert((lease.grant, lease.attempt), index) {
            let why = format!(
                "attempt {} has a lease already, entry {before}: this convicts the node",
                lease.attempt
            );
            notes.find(&place, Fault::Equivocation, why);
        }
        let slot = (lease.fence.epoch, lease.slot);
        if let Some((before, _)) = self.live.insert(slot, (index, id)) {
            let why = format!("slot {} still holds the lease of entry {before}", lease.slot);
            notes.find(&place, Fault::SlotTaken, why);
        }
    }
}
