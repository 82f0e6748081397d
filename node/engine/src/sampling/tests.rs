use super::*;

const WARM: Sampling = Sampling {
    temperature_milli: 1_000,
    top_k: 0,
    top_p_milli: 1_000,
    min_p_milli: 0,
    repetition_milli: 1_000,
    presence_milli: 0,
    frequency_milli: 0,
    logit_bias: Vec::new(),
    seed: 7,
};

fn choose(sampling: &Sampling, logits: &[f32], index: u32) -> u32 {
    choose_after(sampling, &[], &[], logits, index)
}

fn choose_after(
    sampling: &Sampling,
    prompt: &[u32],
    answer: &[u32],
    logits: &[f32],
    index: u32,
) -> u32 {
    let mut history = History::new(sampling, prompt);
    answer.iter().for_each(|&id| history.push(id));
    Logits::new(&mut logits.to_vec(), index).unwrap().choose(sampling, &history, index)
}

/// Goal: the generator is the published one. Values from the reference implementation of SplitMix64
/// with seed 0, whose state advances by the same odd constant.
#[test]
fn splitmix_matches_reference() {
    let golden = 0x9e37_79b9_7f4a_7c15u64;
    assert_eq!(splitmix(0), 0xe220_a839_7b1d_cdaf);
    assert_eq!(splitmix(golden), 0x6e78_9e6a_a1b9_65f4);
    assert_eq!(splitmix(golden.wrapping_mul(2)), 0x06c4_5d18_8009_454f);
}

#[test]
fn greedy_takes_the_lowest_of_equals() {
    assert_eq!(choose(&Sampling::GREEDY, &[1.0, 3.0, 3.0, -1.0], 0), 1);
    assert_eq!(choose(&Sampling::GREEDY, &[-5.0], 0), 0);
}

#[test]
fn draws_follow_the_distribution() {
    let logits = [0.0f32, (3.0f32).ln(), -30.0];
    let ones = (0..10_000).filter(|&index| choose(&WARM, &logits, index) == 1).count();
    assert!((7_350..7_650).contains(&ones), "{ones}");
    // At twice the temperature the odds are the square root of three.
    let hot = Sampling { temperature_milli: 2_000, ..WARM };
    let ones = (0..10_000).filter(|&index| choose(&hot, &logits, index) == 1).count();
    assert!((6_190..6_490).contains(&ones), "{ones}");
}

#[test]
fn top_k_top_p_and_min_p_exclude_the_tail() {
    let logits = [2.0f32, 1.9, 1.8, 1.7, 0.0];
    let reached = |sampling: &Sampling| -> Vec<u32> {
        let mut ids: Vec<u32> = (0..500).map(|index| choose(sampling, &logits, index)).collect();
        ids.sort_unstable();
        ids.dedup();
        ids
    };
    assert_eq!(reached(&WARM), [0, 1, 2, 3, 4]);
    assert_eq!(reached(&Sampling { top_k: 2, ..WARM }), [0, 1]);
    assert_eq!(reached(&Sampling { top_p_milli: 300, ..WARM }), [0, 1]);
    // exp(-0.1) = 0.905, exp(-0.2) = 0.819, exp(-0.3) = 0.741.
    assert_eq!(reached(&Sampling { min_p_milli: 800, ..WARM }), [0, 1, 2]);
    assert_eq!(reached(&Sampling { min_p_milli: 1_000, ..WARM }), [0]);
    assert_eq!(reached(&Sampling { top_p_milli: 1, ..WARM }), [0]);
    assert_eq!(reached(&Sampling { top_k: 3, min_p_milli: 700, ..WARM }), [0, 1, 2]);
    assert_eq!(reached(&Sampling { top_k: 4, top_p_milli: 990, ..WARM }), [0, 1, 2, 3]);
}

/// Goal: the lazy walk equals the definition in the module's first lines, computed plainly.
#[test]
fn choices_are_those_of_the_definition() {
    let plain = |sampling: &Sampling, logits: &[f32], index: u32| -> u32 {
        let mut order: Vec<usize> = (0..logits.len()).collect();
        order.sort_by(|&a, &b| logits[b].total_cmp(&logits[a]).then(a.cmp(&b)));
        if sampling.top_k > 0 {
            order.truncate(sampling.top_k as usize);
        }
        let temperature = f64::from(sampling.temperature_milli) / 1_000.0;
        let weight = |id: usize| (f64::from(logits[id] - logits[order[0]]) / temperature).exp();
        let all: f64 = order.iter().map(|&id| weight(id)).sum();
        let mut kept = Vec::new();
        let mut total = 0.0;
        for &id in &order {
            if total >= all * f64::from(sampling.top_p_milli) / 1_000.0
                || weight(id) < f64::from(sampling.min_p_milli) / 1_000.0
            {
                break;
            }
            kept.push(id);
            total += weight(id);
        }
        let target = uniform(sampling.seed, index) * total;
        let mut sum = 0.0;
        for &id in &kept {
            sum += weight(id);
            if sum > target {
                return id as u32;
            }
        }
        *kept.last().unwrap() as u32
    };
    for seed in 0..200u64 {
        let random = |at: u64| splitmix(seed.wrapping_mul(1 << 20).wrapping_add(at));
        let logits: Vec<f32> =
            (0..300).map(|at| (random(at) % 10_000) as f32 / 500.0 - 10.0).collect();
        let sampling = Sampling {
            temperature_milli: 200 + (random(1_000) % 3_000) as u32,
            top_k: [0, 0, 1, 40, 1_000][(random(1_001) % 5) as usize],
            top_p_milli: [1_000, 900, 500][(random(1_002) % 3) as usize],
            min_p_milli: [0, 0, 50][(random(1_003) % 3) as usize],
            seed,
            ..Sampling::GREEDY
        };
        for index in 0..20 {
            let expected = plain(&sampling, &logits, index);
            assert_eq!(choose(&sampling, &logits, index), expected, "seed {seed}: {sampling:?}");
        }
    }
}

