//! Audits of a small federation: as it should be, and with one thing wrong at a time.

mod damage;
mod meaning;
mod world;
