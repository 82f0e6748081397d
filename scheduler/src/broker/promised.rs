//! What this home has promised itself of other nodes' free slots.
//!
//! An advert is a little old and a probe holds nothing. A home with many jobs would ask one free
//! slot for all of them, and every assignment that comes second costs an attempt number. So a home
//! counts what it has given out since the advert, and how much it is asking already.

use std::collections::BTreeMap;

use allmend_protocol::ids::{MessageId, NodeId};
use allmend_protocol::time::DurationMs;

use super::Broker;
use crate::ctx::Ctx;

/// A node is asked for so many more jobs at once than it has free slots: answers get lost, and
/// offers are not taken.
const PROBES_BEYOND_SLOTS: u32 = 4;

/// A node's advert says within this time that a slot is taken.
const ADVERT_LAG: DurationMs = DurationMs::from_ms(600);

/// Promises by node.
#[derive(Clone, Debug, Default)]
pub(crate) struct Promised(BTreeMap<NodeId, Load>);

#[derive(Clone, Copy, Debug, Default)]
struct Load {
    /// Attempts given to it of which its advert does not know yet.
    given: u16,
    /// Probes that it has not answered yet.
    asked: u32,
}

impl Promised {
    /// What is left of `slots_free` advertised slots.
    pub(crate) fn left(&self, node: NodeId, slots_free: u16) -> u16 {
        let Load { given, asked } = self.0.get(&node).copied().unwrap_or_default();
        let left = slots_free.saturating_sub(given);
        if asked >= u32::from(left).saturating_add(PROBES_BEYOND_SLOTS) { 0 } else { left }
    }
}

impl Broker {
    /// What is promised to jobs other than `except`.
    pub(crate) fn promised(&mut self, ctx: &Ctx<'_>, except: Option<MessageId>) -> Promised {
        let mut promised = Promised::default();
        let jobs = &self.jobs;
        self.busy.retain(|id| {
            jobs.get(id).is_some_and(|job| {
                job.over.is_none() && (job.live_attempt().is_some() || !job.probes.is_empty())
            })
        });
        for job in self.busy.iter().filter(|id| Some(**id) != except) {
            let Some(job) = self.jobs.get(job) else { continue };
            for node in job.probes.keys() {
                promised.0.entry(*node).or_default().asked += 1;
            }
            let Some(attempt) = job.live_attempt() else { continue };
            let told = attempt.leased_at.is_some_and(|leased| {
                let advert = ctx.view.known(attempt.node()).map(|known| known.heard);
                leased.plus(ADVERT_LAG) <= ctx.now || advert.is_some_and(|heard| heard > leased)
            });
            if !told {
                let load = promised.0.entry(attempt.node()).or_default();
                load.given = load.given.saturating_add(1);
            }
        }
        promised
    }
}
