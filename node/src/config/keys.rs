//! Key files: one identity each, as text of two lines.
//!
//! ```text
//! allmend-ed25519-seed:<64 hexadecimal digits>
//! allmend-x25519-secret:<64 hexadecimal digits>
//! ```
//!
//! The first line signs, the second opens what is sealed to this identity (HPKE with DHKEM X25519,
//! RFC 9180). They are independent, so that the sealing key can be renewed under the same identity.
//! Files that others could read are refused, as `ssh` does.

use std::fmt;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use allmend_protocol::ids::{PublicKey, SealingKey};
use data_encoding::HEXLOWER;
use ed25519_dalek::SigningKey;
use hpke::kem::{Kem, X25519HkdfSha256};
use hpke::{Deserializable, Serializable};
use zeroize::Zeroizing;

use super::layout::{create_private, write_private};
use crate::ui::{ExitClass, Explain, Explanation};

const SIGNING_LABEL: &str = "allmend-ed25519-seed";
const SEALING_LABEL: &str = "allmend-x25519-secret";
/// A key file has 172 bytes; leave room for a remark, refuse anything that is another file.
const FILE_BYTES_MAX: u64 = 4096;

/// Why there is no key. Never holds key material.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// There is no such file.
    #[error("there is no key file {}", .0.display())]
    Missing(PathBuf),
    /// A file is already there; keys are never overwritten.
    #[error("the key file {} exists already", .0.display())]
    Exists(PathBuf),
    /// Others than the owner may read or write it.
    #[error("the key file {} may be read by others (mode {mode:04o})", path.display())]
    Exposed {
        /// The file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// The text is not a key file.
    #[error("{} is not a key file: line {line}: {what}", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// Counted from 1.
        line: usize,
        /// What is wrong with it.
        what: &'static str,
    },
    /// The file cannot be read or written.
    #[error("cannot access the key file {}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The kernel gave no random bytes.
    #[error("the kernel gives no random bytes")]
    NoRandomness,
}

impl Explain for KeyError {
    fn explain(&self) -> Explanation {
        use ExitClass::{Config, Conflict, Internal};
        match self {
            Self::Missing(_) => Explanation::hinting(
                Config,
                "make one with `allmend init` or `allmend join INVITE`, or restore it from a backup",
            ),
            Self::Exists(path) => Explanation::hinting(
                Conflict,
                format!("move {} away if you really want a new identity", path.display()),
            ),
            Self::Exposed { path, .. } => Explanation::hinting(
                Config,
                format!("chmod 600 {}; if others may have read it, make a new key", path.display()),
            ),
            Self::Malformed { .. } => {
                Explanation::hinting(Config, "restore the file from a backup")
            }
            Self::Io { .. } => Explanation::of(Config),
            Self::NoRandomness => Explanation::of(Internal),
        }
    }
}

/// An identity: the key that signs and the secret that opens what is sealed to it.
///
/// Both are wiped from memory when it is dropped.
#[derive(Clone)]
pub struct Identity {
    signing: SigningKey,
    sealing: SealingSecret,
}

impl Identity {
    /// A fresh identity from the kernel's randomness.
    ///
    /// # Errors
    /// [`KeyError::NoRandomness`].
    pub fn generate() -> Result<Self, KeyError> {
        Ok(Self { signing: SigningKey::from_bytes(&*random()?), sealing: SealingSecret(random()?) })
    }

