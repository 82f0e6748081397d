use std::path::Path;

use proptest::prelude::*;

use super::*;
use crate::files::gguf::Gguf;
use crate::gguf_writer::GgufWriter;

/// The real model's tokenizer: its metadata without the tensors.
pub(super) fn smollm2() -> Tokenizer {
    let bytes = std::fs::read(fixture("smollm2.gguf")).unwrap();
    Tokenizer::from_gguf(&Gguf::parse(&bytes).unwrap()).unwrap()
}

pub(super) fn fixture(name: &str) -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/tokenizer").join(name)
}

#[derive(serde::Deserialize)]
pub(super) struct Case {
    pub(super) text: String,
    pub(super) ids: Vec<u32>,
}

pub(super) fn cases() -> Vec<Case> {
    serde_json::from_slice(&std::fs::read(fixture("smollm2.json")).unwrap()).unwrap()
}

#[test]
fn ids_equal_llama_cpp() {
    let tokenizer = smollm2();
    let cases = cases();
    assert_eq!(cases.len(), 28);
    for case in cases {
        assert_eq!(tokenizer.encode(&case.text).unwrap(), case.ids, "{:?}", case.text);
    }
}

#[test]
fn tokens_return_to_text() {
    let tokenizer = smollm2();
    for case in cases() {
        let has_special = case.ids.iter().any(|&id| tokenizer.bytes(id).is_empty());
        let bytes: Vec<u8> = case.ids.iter().flat_map(|&id| tokenizer.bytes(id)).collect();
        if !has_special {
            assert_eq!(String::from_utf8(bytes).unwrap(), case.text);
        }
    }
    assert!(tokenizer.is_end(2) && tokenizer.is_end(0) && !tokenizer.is_end(1));
}

#[test]
fn long_input_is_linear_and_bounded() {
    let tokenizer = smollm2();
    for unit in [" ", "a", "\n", "1", "<|im_end|>", "é", "ab", "<|im_"] {
        let text = unit.repeat(INPUT_BYTES_MAX / 8 / unit.len());
        assert!(!tokenizer.encode(&text).unwrap().is_empty());
    }
    assert!(tokenizer.encode(&"a".repeat(INPUT_BYTES_MAX + 1)).is_err());
}

/// A SentencePiece vocabulary: byte tokens, single characters, and some merges with scores.
fn sentence_piece() -> GgufWriter {
    let mut tokens = vec!["<unk>".to_owned(), "<s>".to_owned(), "</s>".to_owned()];
    let mut kinds = vec![2, 3, 3];
    for byte in 0..=255u8 {
        tokens.push(format!("<0x{byte:02X}>"));
        kinds.push(6);
    }
    for piece in ["\u{2581}", "a", "b", "c", "ab", "bc", "abc", "\u{2581}a", "\u{2581}ab"] {
        tokens.push(piece.to_owned());
        kinds.push(1);
    }
    // Every token scores minus its id, but for "bc", which beats them all.
    let scores: Vec<f32> =
        (0..tokens.len()).map(|id| if tokens[id] == "bc" { 1.0 } else { -(id as f32) }).collect();
    GgufWriter::default()
        .string("tokenizer.ggml.model", "llama")
        .strings("tokenizer.ggml.tokens", &tokens)
        .i32s("tokenizer.ggml.token_type", &kinds)
        .f32s("tokenizer.ggml.scores", &scores)
        .u32("tokenizer.ggml.bos_token_id", 1)
        .u32("tokenizer.ggml.eos_token_id", 2)
        .u32("tokenizer.ggml.unknown_token_id", 0)
}

fn build(writer: &GgufWriter) -> Result<Tokenizer, EngineError> {
    Tokenizer::from_gguf(&Gguf::parse(&writer.to_bytes()).unwrap())
}

