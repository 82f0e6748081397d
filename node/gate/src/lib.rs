//! The output gate (specs/gate.md): what may leave a sealed room, and in which form.
//!
//! A worker that has trained on data which must not leave hands three things to the gate: an adapter,
//! a record of metrics, and measures of how much the adapter has memorised. The gate believes none of
//! it. [`pass`] checks everything and either gives the adapter in the form in which it leaves (a
//! [`Bundle`], specs/adapter.md), or every reason why it stays.
//!
//! Pure functions on bytes and numbers; only [`Bundle::unpack`] and [`record_file`] touch a disk. It
//! runs outside of the room, knows neither network nor policy, and says nothing, in results or in
//! errors, that the worker could have chosen freely (specs/gate.md §1).

mod bundle;
mod card;
mod declared;
mod header;
mod inspect;
mod measures;
mod metrics;
mod pass;
mod peft;
pub mod record_file;
mod rules;
mod stop;

pub use bundle::{BUNDLE_BYTES_MAX, Bundle, BundleError};
pub use card::{Base, CardFacts, PrivacyFacts, RecipeFacts, Source};
pub use declared::{Declared, DeclaredError, DeclaredTensor, Dtype};
pub use inspect::{AdapterLimits, Inspected, Precision, inspect};
pub use measures::{Exposure, Extraction, MEASURES_BYTES_MAX, Measures};
pub use metrics::{EPOCHS_MAX, METRICS_BYTES_MAX, Metrics, Validation, milli};
pub use pass::{Passed, Released, Request, Terms, Worked, pass};
pub use peft::PeftConfig;
pub use rules::{Memorisation, Rules, RunFacts, judge};
pub use stop::{Rule, Stop};