    /// Reads the key file at `path`.
    ///
    /// # Errors
    /// Every variant of [`KeyError`] except `Exists` and `NoRandomness`.
    pub fn load(path: &Path) -> Result<Self, KeyError> {
        let io = |source| KeyError::Io { path: path.to_owned(), source };
        let file = match File::open(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(KeyError::Missing(path.to_owned()));
            }
            opened => opened.map_err(io)?,
        };
        // Checked on the open file, so that nobody can swap it in between.
        let mode = file.metadata().map_err(io)?.permissions().mode() & 0o777;
        if mode & 0o077 != 0 {
            return Err(KeyError::Exposed { path: path.to_owned(), mode });
        }
        // Allocated once at its largest, so that growing it leaves no copy behind.
        let mut text = Zeroizing::new(Vec::with_capacity(FILE_BYTES_MAX as usize + 1));
        file.take(FILE_BYTES_MAX).read_to_end(&mut text).map_err(io)?;
        Self::parse(&text).map_err(|(line, what)| KeyError::Malformed {
            path: path.to_owned(),
            line,
            what,
        })
    }

    /// Writes a new key file, mode 0600, durable when it returns.
    ///
    /// # Errors
    /// [`KeyError::Exists`] if `path` is taken, [`KeyError::Io`].
    pub fn create(&self, path: &Path) -> Result<(), KeyError> {
        let io = |source| KeyError::Io { path: path.to_owned(), source };
        let mut file = match create_private(path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                return Err(KeyError::Exists(path.to_owned()));
            }
            created => created.map_err(io)?,
        };
        let text = self.text();
        let written = file.write_all(&text).and_then(|()| file.sync_all()).and_then(|()| {
            let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty());
            File::open(dir.unwrap_or(Path::new(".")))?.sync_all()
        });
        written.map_err(|source| {
            // A torn key file would block the next attempt and could be taken for a whole one.
            let _ = fs::remove_file(path);
            io(source)
        })
    }

    /// Loads the key file at `path`, or makes one.
    ///
    /// # Errors
    /// Those of [`Self::load`] and [`Self::create`].
    pub fn load_or_create(path: &Path) -> Result<Self, KeyError> {
        match Self::load(path) {
            Err(KeyError::Missing(_)) => {
                let identity = Self::generate()?;
                identity.create(path)?;
                Ok(identity)
            }
            loaded => loaded,
        }
    }

    /// Replaces the sealing secret and the file at `path`; what was sealed to the old one stays shut.
    ///
    /// # Errors
    /// [`KeyError::NoRandomness`], [`KeyError::Io`]; the file is then unchanged.
    pub fn renew_sealing(&mut self, path: &Path) -> Result<(), KeyError> {
        let renewed = Self { signing: self.signing.clone(), sealing: SealingSecret(random()?) };
        write_private(path, &renewed.text())
            .map_err(|source| KeyError::Io { path: path.to_owned(), source })?;
        *self = renewed;
        Ok(())
    }

    /// The key that signs.
    #[must_use]
    pub fn signing(&self) -> &SigningKey {
        &self.signing
    }

    /// The public half of the signing key.
    #[must_use]
    pub fn public(&self) -> PublicKey {
        PublicKey::from_bytes(self.signing.verifying_key().to_bytes())
    }

    /// The secret that opens what is sealed to this identity.
    #[must_use]
    pub fn sealing(&self) -> &SealingSecret {
        &self.sealing
    }

    fn text(&self) -> Zeroizing<Vec<u8>> {
        let mut text = Zeroizing::new(Vec::with_capacity(FILE_BYTES_MAX as usize));
        for (label, secret) in
            [(SIGNING_LABEL, self.signing.as_bytes()), (SEALING_LABEL, &*self.sealing.0)]
        {
            let hex = Zeroizing::new(HEXLOWER.encode(secret));
            text.extend_from_slice(label.as_bytes());
            text.push(b':');
            text.extend_from_slice(hex.as_bytes());
            text.push(b'\n');
        }
        text
    }

    fn parse(text: &[u8]) -> Result<Self, (usize, &'static str)> {
        let text = std::str::from_utf8(text).map_err(|_| (1, "it is not text"))?;
        let mut lines = text.lines();
        let signing = secret(lines.next(), SIGNING_LABEL).map_err(|what| (1, what))?;
        let sealing = secret(lines.next(), SEALING_LABEL).map_err(|what| (2, what))?;
        if lines.any(|line| !line.trim().is_empty()) {
            return Err((3, "there is more than two lines"));
        }
        Ok(Self { signing: SigningKey::from_bytes(&signing), sealing: SealingSecret(sealing) })
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Identity").field(&self.public()).finish()
    }
}

/// An X25519 secret for HPKE (DHKEM X25519 with HKDF-SHA256), wiped when dropped.
#[derive(Clone)]
pub struct SealingSecret(Zeroizing<[u8; 32]>);

impl SealingSecret {
    /// The key others seal to.
    #[must_use]
    pub fn public(&self) -> SealingKey {
        let public = X25519HkdfSha256::sk_to_pk(&self.private());
        SealingKey::from_bytes(public.to_bytes().into())
    }

    /// The secret as the `hpke` crate takes it.
    #[must_use]
    pub fn private(&self) -> <X25519HkdfSha256 as Kem>::PrivateKey {
        match <X25519HkdfSha256 as Kem>::PrivateKey::from_bytes(&*self.0) {
            Ok(private) => private,
            Err(error) => unreachable!("32 bytes are always an X25519 secret: {error}"),
        }
    }
}

