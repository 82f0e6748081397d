//! Landlock without a single exception: this process and its descendants open, connect, bind, signal
//! nothing that is outside.

use landlock::{
    ABI, Access, AccessFs, AccessNet, LandlockStatus, Ruleset, RulesetAttr, RulesetStatus, Scope,
};

/// The newest version whose rights are asked for. What the kernel does not know is left out, and the
/// report says which version it knows.
const NEWEST: ABI = ABI::V10;

/// Shuts this process in; says how far.
pub(super) fn restrict() -> Result<String, String> {
    let status = Ruleset::default()
        .handle_access(AccessFs::from_all(NEWEST))
        .and_then(|rules| rules.handle_access(AccessNet::from_all(NEWEST)))
        .and_then(|rules| rules.scope(Scope::from_all(NEWEST)))
        .and_then(Ruleset::create)
        .and_then(landlock::RulesetCreated::restrict_self)
        .map_err(|error| error.to_string())?;
    match (status.ruleset, status.landlock) {
        (
            RulesetStatus::FullyEnforced | RulesetStatus::PartiallyEnforced,
            LandlockStatus::Available { effective_abi, .. },
        ) => Ok(format!("ABI {}", effective_abi as i32)),
        (_, LandlockStatus::NotImplemented) => Err("the kernel is built without it".to_owned()),
        (_, LandlockStatus::NotEnabled) => Err("it is not enabled at boot".to_owned()),
        _ => Err("the kernel enforces none of it".to_owned()),
    }
}
