//! Training of every family: gradients against differences, and what must be the same to the bit.

use std::path::{Path, PathBuf};

use rayon::ThreadPoolBuilder;

use super::optimiser;
use super::*;
use crate::compute::Compute;

/// Every decoder among the reference models, with all of its modules as targets.
const FAMILIES: [(&str, &[&str]); 14] = [
    ("llama", LLAMA),
    ("llama_tied", LLAMA),
    ("llama3_rope", LLAMA),
    ("qwen2", LLAMA),
    ("qwen3", LLAMA),
    ("olmo2", LLAMA),
    ("olmo3", LLAMA),
    ("gemma2", LLAMA),
    ("gemma3", LLAMA),
    ("apertus", &["q_proj", "k_proj", "v_proj", "o_proj", "up_proj", "down_proj"]),
    ("glm4", &["q_proj", "k_proj", "v_proj", "o_proj", "gate_up_proj", "down_proj"]),
    ("gpt2", &["c_attn", "c_proj", "c_fc"]),
    ("gptj", &["q_proj", "k_proj", "v_proj", "out_proj", "fc_in", "fc_out"]),
    ("bloom", &["query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"]),
];
const LLAMA: &[&str] =
    &["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"];

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

fn recipe(targets: &[&str]) -> Recipe {
    Recipe {
        rank: 3,
        alpha: 6.0,
        targets: targets.iter().map(|&target| target.to_owned()).collect(),
        steps: 8,
        batch: 3,
        accumulate: 2,
        sequence_tokens: 96,
        learning_rate: 1e-2,
        warmup_steps: 2,
        schedule: Schedule::Cosine,
        weight_decay: 0.01,
        seed: 5,
        ..Recipe::default()
    }
}

/// A trainer whose factors are all in effect.
fn trainer(family: &str, recipe: &Recipe) -> Trainer {
    let options = TrainOptions {
        noise: recipe.privacy.map(|_| NoiseKey::new([9; 32])),
        ..TrainOptions::default()
    };
    let base = Base::open(&fixture(family)).unwrap();
    let mut trainer = Trainer::new(&base, recipe, &options).unwrap();
    for (number, module) in (0..).zip(trainer.lora.modules.clone()) {
        let values = super::random::uniform(77, number, 0.3);
        for (to, value) in trainer.parameters[module.b].iter_mut().zip(values) {
            *to = value;
        }
    }
    trainer
}

/// Rows of different lengths, the longest beyond every window; some tokens are no labels.
fn rows(seed: u32, lens: &[usize]) -> Vec<Example> {
    let row = |(number, &len): (usize, &usize)| {
        let number = number as u32;
        let word = |at: usize| super::random::philox(u64::from(seed), [at as u32, number, 0, 0])[0];
        Example {
            ids: (0..len).map(|at| 3 + word(at) % 124).collect(),
            labels: (0..len).map(|at| at >= 4 && word(at) >> 16 & 3 != 0).collect(),
            subject: Some(Subject([number as u8; 32])),
        }
    };
    lens.iter().enumerate().map(row).collect()
}

/// Mean loss and gradient at parameters moved by `size` along `direction`.
fn moved(trainer: &Trainer, rows: &[Example], direction: &[f32], size: f32) -> (f64, Vec<f32>) {
    let mut trainer = trainer.clone();
    for (to, along) in trainer.parameters.iter_mut().zip(direction) {
        *to += size * along;
    }
    trainer.gradient(&[trainer.pack(rows, 0).unwrap()]).unwrap()
}

/// Goal: every factor of every module has a gradient, and it is the loss's derivative. Method: differences
/// of the loss along one random direction for each factor.
fn assert_gradients(family: &str, recipe: &Recipe) {
    let trainer = trainer(family, recipe);
    let rows = rows(1, &[90, 7, 33]);
    let len = trainer.lora.len();
    let (_, gradient) = moved(&trainer, &rows, &vec![0.0; len], 0.0);
    for (number, module) in (0..).zip(&trainer.lora.modules) {
        for (factor, range) in [("A", module.a.clone()), ("B", module.b.clone())] {
            let name = format!("{family} {} {factor}", module.name);
            let largest = gradient[range.clone()].iter().fold(0f32, |a, b| a.max(b.abs()));
            assert!(largest > 1e-6, "{name} has no gradient");
            // Along the gradient, roughly, so that the derivative stands out of the rounding.
            let mut direction = vec![0.0; len];
            let noise = super::random::uniform(3, number, 0.5 * largest);
            for (at, noise) in range.zip(noise) {
                direction[at] = gradient[at] + noise;
            }
            let norm = optimiser::norm(&direction) as f32;
            direction.iter_mut().for_each(|value| *value /= norm);
            let ours: f64 =
                gradient.iter().zip(&direction).map(|(g, d)| f64::from(*g) * f64::from(*d)).sum();
            let size = 5e-3;
            let (above, _) = moved(&trainer, &rows, &direction, size);
            let (below, _) = moved(&trainer, &rows, &direction, -size);
            let expected = (above - below) / (2.0 * f64::from(size));
            let difference = (ours - expected).abs();
            assert!(difference < 3e-4 + 2e-2 * expected.abs(), "{name}: {ours}, not {expected}");
        }
    }
}

