//! The worker process itself: takes commands between two steps of the engine, says what each step
//! gave, and sleeps on its pipe when there is nothing to compute.

use std::collections::BTreeMap;
use std::io::{self, BufWriter, Write};
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::sync::mpsc::{self, TryRecvError};
use std::time::{Duration, Instant};

use allmend_engine::{
    Completion, Compute, Engine, EngineError, Event, Fault, Finish, LoadOptions, Request, Ticket,
};

use super::pipe::{Ended, FromWorker, ToWorker, read_frame, write_frame};
use super::request::request;

/// Commands that are read ahead of the engine: enough that a step finds what has come meanwhile,
/// little enough that prompts wait in the daemon and not here.
const COMMANDS_MAX: usize = 4;

/// Runs the worker on this process's standard input and output until the input ends.
///
/// # Errors
/// When a pipe breaks in the middle of a frame, or the engine fails as a whole; every run has been
/// told why by then.
pub fn main() -> io::Result<()> {
    // A panic message could quote what the engine was reading: say only where it happened.
    std::panic::set_hook(Box::new(|info| {
        let place =
            info.location().map_or_else(String::new, |l| format!("{}:{}", l.file(), l.line()));
        eprintln!("allmend worker: internal fault at {place}");
    }));
    let (sender, commands) = mpsc::sync_channel(COMMANDS_MAX);
    std::thread::spawn(move || {
        let mut stdin = io::stdin().lock();
        loop {
            match read_frame::<ToWorker>(&mut stdin) {
                Ok(Some(command)) => {
                    if sender.send(command).is_err() {
                        return;
                    }
                }
                // The daemon is gone, or talks nonsense: nobody is left to work for.
                Ok(None) | Err(_) => std::process::exit(0),
            }
        }
    });
    let mut serving = Serving {
        engine: None,
        runs: BTreeMap::new(),
        events: Vec::new(),
        out: BufWriter::new(io::stdout().lock()),
    };
    loop {
        let command = if serving.runs.is_empty() {
            serving.out.flush()?;
            match commands.recv() {
                Ok(command) => Some(command),
                Err(mpsc::RecvError) => return Ok(()),
            }
        } else {
            match commands.try_recv() {
                Ok(command) => Some(command),
                Err(TryRecvError::Empty) => None,
                Err(TryRecvError::Disconnected) => return Ok(()),
            }
        };
        match command {
            Some(command) => serving.take(command)?,
            None => serving.step()?,
        }
    }
}

struct Serving<W: Write> {
    engine: Option<Engine>,
    runs: BTreeMap<Ticket, Active>,
    /// Kept between steps for its allocation only.
    events: Vec<(Ticket, Event)>,
    out: W,
}

/// A run in the engine.
struct Active {
    run: u64,
    /// Its share of the steps so far.
    on_device: Duration,
}

impl Active {
    fn device_ms(&self) -> u64 {
        u64::try_from(self.on_device.as_millis()).unwrap_or(u64::MAX)
    }
}

impl<W: Write> Serving<W> {
    fn take(&mut self, command: ToWorker) -> io::Result<()> {
        match command {
            ToWorker::Load { path, threads, context_tokens_max, memory_mib, slots, gpu } => {
                let compute = match gpu {
                    Some(number) => Compute::Cuda(number as usize),
                    None => Compute::default(),
                };
                let options = LoadOptions {
                    compute,
                    threads: usize::try_from(threads).ok().and_then(NonZeroUsize::new),
                    context_tokens: Some(context_tokens_max),
                    memory_mib: Some(memory_mib),
                    slots: NonZeroUsize::new(usize::from(slots)),
                    ..LoadOptions::default()
                };
                let said = match Engine::load(&path, &options) {
                    Ok(engine) => {
                        let licence = engine.info().license.clone();
                        self.engine = Some(engine);
                        FromWorker::Loaded { licence, numerics: compute.numerics().to_owned() }
                    }
                    Err(error) => FromWorker::NotLoaded { why: error.to_string() },
                };
                write_frame(&mut self.out, &said)?;
                self.out.flush()
            }
            ToWorker::Run { run, work, input, forced, researcher, adapter } => {
                let request = request(&work, input, forced, researcher);
                let admitted = self
                    .load_adapter(&request, adapter)
                    .and_then(|()| self.admit(request, work.prompt_tokens_max));
                match admitted {
                    Ok(ticket) => {
                        self.runs.insert(ticket, Active { run, on_device: Duration::ZERO });
                        Ok(())
                    }
                    Err(ended) => write_frame(&mut self.out, &FromWorker::Ended { run, ended }),
                }
            }
            ToWorker::Forget { adapter } => {
                if let Some(engine) = &mut self.engine {
                    engine.unload_adapter(adapter.as_bytes());
                }
                Ok(())
            }
            ToWorker::Cancel { run } => {
                let ticket = self.runs.iter().find(|(_, active)| active.run == run);
                if let (Some(engine), Some((ticket, _))) = (&mut self.engine, ticket) {
                    engine.cancel(*ticket);
                }
                Ok(())
            }
        }
    }

