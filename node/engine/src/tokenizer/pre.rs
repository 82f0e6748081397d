//! How text is cut into words before the model sees it, and the rules that `tokenizer.ggml.pre` names.

use std::borrow::Cow;

use super::split::{Behaviour, Pattern, Pieces, cut_class};
use crate::error::EngineError;

/// GPT-2's rule.
pub(super) const GPT2: &str =
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";
/// Llama 3's rule: contractions in any case, digits in threes, line ends with what precedes them.
const LLAMA3: &str = r"'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD]|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// Qwen 2's rule: Llama 3's with single digits.
const QWEN2: &str = r"'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD]|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// Qwen 3.5's rule: Qwen 2's with marks counted among the letters.
const QWEN35: &str = r"'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD]|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// Mistral's Tekken rule: words also end where capitals begin.
const TEKKEN: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// Bloom's rule: what lies between blanks and the punctuation of many scripts, with the blank before.
const BLOOM: &str = r" ?[^(\s|.,!?…。，、।۔،)]+";
const DIGIT: &str = r"\p{N}";
const DIGITS: &str = r"\p{N}+";
const DIGITS_BY_THREE: &str = r"[0-9][0-9][0-9]";
const PUNCTUATION: &str = r"[\p{P}\$\+<=>\^~\|]+";
const PUNCTUATION_FALCON: &str = r"[\p{P}\$\+<=>\^~\|`]+";

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

impl Rule {
    const fn new(names: &'static [&'static str], stages: &'static [&'static str]) -> Self {
        Self { names, stages, ignore_merges: false, add_bos: false }
    }

    const fn whole_words_first(self) -> Self {
        Self { ignore_merges: true, ..self }
    }

    const fn with_bos(self) -> Self {
        Self { add_bos: true, ..self }
    }
}

/// The names and rules of llama.cpp (`llama-vocab.cpp`), for the families that we run.
const RULES: &[Rule] = &[
    Rule::new(&["gpt-2", "phi-2", "olmo", "jais", "mpt"], &[GPT2]),
    Rule::new(
        &["smollm", "starcoder", "refact", "command-r", "codeshell", "exaone"],
        &[DIGIT, GPT2],
    ),
    Rule::new(&["llama-bpe", "llama3", "llama-v3", "falcon3", "pixtral"], &[LLAMA3])
        .whole_words_first()
        .with_bos(),
    Rule::new(&["smaug-bpe", "dbrx", "glm4", "chatglm-bpe"], &[LLAMA3]),
    Rule::new(&["qwen2", "deepseek-r1-qwen", "megrez", "stablelm2"], &[QWEN2]),
    Rule::new(&["qwen35"], &[QWEN35]),
    Rule::new(&["tekken"], &[TEKKEN]).whole_words_first().with_bos(),
    Rule::new(&["bloom", "gpt3-finnish", "poro-chat"], &[BLOOM]),
    Rule::new(&["viking"], &[BLOOM, DIGIT]),
    Rule::new(&["falcon"], &[PUNCTUATION_FALCON, GPT2, DIGITS_BY_THREE]),
    Rule::new(&["default"], &[PUNCTUATION, GPT2, DIGITS, DIGITS_BY_THREE]),
];

/// When SentencePiece's blank is put before a piece.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Prepend {
    /// Before the piece that begins the input.
    First,
    Never,
    Always,
}

/// A class of characters at which to cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Class {
    Whitespace,
    Numeric,
    /// ASCII punctuation and symbols, and all that Unicode calls punctuation.
    Punctuation,
}

/// One way of cutting, applied to every piece that the one before left.
pub(super) enum Step {
    Split {
        pattern: Pattern,
        behaviour: Behaviour,
        invert: bool,
    },
    Class {
        class: Class,
        behaviour: Behaviour,
    },
    /// A blank before each piece that has none.
    PrefixBlank,
    /// Blanks become `replacement`, which also goes before the text and, on wish, begins each piece.
    Metaspace {
        replacement: char,
        prepend: Prepend,
        split: bool,
    },
}

