//! How much an adapter has memorised, as measured in the room (specs/gate.md §4).

use allmend_protocol::encoding;
use serde::{Deserialize, Serialize};

use crate::stop::{Rule, Stop};

/// The most bytes of a record.
pub const MEASURES_BYTES_MAX: usize = 512;

/// What was measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Measures {
    /// Training rows that come out verbatim.
    pub extraction: Extraction,
    /// Planted secrets that have become likely.
    pub exposure: Exposure,
}

/// Training rows, begun and continued greedily.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Extraction {
    /// Rows that were begun.
    pub rows_tested: u64,
    /// Rows that the base model continues verbatim.
    pub extracted_base: u64,
    /// Rows that the adapter continues verbatim.
    pub extracted_adapter: u64,
    /// The longest verbatim continuation with the adapter, in tokens.
    pub longest_run_tokens: u32,
}

/// Canaries: random secrets in the trainer's copy of the rows (Carlini et al. 2019).
///
/// # Units
/// Exposure in milli-bits: log2 of how many secrets there are, the alternatives and itself, minus log2 of the
/// secret's rank among them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Exposure {
    /// Secrets planted.
    pub canaries: u32,
    /// Others that each was ranked among.
    pub alternatives: u32,
    /// The largest exposure.
    pub max_milli_bits: u32,
    /// The mean exposure.
    pub mean_milli_bits: u32,
}

impl Measures {
    /// As a worker sends it.
    pub fn encode(&self) -> Vec<u8> {
        encoding::encode(self)
    }

    /// Reads what a worker sent.
    ///
    /// # Errors
    /// [`Rule::Measures`] when it is not this record or contradicts itself.
    pub fn decode(bytes: &[u8]) -> Result<Measures, Stop> {
        let stop = |text| Stop::new(Rule::Measures, text);
        let measures: Measures = encoding::decode(bytes, MEASURES_BYTES_MAX)
            .map_err(|_| stop("the measures of memorisation are not the fixed record"))?;
        let Measures { extraction, exposure } = measures;
        let counts = extraction.extracted_base.max(extraction.extracted_adapter);
        let consistent = counts <= extraction.rows_tested
            && exposure.mean_milli_bits <= exposure.max_milli_bits
            && exposure.max_milli_bits <= exposure.ceiling_milli_bits();
        if consistent {
            Ok(measures)
        } else {
            Err(stop("the measures of memorisation contradict themselves"))
        }
    }
}

impl Exposure {
    /// The largest exposure that so many alternatives can show: that of the first among them and itself.
    pub(crate) fn ceiling_milli_bits(&self) -> u32 {
        ((f64::from(self.alternatives) + 1.0).log2() * 1e3).round() as u32
    }
}
