//! The task that owns processes and runs: hands runs to processes as the [`Desk`] says, events to
//! whoever waits for them, and a reason to every run whose process dies.

use std::collections::BTreeMap;
use std::path::PathBuf;

use allmend_protocol::ids::Digest;
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use super::desk::{Desk, Move, RunId, WorkerId};
use super::process::{PoolOptions, Process};
use super::{Run, RunEvent, Task, WorkerView};
use crate::device::Memory;
use crate::worker::pipe::{Ended, FromWorker, ToWorker};

/// Notes that may wait for the dispatcher; whoever writes one waits when it is full, so a worker is
/// read ahead by no more.
const NOTES_MAX: usize = 256;

/// What processes and runs tell the dispatcher.
#[derive(Debug)]
pub(super) enum Note {
    /// A process said something.
    Said(WorkerId, FromWorker),
    /// A process has ended, and how.
    Gone(WorkerId, String),
    /// A run is to be cancelled, or nobody reads its events any more.
    Cancel(RunId),
}

/// A run that has not ended.
struct Live {
    slot: u16,
    model: Digest,
    path: PathBuf,
    events: mpsc::Sender<RunEvent>,
    /// Ends the task that waits for its cancelling.
    over: CancellationToken,
    worker: Option<WorkerId>,
    /// What its worker will be told, until it is.
    command: Option<ToWorker>,
    /// Whether its worker has been told to stop it.
    cancelled: bool,
    /// Why its reader gets no more events, if so.
    dropped: Option<String>,
}

/// A worker process with its model.
struct Held {
    process: Process,
    model: Digest,
    /// The licence, once the model is loaded.
    loaded: Option<Option<String>>,
    /// Why its model cannot be loaded, if so.
    refused: Option<String>,
}

/// See the module.
pub(super) struct Dispatcher {
    options: PoolOptions,
    desk: Desk,
    runs: BTreeMap<RunId, Live>,
    runs_ever: RunId,
    workers: BTreeMap<WorkerId, Held>,
    notes: mpsc::Sender<Note>,
    noted: mpsc::Receiver<Note>,
    view: watch::Sender<Vec<WorkerView>>,
}

impl Dispatcher {
    pub(super) fn new(options: PoolOptions, view: watch::Sender<Vec<WorkerView>>) -> Dispatcher {
        let (notes, noted) = mpsc::channel(NOTES_MAX);
        Dispatcher {
            desk: Desk::new(usize::from(options.models_loaded)),
            options,
            runs: BTreeMap::new(),
            runs_ever: 0,
            workers: BTreeMap::new(),
            notes,
            noted,
            view,
        }
    }

    /// Works until every clone of the pool is gone; dropping the processes then ends them.
    pub(super) async fn run(mut self, mut tasks: mpsc::Receiver<Task>) {
        loop {
            tokio::select! {
                task = tasks.recv() => match task {
                    Some(Task::Run(run)) => self.arrive(*run),
                    Some(Task::Warm { model, path }) => self.warm(model, path),
                    Some(Task::Forget { adapter }) => self.forget(adapter),
                    None => return,
                },
                // The dispatcher holds a sender itself, so this never ends.
                Some(note) = self.noted.recv() => match note {
                    Note::Said(worker, said) => {
                        let moves_on = said.moves_a_run_on();
                        self.said(worker, said);
                        if moves_on {
                            // Most of what is said; who runs where is as it was.
                            continue;
                        }
                    }
                    Note::Gone(worker, why) => self.gone(worker, &why),
                    Note::Cancel(run) => self.cancel(run),
                },
            }
            self.proceed();
            self.show();
        }
    }

    fn arrive(&mut self, run: Run) {
        let Run { slot, model, path, work, input, forced, researcher, adapter, events, cancel } =
            run;
        if self.runs.values().any(|live| live.slot == slot) {
            let why = format!("slot {slot} has a run already");
            return deliver(&events, RunEvent::Ended(Ended::Failed { permanent: false, why }));
        }
        self.runs_ever += 1;
        let id = self.runs_ever;
        let over = CancellationToken::new();
        let (ended, gone, notes) = (over.clone(), events.clone(), self.notes.clone());
        tokio::spawn(async move {
            tokio::select! {
                () = ended.cancelled() => return,
                () = cancel.cancelled() => {}
                () = gone.closed() => {}
            }
            let _ = notes.send(Note::Cancel(id)).await;
        });
        let work = Box::new(work);
        let command = Some(ToWorker::Run { run: id, work, input, forced, researcher, adapter });
        let live = Live {
            slot,
            model,
            path,
            events,
            over,
            worker: None,
            command,
            cancelled: false,
            dropped: None,
        };
        self.runs.insert(id, live);
        self.desk.arrive(id, model);
    }

