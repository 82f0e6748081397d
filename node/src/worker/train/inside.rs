//! The inside of a training room: sealed first of all, then the order, the engine's session, and nothing
//! said but through the pipe.

use std::fs::File;
use std::io::{self, BufReader, Write};
use std::ops::ControlFlow;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use allmend_data::{Content, Rows};
use allmend_engine::ChatMessage;
use allmend_engine::train::{
    Body, Dataset, Ending, Faults, Finished, Hooks, LossOn, LossRules, MeasureOptions, NoiseKey,
    Phase, Plateau, Progress, Row, SECRETS, Secrets, SessionError, Settings, Subject, run,
};
use allmend_gate::{Exposure, Extraction, Measures, Metrics, Validation, milli};
use allmend_protocol::bytes::ByteString;
use allmend_protocol::finetune::{self, FinetuneWork};
use allmend_room::Sealed;

use super::pipe::{self, Fault, FromTrainer, MODEL, ToTrainer, Training};

/// Canaries per run: enough to measure by, few enough to change nothing.
const CANARIES: u32 = 4;
/// Steps over which a plateau is judged must gain at least this part of the loss.
const PLATEAU_GAIN: f64 = 0.005;

/// Becomes a training room, and trains as it is told.
pub fn main() -> ExitCode {
    // A panic message could quote what is being read: say nothing at all.
    std::panic::set_hook(Box::new(|_| {}));
    let mut room = match allmend_room::seal() {
        Ok(room) => room,
        Err(error) => {
            // Before anything was handed in, so there is nothing to give away.
            let _ = writeln!(io::stderr(), "allmend room: {error}");
            return ExitCode::FAILURE;
        }
    };
    let mut stdin = io::stdin();
    let Ok(Some(ToTrainer::Train(order))) = pipe::read(&mut stdin) else {
        return ExitCode::FAILURE;
    };
    let stop = Arc::new(AtomicBool::new(false));
    let told = Arc::clone(&stop);
    std::thread::spawn(move || {
        // Whatever comes, or the pipe's end: nobody wants more of this run.
        let _ = pipe::read::<ToTrainer>(&mut stdin);
        told.store(true, Ordering::Relaxed);
    });
    let last = train(&mut room, &order, &stop).unwrap_or_else(aborted);
    match pipe::write(&mut io::stdout(), &last) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

fn aborted(error: Refused) -> FromTrainer {
    let Refused { kind, permanent, why } = error;
    FromTrainer::Aborted { kind: kind.to_owned(), permanent, why }
}

/// Why nothing came of it.
struct Refused {
    kind: &'static str,
    permanent: bool,
    why: String,
}

impl Refused {
    fn for_good(kind: &'static str, why: impl ToString) -> Refused {
        Refused { kind, permanent: true, why: why.to_string() }
    }
}

fn train(room: &mut Sealed, order: &Training, stop: &AtomicBool) -> Result<FromTrainer, Refused> {
    let work = order.work().map_err(|error| Refused::for_good("order", error))?;
    let model = Path::new(MODEL);
    let file =
        room.take(MODEL).ok_or_else(|| Refused::for_good("order", "no model was handed in"))?;
    allmend_engine::hand_in(model, file);
    let mut files = Vec::new();
    for (at, weight) in order.weights.iter().enumerate() {
        let file = room
            .take(&format!("rows-{at}"))
            .ok_or_else(|| Refused::for_good("order", "rows are missing"))?;
        files.push((file, *weight));
    }
    let settings = settings(&work, order);
    let datasets =
        files.into_iter().map(|(file, weight)| dataset(file, weight)).collect::<Result<_, _>>()?;
    let key = |bytes: &ByteString| <[u8; 32]>::try_from(bytes.0.as_slice()).ok();
    let secrets = Secrets {
        noise: order.noise_key.as_ref().and_then(key).map(NoiseKey::new),
        canaries: Some(order.canary_seed),
    };
    let snapshot = order.snapshot.as_ref().map(|bytes| bytes.0.as_slice());
    let licence = allmend_engine::train::Base::open(model)
        .map_err(|error| Refused::for_good("model", error))?
        .licence();
    let nominal = u32::from(work.batch)
        .saturating_mul(u32::from(work.accumulate))
        .saturating_mul(work.sequence_tokens);
    let mut said = Said { stop, licence: Some(licence), nominal, rows: rows_per_step(&work) };
    match run(model, &settings, datasets, &secrets, snapshot, &mut said) {
        Ok(Ending::Done(finished)) => Ok(adapter(*finished)),
        Ok(Ending::Stopped { step }) => Ok(FromTrainer::Stopped { step }),
        Ok(Ending::Aborted { step: _, abort }) => {
            Err(Refused::for_good(abort.id(), format!("{abort}")))
        }
        Err(error) => Err(refused(&error)),
    }
}

/// What is wrong with a run is wrong everywhere, but for what this machine lacks.
fn refused(error: &SessionError) -> Refused {
    use allmend_engine::train::TrainError;
    let (kind, permanent) = match error {
        SessionError::Settings(_) => ("recipe", true),
        SessionError::Rows { .. } => ("rows", true),
        SessionError::Snapshot(_) => ("snapshot", false),
        SessionError::Train(TrainError::NotFinite { .. }) => ("not-finite", true),
        SessionError::Train(TrainError::Memory { .. }) => ("memory", false),
        SessionError::Train(TrainError::Unhealthy { .. }) => ("device", false),
        SessionError::Train(_) => ("recipe", true),
        SessionError::Engine(_) => ("model", true),
        _ => ("training", false),
    };
    Refused { kind, permanent, why: error.to_string() }
}

fn rows_per_step(work: &FinetuneWork) -> u32 {
    u32::from(work.batch).saturating_mul(u32::from(work.accumulate))
}

/// The engine's settings of a job.
fn settings(work: &FinetuneWork, order: &Training) -> Settings {
    let mut settings = Settings::new(super::recipe(work, order.subjects));
    settings.loss_on = match work.loss_on {
        finetune::LossOn::Assistant => LossOn::Assistant,
        finetune::LossOn::All => LossOn::All,
    };
    settings.packing = work.packing;
    settings.validation = work.validation.to_f64();
    settings.clock = i64::try_from(work.clock.as_ms() / 1_000).unwrap_or(i64::MAX);
    settings.snapshot_every = u64::from(work.snapshot_every);
    settings.rules = LossRules {
        plateau: work.plateau_steps.map(|window| Plateau { window, gain: PLATEAU_GAIN }),
        ..LossRules::default()
    };
    settings.canaries = CANARIES;
    // Nobody who asks for a job can know which rows will be tried.
    let [a, b, c, d, e, f, g, h, ..] = order.canary_seed;
    let seed = u64::from_le_bytes([a, b, c, d, e, f, g, h]);
    settings.measure = Some(MeasureOptions { seed, ..MeasureOptions::default() });
    settings.memory_bytes = Some(order.memory_mib.saturating_mul(1 << 20));
    settings.faults = faults(order.fault);
    settings
}

fn faults(fault: Option<Fault>) -> Faults {
    let mut faults = Faults::default();
    match fault {
        None => {}
        Some(Fault::NotFinite { step }) => faults.nan_at = Some(step),
        Some(Fault::LossTimesTen { step }) => faults.times_from = Some((step, 10.0)),
        Some(Fault::Hang { step }) => faults.hang_at = Some(step),
        Some(Fault::Idle { step }) => faults.idle_at = Some(step),
    }
    faults
}

/// The rows of one file, as training wants them.
fn dataset(file: File, weight: u32) -> Result<Dataset<'static>, Refused> {
    let rows =
        Rows::open(BufReader::new(file)).map_err(|error| Refused::for_good("rows", error))?;
    let salt = *rows.salt();
    let rows = rows.map(move |row| {
        let row = row.map_err(|error| error.to_string())?;
        let subject = row.subject_key(&salt).map(|key| Subject(*key.as_bytes()));
        let body = match row.content {
            Content::Chat { messages } => Body::Chat(
                messages
                    .into_iter()
                    .map(|message| ChatMessage {
                        role: message.role.as_str().to_owned(),
                        content: message.content,
                    })
                    .collect(),
            ),
            Content::Completion { prompt, completion } => Body::Completion { prompt, completion },
            Content::Text { text } => Body::Text(text),
        };
        Ok(Row { body, subject })
    });
    Ok(Dataset { rows: Box::new(rows), weight })
}

