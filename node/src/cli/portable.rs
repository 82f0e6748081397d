//! A researcher's own rows, declared portable: packed here, sealed with the job, deleted at settlement.

use std::path::Path;

use allmend_protocol::bytes::ByteString;
use allmend_protocol::ids::ResearcherId;
use allmend_protocol::units::Jurisdiction;
use anyhow::Context as _;

use crate::membership::now;
use crate::ui::{Advice, ExitClass};

/// Reads, checks and packs rows that may travel to these jurisdictions.
pub(super) fn pack(
    file: &Path,
    jurisdictions: &[Jurisdiction],
    researcher: ResearcherId,
) -> anyhow::Result<ByteString> {
    if jurisdictions.is_empty() {
        return Err(Advice::new(ExitClass::Usage, "portable.jurisdictions is empty")
            .hint("name every jurisdiction to which your rows may travel, e.g. [\"CH\", \"NO\"]")
            .into());
    }
    let options = allmend_data::ReadOptions::default();
    let packed = allmend_data::pack(file, &options, jurisdictions.to_vec(), researcher, now())
        .with_context(|| format!("{} cannot be packed", file.display()))?;
    Ok(ByteString(packed.bytes))
}
