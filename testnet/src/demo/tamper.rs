//! Flips one byte of one entry in a copy of a log.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, ensure};

/// Which byte was flipped.
#[derive(Clone, Debug)]
pub(super) struct Flipped {
    /// The file, below the log.
    pub(super) file: PathBuf,
    /// The byte's place in it.
    pub(super) offset: usize,
    /// The entry that it belongs to, counted over the whole log.
    pub(super) entry: u64,
}

/// Copies the log at `from` to `to` and flips one byte in the middle of its middle entry.
///
/// # Errors
/// When the log has no entries or cannot be copied.
pub(super) fn flip_one_byte(from: &Path, to: &Path) -> anyhow::Result<Flipped> {
    copy(from, to).with_context(|| format!("cannot copy {}", from.display()))?;
    let file = bundle(to)?;
    let path = to.join(&file);
    let mut bytes = fs::read(&path)?;
    let entries = entries(&bytes).context("the entry bundle is cut off")?;
    let index = entries.len() / 2;
    let entry = entries.get(index).context("the log is empty")?;
    let offset = (entry.start + entry.end) / 2;
    let byte = bytes.get_mut(offset).context("the entry is empty")?;
    *byte ^= 0x01;
    fs::write(&path, bytes)?;
    Ok(Flipped { file, offset, entry: u64::try_from(index)? })
}

/// The bundle of the log's first entries: whole (`000`), or the widest of the partial ones (`000.p/N`).
fn bundle(log: &Path) -> anyhow::Result<PathBuf> {
    let tiles = Path::new("tile/entries");
    let whole = tiles.join("000");
    if log.join(&whole).is_file() {
        return Ok(whole);
    }
    let partial = tiles.join("000.p");
    let widths = fs::read_dir(log.join(&partial)).context("the log has no entries")?;
    let widest = widths
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<u32>().ok())
        .max()
        .context("the log has no entries")?;
    Ok(partial.join(widest.to_string()))
}

/// Where each entry of a bundle is: two bytes of length, big-endian, go before it (C2SP tlog-tiles).
fn entries(bundle: &[u8]) -> Option<Vec<std::ops::Range<usize>>> {
    let mut found = Vec::new();
    let mut at = 0;
    while at < bundle.len() {
        let length = bundle.get(at..at + 2)?;
        let start = at + 2;
        at = start + usize::from(u16::from_be_bytes(length.try_into().ok()?));
        found.push(start..at);
    }
    (at == bundle.len()).then_some(found)
}

fn copy(from: &Path, to: &Path) -> anyhow::Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let kind = entry.file_type()?;
        let target = to.join(entry.file_name());
        if kind.is_dir() {
            copy(&entry.path(), &target)?;
        } else {
            ensure!(kind.is_file(), "{} is no plain file", entry.path().display());
            fs::copy(entry.path(), target)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_middle_entry_is_hit_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let (log, copied) = (dir.path().join("log"), dir.path().join("copy"));
        fs::create_dir_all(log.join("tile/entries/000.p")).unwrap();
        let bundle = [&[0, 2, 10, 11][..], &[0, 3, 20, 21, 22], &[0, 0]].concat();
        fs::write(log.join("tile/entries/000.p/3"), &bundle).unwrap();
        fs::write(log.join("tile/entries/000.p/2"), &bundle[..9]).unwrap();
        let flipped = flip_one_byte(&log, &copied).unwrap();
        assert_eq!((flipped.entry, flipped.offset), (1, 7));
        let changed = fs::read(copied.join("tile/entries/000.p/3")).unwrap();
        assert_eq!(changed[7], 20);
        let differing = changed.iter().zip(&bundle).filter(|(a, b)| a != b).count();
        assert_eq!(differing, 1);
        assert_eq!(fs::read(log.join("tile/entries/000.p/3")).unwrap(), bundle);
    }

    #[test]
    fn a_cut_bundle_is_none() {
        assert_eq!(entries(&[0, 5, 1]), None);
        assert_eq!(entries(&[0]), None);
        assert_eq!(entries(&[]), Some(vec![]));
    }
}