    fn warm(&mut self, model: Digest, path: PathBuf) {
        if let Some(worker) = self.desk.warm(model) {
            self.start(worker, model, path);
        }
    }

    /// Has no process serve an adapter any more; one that does not listen is ended.
    fn forget(&mut self, adapter: Digest) {
        let told = |held: &Held| held.process.send(&ToWorker::Forget { adapter }).is_ok();
        let deaf: Vec<WorkerId> = self
            .workers
            .iter()
            .filter(|(_, held)| !told(held))
            .map(|(worker, _)| *worker)
            .collect();
        deaf.into_iter().for_each(|worker| self.kill(worker));
    }

    /// Does what the desk wants done.
    fn proceed(&mut self) {
        while let Some(step) = self.desk.next() {
            match step {
                Move::Start(worker, model) => {
                    let wanted = self.runs.values().find(|live| live.model == model);
                    if let Some(path) = wanted.map(|live| live.path.clone()) {
                        self.start(worker, model, path);
                    }
                }
                Move::Give(run, worker) => {
                    if let Some(live) = self.runs.get_mut(&run) {
                        live.worker = Some(worker);
                    }
                    self.begin(run);
                }
                Move::End(worker) => {
                    if let Some(held) = self.workers.get(&worker) {
                        held.process.kill();
                    }
                }
            }
        }
    }

    fn start(&mut self, worker: WorkerId, model: Digest, path: PathBuf) {
        // What others have taken since this node was started cannot be had.
        let available = Memory::probe().available_mib.unwrap_or(u64::MAX);
        let memory_mib = self.options.memory_mib.min(available);
        match Process::start(&self.options, worker, path, memory_mib, &self.notes) {
            Ok(process) => {
                let held = Held { process, model, loaded: None, refused: None };
                self.workers.insert(worker, held);
            }
            Err(error) => {
                let why = format!("the worker cannot be started: {error}");
                tracing::warn!(model = %model.short(), %why, "no worker");
                self.desk.gone(worker);
                let waits = |live: &Live| live.model == model && live.worker.is_none();
                let waiting = self.runs.iter().filter(|(_, live)| waits(live));
                for run in waiting.map(|(run, _)| *run).collect::<Vec<_>>() {
                    self.end(run, Ended::Failed { permanent: false, why: why.clone() });
                }
            }
        }
    }

    /// Sends a run to its process, if that has loaded its model.
    fn begin(&mut self, run: RunId) {
        let Some(live) = self.runs.get_mut(&run) else { return };
        let Some(held) = live.worker.and_then(|worker| self.workers.get(&worker)) else { return };
        let Some(licence) = held.loaded.clone() else { return };
        let Some(command) = live.command.take() else { return };
        let pid = held.process.pid();
        match held.process.send(&command) {
            Ok(()) => self.pass(run, RunEvent::Begun { licence, pid }),
            Err(error) => {
                let why = format!("the run cannot be given to the worker: {error}");
                self.end(run, Ended::Failed { permanent: false, why });
            }
        }
    }

    fn said(&mut self, worker: WorkerId, said: FromWorker) {
        // A worker may speak of its own runs only.
        if let Some(run) = said.run()
            && self.runs.get(&run).is_none_or(|live| live.worker != Some(worker))
        {
            tracing::warn!("a worker spoke of a run that it does not have");
            return self.kill(worker);
        }
        match said {
            FromWorker::Loaded { licence, .. } => {
                let Some(held) = self.workers.get_mut(&worker) else { return };
                held.loaded = Some(licence);
                tracing::info!(model = %held.model.short(), pid = held.process.pid(), "model loaded");
                for run in self.desk.runs(worker).collect::<Vec<_>>() {
                    self.begin(run);
                }
            }
            FromWorker::NotLoaded { why } => {
                if let Some(held) = self.workers.get_mut(&worker) {
                    tracing::warn!(model = %held.model.short(), %why, "model not loaded");
                    held.refused = Some(why);
                }
                self.kill(worker);
            }
            FromWorker::Prefilled { run, done_tokens, total_tokens } => {
                // Of use only while it is news: left out for a reader that is behind.
                if let Some(live) = self.runs.get(&run) {
                    let _ = live.events.try_send(RunEvent::Prefilled { done_tokens, total_tokens });
                }
            }
            FromWorker::Token { run, index, id, text } => {
                self.pass(run, RunEvent::Token { index, id, text });
            }
            FromWorker::Ended { run, ended } => self.end(run, ended),
        }
    }

