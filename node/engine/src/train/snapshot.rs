//! A run's state as bytes, so that it goes on elsewhere or later to the same adapter, bit by bit.
//!
//! Random streams are functions of seed or key and step, so the step is all of their position. The secret key
//! of private runs is not in a snapshot, only what it is recognised by.
//!
//! Layout, little-endian: `ALMTRAIN`, version u32; numerics (u8 length, text); digests of the recipe and of the
//! adapter's shape, commitment of the noise key (32 bytes each, zero without key); updates u64; count of
//! parameters u64; parameters, first moments, second moments as f32; monitors (u32 length, bytes); SHA-256 of all
//! of this.

use sha2::{Digest, Sha256};

use super::error::TrainError;
use super::optimiser::AdamW;

const MAGIC: &[u8; 8] = b"ALMTRAIN";
const VERSION: u32 = 1;
/// What the caller may put in for its monitors.
pub const MONITORS_BYTES_MAX: usize = 1 << 20;

/// What must agree between a snapshot and the run that it is to continue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Identity {
    pub(crate) numerics: String,
    pub(crate) recipe: [u8; 32],
    pub(crate) shape: [u8; 32],
    pub(crate) noise: [u8; 32],
}

/// Writes a snapshot.
///
/// # Errors
/// When `monitors` is longer than [`MONITORS_BYTES_MAX`].
pub(crate) fn write(
    identity: &Identity,
    parameters: &[f32],
    optimiser: &AdamW,
    monitors: &[u8],
) -> Result<Vec<u8>, TrainError> {
    if monitors.len() > MONITORS_BYTES_MAX {
        let problem =
            format!("{} bytes of monitors, the limit is {MONITORS_BYTES_MAX}", monitors.len());
        return Err(TrainError::Snapshot(problem));
    }
    let mut out = Vec::with_capacity(256 + 12 * parameters.len() + monitors.len());
    out.extend_from_slice(MAGIC);
    out.extend_from_slice(&VERSION.to_le_bytes());
    let numerics = &identity.numerics.as_bytes()[..identity.numerics.len().min(255)];
    out.push(numerics.len() as u8);
    out.extend_from_slice(numerics);
    for digest in [&identity.recipe, &identity.shape, &identity.noise] {
        out.extend_from_slice(digest);
    }
    out.extend_from_slice(&optimiser.updates.to_le_bytes());
    out.extend_from_slice(&(parameters.len() as u64).to_le_bytes());
    for values in [parameters, &optimiser.first, &optimiser.second] {
        out.extend(values.iter().flat_map(|value| value.to_le_bytes()));
    }
    out.extend_from_slice(&(monitors.len() as u32).to_le_bytes());
    out.extend_from_slice(monitors);
    let digest: [u8; 32] = Sha256::digest(&out).into();
    out.extend_from_slice(&digest);
    Ok(out)
}

