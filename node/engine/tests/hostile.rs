//! Damaged and malicious model files: every one ends in an error or in a model that can be run, without
//! a panic and within a bound of memory.

mod support;

use std::ops::ControlFlow;
use std::sync::Mutex;

use allmend_engine::{Engine, EngineError, Input, LoadOptions, ModelInfo, Request, Sampling};
use proptest::prelude::*;
use support::counting::Counting;
use support::gguf_writer::GgufWriter;

/// More than loading and running the tiny model takes (about 4 MiB), far less than a lying size asks
/// for. The plan given to the engine, 96 MiB, leaves it 32 MiB beyond its fixed part.
const PEAK_BYTES_MAX: usize = 64 << 20;
const PLAN_MIB: u64 = 96;

/// Tests in one process share the counters.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Loads, and runs what loads; returns the error, if any.
fn attempt(bytes: &[u8]) -> Result<(), EngineError> {
    let _guard = ONE_AT_A_TIME.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    let (_dir, path) = support::file(bytes);
    let (outcome, used) = Counting::peak(8 * PEAK_BYTES_MAX, || load_and_run(&path));
    assert!(used < PEAK_BYTES_MAX, "{used} bytes for {outcome:?}");
    outcome
}

fn load_and_run(path: &std::path::Path) -> Result<(), EngineError> {
    ModelInfo::read(path)?;
    let options = LoadOptions { memory_mib: Some(PLAN_MIB), ..LoadOptions::default() };
    let mut engine = Engine::load(path, &options)?;
    let message = allmend_engine::ChatMessage { role: "user".into(), content: "Hi".into() };
    for input in [Input::Prompt("ab".to_owned()), Input::Chat(vec![message])] {
        let request = Request {
            sampling: Sampling {
                temperature_milli: 700,
                top_k: 5,
                top_p_milli: 900,
                seed: 1,
                ..Sampling::GREEDY
            },
            stop: vec!["zz".to_owned()],
            forced: vec![5],
            ..Request::new(input, 2)
        };
        engine.generate(&request, &mut |_| ControlFlow::Continue(()))?;
    }
    Ok(())
}

fn message(writer: &GgufWriter) -> String {
    attempt(&writer.to_bytes()).unwrap_err().to_string()
}

#[test]
fn the_model_itself_is_sound() {
    attempt(&support::tiny_model("llama3_rope").to_bytes()).unwrap();
}

#[test]
fn errors_name_what_is_wrong() {
    let good = || support::tiny_model("llama");
    let cases = [
        (good().string("general.architecture", "mamba"), "\"mamba\" is not supported"),
        (good().without("general.architecture"), "general.architecture: is missing"),
        (good().u32("general.architecture", 1), "should be a string but is an integer"),
        (good().without("llama.block_count"), "llama.block_count: is missing"),
        (good().u32("llama.block_count", 0), "0 is not in 1..="),
        (good().u32("llama.block_count", 5), "blk.4.ffn_gate.weight: is missing"),
        (good().u32("llama.block_count", 3), "blk.3.attn_k.weight: is not part of"),
        (good().u32("llama.block_count", u32::MAX), "is not in 1..="),
        (good().u32("llama.attention.head_count_kv", 3), "does not divide"),
        (good().u32("llama.attention.head_count", 2), "has shape"),
        (good().u32("llama.attention.key_length", 7), "values must be as long as keys"),
        (good().u32("llama.embedding_length", 64), "has shape"),
        (good().u32("llama.feed_forward_length", 32), "has shape"),
        (good().u32("llama.expert_count", 8), "mixture of experts"),
        (good().f32("llama.attention.clamp_kqv", 8.0), "does not know what the key changes"),
        (good().u32("llama.rope.dimension_count", 3), "cannot be rotated in pairs"),
        (good().u32("llama.rope.dimension_count", 10), "cannot be rotated in pairs"),
        (good().string("llama.rope.scaling.type", "yarn"), "yarn"),
        (good().f32("llama.rope.freq_base", f32::NAN), "should be a finite number"),
        (good().f32("llama.rope.freq_base", -1.0), "is not in 1..="),
        (good().f32("llama.attention.layer_norm_rms_epsilon", 5.0), "is not in 0..=0.1"),
        (good().without("token_embd.weight"), "token_embd.weight: is missing"),
        (good().without("output_norm.weight"), "output_norm.weight: is missing"),
        (good().tensor("blk.0.surprise", &[1], &[0.0]), "blk.0.surprise: is not part of"),
        (good().tensor("rope_freqs.weight", &[4], &[0.0; 4]), "divisor 0 is 0"),
        (good().tensor("rope_freqs.weight", &[3], &[1.0; 3]), "has shape"),
        (good().strings("tokenizer.ggml.tokens", &["a"]), "the embedding has 128 rows"),
        (good().without("tokenizer.ggml.pre"), "tokenizer.ggml.pre: is missing"),
        (good().string("tokenizer.ggml.pre", "wat"), "\"wat\" is not supported"),
        (good().u32("llama.context_length", 1 << 24), "MiB cache for 16777216 tokens"),
        (good().string("tokenizer.chat_template", "{% if %}"), "does not parse"),
        (good().string("tokenizer.chat_template", "{{ 'x' * 3000000 }}"), "bound"),
    ];
    for (writer, part) in cases {
        let message = message(&writer);
        assert!(message.contains(part), "{message:?} lacks {part:?}");
    }
}

