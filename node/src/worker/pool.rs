//! The daemon's side: one worker process per slot, started when first needed, restarted when it
//! dies or when another model is wanted.

use std::ffi::OsString;
use std::io;
use std::path::PathBuf;
use std::process::Stdio;

use allmend_protocol::encoding;
use allmend_protocol::ids::Digest;
use allmend_protocol::job::{InferInput, InferWork};
use tokio::io::{AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::pipe::{self, Ended, FromWorker, PIPE_FRAME_BYTES_MAX, ToWorker};

/// Tasks that may wait for one slot: the lease book gives a slot to one lease at a time, so more
/// than the next one is a fault.
const TASKS_MAX: usize = 2;

/// How the workers are started.
#[derive(Clone, Debug)]
pub struct PoolOptions {
    /// The binary, normally this very one.
    pub program: PathBuf,
    /// Its arguments.
    pub arguments: Vec<OsString>,
    /// Threads per worker.
    pub threads: u32,
    /// The longest context to plan for.
    pub context_tokens_max: u32,
}

/// Something for a worker to do.
#[derive(Debug)]
pub enum Task {
    /// Have this model loaded.
    Warm {
        /// Its digest.
        model: Digest,
        /// Its file.
        path: PathBuf,
    },
    /// Run a job.
    Run(Run),
}

/// One inference and where its events go.
#[derive(Debug)]
pub struct Run {
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
    /// Events; the last is [`FromWorker::Ended`]. A slow reader slows the worker down.
    pub events: mpsc::Sender<FromWorker>,
    /// Stops the run between two tokens.
    pub cancel: CancellationToken,
}

/// Worker processes, one per slot. Clones share them.
#[derive(Clone, Debug)]
pub struct Pool {
    slots: Vec<mpsc::Sender<Task>>,
}

impl Pool {
    /// A pool of `slots` workers, none of them started yet.
    pub fn new(slots: u16, options: &PoolOptions) -> Pool {
        let slots = (0..slots)
            .map(|slot| {
                let (sender, tasks) = mpsc::channel(TASKS_MAX);
                tokio::spawn(keep(slot, options.clone(), tasks));
                sender
            })
            .collect();
        Pool { slots }
    }

    /// Gives `task` to the worker of `slot`; refused when there is no such slot or it is busy.
    ///
    /// # Errors
    /// The task itself, so that its sender can say why it does not run.
    pub fn give(&self, slot: u16, task: Task) -> Result<(), Box<Task>> {
        let Some(sender) = self.slots.get(usize::from(slot)) else { return Err(Box::new(task)) };
        sender.try_send(task).map_err(|error| Box::new(error.into_inner()))
    }
}

struct Worker {
    child: Child,
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
    model: Digest,
    loaded: Option<FromWorker>,
}

/// Owns the worker of one slot until the pool is dropped.
async fn keep(slot: u16, options: PoolOptions, mut tasks: mpsc::Receiver<Task>) {
    let mut worker: Option<Worker> = None;
    loop {
        // An idle worker that dies (a crash, an operator's kill) is noticed, not waited for.
        let task = match &mut worker {
            Some(live) => tokio::select! {
                task = tasks.recv() => task,
                status = live.child.wait() => {
                    tracing::warn!(slot, status = ?status.ok(), "idle worker ended");
                    worker = None;
                    continue;
                }
            },
            None => tasks.recv().await,
        };
        let Some(task) = task else { return };
        match task {
            Task::Warm { model, path } => {
                if let Err(why) = ensure(&mut worker, &options, model, &path).await {
                    tracing::warn!(slot, model = %model.short(), why = %words(&why), "model not loaded");
                }
            }
            Task::Run(run) => run_one(slot, &mut worker, &options, run).await,
        }
    }
}

async fn run_one(slot: u16, worker: &mut Option<Worker>, options: &PoolOptions, run: Run) {
    let ended = match ensure(worker, options, run.model, &run.path).await {
        Err(ended) => ended,
        Ok(live) => {
            if let Some(loaded) = &live.loaded {
                let _ = run.events.send(clone_loaded(loaded)).await;
            }
            match converse(live, &run).await {
                Ok(ended) => ended,
                Err(error) => {
                    let why = died(live, &error).await;
                    tracing::warn!(slot, %why, "worker died");
                    *worker = None;
                    Ended::Failed { permanent: false, why }
                }
            }
        }
    };
    // A receiver that is gone has lost interest; the next task starts from a clean state.
    let _ = run.events.send(FromWorker::Ended(ended)).await;
}

async fn converse(worker: &mut Worker, run: &Run) -> io::Result<Ended> {
    let command = ToWorker::Run {
        work: run.work.clone(),
        input: run.input.clone(),
        forced: run.forced.clone(),
    };
    send(&mut worker.stdin, &command).await?;
    let mut cancelled = false;
    loop {
        let frame = {
            let next = receive(&mut worker.stdout);
            tokio::pin!(next);
            loop {
                tokio::select! {
                    frame = &mut next => break frame?,
                    () = run.cancel.cancelled(), if !cancelled => {
                        cancelled = true;
                        send(&mut worker.stdin, &ToWorker::Cancel).await?;
                    }
                }
            }
        };
        match frame {
            FromWorker::Ended(ended) => return Ok(ended),
            other => {
                if run.events.send(other).await.is_err() && !cancelled {
                    cancelled = true;
                    send(&mut worker.stdin, &ToWorker::Cancel).await?;
                }
            }
        }
    }
}

/// A live worker with `model` loaded; started or restarted as needed.
async fn ensure<'a>(
    worker: &'a mut Option<Worker>,
    options: &PoolOptions,
    model: Digest,
    path: &std::path::Path,
) -> Result<&'a mut Worker, Ended> {
    let usable = match worker {
        Some(live) => live.model == model && matches!(live.child.try_wait(), Ok(None)),
        None => false,
    };
    if !usable {
        // One model per process: ending the old one frees its memory for certain.
        *worker = None;
        let fresh = start(options, model, path).await?;
        *worker = Some(fresh);
    }
    match worker {
        Some(live) => Ok(live),
        None => Err(Ended::Failed { permanent: false, why: "no worker".to_owned() }),
    }
}

