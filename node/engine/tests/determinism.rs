//! The same answers in every way of computing them: a small share of what the example `digest` compares.

#[path = "../examples/digest/prompts.rs"]
mod prompts;
#[path = "../examples/digest/settings.rs"]
mod settings;
mod support;

use std::collections::BTreeMap;

use crate::settings::{Setting, Work};

/// Goal: ids and texts of a real quantised model depend on neither companions, chunks, threads, instructions, cache,
/// drafts nor preemption, whether greedy or seeded.
#[test]
fn answers_depend_on_nothing_but_the_request() {
    let model = support::real_model::path();
    let work = Work::prepare(&model, 4, 24).unwrap();
    assert_eq!(work.answered_tokens(), 96);
    let mut expected = BTreeMap::new();
    for setting in Setting::all() {
        let outcome = setting.run(&model, &work).unwrap();
        assert_eq!(outcome.stats.finished, 4 * outcome.digests.len() as u64, "{}", setting.name);
        for (sampling, digest) in outcome.digests {
            let expected = expected.entry(sampling).or_insert_with(|| digest.clone());
            assert_eq!(*expected, digest, "{sampling}, {}", setting.name);
        }
    }
    // Digests do say something: seeded answers are others.
    assert_eq!(expected.len(), 2);
    assert_ne!(expected["greedy"], expected["seeded"]);
}
