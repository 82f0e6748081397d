//! The executing side of a fine-tuning lease: a room, a contract, training, the output gate, the release.
//!
//! The order is the point. Nothing is opened before the contract is durable; nothing leaves before what
//! the gate decided is durable; and what died in between goes on from its last snapshot.

use std::fs::File;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use allmend_gate::{Bundle, Declared, Dtype, Passed, PeftConfig, Request, Stop, Worked};
use allmend_protocol::bytes::ByteString;
use allmend_protocol::encoding;
use allmend_protocol::envelope::Verified;
use allmend_protocol::finetune::{FinetuneInput, FinetuneWork};
use allmend_protocol::ids::{Digest, MessageId};
use allmend_protocol::receipt::{Outcome, Usage};
use allmend_protocol::stewardship::{Contract, FACTS_MAX, GateReport, GateStop};
use allmend_protocol::time::DurationMs;
use allmend_room::{EmptyRoom, Facts, Spec, Strength};
use allmend_scheduler::io::{Gated, Input, WorkEvent};
use tokio::sync::mpsc;

use super::Event;
use super::running::Attempt;
use crate::adapters::{About, AdapterStore, FILES};
use crate::client::report::{Report, Stage};
use crate::membership::now;
use crate::models::Store;
use crate::seal::{ContentKey, SealedResult};
use crate::stewards::{Prepared, ReleaseVerdict, Stewardship};
use crate::worker::train::pipe::{Fault, FromTrainer, MODEL, ToTrainer, Training};
use crate::worker::train::{End, supervise};

/// Rows that a reported loss is the mean of, at least: it says nothing about one of them.
const REPORT_ROWS_MIN: u32 = 16;
/// Reports are no more frequent than this, unless something new begins.
const REPORT_EVERY: Duration = Duration::from_millis(500);
/// Frames that may wait for this task.
const FRAMES_MAX: usize = 16;
/// A room that dies is built again so often within one lease.
const ROOMS_MAX: u32 = 3;

/// What training on this node needs, besides the job.
#[derive(Debug)]
pub(crate) struct TrainingPlace {
    pub(crate) store: Store,
    pub(crate) stewards: Arc<Stewardship>,
    pub(crate) adapters: AdapterStore,
    /// This program, which becomes the room's.
    pub(crate) program: PathBuf,
    pub(crate) threads: u32,
    pub(crate) memory_mib: u64,
    pub(crate) fault: Option<Fault>,
    pub(crate) events: mpsc::Sender<Event>,
}

/// Why a run ends without an adapter.
#[derive(Debug)]
struct Failure {
    permanent: bool,
    why: String,
}

impl Failure {
    fn passing(why: impl ToString) -> Failure {
        Failure { permanent: false, why: why.to_string() }
    }

    fn for_good(why: impl ToString) -> Failure {
        Failure { permanent: true, why: why.to_string() }
    }
}

/// What came of it.
enum Done {
    /// The gate let it out: sealed to the researcher.
    Released(Sealed),
    /// The gate kept it: the receipt says so, the log says why.
    Kept(String),
    /// It stopped when told to.
    Stopped,
}

/// Runs one lease to its end, and reports that.
pub(super) async fn run(
    attempt: Arc<Attempt>,
    place: Arc<TrainingPlace>,
    input: FinetuneInput,
    salt: [u8; 32],
) {
    let lease = attempt.work.lease.id();
    let mut run = Run {
        tally: Tally::default(),
        licence: None,
        stage: Stage::Preparing,
        work: match FinetuneWork::from_work(&attempt.work.job.work) {
            Ok(work) => work,
            Err(error) => return fail(&attempt, &place, Failure::for_good(error)).await,
        },
        began: Instant::now(),
        attempt: Arc::clone(&attempt),
        place: Arc::clone(&place),
    };
    let done = run.go(input).await;
    let usage = Usage {
        completion_tokens: run.tally.tokens,
        device_time_ms: DurationMs::from_ms(millis(run.tally.computing)),
        ..Usage::default()
    };
    let stop_as = attempt.stop_as();
    let (outcome, output) = match done {
        Ok(Done::Released(sealed)) => {
            attempt.release(sealed.bytes);
            let output = Digest::salted(&salt, sealed.adapter.as_bytes());
            (Outcome::Finished { reason: "steps".to_owned() }, Some(output))
        }
        Ok(Done::Kept(why)) => (Outcome::Failed { permanent: true, why }, None),
        Ok(Done::Stopped) => (stop_as.unwrap_or(Outcome::Cancelled), None),
        Err(Failure { permanent, why }) => {
            tracing::info!(lease = %lease.short(), %why, permanent, "training ended");
            (stop_as.unwrap_or(Outcome::Failed { permanent, why: shorten(&why) }), None)
        }
    };
    // What was reserved of a privacy budget and not used goes back, whatever happened.
    place.stewards.account(attempt.work.lease.job, run.tally.steps_ever);
    attempt.finish();
    let licence = run.licence;
    report(
        &place.events,
        lease,
        WorkEvent::Ended { outcome, usage, output, model_licence: licence },
    )
    .await;
}

