//! What hostile files can reach, for the fuzzing harness (`examples/fuzz.rs`) and the replay of its corpus
//! (`tests/fuzz.rs`). Not an interface for anybody else.
//!
//! A target takes bytes, does with them what loading a model or answering a request would, and says in a
//! line what came of it. Panics, time and memory are the harness's business.

use std::collections::BTreeSet;

use crate::error::EngineError;
use crate::files::gguf::Gguf;
use crate::files::safetensors;
use crate::spec;
use crate::template::{ChatMessage, ChatTemplate};
use crate::tokenizer::Tokenizer;

/// Texts that every tokenizer that can be built has to take.
const TEXTS: [&str; 5] = [
    "",
    "Hello  wörld, it's 12345!\n\n  fine\t— ①Ⅷ ﬁ 漢字かな  x\u{301}y (a|b) 😀</s><|im_end|>",
    "      \r\n \u{a0}\u{2581}\u{2581}a\0b\u{feff}\u{fffd}",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
    "<s><s><unk>[CLS]the ##s<0x0A>",
];

/// What can be fuzzed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// A GGUF file: header, description, tokenizer, template.
    Gguf,
    /// A safetensors file: its header.
    Safetensors,
    /// `config.json`.
    Config,
    /// `tokenizer.json`, then a NUL byte and a text to encode.
    Tokenizer,
    /// A chat template, then a NUL byte and what the user says.
    Template,
}

impl Target {
    /// All of them.
    pub const ALL: [Self; 5] =
        [Self::Gguf, Self::Safetensors, Self::Config, Self::Tokenizer, Self::Template];

    /// The name on the command line and of the folder with the corpus.
    pub fn name(self) -> &'static str {
        match self {
            Self::Gguf => "gguf",
            Self::Safetensors => "safetensors",
            Self::Config => "config",
            Self::Tokenizer => "tokenizer",
            Self::Template => "template",
        }
    }

    /// The most memory that an input of so many bytes may take.
    ///
    /// # Units
    /// Bytes of heap beyond the input itself.
    pub fn bytes_max(self, input_bytes: usize) -> usize {
        // Tables of a description do not grow with the file: 4,096 layers of a few hundred bytes, rotation
        // frequencies, compiled expressions. What grows does so by a factor.
        let (fixed, factor) = match self {
            Self::Gguf => (48 << 20, 64),
            Self::Safetensors => (1 << 20, 64),
            Self::Config => (16 << 20, 256),
            Self::Tokenizer => (64 << 20, 256),
            // All the fuel turned into bytes, held once more by the output and once by a value.
            Self::Template => (256 << 20, 1_024),
        };
        fixed + factor * input_bytes
    }

    /// Runs the target and names the outcome.
    pub fn run(self, input: &[u8]) -> String {
        let outcome = match self {
            Self::Gguf => gguf(input),
            Self::Safetensors => match safetensors::parse(input) {
                Ok(tensors) => Ok(format!("{} tensors", tensors.len().min(3))),
                Err(error) => Err(error.to_string()),
            },
            Self::Config => match spec::config::read(input) {
                Ok((spec, _)) => Ok(format!("{:?} {:?}", spec.kind, spec.norm)),
                Err(error) => Err(error.to_string()),
            },
            Self::Tokenizer => tokenizer(input).map_err(|error| error.to_string()),
            Self::Template => template(input),
        };
        match outcome {
            Ok(outcome) => format!("ok: {outcome}"),
            Err(error) => format!("refused: {error}"),
        }
    }
}

fn gguf(input: &[u8]) -> Result<String, String> {
    let gguf = Gguf::parse(input).map_err(|error| format!("header: {error}"))?;
    let described = spec::gguf::read(&gguf).map(|(spec, _)| spec.layers.len());
    let tokenizer = Tokenizer::from_gguf(&gguf);
    let encoded = match &tokenizer {
        Ok(tokenizer) => Ok(encode(tokenizer, "").map_err(|error| error.to_string())?),
        Err(error) => Err(error.to_string()),
    };
    let described = described.map_err(|error| error.to_string());
    Ok(format!("{described:?} {encoded:?}"))
}

fn tokenizer(input: &[u8]) -> Result<String, EngineError> {
    let (file, text) = split(input);
    let tokenizer = Tokenizer::from_json_alone(file)?;
    encode(&tokenizer, &String::from_utf8_lossy(text))
}

fn encode(tokenizer: &Tokenizer, text: &str) -> Result<String, EngineError> {
    let mut shown = BTreeSet::new();
    for text in TEXTS.into_iter().chain([text]) {
        for id in tokenizer.encode_document(text)? {
            shown.insert((tokenizer.bytes(id).len().min(4), tokenizer.is_end(id)));
        }
    }
    let begins = tokenizer.encode_prompt("")?.len().min(2);
    Ok(format!("{} {begins} {shown:?}", tokenizer.len().min(1)))
}

fn template(input: &[u8]) -> Result<String, String> {
    let (source, content) = split(input);
    let source = std::str::from_utf8(source).map_err(|_| "not text".to_owned())?;
    let template =
        ChatTemplate::compile(source, "<s>", "</s>").map_err(|error| error.to_string())?;
    let turn = |role: &str, content: &str| ChatMessage {
        role: role.to_owned(),
        content: content.to_owned(),
    };
    let content = String::from_utf8_lossy(content);
    let messages = [
        turn("system", "Be brief."),
        turn("user", &content),
        turn("assistant", "<think>a</think>b"),
    ];
    let mut outcomes = Vec::new();
    for (messages, open) in [(&messages[..], true), (&messages[1..2], false), (&[], true)] {
        outcomes.push(match template.render(messages, 1_795_444_245, open) {
            Ok(text) => format!("{}", text.len().min(1)),
            Err(error) => error.to_string(),
        });
    }
    Ok(outcomes.join("; "))
}

/// What comes before the first NUL byte, and what comes after it.
fn split(input: &[u8]) -> (&[u8], &[u8]) {
    let at = input.iter().position(|&byte| byte == 0).unwrap_or(input.len());
    let (first, rest) = input.split_at(at);
    (first, rest.get(1..).unwrap_or_default())
}
