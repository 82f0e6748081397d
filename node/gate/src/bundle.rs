//! An adapter as one byte string (specs/adapter.md §1): content-addressed, in one form, read without
//! trust.

use std::io::{self, Write};
use std::path::Path;

use allmend_protocol::bytes::ByteString;
use allmend_protocol::encoding;
use allmend_protocol::ids::Digest;
use serde::{Deserialize, Serialize};

use crate::declared::{Declared, Dtype};
use crate::header;
use crate::inspect::AdapterLimits;
use crate::peft::{CONFIG_BYTES_MAX, PeftConfig};
use crate::stop::Stop;

/// The most bytes of a bundle.
pub const BUNDLE_BYTES_MAX: usize = (512 << 20) + (1 << 20);
/// The most bytes of a model card.
pub(crate) const CARD_BYTES_MAX: usize = 64 << 10;
/// A header lists some thousand tensors at most.
const HEADER_BYTES_MAX: u64 = 4 << 20;

const FORMAT: &str = "allmend-adapter-v1";
const CONFIG: &str = "adapter_config.json";
const MODEL: &str = "adapter_model.safetensors";
const CARD: &str = "README.md";

/// Why bytes are no adapter.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BundleError {
    /// Not the one encoding of three files.
    #[error("not an adapter: {0}")]
    Encoding(#[from] encoding::DecodeError),
    /// One of the files is not what it must be.
    #[error("not an adapter: {file} {problem}")]
    File {
        /// Which one.
        file: &'static str,
        /// What is wrong.
        problem: String,
    },
}

/// An adapter in PEFT's format, with its model card.
#[derive(Clone, PartialEq)]
pub struct Bundle {
    config: PeftConfig,
    declared: Declared,
    files: Files,
}

impl std::fmt::Debug for Bundle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let tensors = self.declared.tensors().len();
        write!(f, "Bundle({tensors} tensors, {} bytes)", self.files.model.0.len())
    }
}

#[derive(Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Outer {
    format: String,
    files: Files,
}

#[derive(Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Files {
    #[serde(rename = "README.md")]
    card: ByteString,
    #[serde(rename = "adapter_config.json")]
    config: ByteString,
    #[serde(rename = "adapter_model.safetensors")]
    model: ByteString,
}

impl Bundle {
    /// Puts three files together. They are checked as if a stranger had sent them.
    pub(crate) fn of(
        config: &PeftConfig,
        model: Vec<u8>,
        card: String,
    ) -> Result<Bundle, BundleError> {
        Bundle::check(Files {
            card: ByteString(card.into_bytes()),
            config: ByteString(config.file()),
            model: ByteString(model),
        })
    }

    /// Puts the three files of a folder together, which are checked as if a stranger had sent them: those that
    /// [`Bundle::unpack`] wrote give the same bundle again.
    ///
    /// # Errors
    /// [`BundleError`] for anything but an adapter.
    pub fn from_files(config: &[u8], model: &[u8], card: &[u8]) -> Result<Bundle, BundleError> {
        Bundle::check(Files {
            card: ByteString(card.to_vec()),
            config: ByteString(config.to_vec()),
            model: ByteString(model.to_vec()),
        })
    }

    /// Reads an adapter that came from elsewhere.
    ///
    /// Memory is at most three times the length of `bytes`, which may be [`BUNDLE_BYTES_MAX`].
    ///
    /// # Errors
    /// [`BundleError`] for anything but the one encoding of an adapter.
    pub fn read(bytes: &[u8]) -> Result<Bundle, BundleError> {
        let outer: Outer = encoding::decode(bytes, BUNDLE_BYTES_MAX)?;
        if outer.format != FORMAT {
            let problem = format!("the format must be {FORMAT}");
            return Err(encoding::DecodeError::Malformed(problem).into());
        }
        Bundle::check(outer.files)
    }

    /// The one byte string.
    pub fn to_bytes(&self) -> Vec<u8> {
        let outer = Outer { format: FORMAT.to_owned(), files: self.files.clone() };
        encoding::encode(&outer)
    }

