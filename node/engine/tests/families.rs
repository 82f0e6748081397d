//! Logits of every family against the reference implementation's, in every way through a model.

mod support;

use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};

use allmend_engine::Compute;
use allmend_engine::parity::Model;
use support::families::{GGUF_FAMILIES, gguf};

const FAMILIES: [&str; 15] = [
    "llama",
    "llama_tied",
    "llama3_rope",
    "apertus",
    "olmo2",
    "olmo3",
    "qwen2",
    "qwen3",
    "gemma2",
    "gemma3",
    "glm4",
    "gpt2",
    "gptj",
    "bloom",
    "xlm_roberta",
];
const ADAPTED: [&str; 7] = ["llama", "apertus", "olmo2", "qwen2", "qwen3", "gemma3", "gpt2"];
const DIFFERENCE_MAX: f32 = 1e-4;
const ROOM: usize = 512;

/// What a fixture says should come out.
struct Reference {
    ids: Vec<Vec<u32>>,
    logits: Vec<Vec<Vec<f32>>>,
    greedy: Vec<Vec<i64>>,
}

fn reference(family: &str) -> Reference {
    support::few_threads();
    let expected = support::safetensors(&format!("{family}/expected.safetensors"));
    let ids = expected["ids"].to_vec2::<i64>().unwrap();
    Reference {
        ids: ids.iter().map(|row| row.iter().map(|&id| id as u32).collect()).collect(),
        logits: expected["logits"].to_vec3().unwrap(),
        greedy: expected["greedy"].to_vec2().unwrap(),
    }
}

fn adapted_logits(family: &str) -> Vec<Vec<Vec<f32>>> {
    support::safetensors(&format!("{family}/lora/expected.safetensors"))["logits"]
        .to_vec3()
        .unwrap()
}

fn folder(family: &str) -> PathBuf {
    support::fixture(family)
}

fn open(path: &Path, way: Compute) -> Model {
    Model::open(path, way, ROOM).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn logits(model: &mut Model, sequences: &[Vec<u32>], chunk: usize) -> Vec<Vec<Vec<f32>>> {
    let sequences: Vec<&[u32]> = sequences.iter().map(Vec::as_slice).collect();
    model.logits(&sequences, NonZeroUsize::new(chunk).unwrap()).unwrap()
}

fn chunks(model: &Model) -> &'static [usize] {
    if model.bidirectional() { &[60] } else { &[60, 16, 7, 1] }
}

fn worst(ours: &[Vec<f32>], expected: &[Vec<f32>]) -> f32 {
    assert_eq!(ours.len(), expected.len());
    let mut worst = 0f32;
    for (ours, expected) in ours.iter().zip(expected) {
        assert_eq!(ours.len(), expected.len());
        for (a, b) in ours.iter().zip(expected) {
            let difference = (a - b).abs();
            assert!(difference.is_finite());
            worst = worst.max(difference);
        }
    }
    worst
}

fn assert_close(what: &str, ours: &[Vec<Vec<f32>>], expected: &[Vec<Vec<f32>>]) {
    for (ours, expected) in ours.iter().zip(expected) {
        let worst = worst(ours, expected);
        assert!(worst <= DIFFERENCE_MAX, "{what}: {worst}");
    }
}

/// Goal: all positions, at once and in chunks, two sequences together.
#[test]
fn logits_match_the_reference() {
    for family in FAMILIES {
        let expected = reference(family);
        for way in Compute::on_this_processor() {
            let mut model = open(&folder(family), way);
            for &chunk in chunks(&model) {
                let ours = logits(&mut model, &expected.ids, chunk);
                assert_close(&format!("{family} {way:?} {chunk}"), &ours, &expected.logits);
            }
        }
    }
}

