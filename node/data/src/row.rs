//! One row: what it may hold and its one encoding (specs/dataset.md §1).

use std::fmt;
use std::marker::PhantomData;
use std::str::FromStr;

use allmend_protocol::encoding;
use allmend_protocol::ids::Digest;
use serde::de::{self, Deserializer, SeqAccess, Visitor};
use serde::{Deserialize, Serialize};

use crate::version::Salt;

/// The longest canonical encoding of a row: a long book fits, a disk image does not.
pub const ROW_BYTES_MAX: usize = 8 * 1024 * 1024;
/// The most messages of one conversation.
pub const MESSAGES_MAX: usize = 512;
/// The longest subject id, in bytes.
pub const SUBJECT_BYTES_MAX: usize = 256;

/// One row of a dataset.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Row {
    /// What a model is to learn from.
    pub content: Content,
    /// Whose row it is, as the steward calls them; it leaves the dataset only as a salted digest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subject: Option<String>,
}

/// What a row holds.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub enum Content {
    /// A conversation.
    Chat {
        /// Its turns, oldest first.
        #[serde(deserialize_with = "messages")]
        messages: Vec<Message>,
    },
    /// A prompt and what should follow it.
    Completion {
        /// What is given.
        prompt: String,
        /// What is to be learnt.
        completion: String,
    },
    /// Plain text.
    Text {
        /// All of it is to be learnt.
        text: String,
    },
}

/// One turn of a conversation.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Message {
    /// Who speaks.
    pub role: Role,
    /// What is said.
    pub content: String,
}

/// Who speaks in a conversation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// Instructions; only as the first turn.
    System,
    /// The person.
    User,
    /// The model.
    Assistant,
    /// The result of something that the model called.
    Tool,
}

impl Role {
    /// Its name in JSON and in chat templates.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::System => "system",
            Self::User => "user",
            Self::Assistant => "assistant",
            Self::Tool => "tool",
        }
    }
}

impl FromStr for Role {
    type Err = ();

    fn from_str(name: &str) -> Result<Self, ()> {
        match name {
            "system" => Ok(Self::System),
            "user" => Ok(Self::User),
            "assistant" => Ok(Self::Assistant),
            "tool" => Ok(Self::Tool),
            _ => Err(()),
        }
    }
}

/// The shape of a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// [`Content::Chat`].
    Chat,
    /// [`Content::Completion`].
    Completion,
    /// [`Content::Text`].
    Text,
}

impl Kind {
    /// In words.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Chat => "chat",
            Self::Completion => "prompt/completion",
            Self::Text => "text",
        }
    }
}