#[test]
fn gradients_are_derivatives_in_every_family() {
    for (family, targets) in FAMILIES {
        assert_gradients(family, &recipe(targets));
    }
}

/// Goal: the same with dropout, whose masks depend on the step alone.
#[test]
fn gradients_are_derivatives_under_dropout() {
    for family in ["llama", "apertus"] {
        let targets = FAMILIES.iter().find(|(name, _)| *name == family).unwrap().1;
        assert_gradients(family, &Recipe { dropout: 0.3, ..recipe(targets) });
    }
    let dropped = trainer("llama", &Recipe { dropout: 0.3, ..recipe(LLAMA) });
    let plain = trainer("llama", &recipe(LLAMA));
    let batch = rows(1, &[40]);
    let loss = |trainer: &Trainer| trainer.preflight(&[&batch]).unwrap().loss;
    assert_ne!(loss(&dropped), loss(&plain));
    assert_eq!(dropped.evaluate(&batch).unwrap(), plain.evaluate(&batch).unwrap());
}

/// Some steps of two micro-batches.
fn run(trainer: &mut Trainer, steps: std::ops::Range<u32>) -> Vec<StepReport> {
    steps
        .map(|step| {
            let (first, second) = (rows(10 + step, &[40, 9, 25]), rows(40 + step, &[30, 61]));
            trainer.step(&[&first, &second]).unwrap()
        })
        .collect()
}

/// Goal: recomputation, interruption and the number of threads change no bit of the adapter.
#[test]
fn adapters_are_the_same_to_the_bit() {
    for (family, targets) in FAMILIES {
        let recipe = Recipe { dropout: 0.1, ..recipe(targets) };
        let mut plain = trainer(family, &recipe);
        let reports = run(&mut plain, 0..3);
        let expected = plain.adapter();

        let mut sparing = trainer(family, &recipe);
        sparing.recipe.recompute = true;
        assert_eq!(run(&mut sparing, 0..3), reports, "{family}");
        assert_eq!(sparing.adapter(), expected, "{family}");

        let mut interrupted = trainer(family, &recipe);
        run(&mut interrupted, 0..1);
        let bytes = interrupted.snapshot(b"seen").unwrap();
        let base = Base::open(&fixture(family)).unwrap();
        let (mut resumed, monitors) =
            Trainer::resume(&base, &recipe, &TrainOptions::default(), &bytes).unwrap();
        assert_eq!((monitors.as_slice(), resumed.step_number()), (&b"seen"[..], 1));
        assert_eq!(run(&mut resumed, 1..3), reports[1..], "{family}");
        assert_eq!(resumed.adapter(), expected, "{family}");

        for threads in [1, 3] {
            let pool = ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            let mut other = trainer(family, &recipe);
            pool.install(|| run(&mut other, 0..3));
            assert_eq!(other.adapter(), expected, "{family}, {threads} threads");
        }
    }
}

/// Goal: accumulated micro-batches are one batch: the mean is over all labels, not over means.
#[test]
fn accumulation_is_one_large_batch() {
    let all = rows(1, &[40, 9, 61]);
    let together = trainer("llama", &recipe(LLAMA)).preflight(&[&all]).unwrap();
    let apart = trainer("llama", &recipe(LLAMA)).preflight(&[&all[..2], &all[2..]]).unwrap();
    assert_eq!((together.labels, together.tokens), (apart.labels, apart.tokens));
    assert!((together.loss - apart.loss).abs() < 1e-6 * together.loss);
    assert!((together.grad_norm - apart.grad_norm).abs() < 1e-5 * together.grad_norm);
}

