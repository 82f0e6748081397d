use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

/// An example of `len` tokens, all of them its number.
fn example(number: u32, len: usize) -> Example {
    Example { ids: vec![number; len], labels: vec![true; len], subject: None }
}

fn dataset(first: u32, len: u32) -> Vec<Example> {
    (first..first + len).map(|number| example(number, 2)).collect()
}

/// Numbers of the examples of each step.
fn seen(order: &mut Order, steps: std::ops::Range<u64>) -> Vec<u32> {
    let batches = steps.flat_map(|step| order.step(step).into_iter().flatten().collect::<Vec<_>>());
    batches.map(|example| example.ids[0]).collect()
}

#[test]
fn each_epoch_has_every_example_once_and_an_order_of_its_own() {
    let mut order = Order::new(vec![(dataset(0, 12), 1)], None, 3, 2, 2).unwrap();
    let epochs: Vec<Vec<u32>> = (0..4).map(|at| seen(&mut order, at * 3..at * 3 + 3)).collect();
    for epoch in &epochs {
        let mut sorted = epoch.clone();
        sorted.sort_unstable();
        assert_eq!(sorted, (0..12).collect::<Vec<_>>());
    }
    assert!(epochs.windows(2).all(|pair| pair[0] != pair[1]));
    assert_eq!([0, 2, 3, 8, 9].map(|step| order.epoch(step)), [0, 0, 1, 2, 3]);
    let mut other = Order::new(vec![(dataset(0, 12), 1)], None, 4, 2, 2).unwrap();
    assert_ne!(seen(&mut other, 0..3), epochs[0]);
    let shapes: Vec<usize> = order.step(0).iter().map(Vec::len).collect();
    assert_eq!(shapes, [2, 2]);
}

#[test]
fn weights_say_who_is_seen_how_often() {
    let sets = vec![(dataset(0, 5), 30), (dataset(100, 50), 10), (dataset(200, 2), 20)];
    let mut order = Order::new(sets, None, 0, 3, 1).unwrap();
    let seen = seen(&mut order, 0..200);
    for part in seen.chunks(6) {
        let mut counts = BTreeMap::new();
        part.iter().for_each(|id| *counts.entry(id / 100).or_insert(0) += 1);
        assert_eq!(counts, BTreeMap::from([(0, 3), (1, 1), (2, 2)]));
    }
    // Evenly: the heaviest never waits longer than its share says.
    assert!(seen.windows(4).all(|run| run.iter().any(|&id| id < 100)));
    // 300 turns are 60 epochs of five.
    let zeros = seen.iter().filter(|&&id| id == 0).count();
    assert_eq!(zeros, 60);
}

#[test]
fn what_cannot_be_mixed_is_refused() {
    let refused = |sets: Vec<(Vec<Example>, u32)>| {
        Order::new(sets, None, 0, 1, 1).map(|_| ()).unwrap_err().to_string()
    };
    assert!(refused(Vec::new()).contains("0 datasets"));
    assert!(refused(vec![(dataset(0, 1), 1), (Vec::new(), 1)]).contains("dataset 2"));
    assert!(refused(vec![(dataset(0, 1), 0)]).contains("weight"));
    let uneven = vec![(dataset(0, 1), 1_000_003), (dataset(0, 1), 7)];
    assert!(refused(uneven).contains("rounder"));
    assert!(refused((0..65).map(|_| (dataset(0, 1), 1)).collect()).contains("65 datasets"));
}

#[test]
fn packed_sequences_hold_whole_examples() {
    let lengths = [7, 3, 9, 2, 2, 10, 4, 6, 5, 8, 3];
    let examples: Vec<_> = (0u32..).zip(lengths).map(|(at, len)| example(at, len)).collect();
    let packed = pack(examples.clone(), 10, 1, 0);
    assert!(packed.iter().all(|one| one.ids.len() <= 10 && one.ids.len() == one.labels.len()));
    assert!(packed.len() < examples.len());
    let mut counts = BTreeMap::new();
    packed.iter().flat_map(|one| &one.ids).for_each(|id| *counts.entry(*id).or_insert(0) += 1);
    let expected: BTreeMap<u32, usize> = (0..).zip(lengths).collect();
    assert_eq!(counts, expected);
    for sequence in &packed {
        // Examples are not torn apart.
        let mut runs = sequence.ids.clone();
        runs.dedup();
        let distinct: std::collections::BTreeSet<_> = runs.iter().collect();
        assert_eq!(distinct.len(), runs.len());
    }
    assert!(pack(examples.clone(), 10, 1, 0) == packed);
    assert!(pack(examples, 10, 2, 0) != packed);
}

proptest! {
    /// Goal: whoever is asked for any step, in whatever order, says what one says who goes through all.
    #[test]
    fn steps_can_be_asked_for_in_any_order(
        seed in any::<u64>(),
        sets in prop::collection::vec((1u32..9, 1u32..5), 1..4),
        batch in 1u32..4,
        accumulate in 1u32..3,
        asked in prop::collection::vec(0u64..40, 1..12),
        packing in prop::option::of(4usize..12),
    ) {
        let make = || {
            let sets = (0u32..).zip(&sets);
            let sets = sets.map(|(at, &(len, weight))| (dataset(at * 100, len), weight)).collect();
            Order::new(sets, packing, seed, batch, accumulate).unwrap()
        };
        let mut order = make();
        let all: Vec<_> = (0..40).map(|step| order.step(step)).collect();
        let mut order = make();
        for step in asked {
            prop_assert!(order.step(step) == all[step as usize]);
        }
    }
}
