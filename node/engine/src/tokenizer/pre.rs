//! How text is cut into words before byte-pair encoding, by `tokenizer.ggml.pre`.
//!
//! The published rules are regular expressions with a look-ahead, `\s+(?!\S)|\s+`: a run of white space
//! leaves its last character to the word after it. Here the run is matched whole and shortened
//! afterwards, so that the expressions need no backtracking and a prompt of a million blanks takes
//! linear time.

use regex::Regex;

use crate::error::EngineError;

/// GPT-2's rule.
const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+";
/// Llama 3's rule: contractions in any case, digits in threes, line ends with what precedes them.
const LLAMA3: &str = r"'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD]|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+";
/// Qwen 2's rule: Llama 3's with single digits.
const QWEN2: &str = r"'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD]|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+";
/// Mistral's Tekken rule: words also end where capitals begin.
const TEKKEN: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+";
const DIGIT: &str = r"\p{N}";
const DIGITS: &str = r"\p{N}+";
const DIGITS_BY_THREE: &str = r"[0-9][0-9][0-9]";
const PUNCTUATION: &str = r"[\p{P}\$\+<=>\^~\|]+";

/// What one name in `tokenizer.ggml.pre` means.
struct Rule {
    names: &'static [&'static str],
    /// Applied one after the other, each to the pieces that the one before left.
    stages: &'static [&'static str],
    /// A word that is a token as a whole is taken as such, merges or not.
    ignore_merges: bool,
    /// Whether a beginning-of-sequence token is added when the file does not say.
    add_bos: bool,
}

/// The names and rules of llama.cpp (`llama-vocab.cpp`), for the families that we run.
const RULES: &[Rule] = &[
    Rule {
        names: &["gpt-2", "phi-2", "olmo", "jais", "mpt"],
        stages: &[GPT2],
        ignore_merges: false,
        add_bos: false,
    },
    Rule {
        names: &["smollm", "starcoder", "refact", "command-r", "codeshell", "exaone"],
        stages: &[DIGIT, GPT2],
        ignore_merges: false,
        add_bos: false,
    },
    Rule {
        names: &["llama-bpe", "llama3", "llama-v3", "falcon3", "pixtral"],
        stages: &[LLAMA3],
        ignore_merges: true,
        add_bos: true,
    },
    Rule { names: &["smaug-bpe", "dbrx"], stages: &[LLAMA3], ignore_merges: false, add_bos: false },
    Rule {
        names: &["qwen2", "deepseek-r1-qwen", "megrez"],
        stages: &[QWEN2],
        ignore_merges: false,
        add_bos: false,
    },
    Rule { names: &["tekken"], stages: &[TEKKEN], ignore_merges: true, add_bos: true },
    Rule {
        names: &["default"],
        stages: &[PUNCTUATION, GPT2, DIGITS, DIGITS_BY_THREE],
        ignore_merges: false,
        add_bos: false,
    },
];

/// Cuts text into words.
pub(super) struct PreTokenizer {
    stages: Vec<Stage>,
    pub(super) ignore_merges: bool,
    pub(super) add_bos: bool,
}

struct Stage {
    regex: Regex,
    /// The rule ends in `\s+`, whose matches give their last character back.
    yields_space: bool,
    /// The rule takes white space that ends a line as a word of its own.
    keeps_line_ends: bool,
}

impl PreTokenizer {
    /// # Errors
    /// [`EngineError::UnknownPreTokenizer`] naming `name` and what would have worked.
    pub(super) fn new(name: &str) -> Result<Self, EngineError> {
        let rule = RULES.iter().find(|rule| rule.names.contains(&name)).ok_or_else(|| {
            let names: Vec<&str> =
                RULES.iter().flat_map(|rule| rule.names.iter().copied()).collect();
            EngineError::UnknownPreTokenizer {
                name: name.chars().take(64).collect(),
                supported: names.join(", "),
            }
        })?;
        let stages =
            rule.stages.iter().map(|pattern| Stage::new(pattern)).collect::<Result<_, _>>()?;
        Ok(Self { stages, ignore_merges: rule.ignore_merges, add_bos: rule.add_bos })
    }

