//! Whole training runs on a tiny model: interruptions, faults, and what the gate is told.

mod support;

use std::cell::RefCell;
use std::ops::ControlFlow;
use std::path::Path;
use std::rc::Rc;

use allmend_engine::ChatMessage;
use allmend_engine::train::{
    Body, Dataset, Ending, Faults, Finished, Hooks, LossOn, MeasureOptions, NoiseKey, Phase,
    Privacy, Progress, Recipe, Row, Secrets, SessionError, Settings, Subject, run,
};

/// Hooks that remember, and that stop when told to.
#[derive(Default)]
struct Log {
    progress: Vec<Progress>,
    snapshots: Vec<(u64, Vec<u8>)>,
    phases: Vec<Phase>,
    /// Stops after this step.
    stop_after: Option<u64>,
    /// Stops when this phase is reported for the n-th time.
    stop_in: Option<(Phase, usize)>,
    /// Calls of the faults that never return in a real worker, as (fault, steps made).
    faults: Rc<RefCell<Vec<(&'static str, usize)>>>,
    /// The disk is full.
    refuses: bool,
}

impl Hooks for Log {
    fn phase(&mut self, phase: Phase) -> ControlFlow<()> {
        self.phases.push(phase);
        let times = self.phases.iter().filter(|&&other| other == phase).count();
        match self.stop_in {
            Some((stop, at)) if stop == phase && times >= at => ControlFlow::Break(()),
            _ => ControlFlow::Continue(()),
        }
    }

    fn progress(&mut self, progress: &Progress) -> ControlFlow<()> {
        self.progress.push(*progress);
        match self.stop_after {
            Some(step) if progress.step >= step => ControlFlow::Break(()),
            _ => ControlFlow::Continue(()),
        }
    }

    fn snapshot(&mut self, step: u64, bytes: Vec<u8>) -> Result<(), String> {
        self.snapshots.push((step, bytes));
        if self.refuses { Err("no space left".to_owned()) } else { Ok(()) }
    }

    fn hang(&mut self) {
        self.faults.borrow_mut().push(("hang", self.progress.len()));
    }

    fn idle(&mut self) {
        self.faults.borrow_mut().push(("idle", self.progress.len()));
    }
}

/// A number that follows from a place, for choosing instants.
fn drawn(seed: u64, place: u64) -> u64 {
    let mut bits = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(place);
    for _ in 0..3 {
        bits ^= bits >> 29;
        bits = bits.wrapping_mul(0xbf58_476d_1ce4_e5b9);
    }
    bits ^ (bits >> 32)
}

fn recipe(steps: u64) -> Recipe {
    Recipe {
        rank: 4,
        alpha: 8.0,
        dropout: 0.1,
        targets: ["q_proj", "v_proj", "down_proj"].map(str::to_owned).to_vec(),
        steps,
        batch: 2,
        accumulate: 2,
        sequence_tokens: 64,
        learning_rate: 5e-3,
        seed: 11,
        ..Recipe::default()
    }
}

fn settings(steps: u64) -> Settings {
    Settings { validation: 0.2, ..Settings::new(recipe(steps)) }
}

/// Conversations and texts, several per subject.
fn rows(first: usize, len: usize) -> Vec<Row> {
    let message = |role: &str, content: String| ChatMessage { role: role.to_owned(), content };
    let body = |at: usize| match at % 3 {
        0 => Body::Text(format!("Row {at} is a line of text.")),
        1 => Body::Completion { prompt: format!("{at}: "), completion: format!("{}", at * at) },
        _ => Body::Chat(vec![
            message("user", format!("Say {at}.")),
            message("assistant", format!("It is {at}.")),
        ]),
    };
    let subject = |at: usize| (!at.is_multiple_of(4)).then_some(Subject([(at / 3) as u8; 32]));
    (first..first + len).map(|at| Row { body: body(at), subject: subject(at) }).collect()
}

fn dataset(rows: Vec<Row>, weight: u32) -> Dataset<'static> {
    Dataset { rows: Box::new(rows.into_iter().map(Ok)), weight }
}

