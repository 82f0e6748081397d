//! Signed notes: a text, a blank line, signature lines (C2SP signed-note, specs/log.md §5).
//!
//! Only the Ed25519 signature type is made and checked here. Lines of other keys, such as the
//! cosignatures of witnesses, are kept as they stand for whoever knows them.

use std::fmt;
use std::str::FromStr;

use data_encoding::{BASE64, HEXLOWER};
use ed25519_dalek::{Signature, Signer as _, SigningKey, VerifyingKey};
use sha2::{Digest as _, Sha256};

/// Signature type byte of plain Ed25519.
pub const TYPE_ED25519: u8 = 0x01;
/// Signature type byte of timestamped Ed25519 witness cosignatures.
pub const TYPE_COSIGNATURE: u8 = 0x04;

/// The longest note read: a checkpoint with some hundred witnesses is far below it.
pub const NOTE_BYTES_MAX: usize = 64 * 1024;
/// The most signature lines read; more witnesses than this add nothing.
pub const SIGNATURES_MAX: usize = 100;
/// The longest key name.
pub const NAME_BYTES_MAX: usize = 255;
/// The longest signature of one line, in bytes; room for post-quantum ones.
const SIGNATURE_BYTES_MAX: usize = 8 * 1024;

/// Why a note, a key or a name is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoteError {
    /// A key name is empty, too long, or holds a space, a plus sign or a control character.
    #[error("a key name is 1 to 255 bytes without spaces, '+' or control characters")]
    Name,
    /// A verifier key line is not `name+id+base64`, or its id is not that of its key.
    #[error("not a verifier key line")]
    Key,
    /// The key has another signature type, is no curve point, or is weak.
    #[error("not a usable Ed25519 key")]
    KeyType,
    /// The note is too large, not UTF-8, or not a text with signature lines.
    #[error("not a signed note")]
    Malformed,
    /// No line is by the wanted key.
    #[error("the note has no signature by the expected key")]
    Unsigned,
    /// The wanted key's signature does not hold.
    #[error("the signature on the note does not verify")]
    BadSignature,
}

/// The name of a log or a witness in signature lines; for a log, also its origin.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct KeyName(String);

impl KeyName {
    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for KeyName {
    type Err = NoteError;

    fn from_str(name: &str) -> Result<Self, NoteError> {
        let bad = |c: char| c.is_whitespace() || c.is_control() || c == '+';
        if name.is_empty() || name.len() > NAME_BYTES_MAX || name.contains(bad) {
            return Err(NoteError::Name);
        }
        Ok(Self(name.to_owned()))
    }
}

impl fmt::Display for KeyName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// One signature line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NoteSignature {
    /// Who says to have signed.
    pub name: KeyName,
    /// Short, colliding id of the key; a hint only.
    pub key_id: [u8; 4],
    /// The signature, in the form its key's type gives it.
    pub signature: Vec<u8>,
}

/// A text with signature lines. Parsing checks the form and no signature.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Note {
    text: String,
    signatures: Vec<NoteSignature>,
}

impl Note {
    /// Begins a note without signatures.
    ///
    /// # Errors
    /// `Malformed` unless the text ends with a line feed and holds no other control character.
    pub fn new(text: String) -> Result<Self, NoteError> {
        let control = |c: char| c.is_ascii_control() && c != '\n';
        if !text.ends_with('\n') || text.len() > NOTE_BYTES_MAX || text.contains(control) {
            return Err(NoteError::Malformed);
        }
        Ok(Self { text, signatures: Vec::new() })
    }

    /// Reads a note.
    ///
    /// # Errors
    /// `Malformed` for anything that is not one, or above the bounds of this module.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, NoteError> {
        if bytes.len() > NOTE_BYTES_MAX {
            return Err(NoteError::Malformed);
        }
        let whole = std::str::from_utf8(bytes).map_err(|_| NoteError::Malformed)?;
        // The last blank line divides, so that a text may hold blank lines itself.
        let split = whole.rfind("\n\n").ok_or(NoteError::Malformed)?;
        let (text, lines) = (&whole[..=split], &whole[split + 2..]);
        let mut note = Self::new(text.to_owned())?;
        let lines = lines.strip_suffix('\n').ok_or(NoteError::Malformed)?;
        for line in lines.split('\n') {
            if note.signatures.len() == SIGNATURES_MAX {
                return Err(NoteError::Malformed);
            }
            let signature = parse_line(line).ok_or(NoteError::Malformed)?;
            note.signatures.push(signature);
        }
        Ok(note)
    }

    /// The signed text, with its last line feed.
    #[must_use]
    pub fn text(&self) -> &str {
        &self.text
    }

    /// All signature lines, checked or not.
    #[must_use]
    pub fn signatures(&self) -> &[NoteSignature] {
        &self.signatures
    }

    /// Adds the signer's line.
    pub fn sign(&mut self, signer: &NoteSigner) {
        self.signatures.push(NoteSignature {
            name: signer.verifier.name.clone(),
            key_id: signer.verifier.key_id,
            signature: signer.key.sign(self.text.as_bytes()).to_bytes().to_vec(),
        });
    }

    /// Checks the line of one key, strictly (RFC 8032 cofactorless, canonical, no weak key).
    ///
    /// # Errors
    /// `Unsigned` if no line is that key's, `BadSignature` if one is and does not hold.
    pub fn verify(&self, verifier: &NoteVerifier) -> Result<(), NoteError> {
        let mut found = false;
        for line in &self.signatures {
            if line.name != verifier.name || line.key_id != verifier.key_id {
                continue;
            }
            // Ids are short, so another key may share this one's: one good line is enough.
            found = true;
            let holds = Signature::from_slice(&line.signature).is_ok_and(|signature| {
                let text = self.text.as_bytes();
                verifier.key.verify_strict(text, &signature).is_ok()
            });
            if holds {
                return Ok(());
            }
        }
        Err(if found { NoteError::BadSignature } else { NoteError::Unsigned })
    }
}