    /// The words of `text`, in order; together they are `text`.
    pub(super) fn words<'t>(&self, text: &'t str) -> Vec<&'t str> {
        let mut words = vec![text];
        for stage in &self.stages {
            words = words.iter().flat_map(|piece| stage.split(piece)).collect();
        }
        words
    }
}

impl Stage {
    fn new(pattern: &str) -> Result<Self, EngineError> {
        let regex =
            Regex::new(pattern).map_err(|error| EngineError::Tokenizer(error.to_string()))?;
        Ok(Self {
            regex,
            yields_space: pattern.ends_with(r"|\s+"),
            keeps_line_ends: pattern.contains(r"\s*[\r\n]+"),
        })
    }

    /// Matches, and what lies between them.
    fn split<'t>(&self, text: &'t str) -> Vec<&'t str> {
        let mut pieces = Vec::new();
        let mut push = |piece: Option<&'t str>| {
            pieces.extend(piece.filter(|piece| !piece.is_empty()));
        };
        let mut at = 0;
        while let Some(found) = self.regex.find_at(text, at) {
            let end = self.shortened(text, found.as_str(), found.end());
            push(text.get(at..found.start()));
            push(text.get(found.start()..end));
            at = end;
        }
        push(text.get(at..));
        pieces
    }

    /// Where a match ends once the look-ahead of `\s+(?!\S)` has been heeded.
    fn shortened(&self, text: &str, matched: &str, end: usize) -> usize {
        let line_end = matched.ends_with(['\r', '\n']) && self.keeps_line_ends;
        if !self.yields_space || line_end || !matched.chars().all(char::is_whitespace) {
            return end;
        }
        let last = matched.chars().next_back().map_or(0, char::len_utf8);
        let followed = text.get(end..).is_some_and(|rest| !rest.is_empty());
        if followed && matched.len() > last { end - last } else { end }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn words<'t>(name: &str, text: &'t str) -> Vec<&'t str> {
        PreTokenizer::new(name).unwrap().words(text)
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
                "Hello", "'", "Ve", " it", "'s", " ", "1", "2", "3", "4", "5", "\n\n ", " foo",
                "\t", " bar", "!?", "\n"
            ]
        );
        assert_eq!(
            words("llama-bpe", sample),
            [
                "Hello", "'Ve", " it", "'s", " ", "123", "45", "\n\n", " ", " foo", "\t", " bar",
                "!?\n"
            ]
        );
        assert_eq!(words("qwen2", "a 12"), ["a", " ", "1", "2"]);
        assert_eq!(words("tekken", "camelCase ÜBER/a"), ["camel", "Case", " ÜBER", "/a"]);
        assert_eq!(words("default", "a, 12345 b"), ["a", ",", " ", "123", "45", " b"]);
    }

    #[test]
    fn unknown_names_are_named() {
        let error = PreTokenizer::new("martian").err().unwrap().to_string();
        assert!(error.contains("\"martian\"") && error.contains("smollm"), "{error}");
    }

    #[test]
    fn long_runs_take_linear_time() {
        let text = " ".repeat(1 << 20) + &"a".repeat(1 << 20) + &"1".repeat(1 << 18);
        for rule in RULES {
            let pieces = PreTokenizer::new(rule.names[0]).unwrap().words(&text).len();
            assert!(pieces >= 2);
        }
    }

    proptest! {
        #[test]
        fn words_are_the_text(text in "[ \\n\\ta1Ü'.é漢😀]{0,40}", rule in 0..RULES.len()) {
            let words = words(RULES[rule].names[0], &text);
            prop_assert_eq!(words.concat(), text);
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
                let original = match stage.strip_suffix(r"|\s+") {
                    Some(head) => format!(r"{head}|\s+(?!\S)|\s+"),
                    None => (*stage).to_owned(),
                };
                Split::new(SplitPattern::Regex(original), Isolated, false)
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
}