async fn fail(attempt: &Attempt, place: &TrainingPlace, failure: Failure) {
    let Failure { permanent, why } = failure;
    attempt.finish();
    let ended = WorkEvent::Ended {
        outcome: Outcome::Failed { permanent, why: shorten(&why) },
        usage: Usage::default(),
        output: None,
        model_licence: None,
    };
    report(&place.events, attempt.work.lease.id(), ended).await;
}

/// An adapter on its way to the researcher.
struct Sealed {
    adapter: Digest,
    bytes: Vec<u8>,
}

/// What was done so far.
#[derive(Debug, Default)]
struct Tally {
    /// Tokens trained on in this attempt.
    tokens: u64,
    /// Steps taken over all attempts, counted for privacy.
    steps_ever: u64,
    computing: Duration,
}

struct Run {
    attempt: Arc<Attempt>,
    place: Arc<TrainingPlace>,
    work: FinetuneWork,
    tally: Tally,
    licence: Option<String>,
    stage: Stage,
    began: Instant,
}

/// An adapter as it came out of the room, with what the room declared.
#[derive(Clone, Debug)]
struct Made {
    config: String,
    tensors: ByteString,
    metrics: ByteString,
    measures: ByteString,
    /// The contract under which it was trained, which its card names at every later attempt, too: a
    /// person's approval of the adapter is one of all its bytes.
    contract: Option<MessageId>,
}

impl Run {
    async fn go(&mut self, input: FinetuneInput) -> Result<Done, Failure> {
        self.push(0, self.report(Stage::Preparing, 0));
        let model = self.model().await?;
        let room = self.build().await?;
        let (facts, strength) = (room.facts().clone(), room.strength());
        let prepared = self.prepare(strength, input).await?;
        let contract = self.contract(&prepared, &facts, strength).await?;
        let held = self.place.stewards.finished(self.job());
        let made = match held {
            // An earlier attempt has trained it; only the gate or a person was missing.
            Some(made) => {
                drop(room);
                decode_made(&made)?
            }
            None => match self.train(room, &model, &prepared).await? {
                Some(made) => made,
                None => return Ok(Done::Stopped),
            },
        };
        self.gate(prepared, &contract, made).await
    }

    fn job(&self) -> MessageId {
        self.attempt.work.lease.job
    }

    /// The model's file, verified.
    async fn model(&self) -> Result<File, Failure> {
        let (store, model) = (self.place.store.clone(), self.attempt.work.job.model);
        let path = self.attempt.path.clone();
        let opened = tokio::task::spawn_blocking(move || {
            let _pin = store.pin(&model, &()).map_err(|error| error.to_string())?;
            File::open(&path).map_err(|error| error.to_string())
        });
        opened.await.map_err(Failure::passing)?.map_err(Failure::passing)
    }

    /// A room with nothing in it.
    async fn build(&self) -> Result<EmptyRoom, Failure> {
        let least = self.least()?;
        let place = Arc::clone(&self.place);
        let built = tokio::task::spawn_blocking(move || {
            let mut command = Command::new(&place.program);
            command.arg(crate::worker::SEALED_COMMAND);
            let spec = Spec {
                least,
                memory_max_bytes: place.memory_mib.saturating_mul(1 << 20),
                environment: [(allmend_engine::THREADS_ENV.to_owned(), place.threads.to_string())]
                    .into(),
                ..Spec::default()
            };
            EmptyRoom::build(&mut command, &spec)
        });
        built.await.map_err(Failure::passing)?.map_err(|error| {
            Failure::passing(format!(
                "this node cannot build the room that the job asks for: {error}"
            ))
        })
    }

    /// The weakest room that the researcher accepts.
    fn least(&self) -> Result<Strength, Failure> {
        let Some(terms) = &self.attempt.work.job.terms else { return Ok(Strength::Sealed) };
        Strength::from_name(&terms.room)
            .ok_or_else(|| Failure::for_good(format!("no room is called {:?}", terms.room)))
    }