/// Why a row cannot be in a dataset. Never holds what the row holds.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RowFault {
    /// A NUL character.
    #[error("{0:?} holds a NUL character")]
    Nul(&'static str),
    /// Nothing where something is needed.
    #[error("{0:?} is empty")]
    Empty(&'static str),
    /// A system turn that is not the first.
    #[error("message {0} has the role \"system\", which only the first may have")]
    SystemLater(usize),
    /// Nothing to learn from.
    #[error("no message has the role \"assistant\", so there is nothing to learn from")]
    NoAssistant,
    /// More turns than a conversation may have.
    #[error("more than {MESSAGES_MAX} messages")]
    TooManyMessages,
    /// Too long a subject id.
    #[error("\"subject_id\" has more than {SUBJECT_BYTES_MAX} bytes")]
    SubjectTooLong,
    /// A control character in a subject id.
    #[error("\"subject_id\" holds a control character")]
    SubjectControl,
    /// The encoding exceeds [`ROW_BYTES_MAX`].
    #[error("the row has more than {ROW_BYTES_MAX} bytes; split it")]
    TooLong,
    /// Bytes that are not the one encoding of a row.
    #[error("not the canonical encoding of a row")]
    NotCanonical,
}

impl Row {
    /// Its shape.
    #[must_use]
    pub const fn kind(&self) -> Kind {
        match self.content {
            Content::Chat { .. } => Kind::Chat,
            Content::Completion { .. } => Kind::Completion,
            Content::Text { .. } => Kind::Text,
        }
    }

    /// Checks what specs/dataset.md §1.2 demands, except for the length of the encoding.
    ///
    /// # Errors
    /// The first [`RowFault`] found.
    pub fn check(&self) -> Result<(), RowFault> {
        match &self.content {
            Content::Chat { messages } => check_messages(messages)?,
            Content::Completion { prompt, completion } => {
                // An empty prompt is a completion of nothing, which people do use.
                filled("completion", completion)?;
                no_nul("prompt", prompt)?;
                no_nul("completion", completion)?;
            }
            Content::Text { text } => {
                filled("text", text)?;
                no_nul("text", text)?;
            }
        }
        match &self.subject {
            None => Ok(()),
            Some(subject) if subject.is_empty() => Err(RowFault::Empty("subject_id")),
            Some(subject) if subject.len() > SUBJECT_BYTES_MAX => Err(RowFault::SubjectTooLong),
            Some(subject) if subject.chars().any(char::is_control) => Err(RowFault::SubjectControl),
            Some(_) => Ok(()),
        }
    }

    /// The one encoding of this row: strict DAG-CBOR (specs/dataset.md §1.3).
    ///
    /// # Errors
    /// [`RowFault`] if the row may not be in a dataset.
    pub fn encode(&self) -> Result<Vec<u8>, RowFault> {
        self.check()?;
        let bytes = encoding::encode(self);
        if bytes.len() > ROW_BYTES_MAX { Err(RowFault::TooLong) } else { Ok(bytes) }
    }

    /// Reads one row from its encoding.
    ///
    /// # Errors
    /// [`RowFault`] for anything else than a valid row in its one encoding; holds at most a small
    /// multiple of `bytes`.
    pub fn decode(bytes: &[u8]) -> Result<Row, RowFault> {
        let row: Row = encoding::decode(bytes, ROW_BYTES_MAX).map_err(|error| match error {
            encoding::DecodeError::TooLong { .. } => RowFault::TooLong,
            // Its words may quote what it read.
            _ => RowFault::NotCanonical,
        })?;
        row.check()?;
        Ok(row)
    }

    /// By what accounting knows this row's subject within the version with this salt.
    #[must_use]
    pub fn subject_key(&self, salt: &Salt) -> Option<Digest> {
        self.subject.as_ref().map(|subject| salt.digest(subject.as_bytes()))
    }
}

fn check_messages(messages: &[Message]) -> Result<(), RowFault> {
    if messages.is_empty() {
        return Err(RowFault::Empty("messages"));
    }
    if messages.len() > MESSAGES_MAX {
        return Err(RowFault::TooManyMessages);
    }
    for (at, message) in messages.iter().enumerate() {
        no_nul("content", &message.content)?;
        if message.role == Role::System && at > 0 {
            return Err(RowFault::SystemLater(at + 1));
        }
        if message.role == Role::Assistant {
            filled("content", &message.content)?;
        }
    }
    if messages.iter().any(|message| message.role == Role::Assistant) {
        Ok(())
    } else {
        Err(RowFault::NoAssistant)
    }
}

fn no_nul(what: &'static str, text: &str) -> Result<(), RowFault> {
    if text.as_bytes().contains(&0) { Err(RowFault::Nul(what)) } else { Ok(()) }
}

fn filled(what: &'static str, text: &str) -> Result<(), RowFault> {
    if text.trim().is_empty() { Err(RowFault::Empty(what)) } else { Ok(()) }
}

impl fmt::Debug for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Row({:?}, subject: {})", self.content, self.subject.is_some())
    }
}

impl fmt::Debug for Content {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Chat { messages } => write!(f, "Chat({} messages)", messages.len()),
            Self::Completion { prompt, completion } => {
                write!(f, "Completion({} + {} bytes)", prompt.len(), completion.len())
            }
            Self::Text { text } => write!(f, "Text({} bytes)", text.len()),
        }
    }
}

impl fmt::Debug for Message {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Message({}, {} bytes)", self.role.as_str(), self.content.len())
    }
}

