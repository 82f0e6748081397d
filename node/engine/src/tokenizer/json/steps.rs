//! The parts of `tokenizer.json` around the model.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde::de::IgnoredAny;

use crate::error::EngineError;
use crate::tokenizer::Surface;
use crate::tokenizer::charsmap::Charsmap;
use crate::tokenizer::normalize::Step as Normalize;
use crate::tokenizer::pre::{Class, GPT2, PreTokenizer, Prepend, Step};
use crate::tokenizer::split::{Behaviour, Pattern};
use crate::tokenizer::vocab::{TokenKind, Vocab, broken};

/// More steps than any known pipeline has; each passes over the text once.
const STEPS_LEN_MAX: usize = 32;
/// Tokens around an input; a handful is known.
const AROUND_LEN_MAX: usize = 64;
/// Longest text that one match may be replaced by.
const CONTENT_BYTES_MAX: usize = 64;

#[derive(Deserialize)]
pub(super) enum RawPattern {
    String(String),
    Regex(String),
}

impl RawPattern {
    fn compile(&self, key: &str) -> Result<Pattern, EngineError> {
        match self {
            Self::String(text) => Pattern::literal(key, text),
            Self::Regex(expression) => Pattern::new(key, expression),
        }
    }
}

#[derive(Deserialize)]
#[serde(tag = "type", deny_unknown_fields)]
pub(super) enum RawNormalizer {
    Sequence {
        normalizers: Vec<RawNormalizer>,
    },
    #[serde(rename = "NFC")]
    Nfc,
    #[serde(rename = "NFD")]
    Nfd,
    #[serde(rename = "NFKC")]
    Nfkc,
    #[serde(rename = "NFKD")]
    Nfkd,
    Lowercase,
    StripAccents,
    Strip {
        strip_left: bool,
        strip_right: bool,
    },
    Prepend {
        prepend: String,
    },
    Replace {
        pattern: RawPattern,
        content: String,
    },
    BertNormalizer {
        clean_text: bool,
        handle_chinese_chars: bool,
        strip_accents: Option<bool>,
        lowercase: bool,
    },
    Precompiled {
        precompiled_charsmap: String,
    },
}

/// The steps of a normaliser, in order.
pub(super) fn normalizer(raw: RawNormalizer) -> Result<Vec<Normalize>, EngineError> {
    let mut steps = Vec::new();
    add_normalizer(raw, &mut steps)?;
    Ok(steps)
}

fn add_normalizer(raw: RawNormalizer, steps: &mut Vec<Normalize>) -> Result<(), EngineError> {
    let short = |text: &str| match text.len() {
        0..=CONTENT_BYTES_MAX => Ok(()),
        len => Err(broken(format!("a normaliser adds {len} bytes, at most {CONTENT_BYTES_MAX}"))),
    };
    let step = match raw {
        RawNormalizer::Sequence { normalizers } => {
            return normalizers.into_iter().try_for_each(|raw| add_normalizer(raw, steps));
        }
        RawNormalizer::Nfc => Normalize::Nfc,
        RawNormalizer::Nfd => Normalize::Nfd,
        RawNormalizer::Nfkc => Normalize::Nfkc,
        RawNormalizer::Nfkd => Normalize::Nfkd,
        RawNormalizer::Lowercase => Normalize::Lowercase,
        RawNormalizer::StripAccents => Normalize::StripAccents,
        RawNormalizer::Strip { strip_left, strip_right } => {
            Normalize::Strip { left: strip_left, right: strip_right }
        }
        RawNormalizer::Prepend { prepend } => {
            short(&prepend)?;
            Normalize::Prepend(prepend)
        }
        RawNormalizer::Replace { pattern, content } => {
            short(&content)?;
            Normalize::Replace { pattern: pattern.compile("tokenizer.json normalizer")?, content }
        }
        RawNormalizer::BertNormalizer {
            clean_text,
            handle_chinese_chars,
            strip_accents,
            lowercase,
        } => Normalize::Bert {
            clean_text,
            handle_chinese_chars,
            strip_accents: strip_accents.unwrap_or(lowercase),
            lowercase,
        },
        RawNormalizer::Precompiled { precompiled_charsmap } => {
            let bytes = data_encoding::BASE64
                .decode(precompiled_charsmap.as_bytes())
                .map_err(|_| broken("precompiled_charsmap is not base64"))?;
            Normalize::Precompiled(Box::new(Charsmap::new(&bytes)?))
        }
    };
    bounded(steps.len())?;
    steps.push(step);
    Ok(())
}

