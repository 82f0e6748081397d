//! The worker: the same binary as a child process over two pipes, with an empty environment. It
//! holds one model and runs one job at a time; a crash or an out-of-memory kill of it is a failed
//! attempt, never a dead node.
//!
//! It opens no socket and reads no file but the model that it is told to load.

pub mod pipe;
mod pool;

use std::io;
use std::num::NonZeroUsize;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::time::Instant;

use allmend_engine::{
    ChatMessage, Engine, Event, Fault, Finish, Input, LoadOptions, NUMERICS_VERSION, Request,
    Sampling,
};
use allmend_protocol::job::{InferInput, InferWork};
use allmend_protocol::units::Decimal;

use self::pipe::{Ended, FromWorker, ToWorker, read_frame, write_frame};
pub use self::pool::{Pool, PoolOptions, Run, Task};

/// Commands that may wait in the worker; the daemon sends one at a time.
const COMMANDS_MAX: usize = 4;

/// Runs the worker on this process's standard input and output until the input ends.
///
/// # Errors
/// When a pipe breaks in the middle of a frame or a frame is malformed.
pub fn main() -> io::Result<()> {
    // A panic message could quote what the engine was reading: say only where it happened.
    std::panic::set_hook(Box::new(|info| {
        let place =
            info.location().map_or_else(String::new, |l| format!("{}:{}", l.file(), l.line()));
        eprintln!("allmend worker: internal fault at {place}");
    }));
    let cancel = Arc::new(AtomicBool::new(false));
    let (sender, commands) = mpsc::sync_channel(COMMANDS_MAX);
    let flag = Arc::clone(&cancel);
    std::thread::spawn(move || {
        let mut stdin = io::stdin().lock();
        loop {
            match read_frame::<ToWorker>(&mut stdin) {
                Ok(Some(ToWorker::Cancel)) => flag.store(true, Ordering::Release),
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
    let mut stdout = io::stdout().lock();
    let mut engine: Option<Engine> = None;
    while let Ok(command) = commands.recv() {
        match command {
            ToWorker::Load { path, threads, context_tokens_max } => {
                engine = None;
                let options = LoadOptions {
                    threads: usize::try_from(threads).ok().and_then(NonZeroUsize::new),
                    context_tokens: Some(context_tokens_max),
                    memory_mib: None,
                };
                match Engine::load(&path, &options) {
                    Ok(loaded) => {
                        let licence = loaded.info().license.clone();
                        engine = Some(loaded);
                        let numerics = NUMERICS_VERSION.to_owned();
                        write_frame(&mut stdout, &FromWorker::Loaded { licence, numerics })?;
                    }
                    Err(error) => {
                        let ended = failed(&error);
                        write_frame(&mut stdout, &FromWorker::Ended(ended))?;
                    }
                }
            }
            ToWorker::Run { work, input, forced } => {
                let ended = match &mut engine {
                    Some(engine) => run(engine, &work, input, forced, &cancel, &mut stdout)?,
                    None => Ended::Failed {
                        permanent: false,
                        why: "no model is loaded in this worker".to_owned(),
                    },
                };
                // Only now: a cancel that arrives between two runs belongs to the one before.
                cancel.store(false, Ordering::Release);
                write_frame(&mut stdout, &FromWorker::Ended(ended))?;
            }
            ToWorker::Cancel => {}
        }
    }
    Ok(())
}

fn run(
    engine: &mut Engine,
    work: &InferWork,
    input: InferInput,
    forced: Vec<u32>,
    cancel: &AtomicBool,
    out: &mut impl io::Write,
) -> io::Result<Ended> {
    let started = Instant::now();
    let request = request(work, input, forced);
    // Home pays for no more prompt than the job announced; more would be unpaid work.
    match engine.count_tokens(&request.input, request.clock) {
        Ok(tokens) if tokens as u64 > u64::from(work.prompt_tokens_max) => {
            let why = format!(
                "the prompt has {tokens} tokens, the job announced at most {}",
                work.prompt_tokens_max
            );
            return Ok(Ended::Failed { permanent: true, why });
        }
        Ok(_) => {}
        Err(error) => return Ok(failed(&error)),
    }
    let mut broken: Option<io::Error> = None;
    let outcome = engine.generate(&request, &mut |event| {
        if cancel.load(Ordering::Acquire) {
            return ControlFlow::Break(());
        }
        let Event::Token(token) = event else { return ControlFlow::Continue(()) };
        let frame =
            FromWorker::Token { index: token.index, id: token.id, text: token.text.clone() };
        match write_frame(out, &frame) {
            Ok(()) => ControlFlow::Continue(()),
            Err(error) => {
                broken = Some(error);
                ControlFlow::Break(())
            }
        }
    });
    if let Some(error) = broken {
        return Err(error);
    }
    let device_ms = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX);
    Ok(match outcome {
        Ok(completion) => {
            let prompt_tokens = completion.usage.prompt_tokens;
            let completion_tokens = completion.usage.completion_tokens;
            let reason = match completion.finish {
                Finish::Stop => "stop",
                Finish::StopString => "stop-string",
                Finish::Length => "length",
                Finish::Cancelled => return Ok(Ended::Cancelled { prompt_tokens, device_ms }),
            };
            Ended::Finished {
                reason: reason.to_owned(),
                prompt_tokens,
                completion_tokens,
                device_ms,
            }
        }
        Err(error) => failed(&error),
    })
}

fn request(work: &InferWork, input: InferInput, forced: Vec<u32>) -> Request {
    let stop = input.stop;
    let input = match input.prompt {
        Some(prompt) => Input::Prompt(prompt),
        None => Input::Chat(
            input
                .messages
                .into_iter()
                .map(|message| ChatMessage { role: message.role, content: message.content })
                .collect(),
        ),
    };
    Request {
        input,
        max_tokens: work.max_tokens,
        sampling: Sampling {
            temperature_milli: milli(work.temperature),
            top_k: work.top_k,
            top_p_milli: milli(work.top_p).min(1_000),
            seed: work.seed,
        },
        stop,
        forced,
        clock: i64::try_from(work.clock.as_ms() / 1_000).unwrap_or(i64::MAX),
        researcher: None,
        public_messages: 0,
    }
}

/// Thousandths of a decimal, rounded down; the work has been checked to be at most 100.
fn milli(number: Decimal) -> u32 {
    let mantissa = i128::from(number.mantissa.max(0));
    let power = i32::from(number.exp10) + 3;
    let scale = 10i128.checked_pow(power.unsigned_abs()).unwrap_or(i128::MAX);
    let value = if power >= 0 { mantissa.saturating_mul(scale) } else { mantissa / scale };
    u32::try_from(value).unwrap_or(u32::MAX)
}

fn failed(error: &allmend_engine::EngineError) -> Ended {
    Ended::Failed { permanent: matches!(error.fault(), Fault::Request), why: error.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn decimals_become_thousandths() {
        assert_eq!(milli(Decimal { mantissa: 7, exp10: -1 }), 700);
        assert_eq!(milli(Decimal { mantissa: 1, exp10: 0 }), 1_000);
        assert_eq!(milli(Decimal { mantissa: 123_456, exp10: -6 }), 123);
        assert_eq!(milli(Decimal { mantissa: -1, exp10: 0 }), 0);
        assert_eq!(milli(Decimal { mantissa: 1, exp10: -18 }), 0);
    }
}
