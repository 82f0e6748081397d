//! The executing side of leases: waits for home's stream, runs the worker, keeps tokens until home
//! has them.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use allmend_protocol::bytes::ByteString;
use allmend_protocol::encoding;
use allmend_protocol::envelope::Verified;
use allmend_protocol::finetune::{FinetuneInput, Task as JobTask, WORK_FINETUNE};
use allmend_protocol::ids::{Digest, MessageId, NodeId};
use allmend_protocol::job::{InferInput, InferWork};
use allmend_protocol::receipt::{Outcome, Usage};
use allmend_protocol::stewardship::{Contract, GateReport};
use allmend_protocol::time::DurationMs;
use allmend_protocol::units::Jurisdiction;
use allmend_scheduler::io::{Input, Work, WorkEvent};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use super::stream::{Open, STREAM_FRAME_BYTES_MAX, Said, TOKEN_FRAME_BYTES_MAX};
use super::training::TrainingPlace;
use super::{Event, Local};
use crate::adapters::AdapterStore;
use crate::models::{Pin, Store};
use crate::net::BulkStream;
use crate::seal::ContentKey;
use crate::worker::pipe::Ended;
use crate::worker::{Pool, Run, RunEvent, Task, WorkerView};

/// How long an executing node waits for home's stream before it gives the slot back.
const STREAM_WAIT: Duration = Duration::from_secs(15);
/// How long tokens of an ended attempt are kept for a home whose stream broke.
const KEEP_ENDED: Duration = Duration::from_secs(120);
/// Tokens between two progress notes for the lease book.
const PROGRESS_EVERY: u32 = 4;
/// Events of a run that may wait for its task, which itself waits for nothing but the model's file:
/// only a machine in trouble falls so far behind, and then the run is cancelled, not its worker.
const RUN_EVENTS_MAX: usize = 1_024;
/// The largest plaintext of an input, as decoded from the sealed bytes.
pub(super) const INPUT_BYTES_MAX: usize = 64 * 1024 * 1024;

/// Bytes of one part of an output, with room for its frame.
const PART_BYTES: usize = TOKEN_FRAME_BYTES_MAX - 1_024;
/// How long workers that are busy being told things are left alone before they are told again.
const FORGET_AGAIN: Duration = Duration::from_millis(50);

/// Every lease this node works under or has just ended.
#[derive(Debug)]
pub(crate) struct Running {
    local: Arc<Local>,
    store: Store,
    pool: Pool,
    events: mpsc::Sender<Event>,
    training: Arc<TrainingPlace>,
    leases: Arc<Mutex<BTreeMap<MessageId, Arc<Attempt>>>>,
}

/// One attempt on this node.
#[derive(Debug)]
pub(super) struct Attempt {
    pub(super) work: Work,
    /// The model's file.
    pub(super) path: PathBuf,
    /// Where the researcher's institution is.
    pub(super) jurisdiction: Jurisdiction,
    adapters: AdapterStore,
    state: Mutex<State>,
    changes: watch::Sender<u64>,
    pub(super) cancel: CancellationToken,
    /// The contract, once it is durable.
    pub(super) contracts: watch::Sender<Option<Verified<Contract>>>,
    /// What the output gate decided, once it is durable.
    pub(super) reports: watch::Sender<Option<Verified<GateReport>>>,
}

#[derive(Debug, Default)]
struct State {
    opened: bool,
    base: u32,
    /// The answer, until home has all of it. However slowly home reads, nobody else waits for it; what
    /// is kept is bounded by the job's `max_tokens`, and thereby by `limits.context_tokens_max`.
    tokens: Vec<(u32, String)>,
    /// What the output gate released, sealed to the researcher.
    released: Option<Arc<Vec<u8>>>,
    /// Tokens of prompt and forced ones that have been computed, and how many there are.
    prefilled: Option<(u32, u32)>,
    ended: bool,
    stop_as: Option<Outcome>,
}

impl Running {
    pub(crate) fn new(
        local: Arc<Local>,
        store: Store,
        pool: Pool,
        events: mpsc::Sender<Event>,
        training: Arc<TrainingPlace>,
    ) -> Running {
        Running { local, store, pool, events, training, leases: Arc::default() }
    }