#[derive(Deserialize)]
#[serde(tag = "type", deny_unknown_fields)]
pub(super) enum RawPreTokenizer {
    Sequence {
        pretokenizers: Vec<RawPreTokenizer>,
    },
    ByteLevel {
        add_prefix_space: bool,
        #[serde(default, rename = "trim_offsets")]
        _trim_offsets: IgnoredAny,
        #[serde(default = "yes")]
        use_regex: bool,
    },
    Split {
        pattern: RawPattern,
        behavior: Behaviour,
        invert: bool,
    },
    Digits {
        individual_digits: bool,
    },
    Metaspace {
        replacement: char,
        #[serde(default)]
        add_prefix_space: Option<bool>,
        #[serde(default)]
        prepend_scheme: Option<Prepend>,
        #[serde(default)]
        split: Option<bool>,
        #[serde(default, rename = "str_rep")]
        _str_rep: IgnoredAny,
    },
    BertPreTokenizer,
    Whitespace,
    WhitespaceSplit,
    Punctuation {
        #[serde(default = "isolated")]
        behavior: Behaviour,
    },
}

fn yes() -> bool {
    true
}

fn isolated() -> Behaviour {
    Behaviour::Isolated
}

/// The steps of a pre-tokenizer, and whether the words are then written in GPT-2's characters.
pub(super) fn pre_tokenizer(raw: RawPreTokenizer) -> Result<(PreTokenizer, bool), EngineError> {
    let (mut pre, mut byte_level) = (PreTokenizer::default(), false);
    add_pre_tokenizer(raw, &mut pre.steps, &mut byte_level)?;
    Ok((pre, byte_level))
}

fn add_pre_tokenizer(
    raw: RawPreTokenizer,
    steps: &mut Vec<Step>,
    byte_level: &mut bool,
) -> Result<(), EngineError> {
    const KEY: &str = "tokenizer.json pre_tokenizer";
    if *byte_level {
        // What comes after would see GPT-2's characters instead of text; no known file does that.
        return Err(EngineError::UnsupportedFeature {
            key: KEY.to_owned(),
            value: "ByteLevel".to_owned(),
            reason: "it must be the last of its sequence",
        });
    }
    bounded(steps.len())?;
    let class = |class, behaviour| Step::Class { class, behaviour };
    match raw {
        RawPreTokenizer::Sequence { pretokenizers } => {
            for raw in pretokenizers {
                add_pre_tokenizer(raw, steps, byte_level)?;
            }
        }
        RawPreTokenizer::ByteLevel { add_prefix_space, use_regex, .. } => {
            *byte_level = true;
            steps.extend(add_prefix_space.then_some(Step::PrefixBlank));
            if use_regex {
                let pattern = Pattern::new(KEY, GPT2)?;
                steps.push(Step::Split { pattern, behaviour: Behaviour::Isolated, invert: false });
            }
        }
        RawPreTokenizer::Split { pattern, behavior, invert } => {
            let pattern = pattern.compile(KEY)?;
            steps.push(Step::Split { pattern, behaviour: behavior, invert });
        }
        RawPreTokenizer::Digits { individual_digits: true } => {
            steps.push(class(Class::Numeric, Behaviour::Isolated));
        }
        RawPreTokenizer::Digits { individual_digits: false } => {
            steps.push(class(Class::Numeric, Behaviour::Contiguous));
        }
        RawPreTokenizer::Metaspace {
            replacement, add_prefix_space, prepend_scheme, split, ..
        } => {
            // The older setting knows always and never only.
            let prepend = match (add_prefix_space, prepend_scheme) {
                (Some(false), None | Some(Prepend::Never)) => Prepend::Never,
                (Some(false), Some(_)) => {
                    return Err(EngineError::metadata(
                        KEY,
                        "add_prefix_space contradicts prepend_scheme",
                    ));
                }
                (_, scheme) => scheme.unwrap_or(Prepend::Always),
            };
            steps.push(Step::Metaspace { replacement, prepend, split: split.unwrap_or(true) });
        }
        RawPreTokenizer::BertPreTokenizer => {
            steps.push(class(Class::Whitespace, Behaviour::Removed));
            steps.push(class(Class::Punctuation, Behaviour::Isolated));
        }
        RawPreTokenizer::Whitespace => steps.push(Step::Split {
            pattern: Pattern::new(KEY, r"\w+|[^\w\s]+")?,
            behaviour: Behaviour::Removed,
            invert: true,
        }),
        RawPreTokenizer::WhitespaceSplit => {
            steps.push(class(Class::Whitespace, Behaviour::Removed));
        }
        RawPreTokenizer::Punctuation { behavior } => {
            steps.push(class(Class::Punctuation, behavior));
        }
    }
    Ok(())
}

fn bounded(len: usize) -> Result<(), EngineError> {
    if len < STEPS_LEN_MAX {
        Ok(())
    } else {
        Err(broken(format!("more than {STEPS_LEN_MAX} steps")))
    }
}

#[derive(Deserialize)]
#[serde(tag = "type")]
pub(super) enum RawPostProcessor {
    Sequence {
        processors: Vec<RawPostProcessor>,
    },
    TemplateProcessing {
        single: Vec<Piece>,
        special_tokens: BTreeMap<String, SpecialToken>,
    },
    BertProcessing {
        sep: (String, u32),
        cls: (String, u32),
    },
    RobertaProcessing {
        sep: (String, u32),
        cls: (String, u32),
    },
    /// Only touches offsets.
    ByteLevel {},
}

