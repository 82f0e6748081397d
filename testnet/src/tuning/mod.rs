//! Fine-tuning where the data lives, as people do it: a holder with rows that nobody else has, a steward
//! with a key of their own, a researcher at another institution. Demo and ordeals share it.
//!
//! Everything goes through the command line; nothing here knows how a node trains.

mod card;
mod people;
pub mod policy;
mod recipe;
pub mod rows;

pub use self::card::Card;
pub(crate) use self::people::why;
pub use self::people::{
    Dataset, Released, Steward, add_dataset, answer, approve, contract_of, decide, fetch, logged,
    question_of, steward, submit, wait_over, wait_step,
};
pub use self::recipe::{Recipe, Source};

use std::time::Duration;

/// How long a question may take from submission to a steward's inbox.
pub const ASKED_WITHIN: Duration = Duration::from_secs(60);
/// How long one short run may take, with loading, measuring and a busy machine.
pub const TRAINED_WITHIN: Duration = Duration::from_secs(900);
/// The class of room that short runs ask for.
pub const ROOM: &str = "sealed-v1";