/// Goal: what comes out loads in the engine and says the same there, whatever the family's layout.
#[test]
fn adapters_load_and_agree_with_inference() {
    for (family, targets) in FAMILIES {
        let mut trainer = trainer(family, &recipe(targets));
        run(&mut trainer, 0..2);
        let folder = tempfile::tempdir().unwrap();
        let AdapterFiles { config_json, safetensors } = trainer.adapter();
        std::fs::write(folder.path().join("adapter_config.json"), config_json).unwrap();
        std::fs::write(folder.path().join("adapter_model.safetensors"), safetensors).unwrap();
        let ids = rows(3, &[50]).remove(0).ids;
        let ours = trainer.logits(&ids).unwrap();
        let mut model = crate::parity::Model::open(&fixture(family), Compute::Candle, 64).unwrap();
        let chunk = std::num::NonZeroUsize::new(64).unwrap();
        let plain = model.logits(&[&ids], chunk).unwrap().remove(0);
        model.adapt(folder.path()).unwrap();
        let theirs = model.logits(&[&ids], chunk).unwrap().remove(0);
        let worst = |a: &[Vec<f32>], b: &[Vec<f32>]| {
            let pairs = a.iter().flatten().zip(b.iter().flatten());
            pairs.map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
        };
        assert!(worst(&ours, &theirs) < 1e-4, "{family}: {}", worst(&ours, &theirs));
        assert!(worst(&ours, &plain) > 1e-2, "{family}: the adapter changes nothing");
        // And back in: the same numbers.
        let files = AdapterFiles::read(folder.path()).unwrap();
        assert_eq!(files.parameters(&trainer.lora).unwrap(), trainer.parameters, "{family}");
    }
}

/// Goal: with bfloat16 products, gradients point where those of F32 do, and bits are the same again.
#[test]
fn half_precision_is_close_and_reproducible() {
    if !super::bf16::available() {
        eprintln!("NOT TESTED: this processor has no bfloat16 products");
        return;
    }
    for (family, targets) in FAMILIES {
        let half = Recipe { precision: Precision::Bf16, ..recipe(targets) };
        let rows = rows(1, &[90, 7, 33]);
        let of = |recipe: &Recipe| {
            let trainer = trainer(family, recipe);
            trainer.gradient(&[trainer.pack(&rows, 0).unwrap()]).unwrap()
        };
        let ((loss, exact), (half_loss, rounded)) = (of(&recipe(targets)), of(&half));
        assert!((loss - half_loss).abs() < 2e-2 * loss, "{family}: {loss} {half_loss}");
        let dot = |a: &[f32], b: &[f32]| {
            a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>()
        };
        let along = dot(&exact, &rounded) / (optimiser::norm(&exact) * optimiser::norm(&rounded));
        assert!(along > 0.99, "{family}: {along}");
        let mut plain = trainer(family, &half);
        let reports = run(&mut plain, 0..2);
        let mut sparing = trainer(family, &half);
        sparing.recipe.recompute = true;
        assert_eq!(run(&mut sparing, 0..2), reports, "{family}");
        assert_eq!(sparing.adapter(), plain.adapter(), "{family}");
    }
}

#[test]
fn likelihoods_are_those_of_the_logits() {
    let trainer = trainer("gemma2", &recipe(LLAMA));
    let rows = rows(2, &[20, 31, 12, 9]);
    let each = trainer.evaluate_each(&rows).unwrap();
    for (row, found) in rows.iter().zip(&each) {
        let logits = trainer.logits(&row.ids).unwrap();
        let expected: f64 = (1..row.ids.len())
            .filter(|&at| row.labels[at])
            .map(|at| {
                let logits: Vec<f64> = logits[at - 1].iter().map(|&x| f64::from(x)).collect();
                let sum: f64 = logits.iter().map(|x| x.exp()).sum();
                sum.ln() - logits[row.ids[at] as usize]
            })
            .sum();
        assert_eq!(found.labels, row.label_count() as u64);
        assert!((found.nll - expected).abs() < 1e-4, "{} {expected}", found.nll);
    }
    let all = trainer.evaluate(&rows).unwrap();
    assert_eq!(all.labels, each.iter().map(|one| one.labels).sum::<u64>());
    let base = trainer.evaluate_base_each(&rows).unwrap();
    assert!(base.iter().zip(&each).all(|(base, own)| (base.nll - own.nll).abs() > 1e-3));
}