    /// What stewards allow in a room of this class, with the rows.
    async fn prepare(&self, strength: Strength, input: FinetuneInput) -> Result<Prepared, Failure> {
        let (place, work) = (Arc::clone(&self.place), self.attempt.work.clone());
        let jurisdiction = self.attempt.jurisdiction;
        let prepared = tokio::task::spawn_blocking(move || {
            place.stewards.prepare(&work, jurisdiction, strength, input.portable, now())
        });
        // Policies change at any minute: what was an offer may be a refusal now.
        prepared.await.map_err(Failure::passing)?.map_err(Failure::passing)
    }

    /// Has the terms signed and logged.
    async fn contract(
        &self,
        prepared: &Prepared,
        facts: &Facts,
        strength: Strength,
    ) -> Result<Verified<Contract>, Failure> {
        let mut terms = prepared.terms.clone();
        strength.name().clone_into(&mut terms.room);
        terms.room_facts = facts_in_words(facts);
        let lease = self.attempt.work.lease.id();
        let mut signed = self.attempt.contracts.subscribe();
        report(&self.place.events, lease, WorkEvent::Contracted(Box::new(terms))).await;
        let contract = tokio::select! {
            signed = signed.wait_for(Option::is_some) => signed.ok().and_then(|signed| signed.clone()),
            () = self.attempt.cancel.cancelled() => None,
        };
        contract.ok_or_else(|| Failure::passing("it was stopped before its contract was signed"))
    }

    /// Trains, in one room after another if they die; none when it was told to stop.
    async fn train(
        &mut self,
        room: EmptyRoom,
        model: &File,
        prepared: &Prepared,
    ) -> Result<Option<Made>, Failure> {
        let mut room = Some(room);
        let mut died = String::new();
        for _ in 0..ROOMS_MAX {
            let room = match room.take() {
                Some(room) => room,
                None => self.build().await?,
            };
            let snapshot = self.place.stewards.snapshot(self.job()).map(ByteString);
            let order = ToTrainer::Train(Box::new(Training {
                work: ByteString(encoding::encode(&self.work)),
                weights: prepared.weights(),
                subjects: prepared.subjects(),
                memory_mib: self.place.memory_mib,
                snapshot,
                canary_seed: prepared.canary_seed,
                noise_key: prepared.noise_key.map(|key| ByteString(key.to_vec())),
                fault: self.place.fault,
            }));
            match self.one_room(room, model, prepared, order).await? {
                Spoken::Adapter(made) => return Ok(Some(made)),
                Spoken::Stopped => return Ok(None),
                // It goes on from the last snapshot, in another room.
                Spoken::Died(why) if !self.attempt.cancel.is_cancelled() => died = why,
                Spoken::Died(_) => return Ok(None),
            }
            tracing::warn!(job = %self.job().short(), why = died, "a room died");
        }
        Err(Failure::passing(format!("{ROOMS_MAX} rooms died; the last: {died}")))
    }