/// Reads a list of at most [`MESSAGES_MAX`] messages and stops at the next one.
fn messages<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<Message>, D::Error> {
    struct Bounded<T>(PhantomData<T>);

    impl<'de, T: Deserialize<'de>> Visitor<'de> for Bounded<T> {
        type Value = Vec<T>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            write!(f, "a list of at most {MESSAGES_MAX} messages")
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut elements: A) -> Result<Vec<T>, A::Error> {
            // Grows with what is really there, never with what the list's head claims.
            let mut list = Vec::new();
            while let Some(element) = elements.next_element()? {
                if list.len() == MESSAGES_MAX {
                    return Err(de::Error::invalid_length(MESSAGES_MAX + 1, &self));
                }
                list.push(element);
            }
            Ok(list)
        }
    }

    deserializer.deserialize_seq(Bounded(PhantomData))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use proptest::prelude::*;

    pub(crate) fn text(text: &str) -> Row {
        Row { content: Content::Text { text: text.to_owned() }, subject: None }
    }

    pub(crate) fn of(subject: &str, text: &str) -> Row {
        Row { content: Content::Text { text: text.to_owned() }, subject: Some(subject.to_owned()) }
    }

    pub(crate) fn chat(turns: &[(Role, &str)]) -> Row {
        let messages = turns
            .iter()
            .map(|(role, content)| Message { role: *role, content: (*content).to_owned() })
            .collect();
        Row { content: Content::Chat { messages }, subject: None }
    }

    /// Any row that may be in a dataset.
    pub(crate) fn any_row() -> impl Strategy<Value = Row> {
        let words = "[^\u{0}]{0,40}";
        let said = "[a-zäé🌄\n\"\\\\]{1,40}";
        let messages =
            (proptest::option::of(words), proptest::collection::vec((words, said), 1..4)).prop_map(
                |(system, turns)| {
                    let mut messages: Vec<Message> = system
                        .map(|content| Message { role: Role::System, content })
                        .into_iter()
                        .collect();
                    for (user, assistant) in turns {
                        messages.push(Message { role: Role::User, content: user });
                        messages.push(Message { role: Role::Assistant, content: assistant });
                    }
                    Content::Chat { messages }
                },
            );
        let content = prop_oneof![
            messages,
            (words, said)
                .prop_map(|(prompt, completion)| Content::Completion { prompt, completion }),
            said.prop_map(|text| Content::Text { text }),
        ];
        (content, proptest::option::of("[a-z0-9é-]{1,12}"))
            .prop_map(|(content, subject)| Row { content, subject })
            .prop_filter("white space alone is nothing to learn", |row| row.check().is_ok())
    }

    #[test]
    fn faults_are_named() {
        use Role::{Assistant, System, User};
        let cases: Vec<(Row, RowFault)> = vec![
            (text(""), RowFault::Empty("text")),
            (text(" \n"), RowFault::Empty("text")),
            (text("a\0b"), RowFault::Nul("text")),
            (chat(&[]), RowFault::Empty("messages")),
            (chat(&[(User, "a")]), RowFault::NoAssistant),
            (chat(&[(User, "a"), (System, "b"), (Assistant, "c")]), RowFault::SystemLater(2)),
            (chat(&[(User, "a"), (Assistant, " ")]), RowFault::Empty("content")),
            (chat(&[(User, "a\0"), (Assistant, "b")]), RowFault::Nul("content")),
            (chat(&vec![(Assistant, "a"); MESSAGES_MAX + 1]), RowFault::TooManyMessages),
            (of("", "a"), RowFault::Empty("subject_id")),
            (of("a\nb", "a"), RowFault::SubjectControl),
            (of(&"s".repeat(SUBJECT_BYTES_MAX + 1), "a"), RowFault::SubjectTooLong),
            (text(&"a".repeat(ROW_BYTES_MAX)), RowFault::TooLong),
        ];
        for (row, fault) in cases {
            assert_eq!(row.encode(), Err(fault.clone()), "{row:?}");
            // What may not be written may not be read either.
            assert!(Row::decode(&encoding::encode(&row)).is_err(), "{fault}");
        }
    }

    #[test]
    fn debug_says_nothing_of_the_content() {
        let rows = [
            of("Anna", "secret"),
            chat(&[(Role::User, "secret"), (Role::Assistant, "secret")]),
            Row {
                content: Content::Completion {
                    prompt: "secret".into(),
                    completion: "secret".into(),
                },
                subject: Some("Anna".into()),
            },
        ];
        for row in rows {
            let shown = format!("{row:?} {:?}", row.content);
            assert!(!shown.contains("secret") && !shown.contains("Anna"), "{shown}");
        }
    }

    proptest! {
        #[test]
        fn the_encoding_round_trips(row in any_row()) {
            let bytes = row.encode().unwrap();
            prop_assert_eq!(Row::decode(&bytes), Ok(row));
        }

        #[test]
        fn no_bytes_panic_and_none_have_a_second_reading(bytes: Vec<u8>) {
            if let Ok(row) = Row::decode(&bytes) {
                prop_assert_eq!(row.encode().unwrap(), bytes);
            }
        }

        #[test]
        fn a_changed_encoding_is_refused_or_another_row(
            row in any_row(), at: prop::sample::Index, to: u8,
        ) {
            let bytes = row.encode().unwrap();
            let mut changed = bytes.clone();
            let at = at.index(changed.len());
            changed[at] = to;
            if changed != bytes && let Ok(other) = Row::decode(&changed) {
                prop_assert_ne!(other, row);
            }
        }
    }
}
