//! Where each policy of a text begins, and how large it is: Cedar counts policies from zero and says offsets, people
//! want lines. Also the bounds that keep a hostile text from costing more than a look.

use crate::check::{Code, Finding};

/// The largest policy text, in bytes.
pub const TEXT_BYTES_MAX: usize = 128 * 1024;
/// The most policies in one text.
pub const POLICIES_MAX: usize = 256;
/// How deep brackets may nest: deeper than anybody writes, shallow enough for every recursion over the text.
pub const NESTING_MAX: usize = 32;
/// The most operators in one policy: a chain of them becomes as deep a tree.
pub const OPERATORS_MAX: usize = 256;

/// Where one policy stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Statement {
    /// Byte at which it begins.
    pub(crate) start: usize,
    /// Line at which it begins, from 1.
    pub(crate) line: u32,
}

/// The line of a byte, from 1.
pub(crate) fn line_at(text: &str, offset: usize) -> u32 {
    let end = offset.min(text.len());
    let lines = text.as_bytes()[..end].iter().filter(|byte| **byte == b'\n').count();
    u32::try_from(lines + 1).unwrap_or(u32::MAX)
}

/// Finds the policies of a text: each ends with a semicolon outside brackets, texts and comments.
///
/// # Errors
/// A finding when a bound is broken.
pub(crate) fn statements(text: &str) -> Result<Vec<Statement>, Finding> {
    if text.len() > TEXT_BYTES_MAX {
        return Err(Finding::error(
            Code::TooLarge,
            None,
            format!("the policy has {} bytes; {TEXT_BYTES_MAX} are allowed", text.len()),
            "split long lists of people into an institution's own rule, or name institutions instead",
        ));
    }
    let mut found = Vec::new();
    let mut scan = Scan::default();
    let bytes = text.as_bytes();
    let mut at = 0;
    while at < bytes.len() {
        let byte = bytes[at];
        if byte == b'\n' {
            scan.line += 1;
        }
        if byte == b'/' && bytes.get(at + 1) == Some(&b'/') {
            while at < bytes.len() && bytes[at] != b'\n' {
                at += 1;
            }
            continue;
        }
        if byte.is_ascii_whitespace() {
            at += 1;
            continue;
        }
        if scan.start.is_none() {
            scan.start = Some(Statement { start: at, line: scan.line + 1 });
        }
        match byte {
            b'"' => at = scan.skip_string(bytes, at),
            b'(' | b'[' | b'{' => scan.depth += 1,
            b')' | b']' | b'}' => scan.depth = scan.depth.saturating_sub(1),
            _ => {}
        }
        if b"&|.!+-*<>=([{".contains(&byte) || scan.word_operator(bytes, at) {
            scan.operators += 1;
        }
        if let Some(problem) = scan.broken_bound() {
            return Err(problem);
        }
        if byte == b';' && scan.depth == 0 {
            found.extend(scan.start.take());
            scan.operators = 0;
        }
        at += 1;
    }
    // A last one without its semicolon: Cedar says what is wrong with it.
    found.extend(scan.start.take());
    if found.len() > POLICIES_MAX {
        return Err(Finding::error(
            Code::TooLarge,
            None,
            format!("the text has {} policies; {POLICIES_MAX} are allowed", found.len()),
            "join rules that forbid for the same reason",
        ));
    }
    Ok(found)
}

#[derive(Default)]
struct Scan {
    start: Option<Statement>,
    line: u32,
    depth: usize,
    operators: usize,
}

impl Scan {
    /// The place of the closing quote of the text that opens at `at`; the end when there is none.
    fn skip_string(&mut self, bytes: &[u8], at: usize) -> usize {
        let mut at = at + 1;
        while at < bytes.len() {
            match bytes[at] {
                b'\\' => {
                    at += 1;
                    self.line += u32::from(bytes.get(at) == Some(&b'\n'));
                }
                b'"' => return at,
                b'\n' => self.line += 1,
                _ => {}
            }
            at += 1;
        }
        bytes.len()
    }

    /// Whether an operator that is a word begins here.
    fn word_operator(&self, bytes: &[u8], at: usize) -> bool {
        let inside = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
        if at > 0 && inside(bytes[at - 1]) {
            return false;
        }
        let end =
            bytes[at..].iter().position(|byte| !inside(*byte)).map_or(bytes.len(), |n| at + n);
        [&b"if"[..], b"has", b"in", b"is", b"like"].contains(&&bytes[at..end])
    }

    fn broken_bound(&self) -> Option<Finding> {
        let line = self.start.map(|statement| statement.line);
        if self.depth > NESTING_MAX {
            return Some(Finding::error(
                Code::TooLarge,
                line,
                format!("brackets nest deeper than {NESTING_MAX}"),
                "split the rule in several: each forbid has one reason",
            ));
        }
        (self.operators > OPERATORS_MAX).then(|| {
            Finding::error(
                Code::TooLarge,
                line,
                format!("one policy has more than {OPERATORS_MAX} operators"),
                "split the rule in several: each forbid has one reason; write lists as [\"a\", \"b\"].contains(…)",
            )
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(text: &str) -> Vec<u32> {
        statements(text).unwrap().iter().map(|statement| statement.line).collect()
    }

    #[test]
    fn policies_are_found_past_comments_and_texts() {
        let text = "// permit (a, b; \"\n@id(\"a;\\\"}\")\npermit (x) when { \";\" == \"\" };\n\nforbid (y);";
        assert_eq!(lines(text), [2, 5]);
        assert_eq!(lines(""), Vec::<u32>::new());
        assert_eq!(lines("permit (x)"), [1]);
        assert_eq!(lines("\"never closed ;"), [1]);
        assert_eq!(lines("\"a\nb\";\nz;"), [1, 3]);
    }

    #[test]
    fn bounds_hold() {
        let deep = format!("permit {}", "(".repeat(NESTING_MAX + 1));
        let long = format!("permit when {{ true {} }};", "&& true ".repeat(OPERATORS_MAX));
        let many = "permit (x);".repeat(POLICIES_MAX + 1);
        let large = " ".repeat(TEXT_BYTES_MAX + 1);
        for text in [deep, long, many, large] {
            assert_eq!(statements(&text).unwrap_err().code, Code::TooLarge);
        }
    }

    #[test]
    fn operators_inside_words_and_texts_do_not_count() {
        let text = format!("permit when {{ [{}] }};", "\"a.b.c && if\", ".repeat(OPERATORS_MAX));
        assert!(statements(&text).is_ok());
    }
}
