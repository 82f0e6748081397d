//! The accountant against figures that others have computed.
#![allow(clippy::disallowed_methods, reason = "vectors are files")]

use allmend_protocol::units::Decimal;
use proptest::prelude::*;
use serde_json::Value;

use super::orders::ORDERS_LEN;
use super::*;

fn delta(exp10: i8) -> Delta {
    Delta::new(Decimal { mantissa: 1, exp10 }).unwrap()
}

fn epsilon(runs: &[(f64, f64, u32)], exp10: i8) -> f64 {
    let mut rdp = [0.0; ORDERS_LEN];
    for &(q, sigma, steps) in runs {
        let one = Mechanism::new(q, sigma).unwrap().rdp();
        rdp.iter_mut().zip(one).for_each(|(sum, one)| *sum += one * f64::from(steps));
    }
    accountant::epsilon(&rdp, delta(exp10)).0
}

/// Goal: equality with Google's dp-accounting at the same orders.
#[test]
fn epsilon_is_that_of_dp_accounting() {
    for (q, sigma, steps, exp10, expected) in [
        (0.01, 1.0, 1_000, -5, 2.107_753_075),
        (0.02, 0.8, 500, -5, 5.397_018_914),
        (1.0 / 64.0, 1.1, 320, -6, 1.972_777_401),
        (0.1, 2.0, 100, -5, 2.586_652_178),
        (1.0, 4.0, 20, -5, 5.377_728_337),
    ] {
        let found = epsilon(&[(q, sigma, steps)], exp10);
        assert!((found - expected).abs() <= 1e-8, "q {q}, σ {sigma}: {found}, expected {expected}");
        let vector = Mechanism::new(q, sigma).unwrap().vector().times(steps);
        let milli = (expected * 1e3).ceil() as u64;
        assert_eq!(vector.milli_epsilon(delta(exp10)), milli, "q {q}, σ {sigma}");
    }
    let both = epsilon(&[(0.01, 1.0, 1_000), (0.1, 2.0, 100)], -5);
    assert!((both - 3.304).abs() < 5e-4, "{both}");
}

#[test]
fn the_ends_of_the_ranges() {
    let vector = |q, sigma| Mechanism::new(q, sigma).unwrap().vector();
    assert!(vector(0.0, 1.0).is_zero());
    assert!(vector(0.0, 0.0).is_zero());
    assert_eq!(vector(0.5, 0.0).milli_epsilon(delta(-5)), MILLI_EPSILON_INFINITE);
    assert_eq!(vector(0.5, 0.0).times(0), RdpVector::ZERO);
    assert_eq!(RdpVector::ZERO.milli_epsilon(delta(-5)), 0);
    assert_eq!(epsilon(&[(0.3, 1.0, 0)], -5), 0.0);
    // Without sampling it is the Gaussian mechanism, α/2σ²; just below it is nearly that.
    let whole = Mechanism::new(1.0, 2.0).unwrap().rdp();
    assert_eq!(whole[0], 0.25);
    let nearly = Mechanism::new(1.0 - 1e-12, 2.0).unwrap().rdp();
    for (whole, nearly) in whole.iter().zip(nearly) {
        assert!((whole / nearly - 1.0).abs() < 1e-9, "{whole} {nearly}");
    }
    // Something is revealed however seldom, and however much the noise.
    assert!(vector(1e-9, 1e6).femto_nats().iter().all(|&femto| femto > 0));
    assert!(vector(0.9, 1e-3).milli_epsilon(delta(-5)) > 1_000_000);
}

#[test]
fn absurd_parameters_are_refused() {
    let (nan, infinite) = (f64::NAN, f64::INFINITY);
    for q in [-0.1, 1.0 + 1e-12, 1e-10, nan, infinite, -infinite] {
        assert_eq!(Mechanism::new(q, 1.0), Err(ParameterError::SamplingRate), "{q}");
    }
    for sigma in [-1.0, 1e-4, 1e7, nan, infinite] {
        assert_eq!(Mechanism::new(0.1, sigma), Err(ParameterError::NoiseMultiplier), "{sigma}");
    }
    for (mantissa, exp10) in [(0, 0), (1, 0), (-1, -5), (1, -19), (1, -128), (i64::MAX, 18)] {
        assert_eq!(Delta::new(Decimal { mantissa, exp10 }), Err(ParameterError::Delta));
    }
    assert!(Delta::power_of_ten(5).is_ok());
    assert!(Delta::power_of_ten(0).is_err() && Delta::power_of_ten(200).is_err());
    let far = Decimal { mantissa: 1, exp10: -128 };
    let one = Decimal { mantissa: 1, exp10: 0 };
    assert_eq!(Mechanism::from_decimals(far, one), Err(ParameterError::SamplingRate));
    assert_eq!(Mechanism::from_decimals(one, one), Mechanism::new(1.0, 1.0));
}

