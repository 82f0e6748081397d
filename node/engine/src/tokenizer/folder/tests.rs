use super::*;

const TOKENIZER: &str = r#"{"added_tokens": [
    {"id": 0, "content": "<s>", "special": true, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false},
    {"id": 1, "content": "</s>", "special": true, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false},
    {"id": 2, "content": "<|im_end|>", "special": true, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false}],
    "model": {"type": "BPE", "merges": [], "vocab": {"a": 3, "b": 4}}}"#;

/// Reads a folder with a tokenizer and these files.
fn read_with(files: &[(&str, &str)]) -> Result<(Tokenizer, Option<String>), EngineError> {
    let folder = tempfile::tempdir().unwrap();
    for (name, text) in [("tokenizer.json", TOKENIZER)].iter().chain(files) {
        std::fs::write(folder.path().join(name), text).unwrap();
    }
    Tokenizer::from_folder(folder.path())
}

#[test]
fn a_tokenizer_alone_is_enough() {
    let (tokenizer, template) = read_with(&[]).unwrap();
    assert_eq!(tokenizer.encode_prompt("<s>ab").unwrap(), [0, 3, 4]);
    assert_eq!((tokenizer.bos_text(), tokenizer.eos_text(), tokenizer.len()), ("", "", 5));
    // A control token that is known to end a turn.
    assert!(tokenizer.is_end(2) && !tokenizer.is_end(1));
    assert_eq!(template, None);
}

#[test]
fn roles_come_from_all_files() {
    let config = r#"{"bos_token": {"content": "<s>", "lstrip": false}, "eos_token": "</s>",
        "add_bos_token": true, "model_max_length": 1e30, "chat_template": "one"}"#;
    let generation = r#"{"eos_token_id": [2, 3], "temperature": 0.6}"#;
    let model = r#"{"model_type": "llama", "bos_token_id": 4, "eos_token_id": 4}"#;
    let files = [
        ("tokenizer_config.json", config),
        ("generation_config.json", generation),
        ("config.json", model),
    ];
    let (tokenizer, template) = read_with(&files).unwrap();
    assert_eq!((tokenizer.bos_text(), tokenizer.eos_text()), ("<s>", "</s>"));
    assert_eq!((0..6).filter(|&id| tokenizer.is_end(id)).collect::<Vec<_>>(), [1, 2, 3, 4]);
    assert_eq!(tokenizer.encode_prompt("a").unwrap(), [0, 3]);
    assert_eq!(template.as_deref(), Some("one"));
    // Without the tokenizer's own word, the numbers of the others count.
    let (tokenizer, _) = read_with(&files[1..]).unwrap();
    assert_eq!((tokenizer.bos_text(), tokenizer.eos_text()), ("b", "<|im_end|>"));
}

#[test]
fn templates_are_chosen() {
    let named = r#"{"chat_template": [{"name": "tool_use", "template": "t"}, {"name": "default", "template": "d"}]}"#;
    let config = ("tokenizer_config.json", named);
    assert_eq!(read_with(&[config]).unwrap().1.as_deref(), Some("d"));
    let both = [config, ("chat_template.jinja", "file")];
    assert_eq!(read_with(&both).unwrap().1.as_deref(), Some("file"));
}

#[test]
fn what_is_wrong_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let error = Tokenizer::from_folder(folder.path()).err().unwrap().to_string();
    assert!(error.contains("tokenizer.json"), "{error}");
    std::fs::create_dir(folder.path().join("tokenizer.json")).unwrap();
    let error = Tokenizer::from_folder(folder.path()).err().unwrap().to_string();
    assert!(error.contains("regular file"), "{error}");
    let long = " ".repeat(CONFIG_BYTES_MAX + 1);
    let cases = [
        ("tokenizer_config.json", r#"{"bos_token": "nope"}"#, "\"nope\" is no token"),
        ("tokenizer_config.json", "{", "tokenizer_config.json"),
        ("config.json", r#"{"eos_token_id": "x"}"#, "config.json"),
        ("generation_config.json", &long, "more than"),
        ("chat_template.jinja", &long, "more than"),
    ];
    for (name, text, expected) in cases {
        let error = read_with(&[(name, text)]).err().unwrap().to_string();
        assert!(error.contains(expected), "{error} lacks {expected}");
    }
}
