//! Policies that come with Allmend: to begin with, and to copy from.

/// What a federation begins with.
pub const CHARTER: &str = include_str!("../layers/charter.cedar");
/// What an institution begins with.
pub const INSTITUTION: &str = include_str!("../layers/institution.cedar");

/// A documented example of a dataset's policy.
#[derive(Clone, Copy, Debug)]
pub struct Example {
    /// Its name, e.g. `open-data`.
    pub name: &'static str,
    /// For whom it is, in a sentence.
    pub about: &'static str,
    /// Its text.
    pub policy: &'static str,
    /// Its table of tests.
    pub table: &'static str,
}

/// The examples.
pub const EXAMPLES: [Example; 3] = [
    Example {
        name: "open-data",
        about: "Data that anybody may read; the steward only wants to keep order.",
        policy: include_str!("../examples/open-data.cedar"),
        table: include_str!("../examples/open-data.toml"),
    },
    Example {
        name: "consortium-only",
        about: "Data of several partners, for research in their countries.",
        policy: include_str!("../examples/consortium-only.cedar"),
        table: include_str!("../examples/consortium-only.toml"),
    },
    Example {
        name: "strictly-consented",
        about: "Data about people who agreed to certain uses and no other.",
        policy: include_str!("../examples/strictly-consented.cedar"),
        table: include_str!("../examples/strictly-consented.toml"),
    },
];

/// The example of that name.
pub fn example(name: &str) -> Option<&'static Example> {
    EXAMPLES.iter().find(|example| example.name == name)
}