#[test]
fn rows_that_do_not_fit_are_named() {
    let mut trainer = trainer("llama", &recipe(LLAMA));
    let good = rows(1, &[9]).remove(0);
    let wrong: [(Example, &str); 4] = [
        (Example::whole(vec![1]), "1 tokens, not 2 to 96"),
        (Example::whole(vec![5; 97]), "97 tokens, not 2 to 96"),
        (Example::whole(vec![1, 128]), "not in the vocabulary"),
        (Example { labels: vec![true], ..good.clone() }, "1 labels for 9 tokens"),
    ];
    let before = trainer.adapter();
    for (row, part) in wrong {
        let error = trainer.step(&[std::slice::from_ref(&good), &[row]]).unwrap_err().to_string();
        assert!(error.starts_with("row 1: ") && error.contains(part), "{error}");
    }
    let silent = Example { labels: vec![false; 9], ..good.clone() };
    assert!(trainer.step(&[&[silent]]).unwrap_err().to_string().contains("no token"));
    let many = vec![good.clone(); 4];
    assert!(trainer.step(&[&many]).unwrap_err().to_string().contains("4 rows"));
    assert!(trainer.step(&[]).is_err() && trainer.step(&[&many[..1]; 3]).is_err());
    assert_eq!((trainer.adapter(), trainer.step_number()), (before, 0));
    for _ in 0..8 {
        trainer.step(&[&many[..1]]).unwrap();
    }
    assert!(trainer.step(&[&many[..1]]).unwrap_err().to_string().contains("all of them"));
    assert_eq!(format!("{good:?}"), format!("Example(9 tokens, {} labels)", good.label_count()));
}

#[test]
fn what_is_not_finite_changes_nothing() {
    let mut trainer = trainer("llama", &recipe(LLAMA));
    let module = trainer.lora.modules[3].b.clone();
    trainer.parameters[module.start] = f32::INFINITY;
    let before = trainer.parameters.clone();
    let error = trainer.step(&[&rows(1, &[20])]).unwrap_err();
    assert!(matches!(error, TrainError::NotFinite { step: 0, .. }), "{error}");
    assert_eq!((trainer.parameters, trainer.optimiser.updates), (before, 0));
}

#[test]
fn models_and_recipes_that_do_not_fit_are_refused() {
    let open = |family: &str, recipe: &Recipe, options: &TrainOptions| {
        let base = Base::open(&fixture(family)).unwrap();
        Trainer::new(&base, recipe, options).map(|_| ()).unwrap_err().to_string()
    };
    let options = TrainOptions::default();
    let unknown = recipe(&["q_proj", "z_proj"]);
    let error = open("llama", &unknown, &options);
    assert!(error.contains("\"z_proj\"") && error.contains("down_proj"), "{error}");
    assert!(open("xlm_roberta", &recipe(&["query"]), &options).contains("encoder"));
    let small = TrainOptions { memory_bytes: Some(1 << 20), ..TrainOptions::default() };
    let error = open("llama", &recipe(LLAMA), &small);
    assert!(error.contains("1 MiB may be used"), "{error}");
    let long = Recipe { sequence_tokens: 100_000, ..recipe(LLAMA) };
    assert!(
        open("llama", &long, &TrainOptions { memory_bytes: Some(1 << 40), ..options.clone() })
            .contains("context")
    );
    let keyed = TrainOptions { noise: Some(NoiseKey::new([0; 32])), ..TrainOptions::default() };
    assert!(open("llama", &recipe(LLAMA), &keyed).contains("meant to be private"));
    // An adapter of another recipe.
    let start = Some(trainer("llama", &recipe(&["q_proj"])).adapter());
    let options = TrainOptions { start, ..options };
    assert!(open("llama", &recipe(LLAMA), &options).contains("is missing"));
    assert!(open("llama", &recipe(&["v_proj"]), &options).contains("no target"));
    assert!(open("llama", &Recipe { rank: 4, ..recipe(&["q_proj"]) }, &options).contains("rank 3"));
}

fn private(noise_multiplier: f64) -> Recipe {
    let privacy = Privacy { clip_norm: 0.05, noise_multiplier, sampling_rate: 0.5, divisor: 4.0 };
    Recipe { privacy: Some(privacy), batch: 2, ..recipe(&["q_proj", "v_proj"]) }
}