    /// Has a worker load `model` before anybody asks for it.
    pub(crate) fn warm(&self, model: Digest, path: PathBuf) {
        let (store, pool) = (self.store.clone(), self.pool.clone());
        tokio::spawn(async move {
            match pin(store, model).await {
                // With so many jobs waiting, one of them has a model loaded already.
                Ok(_pin) => drop(pool.give(Task::Warm { model, path })),
                Err(why) => tracing::warn!(model = %model.short(), %why, "model not loaded"),
            }
        });
    }

    /// Threads that training may use, and its memory in MiB.
    pub(crate) fn training_means(&self) -> (u32, u64) {
        (self.training.threads, self.training.memory_mib)
    }

    /// The worker processes.
    pub(crate) fn workers(&self) -> Vec<WorkerView> {
        self.pool.workers()
    }

    /// How much of its prompt a lease's run has read, and how much there is; nothing before it begins.
    pub(crate) fn prefilled(&self, lease: MessageId) -> Option<(u32, u32)> {
        lock(&self.leases).get(&lease)?.with(|state| state.prefilled)
    }

    /// The contract of a lease is durable.
    pub(crate) fn contracted(&self, lease: MessageId, contract: Verified<Contract>) {
        if let Some(attempt) = lock(&self.leases).get(&lease) {
            attempt.contracts.send_replace(Some(contract));
        }
    }

    /// What the gate decided on a lease's output is durable.
    pub(crate) fn gated(&self, lease: MessageId, report: Verified<GateReport>) {
        if let Some(attempt) = lock(&self.leases).get(&lease) {
            attempt.reports.send_replace(Some(report));
        }
    }

    /// Stops every run that uses an adapter, and has no worker serve it any more.
    pub(crate) fn forget(&self, adapter: Digest) {
        for attempt in lock(&self.leases).values() {
            let uses = InferWork::from_work(&attempt.work.job.work)
                .is_ok_and(|work| work.adapter == Some(adapter));
            if uses {
                let why = "the adapter was recalled by its steward".to_owned();
                attempt
                    .with(|state| state.stop_as = Some(Outcome::Failed { permanent: true, why }));
                attempt.cancel.cancel();
            }
        }
        // A full queue means that every worker is about to be told something; none must miss this.
        let pool = self.pool.clone();
        tokio::spawn(async move {
            let mut task = Task::Forget { adapter };
            while let Err(back) = pool.give(task) {
                task = back;
                tokio::time::sleep(FORGET_AGAIN).await;
            }
        });
    }

    /// Expects home's stream for this lease.
    pub(crate) fn start(&self, work: Work, path: PathBuf, jurisdiction: Jurisdiction) {
        let lease = work.lease.id();
        let attempt = Arc::new(Attempt {
            work,
            path,
            jurisdiction,
            adapters: AdapterStore::new(self.local.layout.adapters_dir()),
            state: Mutex::default(),
            changes: watch::Sender::new(0),
            cancel: CancellationToken::new(),
            contracts: watch::Sender::new(None),
            reports: watch::Sender::new(None),
        });
        lock(&self.leases).insert(lease, Arc::clone(&attempt));
        let events = self.events.clone();
        tokio::spawn(async move {
            tokio::select! {
                () = attempt.cancel.cancelled() => {}
                () = tokio::time::sleep(STREAM_WAIT) => {}
            }
            let waiting = attempt.with(|state| {
                let waiting = !state.opened;
                state.opened = true;
                waiting.then(|| state.stop_as.clone())
            });
            if let Some(stop_as) = waiting {
                let why = "home opened no stream".to_owned();
                let outcome = stop_as.unwrap_or(Outcome::Failed { permanent: false, why });
                attempt.finish();
                let ended = WorkEvent::Ended {
                    outcome,
                    usage: Usage::default(),
                    output: None,
                    model_licence: None,
                };
                report(&events, lease, ended).await;
            }
        });
    }

    /// Stops the worker of a lease; its end is reported with `outcome`.
    pub(crate) fn stop(&self, lease: MessageId, outcome: Outcome) {
        if let Some(attempt) = lock(&self.leases).get(&lease) {
            attempt.with(|state| state.stop_as = Some(outcome));
            attempt.cancel.cancel();
        } else {
            // Nothing runs under it (a restart in between): say so at once.
            let ended = WorkEvent::Ended {
                outcome,
                usage: Usage::default(),
                output: None,
                model_licence: None,
            };
            let events = self.events.clone();
            tokio::spawn(async move { report(&events, lease, ended).await });
        }
    }

