//! Performing what the core wants, in order: what must be durable is durable before what follows.

use std::sync::Arc;

use allmend_protocol::bundle::Bundle;
use allmend_protocol::bytes::ByteString;
use allmend_protocol::finetune::WORK_FINETUNE;
use allmend_protocol::ids::{MessageId, NodeId};
use allmend_protocol::message::AnyMessage;
use allmend_protocol::receipt::{Outcome, Usage};
use allmend_scheduler::io::{Effect, Entry, Input, Phase, Work, WorkEvent};
use anyhow::Context as _;
use tokio_util::sync::CancellationToken;

use super::output::JobOutput;
use super::stream::{HomeStream, Open};
use super::{Daemon, Event, TAKEN};
use crate::client::report::Report;
use crate::journal::{Priority, Record};
use crate::membership::now;
use crate::seal::{ContentKey, SealedResult};

/// Records in one append: with the largest leaves this stays below what the journal takes at once.
const COMMIT_RECORDS_MAX: usize = 64;

/// The journal's kind for the core's own records.
pub(crate) const KIND_CORE: u16 = 1;

impl Daemon {
    /// Performs `effects`; messages to this node itself come back as inputs.
    pub(super) async fn perform(&mut self, effects: Vec<Effect>) -> anyhow::Result<Vec<Input>> {
        let mut back = Vec::new();
        let mut records = Vec::new();
        let mut must = false;
        for effect in effects {
            if let Effect::Append { entry, durable } = effect {
                // A leaf is always waited for: only private notes may be lost in a power cut.
                must |= durable || matches!(entry, Entry::Leaf(_));
                records.push(record(entry));
                if records.len() >= COMMIT_RECORDS_MAX {
                    self.commit(std::mem::take(&mut records), std::mem::take(&mut must)).await?;
                }
                continue;
            }
            self.commit(std::mem::take(&mut records), std::mem::take(&mut must)).await?;
            self.act(effect, &mut back).await?;
        }
        self.commit(records, must).await?;
        Ok(back)
    }

    async fn commit(&mut self, records: Vec<Record>, must: bool) -> anyhow::Result<()> {
        if must {
            // What the core has decided is always essential: new work is refused long before the
            // reserve is touched (`Capacity::state`, `Daemon::answer`).
            self.unpublished |= records.iter().any(|record| matches!(record, Record::Leaf(_)));
            self.journal.append(records, Priority::Essential).await.context("journal")?;
            return Ok(());
        }
        for record in records {
            if let Record::Private { kind, bytes } = record {
                self.journal.append_lazy(kind, bytes).await.context("journal")?;
            }
        }
        Ok(())
    }

    async fn act(&mut self, effect: Effect, back: &mut Vec<Input>) -> anyhow::Result<()> {
        match effect {
            Effect::Append { .. } => {}
            Effect::Send { to, message, attached } if to == self.local.node => {
                let input = Input::Message { from: to, message, attached };
                self.take_message(input, back);
                back.push(Input::Delivered { to });
            }
            Effect::Send { to, message, attached } => self.send(to, &message, &attached),
            Effect::Publish(advert) => {
                if let Err(error) = self.net.publish(advert.envelope().as_bytes().to_vec()).await {
                    tracing::debug!(%error, "advert not published");
                }
            }
            Effect::StartWork(work) => self.start_work(work),
            Effect::StopWork { lease, outcome } => self.running.stop(lease, outcome),
            Effect::WorkContracted { lease, contract } => {
                self.stewards.contracted(&contract);
                self.running.contracted(lease, contract);
            }
            Effect::WorkGated { lease, report } => self.running.gated(lease, report),
            Effect::WorkSettled { lease } => self.running.settled(lease),
            Effect::WorkCounted { lease } => self.counted(lease),
            Effect::OpenStream { job, attempt, node, lease } => {
                if let Err(error) = self.open_stream(job, attempt, node, lease) {
                    // The lease lapses or fails at the node, and the next attempt is made.
                    tracing::warn!(job = %job.short(), error = format!("{error:#}"), "no stream");
                }
            }
            Effect::CloseStream { job, attempt } => {
                if let Some(close) = self.streams.remove(&(job, attempt)) {
                    close.cancel();
                }
                if let Some((_, input)) = self.held.remove(&(job, attempt)) {
                    back.push(input);
                }
            }
            Effect::JobChanged { job } => self.job_changed(job),
        }
        Ok(())
    }

