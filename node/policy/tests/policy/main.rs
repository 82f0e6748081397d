//! Policies from outside: tables of decisions, what is shipped, hostile texts, written policies.

mod decisions;
mod hostile;
mod shipped;
mod written;
