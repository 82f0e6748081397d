//! Crashes and restarts: what was durable comes back, what was not may be gone.

use allmend_scheduler::core::{Core, Faults, Identity, Settings};
use allmend_scheduler::io::{Input, TICK_EVERY};

use super::super::check::{Checker, Violation};
use super::super::federation::{NODES, SKEW_MS};
use super::{Event, World};

impl World<'_> {
    /// The process dies: what was not durable may be gone, from some point on.
    pub(super) fn crash(&mut self, index: usize, in_step: bool) {
        let back = self.draw.within(200, 12_000);
        let off = self.draw.below(SKEW_MS + 1);
        let node = &mut self.nodes[index];
        node.dies_in_step = false;
        let Some(core) = node.core.take() else { return };
        let lost_max = node.journal.len() - node.durable;
        let kept = node.durable + self.draw.index(lost_max + 1);
        let whole = kept == node.journal.len() && !in_step;
        let faultless = self.options.faults == Faults::default();
        node.expected = (whole && faultless).then(|| core.durable_projection());
        for entry in node.journal.drain(kept..) {
            self.checker.lost(&entry);
        }
        node.durable = kept;
        node.escrow = Checker::escrow_in(node.journal.iter());
        node.life += 1;
        node.frozen_until_ms = 0;
        node.workers.clear();
        node.streams.clear();
        node.clock_off_ms = off;
        self.counts.crashes += 1;
        self.trace.line(format_args!("{} {index} dies, {kept} entries left", self.ms));
        self.after(back, Event::Restart { node: index });
    }

    pub(super) fn restart(&mut self, index: usize) -> Result<(), Violation> {
        if self.is_up(index) {
            return Ok(());
        }
        let federation = self.federation;
        let node = &mut self.nodes[index];
        let institution = federation.institution_of(index);
        let identity = Identity {
            key: federation.node_keys[index].clone(),
            node: federation.nodes[index],
            institution: federation.institutions[institution],
            jurisdiction: federation.jurisdictions[institution],
            federation: federation.id,
            epoch: 0,
        };
        let settings = Settings {
            policy: node.policy.clone(),
            versions: node.versions.clone(),
            faults: self.options.faults,
            ..Settings::default()
        };
        let roster = federation.roster.clone();
        let core = Core::recover(identity, settings, roster, node.journal.iter().cloned());
        let core = core.map_err(|error| Violation {
            rule: "replay",
            what: format!("node {index}: {error}"),
        })?;
        if let Some(expected) = node.expected.take() {
            let found = core.durable_projection();
            for (machine, expected) in &expected {
                if found.get(machine) != Some(expected) {
                    let what = format!("node {index}: the {machine} differs after a replay");
                    return Err(Violation { rule: "replay", what });
                }
            }
        }
        node.core = Some(core);
        self.last_start_ms = self.ms;
        let (life, local) = (node.life, node.local.clone());
        self.trace.line(format_args!("{} {index} starts", self.ms));
        self.step(index, Input::Started)?;
        self.step(index, Input::Local(local))?;
        for other in (0..NODES).filter(|other| *other != index) {
            if self.listens(other) && self.network.joined(index, other) {
                let versions = self.nodes[other].versions.clone();
                let node = federation.nodes[other];
                self.step(index, Input::PeerVersions { node, versions })?;
                let versions = self.nodes[index].versions.clone();
                let node = federation.nodes[index];
                self.step(other, Input::PeerVersions { node, versions })?;
            }
        }
        let first = self.draw.below(TICK_EVERY.as_ms());
        self.after(first, Event::Tick { node: index, life });
        Ok(())
    }
}