    pub(super) fn send(&self, to: NodeId, message: &AnyMessage, attached: &[AnyMessage]) {
        let bundle = Bundle {
            main: message.envelope().clone(),
            attached: attached.iter().map(|message| message.envelope().clone()).collect(),
        };
        let (net, events, id) = (self.net.clone(), self.events.clone(), message.id());
        let kind = message.kind().0;
        // Bounded by the transport: a peer with too much under way answers busy at once.
        tokio::spawn(async move {
            let input = match net.request(to, bundle.to_bytes()).await {
                Ok(answer) if answer == [TAKEN] => Input::Delivered { to },
                Ok(answer) => {
                    let why =
                        String::from_utf8_lossy(&answer[..answer.len().min(200)]).into_owned();
                    tracing::warn!(to = %to.short(), %kind, why, "message not taken");
                    Input::Undelivered { to, message: id }
                }
                Err(error) => {
                    tracing::debug!(to = %to.short(), %kind, %error, "message not delivered");
                    Input::Undelivered { to, message: id }
                }
            };
            let _ = events.send(Event::Input(Box::new(input))).await;
        });
    }

    fn start_work(&self, work: Work) {
        match self.capacity.model_path(work.job.model) {
            Some(path) => {
                // Without an entry in the roster no job has come this far; and if one did, it may not
                // take this node's own place for its researcher's.
                let asker = self.core.roster().institution_at(now(), work.cert.signer);
                match asker.map(|asker| asker.jurisdiction) {
                    Ok(jurisdiction) => self.running.start(work, path, jurisdiction),
                    Err(error) => self.cannot_start(&work, error.to_string()),
                }
            }
            None => {
                let why = "the model is no longer on this node's disk".to_owned();
                self.cannot_start(&work, why);
            }
        }
    }

    /// Says of a lease that nothing can be done under it.
    fn cannot_start(&self, work: &Work, why: String) {
        let event = WorkEvent::Ended {
            outcome: Outcome::Failed { permanent: false, why },
            usage: Usage::default(),
            output: None,
            model_licence: None,
        };
        let input = Input::Work { lease: work.lease.id(), event };
        let events = self.events.clone();
        tokio::spawn(async move {
            let _ = events.send(Event::Input(Box::new(input))).await;
        });
    }

    fn open_stream(
        &mut self,
        job: MessageId,
        attempt: u16,
        node: NodeId,
        lease: MessageId,
    ) -> anyhow::Result<()> {
        let key = self.content_key(job)?;
        let (sealed, kept) = self.spool.input(job)?;
        let roster = self.core.roster();
        let cert = roster.nodes().find(|cert| cert.node == node).context("unknown node")?;
        let wrap = key.wrap(node, &cert.sealing)?;
        let output = self.output(job)?;
        let base = output.base(attempt);
        let mut forced = output.token_ids();
        forced.truncate(base as usize);
        let close = CancellationToken::new();
        if let Some(old) = self.streams.insert((job, attempt), close.clone()) {
            old.cancel();
        }
        let stream = HomeStream {
            local: Arc::clone(&self.local),
            net: self.net.clone(),
            events: self.events.clone(),
            job,
            attempt,
            node,
            output,
            open: Open {
                lease,
                wrap,
                salt: ByteString(kept.salt.to_vec()),
                sealed: ByteString(sealed),
                forced,
                from: 0,
            },
            base,
            close,
        };
        tokio::spawn(stream.run());
        Ok(())
    }