/// Cuts text into words.
#[derive(Default)]
pub(super) struct PreTokenizer {
    pub(super) steps: Vec<Step>,
}

/// What a name in `tokenizer.ggml.pre` implies beyond the cutting.
pub(super) struct Implied {
    pub(super) ignore_merges: bool,
    pub(super) add_bos: bool,
}

impl PreTokenizer {
    /// # Errors
    /// [`EngineError::UnknownPreTokenizer`] naming `name` and what would have worked.
    pub(super) fn named(name: &str) -> Result<(Self, Implied), EngineError> {
        let rule = RULES.iter().find(|rule| rule.names.contains(&name)).ok_or_else(|| {
            let names: Vec<&str> =
                RULES.iter().flat_map(|rule| rule.names.iter().copied()).collect();
            EngineError::UnknownPreTokenizer {
                name: name.chars().take(64).collect(),
                supported: names.join(", "),
            }
        })?;
        let isolated =
            |pattern| Step::Split { pattern, behaviour: Behaviour::Isolated, invert: false };
        let pattern = |stage: &&str| Pattern::new("tokenizer.ggml.pre", stage).map(isolated);
        let steps = rule.stages.iter().map(pattern).collect::<Result<_, _>>()?;
        Ok((Self { steps }, Implied { ignore_merges: rule.ignore_merges, add_bos: rule.add_bos }))
    }

    /// The words of `text`, in order. `begins` says that the text is the beginning of the input.
    pub(super) fn words<'t>(&self, text: Cow<'t, str>, begins: bool) -> Vec<Cow<'t, str>> {
        let mut pieces = vec![text];
        for step in &self.steps {
            let mut next = Vec::with_capacity(pieces.len());
            for (index, piece) in pieces.into_iter().enumerate() {
                step.apply(piece, begins && index == 0, &mut next);
            }
            pieces = next;
        }
        pieces
    }
}

impl Step {
    fn apply<'t>(&self, text: Cow<'t, str>, begins: bool, out: &mut Vec<Cow<'t, str>>) {
        match self {
            Self::Split { pattern, behaviour, invert } => {
                let mut pieces = Pieces::new(text.clone(), *behaviour, out);
                pattern.cut(&text, &mut |range, is_match| pieces.push(range, is_match != *invert));
                pieces.finish();
            }
            Self::Class { class, behaviour } => {
                let mut pieces = Pieces::new(text.clone(), *behaviour, out);
                let is_of = |character| class.contains(character);
                cut_class(&text, is_of, &mut |range, is_match| pieces.push(range, is_match));
                pieces.finish();
            }
            Self::PrefixBlank if text.starts_with(' ') => out.push(text),
            Self::PrefixBlank => out.push(Cow::Owned(format!(" {text}"))),
            Self::Metaspace { replacement, prepend, split } => {
                let mut replaced = text.replace(' ', replacement.encode_utf8(&mut [0; 4]));
                let wanted = match prepend {
                    Prepend::Always => true,
                    Prepend::First => begins,
                    Prepend::Never => false,
                };
                if wanted && !replaced.starts_with(*replacement) {
                    replaced.insert(0, *replacement);
                }
                let is_blank = |character| *split && character == *replacement;
                let text: Cow<'t, str> = Cow::Owned(replaced);
                let mut pieces = Pieces::new(text.clone(), Behaviour::MergedWithNext, out);
                cut_class(&text, is_blank, &mut |range, is_match| pieces.push(range, is_match));
                pieces.finish();
            }
        }
    }
}

impl Class {
    fn contains(self, character: char) -> bool {
        match self {
            Self::Whitespace => character.is_whitespace(),
            Self::Numeric => character.is_numeric(),
            Self::Punctuation => super::normalize::is_punctuation(character),
        }
    }
}

#[cfg(test)]
mod tests;