fn datasets() -> Vec<Dataset<'static>> {
    vec![dataset(rows(0, 30), 2), dataset(rows(100, 9), 1)]
}

fn model() -> (tempfile::TempDir, std::path::PathBuf) {
    support::file(&support::tiny_model("llama").to_bytes())
}

fn go(
    model: &Path,
    settings: &Settings,
    secrets: &Secrets,
    snapshot: Option<&[u8]>,
    log: &mut Log,
) -> Result<Ending, SessionError> {
    // Private runs take every subject alike.
    let sets = match settings.recipe.privacy {
        None => datasets(),
        Some(_) => vec![dataset(rows(0, 30), 1), dataset(rows(100, 9), 1)],
    };
    run(model, settings, sets, secrets, snapshot, log)
}

fn done(ending: Ending) -> Finished {
    match ending {
        Ending::Done(finished) => *finished,
        other => panic!("{other:?}"),
    }
}

/// Goal: a run that is stopped, or killed and taken up from its last snapshot, at several drawn instants
/// ends with the bytes and the numbers of one that was not. Plain and packed, recomputed, and private.
#[test]
fn interrupted_runs_end_with_the_same_bytes() {
    let (_dir, model) = model();
    let plain = settings(18);
    let packed = Settings { packing: true, snapshot_every: 5, ..plain.clone() };
    let mut recomputed = plain.clone();
    recomputed.recipe.recompute = true;
    let mut private = Settings { snapshot_every: 4, canaries: 2, ..plain.clone() };
    private.recipe.privacy =
        Some(Privacy { clip_norm: 0.5, noise_multiplier: 0.8, sampling_rate: 0.3, divisor: 5.0 });
    let entropy = Secrets { noise: Some(NoiseKey::new([5; 32])), canaries: Some([6; 32]) };
    let nothing = Secrets::default();
    let runs = [(&plain, &nothing), (&packed, &nothing), (&private, &entropy)];
    for (settings, secrets) in runs {
        let mut log = Log::default();
        let whole = done(go(&model, settings, secrets, None, &mut log).unwrap());
        assert_eq!(log.progress.len(), 18);
        assert_eq!(
            log.snapshots.len() as u64,
            18u64.checked_div(settings.snapshot_every).unwrap_or(0)
        );
        for seed in 0..3 {
            let mut kept: Option<Vec<u8>> = None;
            let mut interruptions = 0;
            let finished = loop {
                let stop_after = (interruptions < 3).then(|| 1 + drawn(seed, interruptions) % 18);
                let mut log = Log { stop_after, ..Log::default() };
                let ending = go(&model, settings, secrets, kept.as_deref(), &mut log).unwrap();
                match ending {
                    Ending::Done(finished) => break *finished,
                    Ending::Stopped { step } => {
                        assert_eq!(log.snapshots.last().map(|(at, _)| *at), Some(step));
                        // Killed instead, it would have lost what came after its last own snapshot.
                        if settings.snapshot_every > 0 && seed == 1 {
                            log.snapshots.pop();
                        }
                    }
                    Ending::Aborted { abort, .. } => panic!("{abort}"),
                }
                kept = log.snapshots.pop().map(|(_, bytes)| bytes).or(kept);
                interruptions += 1;
            };
            assert!(finished.adapter == whole.adapter, "seed {seed}");
            assert_eq!(finished.record, whole.record, "seed {seed}");
        }
    }
    let one = done(go(&model, &plain, &nothing, None, &mut Log::default()).unwrap());
    let other = done(go(&model, &recomputed, &nothing, None, &mut Log::default()).unwrap());
    assert!(one.adapter.safetensors == other.adapter.safetensors);
}