/// Reads a snapshot of the run named by `identity` with `len` parameters: these, the optimiser, and the
/// monitors.
///
/// # Errors
/// [`TrainError::Snapshot`] says what is damaged or does not agree. Memory is bounded by the bytes given.
pub(crate) fn read(
    bytes: &[u8],
    identity: &Identity,
    len: usize,
) -> Result<(Vec<f32>, AdamW, Vec<u8>), TrainError> {
    let wrong = |problem: &str| TrainError::Snapshot(problem.to_owned());
    let Some((body, digest)) = bytes.split_last_chunk::<32>() else {
        return Err(wrong("is shorter than any snapshot"));
    };
    let mut from = Reader(body);
    if from.take(8)? != MAGIC {
        return Err(wrong("does not begin as a snapshot does"));
    }
    let version = u32::from_le_bytes(from.array()?);
    if version != VERSION {
        return Err(wrong(&format!("has version {version}, this build reads {VERSION}")));
    }
    if Sha256::digest(body).as_slice() != digest {
        return Err(wrong("is damaged: its digest does not match"));
    }
    let [numerics_len] = from.array()?;
    let numerics = from.take(numerics_len.into())?;
    if numerics != identity.numerics.as_bytes() {
        let theirs: String = String::from_utf8_lossy(numerics).chars().take(64).collect();
        let problem = format!(
            "was computed as {theirs}, here it would go on as {}: resume it on a machine of the first kind, \
             or start anew",
            identity.numerics
        );
        return Err(TrainError::Snapshot(problem));
    }
    let agree = [
        (&identity.recipe, "belongs to another recipe"),
        (&identity.shape, "belongs to another model"),
        (&identity.noise, "was made with another noise key"),
    ];
    for (ours, problem) in agree {
        if from.array::<32>()? != *ours {
            return Err(wrong(problem));
        }
    }
    let updates = u64::from_le_bytes(from.array()?);
    if u64::from_le_bytes(from.array()?) != len as u64 {
        return Err(wrong("has another number of parameters"));
    }
    let mut floats = || -> Result<Vec<f32>, TrainError> {
        let bytes = from.take(len.saturating_mul(4))?;
        let values: Vec<f32> =
            bytes.as_chunks::<4>().0.iter().map(|&bytes| f32::from_le_bytes(bytes)).collect();
        match values.iter().all(|value| value.is_finite()) {
            true => Ok(values),
            false => Err(wrong("has a number that is not finite")),
        }
    };
    let (parameters, first, second) = (floats()?, floats()?, floats()?);
    if second.iter().any(|&value| value < 0.0) {
        return Err(wrong("has a negative second moment"));
    }
    let monitors_len = u32::from_le_bytes(from.array()?) as usize;
    if monitors_len > MONITORS_BYTES_MAX {
        return Err(wrong("has more monitors than any run"));
    }
    let monitors = from.take(monitors_len)?.to_vec();
    match from.0.is_empty() {
        true => Ok((parameters, AdamW { first, second, updates }, monitors)),
        false => Err(wrong("has bytes left over")),
    }
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, len: usize) -> Result<&'a [u8], TrainError> {
        let (head, rest) = self
            .0
            .split_at_checked(len)
            .ok_or_else(|| TrainError::Snapshot("ends in the middle".to_owned()))?;
        self.0 = rest;
        Ok(head)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], TrainError> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N)?);
        Ok(array)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn identity() -> Identity {
        Identity { numerics: "test".to_owned(), recipe: [1; 32], shape: [2; 32], noise: [0; 32] }
    }

    fn sample() -> Vec<u8> {
        let optimiser = AdamW { first: vec![0.5, -1.0], second: vec![0.25, 1.0], updates: 7 };
        write(&identity(), &[1.0, -2.0], &optimiser, b"monitors").unwrap()
    }

    /// Puts the digest right, so that what lies behind it is tested.
    fn sealed(mut bytes: Vec<u8>) -> Vec<u8> {
        let end = bytes.len() - 32;
        let digest: [u8; 32] = Sha256::digest(&bytes[..end]).into();
        bytes[end..].copy_from_slice(&digest);
        bytes
    }

    #[test]
    fn what_is_written_is_read() {
        let (parameters, optimiser, monitors) = read(&sample(), &identity(), 2).unwrap();
        assert_eq!(
            (parameters.as_slice(), monitors.as_slice()),
            (&[1.0, -2.0][..], &b"monitors"[..])
        );
        assert_eq!((optimiser.updates, optimiser.first[1], optimiser.second[0]), (7, -1.0, 0.25));
    }

    #[test]
    fn other_runs_are_refused_by_name() {
        let other = |change: fn(&mut Identity)| {
            let mut identity = identity();
            change(&mut identity);
            read(&sample(), &identity, 2).unwrap_err().to_string()
        };
        assert!(other(|identity| identity.recipe = [9; 32]).contains("another recipe"));
        assert!(other(|identity| identity.shape = [9; 32]).contains("another model"));
        assert!(other(|identity| identity.noise = [9; 32]).contains("another noise key"));
        assert!(
            other(|identity| identity.numerics = "else".to_owned()).contains("computed as test")
        );
        assert!(read(&sample(), &identity(), 3).unwrap_err().to_string().contains("number of"));
        assert!(write(&identity(), &[], &AdamW::new(0), &vec![0; MONITORS_BYTES_MAX + 1]).is_err());
    }

    proptest! {
        /// Goal: bytes cut or changed anywhere are refused, whether or not the digest was put right, or are
        /// read as other finite numbers.
        #[test]
        fn damage_is_harmless(at in 0usize..400, byte: u8, cut in 0usize..400, seal: bool) {
            let mut bytes = sample();
            let len = bytes.len();
            bytes[at % len] = byte;
            bytes.truncate(len - cut % len);
            if seal && bytes.len() >= 32 {
                bytes = sealed(bytes);
            }
            if let Ok((parameters, _, _)) = read(&bytes, &identity(), 2) {
                prop_assert!(parameters.iter().all(|value| value.is_finite()));
            }
        }
    }
}