    /// The adapter's id: SHA-256 of the byte string.
    pub fn id(&self) -> Digest {
        Digest::of(&self.to_bytes())
    }

    /// What it says of itself to PEFT.
    pub fn config(&self) -> &PeftConfig {
        &self.config
    }

    /// Its tensors.
    pub fn declared(&self) -> &Declared {
        &self.declared
    }

    /// Its values, as a safetensors file.
    pub fn safetensors(&self) -> &[u8] {
        &self.files.model.0
    }

    /// Its model card, in Markdown.
    pub fn card(&self) -> &str {
        // Checked when it was made.
        std::str::from_utf8(&self.files.card.0).unwrap_or_default()
    }

    /// Writes the three files into `folder`, which must not exist yet.
    ///
    /// Names are ours, never the bundle's. What was begun and failed is taken away again.
    ///
    /// # Errors
    /// What the disk says.
    pub fn unpack(&self, folder: &Path) -> io::Result<()> {
        std::fs::create_dir(folder)?;
        let files =
            [(CONFIG, &self.files.config), (MODEL, &self.files.model), (CARD, &self.files.card)];
        let written = files.iter().try_for_each(|(name, bytes)| {
            let mut file = std::fs::File::create_new(folder.join(name))?;
            file.write_all(&bytes.0)?;
            file.sync_all()
        });
        if written.is_err() {
            // The first error is the one that matters.
            let _ = std::fs::remove_dir_all(folder);
        }
        written
    }

    fn check(files: Files) -> Result<Bundle, BundleError> {
        let wrong = |file, problem: &str| BundleError::File { file, problem: problem.to_owned() };
        let config = PeftConfig::read(&files.config.0).map_err(|problem| wrong(CONFIG, problem))?;
        if config.file().len() > CONFIG_BYTES_MAX {
            return Err(wrong(CONFIG, "is longer than any"));
        }
        let card = std::str::from_utf8(&files.card.0).map_err(|_| wrong(CARD, "is not UTF-8"))?;
        let text = |c: char| c == '\n' || !c.is_control();
        if files.card.0.len() > CARD_BYTES_MAX || !card.chars().all(text) {
            return Err(wrong(CARD, "is too long or is no text"));
        }
        let declared =
            declared(&files.model.0, &config).map_err(|problem| wrong(MODEL, &problem))?;
        let limits = AdapterLimits {
            bytes_max: BUNDLE_BYTES_MAX as u64,
            factor_norm_max_milli: u64::MAX,
            update_norm_max_milli: u64::MAX,
        };
        let len = files.model.0.len() as u64;
        // The same reading as at the gate; norms are the gate's business.
        crate::inspect::inspect(files.model.0.as_slice(), len, &declared, &limits).map_err(
            |stops| wrong(MODEL, stops.first().map_or("", |stop: &Stop| stop.text.as_str())),
        )?;
        Ok(Bundle { config, declared, files })
    }
}

/// What a safetensors file declares, if it is a LoRA adapter of this rank.
fn declared(file: &[u8], config: &PeftConfig) -> Result<Declared, String> {
    let (len, rest) = file.split_first_chunk::<8>().ok_or("has no header")?;
    let len = u64::from_le_bytes(*len);
    if len > HEADER_BYTES_MAX {
        return Err("has a header longer than any".to_owned());
    }
    // At most 4 MiB: the cast is exact.
    let header = rest.get(..len as usize).ok_or("ends within its header")?;
    let mut tensors = Vec::new();
    for (name, dtype, shape) in header::listed(header).ok_or("has a damaged header")? {
        let dtype = [Dtype::F32, Dtype::F16, Dtype::Bf16].into_iter().find(|d| d.name() == dtype);
        let dtype = dtype.ok_or("has a tensor that is not of floats")?;
        let shape = shape.into_iter().map(usize::try_from).collect::<Result<Vec<_>, _>>();
        tensors.push((name, shape.map_err(|_| "has a tensor too large")?, dtype));
    }
    Declared::new(config.r, config.lora_alpha, tensors).map_err(|error| error.problem.to_owned())
}