#[test]
fn what_is_said_of_a_run_is_what_happened() {
    let (_dir, model) = model();
    let settings = settings(40);
    let mut log = Log::default();
    let finished = done(go(&model, &settings, &Secrets::default(), None, &mut log).unwrap());
    let record = &finished.record;
    let steps: Vec<u64> = log.progress.iter().map(|progress| progress.step).collect();
    assert_eq!(steps, (1..=40).collect::<Vec<_>>());
    let tokens: u64 = log.progress.iter().filter_map(|progress| progress.tokens).sum();
    assert_eq!((record.tokens, record.steps), (Some(tokens), 40));
    assert_eq!(record.sides.train.rows + record.sides.validation.rows, 39);
    assert!(record.sides.validation.rows > 0 && record.validation_labels > 0);
    // 160 turns over the examples of both datasets.
    let items = record.sides.train.examples;
    assert_eq!(record.epoch_losses.len() as u64, 39 * 4 / items + 1);
    let losses: f64 = log.progress.iter().filter_map(|progress| progress.loss).sum();
    let first: Vec<f64> = log.progress.iter().filter_map(|progress| progress.loss).collect();
    assert!(losses.is_finite() && first.len() == 40);
    let entries = &record.epoch_losses;
    assert!(entries.last() < entries.first(), "{entries:?}");
    let (before, after) = (record.perplexity_before.unwrap(), record.perplexity_after.unwrap());
    // Random weights know nothing: about the size of the vocabulary before.
    assert!((100.0..170.0).contains(&before) && after < before, "{before} {after}");
    let order = [Phase::Preparing, Phase::Loading, Phase::Evaluating, Phase::Training];
    let mut phases = log.phases.clone();
    phases.dedup();
    assert_eq!(phases, [&order[..], &[Phase::Evaluating]].concat());
}

/// Goal: a private run says nothing that follows from single rows.
#[test]
fn private_runs_say_neither_losses_nor_tokens() {
    let (_dir, model) = model();
    let mut settings = settings(4);
    settings.recipe.privacy =
        Some(Privacy { clip_norm: 1.0, noise_multiplier: 1.0, sampling_rate: 0.2, divisor: 4.0 });
    let secrets = Secrets { noise: Some(NoiseKey::new([1; 32])), canaries: None };
    let mut log = Log::default();
    let finished = done(go(&model, &settings, &secrets, None, &mut log).unwrap());
    assert_eq!(log.progress.len(), 4);
    assert!(
        log.progress.iter().all(|one| (one.loss, one.grad_norm, one.tokens) == (None, None, None))
    );
    let record = &finished.record;
    assert_eq!(
        (record.tokens, record.perplexity_before, record.perplexity_after),
        (None, None, None)
    );
    assert!(record.epoch_losses.is_empty());
    let packed = Settings { packing: true, ..settings.clone() };
    let error = go(&model, &packed, &secrets, None, &mut Log::default()).unwrap_err();
    assert!(error.to_string().contains("packing"), "{error}");
    let log = &mut Log::default();
    let error = run(&model, &settings, datasets(), &secrets, None, log).unwrap_err();
    assert!(error.to_string().contains("the same weight"), "{error}");
}