async fn start(
    options: &PoolOptions,
    model: Digest,
    path: &std::path::Path,
) -> Result<Worker, Ended> {
    let fault = |why: String| Ended::Failed { permanent: false, why };
    let mut child = Command::new(&options.program)
        .args(&options.arguments)
        .env_clear()
        // The engine's matrix products ask for their thread count through this variable.
        .env("RAYON_NUM_THREADS", options.threads.to_string())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit())
        .kill_on_drop(true)
        .spawn()
        .map_err(|error| fault(format!("the worker cannot be started: {error}")))?;
    let (Some(mut stdin), Some(stdout)) = (child.stdin.take(), child.stdout.take()) else {
        return Err(fault("the worker has no pipes".to_owned()));
    };
    let mut stdout = BufReader::new(stdout);
    let load = ToWorker::Load {
        path: path.to_owned(),
        threads: options.threads,
        context_tokens_max: options.context_tokens_max,
    };
    let answer = async {
        send(&mut stdin, &load).await?;
        receive(&mut stdout).await
    }
    .await;
    match answer {
        Ok(loaded @ FromWorker::Loaded { .. }) => {
            Ok(Worker { child, stdin, stdout, model, loaded: Some(loaded) })
        }
        Ok(FromWorker::Ended(ended)) => Err(ended),
        Ok(FromWorker::Token { .. }) => Err(fault("the worker spoke out of turn".to_owned())),
        Err(error) => Err(fault(format!("the worker died while loading the model: {error}"))),
    }
}

async fn died(worker: &mut Worker, error: &io::Error) -> String {
    // The pipe broke, so the process is ending or talks nonsense; either way it must go.
    let _ = worker.child.start_kill();
    match worker.child.wait().await {
        Ok(status) => format!("the worker process ended ({status})"),
        Err(_) => format!("the worker process is lost ({error})"),
    }
}

async fn send(to: &mut ChildStdin, frame: &ToWorker) -> io::Result<()> {
    let bytes = encoding::encode(frame);
    let length = u32::try_from(bytes.len())
        .ok()
        .filter(|_| bytes.len() <= PIPE_FRAME_BYTES_MAX)
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "frame beyond the limit"))?;
    to.write_all(&length.to_be_bytes()).await?;
    to.write_all(&bytes).await?;
    to.flush().await
}

async fn receive(from: &mut BufReader<ChildStdout>) -> io::Result<FromWorker> {
    let length = from.read_u32().await? as usize;
    if length > PIPE_FRAME_BYTES_MAX {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "frame beyond the limit"));
    }
    let mut bytes = Vec::new();
    from.take(length as u64).read_to_end(&mut bytes).await?;
    if bytes.len() < length {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    pipe::decode(&bytes)
}

fn clone_loaded(loaded: &FromWorker) -> FromWorker {
    match loaded {
        FromWorker::Loaded { licence, numerics } => {
            FromWorker::Loaded { licence: licence.clone(), numerics: numerics.clone() }
        }
        _ => FromWorker::Loaded { licence: None, numerics: String::new() },
    }
}

fn words(ended: &Ended) -> &str {
    match ended {
        Ended::Failed { why, .. } => why,
        Ended::Cancelled { .. } => "cancelled",
        Ended::Finished { .. } => "finished",
    }
}
