//! What a dataset's rows say, before they are tokens.
//!
//! Reading files and canonical encodings is the data crate's; this is what it hands to training. Nothing
//! here prints what a row says: `Debug` shows kinds and sizes only.

use std::fmt;

use sha2::{Digest, Sha256};

use super::Subject;
use crate::template::ChatMessage;

/// Turns of one conversation. Finding what the assistant said renders the conversation twice per turn,
/// so this bounds the work that one row can ask for.
pub const TURNS_MAX: usize = 512;

/// One row of a dataset.
#[derive(Clone, PartialEq, Eq)]
pub struct Row {
    /// What it says.
    pub body: Body,
    /// Whose words they are, by a key that means nothing outside the dataset. A row without one is a
    /// subject of its own.
    pub subject: Option<Subject>,
}

/// The kinds of rows.
#[derive(Clone, PartialEq, Eq)]
pub enum Body {
    /// A conversation, in the order in which it was held.
    Chat(Vec<ChatMessage>),
    /// Something given and how it is to be continued. Nothing is put between the two.
    Completion {
        /// What is given.
        prompt: String,
        /// What the model is to learn to say.
        completion: String,
    },
    /// Text to learn as it stands.
    Text(String),
}

impl Row {
    /// A row that is a subject of its own.
    pub fn new(body: Body) -> Self {
        Self { body, subject: None }
    }

    /// What decides the side of the validation split: the subject where there is one, else what the row
    /// says, so that a repetition of it lands on the same side.
    pub(crate) fn split_key(&self) -> [u8; 32] {
        let mut hash = Sha256::new();
        match &self.subject {
            Some(subject) => {
                hash.update(b"allmend training subject v1\0");
                hash.update(subject.0);
            }
            None => {
                hash.update(b"allmend training row v1\0");
                self.body.feed(&mut |text| {
                    hash.update((text.len() as u64).to_le_bytes());
                    hash.update(text);
                });
            }
        }
        hash.finalize().into()
    }
}

impl Body {
    /// Bytes of all its texts.
    pub fn bytes(&self) -> usize {
        let mut bytes = 0;
        self.feed(&mut |text| bytes += text.len());
        bytes
    }

    /// Its kind and its texts, one after the other.
    fn feed(&self, take: &mut dyn FnMut(&[u8])) {
        match self {
            Self::Chat(messages) => {
                take(b"chat");
                for message in messages {
                    take(message.role.as_bytes());
                    take(message.content.as_bytes());
                }
            }
            Self::Completion { prompt, completion } => {
                take(b"completion");
                take(prompt.as_bytes());
                take(completion.as_bytes());
            }
            Self::Text(text) => {
                take(b"text");
                take(text.as_bytes());
            }
        }
    }
}

impl fmt::Debug for Row {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let subject = if self.subject.is_some() { "with" } else { "without" };
        write!(formatter, "Row({:?}, {subject} subject key)", self.body)
    }
}

impl fmt::Debug for Body {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Chat(messages) => write!(formatter, "chat of {} turns", messages.len()),
            Self::Completion { prompt, completion } => {
                write!(formatter, "{} bytes and {} to follow", prompt.len(), completion.len())
            }
            Self::Text(text) => write!(formatter, "{} bytes of text", text.len()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(text: &str, subject: Option<Subject>) -> Row {
        Row { body: Body::Text(text.to_owned()), subject }
    }

    /// Goal: what a row says never shows up in a log through its `Debug`.
    #[test]
    fn debug_says_nothing_of_what_rows_say() {
        let message = ChatMessage { role: "user".to_owned(), content: "Marker".to_owned() };
        let completion =
            Body::Completion { prompt: "Marker".to_owned(), completion: "Marker".to_owned() };
        let rows = [
            text("Marker", Some(Subject([0x4d; 32]))),
            Row::new(Body::Chat(vec![message])),
            Row::new(completion),
        ];
        let printed = format!("{rows:?}");
        assert!(!printed.contains("Marker") && !printed.contains("77"), "{printed}");
        assert!(printed.contains("6 bytes of text, with subject key"), "{printed}");
    }

    #[test]
    fn the_split_key_is_the_subjects_or_what_the_row_says() {
        let of = |row: Row| row.split_key();
        assert_eq!(of(text("a", Some(Subject([1; 32])))), of(text("b", Some(Subject([1; 32])))));
        assert_ne!(of(text("a", Some(Subject([1; 32])))), of(text("a", Some(Subject([2; 32])))));
        assert_eq!(of(text("a", None)), of(text("a", None)));
        assert_ne!(of(text("a", None)), of(text("b", None)));
        // How texts are divided counts too.
        let pair = |prompt: &str, completion: &str| {
            Row::new(Body::Completion {
                prompt: prompt.to_owned(),
                completion: completion.to_owned(),
            })
        };
        assert_ne!(of(pair("ab", "c")), of(pair("a", "bc")));
    }
}