    /// Follows one room to its end.
    async fn one_room(
        &mut self,
        room: EmptyRoom,
        model: &File,
        prepared: &Prepared,
        order: ToTrainer,
    ) -> Result<Spoken, Failure> {
        let mut files = vec![(MODEL.to_owned(), model.try_clone().map_err(Failure::passing)?)];
        files.extend(prepared.files().map_err(Failure::passing)?);
        let (sender, mut frames) = mpsc::channel(FRAMES_MAX);
        let stop = self.attempt.cancel.clone();
        let supervised = tokio::task::spawn_blocking(move || {
            supervise(room, &files, &order, &stop, |frame| {
                // A reader that is gone has no use for it.
                let _ = sender.blocking_send(frame);
            })
        });
        let mut spoken = None;
        let mut pace = Pace::new();
        while let Some(frame) = frames.recv().await {
            match frame {
                FromTrainer::Ready { licence, step } => {
                    self.licence = licence;
                    self.tally.steps_ever = self.tally.steps_ever.max(step);
                    self.push(
                        0,
                        Report { resumed_from: Some(step), ..self.report(Stage::Training, step) },
                    );
                    pace = Pace::new();
                }
                FromTrainer::Step { step, tokens, rows, loss_micro, .. } => {
                    self.tally.tokens = self.tally.tokens.saturating_add(u64::from(tokens));
                    self.tally.steps_ever = self.tally.steps_ever.max(step);
                    self.tally.computing = self.began.elapsed();
                    self.progress();
                    let last = step == u64::from(self.work.steps);
                    self.stage = Stage::Training;
                    if let Some((tokens, loss)) = pace.step(tokens, rows, loss_micro, last) {
                        let report =
                            Report { loss_micro: loss, ..self.report(Stage::Training, step) };
                        self.push(tokens, report);
                    }
                }
                FromTrainer::Phase { phase } => {
                    let stage = match phase.as_str() {
                        "evaluating" => Stage::Evaluating,
                        "measuring" => Stage::Checking,
                        _ => continue,
                    };
                    if self.stage != stage {
                        self.stage = stage;
                        self.push(0, self.report(stage, self.tally.steps_ever));
                    }
                }
                FromTrainer::Snapshot { step: _, bytes } => {
                    let (stewards, job) = (Arc::clone(&self.place.stewards), self.job());
                    let kept =
                        tokio::task::spawn_blocking(move || stewards.keep_snapshot(job, &bytes.0));
                    if let Err(error) = kept.await.map_err(Failure::passing)? {
                        tracing::warn!(job = %self.job().short(), %error, "snapshot not kept");
                    }
                }
                FromTrainer::Adapter { config, tensors, metrics, measures } => {
                    spoken = Some(Spoken::Adapter(Made {
                        config,
                        tensors,
                        metrics,
                        measures,
                        contract: None,
                    }));
                }
                FromTrainer::Stopped { .. } => spoken = Some(Spoken::Stopped),
                FromTrainer::Aborted { kind, permanent, why } => {
                    let why = format!("{}: {}", plain(&kind), plain(&why));
                    let _ = supervised.await;
                    return Err(Failure { permanent, why });
                }
            }
        }
        let end = supervised.await.map_err(Failure::passing)?.map_err(Failure::passing)?;
        match (end, spoken) {
            (_, Some(spoken)) => Ok(spoken),
            (End::Ended { kind, why }, None) => {
                Err(Failure { permanent: false, why: format!("{kind}: {why}") })
            }
            (End::Died(why), None) => Ok(Spoken::Died(why)),
            (End::Said, None) => Ok(Spoken::Died("it ended without a word".to_owned())),
        }
    }

    /// What the gate says to what came out of the room.
    async fn gate(
        &mut self,
        prepared: Prepared,
        contract: &Verified<Contract>,
        mut made: Made,
    ) -> Result<Done, Failure> {
        self.push(0, self.report(Stage::Checking, u64::from(self.work.steps)));
        let (id, body) = (contract.id(), contract.body());
        let trained = *made.contract.get_or_insert(id);
        let kept = encode_made(&made);
        self.place.stewards.keep_finished(self.job(), &kept).map_err(Failure::passing)?;
        let (declared, fan_in_fan_out) = self.declared().await?;
        let passed: Result<Passed, Vec<Stop>> = allmend_gate::pass(
            Worked {
                adapter: made.tensors.0.as_slice(),
                adapter_len: made.tensors.0.len() as u64,
                metrics: &made.metrics.0,
                measures: &made.measures.0,
            },
            &Request {
                declared: &declared,
                config: &self.config(body, fan_in_fan_out),
                terms: &prepared.rules,
                card: &prepared.card(trained, body, &self.work, &body.model.short()),
            },
        );
        let passed = match passed {
            Ok(passed) => passed,
            Err(stops) => {
                let stop =
                    |stop: Stop| GateStop { rule: stop.rule.id().to_owned(), text: stop.text };
                return self.kept(stops.into_iter().map(stop).collect()).await;
            }
        };
        let verdict = self.place.stewards.release_verdict(
            &self.attempt.work,
            self.attempt.jurisdiction,
            passed.id(),
            passed.measures(),
            now(),
        );
        let approvals = match verdict {
            ReleaseVerdict::Release(approvals) => approvals,
            ReleaseVerdict::Refuse(stop) => return self.kept(vec![stop]).await,
            ReleaseVerdict::Wait(who) => {
                // The lease ends, the adapter stays here; the next attempt begins at the gate.
                return Err(Failure::passing(format!("trained; its release waits for {who}")));
            }
        };
        let id = passed.id();
        let bytes = passed.bytes_held().to_vec();
        let bundle = Bundle::read(&bytes).map_err(Failure::for_good)?;
        // Where recalls will look for it, before anybody can have it.
        self.place.stewards.may_release(&self.attempt.work).map_err(Failure::for_good)?;
        let report = self.gated(Gated { released: Some(id), stops: Vec::new(), approvals }).await?;
        self.place
            .stewards
            .released(&self.attempt.work, id, report, now())
            .map_err(Failure::passing)?;
        let about = About {
            model: self.attempt.work.job.model,
            report: Some(report),
            users: prepared.users(&self.attempt.work),
            stewards: prepared.stewards.clone(),
        };
        let config = bundle.config().file();
        let files: [&[u8]; 3] = [&config, bundle.safetensors(), bundle.card().as_bytes()];
        let named: Vec<(&str, &[u8])> = FILES.iter().copied().zip(files).collect();
        self.place.adapters.put(id, &about, &named).map_err(Failure::passing)?;
        let _ = self.place.events.send(Event::AdaptersChanged).await;
        let sealing = self.attempt.work.cert.sealing;
        let sealed = SealedResult::seal(&sealing, self.job(), &bytes).map_err(Failure::for_good)?;
        Ok(Done::Released(Sealed { adapter: id, bytes: encoding::encode(&sealed) }))
    }

