//! Training against the reference's runs, from folders and from GGUF files.

#[path = "../examples/lora_parity/compare.rs"]
mod compare;
mod support;

use allmend_engine::train::{
    AdapterFiles, Base, Example, Recipe, TrainOptions, Trainer, probe_processor,
};
use candle_core::Device;

/// Goal: logits with the first adapter, every loss, and the last adapter are the reference's.
#[test]
fn runs_match_the_reference() {
    support::few_threads();
    for family in ["llama", "qwen2", "qwen3", "gemma3", "olmo2", "apertus", "gpt2"] {
        let finding = compare::compare(&support::fixture(family)).unwrap();
        let compare::Finding { logits, loss, adapter } = finding;
        assert!(finding.good(), "{family}: logits {logits}, loss {loss}, adapter {adapter}");
    }
}

fn recipe(targets: &[&str]) -> Recipe {
    Recipe {
        rank: 4,
        alpha: 8.0,
        targets: targets.iter().map(|&target| target.to_owned()).collect(),
        steps: 5,
        learning_rate: 1e-2,
        sequence_tokens: 48,
        ..Recipe::default()
    }
}

fn rows(step: u32) -> Vec<Example> {
    let row = |number: u32| {
        let id = |at: u32| 3 + (step * 411 + number * 97 + at * at * 13 + at * 7) % 124;
        Example::whole((0..40 + number).map(id).collect())
    };
    (0..4).map(row).collect()
}

fn trained(path: &std::path::Path, targets: &[&str]) -> AdapterFiles {
    let base = Base::open(path).unwrap();
    let mut trainer = Trainer::new(&base, &recipe(targets), &TrainOptions::default()).unwrap();
    for step in 0..5 {
        trainer.step(&[&rows(step)]).unwrap();
    }
    trainer.adapter()
}

/// Goal: a run on a GGUF base, whose converter turned and fused things, gives the adapter of the run on the folder that it
/// was made from.
#[test]
fn gguf_bases_give_the_same_adapter() {
    support::few_threads();
    let llama: &[&str] = &["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "down_proj"];
    for (family, architecture) in support::families::GGUF_FAMILIES {
        let targets: &[&str] = match family {
            "gpt2" => &["c_attn", "c_proj"],
            "bloom" => &["query_key_value", "dense"],
            "glm4" => &["q_proj", "gate_up_proj"],
            "apertus" => &["q_proj", "k_proj", "up_proj"],
            _ => llama,
        };
        // OLMo 3 differs from OLMo 2 in its windows, which GGUF does not say.
        if family == "olmo3" {
            continue;
        }
        let file = support::families::gguf(family, architecture);
        let (_dir, path) = support::file(&file.to_bytes());
        let ours = trained(&path, targets);
        let expected = trained(&support::fixture(family), targets);
        assert_eq!(ours.config_json, expected.config_json);
        let tensors = |files: &AdapterFiles| {
            candle_core::safetensors::load_buffer(&files.safetensors, &Device::Cpu).unwrap()
        };
        let (ours, expected) = (tensors(&ours), tensors(&expected));
        assert_eq!(ours.len(), expected.len());
        for (name, expected) in expected {
            let difference = (&ours[&name] - &expected).unwrap().abs().unwrap();
            let worst =
                difference.flatten_all().unwrap().max(0).unwrap().to_scalar::<f32>().unwrap();
            assert!(worst < 1e-3, "{family} {name}: {worst}");
        }
    }
}

/// Goal: a quantised real model learns a row by heart, and planned memory is not far from what is so.
#[test]
fn a_real_model_learns() {
    support::few_threads();
    let recipe = Recipe { steps: 6, learning_rate: 5e-3, sequence_tokens: 32, ..Recipe::default() };
    let base = Base::open(&support::real_model::path()).unwrap();
    let plan = base.plan(&recipe).unwrap();
    // 134.5 million weights as F32, and the adapter.
    assert!((500 << 20..600 << 20).contains(&plan.weights_bytes), "{plan:?}");
    let mut trainer = Trainer::new(&base, &recipe, &TrainOptions::default()).unwrap();
    let row = Example::whole((0..32u32).map(|at| 1_000 + at * 977 % 40_000).collect());
    let first = trainer.preflight(&[std::slice::from_ref(&row)]).unwrap().loss;
    let mut last = first;
    for _ in 0..6 {
        last = trainer.step(&[std::slice::from_ref(&row)]).unwrap().loss;
    }
    assert!(last < 0.8 * first, "{first} {last}");
}

#[test]
fn this_processor_is_sound() {
    probe_processor().unwrap();
}
