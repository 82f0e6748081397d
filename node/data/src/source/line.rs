//! Lines of a file, one at a time, each of bounded length.

use std::io::{self, BufRead};

/// The longest line: a row of the longest encoding in which half of the characters are escaped.
pub const LINE_BYTES_MAX: usize = 16 * 1024 * 1024;
/// What some editors put at the beginning of a UTF-8 file.
pub(super) const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

/// A line without its end.
pub(super) enum Line<'a> {
    Whole(&'a [u8]),
    /// More than [`LINE_BYTES_MAX`]; the rest of it has been passed over.
    TooLong,
}

pub(super) struct Lines<R> {
    input: R,
    line: Vec<u8>,
    first: bool,
}

impl<R: BufRead> Lines<R> {
    pub(super) fn new(input: R) -> Self {
        Self { input, line: Vec::new(), first: true }
    }

    /// The next line and how many bytes it had, its end included; `None` at the end.
    pub(super) fn next_line(&mut self) -> io::Result<Option<(Line<'_>, u64)>> {
        self.line.clear();
        let mut bytes = 0;
        let mut ended = false;
        let mut too_long = false;
        while !ended {
            let buffer = match self.input.fill_buf() {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                other => other?,
            };
            if buffer.is_empty() {
                break;
            }
            let end = buffer.iter().position(|byte| *byte == b'\n');
            let part = &buffer[..end.unwrap_or(buffer.len())];
            if self.line.len() + part.len() > LINE_BYTES_MAX {
                too_long = true;
            } else if !too_long {
                self.line.extend_from_slice(part);
            }
            let used = end.map_or(buffer.len(), |end| end + 1);
            ended = end.is_some();
            self.input.consume(used);
            bytes += used as u64;
        }
        if bytes == 0 {
            return Ok(None);
        }
        let first = std::mem::replace(&mut self.first, false);
        if too_long {
            return Ok(Some((Line::TooLong, bytes)));
        }
        let mut line = self.line.as_slice();
        line = line.strip_suffix(b"\r").unwrap_or(line);
        if first {
            line = line.strip_prefix(BYTE_ORDER_MARK).unwrap_or(line);
        }
        Ok(Some((Line::Whole(line), bytes)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::BufReader;

    /// Lengths of the lines, `None` for one that is too long.
    fn lengths(input: &[u8], capacity: usize) -> Vec<Option<usize>> {
        let mut lines = Lines::new(BufReader::with_capacity(capacity, input));
        let mut all = Vec::new();
        while let Some((line, _)) = lines.next_line().unwrap() {
            all.push(match line {
                Line::Whole(line) => Some(line.len()),
                Line::TooLong => None,
            });
        }
        all
    }

    #[test]
    fn ends_of_lines_and_files() {
        for capacity in [1, 2, 64] {
            assert_eq!(lengths(b"", capacity), []);
            assert_eq!(lengths(b"\n", capacity), [Some(0)]);
            assert_eq!(lengths(b"\xef\xbb\xbfab\r\nc\n\nd", capacity), [2, 1, 0, 1].map(Some));
        }
    }

    #[test]
    fn a_long_line_is_passed_over_in_bounded_memory() {
        let mut input = vec![b'a'; LINE_BYTES_MAX + 1];
        input.extend_from_slice(b"\nshort\n");
        let mut lines = Lines::new(BufReader::new(input.as_slice()));
        assert!(matches!(lines.next_line().unwrap(), Some((Line::TooLong, _))));
        assert!(lines.line.capacity() <= 2 * LINE_BYTES_MAX);
        assert!(matches!(lines.next_line().unwrap(), Some((Line::Whole(b"short"), 6))));
    }
}
