//! What fuzzing begins with: the corpus, and GGUF files made on the spot.

use std::path::Path;

use allmend_engine::fuzzing::Target;

use crate::gguf_writer::GgufWriter;
use crate::random::Random;

/// The files of the corpus for a target, and what can be made for it.
pub(crate) fn all(target: Target) -> Vec<Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(target.name());
    let mut paths: Vec<_> = std::fs::read_dir(&folder)
        .into_iter()
        .flatten()
        .filter_map(|entry| Some(entry.ok()?.path()))
        .collect();
    paths.sort();
    let mut seeds: Vec<Vec<u8>> =
        paths.iter().filter_map(|path| std::fs::read(path).ok()).collect();
    if target == Target::Gguf {
        seeds.extend([byte_level(), sentence_piece()].map(|writer| writer.to_bytes()));
    }
    assert!(!seeds.is_empty(), "{} is empty", folder.display());
    seeds
}

/// A well-formed file whose entries say something else than they should.
pub(crate) fn arbitrary_gguf(random: &mut Random) -> Vec<u8> {
    let mut writer = if random.one_in(2) { byte_level() } else { sentence_piece() };
    for _ in 0..=random.below(4) {
        let (from, to) = (random.below(writer.metadata.len()), random.below(writer.metadata.len()));
        let donor = writer.metadata[from].1.clone();
        let (key, value) = &mut writer.metadata[to];
        match random.below(7) {
            0 => *value = donor,
            1 => {
                // The type stays, the value changes; lengths inside of it may now lie.
                let at = 4 + random.below(value.len() - 4);
                value[at] = random.next() as u8;
            }
            2 => {
                *value = [&4u32.to_le_bytes()[..], &(random.number() as u32).to_le_bytes()].concat()
            }
            3 => *value = [&10u32.to_le_bytes()[..], &random.number().to_le_bytes()].concat(),
            4 => key.push('x'),
            5 => {
                let names: [&str; 12] = [
                    "gpt-2",
                    "smollm",
                    "llama-bpe",
                    "qwen2",
                    "tekken",
                    "bloom",
                    "falcon",
                    "default",
                    "llama",
                    "qwen3",
                    "gemma3",
                    "apertus",
                ];
                let name = random.pick(&names);
                let key =
                    (*random.pick(&["tokenizer.ggml.pre", "general.architecture"])).to_owned();
                writer = writer.string(&key, name);
            }
            _ => {
                if let Some(tensor) = writer.tensors.first_mut() {
                    match random.below(3) {
                        0 => tensor.type_id = random.below(40) as u32,
                        1 => tensor.shape = vec![random.number() as usize, random.below(70)],
                        _ => tensor.name.push_str(".weight"),
                    }
                }
            }
        }
    }
    writer.to_bytes()
}

fn llama(writer: GgufWriter) -> GgufWriter {
    let values = vec![0.5; 8 * 32];
    writer
        .string("general.architecture", "llama")
        .u32("llama.block_count", 1)
        .u32("llama.context_length", 64)
        .u32("llama.embedding_length", 32)
        .u32("llama.feed_forward_length", 64)
        .u32("llama.attention.head_count", 4)
        .u32("llama.attention.head_count_kv", 2)
        .f32("llama.attention.layer_norm_rms_epsilon", 1e-5)
        .f32("llama.rope.freq_base", 10_000.0)
        .u32("llama.rope.dimension_count", 8)
        .string("tokenizer.chat_template", "{{ messages[0].content }}")
        .tensor("token_embd.weight", &[8, 32], &values)
}

fn byte_level() -> GgufWriter {
    let tokens = ["<s>", "</s>", "a", "b", "\u{120}", "ab", "\u{120}a", "\u{10a}"];
    llama(GgufWriter::default())
        .string("tokenizer.ggml.model", "gpt2")
        .string("tokenizer.ggml.pre", "smollm")
        .strings("tokenizer.ggml.tokens", &tokens)
        .i32s("tokenizer.ggml.token_type", &[3, 3, 1, 1, 1, 1, 1, 4])
        .strings("tokenizer.ggml.merges", &["a b", "\u{120} a"])
        .u32("tokenizer.ggml.bos_token_id", 0)
        .u32("tokenizer.ggml.eos_token_id", 1)
        .bool("tokenizer.ggml.add_bos_token", true)
}

fn sentence_piece() -> GgufWriter {
    let tokens = ["<unk>", "<s>", "</s>", "<0x41>", "\u{2581}", "a", "b", "ab"];
    llama(GgufWriter::default())
        .string("tokenizer.ggml.model", "llama")
        .strings("tokenizer.ggml.tokens", &tokens)
        .i32s("tokenizer.ggml.token_type", &[2, 3, 3, 6, 1, 1, 1, 1])
        .f32s("tokenizer.ggml.scores", &[0.0, 0.0, 0.0, 0.0, -1.0, -2.0, -3.0, -0.5])
        .u32("tokenizer.ggml.bos_token_id", 1)
        .u32("tokenizer.ggml.eos_token_id", 2)
        .u32("tokenizer.ggml.unknown_token_id", 0)
        .bool("tokenizer.ggml.add_space_prefix", true)
}