    /// The lease's receipt is durable: forget its tokens after a while.
    pub(crate) fn settled(&self, lease: MessageId) {
        let leases = Arc::clone(&self.leases);
        tokio::spawn(async move {
            tokio::time::sleep(KEEP_ENDED).await;
            lock(&leases).remove(&lease);
        });
    }

    /// Serves a stream that a member opened.
    pub(crate) fn serve(&self, from: NodeId, mut stream: BulkStream) {
        let leases = Arc::clone(&self.leases);
        let (local, events) = (Arc::clone(&self.local), self.events.clone());
        let (pool, store) = (self.pool.clone(), self.store.clone());
        let training = Arc::clone(&self.training);
        tokio::spawn(async move {
            let Ok(Some(bytes)) = stream.read_frame(STREAM_FRAME_BYTES_MAX).await else { return };
            let open = match encoding::decode::<Open>(&bytes, STREAM_FRAME_BYTES_MAX) {
                Ok(open) => open,
                Err(error) => return refuse(&mut stream, error.to_string()).await,
            };
            drop(bytes);
            let attempt = lock(&leases).get(&open.lease).cloned();
            // Only the home that the lease serves may see its tokens.
            let Some(attempt) = attempt.filter(|attempt| attempt.work.home == from) else {
                return refuse(&mut stream, "no such lease here".to_owned()).await;
            };
            let from = open.from;
            let first = attempt.with(|state| !std::mem::replace(&mut state.opened, true));
            if first {
                match attempt.input(&local, &open) {
                    Ok(input) => {
                        attempt.with(|state| {
                            state.base = u32::try_from(open.forced.len()).unwrap_or(u32::MAX);
                        });
                        let salt = open.salt.0;
                        let forced = open.forced;
                        let attempt = Arc::clone(&attempt);
                        match input {
                            TaskInput::Infer(work, input) => {
                                let job = Job { work, input, forced, salt };
                                tokio::spawn(run(attempt, store, pool, events, job));
                            }
                            TaskInput::Finetune(input) => {
                                let salt = salt.as_slice().try_into().unwrap_or_default();
                                tokio::spawn(super::training::run(attempt, training, input, salt));
                            }
                        }
                    }
                    Err(why) => {
                        let ended = WorkEvent::Ended {
                            outcome: Outcome::Failed { permanent: true, why: why.clone() },
                            usage: Usage::default(),
                            output: None,
                            model_licence: None,
                        };
                        attempt.finish();
                        report(&events, open.lease, ended).await;
                        return refuse(&mut stream, why).await;
                    }
                }
            }
            let _ = attempt.send_tokens(from, &mut stream).await;
        });
    }
}

impl Attempt {
    /// Opens and checks the input against the job that the researcher signed.
    fn input(&self, local: &Local, open: &Open) -> Result<TaskInput, String> {
        let job = &self.work.job;
        let work = JobTask::from_work(&job.work).map_err(|error| error.to_string())?;
        let salt = <[u8; 32]>::try_from(open.salt.0.as_slice())
            .map_err(|_| "the salt has not 32 bytes".to_owned())?;
        if Digest::salted(&salt, &open.sealed.0) != job.input.digest {
            return Err("the input is not the one that the researcher signed".to_owned());
        }
        // Reports of training come at most once per step, besides a few for what is not a step.
        let most = match &work {
            JobTask::Infer(work) => u64::from(work.max_tokens),
            JobTask::Finetune(work) => {
                u64::from(work.steps).saturating_mul(u64::from(job.attempts)) * 4 + 1_024
            }
        };
        if open.forced.len() as u64 > most {
            return Err("more forced tokens than the job may have".to_owned());
        }
        if open.wrap.node != local.node {
            return Err("the input's key is wrapped for another node".to_owned());
        }
        let key = ContentKey::unwrap(&open.wrap, local.identity.sealing())
            .map_err(|error| error.to_string())?;
        let work = match work {
            JobTask::Infer(work) => work,
            JobTask::Finetune(_) => {
                return super::training::open_input(&key, &open.sealed.0).map(TaskInput::Finetune);
            }
        };
        let plain = key.open_input(&open.sealed.0).map_err(|error| error.to_string())?;
        // The decoder's own words could quote the input: say only that it failed.
        let input = encoding::decode(&plain, INPUT_BYTES_MAX)
            .map_err(|_| "the input is not an inference input".to_owned())?;
        Ok(TaskInput::Infer(work, input))
    }

