//! The daemon's side: worker processes, each with one model and any number of runs, started when first
//! needed, started again after a death, replaced when another model is wanted.
//!
//! The lease book hands out slots; a slot has at most one run here (S1), whichever process it is in.
//! Which process that is, and when one makes room for another model, is decided in [`desk`]. One task
//! owns all of it ([`dispatch`]) and waits for nobody: not for a process to read, nor for a run's reader.

mod desk;
mod dispatch;
mod process;

use std::fmt;
use std::path::PathBuf;

use allmend_protocol::ids::{Digest, ResearcherId};
use allmend_protocol::job::{InferInput, InferWork};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use self::dispatch::Dispatcher;
pub use self::process::PoolOptions;
use super::pipe::Ended;

/// Something for a worker to do.
#[derive(Debug)]
pub enum Task {
    /// Have this model loaded, if that takes nothing from anybody.
    Warm {
        /// Its digest.
        model: Digest,
        /// Its file.
        path: PathBuf,
    },
    /// Have no worker serve this adapter any more.
    Forget {
        /// Its id.
        adapter: Digest,
    },
    /// Run a job.
    Run(Box<Run>),
}

/// One inference and where its events go.
pub struct Run {
    /// The slot that its lease has.
    pub slot: u16,
    /// The model's digest.
    pub model: Digest,
    /// Its file.
    pub path: PathBuf,
    /// What to do.
    pub work: InferWork,
    /// What to read.
    pub input: InferInput,
    /// Token ids emitted by earlier attempts.
    pub forced: Vec<u32>,
    /// Whose it is.
    pub researcher: ResearcherId,
    /// The folder of the adapter that the work names.
    pub adapter: Option<PathBuf>,
    /// Events; the last is [`RunEvent::Ended`]. They are never waited for: a run whose reader is as
    /// many events behind as the channel holds is cancelled and ends as failed, and a run whose
    /// reader is gone is cancelled. Other runs of the worker notice neither.
    pub events: mpsc::Sender<RunEvent>,
    /// Stops the run at the next step.
    pub cancel: CancellationToken,
}

/// Without what the researcher wrote and who that is.
impl fmt::Debug for Run {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (slot, model) = (self.slot, self.model.short());
        f.debug_struct("Run").field("slot", &slot).field("model", &model).finish_non_exhaustive()
    }
}

/// What happens to a run.
#[derive(Clone, Debug)]
pub enum RunEvent {
    /// The model is loaded, and the run is in its worker.
    Begun {
        /// The model's licence, as its file says.
        licence: Option<String>,
        /// The worker's process.
        pid: Option<u32>,
    },
    /// Another part of the prompt has been computed. Left out for a reader that is behind.
    Prefilled {
        /// Tokens computed so far, forced ones counted.
        done_tokens: u32,
        /// Tokens to compute before the first new one.
        total_tokens: u32,
    },
    /// One token.
    Token {
        /// Its place in the answer, forced tokens counted.
        index: u32,
        /// Its id.
        id: u32,
        /// Text that has become certain with it; may be empty.
        text: String,
    },
    /// Nothing follows.
    Ended(Ended),
}

/// A worker process, for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WorkerView {
    /// Its number with the operating system.
    pub pid: Option<u32>,
    /// Its model.
    pub model: Digest,
    /// Whether that is loaded.
    pub loaded: bool,
    /// The slots whose runs it computes, or will when it is loaded.
    pub slots: Vec<u16>,
}

/// Worker processes and their runs. Clones share them.
#[derive(Clone, Debug)]
pub struct Pool {
    slots: u16,
    tasks: mpsc::Sender<Task>,
    workers: watch::Receiver<Vec<WorkerView>>,
}

impl Pool {
    /// A pool without a worker yet. Its processes end with its last clone.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub fn new(options: PoolOptions) -> Pool {
        let slots = options.slots;
        // A run for every slot, and as many models to be loaded: more is a fault.
        let (tasks, queue) = mpsc::channel(2 * usize::from(slots.max(1)));
        let (view, workers) = watch::channel(Vec::new());
        tokio::spawn(Dispatcher::new(options, view).run(queue));
        Pool { slots, tasks, workers }
    }

    /// Takes a task; refused when there is no such slot, or too many tasks wait.
    ///
    /// # Errors
    /// The task itself, so that its sender can say why it does not run.
    pub fn give(&self, task: Task) -> Result<(), Task> {
        match task {
            Task::Run(run) if run.slot >= self.slots => Err(Task::Run(run)),
            task => self.tasks.try_send(task).map_err(|error| match error {
                mpsc::error::TrySendError::Full(task) | mpsc::error::TrySendError::Closed(task) => {
                    task
                }
            }),
        }
    }

    /// The workers as they are now.
    pub fn workers(&self) -> Vec<WorkerView> {
        self.workers.borrow().clone()
    }

    /// Follows the workers.
    pub fn watch(&self) -> watch::Receiver<Vec<WorkerView>> {
        self.workers.clone()
    }
}
