//! Turns the bytes of tokens into text that may be shown: whole characters only, and nothing that could
//! still turn out to be part of a stop string.

use crate::error::EngineError;

/// More stop strings than anyone needs; each costs a comparison per character.
const STOPS_LEN_MAX: usize = 16;
/// Text of this length may be held back, so it bounds how far the stream lags.
const STOP_BYTES_MAX: usize = 256;

/// Accumulates token bytes and releases text.
#[derive(Clone, Debug)]
pub(crate) struct TextStream {
    stops: Vec<String>,
    /// Bytes that may be the beginning of a character; at most three after each push.
    partial: Vec<u8>,
    /// Whole characters that may be the beginning of a stop string.
    held: String,
}

/// What a push set free.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Released {
    /// Text that is safe to show; generation goes on.
    Text(String),
    /// The text before a stop string, which has now appeared.
    Stopped(String),
}

impl TextStream {
    /// # Errors
    /// When there are too many stop strings, or one is empty or too long.
    pub(crate) fn new(stops: &[String]) -> Result<Self, EngineError> {
        if stops.len() > STOPS_LEN_MAX {
            let problem = format!("{} stop strings, at most {STOPS_LEN_MAX}", stops.len());
            return Err(EngineError::InvalidRequest(problem));
        }
        if stops.iter().any(|stop| stop.is_empty() || stop.len() > STOP_BYTES_MAX) {
            let problem = format!("stop strings must have 1..={STOP_BYTES_MAX} bytes");
            return Err(EngineError::InvalidRequest(problem));
        }
        Ok(Self { stops: stops.to_vec(), partial: Vec::new(), held: String::new() })
    }

    /// Adds the bytes of one token.
    pub(crate) fn push(&mut self, bytes: &[u8]) -> Released {
        self.partial.extend_from_slice(bytes);
        self.decode_whole_characters();
        // The stop that ends first, as if characters came one by one: how tokens cut the text must not
        // matter, or a resumed answer could end elsewhere.
        let spans = self.stops.iter().filter_map(|stop| {
            let start = self.held.find(stop.as_str())?;
            Some((start + stop.len(), start))
        });
        if let Some((_, at)) = spans.min() {
            self.held.truncate(at);
            self.partial.clear();
            return Released::Stopped(std::mem::take(&mut self.held));
        }
        let keep = self.held.len() - self.possible_stop_bytes();
        let rest = self.held.split_off(keep);
        Released::Text(std::mem::replace(&mut self.held, rest))
    }

    /// Everything still held back, when no more tokens will come.
    pub(crate) fn finish(&mut self) -> String {
        if !self.partial.is_empty() {
            self.partial.clear();
            self.held.push(char::REPLACEMENT_CHARACTER);
        }
        std::mem::take(&mut self.held)
    }

    /// Moves complete characters from `partial` to `held`; bytes that can never become one turn into
    /// U+FFFD, one for each maximal invalid piece as Unicode recommends (chapter 3.9).
    fn decode_whole_characters(&mut self) {
        let mut rest = self.partial.as_slice();
        loop {
            let error = match std::str::from_utf8(rest) {
                Ok(text) => {
                    self.held.push_str(text);
                    rest = &[];
                    break;
                }
                Err(error) => error,
            };
            let (valid, after) = rest.split_at(error.valid_up_to());
            // The prefix was just found valid, so nothing is replaced here.
            self.held.push_str(&String::from_utf8_lossy(valid));
            rest = after;
            match error.error_len() {
                Some(len) => {
                    self.held.push(char::REPLACEMENT_CHARACTER);
                    rest = rest.get(len..).unwrap_or_default();
                }
                None => break,
            }
        }
        self.partial = rest.to_vec();
    }

    /// Length of the longest end of `held` that begins a stop string.
    fn possible_stop_bytes(&self) -> usize {
        let begins_stop = |end: &str| self.stops.iter().any(|stop| stop.starts_with(end));
        let starts = self.held.char_indices().map(|(at, _)| at);
        // Only the last bytes can matter; stop strings are bounded, so this is too.
        let from = self.held.len().saturating_sub(STOP_BYTES_MAX);
        starts
            .skip_while(|&at| at < from)
            .find(|&at| begins_stop(&self.held[at..]))
            .map_or(0, |at| self.held.len() - at)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn stream(stops: &[&str]) -> TextStream {
        let stops: Vec<String> = stops.iter().map(|&stop| stop.to_owned()).collect();
        TextStream::new(&stops).unwrap()
    }

    fn text(text: &str) -> Released {
        Released::Text(text.to_owned())
    }

    #[test]
    fn incomplete_characters_wait() {
        let mut stream = stream(&[]);
        assert_eq!(stream.push(&[b'a', 0xf0, 0x9f]), text("a"));
        assert_eq!(stream.push(&[0x98]), text(""));
        assert_eq!(stream.push(&[0x80, b'b']), text("😀b"));
        assert_eq!(stream.push(&[0xff, b'c', 0xe2, 0x82]), text("\u{fffd}c"));
        assert_eq!(stream.finish(), "\u{fffd}");
    }

    #[test]
    fn text_waits_while_it_may_be_a_stop() {
        let mut stream = stream(&["###", "</end>"]);
        assert_eq!(stream.push(b"one #"), text("one "));
        assert_eq!(stream.push(b"# two </"), text("## two "));
        assert_eq!(stream.push(b"en"), text(""));
        assert_eq!(stream.push(b"d> three"), Released::Stopped(String::new()));
    }

    #[test]
    fn the_stop_that_ends_first_wins_and_nothing_after_it_shows() {
        let mut stream = stream(&["b", "a"]);
        assert_eq!(stream.push(b"xxaybz"), Released::Stopped("xx".to_owned()));
    }

    #[test]
    fn stops_are_bounded() {
        assert!(TextStream::new(&[String::new()]).is_err());
        assert!(TextStream::new(&["x".repeat(257)]).is_err());
        assert!(TextStream::new(&vec!["x".to_owned(); 17]).is_err());
    }

    proptest! {
        /// Goal: however bytes are cut into tokens, the text shown is the same.
        #[test]
        fn cutting_does_not_matter(
            bytes in prop::collection::vec(prop_oneof![Just(b'a'), Just(b'b'), any::<u8>()], 0..60),
            cuts in prop::collection::vec(1usize..5, 1..60),
            stops in prop::collection::vec("[ab]{1,4}", 0..3),
        ) {
            let run = |sizes: &mut dyn Iterator<Item = usize>| {
                let mut stream = TextStream::new(&stops).unwrap();
                let (mut shown, mut rest) = (String::new(), bytes.as_slice());
                while !rest.is_empty() {
                    let (head, tail) = rest.split_at(sizes.next().unwrap().min(rest.len()));
                    rest = tail;
                    match stream.push(head) {
                        Released::Text(text) => shown.push_str(&text),
                        Released::Stopped(text) => return (shown + &text, true),
                    }
                }
                (shown + &stream.finish(), false)
            };
            let whole = run(&mut std::iter::repeat(1));
            prop_assert_eq!(&run(&mut cuts.iter().copied().cycle()), &whole);
            let lossy = String::from_utf8_lossy(&bytes).into_owned();
            let spans = stops.iter().filter_map(|stop| {
                lossy.find(stop.as_str()).map(|start| (start + stop.len(), start))
            });
            let end = spans.min().map(|(_, start)| start);
            prop_assert_eq!(whole, (lossy[..end.unwrap_or(lossy.len())].to_owned(), end.is_some()));
        }
    }
}
