//! GPT-2's reversible mapping between bytes and printable characters, in which byte-level vocabularies
//! are written (`bytes_to_unicode` in its `encoder.py`).

/// Writes bytes as the characters that stand for them.
pub(super) fn to_chars(bytes: &[u8]) -> String {
    bytes.iter().map(|&byte| byte_to_char(byte)).collect()
}

/// Turns the characters of a token back into bytes. Characters that stand for no byte are kept as
/// UTF-8, as llama.cpp does for tokens that were added by hand.
pub(super) fn from_chars(text: &str) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(text.len());
    for character in text.chars() {
        match char_to_byte(character) {
            Some(byte) => bytes.push(byte),
            None => bytes.extend_from_slice(character.encode_utf8(&mut [0; 4]).as_bytes()),
        }
    }
    bytes
}

/// Printable Latin-1 stands for itself; the rest are numbered from U+0100 in order.
fn is_printable(byte: u8) -> bool {
    matches!(byte, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff)
}

fn byte_to_char(byte: u8) -> char {
    if is_printable(byte) {
        return char::from(byte);
    }
    let before = (0..byte).filter(|&other| !is_printable(other)).count() as u32;
    char::from_u32(0x100 + before).unwrap_or(char::REPLACEMENT_CHARACTER)
}

fn char_to_byte(character: char) -> Option<u8> {
    if let Ok(byte) = u8::try_from(u32::from(character)) {
        return is_printable(byte).then_some(byte);
    }
    let number = u32::from(character).checked_sub(0x100)? as usize;
    (0..=255u8).filter(|&byte| !is_printable(byte)).nth(number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_returns() {
        for byte in 0..=255u8 {
            assert_eq!(from_chars(&to_chars(&[byte])), [byte]);
        }
        assert_eq!(to_chars(b" a\n"), "\u{120}a\u{10a}");
        assert_eq!(from_chars("漢"), "漢".as_bytes());
    }
}
