//! What a room has verified about itself (specs/room.md §4).

use serde::{Deserialize, Serialize};

use crate::{Layer, Probe, Strength};

/// The longest `note` or `said`; system errors in words are shorter.
pub(crate) const WORDS_BYTES_MAX: usize = 160;

/// A room's report, made inside after sealing and before any data was handed in. It goes into the
/// contract: strings, booleans and integers only, no path, no name of a person or machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Facts {
    /// The kernel's release, as it says.
    pub kernel: String,
    /// Bytes of private memory that the room may hold.
    pub memory_max_bytes: u64,
    /// Names of the environment variables that it was given.
    pub environment: Vec<String>,
    /// Each layer once, in the order of [`Layer::ALL`].
    pub layers: Vec<LayerFact>,
    /// Each probe once, in the order of [`Probe::ALL`].
    pub probes: Vec<ProbeFact>,
}

/// Whether one layer holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct LayerFact {
    /// Which.
    pub layer: Layer,
    /// Whether it was set up and then seen to be in force.
    pub held: bool,
    /// How, or why not, in words; may be empty.
    pub note: String,
}

/// What came of one probe.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct ProbeFact {
    /// Which.
    pub probe: Probe,
    /// Whether the same attempt succeeded before sealing. Only then does its failing prove something.
    pub control: bool,
    /// Whether it failed inside.
    pub held: bool,
    /// What the kernel said inside; what it said before sealing if that failed; may be empty.
    pub said: String,
}

impl Facts {
    /// The strongest class whose every condition holds.
    pub fn strength(&self) -> Strength {
        [Strength::Sealed, Strength::Confined]
            .into_iter()
            .find(|strength| self.lacking(*strength).is_empty())
            .unwrap_or(Strength::Process)
    }

    /// Whether `layer` is reported, and as holding. A report that contradicts itself holds nothing.
    pub fn held(&self, layer: Layer) -> bool {
        let mut of_it = self.layers.iter().filter(|fact| fact.layer == layer).peekable();
        of_it.peek().is_some() && of_it.all(|fact| fact.held)
    }

    /// What keeps the room from being of class `wanted`, one sentence each; empty if nothing does.
    pub fn lacking(&self, wanted: Strength) -> Vec<String> {
        if wanted == Strength::Process {
            return Vec::new();
        }
        let layers = Layer::ALL
            .into_iter()
            .filter(|layer| layer.needed_from().is_some_and(|least| wanted.at_least(least)))
            .filter(|layer| !self.held(*layer))
            .map(|layer| match self.note(layer) {
                "" => format!("the layer {layer} does not hold"),
                note => format!("the layer {layer} does not hold: {note}"),
            });
        // Confined rooms need one of the two, sealed ones both (above).
        let files_open = !self.held(Layer::Landlock) && !self.held(Layer::PrivateRoot);
        let files = (wanted == Strength::Confined && files_open)
            .then(|| "neither Landlock nor a private root keeps it from files".to_owned());
        let probes = Probe::ALL.into_iter().filter_map(|probe| self.unproven(probe));
        layers.chain(files).chain(probes).collect()
    }

    fn note(&self, layer: Layer) -> &str {
        self.layers
            .iter()
            .find(|fact| fact.layer == layer)
            .map_or("it was not reported", |f| &f.note)
    }

    fn unproven(&self, probe: Probe) -> Option<String> {
        let mut of_it = self.probes.iter().filter(|fact| fact.probe == probe).peekable();
        if of_it.peek().is_none() {
            return Some(format!("the probe {probe} was not made"));
        }
        of_it.find_map(|fact| {
            if !fact.held {
                Some(format!("the probe {probe} got out of the room"))
            } else if !fact.control && !probe.may_be_absent() {
                let said = &fact.said;
                Some(format!(
                    "the probe {probe} proves nothing: before sealing it failed too ({said})"
                ))
            } else {
                None
            }
        })
    }
}