    /// With which outcome it is to end, if somebody has said so.
    pub(super) fn stop_as(&self) -> Option<Outcome> {
        self.with(|state| state.stop_as.clone())
    }

    /// Adds a report from training.
    pub(super) fn push(&self, tokens: u32, report: String) {
        self.with(|state| state.tokens.push((tokens, report)));
        self.changes.send_modify(|count| *count = count.wrapping_add(1));
    }

    /// What the output gate released, sealed to the researcher; goes out before the end.
    pub(super) fn release(&self, sealed: Vec<u8>) {
        self.with(|state| state.released = Some(Arc::new(sealed)));
    }

    async fn send_tokens(
        &self,
        from: u32,
        stream: &mut BulkStream,
    ) -> Result<(), crate::net::NetError> {
        let mut next = from;
        let training = self.work.job.work.kind == WORK_FINETUNE;
        let mut changes = self.changes.subscribe();
        loop {
            let (fresh, ended) = self.with(|state| {
                let skip = next.saturating_sub(state.base) as usize;
                let fresh: Vec<(u32, String)> =
                    state.tokens.get(skip..).unwrap_or_default().to_vec();
                (fresh, state.ended)
            });
            for (id, text) in fresh {
                let said = if training {
                    Said::Progress { index: next, tokens: id, report: text }
                } else {
                    Said::Token { index: next, id, text }
                };
                stream.write_frame(&encoding::encode(&said), TOKEN_FRAME_BYTES_MAX).await?;
                next = next.saturating_add(1);
            }
            if ended {
                self.send_released(stream).await?;
                stream.write_frame(&encoding::encode(&Said::End {}), TOKEN_FRAME_BYTES_MAX).await?;
                return stream.finish().await;
            }
            if changes.changed().await.is_err() {
                return Ok(());
            }
        }
    }

    async fn send_released(&self, stream: &mut BulkStream) -> Result<(), crate::net::NetError> {
        let Some(released) = self.with(|state| state.released.clone()) else { return Ok(()) };
        let total = released.len() as u64;
        let mut offset = 0u64;
        for part in released.chunks(PART_BYTES) {
            let said = Said::Output { offset, total, bytes: ByteString(part.to_vec()) };
            stream.write_frame(&encoding::encode(&said), TOKEN_FRAME_BYTES_MAX).await?;
            offset += part.len() as u64;
        }
        Ok(())
    }

    pub(super) fn finish(&self) {
        self.with(|state| state.ended = true);
        self.changes.send_modify(|count| *count = count.wrapping_add(1));
    }

