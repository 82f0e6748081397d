//! What people do: they submit, look how it goes, cancel, break things and change their minds.

use allmend_protocol::time::DurationMs;
use allmend_scheduler::io::{Input, Phase};

use super::super::check::Violation;
use super::super::federation::{INSTITUTIONS, NODES, START};
use super::super::scenario;
use super::{Client, Event, HEAL_AT_MS, World};

/// Jobs in one run.
const JOBS: u64 = 48;

impl World<'_> {
    /// Draws who asks for what and what breaks when.
    pub(super) fn plan(&mut self) {
        for _ in 0..JOBS {
            let institution = self.draw.index(INSTITUTIONS);
            let at = self.draw.within(1_000, HEAL_AT_MS - 10_000);
            let now = START.plus(DurationMs::from_ms(at));
            let job = scenario::job(&mut self.draw, self.federation, institution, now);
            let client = self.clients.len();
            self.clients.push(Client { job, institution, done: false });
            self.at(at, Event::Asks { client });
            if self.draw.per_mille(120) {
                let after = self.draw.within(50, 15_000);
                self.at(at + after, Event::Cancels { client });
            }
        }
        for _ in 0..self.draw.within(4, 16) {
            // Homes matter most: half of the crashes are theirs.
            let node = match self.draw.per_mille(500) {
                true => self.federation.home_of(self.draw.index(INSTITUTIONS)),
                false => self.draw.index(NODES),
            };
            let at = self.draw.within(3_000, HEAL_AT_MS - 1_000);
            let in_step = self.draw.per_mille(600);
            self.at(at, Event::Crash { node, in_step });
        }
        for _ in 0..self.draw.below(4) {
            let at = self.draw.within(2_000, HEAL_AT_MS - 10_000);
            let length = self.draw.within(500, 12_000);
            self.at(at, Event::Split);
            self.at(at + length, Event::Join);
        }
        for _ in 0..self.draw.below(12) {
            let (node, at) = (self.draw.index(NODES), self.draw.below(HEAL_AT_MS));
            let ms = self.draw.within(500, 15_000);
            self.at(at, Event::Freeze { node, ms });
        }
        for _ in 0..self.draw.below(20) {
            let (node, at) = (self.draw.index(NODES), self.draw.below(HEAL_AT_MS));
            self.at(at, Event::MachineChanges { node });
        }
        for _ in 0..self.draw.below(8) {
            let (node, at) = (self.draw.index(NODES), self.draw.below(HEAL_AT_MS));
            self.at(at, Event::PolicyChanges { node });
        }
        self.at(HEAL_AT_MS, Event::Heal);
    }

    /// A researcher submits, or looks how it goes.
    pub(super) fn asks(&mut self, client: usize) -> Result<(), Violation> {
        let Client { job, institution, .. } = &self.clients[client];
        let (job, institution) = (job.clone(), *institution);
        let home = self.federation.home_of(institution);
        let core = self.nodes[home].core.as_ref().filter(|_| self.listens(home));
        let Some(core) = core else {
            self.after(1_000, Event::Asks { client });
            return Ok(());
        };
        match core.job(job.id()) {
            Some(view) if view.phase.is_over() => {
                self.trace.line(format_args!(
                    "{} job {} {:?}: {}",
                    self.ms,
                    job.id().short(),
                    view.phase,
                    view.why
                ));
                self.clients[client].done = true;
                let counts = &mut self.counts;
                let count = match view.phase {
                    Phase::Finished => &mut counts.finished,
                    Phase::Failed => &mut counts.failed,
                    Phase::Refused => &mut counts.refused,
                    Phase::Cancelled => &mut counts.cancelled,
                    _ => &mut counts.expired,
                };
                *count += 1;
                counts.jobs += 1;
                counts.attempts += view.attempts.len() as u64;
            }
            Some(_) => self.after(2_000, Event::Asks { client }),
            None if self.clock(home) >= job.deadline => {
                // Its home was down until the deadline: it never was a job.
                self.clients[client].done = true;
                self.counts.never_taken += 1;
            }
            None => {
                self.trace.line(format_args!("{} submit {} at {home}", self.ms, job.id().short()));
                let cert = self.federation.researcher_certs[institution].clone();
                self.step(home, Input::Submit { job, cert })?;
                self.after(1_000, Event::Asks { client });
            }
        }
        Ok(())
    }
}
