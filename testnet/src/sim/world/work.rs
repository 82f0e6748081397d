//! Simulated workers: they write tokens, fail now and then, and stream home.

use allmend_protocol::ids::MessageId;
use allmend_protocol::job::InferWork;
use allmend_protocol::receipt::{Outcome, Usage};
use allmend_scheduler::io::{Input, Work, WorkEvent};

use super::super::check::Violation;
use super::{Event, Worker, World};

impl World<'_> {
    pub(super) fn start_work(&mut self, node: usize, work: Work) {
        let infer = InferWork::from_work(&work.job.work).ok();
        let (tokens_max, prompt_max) =
            infer.map_or((1, 1), |infer| (infer.max_tokens, infer.prompt_tokens_max));
        let outcome = match self.draw.below(20) {
            0 => Outcome::Failed { permanent: true, why: "beyond the context".into() },
            1 | 2 => Outcome::Failed { permanent: false, why: "out of memory".into() },
            _ => Outcome::Finished { reason: "stop".into() },
        };
        let lease = work.lease.id();
        let worker = Worker {
            home: self.federation.index_of(work.home).unwrap_or_default(),
            tokens: 0,
            tokens_total: self.draw.within(1, u64::from(tokens_max)) as u32,
            every_ms: self.draw.within(20, 150),
            outcome,
            prompt_tokens: self.draw.within(1, u64::from(prompt_max)),
            work,
        };
        self.nodes[node].workers.insert(lease, worker);
        let life = self.nodes[node].life;
        let after = self.draw.within(50, 1_500);
        self.after(after, Event::Works { node, life, lease });
    }

    pub(super) fn works(
        &mut self,
        node: usize,
        life: u32,
        lease: MessageId,
    ) -> Result<(), Violation> {
        if self.nodes[node].life != life {
            return Ok(());
        }
        let burst = self.draw.within(4, 12) as u32;
        let Some(worker) = self.nodes[node].workers.get_mut(&lease) else { return Ok(()) };
        worker.tokens = (worker.tokens + burst).min(worker.tokens_total);
        let (tokens, every_ms) = (worker.tokens, worker.every_ms * u64::from(burst));
        let ended = worker.tokens == worker.tokens_total;
        let outcome = worker.outcome.clone();
        self.stream(node, lease);
        let event = WorkEvent::Progress { tokens };
        self.step(node, Input::Work { lease, event })?;
        if ended {
            self.after(every_ms, Event::WorkEnds { node, life, lease, outcome });
        } else {
            self.after(every_ms, Event::Works { node, life, lease });
        }
        Ok(())
    }

    pub(super) fn work_ends(
        &mut self,
        node: usize,
        life: u32,
        lease: MessageId,
        outcome: Outcome,
    ) -> Result<(), Violation> {
        if self.nodes[node].life != life {
            return Ok(());
        }
        self.stream(node, lease);
        let Some(worker) = self.nodes[node].workers.remove(&lease) else { return Ok(()) };
        self.trace.line(format_args!("{} {node} work ends {}", self.ms, lease.short()));
        let usage = Usage {
            prompt_tokens: worker.prompt_tokens,
            completion_tokens: u64::from(worker.tokens),
            ..Usage::default()
        };
        let event = WorkEvent::Ended { outcome, usage, output: None, model_licence: None };
        self.step(node, Input::Work { lease, event })
    }

    /// What a worker has written goes to home, if home listens and is within reach.
    pub(super) fn stream(&mut self, node: usize, lease: MessageId) {
        let Some(worker) = self.nodes[node].workers.get(&lease) else { return };
        let (home, tokens) = (worker.home, worker.tokens);
        let (job, attempt) = (worker.work.lease.job, worker.work.lease.attempt);
        let listens = self.nodes[home].streams.contains(&(job, attempt));
        if listens && self.network.joined(node, home) {
            let after = self.network.delay();
            self.after(after, Event::Streamed { home, job, attempt, tokens });
        }
    }
}