#[test]
fn damaged_weights_are_noticed() {
    let mut writer = support::tiny_model("llama");
    let norm = writer.tensors.iter_mut().find(|tensor| tensor.name == "output_norm.weight");
    norm.unwrap().bytes[..4].copy_from_slice(&f32::NAN.to_le_bytes());
    assert!(message(&writer).contains("not finite"));
}

#[test]
fn other_files_are_refused() {
    let message = |bytes: &[u8]| attempt(bytes).unwrap_err().to_string();
    assert!(message(b"").contains("not a GGUF file"));
    assert!(message(&[0; 4_096]).contains("not a GGUF file"));
    let bytes = support::tiny_model("llama").to_bytes();
    assert!(message(&bytes[..bytes.len() - 1]).contains("ends at byte"));
    let dir = tempfile::tempdir().unwrap();
    assert!(ModelInfo::read(dir.path()).unwrap_err().to_string().contains("config.json"));
    assert!(ModelInfo::read(&dir.path().join("none")).is_err());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    /// Goal: no change of header bytes panics or takes memory, in the reader or behind it.
    #[test]
    fn mutated_headers_are_harmless(
        family in prop::sample::select(&support::FAMILIES),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
    ) {
        let writer = support::tiny_model(family);
        let (mut bytes, header) = (writer.to_bytes(), header_len(&writer));
        for (at, value) in changes {
            bytes[at.index(header)] = value;
        }
        let _: Result<_, _> = attempt(&bytes);
    }

    /// Goal: the same for well-formed files whose numbers lie.
    #[test]
    fn mutated_numbers_are_harmless(
        key in any::<prop::sample::Index>(),
        value in prop_oneof![0u32..300, any::<u32>(), Just(u32::MAX), Just(1u32 << 31)],
    ) {
        let writer = support::tiny_model("llama");
        let numbers: Vec<String> = writer
            .metadata
            .iter()
            .filter(|(_, value)| value[..4] == 4u32.to_le_bytes())
            .map(|(key, _)| key.clone())
            .collect();
        let key = &numbers[key.index(numbers.len())];
        let _: Result<_, _> = attempt(&writer.u32(key, value).to_bytes());
    }

    /// Goal: the same for weights of any bit pattern, in every storage type.
    #[test]
    fn random_quantised_weights_are_harmless(
        kind in prop::sample::select(vec![(2u32, 18usize), (3, 20), (6, 22), (7, 24), (8, 34)]),
        seed in any::<u8>(),
    ) {
        let mut writer = support::tiny_model("llama");
        for tensor in &mut writer.tensors {
            if let [rows, columns] = tensor.shape[..] && columns == 64 {
                let blocks = rows * columns / 32;
                tensor.type_id = kind.0;
                tensor.bytes = (0..blocks * kind.1)
                    .map(|at| (at as u8).wrapping_mul(31).wrapping_add(seed) & 0x3f)
                    .collect();
            }
        }
        let _: Result<_, _> = attempt(&writer.to_bytes());
    }
}

/// Everything before the first tensor's data.
fn header_len(writer: &GgufWriter) -> usize {
    let data: usize = writer.tensors.iter().map(|t| t.bytes.len().next_multiple_of(32)).sum();
    writer.to_bytes().len().saturating_sub(data).max(1)
}
