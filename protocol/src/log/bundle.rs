//! Entry bundles: up to 256 log entries, each as a big-endian 16-bit length and its bytes
//! (specs/log.md §3, C2SP tlog-tiles "Log entries").

/// The longest entry its length field can name.
pub const ENTRY_BYTES_MAX: usize = u16::MAX as usize;

/// The longest full bundle: 256 entries of the longest kind.
pub const BUNDLE_BYTES_MAX: usize = 256 * (2 + ENTRY_BYTES_MAX);

/// Why bytes are not an entry or a bundle.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BundleError {
    /// An entry is longer than 65,535 bytes.
    #[error("an entry of {len} bytes is longer than 65535")]
    EntryTooLong {
        /// Its length in bytes.
        len: usize,
    },
    /// The bundle ends inside an entry.
    #[error("the bundle ends inside its entry {entry}, at byte {offset}")]
    Truncated {
        /// Position of the entry in the bundle.
        entry: usize,
        /// Byte at which that entry starts.
        offset: usize,
    },
}

/// Appends one framed entry to `bundle`.
///
/// # Errors
/// `EntryTooLong`; the bundle is then unchanged.
pub fn push_entry(bundle: &mut Vec<u8>, entry: &[u8]) -> Result<(), BundleError> {
    let len =
        u16::try_from(entry.len()).map_err(|_| BundleError::EntryTooLong { len: entry.len() })?;
    bundle.extend_from_slice(&len.to_be_bytes());
    bundle.extend_from_slice(entry);
    Ok(())
}

/// Walks over the entries of a bundle; ends after the first error.
#[derive(Clone, Debug)]
pub struct Entries<'a> {
    rest: &'a [u8],
    offset: usize,
    entry: usize,
}

impl<'a> Entries<'a> {
    /// Reads `bundle` from its start.
    #[must_use]
    pub const fn new(bundle: &'a [u8]) -> Self {
        Self { rest: bundle, offset: 0, entry: 0 }
    }
}

impl<'a> Iterator for Entries<'a> {
    type Item = Result<&'a [u8], BundleError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let framed = self
            .rest
            .split_first_chunk::<2>()
            .and_then(|(len, rest)| rest.split_at_checked(u16::from_be_bytes(*len).into()));
        let Some((entry, rest)) = framed else {
            self.rest = &[];
            return Some(Err(BundleError::Truncated { entry: self.entry, offset: self.offset }));
        };
        self.rest = rest;
        self.offset += 2 + entry.len();
        self.entry += 1;
        Some(Ok(entry))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_round_trip_and_truncation_is_named() {
        let entries: [&[u8]; 3] = [b"one", b"", b"three"];
        let mut bundle = Vec::new();
        for entry in entries {
            push_entry(&mut bundle, entry).unwrap();
        }
        let back: Vec<_> = Entries::new(&bundle).map(Result::unwrap).collect();
        assert_eq!(back, entries);
        let cut = &bundle[..bundle.len() - 1];
        let last = Entries::new(cut).last().unwrap();
        assert_eq!(last, Err(BundleError::Truncated { entry: 2, offset: 7 }));
    }

    #[test]
    fn an_entry_is_at_most_65535_bytes() {
        let mut bundle = Vec::new();
        let long = vec![0; ENTRY_BYTES_MAX + 1];
        let refused = push_entry(&mut bundle, &long);
        assert_eq!(refused, Err(BundleError::EntryTooLong { len: 65_536 }));
        assert!(bundle.is_empty());
        push_entry(&mut bundle, &long[1..]).unwrap();
        assert_eq!(bundle.len(), 65_537);
    }
}
