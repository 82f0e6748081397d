//! Checkpoints: what a log signs about itself (C2SP tlog-checkpoint, specs/log.md §5).

use super::hash::TreeHash;
use super::note::{KeyName, Note, NoteError, NoteSigner, NoteVerifier};
use super::tree::SIZE_MAX;

/// A log's statement: under this origin, so many leaves have this root.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Checkpoint {
    /// Which log; the name of the key that signs.
    pub origin: KeyName,
    /// Number of leaves.
    pub size: u64,
    /// RFC 6962 root over them.
    pub root: TreeHash,
}

/// Why a checkpoint is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CheckpointError {
    /// The text is not origin, size and root, each on its line and in its only form.
    #[error("the checkpoint is not three lines of origin, size and root")]
    Malformed,
    /// It speaks for another log.
    #[error("the checkpoint is of another log")]
    Origin,
    /// The note around it is refused.
    #[error(transparent)]
    Note(#[from] NoteError),
}

impl Checkpoint {
    /// The note text that is signed.
    #[must_use]
    pub fn to_text(&self) -> String {
        let root = self.root.to_base64();
        format!("{}\n{}\n{root}\n", self.origin, self.size)
    }

    /// Reads a note text; extension lines are refused, our logs have none.
    ///
    /// # Errors
    /// `Malformed` for any other text.
    pub fn from_text(text: &str) -> Result<Self, CheckpointError> {
        let parsed = parse(text).ok_or(CheckpointError::Malformed)?;
        // Printing again refuses every second form, such as leading zeros in the size.
        if parsed.to_text() == text { Ok(parsed) } else { Err(CheckpointError::Malformed) }
    }

    /// Signs it with the log's key.
    ///
    /// # Errors
    /// `Origin` if the key has another name than the log.
    pub fn sign(self, signer: &NoteSigner) -> Result<SignedCheckpoint, CheckpointError> {
        if signer.verifier().name() != &self.origin {
            return Err(CheckpointError::Origin);
        }
        let mut note = Note::new(self.to_text())?;
        note.sign(signer);
        Ok(SignedCheckpoint { checkpoint: self, note })
    }
}

fn parse(text: &str) -> Option<Checkpoint> {
    let mut lines = text.strip_suffix('\n')?.split('\n');
    let checkpoint = Checkpoint {
        origin: lines.next()?.parse().ok()?,
        size: lines.next()?.parse().ok().filter(|n| *n <= SIZE_MAX)?,
        root: TreeHash::from_base64(lines.next()?)?,
    };
    if lines.next().is_some() {
        return None;
    }
    Some(checkpoint)
}

/// A checkpoint whose log signature was made here or has been checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SignedCheckpoint {
    checkpoint: Checkpoint,
    note: Note,
}

impl SignedCheckpoint {
    /// Reads a signed checkpoint and checks the log's own signature on it.
    ///
    /// # Errors
    /// `Note` for a bad note or signature, `Malformed` for another text, `Origin` for a
    /// checkpoint of another log.
    pub fn verify(bytes: &[u8], log: &NoteVerifier) -> Result<Self, CheckpointError> {
        let note = Note::from_bytes(bytes)?;
        note.verify(log)?;
        let checkpoint = Checkpoint::from_text(note.text())?;
        if &checkpoint.origin != log.name() {
            return Err(CheckpointError::Origin);
        }
        Ok(Self { checkpoint, note })
    }

    /// What it says.
    #[must_use]
    pub const fn checkpoint(&self) -> &Checkpoint {
        &self.checkpoint
    }

    /// The note with all signature lines, cosignatures included.
    #[must_use]
    pub const fn note(&self) -> &Note {
        &self.note
    }
}