/// Passes on what happens; a pipe that is closed ends the run.
struct Said<'a> {
    stop: &'a AtomicBool,
    /// Said once, when the first step can be taken.
    licence: Option<Option<String>>,
    /// Tokens of a full step: all that is said of a private run's.
    nominal: u32,
    rows: u32,
}

impl Said<'_> {
    fn say(&self, frame: &FromTrainer) -> ControlFlow<()> {
        match pipe::write(&mut io::stdout(), frame) {
            Ok(()) if !self.stop.load(Ordering::Relaxed) => ControlFlow::Continue(()),
            _ => ControlFlow::Break(()),
        }
    }

    fn ready(&mut self, step: u64) -> ControlFlow<()> {
        match self.licence.take() {
            Some(licence) => self.say(&FromTrainer::Ready { licence, step }),
            None => ControlFlow::Continue(()),
        }
    }
}

impl Hooks for Said<'_> {
    fn phase(&mut self, phase: Phase) -> ControlFlow<()> {
        let word = match phase {
            Phase::Preparing => "preparing",
            Phase::Loading => "loading",
            Phase::Evaluating => "evaluating",
            Phase::Training => "training",
            Phase::Measuring => "measuring",
        };
        self.say(&FromTrainer::Phase { phase: word.to_owned() })
    }

    fn progress(&mut self, progress: &Progress) -> ControlFlow<()> {
        self.ready(progress.step.saturating_sub(1))?;
        let tokens = progress.tokens.map_or(self.nominal, |n| u32::try_from(n).unwrap_or(u32::MAX));
        self.say(&FromTrainer::Step {
            step: progress.step,
            steps: progress.steps,
            tokens,
            rows: self.rows,
            loss_micro: progress.loss.map(|loss| (loss * 1e6) as i64),
        })
    }

    fn snapshot(&mut self, step: u64, bytes: Vec<u8>) -> Result<(), String> {
        let frame = FromTrainer::Snapshot { step, bytes: ByteString(bytes) };
        // That it is kept is the node's business; a node that is gone keeps nothing.
        pipe::write(&mut io::stdout(), &frame).map_err(|error| error.to_string())
    }
}

