//! GPT-2's reversible mapping between bytes and printable characters, in which byte-level vocabularies
//! are written (`bytes_to_unicode` in its `encoder.py`).

/// Printable Latin-1 stands for itself; the rest are numbered from U+0100 in order.
const CHARS: [char; 256] = chars();
/// The bytes that are numbered from U+0100, in order.
const MOVED: [u8; MOVED_LEN] = moved();
const MOVED_LEN: usize = 68;

/// The character that stands for a byte.
pub(super) fn to_char(byte: u8) -> char {
    CHARS.get(usize::from(byte)).copied().unwrap_or(char::REPLACEMENT_CHARACTER)
}

/// Turns the characters of a token back into bytes. Characters that stand for no byte are kept as
/// UTF-8, as llama.cpp does for tokens that were added by hand.
pub(super) fn from_chars(text: &str) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(text.len());
    for character in text.chars() {
        match to_byte(character) {
            Some(byte) => bytes.push(byte),
            None => bytes.extend_from_slice(character.encode_utf8(&mut [0; 4]).as_bytes()),
        }
    }
    bytes
}

fn to_byte(character: char) -> Option<u8> {
    if let Ok(byte) = u8::try_from(u32::from(character)) {
        return is_printable(byte).then_some(byte);
    }
    MOVED.get(u32::from(character).checked_sub(0x100)? as usize).copied()
}

const fn is_printable(byte: u8) -> bool {
    matches!(byte, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff)
}

const fn chars() -> [char; 256] {
    let mut table = ['\0'; 256];
    let (mut byte, mut moved) = (0usize, 0u32);
    while byte < 256 {
        table[byte] = if is_printable(byte as u8) {
            byte as u8 as char
        } else {
            moved += 1;
            match char::from_u32(0xff + moved) {
                Some(character) => character,
                None => unreachable!(),
            }
        };
        byte += 1;
    }
    table
}

const fn moved() -> [u8; MOVED_LEN] {
    let mut table = [0; MOVED_LEN];
    let (mut byte, mut next) = (0usize, 0);
    while byte < 256 {
        if !is_printable(byte as u8) {
            table[next] = byte as u8;
            next += 1;
        }
        byte += 1;
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_returns() {
        let mut seen = std::collections::BTreeSet::new();
        for byte in 0..=255u8 {
            assert_eq!(from_chars(&to_char(byte).to_string()), [byte]);
            assert!(seen.insert(to_char(byte)));
        }
        let written: String = b" a\n".iter().map(|&byte| to_char(byte)).collect();
        assert_eq!(written, "\u{120}a\u{10a}");
        assert_eq!(from_chars("漢"), "漢".as_bytes());
    }
}