/// `words`, cut at [`WORDS_BYTES_MAX`].
#[cfg(target_os = "linux")]
pub(crate) fn bounded(words: impl Into<String>) -> String {
    let mut words = words.into();
    let end = (0..=WORDS_BYTES_MAX).rev().find(|at| words.is_char_boundary(*at)).unwrap_or(0);
    words.truncate(end);
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    fn perfect() -> Facts {
        let layers = Layer::ALL
            .into_iter()
            .map(|layer| LayerFact { layer, held: true, note: String::new() })
            .collect();
        let probes = Probe::ALL
            .into_iter()
            .map(|probe| ProbeFact { probe, control: true, held: true, said: String::new() })
            .collect();
        let kernel = "6.18.0".to_owned();
        Facts { kernel, memory_max_bytes: 1 << 30, environment: Vec::new(), layers, probes }
    }

    fn without(layer: Layer) -> Facts {
        let mut facts = perfect();
        facts.layers.iter_mut().filter(|fact| fact.layer == layer).for_each(|f| f.held = false);
        facts
    }

    #[test]
    fn each_layer_counts_for_its_class() {
        assert_eq!(perfect().strength(), Strength::Sealed);
        for layer in Layer::ALL {
            let expected = match layer.needed_from() {
                None => Strength::Sealed,
                Some(Strength::Sealed) => Strength::Confined,
                Some(_) => Strength::Process,
            };
            assert_eq!(without(layer).strength(), expected, "{layer}");
        }
    }

    #[test]
    fn a_layer_left_out_or_contradicted_does_not_hold() {
        let mut facts = perfect();
        facts.layers.retain(|fact| fact.layer != Layer::Seccomp);
        assert_eq!(facts.strength(), Strength::Process);
        let mut facts = perfect();
        facts.layers.push(LayerFact { layer: Layer::Seccomp, held: false, note: String::new() });
        assert_eq!(facts.strength(), Strength::Process);
    }

    #[test]
    fn without_landlock_and_private_root_nothing_is_confined() {
        let mut facts = without(Layer::Landlock);
        assert_eq!(facts.strength(), Strength::Confined);
        for fact in &mut facts.layers {
            fact.held &= fact.layer != Layer::PrivateRoot;
        }
        assert_eq!(facts.strength(), Strength::Process);
        assert!(facts.lacking(Strength::Confined)[0].contains("neither"));
    }

    #[test]
    fn each_probe_counts() {
        for at in 0..Probe::ALL.len() {
            let mut facts = perfect();
            facts.probes[at].held = false;
            assert_eq!(facts.strength(), Strength::Process, "{}", Probe::ALL[at]);
            let mut facts = perfect();
            facts.probes[at].control = false;
            let absent = Probe::ALL[at].may_be_absent();
            let expected = if absent { Strength::Sealed } else { Strength::Process };
            assert_eq!(facts.strength(), expected, "{}", Probe::ALL[at]);
            let mut facts = perfect();
            facts.probes.remove(at);
            assert_eq!(facts.strength(), Strength::Process, "{}", Probe::ALL[at]);
        }
    }

    #[test]
    fn words_are_those_of_the_encoding_and_reports_fit_a_contract() {
        let mut facts = perfect();
        for fact in &mut facts.layers {
            fact.note = "x".repeat(WORDS_BYTES_MAX);
            let word = serde_ipld_dagcbor::to_vec(&fact.layer).unwrap();
            assert!(word.ends_with(fact.layer.name().as_bytes()), "{}", fact.layer);
        }
        for fact in &mut facts.probes {
            fact.said = "x".repeat(WORDS_BYTES_MAX);
            let word = serde_ipld_dagcbor::to_vec(&fact.probe).unwrap();
            assert!(word.ends_with(fact.probe.name().as_bytes()), "{}", fact.probe);
        }
        for strength in [Strength::Process, Strength::Confined, Strength::Sealed] {
            let word = serde_ipld_dagcbor::to_vec(&strength).unwrap();
            assert!(word.ends_with(strength.name().as_bytes()));
            assert_eq!(Strength::from_name(strength.name()), Some(strength));
        }
        let bytes = serde_ipld_dagcbor::to_vec(&facts).unwrap();
        // Half of a body's limit (specs/envelope.md), when every note is as long as it may be.
        assert!(bytes.len() < 16 * 1024, "{}", bytes.len());
        assert_eq!(serde_ipld_dagcbor::from_slice::<Facts>(&bytes).unwrap(), facts);
    }
}