/// Goal: the same from the description as transformers 4 wrote it.
#[test]
fn old_descriptions_give_the_same_logits() {
    for family in FAMILIES {
        let expected = reference(family);
        let old = tempfile::tempdir().unwrap();
        let copy = |from: &str, to: &str| {
            std::fs::copy(folder(family).join(from), old.path().join(to)).unwrap();
        };
        copy("config.v4.json", "config.json");
        copy("model.safetensors", "model.safetensors");
        for way in Compute::on_this_processor() {
            let ours = logits(&mut open(old.path(), way), &expected.ids, 60);
            assert_close(&format!("{family} {way:?}"), &ours, &expected.logits);
        }
    }
}

/// Goal: strangers of other lengths in the batch, which end sooner or go on longer, change nothing.
#[test]
fn strangers_in_the_batch_change_nothing() {
    for family in FAMILIES {
        let expected = reference(family);
        let stranger = |len: u32| (0..len).map(|at| (at * 37 + 5) % 127).collect::<Vec<u32>>();
        let sequences = [
            stranger(23),
            expected.ids[0].clone(),
            stranger(1),
            expected.ids[1].clone(),
            stranger(97),
        ];
        for way in Compute::on_this_processor() {
            let mut model = open(&folder(family), way);
            // What others have left in the pages does not matter either.
            for _ in 0..2 {
                let ours = logits(&mut model, &sequences, 7);
                let ours = [ours[1].clone(), ours[3].clone()];
                assert_close(&format!("{family} {way:?}"), &ours, &expected.logits);
            }
        }
    }
}

/// Goal: tokens chosen greedily are the reference's wherever its choice is clear.
#[test]
fn greedy_continuations_match_the_reference() {
    for family in FAMILIES.into_iter().filter(|family| *family != "xlm_roberta") {
        let expected = reference(family);
        for way in Compute::on_this_processor() {
            let mut model = open(&folder(family), way);
            for (ids, greedy) in expected.ids.iter().zip(&expected.greedy) {
                assert_eq!(greedy.len(), 12);
                for ((token, row), expected) in
                    model.greedy(ids, greedy.len()).unwrap().into_iter().zip(greedy)
                {
                    if i64::from(token) != *expected {
                        let gap = row[token as usize] - row[*expected as usize];
                        assert!(gap <= 1e-3, "{family} {way:?}: {token} instead of {expected}");
                        break;
                    }
                }
            }
        }
    }
}

/// Goal: adapters change the logits as PEFT changes them.
#[test]
fn adapters_match_the_reference() {
    for family in ADAPTED {
        let (base, adapted) = (reference(family), adapted_logits(family));
        assert!(worst(&base.logits[0], &adapted[0]) > 1e-2, "{family}: the adapter does nothing");
        for way in Compute::on_this_processor() {
            let mut model = open(&folder(family), way);
            model.adapt(&folder(family).join("lora/start")).unwrap();
            for chunk in [60, 7] {
                let ours = logits(&mut model, &base.ids, chunk);
                assert_close(&format!("{family} {way:?} {chunk}"), &ours, &adapted);
            }
        }
    }
}

/// Goal: GGUF files of every architecture give the same logits.
#[test]
fn gguf_files_match_the_reference() {
    for (family, architecture) in GGUF_FAMILIES {
        let expected = reference(family);
        let (_dir, path) = support::file(&gguf(family, architecture).to_bytes());
        for way in Compute::on_this_processor() {
            let ours = logits(&mut open(&path, way), &expected.ids, 16);
            assert_close(&format!("{family} {way:?}"), &ours, &expected.logits);
        }
    }
}

/// Goal: an adapter made for the reference's weights fits a converted base, whose rows lie otherwise.
#[test]
fn adapters_fit_converted_bases() {
    let converted = GGUF_FAMILIES.into_iter().filter(|(family, _)| ADAPTED.contains(family));
    for (family, architecture) in converted {
        let (_dir, path) = support::file(&gguf(family, architecture).to_bytes());
        for way in Compute::on_this_processor() {
            let mut model = open(&path, way);
            model.adapt(&folder(family).join("lora/start")).unwrap();
            let ours = logits(&mut model, &reference(family).ids, 60);
            assert_close(&format!("{family} {way:?}"), &ours, &adapted_logits(family));
        }
    }
}

