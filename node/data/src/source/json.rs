//! One line of JSON as a row.
//!
//! Reads with visitors that accept every JSON value and say afterwards what was wrong with it: serde's
//! own errors quote values, and a value may be about a person. Nothing is built for keys that are
//! not part of a row.

use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};

use crate::row::{Content, MESSAGES_MAX, Message, Role, Row, RowFault};

/// The most keys of one object.
const KEYS_MAX: usize = 64;
/// How much of a role that nobody knows is shown: the name of a role is no content.
const ROLE_CHARS_SHOWN: usize = 20;

/// A line that is a row.
pub(super) struct Parsed {
    pub(super) row: Row,
    /// Keys of the row's object that were left out.
    pub(super) ignored: Vec<String>,
}

/// Why a line is no row.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum LineFault {
    #[error("not UTF-8 at byte {0}")]
    NotUtf8(usize),
    #[error("not JSON at column {0}")]
    NotJson(usize),
    #[error("the JSON ends early, at column {0}")]
    CutOff(usize),
    #[error("not a JSON object")]
    NotAnObject,
    #[error("the key {0:?} occurs twice")]
    DuplicateKey(String),
    #[error("more than {KEYS_MAX} keys")]
    TooManyKeys,
    #[error("none of the keys \"messages\", \"prompt\" with \"completion\", or \"text\"")]
    NoContent,
    #[error("both {0:?} and {1:?}: a row has one shape")]
    TwoShapes(&'static str, &'static str),
    #[error("{0:?} without {1:?}")]
    Half(&'static str, &'static str),
    #[error("{key:?} is {found}, not text")]
    NotText { key: &'static str, found: &'static str },
    #[error("\"subject_id\" is {0}, neither text nor a whole number")]
    Subject(&'static str),
    #[error("\"messages\" is {0}, not a list")]
    NotAList(&'static str),
    #[error("message {at}: {fault}")]
    Message { at: usize, fault: MessageFault },
    #[error(transparent)]
    Row(#[from] RowFault),
}

/// What is wrong with one message.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum MessageFault {
    #[error("{0}, not an object")]
    NotAnObject(&'static str),
    #[error("the key {0:?} occurs twice")]
    DuplicateKey(String),
    #[error("the key {0:?} is not known; a message has \"role\" and \"content\" only")]
    UnknownKey(String),
    #[error("no {0:?}")]
    Missing(&'static str),
    #[error("{key:?} is {found}, not text")]
    NotText { key: &'static str, found: &'static str },
    #[error("the role {0:?} is not known; roles are system, user, assistant and tool")]
    Role(String),
}

/// Reads one line.
pub(super) fn parse(line: &[u8]) -> Result<Parsed, LineFault> {
    let text =
        std::str::from_utf8(line).map_err(|error| LineFault::NotUtf8(error.valid_up_to() + 1))?;
    let object: Anything = serde_json::from_str(text).map_err(|error| {
        // Its words may quote the line.
        match error.classify() {
            serde_json::error::Category::Eof => LineFault::CutOff(error.column()),
            _ => LineFault::NotJson(error.column()),
        }
    })?;
    let mut object = object.0?;
    let ignored = std::mem::take(&mut object.ignored);
    let row = object.row()?;
    row.check()?;
    Ok(Parsed { row, ignored })
}

/// What is kept of a row's object.
#[derive(Default)]
struct Object {
    messages: Option<Result<Vec<Message>, LineFault>>,
    prompt: Option<Scalar>,
    completion: Option<Scalar>,
    text: Option<Scalar>,
    subject: Option<Scalar>,
    ignored: Vec<String>,
}

impl Object {
    fn row(self) -> Result<Row, LineFault> {
        let Object { messages, prompt, completion, text, subject, ignored: _ } = self;
        let named = [
            (messages.is_some(), "messages"),
            (prompt.is_some() || completion.is_some(), "prompt"),
            (text.is_some(), "text"),
        ];
        let mut shapes = named.iter().filter_map(|(there, name)| there.then_some(*name));
        if let (Some(one), Some(other)) = (shapes.next(), shapes.next()) {
            return Err(LineFault::TwoShapes(one, other));
        }
        let content = match (messages, prompt, completion, text) {
            (Some(messages), ..) => Content::Chat { messages: messages? },
            (_, Some(prompt), Some(completion), _) => Content::Completion {
                prompt: prompt.text("prompt")?,
                completion: completion.text("completion")?,
            },
            (_, Some(_), None, _) => return Err(LineFault::Half("prompt", "completion")),
            (_, None, Some(_), _) => return Err(LineFault::Half("completion", "prompt")),
            (.., Some(text)) => Content::Text { text: text.text("text")? },
            _ => return Err(LineFault::NoContent),
        };
        let subject = match subject {
            None => None,
            Some(Scalar::Text(subject)) => Some(subject),
            Some(Scalar::Whole(number)) => Some(number.to_string()),
            Some(Scalar::Other(found)) => return Err(LineFault::Subject(found)),
        };
        Ok(Row { content, subject })
    }
}

/// A text, a whole number, or the name of something else.
enum Scalar {
    Text(String),
    Whole(i128),
    Other(&'static str),
}

impl Scalar {
    fn text(self, key: &'static str) -> Result<String, LineFault> {
        match self {
            Scalar::Text(text) => Ok(text),
            Scalar::Whole(_) => Err(LineFault::NotText { key, found: "a number" }),
            Scalar::Other(found) => Err(LineFault::NotText { key, found }),
        }
    }
}

/// The visitor's methods for values of kinds that are not wanted: each becomes `$else(its name)`.
macro_rules! otherwise {
    ($else:expr; $($kind:ident),*) => { $(otherwise!(@ $else, $kind);)* };
    (@ $else:expr, bool) => {
        fn visit_bool<E>(self, _: bool) -> Result<Self::Value, E> { Ok($else("true or false")) }
    };
    (@ $else:expr, whole) => {
        fn visit_i64<E>(self, _: i64) -> Result<Self::Value, E> { Ok($else("a number")) }
        fn visit_u64<E>(self, _: u64) -> Result<Self::Value, E> { Ok($else("a number")) }
    };
    (@ $else:expr, float) => {
        fn visit_f64<E>(self, _: f64) -> Result<Self::Value, E> { Ok($else("a number")) }
    };
    (@ $else:expr, text) => {
        fn visit_str<E>(self, _: &str) -> Result<Self::Value, E> { Ok($else("text")) }
    };
    (@ $else:expr, null) => {
        fn visit_unit<E>(self) -> Result<Self::Value, E> { Ok($else("null")) }
    };
    (@ $else:expr, list) => {
        fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Self::Value, A::Error> {
            while list.next_element::<IgnoredAny>()?.is_some() {}
            Ok($else("a list"))
        }
    };
    (@ $else:expr, object) => {
        fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
            while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
            Ok($else("an object"))
        }
    };
}

impl<'de> Deserialize<'de> for Scalar {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Any;

        impl<'de> Visitor<'de> for Any {
            type Value = Scalar;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("any value")
            }
            fn visit_str<E>(self, text: &str) -> Result<Scalar, E> {
                Ok(Scalar::Text(text.to_owned()))
            }
            fn visit_string<E>(self, text: String) -> Result<Scalar, E> {
                Ok(Scalar::Text(text))
            }
            fn visit_i64<E>(self, number: i64) -> Result<Scalar, E> {
                Ok(Scalar::Whole(number.into()))
            }
            fn visit_u64<E>(self, number: u64) -> Result<Scalar, E> {
                Ok(Scalar::Whole(number.into()))
            }
            otherwise!(Scalar::Other; bool, float, null, list, object);
        }

        deserializer.deserialize_any(Any)
    }
}

/// A line's value: the object that it should be, or what it is instead.
struct Anything(Result<Object, LineFault>);

impl<'de> Deserialize<'de> for Anything {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Any;

        impl<'de> Visitor<'de> for Any {
            type Value = Anything;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("any value")
            }
            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Anything, A::Error> {
                read_object(map).map(Anything)
            }
            otherwise!(|_| Anything(Err(LineFault::NotAnObject)); bool, whole, float, text, null, list);
        }

        deserializer.deserialize_any(Any)
    }
}