    /// The adapter as it must come out, by this node's own reckoning.
    async fn declared(&self) -> Result<(Declared, bool), Failure> {
        let (path, work) = (self.attempt.path.clone(), self.work.clone());
        let shape = tokio::task::spawn_blocking(move || {
            allmend_engine::train::Base::open(&path)
                .and_then(|base| base.adapter_shape(&crate::worker::train::recipe(&work, 1)))
                .map_err(|error| error.to_string())
        });
        let shape = shape.await.map_err(Failure::passing)?.map_err(Failure::for_good)?;
        let tensors = shape.tensors.into_iter();
        let tensors = tensors.map(|(name, shape)| (name, shape.to_vec(), Dtype::F32));
        let lora = &self.work.lora;
        let declared = Declared::new(u32::from(lora.rank), u32::from(lora.alpha), tensors);
        Ok((declared.map_err(Failure::for_good)?, shape.fan_in_fan_out))
    }

    /// What PEFT wants to know of the adapter.
    fn config(&self, contract: &Contract, fan_in_fan_out: bool) -> PeftConfig {
        let lora = &self.work.lora;
        PeftConfig {
            base_model_name_or_path: format!("sha256:{}", contract.model),
            fan_in_fan_out,
            lora_alpha: u32::from(lora.alpha),
            lora_dropout: lora.dropout.to_f64(),
            r: u32::from(lora.rank),
            target_modules: lora.targets.clone(),
        }
    }

    /// The gate keeps the adapter: logged with every reason, told to the researcher in words.
    async fn kept(&self, mut stops: Vec<GateStop>) -> Result<Done, Failure> {
        stops.truncate(FACTS_MAX);
        stops.iter_mut().for_each(|stop| stop.text = shorten(&stop.text));
        let words: Vec<String> = stops.iter().map(|stop| stop.text.clone()).collect();
        self.gated(Gated { released: None, stops, approvals: Vec::new() }).await?;
        Ok(Done::Kept(shorten(&format!("the output gate kept the adapter: {}", words.join("; ")))))
    }

    async fn gated(&self, gated: Gated) -> Result<MessageId, Failure> {
        let mut signed = self.attempt.reports.subscribe();
        let lease = self.attempt.work.lease.id();
        report(&self.place.events, lease, WorkEvent::Gated(Box::new(gated))).await;
        let report: Option<Verified<GateReport>> = tokio::select! {
            signed = signed.wait_for(Option::is_some) => signed.ok().and_then(|signed| signed.clone()),
            () = self.attempt.cancel.cancelled() => None,
        };
        report
            .map(|report| report.id())
            .ok_or_else(|| Failure::passing("it was stopped before the gate's report was signed"))
    }

    fn report(&self, stage: Stage, step: u64) -> Report {
        Report {
            stage,
            step,
            steps: u64::from(self.work.steps),
            elapsed_ms: millis(self.began.elapsed()),
            ..Report::default()
        }
    }

    fn push(&self, tokens: u32, report: Report) {
        self.attempt.push(tokens, report.to_json());
    }

    /// Lets the lease book know how far it is, so that an interruption is paid.
    fn progress(&self) {
        let lease = self.attempt.work.lease.id();
        let tokens = u32::try_from(self.tally.tokens).unwrap_or(u32::MAX);
        let event = WorkEvent::Progress { tokens };
        // A loop that is busy hears the next one.
        let _ = self.place.events.try_send(Event::Input(Box::new(Input::Work { lease, event })));
    }
}

