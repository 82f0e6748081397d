//! The seeded simulation: a twentieth of `allmend-testnet soak`, and the faults it must catch.

use allmend_testnet::sim::{Faults, SimFailure, SimOptions, run, seeds, soak};

/// Goal: S1–S7 hold after every step and every job, grant and receipt comes to its end, whatever
/// the network and the crashes do.
#[test]
fn a_hundred_seeds_hold() {
    let range = seeds(100);
    let soaked = soak(range.end - range.start, range.start, false);
    assert!(soaked.failures.is_empty(), "{}", soaked.failures.join("\n"));
    assert!(soaked.passed == range.end - range.start);
    if soaked.passed > 50 {
        let counts = soaked.counts;
        for (what, count) in [
            ("finished", counts.finished),
            ("failed", counts.failed),
            ("refused", counts.refused),
            ("cancelled", counts.cancelled),
            ("expired", counts.expired),
            ("crashed", counts.crashes),
            ("settled", counts.settlements),
        ] {
            assert!(count > soaked.passed, "too few {what} for the runs to mean much: {count}");
        }
    }
}

#[test]
fn the_same_seed_gives_the_same_trace() {
    let options = SimOptions { keep_trace: true, ..SimOptions::default() };
    for seed in seeds(2) {
        let (first, second) = (run(seed, &options).unwrap(), run(seed, &options).unwrap());
        assert_eq!(first.trace, second.trace, "SEED={seed}");
        assert_eq!(first.trace_digest, second.trace_digest);
        let unkept = run(seed, &SimOptions::default()).unwrap();
        assert_eq!(first.trace_digest, unkept.trace_digest);
    }
    let other = |seed| run(seed, &SimOptions::default()).unwrap().trace_digest;
    assert_ne!(other(0), other(1));
}

/// The first failure within some seeds.
fn caught(faults: Faults) -> Box<SimFailure> {
    let options = SimOptions { faults, ..SimOptions::default() };
    (0..100)
        .find_map(|seed| run(seed, &options).err())
        .expect("the checker does not notice the fault in a hundred seeds")
}

#[test]
fn a_fence_reused_after_a_restart_is_caught() {
    let failure = caught(Faults { fence_reused_after_restart: true, ..Faults::default() });
    assert_eq!(failure.violation.rule, "S2", "{failure}");
}

#[test]
fn a_settlement_without_compare_and_set_is_caught() {
    let failure = caught(Faults { settle_without_compare_and_set: true, ..Faults::default() });
    assert_eq!(failure.violation.rule, "S3", "{failure}");
}

#[test]
fn a_lease_accepted_after_its_time_is_caught() {
    let failure = caught(Faults { accept_expired_lease: true, ..Faults::default() });
    assert_eq!(failure.violation.rule, "S5", "{failure}");
}

#[test]
fn an_attempt_number_reused_by_a_restarted_broker_is_caught() {
    let failure = caught(Faults { attempt_reused_after_restart: true, ..Faults::default() });
    assert_eq!(failure.violation.rule, "S4", "{failure}");
}
