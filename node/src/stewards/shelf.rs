//! What trainings under way leave at this node: snapshots, adapters that wait at the gate, and of which
//! seed their canaries were. As private as the data: sealed rooms write through here, nobody else reads.

use std::io;
use std::path::{Path, PathBuf};

use allmend_data::{Deleted, PackError, Placed, Unpacked};
use allmend_protocol::ids::{Digest, MessageId};
use allmend_protocol::time::Timestamp;

use crate::config::{create_private_dir, write_private};

const SNAPSHOT: &str = "snapshot";
const FINISHED: &str = "finished";
const CANARIES: &str = "canaries";
const NOISE: &str = "noise";
const WAITING: &str = "waiting";
/// The largest file read back: a frame of the room's pipe.
const FILE_BYTES_MAX: u64 = 1 << 30;

/// One directory per job.
#[derive(Clone, Debug)]
pub(super) struct Shelf {
    dir: PathBuf,
}

impl Shelf {
    pub(super) fn new(dir: PathBuf) -> Shelf {
        Shelf { dir }
    }

    /// Where the next attempt goes on.
    pub(super) fn snapshot(&self, job: MessageId) -> Option<Vec<u8>> {
        read(&self.job(job).join(SNAPSHOT))
    }

    pub(super) fn keep_snapshot(&self, job: MessageId, bytes: &[u8]) -> io::Result<()> {
        self.write(job, SNAPSHOT, bytes)
    }

    /// An adapter that waits for its release.
    pub(super) fn finished(&self, job: MessageId) -> Option<Vec<u8>> {
        read(&self.job(job).join(FINISHED))
    }

    pub(super) fn keep_finished(&self, job: MessageId, bytes: &[u8]) -> io::Result<()> {
        self.write(job, FINISHED, bytes)
    }

    /// The adapter whose release waits for a person.
    pub(super) fn waiting(&self, job: MessageId) -> Option<Digest> {
        String::from_utf8(read(&self.job(job).join(WAITING))?).ok()?.parse().ok()
    }

    pub(super) fn keep_waiting(&self, job: MessageId, adapter: Digest) -> io::Result<()> {
        self.write(job, WAITING, adapter.to_string().as_bytes())
    }

    /// The seed of a job's canaries, drawn once: every attempt has the same.
    pub(super) fn canary_seed(&self, job: MessageId) -> io::Result<[u8; 32]> {
        self.drawn(job, CANARIES)
    }

    /// The key of a private job's noise, drawn once: steps that are made again reveal nothing more.
    pub(super) fn noise_key(&self, job: MessageId) -> io::Result<[u8; 32]> {
        self.drawn(job, NOISE)
    }

    fn drawn(&self, job: MessageId, name: &str) -> io::Result<[u8; 32]> {
        if let Some(seed) = read(&self.job(job).join(name)).and_then(|seed| seed.try_into().ok()) {
            return Ok(seed);
        }
        let seed: [u8; 32] = crate::seal::random_bytes().map_err(io::Error::other)?;
        self.write(job, name, &seed)?;
        Ok(seed)
    }

    /// Rows that a job brought along, for as long as it runs.
    pub(super) fn place(&self, job: MessageId, rows: &Unpacked) -> Result<Placed, PackError> {
        let dir = self.job(job);
        create_private_dir(&dir)?;
        match Placed::find(&dir, job)? {
            Some(placed) => Ok(placed),
            None => rows.place(&dir, job),
        }
    }

    /// Jobs of which there is something.
    pub(super) fn jobs(&self) -> Vec<MessageId> {
        let entries = std::fs::read_dir(&self.dir).into_iter().flatten().flatten();
        entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
    }

    /// Removes everything of a job; says what of its own rows that was.
    pub(super) fn remove(
        &self,
        job: MessageId,
        now: Timestamp,
    ) -> Result<Option<Deleted>, PackError> {
        let dir = self.job(job);
        let placed = Placed::find(&dir, job)?;
        let deleted = placed.map(|placed| placed.destroy(now)).transpose()?;
        match std::fs::remove_dir_all(dir) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error.into()),
            _ => Ok(deleted),
        }
    }

    fn write(&self, job: MessageId, name: &str, bytes: &[u8]) -> io::Result<()> {
        let dir = self.job(job);
        create_private_dir(&dir)?;
        write_private(&dir.join(name), bytes)
    }

    fn job(&self, job: MessageId) -> PathBuf {
        self.dir.join(job.to_string())
    }
}

fn read(path: &Path) -> Option<Vec<u8>> {
    let length = std::fs::metadata(path).ok()?.len();
    (length <= FILE_BYTES_MAX).then(|| std::fs::read(path).ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_job_leaves_is_found_again_and_removed() {
        let dir = tempfile::tempdir().unwrap();
        let shelf = Shelf::new(dir.path().join("training"));
        let job = MessageId::from_bytes([1; 32]);
        assert_eq!((shelf.snapshot(job), shelf.finished(job)), (None, None));
        shelf.keep_snapshot(job, b"one").unwrap();
        shelf.keep_snapshot(job, b"two").unwrap();
        shelf.keep_finished(job, b"made").unwrap();
        let seed = shelf.canary_seed(job).unwrap();
        assert_eq!(shelf.canary_seed(job).unwrap(), seed);
        assert_eq!(shelf.snapshot(job).unwrap(), b"two");
        assert_ne!(shelf.noise_key(job).unwrap(), seed);
        let now = Timestamp::from_ms(1);
        assert_eq!(shelf.remove(job, now).unwrap(), None);
        assert_eq!((shelf.snapshot(job), shelf.finished(job)), (None, None));
        assert_eq!(shelf.remove(job, now).unwrap(), None);
    }
}
