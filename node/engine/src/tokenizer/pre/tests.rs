use proptest::prelude::*;

use super::*;

fn words(name: &str, text: &str) -> Vec<String> {
    let (pre, _) = PreTokenizer::named(name).unwrap();
    pre.words(Cow::Borrowed(text), true).into_iter().map(Cow::into_owned).collect()
}

#[test]
fn published_rules_cut_as_documented() {
    let sample = "Hello'Ve it's 12345\n\n  foo\t bar!?\n";
    assert_eq!(
        words("gpt-2", sample),
        ["Hello", "'", "Ve", " it", "'s", " 12345", "\n\n ", " foo", "\t", " bar", "!?", "\n"]
    );
    assert_eq!(
        words("smollm", sample),
        [
            "Hello", "'", "Ve", " it", "'s", " ", "1", "2", "3", "4", "5", "\n\n ", " foo", "\t",
            " bar", "!?", "\n"
        ]
    );
    for name in ["llama-bpe", "glm4", "dbrx"] {
        assert_eq!(
            words(name, sample),
            [
                "Hello", "'Ve", " it", "'s", " ", "123", "45", "\n\n", " ", " foo", "\t", " bar",
                "!?\n"
            ]
        );
    }
    assert_eq!(words("qwen2", "a 12"), ["a", " ", "1", "2"]);
    assert_eq!(words("qwen2", "ก็"), ["ก", "\u{e47}"]);
    assert_eq!(words("qwen35", "ก็"), ["ก็"]);
    assert_eq!(words("tekken", "camelCase ÜBER/a"), ["camel", "Case", " ÜBER", "/a"]);
    assert_eq!(words("bloom", "Hi, you! (12)\n"), ["Hi", ",", " you", "! (", "12", ")\n"]);
    assert_eq!(words("viking", "a 12"), ["a", " ", "1", "2"]);
    assert_eq!(words("falcon", "a`b 1234"), ["a", "`", "b", " ", "123", "4"]);
    assert_eq!(words("default", "a, 12345 b"), ["a", ",", " ", "123", "45", " b"]);
}

#[test]
fn unknown_names_are_named() {
    let error = PreTokenizer::named("martian").err().unwrap().to_string();
    assert!(error.contains("\"martian\"") && error.contains("smollm"), "{error}");
}

#[test]
fn metaspace_prepends_as_asked() {
    let metaspace = |prepend, split| PreTokenizer {
        steps: vec![Step::Metaspace { replacement: '▁', prepend, split }],
    };
    let words = |pre: &PreTokenizer, text, begins| pre.words(Cow::Borrowed(text), begins).concat();
    let pre = metaspace(Prepend::First, true);
    assert_eq!(words(&pre, "a b", true), "▁a▁b");
    assert_eq!(words(&pre, "a b", false), "a▁b");
    assert_eq!(pre.words(Cow::Borrowed("a  b"), true), ["▁a", "▁", "▁b"]);
    assert_eq!(words(&metaspace(Prepend::Always, false), "a", false), "▁a");
    assert_eq!(words(&metaspace(Prepend::Never, false), " a", true), "▁a");
}

#[test]
fn long_runs_take_linear_time() {
    let text = " ".repeat(1 << 20) + &"a".repeat(1 << 20) + &"1".repeat(1 << 18);
    for rule in RULES {
        let pieces = words(rule.names[0], &text);
        assert!(pieces.len() >= 2);
        assert_eq!(pieces.concat(), text);
    }
}

proptest! {
    #[test]
    fn words_are_the_text(text in "[ \\n\\ta1Ü'.é漢😀]{0,40}", rule in 0..RULES.len()) {
        prop_assert_eq!(words(RULES[rule].names[0], &text).concat(), text);
    }

    /// Goal: shortening equals the published look-ahead. Oracle: the original expressions in the
    /// backtracking engine that the reference tokenizers use.
    #[test]
    fn shortening_equals_look_ahead(text in "[ \\n\\r\\ta1b2Ü'.sé漢]{0,40}", rule in 0..RULES.len()) {
        use tokenizers::tokenizer::{OffsetReferential, OffsetType, PreTokenizedString, PreTokenizer as _};
        use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
        use tokenizers::SplitDelimiterBehavior::Isolated;
        let mut reference = PreTokenizedString::from(text.as_str());
        for stage in RULES[rule].stages {
            Split::new(SplitPattern::Regex((*stage).to_owned()), Isolated, false)
                .unwrap()
                .pre_tokenize(&mut reference)
                .unwrap();
        }
        let reference: Vec<String> = reference
            .get_splits(OffsetReferential::Original, OffsetType::Byte)
            .into_iter()
            .map(|(piece, _, _)| piece.to_owned())
            .collect();
        prop_assert_eq!(words(RULES[rule].names[0], &text), reference);
    }
}