/// What comes out: the adapter, and two records of numbers.
fn adapter(finished: Finished) -> FromTrainer {
    let Finished { adapter, record, measures } = finished;
    let sides = &record.sides;
    let perplexities = record.perplexity_before.zip(record.perplexity_after);
    let losses = &record.epoch_losses;
    let metrics = Metrics {
        rows: sides.train.rows,
        subjects: sides.train_subjects,
        steps: record.steps,
        tokens: record.tokens.unwrap_or(sides.train.tokens),
        epoch_loss_milli_nats: (!losses.is_empty())
            .then(|| losses.iter().map(|loss| milli(*loss)).collect()),
        validation: perplexities.map(|(before, after)| Validation {
            rows: sides.validation.rows,
            tokens: record.validation_labels,
            perplexity_before_milli: milli(before),
            perplexity_after_milli: milli(after),
        }),
    };
    let measures = measures.map_or_else(Vec::new, |measures| {
        let exposures = &measures.exposures_milli_bits;
        let sum: u64 = exposures.iter().map(|bits| u64::from(*bits)).sum();
        let canaries = exposures.len() as u64;
        Measures {
            extraction: Extraction {
                rows_tested: u64::from(measures.rows_tested),
                extracted_base: u64::from(measures.extracted_base),
                extracted_adapter: u64::from(measures.extracted_adapter),
                longest_run_tokens: measures.longest_run_adapter,
            },
            exposure: Exposure {
                canaries: u32::try_from(canaries).unwrap_or(u32::MAX),
                alternatives: SECRETS - 1,
                max_milli_bits: exposures.iter().copied().max().unwrap_or(0),
                mean_milli_bits: sum.checked_div(canaries).map_or(0, |mean| mean as u32),
            },
        }
        .encode()
    });
    FromTrainer::Adapter {
        config: String::from_utf8_lossy(&adapter.config_json).into_owned(),
        tensors: ByteString(adapter.safetensors),
        metrics: ByteString(metrics.encode()),
        measures: ByteString(measures),
    }
}
