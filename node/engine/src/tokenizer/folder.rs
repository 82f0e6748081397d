//! Tokenizers from the folder of a model: `tokenizer.json` and what other files say of its tokens.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use serde::{Deserialize, de::DeserializeOwned};

use super::Tokenizer;
use super::json::{FILE_BYTES_MAX, Role, Roles};
use crate::error::EngineError;
use crate::template;

/// Configurations have a few KiB; those of tokenizers list all added tokens and reach some 1.2 MiB.
const CONFIG_BYTES_MAX: usize = 8 << 20;

/// `tokenizer_config.json`, of which most describes Python classes.
#[derive(Default, Deserialize)]
#[serde(default)]
struct TokenizerConfig {
    bos_token: Option<TokenText>,
    eos_token: Option<TokenText>,
    add_bos_token: Option<bool>,
    add_eos_token: Option<bool>,
    chat_template: Option<Templates>,
}

/// A token, written as its text or as an object around it.
#[derive(Deserialize)]
#[serde(untagged)]
enum TokenText {
    Text(String),
    Token { content: String },
}

/// One template, or several by name.
#[derive(Deserialize)]
#[serde(untagged)]
enum Templates {
    One(String),
    Named(Vec<Named>),
}

#[derive(Deserialize)]
struct Named {
    name: String,
    template: String,
}

/// What `generation_config.json` and `config.json` say of tokens.
#[derive(Default, Deserialize)]
#[serde(default)]
struct ModelConfig {
    bos_token_id: Option<Ids>,
    eos_token_id: Option<Ids>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Ids {
    One(u32),
    Several(Vec<u32>),
}

impl Tokenizer {
    /// Reads the tokenizer of the model in `folder`, and the source of its chat template if it has one.
    ///
    /// The end of an answer is every token that `tokenizer_config.json`, `generation_config.json` or
    /// `config.json` gives as end of sequence, and control tokens that are known to end a turn.
    ///
    /// # Errors
    /// [`EngineError::Io`] for a file that cannot be read; otherwise what is wrong with which file.
    pub(crate) fn from_folder(folder: &Path) -> Result<(Self, Option<String>), EngineError> {
        let path = folder.join("tokenizer.json");
        let bytes = read(&path, FILE_BYTES_MAX)?
            .ok_or_else(|| EngineError::Io { path, source: std::io::ErrorKind::NotFound.into() })?;
        let config: TokenizerConfig = config(folder, "tokenizer_config.json")?;
        let generation: ModelConfig = self::config(folder, "generation_config.json")?;
        let model: ModelConfig = self::config(folder, "config.json")?;
        let role = |text: Option<TokenText>, ids: [&Option<Ids>; 2]| {
            let by_text = text.map(|token| match token {
                TokenText::Text(content) | TokenText::Token { content } => Role::Text(content),
            });
            let first = || ids.into_iter().flatten().find_map(|ids| ids.iter().next());
            by_text.or_else(|| first().map(Role::Id))
        };
        let ends = [&generation.eos_token_id, &model.eos_token_id];
        let roles = Roles {
            bos: role(config.bos_token, [&generation.bos_token_id, &model.bos_token_id]),
            eos: role(config.eos_token, ends),
            ends: ends.into_iter().flatten().flat_map(Ids::iter).collect(),
            add_bos: config.add_bos_token,
            add_eos: config.add_eos_token,
        };
        Ok((Self::from_json(&bytes, &roles)?, template(folder, config.chat_template)?))
    }
}

/// The source of the chat template of the model in `folder`, if it has one.
///
/// # Errors
/// What is wrong with which file.
pub(crate) fn chat_template(folder: &Path) -> Result<Option<String>, EngineError> {
    let config: TokenizerConfig = config(folder, "tokenizer_config.json")?;
    template(folder, config.chat_template)
}

/// A file of its own goes before the template in the configuration.
fn template(folder: &Path, configured: Option<Templates>) -> Result<Option<String>, EngineError> {
    match read(&folder.join("chat_template.jinja"), template::SOURCE_BYTES_MAX)? {
        Some(source) => match String::from_utf8(source) {
            Ok(source) => Ok(Some(source)),
            Err(_) => Err(EngineError::metadata("chat_template.jinja", "is not UTF-8")),
        },
        None => Ok(configured.and_then(Templates::chosen)),
    }
}

impl Templates {
    /// The template for chats without tools.
    fn chosen(self) -> Option<String> {
        match self {
            Self::One(template) => Some(template),
            Self::Named(named) => {
                named.into_iter().find(|named| named.name == "default").map(|named| named.template)
            }
        }
    }
}

impl Ids {
    fn iter(&self) -> impl Iterator<Item = u32> {
        match self {
            Self::One(id) => std::slice::from_ref(id),
            Self::Several(ids) => ids.as_slice(),
        }
        .iter()
        .copied()
    }
}

/// A configuration file, or its default when there is none.
fn config<T: Default + DeserializeOwned>(folder: &Path, name: &str) -> Result<T, EngineError> {
    match read(&folder.join(name), CONFIG_BYTES_MAX)? {
        None => Ok(T::default()),
        Some(bytes) => serde_json::from_slice(&bytes).map_err(|error| {
            let problem: String = error.to_string().chars().take(512).collect();
            EngineError::metadata(name, problem)
        }),
    }
}

/// The bytes of a file of bounded size; None when there is no such file.
fn read(path: &Path, bytes_max: usize) -> Result<Option<Vec<u8>>, EngineError> {
    let io = |source| EngineError::Io { path: path.to_owned(), source };
    // Asked before opening, which would wait for a writer if the path were a pipe.
    match std::fs::metadata(path) {
        Ok(metadata) if metadata.is_file() => {}
        Ok(_) => return Err(io(std::io::Error::other("not a regular file"))),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(io(error)),
    }
    let mut bytes = Vec::new();
    let file = File::open(path).map_err(io)?;
    file.take(bytes_max as u64 + 1).read_to_end(&mut bytes).map_err(io)?;
    if bytes.len() > bytes_max {
        return Err(io(std::io::Error::other(format!("more than {bytes_max} bytes"))));
    }
    Ok(Some(bytes))
}

#[cfg(test)]
mod tests;
