//! Fine-tunes by low-rank adapters (LoRA, Hu et al. 2021, arXiv 2106.09685), on the processor.
//!
//! [`Base::open`] checks a model, [`Base::plan`] says what memory a [`Recipe`] takes, [`Trainer::new`] loads it;
//! [`Trainer::step`] (or [`Trainer::step_private`]) moves the adapter, [`Trainer::evaluate`] measures it,
//! [`Trainer::snapshot`] and [`Trainer::resume`] carry the run over an interruption, and [`Trainer::adapter`] gives what
//! PEFT and this engine load.
//!
//! There is no network, no clock and no disk in here, and no randomness but what recipe and caller hand in: equal
//! inputs give equal bytes. The caller brings rows that are tokens already ([`Example`]), watches the reports,
//! and decides when to stop.
//!
//! Around it: [`Texts`] and [`divide`] make [`Row`]s into examples with labels, [`Order`] and [`Subjects`] say which
//! of them a step sees, [`Losses`] says when to stop early, [`measure()`] says what an adapter gives away,
//! and [`run`] is all of it together, the inside of a training worker.
//!
//! # What is the same to the bit
//! On processors of one kind, the adapter does not depend on threads, on whether layers are computed again
//! ([`Recipe::recompute`]), or on whether the run was interrupted. It may differ between processors, whose caches decide how the
//! matrix library cuts its sums.

mod attention;
mod bench;
mod bf16;
mod canary;
mod data;
mod divide;
mod error;
mod example;
mod faults;
mod head;
mod health;
mod lora;
mod measure;
mod monitor;
mod optimiser;
mod order;
mod pace;
mod peft;
mod plan;
mod prepare;
mod private;
mod product;
mod random;
mod recipe;
mod record;
mod rows;
mod secrets;
mod seeded;
mod session;
mod settings;
mod snapshot;
mod spans;
mod subjects;
mod trainer;
mod trunk;
mod vector;
mod weights;

#[cfg(test)]
mod tests;

pub use self::bench::Bench;
pub use self::bf16::available as bf16_available;
pub use self::canary::{CANARIES_MAX, Canaries, Form, SECRETS};
pub use self::divide::{Divided, ROWS_MAX, Sides, Split, divide};
pub use self::error::TrainError;
pub use self::example::{Example, Subject};
#[doc(hidden)]
pub use self::faults::Faults;
pub use self::health::probe_processor;
pub use self::measure::{MeasureError, MeasureOptions, MeasuredRows, Measures, measure};
pub use self::monitor::{Abort, Divergence, LossRules, Losses, Plateau, WINDOW_MAX};
pub use self::order::{DATASETS_MAX, Order, ROUND_MAX};
pub use self::peft::{AdapterFiles, AdapterShape};
pub use self::plan::MemoryPlan;
pub use self::prepare::{Counts, LossOn, Preparation, RowsError, TOKENS_MAX, Texts};
pub use self::private::{ClippedSum, PrivateReport};
pub use self::random::NoiseKey;
pub use self::recipe::{Precision, Privacy, Recipe, Schedule};
pub use self::record::{EPOCHS_MAX, Progress, Record};
pub use self::rows::{Body, Row, TURNS_MAX};
pub use self::session::{Ending, Finished, Hooks, Phase, SessionError, run};
pub use self::settings::{Dataset, Secrets, Settings};
pub use self::snapshot::MONITORS_BYTES_MAX;
pub use self::subjects::Subjects;
pub use self::trainer::{
    Base, Likelihood, StepReport, TRAIN_NUMERICS_VERSION, TrainOptions, Trainer,
};
