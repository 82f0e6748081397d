//! What a room is worth, as one word that a policy can ask for (specs/room.md §1).

use std::fmt;

use serde::{Deserialize, Serialize};

/// The class of a room; a later one is stronger.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Strength {
    /// A process of its own and nothing that was verified beyond it.
    #[serde(rename = "process-v1")]
    Process,
    /// Shut by system call filter and by Landlock or an empty root, in the machine's own namespaces.
    #[serde(rename = "confined-v1")]
    Confined,
    /// Every layer of specs/room.md §2 that counts holds, and every probe says so.
    #[serde(rename = "sealed-v1")]
    Sealed,
}

impl Strength {
    /// Whether a room of this class may do what needs one of class `other`.
    pub fn at_least(self, other: Strength) -> bool {
        self >= other
    }

    /// The word in policies and contracts.
    pub fn name(self) -> &'static str {
        match self {
            Strength::Process => "process-v1",
            Strength::Confined => "confined-v1",
            Strength::Sealed => "sealed-v1",
        }
    }

    /// The class with that word; none for a word that this version does not know.
    pub fn from_name(name: &str) -> Option<Strength> {
        [Strength::Process, Strength::Confined, Strength::Sealed]
            .into_iter()
            .find(|strength| strength.name() == name)
    }
}

impl fmt::Display for Strength {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