    /// The key of a job's input, which its researcher wrapped for this home node.
    fn content_key(&self, job: MessageId) -> anyhow::Result<ContentKey> {
        let spec = self.core.job_spec(job).context("unknown job")?;
        let wrap = spec
            .input
            .wraps
            .iter()
            .find(|wrap| wrap.node == self.local.node)
            .context("the input's key is not wrapped for this home node")?;
        Ok(ContentKey::unwrap(wrap, self.local.identity.sealing())?)
    }

    /// The output of a job of ours, begun or continued from the spool.
    pub(super) fn output(&mut self, job: MessageId) -> anyhow::Result<Arc<JobOutput>> {
        if let Some(output) = self.outputs.get(&job) {
            return Ok(Arc::clone(output));
        }
        let output = if self.spool.result(job)?.is_some() {
            JobOutput::new(Vec::new(), None)
        } else {
            let key = self.content_key(job)?;
            let (file, tokens) = self.spool.output(job, &key)?;
            let training =
                self.core.job_spec(job).is_some_and(|spec| spec.work.kind == WORK_FINETUNE);
            JobOutput::of(training, tokens, Some(file))
        };
        self.outputs.insert(job, Arc::clone(&output));
        Ok(output)
    }

    fn job_changed(&mut self, job: MessageId) {
        let Some(view) = self.core.job(job) else { return };
        let output = match self.output(job) {
            Ok(output) => output,
            Err(error) => {
                tracing::warn!(job = %job.short(), error = format!("{error:#}"), "no output");
                JobOutput::new(Vec::new(), None)
            }
        };
        let (attempt, node) =
            view.attempts.last().map_or((0, None), |last| (last.attempt, Some(last.node)));
        let why = self.with_names(&view.why);
        if !view.phase.is_over() {
            output.set_phase(view.phase, why, attempt, node);
            return;
        }
        if let Err(error) = self.keep_result(job, view.phase, &output) {
            tracing::warn!(job = %job.short(), error = format!("{error:#}"), "result not kept");
        }
        let verdicts = if matches!(view.phase, Phase::Refused | Phase::Failed | Phase::Expired) {
            let name = |node: NodeId| self.node_name(node);
            view.considered.iter().map(|c| (name(c.node), c.verdict.clone())).collect()
        } else {
            Vec::new()
        };
        output.set_over(view.phase, why, verdicts);
    }

    /// Jobs that were over when the process died, before their result was sealed.
    pub(super) fn finish_results(&mut self) {
        let kept = self.spool.jobs().unwrap_or_default();
        for (job, has_result, _) in kept {
            if !has_result && self.core.job(job).is_some_and(|view| view.phase.is_over()) {
                self.job_changed(job);
            }
        }
    }

    /// Seals what there is of an answer to its researcher and removes input and output.
    fn keep_result(&self, job: MessageId, phase: Phase, output: &JobOutput) -> anyhow::Result<()> {
        if self.spool.result(job)?.is_some() {
            return Ok(());
        }
        let spec = self.core.job_spec(job).context("unknown job")?;
        let cert = self.core.job_cert(job).context("no certificate of the researcher")?;
        let result = if spec.work.kind == WORK_FINETUNE {
            let reports = output.reports();
            let curve: Vec<_> = reports.iter().filter_map(|text| Report::from_json(text)).collect();
            serde_json::json!({ "job": job, "phase": phase, "model": spec.model, "reports": curve })
        } else {
            serde_json::json!({
                "job": job,
                "phase": phase,
                "model": spec.model,
                "text": output.text(),
                "tokens": output.token_ids().len(),
            })
        };
        let sealed = SealedResult::seal(&cert.sealing, job, &serde_json::to_vec(&result)?)?;
        self.spool.put_result(job, &sealed)?;
        Ok(())
    }
}

fn record(entry: Entry) -> Record {
    match entry {
        Entry::Leaf(message) => Record::Leaf(message.envelope().as_bytes().to_vec()),
        Entry::Private(record) => Record::Private { kind: KIND_CORE, bytes: record.to_bytes() },
    }
}
