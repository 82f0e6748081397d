//! The worker: the same binary as a child process over two pipes, with an empty environment. It
//! holds one model and computes any number of runs together, each step for all of them; a crash or an
//! out-of-memory kill of it is a failed attempt of every run in it, never a dead node.
//!
//! It opens no socket and reads no file but the model that it is told to load.

pub mod pipe;
mod pool;
mod request;
mod serve;
pub mod train;

pub use self::pool::{Pool, PoolOptions, Run, RunEvent, Task, WorkerView};
pub use self::serve::main;

/// The hidden command that becomes a training room.
pub const SEALED_COMMAND: &str = "room";
