//! Maps files into memory for reading: the one place outside the kernels that needs `unsafe`.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use memmap2::Mmap;

use crate::error::EngineError;

/// Files that were opened by somebody else, by the paths under which they are asked for.
static HANDED_IN: Mutex<BTreeMap<PathBuf, File>> = Mutex::new(BTreeMap::new());

/// Lets this process read `file` under `path`, whatever is on the disk there: for one that cannot open files any
/// more, as in a sealed room.
pub fn hand_in(path: &Path, file: File) {
    let mut files = HANDED_IN.lock().unwrap_or_else(PoisonError::into_inner);
    files.insert(path.to_owned(), file);
}

fn handed_in(path: &Path) -> Option<std::io::Result<File>> {
    let files = HANDED_IN.lock().unwrap_or_else(PoisonError::into_inner);
    files.get(path).map(File::try_clone)
}

/// Maps a model file for reading.
///
/// # Errors
/// When it is no regular file or the operating system refuses.
#[allow(unsafe_code)]
pub(crate) fn map(path: &Path) -> Result<Mmap, EngineError> {
    let io = |source| EngineError::Io { path: path.to_owned(), source };
    let file = match handed_in(path) {
        Some(file) => file.map_err(io)?,
        None => {
            // Asked before opening, which would wait for a writer if the path were a pipe.
            if !std::fs::metadata(path).map_err(io)?.is_file() {
                return Err(io(std::io::Error::other("not a regular file")));
            }
            File::open(path).map_err(io)?
        }
    };
    // SAFETY: the mapping is read-only and private to us, and lives for as long as F32 weights in it are used. Were the
    // file truncated meanwhile, reads would fault; models live in a content-addressed store whose files are never changed in place,
    // and the engine runs in a worker process that may die alone.
    unsafe { Mmap::map(&file) }.map_err(io)
}

/// Asks for a part of a mapped file that is about to be read, all at once instead of a few pages at a time. Where the
/// system has no such call nothing happens.
pub(crate) fn fetch(map: &Mmap, part: &std::ops::Range<usize>) {
    #[cfg(target_os = "linux")]
    let _ = map.advise_range(memmap2::Advice::PopulateRead, part.start, part.len());
    #[cfg(not(target_os = "linux"))]
    let _ = (map, part);
}

/// Gives the memory of a part of a mapped file back; what is read again later comes from the file again. Where the system has no
/// such call nothing happens.
#[allow(unsafe_code)]
pub(crate) fn release(map: &Mmap, part: &std::ops::Range<usize>) {
    #[cfg(unix)]
    {
        // SAFETY: the advice is unsafe because it discards what was written; this mapping is read-only and backed by the
        // file, so the same bytes come back.
        let _ = unsafe {
            let advice = memmap2::UncheckedAdvice::DontNeed;
            map.unchecked_advise_range(advice, part.start, part.len())
        };
    }
    #[cfg(not(unix))]
    let _ = (map, part);
}

/// Reads a small text file whole.
///
/// # Errors
/// When it cannot be read or is longer than `bytes_max`.
pub(crate) fn read_small(path: &Path, bytes_max: u64) -> Result<Vec<u8>, EngineError> {
    let map = map(path)?;
    if map.len() as u64 > bytes_max {
        let problem = format!("{} bytes, the limit is {bytes_max}", map.len());
        return Err(EngineError::Io {
            path: path.to_owned(),
            source: std::io::Error::other(problem),
        });
    }
    Ok(map.to_vec())
}