fn read_object<'de, A: MapAccess<'de>>(mut map: A) -> Result<Result<Object, LineFault>, A::Error> {
    let mut object = Object::default();
    let mut keys: Vec<String> = Vec::new();
    let mut fault = None;
    while let Some(key) = map.next_key::<String>()? {
        // After a fault the rest is passed over, so that the line's JSON is still checked whole.
        if fault.is_none() && keys.contains(&key) {
            fault = Some(LineFault::DuplicateKey(shown(&key)));
        }
        if fault.is_none() && keys.len() == KEYS_MAX {
            fault = Some(LineFault::TooManyKeys);
        }
        if fault.is_some() {
            map.next_value::<IgnoredAny>()?;
            continue;
        }
        match key.as_str() {
            "messages" => object.messages = Some(map.next_value::<Messages>()?.0),
            "prompt" => object.prompt = Some(map.next_value()?),
            "completion" => object.completion = Some(map.next_value()?),
            "text" => object.text = Some(map.next_value()?),
            "subject_id" => object.subject = Some(map.next_value()?),
            _ => {
                map.next_value::<IgnoredAny>()?;
                object.ignored.push(key.clone());
            }
        }
        keys.push(key);
    }
    Ok(fault.map_or(Ok(object), Err))
}

/// The value of `messages`.
struct Messages(Result<Vec<Message>, LineFault>);

