//! Training in a sealed room (specs/room.md): the same binary, sealed before it does anything, with the
//! model and the rows as read-only descriptors and a pipe as the only way out.

mod inside;
pub mod pipe;
mod pulse;
mod recipe;
mod supervise;

pub use self::inside::main;
pub use self::recipe::recipe;
pub use self::supervise::{End, supervise};
