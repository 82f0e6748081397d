//! Why there is no room.

use std::io;

use crate::Strength;

/// Why a room could not be built, opened or entered. Nothing was handed in, and the process, if there
/// was one, has been ended.
#[derive(Debug, thiserror::Error)]
pub enum RoomError {
    /// The order itself makes no sense.
    #[error("the room cannot be ordered: {0}")]
    Spec(String),
    /// The operating system refused something that every room needs.
    #[error("{doing}: {source}")]
    System {
        /// What was being done.
        doing: &'static str,
        /// What it said.
        source: io::Error,
    },
    /// The room said that it could not be sealed.
    #[error("the room could not be sealed: {0}")]
    NotSealed(String),
    /// The process ended, or was silent for too long, before it reported.
    #[error(
        "the room ended or fell silent before it reported; is the program one that calls seal()?"
    )]
    Silent,
    /// What came over the handshake is not the handshake.
    #[error("the room's handshake is malformed: {0}")]
    Malformed(String),
    /// It is weaker than what was ordered.
    #[error("the room is {has}, {wanted} is needed: {}", lacking.join("; "))]
    TooWeak {
        /// What was ordered.
        wanted: Strength,
        /// What it is.
        has: Strength,
        /// What is missing, in sentences.
        lacking: Vec<String>,
    },
    /// A descriptor may not be handed in.
    #[error("the descriptor {name:?} cannot be handed in: {why}")]
    Descriptor {
        /// Its name.
        name: String,
        /// In words.
        why: String,
    },
    /// The process was not started as a room.
    #[error("this process was not started as a room: its standard input is no handshake")]
    NotARoom,
}

impl RoomError {
    /// For `map_err`: an operating system's refusal while `doing`.
    #[cfg(target_os = "linux")]
    pub(crate) fn system<E: Into<io::Error>>(doing: &'static str) -> impl FnOnce(E) -> RoomError {
        move |error| RoomError::System { doing, source: error.into() }
    }
}
