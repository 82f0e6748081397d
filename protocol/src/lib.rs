//! What is *said* in an Allmend federation: ids, units, time, the signed envelope, every message,
//! the charter and the mathematics of the log.
//!
//! Pure: no clock, no randomness, no sockets, no disks. `specs/` is normative for everything here
//! and each module names its page.

pub mod advert;
pub mod bundle;
pub mod bytes;
pub mod cert;
pub mod charter;
pub mod encoding;
pub mod envelope;
pub mod finetune;
pub mod grant;
pub mod ids;
pub mod job;
pub mod lease;
pub mod log;
pub mod log_succession;
pub mod message;
pub mod offer;
pub mod receipt;
pub mod roster;
pub mod stewardship;
pub mod time;
pub mod units;