/// What a room said last.
enum Spoken {
    Adapter(Made),
    Stopped,
    Died(String),
}

/// Gathers steps until a report is due and says nothing about a single row.
struct Pace {
    tokens: u32,
    rows: u32,
    losses: i128,
    steps: i128,
    said: Instant,
}

impl Pace {
    fn new() -> Pace {
        Pace { tokens: 0, rows: 0, losses: 0, steps: 0, said: Instant::now() }
    }

    /// The tokens since the last report and their mean loss, when one is due; a loss over too few rows is
    /// left out.
    fn step(
        &mut self,
        tokens: u32,
        rows: u32,
        loss_micro: Option<i64>,
        last: bool,
    ) -> Option<(u32, Option<i64>)> {
        self.tokens = self.tokens.saturating_add(tokens);
        self.rows = self.rows.saturating_add(rows);
        if let Some(loss) = loss_micro {
            self.losses += i128::from(loss);
            self.steps += 1;
        }
        let enough = self.rows >= REPORT_ROWS_MIN;
        let due = last || (enough && self.said.elapsed() >= REPORT_EVERY);
        if !due {
            return None;
        }
        let mean = self.losses.checked_div(self.steps).and_then(|mean| i64::try_from(mean).ok());
        let mean = mean.filter(|_| enough);
        // Thousandths are enough for a curve, and carry less.
        let mean = mean.map(|mean| mean / 1_000 * 1_000);
        let said = (self.tokens, mean);
        *self = Pace::new();
        Some(said)
    }
}

/// A room's report, as a contract carries it.
fn facts_in_words(facts: &Facts) -> Vec<String> {
    let mut words: Vec<String> = facts
        .layers
        .iter()
        .filter(|layer| layer.held)
        .map(|layer| format!("layer {}", layer.layer))
        .collect();
    let held = facts.probes.iter().filter(|probe| probe.held).count();
    words.push(format!("{held} of {} probes stayed inside", facts.probes.len()));
    words.push(format!("kernel {}", facts.kernel));
    words.truncate(FACTS_MAX);
    words
}

/// An adapter that waits at this node for its release, as one file.
fn encode_made(made: &Made) -> Vec<u8> {
    encoding::encode(&(
        made.config.clone(),
        made.tensors.clone(),
        made.metrics.clone(),
        made.measures.clone(),
        made.contract,
    ))
}

fn decode_made(bytes: &[u8]) -> Result<Made, Failure> {
    let (config, tensors, metrics, measures, contract) = encoding::decode(bytes, bytes.len())
        .map_err(|_| Failure::passing("the finished adapter on this node's disk is damaged"))?;
    Ok(Made { config, tensors, metrics, measures, contract })
}

/// Opens and checks a job's input.
pub(super) fn open_input(key: &ContentKey, sealed: &[u8]) -> Result<FinetuneInput, String> {
    let plain = key.open_input(sealed).map_err(|error| error.to_string())?;
    // The decoder's own words could quote the input: say only that it failed.
    encoding::decode(&plain, super::running::INPUT_BYTES_MAX)
        .map_err(|_| "the input is not that of a fine-tuning job".to_owned())
}

/// What a room says about itself, as far as a person may read it: short, and one line.
fn plain(text: &str) -> String {
    let mut text: String = text.chars().filter(|c| !c.is_control()).take(160).collect();
    text.truncate(text.trim_end().len());
    text
}

fn shorten(why: &str) -> String {
    use allmend_protocol::offer::{Reason, ReasonClass};
    Reason::new(ReasonClass::Policy, why).text
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

async fn report(events: &mpsc::Sender<Event>, lease: MessageId, event: WorkEvent) {
    let _ = events.send(Event::Input(Box::new(Input::Work { lease, event }))).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_report_is_about_a_single_row() {
        let mut pace = Pace::new();
        for _ in 0..3 {
            assert_eq!(pace.step(100, 1, Some(2_000_000), false), None);
        }
        assert_eq!(pace.step(100, 1, Some(2_000_000), true), Some((400, None)), "too few rows");
        for _ in 0..3 {
            assert_eq!(pace.step(100, 8, Some(1_234_567), false), None, "too soon");
        }
        assert_eq!(pace.step(100, 8, Some(1_234_567), true), Some((400, Some(1_234_000))));
    }
}