    /// Has the adapter at hand that a request names.
    fn load_adapter(&mut self, request: &Request, folder: Option<PathBuf>) -> Result<(), Ended> {
        match (&mut self.engine, request.adapter, folder) {
            (Some(engine), Some(digest), Some(folder)) => {
                engine.load_adapter(digest, &folder).map_err(|error| failed(&error))
            }
            _ => Ok(()),
        }
    }

    fn admit(&mut self, request: Request, prompt_tokens_max: u32) -> Result<Ticket, Ended> {
        let Some(engine) = &mut self.engine else {
            let why = "no model is loaded in this worker".to_owned();
            return Err(Ended::Failed { permanent: false, why });
        };
        // Home pays for no more prompt than the job announced; more would be unpaid work.
        let tokens = engine.count_tokens(&request.input, request.clock).map_err(|e| failed(&e))?;
        if tokens as u64 > u64::from(prompt_tokens_max) {
            let why = format!(
                "the prompt has {tokens} tokens, the job announced at most {prompt_tokens_max}"
            );
            return Err(Ended::Failed { permanent: true, why });
        }
        engine.submit(request).map_err(|error| failed(&error))
    }

    /// One step for all runs.
    fn step(&mut self) -> io::Result<()> {
        let Some(engine) = &mut self.engine else {
            return self.fail_all("no model is loaded in this worker");
        };
        let begun = Instant::now();
        let outcome = engine.step(&mut self.events);
        // Runs of one step cannot be told apart on the device: each is charged an equal share, so that
        // the receipts of a node add up to the time that its device was used.
        let share = begun.elapsed() / u32::try_from(self.runs.len()).unwrap_or(u32::MAX).max(1);
        for active in self.runs.values_mut() {
            active.on_device += share;
        }
        let mut events = std::mem::take(&mut self.events);
        for (ticket, event) in events.drain(..) {
            self.say(ticket, event)?;
        }
        self.events = events;
        match outcome {
            Ok(true) => {}
            // Better an error than a loop that computes nothing.
            Ok(false) => self.fail_all("the engine ended without an answer")?,
            Err(error) => {
                self.fail_all(&error.to_string())?;
                // Nothing is known of its state: a new process begins with a clean one.
                return Err(io::Error::other("the engine failed"));
            }
        }
        self.out.flush()
    }

    fn say(&mut self, ticket: Ticket, event: Event) -> io::Result<()> {
        let Some(active) = self.runs.get(&ticket) else { return Ok(()) };
        let run = active.run;
        let said = match event {
            Event::Prefilled { done_tokens, total_tokens } => {
                FromWorker::Prefilled { run, done_tokens, total_tokens }
            }
            Event::Token(token) => {
                FromWorker::Token { run, index: token.index, id: token.id, text: token.text }
            }
            Event::Done(completion) => {
                let ended = ended(&completion, active.device_ms());
                self.runs.remove(&ticket);
                FromWorker::Ended { run, ended }
            }
            Event::Failed(error) => {
                self.runs.remove(&ticket);
                FromWorker::Ended { run, ended: failed(&error) }
            }
            // Kinds of events that this worker does not pass on.
            _ => return Ok(()),
        };
        write_frame(&mut self.out, &said)
    }

    fn fail_all(&mut self, why: &str) -> io::Result<()> {
        for active in std::mem::take(&mut self.runs).into_values() {
            let ended = Ended::Failed { permanent: false, why: why.to_owned() };
            write_frame(&mut self.out, &FromWorker::Ended { run: active.run, ended })?;
        }
        self.out.flush()
    }
}

fn ended(completion: &Completion, device_ms: u64) -> Ended {
    let usage = completion.usage;
    let prompt_tokens = usage.prompt_tokens;
    let reason = match completion.finish {
        Finish::Stop => "stop",
        Finish::StopString => "stop-string",
        Finish::Length => "length",
        Finish::Cancelled => return Ended::Cancelled { prompt_tokens, device_ms },
    };
    Ended::Finished {
        reason: reason.to_owned(),
        prompt_tokens,
        cached_tokens: usage.cached_tokens,
        completion_tokens: usage.completion_tokens,
        device_ms,
    }
}

fn failed(error: &EngineError) -> Ended {
    Ended::Failed { permanent: matches!(error.fault(), Fault::Request), why: error.to_string() }
}