/// Goal: an adapter that was made for another model, is more than LoRA, or is damaged is refused by name.
#[test]
fn adapters_that_do_not_fit_are_refused() {
    support::few_threads();
    let refusal = |base: &str, adapter: &str, change: (&str, serde_json::Value)| {
        let scratch = tempfile::tempdir().unwrap();
        let from = folder(adapter).join("lora/start");
        let config = std::fs::read(from.join("adapter_config.json")).unwrap();
        let mut config: serde_json::Value = serde_json::from_slice(&config).unwrap();
        config[change.0] = change.1;
        std::fs::write(scratch.path().join("adapter_config.json"), config.to_string()).unwrap();
        let file = "adapter_model.safetensors";
        std::fs::copy(from.join(file), scratch.path().join(file)).unwrap();
        let mut model = open(&folder(base), Compute::Candle);
        model.adapt(scratch.path()).unwrap_err().to_string()
    };
    let cases = [
        ("llama", "llama", ("use_dora", true.into()), "use_dora"),
        ("llama", "llama", ("bias", "all".into()), "bias = \"all\""),
        ("llama", "llama", ("peft_type", "IA3".into()), "peft_type"),
        ("llama", "llama", ("r", 8.into()), "has shape [4, 32], expected [8, 32]"),
        ("llama", "llama", ("r", 0.into()), "r: 0 is not in 1..="),
        ("llama", "llama", ("init_lora_weights", "pissa".into()), "pissa"),
        ("llama", "llama", ("modules_to_save", serde_json::json!(["lm_head"])), "modules_to_save"),
        ("llama", "llama", ("rank_pattern", serde_json::json!({ "q": 2 })), "rank_pattern"),
        ("llama", "gpt2", ("r", 4.into()), "changes nothing that this build can change"),
        ("llama", "gemma3", ("r", 4.into()), "changes nothing that this build can change"),
        ("qwen3", "llama", ("r", 4.into()), "has shape [32, 4], expected [64, 4]"),
        ("xlm_roberta", "llama", ("r", 4.into()), "an adapter for xlm-roberta"),
    ];
    for (base, adapter, change, part) in cases {
        let error = refusal(base, adapter, change);
        assert!(error.contains(part), "{error:?} lacks {part:?}");
    }
}

/// Goal: the comparisons above can fail: what a wrong description changes is far above their tolerance.
#[test]
fn wrong_descriptions_are_noticed() {
    let cases = [
        ("gemma3", "sliding_window", serde_json::json!(17)),
        ("gemma2", "attn_logit_softcapping", serde_json::json!(2.0)),
        ("gemma2", "query_pre_attn_scalar", serde_json::json!(16)),
        ("olmo3", "sliding_window", serde_json::json!(15)),
        ("gptj", "rotary_dim", serde_json::json!(2)),
        ("gpt2", "activation_function", serde_json::json!("gelu")),
        ("xlm_roberta", "hidden_act", serde_json::json!("relu")),
        ("xlm_roberta", "pad_token_id", serde_json::json!(2)),
        ("glm4", "rope_parameters", serde_json::json!({ "rope_theta": 11_000.0 })),
    ];
    for (family, key, value) in cases {
        let expected = reference(family);
        let changed = tempfile::tempdir().unwrap();
        let config = std::fs::read(folder(family).join("config.json")).unwrap();
        let mut config: serde_json::Value = serde_json::from_slice(&config).unwrap();
        assert_ne!(config[key], value);
        config[key] = value;
        std::fs::write(changed.path().join("config.json"), config.to_string()).unwrap();
        let file = "model.safetensors";
        std::fs::copy(folder(family).join(file), changed.path().join(file)).unwrap();
        let ours = logits(&mut open(changed.path(), Compute::Candle), &expected.ids, 60);
        let worst = worst(&ours[0], &expected.logits[0]);
        assert!(worst > 2.0 * DIFFERENCE_MAX, "{family} {key}: {worst}");
    }
}