    /// Ends a process that is of no use; its runs learn of it when it is gone.
    fn kill(&mut self, worker: WorkerId) {
        self.desk.retire(worker);
        if let Some(held) = self.workers.get(&worker) {
            held.process.kill();
        }
    }

    fn gone(&mut self, worker: WorkerId, why: &str) {
        let Some(held) = self.workers.remove(&worker) else { return };
        let runs = self.desk.gone(worker);
        let why = match held.refused {
            Some(refused) => refused,
            None if held.loaded.is_none() => format!("{why} while it loaded the model"),
            None => why.to_owned(),
        };
        if !runs.is_empty() {
            tracing::warn!(model = %held.model.short(), runs = runs.len(), %why, "worker lost");
        } else {
            tracing::info!(model = %held.model.short(), %why, "idle worker ended");
        }
        for run in runs {
            self.end(run, Ended::Failed { permanent: false, why: why.clone() });
        }
    }

    fn cancel(&mut self, run: RunId) {
        let Some(live) = self.runs.get_mut(&run) else { return };
        // What no process has been told of ends here and now.
        if live.command.is_some() {
            return self.end(run, Ended::Cancelled { prompt_tokens: 0, device_ms: 0 });
        }
        // Once is enough, and the queue of commands has room for one.
        let Some(worker) = live.worker.filter(|_| !std::mem::replace(&mut live.cancelled, true))
        else {
            return;
        };
        let told =
            self.workers.get(&worker).map(|held| held.process.send(&ToWorker::Cancel { run }));
        if let Some(Err(error)) = told {
            tracing::warn!(%error, "a worker takes no commands");
            self.kill(worker);
        }
    }

    /// Hands an event to a run's reader without waiting for it.
    fn pass(&mut self, run: RunId, event: RunEvent) {
        let Some(live) = self.runs.get_mut(&run) else { return };
        if live.dropped.is_some() {
            return;
        }
        match live.events.try_send(event) {
            // Its cancelling is on its way already.
            Ok(()) | Err(TrySendError::Closed(_)) => {}
            Err(TrySendError::Full(_)) => {
                let behind = live.events.max_capacity();
                let why = format!("its reader on this node was {behind} events behind");
                tracing::warn!(slot = live.slot, behind, "run cancelled: its reader is too slow");
                live.dropped = Some(why);
                self.cancel(run);
            }
        }
    }

    fn end(&mut self, run: RunId, ended: Ended) {
        self.desk.leave(run);
        let Some(live) = self.runs.remove(&run) else { return };
        live.over.cancel();
        let ended = match live.dropped {
            // Its reader lacks tokens, however it went on.
            Some(why) => Ended::Failed { permanent: false, why },
            None => ended,
        };
        deliver(&live.events, RunEvent::Ended(ended));
    }

    fn show(&self) {
        let now: Vec<WorkerView> = self
            .workers
            .iter()
            .map(|(worker, held)| WorkerView {
                pid: held.process.pid(),
                model: held.model,
                loaded: held.loaded.is_some(),
                slots: self
                    .desk
                    .runs(*worker)
                    .filter_map(|run| Some(self.runs.get(&run)?.slot))
                    .collect(),
            })
            .collect();
        self.view.send_if_modified(|shown| {
            let news = *shown != now;
            if news {
                *shown = now;
            }
            news
        });
    }
}

/// Hands over a last event: a reader that is behind gets it when it has caught up.
fn deliver(events: &mpsc::Sender<RunEvent>, event: RunEvent) {
    if let Err(TrySendError::Full(event)) = events.try_send(event) {
        let events = events.clone();
        tokio::spawn(async move {
            let _ = events.send(event).await;
        });
    }
}