impl<'de> Deserialize<'de> for Messages {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Any;

        impl<'de> Visitor<'de> for Any {
            type Value = Messages;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("any value")
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Messages, A::Error> {
                let mut messages = Vec::new();
                while let Some(OneMessage(message)) = list.next_element()? {
                    let at = messages.len() + 1;
                    let fault = match message {
                        Err(fault) => LineFault::Message { at, fault },
                        Ok(_) if at > MESSAGES_MAX => RowFault::TooManyMessages.into(),
                        Ok(message) => {
                            messages.push(message);
                            continue;
                        }
                    };
                    while list.next_element::<IgnoredAny>()?.is_some() {}
                    return Ok(Messages(Err(fault)));
                }
                Ok(Messages(Ok(messages)))
            }
            otherwise!(|found| Messages(Err(LineFault::NotAList(found)));
                bool, whole, float, text, null, object);
        }

        deserializer.deserialize_any(Any)
    }
}

/// An element of `messages`.
struct OneMessage(Result<Message, MessageFault>);

impl<'de> Deserialize<'de> for OneMessage {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Any;

        impl<'de> Visitor<'de> for Any {
            type Value = OneMessage;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("any value")
            }
            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<OneMessage, A::Error> {
                read_message(map).map(OneMessage)
            }
            otherwise!(|found| OneMessage(Err(MessageFault::NotAnObject(found)));
                bool, whole, float, text, null, list);
        }

        deserializer.deserialize_any(Any)
    }
}

fn read_message<'de, A: MapAccess<'de>>(
    mut map: A,
) -> Result<Result<Message, MessageFault>, A::Error> {
    let (mut role, mut content, mut fault) = (None, None, None);
    while let Some(key) = map.next_key::<String>()? {
        let slot = match key.as_str() {
            "role" => &mut role,
            "content" => &mut content,
            _ => {
                fault.get_or_insert_with(|| MessageFault::UnknownKey(shown(&key)));
                map.next_value::<IgnoredAny>()?;
                continue;
            }
        };
        if slot.is_some() {
            fault.get_or_insert_with(|| MessageFault::DuplicateKey(shown(&key)));
            map.next_value::<IgnoredAny>()?;
        } else {
            *slot = Some(map.next_value::<Scalar>()?);
        }
    }
    Ok(match fault {
        Some(fault) => Err(fault),
        None => message(role, content),
    })
}

fn message(role: Option<Scalar>, content: Option<Scalar>) -> Result<Message, MessageFault> {
    let text = |key, value: Option<Scalar>| match value {
        None => Err(MessageFault::Missing(key)),
        Some(Scalar::Text(text)) => Ok(text),
        Some(Scalar::Whole(_)) => Err(MessageFault::NotText { key, found: "a number" }),
        Some(Scalar::Other(found)) => Err(MessageFault::NotText { key, found }),
    };
    let role = text("role", role)?;
    let role: Role = role
        .parse()
        .map_err(|()| MessageFault::Role(role.chars().take(ROLE_CHARS_SHOWN).collect()))?;
    Ok(Message { role, content: text("content", content)? })
}

/// The beginning of a key's name.
fn shown(key: &str) -> String {
    key.chars().take(40).collect()
}
