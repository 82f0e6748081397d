//! Words that policies may use for what a person must do.

/// Something that a person can do so that a policy is content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ObligationKind {
    /// As it is written in `@obligation("…")`.
    pub name: &'static str,
    /// The role whose approval it is.
    pub role: &'static str,
    /// Who that is, in words that end a sentence beginning with "waits for".
    pub who: &'static str,
}

/// Every obligation that somebody can meet. A policy with another one is refused: nobody could ever free it.
pub const OBLIGATIONS: [ObligationKind; 7] = [
    ObligationKind {
        name: "approve:data-steward",
        role: "data-steward",
        who: "the dataset's steward, or a deputy",
    },
    ObligationKind {
        name: "approve:output",
        role: "data-steward",
        who: "the dataset's steward, once the results can be seen",
    },
    ObligationKind { name: "approve:operator", role: "operator", who: "the operator of the node" },
    ObligationKind {
        name: "approve:data-protection",
        role: "data-protection",
        who: "the institution's data protection officer",
    },
    ObligationKind { name: "approve:ethics", role: "ethics", who: "the ethics committee" },
    ObligationKind { name: "approve:legal", role: "legal", who: "the institution's legal office" },
    ObligationKind { name: "approve:council", role: "council", who: "the federation's council" },
];

/// The obligation of that name.
pub fn obligation(name: &str) -> Option<&'static ObligationKind> {
    OBLIGATIONS.iter().find(|known| known.name == name)
}

/// Annotation: the short name of a rule; a refusal carries it.
pub(crate) const ID: &str = "id";
/// Annotation: why, in words.
pub(crate) const REASON: &str = "reason";
/// Annotation: what a researcher has to do differently, in words.
pub(crate) const CHANGE: &str = "change";
/// Annotation: what a person could do to free the way.
pub(crate) const OBLIGATION: &str = "obligation";
/// Every annotation that has a meaning here.
pub(crate) const ANNOTATIONS: [&str; 4] = [ID, REASON, CHANGE, OBLIGATION];

/// The `@id` of the permit by which a layer says that it adds nothing.
pub(crate) const NO_FURTHER_RESTRICTION: &str = "no-further-restriction";

/// The longest word that is compared: the comparison is quadratic.
const COMPARED_BYTES_MAX: usize = 64;

/// The closest of `known` to `word`, if it is close enough to be what was meant.
pub(crate) fn closest<'a>(word: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    if word.len() > COMPARED_BYTES_MAX {
        return None;
    }
    known
        .map(|candidate| (strsim::levenshtein(word, candidate), candidate))
        .filter(|(edits, candidate)| *edits <= candidate.len() / 3 + 1)
        .min()
        .map(|(_, candidate)| candidate)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_closest_word_is_suggested_and_a_far_one_is_not() {
        let known = || OBLIGATIONS.iter().map(|known| known.name);
        assert_eq!(closest("approve:data-stewart", known()), Some("approve:data-steward"));
        assert_eq!(closest("make-coffee", known()), None);
        assert_eq!(closest(&"x".repeat(10_000), known()), None);
    }
}
