//! How a room is to be built.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::time::Duration;

use crate::{Layer, RoomError, Strength};

/// Environment variables at most.
const VARIABLES_MAX: usize = 16;

/// A room's order form.
#[derive(Clone, Debug)]
pub struct Spec {
    /// The weakest class that will do: a room below it is refused before any data is handed in.
    pub least: Strength,
    /// Bytes of private memory (heap, stacks, private mappings); read-only mappings of what is handed in
    /// do not count.
    pub memory_max_bytes: u64,
    /// Threads at most, where the kernel lets that be bounded.
    pub threads_max: u32,
    /// Environment variables. The names go into the report, so neither they nor the values may say
    /// anything about a person or the data.
    pub environment: BTreeMap<String, String>,
    /// A cgroup v2 directory in which the node may make one of its own; none for rooms without.
    pub cgroup: Option<PathBuf>,
    /// Layers to leave off: for devices whose drivers do not work inside them, and for tests.
    pub without: BTreeSet<Layer>,
    /// How long sealing and probing may take on a busy machine.
    pub patience: Duration,
}

impl Default for Spec {
    /// A room of the strongest class with 8 GiB, 256 threads and an empty environment.
    fn default() -> Self {
        Spec {
            least: Strength::Sealed,
            memory_max_bytes: 8 << 30,
            threads_max: 256,
            environment: BTreeMap::new(),
            cgroup: None,
            without: BTreeSet::new(),
            patience: Duration::from_secs(60),
        }
    }
}

impl Spec {
    pub(crate) fn check(&self) -> Result<(), RoomError> {
        let plain = |text: &str| {
            text.len() <= 256 && text.bytes().all(|b| b.is_ascii_graphic() || b == b' ')
        };
        if self.environment.len() > VARIABLES_MAX {
            return Err(RoomError::Spec(format!(
                "more than {VARIABLES_MAX} environment variables"
            )));
        }
        for (name, value) in &self.environment {
            if name.is_empty() || name.contains('=') || !plain(name) || !plain(value) {
                let what = "is not a short name with a short value in ASCII";
                return Err(RoomError::Spec(format!("the environment variable {name:?} {what}")));
            }
        }
        Ok(())
    }
}
