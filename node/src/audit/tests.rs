//! Audits of a small federation: as it should be, and with one thing wrong at a time.

mod adapters;
mod damage;
mod data;
mod meaning;
mod world;
