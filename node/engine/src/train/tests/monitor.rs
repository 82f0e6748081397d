use proptest::prelude::*;

use super::*;

fn rules() -> LossRules {
    LossRules::default()
}

/// The step at which a sequence of losses is stopped, and why.
fn run(rules: &LossRules, losses: impl IntoIterator<Item = f64>) -> Option<(u64, &'static str)> {
    let mut state = Losses::default();
    (1..).zip(losses).find_map(|(step, loss)| {
        let abort = state.observe(rules, step, Some(loss), Some(1.0))?;
        Some((step, abort.id()))
    })
}

#[test]
fn what_is_not_finite_stops_in_that_step() {
    for value in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
        assert_eq!(run(&rules(), [2.0, 2.0, value]), Some((3, "not-finite")));
        let mut state = Losses::default();
        let abort = state.observe(&rules(), 7, None, Some(value));
        assert_eq!(abort, Some(Abort::NotFinite { step: 7 }));
    }
}

/// Goal: ten times the loss stops within the stated number of steps, a few bad ones do not.
#[test]
fn divergence_stops_after_the_stated_steps() {
    let steady = || std::iter::repeat_n(2.0, 20);
    assert_eq!(run(&rules(), steady().chain(std::iter::repeat_n(20.0, 9))), Some((25, "diverged")));
    let spikes = (0..200).map(|at| if at % 6 < 4 && at > 5 { 20.0 } else { 2.0 });
    assert_eq!(run(&rules(), spikes), None);
    // What is learnt by heart jumps from small losses to others.
    let small = (0..100).map(|at| if at < 20 { 0.01 } else { 1.0 });
    assert_eq!(run(&rules(), small), None);
    // Growth from the outset cannot be told from a high loss…
    let at_once = || std::iter::once(3.9).chain(std::iter::repeat_n(11.5, 9));
    assert_eq!(run(&rules(), at_once()), None);
    // …but what is worse than a guess among 49,152 tokens is no model any more, unless it was none before.
    let chance = Divergence { chance: Some(10.8), ..Divergence::default() };
    let chance = LossRules { divergence: chance, ..rules() };
    assert_eq!(run(&chance, at_once()), Some((6, "diverged")));
    assert_eq!(run(&chance, (0..50).map(|_| 10.9)), None);
    // Slow growth is measured from the best, not from what went just before.
    let slow = (0..200).map(|at| 2.0 + f64::from(at) * 0.05);
    assert_eq!(run(&rules(), slow).map(|(_, id)| id), Some("diverged"));
}

#[test]
fn a_plateau_stops_only_when_asked_for() {
    let falling = |steps: u32| (0..steps).map(|at| 4.0 * 0.99f64.powi(at as i32));
    let losses = || falling(100).chain(std::iter::repeat_n(1.5, 60));
    assert_eq!(run(&rules(), losses()), None);
    let asked = LossRules { plateau: Some(Plateau { window: 20, gain: 0.01 }), ..rules() };
    let (step, id) = run(&asked, losses()).unwrap();
    assert!(id == "plateau" && (120..=126).contains(&step), "{step} {id}");
    assert_eq!(run(&asked, falling(300)), None);
}

#[test]
fn rules_that_cannot_be_meant_are_refused() {
    assert_eq!(rules().check(), Ok(()));
    let changed = |divergence| LossRules { divergence, plateau: None }.check().is_err();
    let good = Divergence::default();
    assert!(changed(Divergence { multiple: 1.0, ..good }));
    assert!(changed(Divergence { multiple: f64::NAN, ..good }));
    assert!(changed(Divergence { window: 0, ..good }));
    assert!(changed(Divergence { window: WINDOW_MAX + 1, ..good }));
    assert!(changed(Divergence { steps: 0, ..good }));
    assert!(changed(Divergence { chance: Some(0.0), ..good }));
    let plateau = |window, gain| LossRules { plateau: Some(Plateau { window, gain }), ..rules() };
    assert!(plateau(0, 0.1).check().is_err() && plateau(9, 1.0).check().is_err());
}

#[test]
fn reasons_are_sentences() {
    let all = [
        Abort::NotFinite { step: 7 },
        Abort::Diverged { step: 9, loss: 30.0, best: 2.0, steps: 5 },
        Abort::Plateau { step: 90, window: 50, gain: 0.01 },
    ];
    for abort in all {
        let text = abort.to_string();
        assert!(text.ends_with('.') && text.len() > 40, "{text}");
        assert!(!text.contains("  "), "{text}");
        let json = serde_json::to_string(&abort).unwrap();
        assert_eq!(serde_json::from_str::<Abort>(&json).unwrap(), abort);
    }
}

proptest! {
    /// Goal: a run that is interrupted anywhere stops where an uninterrupted one does.
    #[test]
    fn the_state_survives_a_snapshot(
        losses in prop::collection::vec(0.0f64..30.0, 1..80),
        cut in 0usize..80,
        window in 1u32..8,
        plateau in prop::option::of((1u32..20, 0.0f64..0.5)),
    ) {
        let plateau = plateau.map(|(window, gain)| Plateau { window, gain });
        let divergence = Divergence { window, ..Divergence::default() };
        let rules = LossRules { divergence, plateau };
        let (mut one, mut other) = (Losses::default(), Losses::default());
        for (at, &loss) in losses.iter().enumerate() {
            if at == cut {
                other = serde_json::from_slice(&serde_json::to_vec(&other).unwrap()).unwrap();
            }
            let step = at as u64 + 1;
            let expected = one.observe(&rules, step, Some(loss), None);
            prop_assert_eq!(other.observe(&rules, step, Some(loss), None), expected);
            prop_assert_eq!(&one, &other);
        }
    }
}
