//! What happened, one line per event: hashed always, kept when somebody wants to read it.

use std::fmt::Write as _;

use sha2::{Digest as _, Sha256};

/// A running digest over lines of text, and the lines when asked for.
#[derive(Debug)]
pub(crate) struct Trace {
    hasher: Sha256,
    line: String,
    kept: Option<Vec<String>>,
}

impl Trace {
    /// A new trace; with `keep`, its lines can be read afterwards.
    pub(crate) fn new(keep: bool) -> Trace {
        Trace { hasher: Sha256::new(), line: String::new(), kept: keep.then(Vec::new) }
    }

    /// Adds one line.
    pub(crate) fn line(&mut self, args: std::fmt::Arguments<'_>) {
        self.line.clear();
        // Writing to a string cannot fail.
        let _ = self.line.write_fmt(args);
        self.line.push('\n');
        self.hasher.update(self.line.as_bytes());
        if let Some(kept) = &mut self.kept {
            kept.push(self.line.trim_end().to_owned());
        }
    }

    /// SHA-256 over all lines in hexadecimal, and the lines if they were kept.
    pub(crate) fn finish(self) -> (String, Vec<String>) {
        let digest = data_encoding::HEXLOWER.encode(&self.hasher.finalize());
        (digest, self.kept.unwrap_or_default())
    }
}
