//! Why something does not leave the room.

use serde::{Deserialize, Serialize};

macro_rules! rules {
    ($( $(#[$doc:meta])* $variant:ident = $id:literal ),* $(,)?) => {
        /// A rule of the gate (specs/gate.md §2).
        #[derive(
            Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
        )]
        pub enum Rule { $( $(#[$doc])* #[serde(rename = $id)] $variant, )* }

        impl Rule {
            /// All of them.
            pub const ALL: &[Rule] = &[$( Rule::$variant ),*];

            /// As logs and programs name it.
            pub const fn id(self) -> &'static str {
                match self { $( Rule::$variant => $id, )* }
            }
        }
    };
}

rules! {
    /// More bytes than an adapter may have.
    AdapterTooLarge = "adapter-too-large",
    /// Fewer bytes than announced, or than its tensors need.
    AdapterTruncated = "adapter-truncated",
    /// Not a safetensors file.
    AdapterDamaged = "adapter-damaged",
    /// Text beside the tensors.
    AdapterFreeText = "adapter-free-text",
    /// A tensor that was not declared.
    AdapterExtraTensor = "adapter-extra-tensor",
    /// A declared tensor that is not there.
    AdapterMissingTensor = "adapter-missing-tensor",
    /// A tensor of another shape.
    AdapterWrongShape = "adapter-wrong-shape",
    /// A tensor of another type.
    AdapterWrongType = "adapter-wrong-type",
    /// Tensors elsewhere than one after the other.
    AdapterOffsets = "adapter-offsets",
    /// Bytes that belong to no tensor.
    AdapterSlack = "adapter-slack",
    /// A header that says the right things in another way.
    AdapterNotCanonical = "adapter-not-canonical",
    /// A NaN or an infinity.
    AdapterNotFinite = "adapter-not-finite",
    /// A norm above the cap.
    AdapterNorm = "adapter-norm",
    /// Not the fixed record of metrics.
    Metrics = "metrics",
    /// Not the fixed record of measures, or measures too weak to tell anything.
    Measures = "measures",
    /// Too few rows.
    RowsMin = "rows-min",
    /// Too few distinct subjects.
    SubjectsMin = "subjects-min",
    /// Too many runs of one requester on one dataset.
    RunsCap = "runs-cap",
    /// Training rows come out verbatim, more than of the base model.
    Extraction = "extraction",
    /// A long piece of a training row comes out verbatim.
    LongestRun = "longest-run",
    /// Planted secrets are likelier than others.
    Exposure = "exposure",
    /// The dataset demands differential privacy and the run had none.
    NotPrivate = "not-private",
}

/// One reason why an adapter is not released: a rule for machines, a sentence for people.
///
/// The sentence holds nothing that the worker could choose freely: no names it wrote, no values.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Stop {
    /// The rule.
    pub rule: Rule,
    /// In words, at most 240 bytes.
    pub text: String,
}

impl Stop {
    pub(crate) fn new(rule: Rule, text: impl Into<String>) -> Stop {
        let mut text = text.into();
        // Fits a reason of the protocol. Our own sentences are shorter; the names of declared tensors
        // in them need not be.
        if text.len() > Stop::TEXT_BYTES_MAX {
            text.truncate(text.floor_char_boundary(Stop::TEXT_BYTES_MAX - '…'.len_utf8()));
            text.push('…');
        }
        Stop { rule, text }
    }

    /// The longest sentence.
    pub const TEXT_BYTES_MAX: usize = 240;
}

impl std::fmt::Display for Stop {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.rule.id(), self.text)
    }
}

/// Keeps the first of each rule: one reason each, however many tensors break it.
pub(crate) fn distinct(mut stops: Vec<Stop>) -> Vec<Stop> {
    let mut seen = std::collections::BTreeSet::new();
    stops.retain(|stop| seen.insert(stop.rule));
    stops
}
