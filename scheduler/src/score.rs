//! How soon a node would begin to answer: one integer, equal on every machine.

use allmend_protocol::advert::CapacityAdvert;
use allmend_protocol::ids::Digest;

/// Reading one MiB of weights from disk into memory (about 1 GB/s).
pub const LOAD_MICROS_PER_MIB: u64 = 1_000;
/// Fetching a model of unknown size: a minute, so that any node that holds it wins.
pub const FETCH_MICROS: u64 = 60_000_000;
/// A node with all slots but one taken answers so much later than an idle one: jobs on one device
/// share its memory bandwidth.
pub const SHARING_MICROS: u64 = 1_000_000;
/// Another machine is so much further away than this one.
pub const LINK_MICROS: u64 = 2_000;

/// Scores a node by its advert for a job with `model`; larger is better, ties go to the smaller
/// node id.
///
/// # Units
/// Micro-seconds of expected delay, negated.
pub fn score(advert: &CapacityAdvert, model: Digest, is_home: bool) -> i64 {
    let queue = advert.queue_ms.as_ms().saturating_mul(1_000);
    let ready = match advert.models.iter().find(|held| held.digest == model) {
        Some(held) if held.warm => 0,
        Some(held) => held.memory_mib.saturating_mul(LOAD_MICROS_PER_MIB),
        None => FETCH_MICROS,
    };
    let taken = u64::from(advert.slots_total.saturating_sub(advert.slots_free));
    let sharing = SHARING_MICROS * taken / u64::from(advert.slots_total.max(1));
    let link = if is_home { 0 } else { LINK_MICROS };
    let delay = queue.saturating_add(ready).saturating_add(sharing).saturating_add(link);
    -i64::try_from(delay).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use allmend_protocol::advert::ModelHeld;

    use super::*;
    use crate::core::testing::advert_body;

    #[test]
    fn warm_beats_cold_beats_missing_and_idle_beats_busy() {
        let model = Digest::from_bytes([3; 32]);
        let held = |warm| ModelHeld { digest: model, memory_mib: 500, context_tokens: 2048, warm };
        let with = |models: Vec<ModelHeld>, slots_free| {
            let mut advert = advert_body();
            advert.models = models;
            advert.slots_total = 4;
            advert.slots_free = slots_free;
            score(&advert, model, false)
        };
        let order = [
            with(vec![held(true)], 4),
            with(vec![held(true)], 3),
            with(vec![held(false)], 3),
            with(vec![], 4),
        ];
        assert!(order.windows(2).all(|pair| pair[0] > pair[1]), "{order:?}");
    }
}