/// Goal: the integers are bounds of the true values, and tight ones. The vectors were computed with 60
/// digits by a program that shares nothing with this one.
#[test]
fn vectors_of_the_specification() {
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/../specs/vectors/privacy.json");
    let file: Value = serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap();
    let number = |value: &Value| value.as_str().unwrap().parse::<f64>().unwrap();
    let orders: Vec<u64> =
        file["orders"].as_array().unwrap().iter().map(|order| order.as_u64().unwrap()).collect();
    assert_eq!(orders, ORDERS.map(u64::from));
    let steps = file["steps"].as_array().unwrap();
    assert!(steps.len() >= 12);
    for step in steps {
        let (q, sigma) = (number(&step["sampling_rate"]), number(&step["noise_multiplier"]));
        let mechanism = Mechanism::new(q, sigma).unwrap();
        let (nats, vector) = (mechanism.rdp(), mechanism.vector());
        for (at, exact) in step["rdp"].as_array().unwrap().iter().enumerate() {
            let (exact, order) = (number(exact), ORDERS[at]);
            let relative = nats[at] / exact - 1.0;
            assert!(relative.abs() < 2e-11, "q {q}, σ {sigma}, α {order}: off by {relative:e}");
            // In units of femto-nats the exact value is itself rounded to a float here, by 2⁻⁵³.
            let (femto, least) = (vector.femto_nats()[at], exact * 1e15 * (1.0 - 1e-15));
            let most = exact * 1e15 * (1.0 + 1.3e-10) + 1.0;
            let saturated = femto == u64::MAX && most >= u64::MAX as f64;
            let tight = (least..=most).contains(&(femto as f64));
            assert!(tight || saturated, "q {q}, σ {sigma}, α {order}: {femto}, exact {least}");
        }
    }
    for run in file["runs"].as_array().unwrap() {
        let delta: Decimal = serde_json::from_value(run["delta"].clone()).unwrap();
        let mut sum = RdpVector::ZERO;
        for part in run["parts"].as_array().unwrap() {
            let (q, sigma) = (number(&part["sampling_rate"]), number(&part["noise_multiplier"]));
            let steps = u32::try_from(part["steps"].as_u64().unwrap()).unwrap();
            sum = sum.plus(&Mechanism::new(q, sigma).unwrap().vector().times(steps));
        }
        let milli = sum.milli_epsilon(Delta::new(delta).unwrap());
        assert_eq!(Some(milli), run["milli_epsilon"].as_u64(), "{run}");
    }
    for record in file["records"].as_array().unwrap() {
        let expected: LedgerRecord = serde_json::from_value(record["fields"].clone()).unwrap();
        let hex: String = allmend_protocol::encoding::encode(&expected)
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        assert_eq!(Some(hex.as_str()), record["bytes"].as_str());
    }
}

/// Goal: a vector has one length; anything else is no vector.
#[test]
fn vectors_of_another_length_are_refused() {
    use allmend_protocol::encoding::{decode, encode};
    let read = |len: usize| decode::<RdpVector>(&encode(&vec![7u64; len]), 4_096);
    assert!(read(ORDERS_LEN).is_ok());
    assert!(read(ORDERS_LEN - 1).is_err() && read(ORDERS_LEN + 1).is_err() && read(0).is_err());
    assert!(decode::<RdpVector>(&encode(&vec![1.5f64; ORDERS_LEN]), 4_096).is_err());
}

fn vectors() -> impl Strategy<Value = RdpVector> {
    let plain = (0.001f64..0.5, 0.3f64..8.0)
        .prop_map(|(q, sigma)| Mechanism::new(q, sigma).unwrap().vector());
    prop_oneof![3 => plain, 1 => Just(Mechanism::new(0.1, 0.0).unwrap().vector())]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    /// Goal: composition is a sum that no order changes, and more never reveals less.
    #[test]
    fn composition_is_a_sum(a in vectors(), b in vectors(), c in vectors(), n in 1u32..100_000) {
        prop_assert_eq!(a.plus(&b).plus(&c), c.plus(&a).plus(&b));
        prop_assert_eq!(a.times(n).plus(&a), a.times(n + 1));
        let both = a.plus(&b);
        prop_assert!(both.covers(&a) && both.covers(&b));
        prop_assert!(both.milli_epsilon(delta(-5)) >= a.milli_epsilon(delta(-5)));
        prop_assert!(a.milli_epsilon(delta(-6)) >= a.milli_epsilon(delta(-5)));
    }

    /// Goal: more noise, or a lower rate, reveals less.
    #[test]
    fn it_is_monotonic(q in 1e-6f64..0.9, sigma in 0.2f64..20.0) {
        let at = |q, sigma| Mechanism::new(q, sigma).unwrap().vector();
        prop_assert!(at(q, sigma).covers(&at(q, sigma * 1.01)));
        prop_assert!(at(q * 1.01, sigma).covers(&at(q, sigma)));
    }
}
