//! The home node's private files, one directory per job: the sealed input, the output as it comes
//! (sealed record by record), the result (sealed to the researcher). Mode 0600, removed at
//! settlement plus retention (specs/spool.md).

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use allmend_protocol::encoding;
use allmend_protocol::ids::{MessageId, ResearcherId};
use serde::{Deserialize, Serialize};

use crate::config::write_private;
use crate::seal::{ContentKey, SealError, SealedResult, random_bytes};

/// The largest description or result file read back.
const FILE_BYTES_MAX: u64 = 80 * 1024 * 1024;
/// The largest single output record: one token's text is a few bytes.
const OUTPUT_RECORD_BYTES_MAX: usize = 64 * 1024;

/// The largest output that a job may have: an adapter of rank 64 on every matrix of a model of eight
/// billion parameters, with sealing.
pub const ARTIFACT_BYTES_MAX: u64 = 1 << 30;

/// Why the spool does not serve.
#[derive(Debug, thiserror::Error)]
pub enum SpoolError {
    /// The disk says no.
    #[error("spool: {0}")]
    Io(#[from] io::Error),
    /// A file is not what was written.
    #[error("spool: {0} is damaged")]
    Damaged(&'static str),
    /// Sealed bytes do not open.
    #[error("spool: {0}")]
    Seal(#[from] SealError),
}

/// What is kept of a job besides its input.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Kept {
    /// Whose job it is, so that an erasure finds it.
    pub researcher: ResearcherId,
    /// The salt of the input's digest.
    #[serde(with = "serde_bytes")]
    pub salt: [u8; 32],
}

/// One token of a job's output.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OutputToken {
    /// The attempt that wrote it.
    pub attempt: u16,
    /// Its id.
    pub id: u32,
    /// Text that became certain with it.
    pub text: String,
}

/// The spool directory.
#[derive(Clone, Debug)]
pub struct Spool {
    dir: PathBuf,
}

impl Spool {
    /// The spool in `dir`, which exists.
    pub fn new(dir: PathBuf) -> Spool {
        Spool { dir }
    }

    /// Keeps a job's sealed input; durable when it returns. Doing it twice is harmless.
    ///
    /// # Errors
    /// [`SpoolError::Io`].
    pub fn put_input(&self, job: MessageId, sealed: &[u8], kept: &Kept) -> Result<(), SpoolError> {
        let dir = self.job_dir(job);
        if !dir.is_dir() {
            std::fs::DirBuilder::new().mode(0o700).create(&dir)?;
        }
        write_private(&dir.join("kept"), &encoding::encode(kept))?;
        write_private(&dir.join("input"), sealed)?;
        File::open(&self.dir)?.sync_all()?;
        Ok(())
    }

    /// The sealed input and what is kept with it.
    ///
    /// # Errors
    /// [`SpoolError`] when it is not there any more or damaged.
    pub fn input(&self, job: MessageId) -> Result<(Vec<u8>, Kept), SpoolError> {
        Ok((read(&self.job_dir(job).join("input"))?, self.kept(job)?))
    }

    /// What is kept with a job's input.
    ///
    /// # Errors
    /// [`SpoolError`] when it is not there any more or damaged.
    pub fn kept(&self, job: MessageId) -> Result<Kept, SpoolError> {
        let bytes = read(&self.job_dir(job).join("kept"))?;
        encoding::decode(&bytes, 4_096).map_err(|_| SpoolError::Damaged("kept"))
    }

    /// Opens the output of a job for appending, with what it holds; a torn last record is cut off.
    ///
    /// # Errors
    /// [`SpoolError`].
    pub fn output(
        &self,
        job: MessageId,
        key: &ContentKey,
    ) -> Result<(OutputFile, Vec<OutputToken>), SpoolError> {
        let path = self.job_dir(job).join("output");
        let mut file =
            OpenOptions::new().read(true).append(true).create(true).mode(0o600).open(&path)?;
        let mut bytes = Vec::new();
        (&mut file).take(FILE_BYTES_MAX).read_to_end(&mut bytes)?;
        let mut tokens = Vec::new();
        let mut good = 0;
        let mut rest = bytes.as_slice();
        while let Some((token, after)) = open_record(key, rest) {
            tokens.push(token);
            rest = after;
            good = bytes.len() - rest.len();
        }
        if good < bytes.len() {
            file.set_len(good as u64)?;
        }
        let writer = u32::from_be_bytes(random_bytes()?);
        Ok((OutputFile { file, key: key.clone(), writer, counter: 0 }, tokens))
    }

    /// Replaces a job's output by its result, sealed to the researcher; durable when it returns.
    ///
    /// # Errors
    /// [`SpoolError::Io`].
    pub fn put_result(&self, job: MessageId, result: &SealedResult) -> Result<(), SpoolError> {
        let dir = self.job_dir(job);
        write_private(&dir.join("result"), &encoding::encode(result))?;
        remove_if_there(&dir.join("output"))?;
        remove_if_there(&dir.join("input"))?;
        Ok(())
    }

    /// Keeps what a job's output gate released, sealed to the researcher; durable when it returns.
    ///
    /// # Errors
    /// [`SpoolError::Io`].
    pub fn put_artifact(&self, job: MessageId, sealed: &[u8]) -> Result<(), SpoolError> {
        Ok(write_private(&self.job_dir(job).join("artifact"), sealed)?)
    }

