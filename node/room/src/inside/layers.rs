//! The part of the report about layers, as it is written.

use std::collections::BTreeSet;

use crate::facts::bounded;
use crate::{Layer, LayerFact};

/// Which layers hold so far.
pub(super) struct Layers {
    without: BTreeSet<Layer>,
    facts: Vec<LayerFact>,
}

impl Layers {
    pub(super) fn new(without: impl IntoIterator<Item = Layer>) -> Layers {
        Layers { without: without.into_iter().collect(), facts: Vec::new() }
    }

    /// Puts `layer` up unless the order leaves it off; `work` says how it holds, or why not.
    pub(super) fn put_up<N, W>(&mut self, layer: Layer, work: impl FnOnce() -> Result<N, W>) -> bool
    where
        N: ToString,
        W: ToString,
    {
        let (held, note) = if self.without.contains(&layer) {
            (false, "left off by order".to_owned())
        } else {
            match work() {
                Ok(note) => (true, note.to_string()),
                Err(why) => (false, why.to_string()),
            }
        };
        self.facts.push(LayerFact { layer, held, note: bounded(note) });
        held
    }

    /// All of them, in the order of a report.
    pub(super) fn into_facts(mut self) -> Vec<LayerFact> {
        self.facts.sort_by_key(|fact| fact.layer);
        self.facts
    }
}