#[test]
fn bias_and_penalties_change_the_choice_in_order() {
    let logits = [2.0f32, 1.5, -1.0, 0.5];
    let greedy = |sampling: Sampling, prompt: &[u32], answer: &[u32]| {
        choose_after(&sampling, prompt, answer, &logits, 0)
    };
    let bias = Sampling { logit_bias: vec![(3, 1_600), (0, -100_000)], ..Sampling::GREEDY };
    assert_eq!(greedy(bias, &[], &[]), 3);
    // Repetition counts the prompt, the others do not.
    let repetition = Sampling { repetition_milli: 2_000, ..Sampling::GREEDY };
    assert_eq!(greedy(repetition.clone(), &[], &[]), 0);
    assert_eq!(greedy(repetition, &[0], &[]), 1);
    let presence = Sampling { presence_milli: 600, ..Sampling::GREEDY };
    assert_eq!(greedy(presence.clone(), &[0], &[]), 0);
    assert_eq!(greedy(presence.clone(), &[], &[0]), 1);
    assert_eq!(greedy(presence, &[], &[0, 1]), 0);
    let frequency = Sampling { frequency_milli: 300, ..Sampling::GREEDY };
    assert_eq!(greedy(frequency.clone(), &[], &[0]), 0);
    assert_eq!(greedy(frequency.clone(), &[], &[0, 0]), 1);
    assert_eq!(greedy(frequency, &[], &[0, 0, 1]), 0);
    // A negative logit is multiplied, so that the penalty is one.
    let mut values = logits.to_vec();
    let penalty = Sampling { repetition_milli: 2_000, presence_milli: 500, ..Sampling::GREEDY };
    let mut history = History::new(&penalty, &[2]);
    history.push(0);
    assert!(history.adjust(&penalty, &mut values));
    assert_eq!(values, [0.5, 1.5, -2.0, 0.5]);
    // The bias comes before the penalty.
    let both = Sampling { logit_bias: vec![(2, 3_000)], ..penalty };
    let mut values = logits.to_vec();
    history.adjust(&both, &mut values);
    assert_eq!(values, [0.5, 1.5, 1.0, 0.5]);
}

#[test]
fn huge_logits_stay_finite() {
    let huge = Sampling { repetition_milli: 100, ..WARM };
    assert_eq!(choose_after(&huge, &[0, 1], &[], &[f32::MAX, f32::MIN, 0.0], 3), 0);
}

#[test]
fn log_probs_are_of_the_raw_softmax() {
    let mut values = vec![0.0f32, (3.0f32).ln(), (2.0f32).ln(), (2.0f32).ln()];
    let logits = Logits::new(&mut values, 0).unwrap();
    let (own, top) = logits.log_probs(0, 3);
    let micro = |p: f64| (p.ln() * 1e6).round() as i32;
    let near = |(id, got): LogProb, (want_id, p): (u32, f64)| {
        assert_eq!(id, want_id);
        assert!((got - micro(p)).abs() <= 1, "{got} {}", micro(p));
    };
    near(own, (0, 0.125));
    assert_eq!(top.len(), 3);
    for (got, want) in top.into_iter().zip([(1, 0.375), (2, 0.25), (3, 0.25)]) {
        near(got, want);
    }
    assert_eq!(logits.log_probs(3, 9).1.len(), 4);
}

#[test]
fn not_finite_is_an_error() {
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let error = Logits::new(&mut [0.0, bad], 4).err().unwrap();
        assert!(matches!(error, EngineError::NotFinite { index: 4 }));
    }
    assert!(Logits::new(&mut [], 0).is_err());
}

#[test]
fn out_of_range_settings_are_refused_by_name() {
    for (wrong, name) in [
        (Sampling { temperature_milli: 10_001, ..WARM }, "temperature_milli"),
        (Sampling { top_p_milli: 0, ..WARM }, "top_p_milli"),
        (Sampling { top_p_milli: 1_001, ..WARM }, "top_p_milli"),
        (Sampling { min_p_milli: 1_001, ..WARM }, "min_p_milli"),
        (Sampling { repetition_milli: 99, ..WARM }, "repetition_milli"),
        (Sampling { repetition_milli: 10_001, ..WARM }, "repetition_milli"),
        (Sampling { presence_milli: -2_001, ..WARM }, "presence_milli"),
        (Sampling { frequency_milli: i32::MIN, ..WARM }, "frequency_milli"),
        (Sampling { logit_bias: vec![(100, 0)], ..WARM }, "logit_bias"),
        (Sampling { logit_bias: vec![(0, 100_001)], ..WARM }, "logit_bias"),
        (Sampling { logit_bias: vec![(0, 0); 1_025], ..WARM }, "logit_bias"),
    ] {
        let error = wrong.check(100).unwrap_err().to_string();
        assert!(error.contains(name), "{error}");
    }
    assert!(WARM.check(100).is_ok());
}