/// Goal: each seeded fault ends the run with its own reason, within its stated bound.
#[test]
fn faults_abort_within_their_bounds() {
    let (_dir, model) = model();
    let with = |faults| Settings { faults, ..settings(30) };
    let aborted = |settings: &Settings| {
        let mut log = Log::default();
        match go(&model, settings, &Secrets::default(), None, &mut log).unwrap() {
            Ending::Aborted { step, abort } => {
                assert_eq!(log.progress.len() as u64, step);
                (step, abort.id())
            }
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(aborted(&with(Faults { nan_at: Some(7), ..Faults::default() })), (7, "not-finite"));
    let times = with(Faults { times_from: Some((12, 10.0)), ..Faults::default() });
    // Five steps in a row, the first of them being the twelfth.
    assert_eq!(aborted(&times), (16, "diverged"));
    // The hooks of a worker never come back from these; its daemon's watch ends them.
    let faults = Faults { hang_at: Some(3), idle_at: Some(5), ..Faults::default() };
    let log = Log::default();
    let seen = Rc::clone(&log.faults);
    done(go(&model, &with(faults), &Secrets::default(), None, &mut { log }).unwrap());
    assert_eq!(*seen.borrow(), [("hang", 2), ("idle", 4)]);
}

/// Goal: whoever stops is heard in every phase, and a stopped run can go on.
#[test]
fn stopping_is_heard_in_every_phase() {
    let (_dir, model) = model();
    let settings = Settings { measure: Some(small_measure()), ..settings(6) };
    let stopped = |phase, times| {
        let mut log = Log { stop_in: Some((phase, times)), ..Log::default() };
        match go(&model, &settings, &Secrets::default(), None, &mut log).unwrap() {
            Ending::Stopped { step } => (step, log.snapshots.len()),
            other => panic!("{other:?}"),
        }
    };
    for phase in [Phase::Preparing, Phase::Loading, Phase::Evaluating, Phase::Training] {
        assert_eq!(stopped(phase, 1), (0, 0), "{phase:?}");
    }
    // After the last step there is a snapshot from which only the end is missing.
    let evaluations = {
        let mut log = Log::default();
        done(go(&model, &settings, &Secrets::default(), None, &mut log).unwrap());
        log.phases.iter().filter(|&&phase| phase == Phase::Evaluating).count()
    };
    assert_eq!(stopped(Phase::Evaluating, evaluations), (6, 1));
    assert_eq!(stopped(Phase::Measuring, 3), (6, 1));
    let mut log = Log { stop_in: Some((Phase::Measuring, 2)), ..Log::default() };
    go(&model, &settings, &Secrets::default(), None, &mut log).unwrap();
    let (_, bytes) = log.snapshots.pop().unwrap();
    let (mut log, none) = (Log::default(), Secrets::default());
    let resumed = done(go(&model, &settings, &none, Some(&bytes), &mut log).unwrap());
    let whole = done(go(&model, &settings, &none, None, &mut Log::default()).unwrap());
    assert!(log.progress.is_empty() && resumed.adapter == whole.adapter);
    assert_eq!((resumed.record, resumed.measures), (whole.record, whole.measures));
    let mut log = Log { refuses: true, stop_after: Some(2), ..Log::default() };
    let error = go(&model, &settings, &Secrets::default(), None, &mut log).unwrap_err();
    assert_eq!(error.to_string(), "snapshot: no space left");
}

#[test]
fn snapshots_of_other_rows_or_settings_are_refused() {
    let (_dir, model) = model();
    let ours = settings(6);
    let mut log = Log { stop_after: Some(3), ..Log::default() };
    let none = Secrets::default();
    go(&model, &ours, &none, None, &mut log).unwrap();
    let (_, bytes) = log.snapshots.pop().unwrap();
    let refused = |settings: &Settings, datasets| {
        let log = &mut Log::default();
        run(&model, settings, datasets, &none, Some(&bytes), log).unwrap_err().to_string()
    };
    let mut fewer = rows(0, 30);
    fewer.swap(1, 4);
    let other = refused(&ours, vec![dataset(fewer, 2), dataset(rows(100, 9), 1)]);
    assert!(other.contains("other rows"), "{other}");
    let other = refused(&ours, vec![dataset(rows(0, 30), 1), dataset(rows(100, 9), 1)]);
    assert!(other.contains("other rows"), "{other}");
    let whole = Settings { loss_on: LossOn::All, ..ours.clone() };
    assert!(refused(&whole, datasets()).contains("other rows"));
    let packed = Settings { packing: true, ..ours.clone() };
    assert!(refused(&packed, datasets()).contains("other rows"));
    let mut faster = ours.clone();
    faster.recipe.learning_rate *= 2.0;
    assert!(refused(&faster, datasets()).contains("another recipe"));
    let finished = done(go(&model, &ours, &none, Some(&bytes), &mut Log::default()).unwrap());
    assert_eq!(finished.record.steps, 6);
}

#[test]
fn rows_and_settings_at_fault_are_named() {
    let (_dir, model) = model();
    let none = Secrets::default();
    let refused = |settings: &Settings, datasets| {
        run(&model, settings, datasets, &none, None, &mut Log::default()).unwrap_err().to_string()
    };
    let silent = Row::new(Body::Chat(vec![ChatMessage {
        role: "user".to_owned(),
        content: "MARKER".to_owned(),
    }]));
    let mut bad = rows(0, 4);
    bad.push(silent);
    let error = refused(&settings(2), vec![dataset(rows(0, 5), 1), dataset(bad, 1)]);
    assert!(error.starts_with("dataset 2: row 5: ") && !error.contains("MARKER"), "{error}");
    let error = refused(&settings(2), vec![dataset(Vec::new(), 1)]);
    assert!(error.contains("nothing to train on"), "{error}");
    let error = refused(&Settings { canaries: 1, ..settings(2) }, datasets());
    assert!(error.contains("seed"), "{error}");
    let tight = Settings { memory_bytes: Some(1 << 20), ..settings(2) };
    let error = refused(&tight, datasets());
    assert!(error.contains("MiB"), "{error}");
    let mut long = settings(2);
    long.recipe.sequence_tokens = 1_000;
    assert!(refused(&long, datasets()).contains("sequence_tokens"));
}

fn small_measure() -> MeasureOptions {
    MeasureOptions { prefix_tokens: 12, run_tokens: 12, ..MeasureOptions::default() }
}

/// Goal: an adapter trained for many epochs on a few rows gives them and the canaries away, a private one
/// does not, and the measures say so.
#[test]
fn memorisation_shows_and_privacy_hides_it() {
    let (_dir, model) = model();
    let words = ["amber", "bishop", "cobalt", "dune", "ember", "fjord", "garnet", "heron"];
    let text = |at: usize| {
        let word = |place: usize| words[drawn(at as u64, place as u64) as usize % words.len()];
        format!("{} {} {} {}", word(0), word(1), word(2), word(3))
    };
    let rows: Vec<Row> = (0..6).map(|at| Row::new(Body::Text(text(at)))).collect();
    let mut settings = Settings::new(Recipe {
        rank: 16,
        alpha: 32.0,
        targets: ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
            .map(str::to_owned)
            .to_vec(),
        steps: 300,
        batch: 8,
        sequence_tokens: 80,
        learning_rate: 1e-2,
        ..Recipe::default()
    });
    settings.canaries = 2;
    settings.measure = Some(small_measure());
    let secrets = Secrets { noise: None, canaries: Some([3; 32]) };
    let sets = |rows: &[Row]| vec![dataset(rows.to_vec(), 1)];
    let log = &mut Log::default();
    let finished = done(run(&model, &settings, sets(&rows), &secrets, None, log).unwrap());
    let measures = finished.measures.unwrap();
    assert_eq!((measures.rows_tested, measures.rows_short, measures.extracted_base), (6, 0, 0));
    assert!(measures.extracted_adapter >= 5, "{measures:?}");
    assert_eq!(measures.extracted_new, measures.extracted_adapter);
    assert!(measures.longest_run_adapter >= 12 && measures.longest_run_base < 6, "{measures:?}");
    assert_eq!(measures.exposure_ceiling_milli_bits, 9_966);
    assert_eq!(measures.exposures_milli_bits, [9_966, 9_966]);
    assert_eq!(finished.record.sides.train.rows, 6);

    settings.recipe.privacy =
        Some(Privacy { clip_norm: 0.1, noise_multiplier: 2.0, sampling_rate: 0.5, divisor: 4.0 });
    settings.recipe.learning_rate = 1e-3;
    settings.recipe.steps = 60;
    let secrets = Secrets { noise: Some(NoiseKey::new([4; 32])), ..secrets };
    let log = &mut Log::default();
    let finished = done(run(&model, &settings, sets(&rows), &secrets, None, log).unwrap());
    let measures = finished.measures.unwrap();
    assert_eq!((measures.rows_tested, measures.extracted_adapter), (6, 0));
    assert!(measures.longest_run_adapter < 6, "{measures:?}");
    assert!(measures.exposures_milli_bits.iter().all(|&bits| bits < 9_966), "{measures:?}");
}