    fn with<T>(&self, act: impl FnOnce(&mut State) -> T) -> T {
        act(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// What was asked, with what it reads.
enum TaskInput {
    Infer(InferWork, InferInput),
    Finetune(FinetuneInput),
}

/// What a worker is given.
struct Job {
    work: InferWork,
    input: InferInput,
    forced: Vec<u32>,
    salt: Vec<u8>,
}

/// Holds a model's file in place, verified. Hashing it takes a while the first time.
async fn pin(store: Store, model: Digest) -> Result<Pin, String> {
    match tokio::task::spawn_blocking(move || store.pin(&model, &())).await {
        Ok(Ok(pin)) => Ok(pin),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err("the model could not be verified".to_owned()),
    }
}

/// Runs the worker and turns what it says into tokens, progress and an end.
async fn run(
    attempt: Arc<Attempt>,
    store: Store,
    pool: Pool,
    events: mpsc::Sender<Event>,
    job: Job,
) {
    let Job { work, input, forced, salt } = job;
    let adapter = work.adapter.map(|id| attempt.adapters.path(id));
    let lease = attempt.work.lease.id();
    let forced_tokens = forced.len() as u64;
    let mut ids = forced.clone();
    let (sender, mut worker) = mpsc::channel(RUN_EVENTS_MAX);
    let task = Task::Run(Box::new(Run {
        slot: attempt.work.lease.slot,
        model: attempt.work.job.model,
        path: attempt.path.clone(),
        work,
        input,
        forced,
        researcher: attempt.work.job.signer,
        adapter,
        events: sender,
        cancel: attempt.cancel.clone(),
    }));
    let mut licence = None;
    let mut pid = None;
    let mut done = 0u32;
    // The file is the one that its digest names, and stays while it is used.
    let pinned = pin(store, attempt.work.job.model).await;
    let ended = if let Err(why) = &pinned {
        Ended::Failed { permanent: false, why: why.clone() }
    } else if pool.give(task).is_err() {
        Ended::Failed { permanent: false, why: "too much waits for the workers".to_owned() }
    } else {
        loop {
            match worker.recv().await {
                Some(RunEvent::Begun { licence: found, pid: process }) => {
                    (licence, pid) = (found, process);
                }
                Some(RunEvent::Prefilled { done_tokens, total_tokens }) => {
                    attempt.with(|state| state.prefilled = Some((done_tokens, total_tokens)));
                }
                Some(RunEvent::Token { index: _, id, text }) => {
                    ids.push(id);
                    attempt.with(|state| state.tokens.push((id, text)));
                    attempt.changes.send_modify(|count| *count = count.wrapping_add(1));
                    done = done.saturating_add(1);
                    if done.is_multiple_of(PROGRESS_EVERY) {
                        // A loop that is busy hears the next one; the run must not wait for it.
                        let event = WorkEvent::Progress { tokens: done };
                        let input = Event::Input(Box::new(Input::Work { lease, event }));
                        let _ = events.try_send(input);
                    }
                }
                Some(RunEvent::Ended(ended)) => break ended,
                None => {
                    let why = "the workers' dispatcher ended".to_owned();
                    break Ended::Failed { permanent: false, why };
                }
            }
        }
    };
    let stop_as = attempt.with(|state| state.stop_as.clone());
    let mut usage = Usage { completion_tokens: u64::from(done), forced_tokens, ..Usage::default() };
    let (outcome, output) = match ended {
        Ended::Finished { reason, prompt_tokens, cached_tokens, device_ms, .. } => {
            tracing::info!(
                lease = %lease.short(), pid, prompt_tokens, cached_tokens, tokens = done, device_ms,
                "run finished"
            );
            usage.prompt_tokens = u64::from(prompt_tokens);
            usage.device_time_ms = DurationMs::from_ms(device_ms);
            (Outcome::Finished { reason }, Some(output_digest(&salt, &ids)))
        }
        Ended::Cancelled { prompt_tokens, device_ms } => {
            usage.prompt_tokens = u64::from(prompt_tokens);
            usage.device_time_ms = DurationMs::from_ms(device_ms);
            (stop_as.unwrap_or(Outcome::Cancelled), None)
        }
        Ended::Failed { permanent, why } => {
            (stop_as.unwrap_or(Outcome::Failed { permanent, why: shorten(why) }), None)
        }
    };
    attempt.finish();
    let ended = WorkEvent::Ended { outcome, usage, output, model_licence: licence };
    report(&events, lease, ended).await;
}

/// Salted digest of an answer: of its token ids, four bytes each, little-endian.
fn output_digest(salt: &[u8], ids: &[u32]) -> Digest {
    let salt = <[u8; 32]>::try_from(salt).unwrap_or_default();
    let bytes: Vec<u8> = ids.iter().flat_map(|id| id.to_le_bytes()).collect();
    Digest::salted(&salt, &bytes)
}

/// As much of an explanation as a receipt may carry, on one line.
fn shorten(why: String) -> String {
    let reason =
        allmend_protocol::offer::Reason::new(allmend_protocol::offer::ReasonClass::Size, why);
    reason.text
}

async fn refuse(stream: &mut BulkStream, why: String) {
    let said = Said::No { why };
    let _ = stream.write_frame(&encoding::encode(&said), TOKEN_FRAME_BYTES_MAX).await;
    let _ = stream.finish().await;
}

async fn report(events: &mpsc::Sender<Event>, lease: MessageId, event: WorkEvent) {
    let _ = events.send(Event::Input(Box::new(Input::Work { lease, event }))).await;
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
