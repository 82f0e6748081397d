//! Oracle: the Hugging Face `tokenizers` crate, given the same file.

use proptest::prelude::*;
use serde_json::{Value, json};

use super::super::tests::{cases, fixture, smollm2};
use super::*;
use crate::files::gguf::Gguf;

/// Compares ids, without and with the tokens around an input.
fn agree(file: &Value, texts: &[&str]) {
    let bytes = serde_json::to_vec(file).unwrap();
    let ours = Tokenizer::from_json(&bytes, &Roles::default()).unwrap();
    let oracle = tokenizers::Tokenizer::from_bytes(&bytes).unwrap();
    for text in texts {
        let expected = oracle.encode_fast(*text, false).unwrap();
        assert_eq!(ours.encode(text).unwrap(), expected.get_ids(), "{text:?} in {file}");
        let expected = oracle.encode_fast(*text, true).unwrap();
        assert_eq!(ours.encode_document(text).unwrap(), expected.get_ids(), "{text:?} in {file}");
    }
}

fn refusal(file: &Value) -> String {
    let bytes = serde_json::to_vec(file).unwrap();
    Tokenizer::from_json(&bytes, &Roles::default()).err().unwrap().to_string()
}

/// A file with this model and nothing else.
fn with_model(model: Value) -> Value {
    json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [],
        "normalizer": null, "pre_tokenizer": null, "post_processor": null, "decoder": null,
        "model": model,
    })
}

fn with(mut file: Value, key: &str, value: Value) -> Value {
    file[key] = value;
    file
}

fn added(id: u32, content: &str, flags: &str) -> Value {
    json!({
        "id": id, "content": content, "special": flags.contains('s'),
        "single_word": flags.contains('w'), "lstrip": flags.contains('l'),
        "rstrip": flags.contains('r'), "normalized": flags.contains('n'),
    })
}

/// SmolLM2's own `tokenizer.json`, made from the metadata of its GGUF file.
fn smollm2_file() -> Value {
    let bytes = std::fs::read(fixture("smollm2.gguf")).unwrap();
    let gguf = Gguf::parse(&bytes).unwrap();
    let strings = |key| -> Vec<&str> {
        let text = |value| match value {
            crate::files::gguf::Value::String(text) => text,
            other => panic!("{other:?}"),
        };
        gguf.array(key).unwrap().unwrap().iter().map(text).collect()
    };
    let tokens = strings("tokenizer.ggml.tokens");
    let vocab: serde_json::Map<String, Value> =
        tokens.iter().zip(0..).map(|(token, id)| ((*token).to_owned(), json!(id))).collect();
    let control = smollm2();
    let control = control.vocab.of_kind(TokenKind::Control);
    let specials: Vec<Value> = control.map(|(id, text)| added(id, text, "s")).collect();
    assert!(specials.len() > 10);
    let file = with_model(json!({
        "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": "",
        "end_of_word_suffix": "", "fuse_unk": false, "vocab": vocab,
        "merges": strings("tokenizer.ggml.merges"),
    }));
    let file = with(file, "added_tokens", json!(specials));
    let byte_level = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true});
    let file = with(file, "decoder", byte_level.clone());
    let digits = json!({"type": "Digits", "individual_digits": true});
    let steps = json!({"type": "Sequence", "pretokenizers": [digits, byte_level]});
    with(file, "pre_tokenizer", steps)
}

#[test]
fn both_files_of_smollm2_agree() {
    let file = smollm2_file();
    let roles = Roles { eos: Some(Role::Text("<|im_end|>".to_owned())), ..Roles::default() };
    let tokenizer = Tokenizer::from_json(&serde_json::to_vec(&file).unwrap(), &roles).unwrap();
    let from_gguf = smollm2();
    let cases = cases();
    for case in &cases {
        assert_eq!(tokenizer.encode(&case.text).unwrap(), case.ids, "{:?}", case.text);
    }
    assert_eq!(tokenizer.len(), from_gguf.len());
    for id in 0..tokenizer.len() as u32 {
        assert_eq!(tokenizer.bytes(id), from_gguf.bytes(id), "token {id}");
        assert_eq!(tokenizer.is_end(id), from_gguf.is_end(id), "token {id}");
    }
    assert_eq!(tokenizer.eos_text(), "<|im_end|>");
    let texts: Vec<&str> = cases.iter().map(|case| case.text.as_str()).collect();
    agree(&file, &texts);
}