#[derive(Deserialize)]
pub(super) enum Piece {
    Sequence { id: String },
    SpecialToken { id: String },
}

#[derive(Deserialize)]
pub(super) struct SpecialToken {
    ids: Vec<u32>,
}

/// The tokens that go before and after an input.
pub(super) fn around(
    raw: RawPostProcessor,
    vocab: &Vocab,
) -> Result<(Vec<u32>, Vec<u32>), EngineError> {
    let (mut before, mut after) = (Vec::new(), Vec::new());
    add_around(raw, &mut before, &mut after)?;
    if before.len() + after.len() > AROUND_LEN_MAX {
        return Err(broken(format!("more than {AROUND_LEN_MAX} tokens around an input")));
    }
    match before.iter().chain(&after).find(|&&id| id as usize >= vocab.len()) {
        Some(id) => Err(broken(format!("post_processor adds {id}, which is no token"))),
        None => Ok((before, after)),
    }
}

fn add_around(
    raw: RawPostProcessor,
    before: &mut Vec<u32>,
    after: &mut Vec<u32>,
) -> Result<(), EngineError> {
    match raw {
        RawPostProcessor::Sequence { processors } => {
            for raw in processors {
                add_around(raw, before, after)?;
            }
        }
        RawPostProcessor::TemplateProcessing { single, special_tokens } => {
            let (mut begin, mut end, mut inputs) = (Vec::new(), Vec::new(), 0);
            for piece in single {
                match piece {
                    Piece::Sequence { id } if id == "A" => inputs += 1,
                    Piece::Sequence { id } => {
                        return Err(broken(format!("post_processor asks for a sequence {id:.8}")));
                    }
                    Piece::SpecialToken { id } => {
                        let token = special_tokens.get(&id).ok_or_else(|| {
                            broken(format!("post_processor does not say what {id:.64} is"))
                        })?;
                        if inputs == 0 { &mut begin } else { &mut end }.extend(&token.ids);
                    }
                }
            }
            if inputs != 1 {
                return Err(broken(format!("post_processor takes {inputs} inputs instead of one")));
            }
            before.splice(..0, begin);
            after.extend(end);
        }
        RawPostProcessor::BertProcessing { sep, cls }
        | RawPostProcessor::RobertaProcessing { sep, cls } => {
            before.insert(0, cls.1);
            after.push(sep.1);
        }
        RawPostProcessor::ByteLevel {} => {}
    }
    Ok(())
}

#[derive(Deserialize)]
#[serde(tag = "type")]
pub(super) enum RawDecoder {
    Sequence {
        decoders: Vec<RawDecoder>,
    },
    ByteLevel {},
    ByteFallback {},
    /// Joins tokens, as everything here does.
    Fuse {},
    /// Takes the blank off the beginning of a whole text, which a continuation keeps.
    Strip {},
    Replace {
        pattern: RawPattern,
        content: String,
    },
    Metaspace {
        replacement: char,
    },
    WordPiece {
        prefix: String,
    },
}

/// How tokens are shown. Marks the byte tokens where there are any.
pub(super) fn surface(raw: RawDecoder, vocab: &mut Vocab) -> Result<Surface, EngineError> {
    let mut surface = Surface::Plain;
    add_surface(raw, vocab, &mut surface)?;
    Ok(surface)
}

fn add_surface(
    raw: RawDecoder,
    vocab: &mut Vocab,
    surface: &mut Surface,
) -> Result<(), EngineError> {
    match raw {
        RawDecoder::Sequence { decoders } => {
            for raw in decoders {
                add_surface(raw, vocab, surface)?;
            }
        }
        RawDecoder::ByteLevel {} => *surface = Surface::ByteLevel,
        RawDecoder::ByteFallback {} => {
            let ids = vocab.byte_tokens(|_| true);
            ids.into_iter().flatten().for_each(|id| vocab.set_kind(id, TokenKind::Byte));
        }
        RawDecoder::Fuse {} | RawDecoder::Strip {} => {}
        RawDecoder::Replace { pattern: RawPattern::String(text), content }
            if content == " " && text.chars().count() == 1 =>
        {
            *surface = text.chars().next().map_or(Surface::Plain, Surface::Blanks);
        }
        RawDecoder::Replace { .. } => {
            return Err(EngineError::UnsupportedFeature {
                key: "tokenizer.json decoder".to_owned(),
                value: "Replace".to_owned(),
                reason: "it may turn one character into a blank, nothing else",
            });
        }
        RawDecoder::Metaspace { replacement } => *surface = Surface::Blanks(replacement),
        RawDecoder::WordPiece { prefix } => *surface = Surface::Continued(prefix),
    }
    Ok(())
}