#[test]
fn sentence_piece_merges_by_score() {
    let tokenizer = build(&sentence_piece()).unwrap();
    let pieces = |text: &str| -> Vec<String> {
        let ids = tokenizer.encode(text).unwrap();
        ids.iter().map(|&id| tokenizer.vocab.text(id).unwrap().to_owned()).collect()
    };
    // "bc" goes first although "ab" stands left of it; then "▁a" cannot reach the rest.
    assert_eq!(pieces("abc"), ["\u{2581}", "abc"]);
    assert_eq!(pieces("ab a"), ["\u{2581}ab", "\u{2581}a"]);
    assert_eq!(pieces("</s>b"), ["</s>", "\u{2581}", "b"]);
    assert_eq!(pieces("é"), ["\u{2581}", "<0xC3>", "<0xA9>"]);
    assert_eq!(tokenizer.encode_prompt("a").unwrap()[0], 1);
    let text: Vec<u8> =
        tokenizer.encode("ab é").unwrap().iter().flat_map(|&id| tokenizer.bytes(id)).collect();
    assert_eq!(text, " ab é".as_bytes());
}

#[test]
fn contradictions_are_named() {
    let good = sentence_piece();
    let cases = [
        (good.clone().string("tokenizer.ggml.model", "bert"), "bert"),
        (good.clone().string("tokenizer.ggml.model", "gpt2"), "tokenizer.ggml.pre"),
        (good.clone().without("tokenizer.ggml.scores"), "tokenizer.ggml.scores"),
        (good.clone().f32s("tokenizer.ggml.scores", &[0.0]), "1 numbers"),
        (good.clone().f32s("tokenizer.ggml.scores", &[f32::NAN; 268]), "0 numbers"),
        (good.clone().i32s("tokenizer.ggml.token_type", &[9; 268]), "token type"),
        (good.clone().i32s("tokenizer.ggml.token_type", &[1; 3]), "3 entries"),
        (good.clone().u32("tokenizer.ggml.eos_token_id", 268), "268"),
        (good.clone().strings("tokenizer.ggml.tokens", &["x"; 268]), "same text"),
        (
            good.clone()
                .string("tokenizer.ggml.model", "gpt2")
                .string("tokenizer.ggml.pre", "venusian")
                .strings("tokenizer.ggml.merges", &["a b"]),
            "venusian",
        ),
        (
            good.clone()
                .string("tokenizer.ggml.model", "gpt2")
                .string("tokenizer.ggml.pre", "gpt-2")
                .strings("tokenizer.ggml.merges", &["x y"]),
            "tokenizer",
        ),
    ];
    for (writer, part) in cases {
        let error = build(&writer).err().unwrap().to_string();
        assert!(error.contains(part), "{error} lacks {part}");
    }
}

/// Goal: tokens are found leftmost first and longest among equals, in one pass.
#[test]
fn special_tokens_are_cut_out() {
    let mut writer = sentence_piece();
    let tokens = ["<unk>", "<s>", "</s>", "<s><s>", "x</s>", "a", "\u{2581}"];
    writer = writer
        .strings("tokenizer.ggml.tokens", &tokens)
        .i32s("tokenizer.ggml.token_type", &[2, 3, 3, 3, 4, 1, 1])
        .f32s("tokenizer.ggml.scores", &[0.0; 7])
        .bool("tokenizer.ggml.add_space_prefix", false);
    let tokenizer = build(&writer).unwrap();
    assert_eq!(tokenizer.encode("<s><s><s>a</s>x</s>").unwrap(), [3, 1, 5, 2, 4]);
    assert_eq!(tokenizer.bytes(4), b"x</s>");
    assert!(tokenizer.bytes(3).is_empty() && tokenizer.bytes(99).is_empty());
}

proptest! {
    /// Goal: no text is lost or panics, whatever the vocabulary.
    #[test]
    fn sentence_piece_keeps_the_text(text in "[abc é😀\\n]{0,40}") {
        let tokenizer = build(&sentence_piece()).unwrap();
        let ids = tokenizer.encode(&text).unwrap();
        let bytes: Vec<u8> = ids.iter().flat_map(|&id| tokenizer.bytes(id)).collect();
        let expected = if text.is_empty() { String::new() } else { format!(" {text}") };
        prop_assert_eq!(String::from_utf8(bytes).unwrap(), expected);
    }
}