#[test]
fn single_ids_become_text() {
    let file = with_model(json!({
        "type": "BPE", "unk_token": "<unk>", "byte_fallback": true, "merges": [],
        "vocab": {"<unk>": 0, "▁": 1, "a": 2, "<0x0A>": 3, "▁a": 4},
    }));
    let file = with(file, "added_tokens", json!([added(5, "<end>", "s"), added(6, "▁▁", "")]));
    let decoders = json!([
        {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
        {"type": "ByteFallback"}, {"type": "Fuse"},
        {"type": "Strip", "content": " ", "start": 1, "stop": 0},
    ]);
    let file = with(file, "decoder", json!({"type": "Sequence", "decoders": decoders}));
    let tokenizer =
        Tokenizer::from_json(&serde_json::to_vec(&file).unwrap(), &Roles::default()).unwrap();
    let texts: Vec<Vec<u8>> = (0..8).map(|id| tokenizer.bytes(id)).collect();
    let expected: [&[u8]; 8] = [b"", b" ", b"a", b"\n", b" a", b"", b"  ", b""];
    assert_eq!(texts, expected);
    let file = with_model(json!({
        "type": "WordPiece", "unk_token": "u", "continuing_subword_prefix": "##",
        "max_input_chars_per_word": 100, "vocab": {"u": 0, "a": 1, "##b": 2},
    }));
    let file = with(file, "decoder", json!({"type": "WordPiece", "prefix": "##", "cleanup": true}));
    let tokenizer =
        Tokenizer::from_json(&serde_json::to_vec(&file).unwrap(), &Roles::default()).unwrap();
    assert_eq!((tokenizer.bytes(1), tokenizer.bytes(2)), (b" a".to_vec(), b"b".to_vec()));
}

/// Goal: what surrounds an input comes from the post-processor, which configuration overrides.
#[test]
fn tokens_around_an_input() {
    let model = json!({"type": "BPE", "merges": [], "vocab": {"<s>": 0, "</s>": 1, "a": 2}});
    let file = with(
        with_model(model),
        "added_tokens",
        json!([added(0, "<s>", "s"), added(1, "</s>", "s")]),
    );
    let special = |id, text| json!({"id": text, "ids": [id], "tokens": [text]});
    let template = json!({
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}},
                   {"SpecialToken": {"id": "</s>", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {"<s>": special(0, "<s>"), "</s>": special(1, "</s>")},
    });
    let processed = with(file.clone(), "post_processor", template);
    agree(&processed, &["a", "aa"]);
    let roberta = json!({"type": "RobertaProcessing", "sep": ["</s>", 1], "cls": ["<s>", 0],
        "trim_offsets": true, "add_prefix_space": true});
    agree(&with(file.clone(), "post_processor", roberta), &["a", ""]);
    let read = |file: &Value, roles: &Roles| {
        let tokenizer = Tokenizer::from_json(&serde_json::to_vec(file).unwrap(), roles).unwrap();
        (tokenizer.encode_prompt("a").unwrap(), tokenizer.encode_document("<s>a").unwrap())
    };
    let roles = Roles {
        bos: Some(Role::Text("<s>".to_owned())),
        eos: Some(Role::Id(1)),
        ..Roles::default()
    };
    assert_eq!(read(&processed, &roles), (vec![0, 2], vec![0, 2, 1]));
    assert_eq!(read(&file, &roles), (vec![2], vec![0, 2]));
    let wanted = Roles { add_bos: Some(true), add_eos: Some(true), ..roles.clone() };
    assert_eq!(read(&file, &wanted), (vec![0, 2], vec![0, 2, 1]));
    let unwanted = Roles { add_bos: Some(false), add_eos: Some(false), ..roles.clone() };
    assert_eq!(read(&processed, &unwanted), (vec![2], vec![0, 2]));
}

#[test]
fn contradictions_are_named() {
    let bpe = json!({"type": "BPE", "merges": [["a", "b"]], "vocab": {"a": 0, "b": 1, "ab": 2}});
    let good = with_model(bpe.clone());
    let model = |key: &str, value: Value| with_model(with(bpe.clone(), key, value));
    let split = |expression: &str| {
        let step = json!({"type": "Split", "pattern": {"Regex": expression}, "behavior": "Isolated",
            "invert": false});
        with(good.clone(), "pre_tokenizer", step)
    };
    let byte_level = json!({"type": "ByteLevel", "add_prefix_space": false});
    let twice =
        json!({"type": "Sequence", "pretokenizers": [byte_level.clone(), byte_level.clone()]});
    let cases = [
        (with(good.clone(), "surprise", json!(1)), "surprise"),
        (model("type", json!("WordLevel")), "WordLevel"),
        (model("surprise", json!(1)), "surprise"),
        (model("dropout", json!(0.1)), "dropout"),
        (model("continuing_subword_prefix", json!("##")), "continuing_subword_prefix"),
        (model("unk_token", json!("<unk>")), "<unk>"),
        (model("merges", json!([["a", "x"]])), "\"ax\""),
        (model("merges", json!(["a b c"])), "two parts"),
        (model("vocab", json!({"a": 0, "b": 0})), "two texts"),
        (model("vocab", json!({"a": 4_000_000_000u32})), "4000000000"),
        (with(good.clone(), "added_tokens", json!([added(0, "x", "")])), "two texts"),
        (with(good.clone(), "added_tokens", json!([added(7, "a", "")])), "same text"),
        (with(good.clone(), "normalizer", json!({"type": "Nmt"})), "Nmt"),
        (
            with(good.clone(), "normalizer", json!({"type": "Prepend", "prepend": "x".repeat(99)})),
            "99",
        ),
        (
            with(
                good.clone(),
                "normalizer",
                json!({"type": "Precompiled", "precompiled_charsmap": "!"}),
            ),
            "base64",
        ),
        (with(good.clone(), "pre_tokenizer", json!({"type": "Mars"})), "Mars"),
        (with(good.clone(), "pre_tokenizer", twice), "last"),
        (with(good.clone(), "decoder", json!({"type": "CTC"})), "CTC"),
        (
            with(
                good.clone(),
                "post_processor",
                json!({"type": "BertProcessing", "sep": ["x", 9], "cls": ["y", 0]}),
            ),
            "9",
        ),
        (split(r"(?<=a)b"), "look-around"),
        (split(r"(a)\1"), "look-around"),
        (split(r"\p{L}{9999}{9999}"), "too large"),
    ];
    for (file, expected) in cases {
        let error = refusal(&file);
        assert!(error.contains(expected), "{error} lacks {expected}");
    }
}

#[test]
fn nesting_ends() {
    let deep = "[".repeat(100_000);
    let sequence = r#"{"type":"Sequence","normalizers":["#.repeat(10_000);
    for text in [format!(r#"{{"model":{deep}"#), format!(r#"{{"normalizer":{sequence}"#)] {
        assert!(Tokenizer::from_json(text.as_bytes(), &Roles::default()).is_err());
    }
}

#[test]
fn published_pipelines_agree() {
    let text = "Hello  wörld, it's 12345!\n\n  fine\t— ①Ⅷ ﬁ 漢字かな  x\u{301}y �. (a|b) 😀";
    let texts = [text, "", " ", "a", " a", "a ", "\n", "'s don't", "é", "e\u{301}", "ǅ ΑΣ İ ß"];
    let letters: serde_json::Map<String, Value> = (0..256u32)
        .map(|byte| (super::super::bytes::to_char(byte as u8).to_string(), json!(byte)))
        .collect();
    let bytes = with_model(json!({"type": "BPE", "vocab": letters, "merges": []}));
    let byte_level = |prefix, regex| json!({"type": "ByteLevel", "add_prefix_space": prefix, "trim_offsets": false, "use_regex": regex});
    let split = |pattern: &str, behaviour: &str, invert: bool| json!({"type": "Split", "pattern": {"Regex": pattern}, "behavior": behaviour, "invert": invert});
    let llama3 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
    let bloom = r" ?[^(\s|[.,!?…。，、।۔،])]+";
    // Whole words that are tokens show how the text was cut.
    let whole: serde_json::Map<String, Value> = {
        let mut vocab = letters.clone();
        for (at, word) in
            ["ello", "12345", "123", "Ġw", "Ġit", "ĠĠ", "ĊĊ", "'s", "Ġ(", "ĊĊĠ"].iter().enumerate()
        {
            vocab.insert((*word).to_owned(), json!(256 + at));
        }
        vocab
    };
    let words =
        with_model(json!({"type": "BPE", "vocab": whole, "merges": [], "ignore_merges": true}));
    for steps in [
        json!([byte_level(false, true)]),
        json!([byte_level(true, true)]),
        json!([json!({"type": "Digits", "individual_digits": true}), byte_level(true, true)]),
        json!([json!({"type": "Digits", "individual_digits": false}), byte_level(false, false)]),
        json!([split(llama3, "Isolated", false), byte_level(false, false)]),
        json!([split(llama3, "Removed", true), byte_level(false, false)]),
        json!([split(bloom, "Isolated", false), byte_level(false, false)]),
        json!([json!({"type": "Punctuation", "behavior": "Contiguous"}), byte_level(false, true)]),
        json!([split("x*", "Isolated", false), byte_level(false, false)]),
        json!([json!({"type": "Whitespace"}), byte_level(false, false)]),
    ] {
        for file in [&bytes, &words] {
            let pre = json!({"type": "Sequence", "pretokenizers": steps});
            for normalizer in [json!(null), json!({"type": "NFC"})] {
                let file = with(file.clone(), "pre_tokenizer", pre.clone());
                agree(&with(file, "normalizer", normalizer), &texts);
            }
        }
    }
}

/// A BPE vocabulary in which every merge joins tokens that exist.
fn arbitrary_bpe() -> impl Strategy<Value = (Vec<String>, Vec<[String; 2]>)> {
    let picks =
        prop::collection::vec((any::<prop::sample::Index>(), any::<prop::sample::Index>()), 0..60);
    picks.prop_map(|picks| {
        let mut tokens: Vec<String> = ["a", "b", "c", "é", "▁"].map(str::to_owned).to_vec();
        let mut merges = Vec::new();
        for (left, right) in picks {
            let pair = [left.get(&tokens).clone(), right.get(&tokens).clone()];
            let joined = pair.concat();
            if joined.chars().count() <= 8 && !merges.contains(&pair) {
                if !tokens.contains(&joined) {
                    tokens.push(joined);
                }
                merges.push(pair);
            }
        }
        (tokens, merges)
    })
}

fn numbered<S: AsRef<str>>(tokens: &[S]) -> Value {
    let entries = tokens.iter().zip(0..).map(|(token, id)| (token.as_ref().to_owned(), json!(id)));
    Value::Object(entries.collect())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn byte_pair_encoding_agrees(
        (mut tokens, merges) in arbitrary_bpe(),
        texts in prop::collection::vec("[abcé▁ xz\u{301}]{0,24}", 1..6),
        (fallback, fuse, ignore, unknown) in any::<(bool, bool, bool, bool)>(),
        scheme in prop::sample::select(vec!["first", "always", "never"]),
        split in any::<bool>(),
    ) {
        tokens.push("<unk>".to_owned());
        // Some bytes have tokens: all of "x", one of two of the accent.
        tokens.extend([0x78, 0xcc].map(|byte| format!("<0x{byte:02X}>")));
        let unknown = unknown.then_some("<unk>");
        let file = with_model(json!({
            "type": "BPE", "unk_token": unknown, "fuse_unk": fuse, "byte_fallback": fallback,
            "ignore_merges": ignore, "vocab": numbered(&tokens), "merges": merges,
        }));
        let metaspace =
            json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": split});
        let normalizer = json!({"type": "Sequence", "normalizers": [
            {"type": "Prepend", "prepend": "▁"},
            {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
        ]});
        let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
        agree(&file, &texts);
        agree(&with(file.clone(), "pre_tokenizer", metaspace), &texts);
        agree(&with(file, "normalizer", normalizer), &texts);
    }

    #[test]
    fn unigram_agrees(
        scored in prop::collection::btree_map("[abcé▁]{1,4}", -9.0f64..0.0, 1..30),
        texts in prop::collection::vec("[abcé▁ xz]{0,24}", 1..6),
        fallback in any::<bool>(),
    ) {
        let mut vocab = vec![json!(["<unk>", 0.0]), json!(["<0x78>", -3.5])];
        vocab.extend(scored.iter().map(|(token, score)| json!([token, score])));
        let file = with_model(json!({
            "type": "Unigram", "unk_id": 0, "byte_fallback": fallback, "vocab": vocab,
        }));
        let metaspace =
            json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": true});
        let file = with(file, "pre_tokenizer", metaspace);
        let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
        agree(&file, &texts);
    }

    #[test]
    fn word_piece_agrees(
        tokens in prop::collection::btree_set("(##)?[abcé]{1,3}", 1..30),
        texts in prop::collection::vec("[abcéÀÉx ,.\u{301}\n漢#]{0,24}", 1..6),
        (clean, chinese, lowercase) in any::<(bool, bool, bool)>(),
        accents in any::<Option<bool>>(),
        max in 1usize..9,
    ) {
        let mut tokens: Vec<String> = tokens.into_iter().collect();
        tokens.push("[UNK]".to_owned());
        let file = with_model(json!({
            "type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##",
            "max_input_chars_per_word": max, "vocab": numbered(&tokens),
        }));
        let file = with(file, "pre_tokenizer", json!({"type": "BertPreTokenizer"}));
        let file = with(file, "normalizer", json!({
            "type": "BertNormalizer", "clean_text": clean, "handle_chinese_chars": chinese,
            "strip_accents": accents, "lowercase": lowercase,
        }));
        let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
        agree(&file, &texts);
    }

    #[test]
    fn cutting_agrees(
        pattern in prop::sample::select(vec!["a", "a+", "[ab]", "ab|b", "b*", r"\s+", "é"]),
        behaviour in prop::sample::select(vec![
            "Removed", "Isolated", "MergedWithPrevious", "MergedWithNext", "Contiguous",
        ]),
        invert in any::<bool>(),
        texts in prop::collection::vec("[abcé ]{0,16}", 1..6),
    ) {
        // Every text of up to three letters is a token, so that cuts show.
        let letters = ["a", "b", "c", "é", " "];
        let mut tokens: Vec<String> = letters.map(str::to_owned).to_vec();
        for _ in 0..2 {
            let longer = tokens.iter().flat_map(|token| letters.map(|letter| format!("{token}{letter}")));
            let longer: Vec<String> = longer.collect();
            tokens.extend(longer);
        }
        tokens.sort();
        tokens.dedup();
        let file = with_model(json!({
            "type": "BPE", "vocab": numbered(&tokens), "merges": [], "ignore_merges": true,
        }));
        let step = json!({"type": "Split", "pattern": {"Regex": pattern}, "behavior": behaviour,
            "invert": invert});
        let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
        agree(&with(file, "pre_tokenizer", step), &texts);
    }

    #[test]
    fn added_tokens_agree(
        tokens in prop::collection::btree_map("[abé<>]{1,3}", "[slrn]{0,3}w?", 1..8),
        texts in prop::collection::vec("[abAé<> _]{0,20}", 1..6),
        lowercase in any::<bool>(),
    ) {
        let model = json!({"type": "BPE", "merges": [], "vocab": numbered(&["a", "b", "é", "<", ">", " ", "_", "A"])});
        let tokens: Vec<Value> = tokens
            .iter()
            .filter(|(text, _)| text.chars().count() > 1)
            .zip(8..)
            .map(|((text, flags), id)| added(id, text, flags))
            .collect();
        let file = with(with_model(model), "added_tokens", json!(tokens));
        let normalizer = if lowercase { json!({"type": "Lowercase"}) } else { json!(null) };
        let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
        agree(&with(file, "normalizer", normalizer), &texts);
    }

    #[test]
    fn normalisers_agree(
        names in prop::collection::vec(prop::sample::select(vec![
            "NFC", "NFD", "NFKC", "NFKD", "Lowercase", "StripAccents",
        ]), 1..4),
        texts in prop::collection::vec("[aÉéñﬁΑΣß①½한 \u{301}\u{327}]{0,16}", 1..6),
    ) {
        let steps: Vec<Value> = names.iter().map(|name| json!({"type": name})).collect();
        let letters = super::super::bytes::to_char;
        let tokens: Vec<String> = (0..=255u8).map(|byte| letters(byte).to_string()).collect();
        let file = with_model(json!({"type": "BPE", "vocab": numbered(&tokens), "merges": []}));
        let file = with(file, "pre_tokenizer", json!({"type": "ByteLevel", "add_prefix_space": false,
            "trim_offsets": false, "use_regex": false}));
        let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
        agree(&with(file, "normalizer", json!({"type": "Sequence", "normalizers": steps})), &texts);
    }
}