/// The note as it stands in a file.
impl fmt::Display for Note {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.text)?;
        for line in &self.signatures {
            let mut bytes = line.key_id.to_vec();
            bytes.extend_from_slice(&line.signature);
            writeln!(f, "\u{2014} {} {}", line.name, BASE64.encode(&bytes))?;
        }
        Ok(())
    }
}

fn parse_line(line: &str) -> Option<NoteSignature> {
    let (name, encoded) = line.strip_prefix("\u{2014} ")?.split_once(' ')?;
    let bytes = BASE64.decode(encoded.as_bytes()).ok()?;
    let (key_id, signature) = bytes.split_first_chunk::<4>()?;
    if signature.is_empty() || signature.len() > SIGNATURE_BYTES_MAX {
        return None;
    }
    Some(NoteSignature { name: name.parse().ok()?, key_id: *key_id, signature: signature.to_vec() })
}

/// A public key under a name, as in a log's `key` file: `name+id+base64(type || key)`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NoteVerifier {
    name: KeyName,
    key_id: [u8; 4],
    key: VerifyingKey,
}

impl NoteVerifier {
    /// Binds an Ed25519 key to a name.
    ///
    /// # Errors
    /// `KeyType` if the bytes are no curve point or a weak key.
    pub fn new(name: KeyName, key: &[u8; 32]) -> Result<Self, NoteError> {
        let key = VerifyingKey::from_bytes(key).map_err(|_| NoteError::KeyType)?;
        if key.is_weak() {
            return Err(NoteError::KeyType);
        }
        let mut hasher = Sha256::new();
        hasher.update(name.as_str().as_bytes());
        hasher.update([b'\n', TYPE_ED25519]);
        hasher.update(key.as_bytes());
        let digest: [u8; 32] = hasher.finalize().into();
        let key_id = [digest[0], digest[1], digest[2], digest[3]];
        Ok(Self { name, key_id, key })
    }

    /// The name it signs under.
    #[must_use]
    pub const fn name(&self) -> &KeyName {
        &self.name
    }

    /// The first four bytes of SHA-256 of `name || 0x0A || 0x01 || key`.
    #[must_use]
    pub const fn key_id(&self) -> [u8; 4] {
        self.key_id
    }

    /// The raw Ed25519 public key.
    #[must_use]
    pub fn key_bytes(&self) -> &[u8; 32] {
        self.key.as_bytes()
    }
}

impl fmt::Display for NoteVerifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut typed = vec![TYPE_ED25519];
        typed.extend_from_slice(self.key.as_bytes());
        let id = HEXLOWER.encode(&self.key_id);
        write!(f, "{}+{id}+{}", self.name, BASE64.encode(&typed))
    }
}

impl FromStr for NoteVerifier {
    type Err = NoteError;

    fn from_str(line: &str) -> Result<Self, NoteError> {
        let mut parts = line.splitn(3, '+');
        let (Some(name), Some(id), Some(typed)) = (parts.next(), parts.next(), parts.next()) else {
            return Err(NoteError::Key);
        };
        if typed.len() > NAME_BYTES_MAX {
            return Err(NoteError::Key);
        }
        let typed = BASE64.decode(typed.as_bytes()).map_err(|_| NoteError::Key)?;
        let (kind, key) = typed.split_first().ok_or(NoteError::Key)?;
        let key = <&[u8; 32]>::try_from(key).map_err(|_| NoteError::KeyType)?;
        if *kind != TYPE_ED25519 {
            return Err(NoteError::KeyType);
        }
        let verifier = Self::new(name.parse()?, key)?;
        if HEXLOWER.encode(&verifier.key_id) != id {
            return Err(NoteError::Key);
        }
        Ok(verifier)
    }
}

/// A private key under a name.
pub struct NoteSigner {
    verifier: NoteVerifier,
    key: SigningKey,
}

impl NoteSigner {
    /// Binds a signing key to a name.
    ///
    /// # Errors
    /// `KeyType` if the public key is weak.
    pub fn new(name: KeyName, key: SigningKey) -> Result<Self, NoteError> {
        let verifier = NoteVerifier::new(name, key.verifying_key().as_bytes())?;
        Ok(Self { verifier, key })
    }

    /// The public half.
    #[must_use]
    pub const fn verifier(&self) -> &NoteVerifier {
        &self.verifier
    }
}

impl fmt::Debug for NoteSigner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "NoteSigner({})", self.verifier)
    }
}