/// Goal: a subject's rows are one unit, its gradient is that of its mean loss, and the sum is of clipped gradients.
#[test]
fn subjects_are_clipped_one_by_one() {
    let trainer = trainer("llama", &private(0.0));
    let mut all = rows(6, &[30, 12, 44, 9, 21]);
    // Subjects: rows 0, 1 and 2 (more than a micro-batch), row 3, row 4.
    let first = all[0].subject;
    all[1].subject = first;
    all[2].subject = first;
    let subjects = [&all[..3], &all[3..4], &all[4..]];
    let found = trainer.clipped_sum(&subjects).unwrap();
    let mut expected = vec![0.0f64; trainer.lora.len()];
    for (rows, norm) in subjects.iter().zip(&found.norms) {
        let packed: Vec<_> =
            rows.iter().map(|row| trainer.pack(std::slice::from_ref(row), 0).unwrap()).collect();
        let (_, gradient) = trainer.gradient(&packed).unwrap();
        assert!((optimiser::norm(&gradient) - norm).abs() < 1e-5 * norm);
        let factor = (0.05 / norm).min(1.0);
        assert!(factor < 1.0, "the test must clip");
        for (sum, g) in expected.iter_mut().zip(gradient) {
            *sum += f64::from(g) * factor;
        }
    }
    for (ours, expected) in found.sum.iter().zip(&expected) {
        assert!((f64::from(*ours) - expected).abs() < 1e-6);
    }
    assert!(optimiser::norm(&found.sum) <= 3.0 * 0.05 * 1.000_001);
    let files = trainer.sum_as_adapter(&found);
    assert_eq!(files.parameters(&trainer.lora).unwrap(), found.sum);
}

/// Goal: noise of the size promised is added also where nobody was drawn, is the same after resuming, and differs
/// from step to step.
#[test]
fn noise_is_added_to_empty_batches_too() {
    // With plain averaging the update would be hidden by the optimiser: the noise itself is looked at.
    let mut trainer = trainer("llama", &private(2.0));
    let bytes = trainer.snapshot(&[]).unwrap();
    let report = trainer.step_private(&[]).unwrap();
    assert_eq!((report.subjects, report.loss, report.tokens), (0, None, 0));
    let scale = 1.0 - private(2.0).beta1;
    let noise: Vec<f64> = trainer.optimiser.first.iter().map(|&m| f64::from(m) / scale).collect();
    let deviation = (noise.iter().map(|n| n * n).sum::<f64>() / noise.len() as f64).sqrt();
    // σ C / divisor; some thousand values.
    assert!((deviation / (2.0 * 0.05 / 4.0) - 1.0).abs() < 0.1, "{deviation}");
    let options = TrainOptions { noise: Some(NoiseKey::new([9; 32])), ..TrainOptions::default() };
    let base = Base::open(&fixture("llama")).unwrap();
    let (mut resumed, _) = Trainer::resume(&base, &private(2.0), &options, &bytes).unwrap();
    resumed.step_private(&[]).unwrap();
    assert_eq!(resumed.parameters, trainer.parameters);
    let first = trainer.optimiser.first.clone();
    trainer.step_private(&[]).unwrap();
    let second: Vec<f32> =
        trainer.optimiser.first.iter().zip(&first).map(|(now, old)| now - old * 0.9).collect();
    assert!(second.iter().zip(&first).any(|(a, b)| (a - b).abs() > 1e-6));
    // Another key is another run.
    let options = TrainOptions { noise: Some(NoiseKey::new([8; 32])), ..TrainOptions::default() };
    let error = Trainer::resume(&base, &private(2.0), &options, &bytes).unwrap_err();
    assert!(error.to_string().contains("another noise key"));
}

#[test]
fn private_runs_fail_closed() {
    let mut trainer = trainer("llama", &private(1.0));
    let mut all = rows(6, &[30, 12]);
    assert!(trainer.step(&[&all]).unwrap_err().to_string().contains("step_private"));
    let refused = |trainer: &mut Trainer, subjects: &[&[Example]]| {
        trainer.step_private(subjects).unwrap_err().to_string()
    };
    assert!(refused(&mut trainer, &[&all]).contains("another subject"));
    assert!(refused(&mut trainer, &[&all[..1], &all[..1]]).contains("came before"));
    all[1].subject = None;
    assert!(refused(&mut trainer, &[&all[1..]]).contains("names no subject"));
    assert_eq!(trainer.step_number(), 0);
    let drawn = trainer.sample_subjects(10_000).unwrap();
    assert!(
        (4_700..5_300).contains(&drawn.len()) && drawn == trainer.sample_subjects(10_000).unwrap()
    );
    let mut plain = self::trainer("llama", &recipe(LLAMA));
    assert!(plain.step_private(&[]).unwrap_err().to_string().contains("not private"));
    assert!(plain.sample_subjects(3).is_err());
}
