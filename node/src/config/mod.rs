//! What the operator wrote, checked: settings, the data directory, key files.
//!
//! [`SETTINGS`] is the one table of settings; the annotated file, `docs/config.md`, the names of
//! environment variables and all checks come from it. A setting is taken from the command line,
//! else the environment, else the file, else its default. A node with a bad configuration does
//! not start. This module opens no socket and knows no policy: `[policy]` passes through.

mod check;
mod country;
mod error;
mod file;
mod keys;
mod layout;
mod load;
mod print;
mod settings;

pub use error::{ConfigError, Origin, Place, Problem};
pub use keys::{Identity, KeyError, SealingSecret};
pub(crate) use layout::create_private_dir;
pub use layout::{Layout, LayoutError, write_private};
pub use load::{Effective, Loaded, Overrides, load};
pub use print::{annotated, markdown};
pub use settings::{
    AddressUse, Config, Debug, Kind, Limits, LogLevel, SETTINGS, Setting, StewardsSettings,
    Storage, Timing, Transport,
};