    /// Opens what the output gate released, if there is something.
    ///
    /// # Errors
    /// [`SpoolError::Io`].
    pub fn artifact(&self, job: MessageId) -> Result<Option<File>, SpoolError> {
        match File::open(self.job_dir(job).join("artifact")) {
            Ok(file) => Ok(Some(file)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// The result, if there is one.
    ///
    /// # Errors
    /// [`SpoolError`].
    pub fn result(&self, job: MessageId) -> Result<Option<SealedResult>, SpoolError> {
        let path = self.job_dir(job).join("result");
        if !path.exists() {
            return Ok(None);
        }
        let bytes = read(&path)?;
        encoding::decode(&bytes, bytes.len()).map(Some).map_err(|_| SpoolError::Damaged("result"))
    }

    /// Removes everything of a job.
    ///
    /// # Errors
    /// [`SpoolError::Io`].
    pub fn remove(&self, job: MessageId) -> Result<(), SpoolError> {
        let dir = self.job_dir(job);
        match std::fs::remove_dir_all(&dir) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error.into()),
            _ => Ok(()),
        }
    }

    /// Jobs in the spool, with whether they have a result and the age of their newest file.
    ///
    /// # Errors
    /// [`SpoolError::Io`].
    pub fn jobs(&self) -> Result<Vec<(MessageId, bool, Duration)>, SpoolError> {
        let mut jobs = Vec::new();
        for entry in std::fs::read_dir(&self.dir)? {
            let entry = entry?;
            let Some(job) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else {
                continue;
            };
            let mut newest = SystemTime::UNIX_EPOCH;
            for file in std::fs::read_dir(entry.path())? {
                newest = newest.max(file?.metadata()?.modified()?);
            }
            let age = newest.elapsed().unwrap_or_default();
            jobs.push((job, entry.path().join("result").exists(), age));
        }
        jobs.sort_by_key(|(job, ..)| *job);
        Ok(jobs)
    }

    fn job_dir(&self, job: MessageId) -> PathBuf {
        self.dir.join(job.to_string())
    }
}

/// A job's output at rest while it comes.
#[derive(Debug)]
pub struct OutputFile {
    file: File,
    key: ContentKey,
    /// Drawn for each opening, so that no nonce repeats after a crash.
    writer: u32,
    counter: u64,
}

impl OutputFile {
    /// Appends one token. Survives the death of this process; a power cut may take the last ones,
    /// which the executing node then sends again.
    ///
    /// # Errors
    /// [`SpoolError::Io`].
    pub fn append(&mut self, token: &OutputToken) -> Result<(), SpoolError> {
        let sealed = self.key.seal_record(self.writer, self.counter, &encoding::encode(token));
        let mut record = Vec::with_capacity(16 + sealed.len());
        record.extend_from_slice(&(sealed.len() as u32).to_be_bytes());
        record.extend_from_slice(&self.writer.to_be_bytes());
        record.extend_from_slice(&self.counter.to_be_bytes());
        record.extend_from_slice(&sealed);
        self.counter += 1;
        self.file.write_all(&record)?;
        Ok(())
    }
}

fn open_record<'a>(key: &ContentKey, bytes: &'a [u8]) -> Option<(OutputToken, &'a [u8])> {
    let (length, rest) = bytes.split_first_chunk::<4>()?;
    let (writer, rest) = rest.split_first_chunk::<4>()?;
    let (counter, rest) = rest.split_first_chunk::<8>()?;
    let (sealed, rest) = rest.split_at_checked(u32::from_be_bytes(*length) as usize)?;
    let (writer, counter) = (u32::from_be_bytes(*writer), u64::from_be_bytes(*counter));
    let plain = key.open_record(writer, counter, sealed).ok()?;
    let token = encoding::decode(&plain, OUTPUT_RECORD_BYTES_MAX).ok()?;
    Some((token, rest))
}

fn read(path: &Path) -> Result<Vec<u8>, SpoolError> {
    let mut bytes = Vec::new();
    File::open(path)?.take(FILE_BYTES_MAX).read_to_end(&mut bytes)?;
    Ok(bytes)
}

fn remove_if_there(path: &Path) -> io::Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn output_survives_a_torn_tail() {
        let dir = tempfile::tempdir().unwrap();
        let spool = Spool::new(dir.path().to_owned());
        let (job, key) = (MessageId::from_bytes([1; 32]), ContentKey::random().unwrap());
        let kept = Kept { researcher: ResearcherId::from_bytes([2; 32]), salt: [3; 32] };
        spool.put_input(job, b"sealed", &kept).unwrap();
        let token = |id| OutputToken { attempt: 1, id, text: format!("t{id} ") };
        let (mut file, tokens) = spool.output(job, &key).unwrap();
        assert!(tokens.is_empty());
        (0..5).for_each(|id| file.append(&token(id)).unwrap());
        let path = dir.path().join(job.to_string()).join("output");
        let whole = std::fs::read(&path).unwrap();
        std::fs::write(&path, &whole[..whole.len() - 3]).unwrap();
        let (mut file, tokens) = spool.output(job, &key).unwrap();
        assert_eq!(tokens, (0..4).map(token).collect::<Vec<_>>());
        file.append(&token(9)).unwrap();
        assert_eq!(spool.output(job, &key).unwrap().1.len(), 5);
        assert_eq!(spool.input(job).unwrap(), (b"sealed".to_vec(), kept));
        spool.remove(job).unwrap();
        assert!(spool.jobs().unwrap().is_empty());
    }
}
