//! What a tapped node wrote down (`debug.tap_dir`): every frame in clear, one file per peer, plane,
//! stream and direction. Text is found in it whether it lies there in one piece or token by token.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, ensure};

/// Frames of members and clients are byte strings with a length in front (specs/transport.md §6).
const PREFIX: usize = 4;
/// Deeper nesting than any frame has.
const DEPTH_MAX: usize = 16;

/// Which way frames went, seen from the tapped node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// To it.
    In,
    /// From it.
    Out,
}

/// One file of a tap.
#[derive(Clone, Debug)]
pub struct Stream {
    /// Its file.
    pub path: PathBuf,
    /// The peer's key in hexadecimal, or `everybody`.
    pub peer: String,
    /// `Hello`, `Request`, `Reply`, `Gossip`, `Bulk` or `Client`.
    pub plane: String,
    /// Which way.
    pub direction: Direction,
    bytes: Vec<u8>,
}

/// Reads every file of a tap.
///
/// # Errors
/// When there is none, or one has a name of another form.
pub fn read(dir: &Path) -> anyhow::Result<Vec<Stream>> {
    let mut streams = Vec::new();
    for entry in std::fs::read_dir(dir).with_context(|| format!("no tap in {}", dir.display()))? {
        let path = entry?.path();
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let parts: Vec<&str> = name.split('.').collect();
        let [peer, plane, _, direction] = parts.as_slice() else {
            anyhow::bail!("{} is no file of a tap", path.display());
        };
        let direction = if *direction == "in" { Direction::In } else { Direction::Out };
        let (peer, plane) = ((*peer).to_owned(), (*plane).to_owned());
        let bytes = std::fs::read(&path)?;
        streams.push(Stream { path, peer, plane, direction, bytes });
    }
    ensure!(!streams.is_empty(), "the tap in {} is empty", dir.display());
    Ok(streams)
}

impl Stream {
    /// Whether `text` went over it, in one piece or spread over the texts of its frames.
    #[must_use]
    pub fn carries(&self, text: &str) -> bool {
        contains(&self.bytes, text.as_bytes()) || self.text().contains(text)
    }

    /// The texts of all frames, one after the other: of tokens, the answer.
    #[must_use]
    pub fn text(&self) -> String {
        let mut text = String::new();
        let mut rest = self.bytes.as_slice();
        while let Some((prefix, after)) = rest.split_first_chunk::<PREFIX>() {
            let length = usize::try_from(u32::from_be_bytes(*prefix)).unwrap_or(usize::MAX);
            let Some((frame, after)) = after.split_at_checked(length) else { break };
            texts(&mut &*frame, DEPTH_MAX, false, &mut text);
            rest = after;
        }
        text
    }
}

/// Whether `bytes` has `needle` in it.
#[must_use]
pub fn contains(bytes: &[u8], needle: &[u8]) -> bool {
    bytes.windows(needle.len()).any(|window| window == needle)
}

/// Walks over one CBOR item (RFC 8949 §3) and collects text that is the value of a key `text`; says
/// whether the item is the word `text` itself. Malformed bytes end the walk.
fn texts(bytes: &mut &[u8], depth: usize, wanted: bool, out: &mut String) -> Option<bool> {
    let depth = depth.checked_sub(1)?;
    let (first, rest) = bytes.split_first()?;
    *bytes = rest;
    let (major, small) = (first >> 5, first & 31);
    let argument = match small {
        0..=23 => u64::from(small),
        24..=27 => {
            let (value, rest) = bytes.split_at_checked(1 << (small - 24))?;
            *bytes = rest;
            value.iter().fold(0, |sum, byte| sum << 8 | u64::from(*byte))
        }
        _ => return None,
    };
    match major {
        2 | 3 => {
            let (content, rest) = bytes.split_at_checked(usize::try_from(argument).ok()?)?;
            *bytes = rest;
            if wanted && major == 3 {
                out.push_str(&String::from_utf8_lossy(content));
            }
            return Some(major == 3 && content == b"text");
        }
        4 => {
            for _ in 0..argument {
                texts(bytes, depth, false, out)?;
            }
        }
        5 => {
            for _ in 0..argument {
                let key = texts(bytes, depth, false, out)?;
                texts(bytes, depth, key, out)?;
            }
        }
        6 => return texts(bytes, depth, wanted, out),
        _ => {}
    }
    Some(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token(text: &str) -> Vec<u8> {
        // {"token": {"id": 300, "text": …, "index": 1}}
        let mut frame = b"\xa1\x65token\xa3\x62id\x19\x01\x2c\x64text".to_vec();
        frame.push(0x60 + u8::try_from(text.len()).unwrap());
        frame.extend_from_slice(text.as_bytes());
        frame.extend_from_slice(b"\x65index\x01");
        let length = u32::try_from(frame.len()).unwrap();
        [length.to_be_bytes().to_vec(), frame].concat()
    }

    #[test]
    fn text_is_found_across_frames() {
        let stream = |bytes| Stream {
            path: PathBuf::new(),
            peer: String::new(),
            plane: "Bulk".to_owned(),
            direction: Direction::Out,
            bytes,
        };
        let both = stream([token("Quill"), token("feather")].concat());
        assert_eq!(both.text(), "Quillfeather");
        assert!(both.carries("Quillfeather") && !both.carries("token"[1..].repeat(2).as_str()));
        assert!(stream(b"no frame, but Quillfeather".to_vec()).carries("Quillfeather"));
        // A frame cut short gives what came before it.
        let cut = [token("Quill"), token("feather")[..9].to_vec()].concat();
        assert_eq!(stream(cut).text(), "Quill");
    }

    #[test]
    fn no_bytes_panic() {
        let mut dice = super::super::Dice(7);
        for length in 0..200 {
            let mut bytes = vec![0; length];
            dice.fill(&mut bytes);
            texts(&mut bytes.as_slice(), DEPTH_MAX, true, &mut String::new());
            texts(&mut [0x81; 200].as_slice(), DEPTH_MAX, true, &mut String::new());
        }
    }
}