impl fmt::Debug for SealingSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("SealingSecret").field(&self.public()).finish()
    }
}

fn random() -> Result<Zeroizing<[u8; 32]>, KeyError> {
    let mut bytes = Zeroizing::new([0; 32]);
    getrandom::fill(&mut *bytes).map_err(|_| KeyError::NoRandomness)?;
    Ok(bytes)
}

fn secret(line: Option<&str>, label: &str) -> Result<Zeroizing<[u8; 32]>, &'static str> {
    let hex = line
        .and_then(|line| line.trim_end().strip_prefix(label)?.strip_prefix(':'))
        .ok_or("the label is missing")?;
    let mut bytes = Zeroizing::new([0; 32]);
    if hex.len() != 64 {
        return Err("it does not have 64 hexadecimal digits");
    }
    HEXLOWER
        .decode_mut(hex.as_bytes(), &mut *bytes)
        .map_err(|_| "it is not lowercase hexadecimal")?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_key_file_round_trips_and_is_private() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("node.key");
        let identity = Identity::load_or_create(&path).unwrap();
        let again = Identity::load_or_create(&path).unwrap();
        assert_eq!(again.public(), identity.public());
        assert_eq!(again.sealing().public(), identity.sealing().public());
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(matches!(identity.create(&path), Err(KeyError::Exists(_))));
    }

    #[test]
    fn renewing_the_sealing_key_keeps_the_identity() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("node.key");
        let mut identity = Identity::load_or_create(&path).unwrap();
        let (public, old) = (identity.public(), identity.sealing().public());
        identity.renew_sealing(&path).unwrap();
        let loaded = Identity::load(&path).unwrap();
        assert_eq!(loaded.public(), public);
        assert_ne!(loaded.sealing().public(), old);
        assert_eq!(loaded.sealing().public(), identity.sealing().public());
    }

    #[test]
    fn what_is_sealed_to_it_opens() {
        use hpke::aead::ChaCha20Poly1305;
        use hpke::kdf::HkdfSha256;
        use hpke::{OpModeR, OpModeS, single_shot_open, single_shot_seal};
        let identity = Identity::generate().unwrap();
        let public = <X25519HkdfSha256 as Kem>::PublicKey::from_bytes(
            identity.sealing().public().as_bytes(),
        )
        .unwrap();
        let (encapped, sealed) =
            single_shot_seal::<ChaCha20Poly1305, HkdfSha256, X25519HkdfSha256>(
                &OpModeS::Base,
                &public,
                b"test",
                b"hello",
                b"",
            )
            .unwrap();
        let opened = single_shot_open::<ChaCha20Poly1305, HkdfSha256, X25519HkdfSha256>(
            &OpModeR::Base,
            &identity.sealing().private(),
            &encapped,
            b"test",
            &sealed,
            b"",
        );
        assert_eq!(opened.unwrap(), b"hello");
    }

    #[test]
    fn a_file_that_others_may_read_is_refused_with_a_hint() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("node.key");
        Identity::load_or_create(&path).unwrap();
        for mode in [0o640, 0o604, 0o620] {
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            let error = Identity::load(&path).unwrap_err();
            assert!(matches!(error, KeyError::Exposed { .. }), "{mode:o}");
            assert!(error.explain().hint.unwrap().starts_with("chmod 600 "));
        }
    }

    #[test]
    fn damage_is_named_by_line_without_showing_the_key() {
        let identity = Identity::generate().unwrap();
        let text = String::from_utf8(identity.text().to_vec()).unwrap();
        let first = text.lines().next().unwrap();
        let cases = [
            (String::new(), 1),
            (first.to_owned(), 2),
            (text.replace("x25519", "p256"), 2),
            (text.replacen(":", ":0", 1), 1),
            (text.to_uppercase(), 1),
            (format!("{text}more\n"), 3),
        ];
        for (text, line) in cases {
            assert_eq!(Identity::parse(text.as_bytes()).unwrap_err().0, line);
        }
        let shown = format!("{identity:?}");
        assert!(!shown.contains(&HEXLOWER.encode(identity.signing().as_bytes())));
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes: Vec<u8>) {
            let _ = Identity::parse(&bytes);
        }

        #[test]
        fn no_nearly_right_text_panics(text in "allmend-ed25519-seed:[0-9a-fx]{62,66}\nallmend-x25519-secret:[0-9a-f]{63,65}\n?.{0,3}") {
            let _ = Identity::parse(text.as_bytes());
        }
    }
}
