//! Two protocol versions together (`allmend-testnet versions`).

use allmend_testnet::ordeal::versions::run;

/// Goal: nodes of different releases run each other's jobs and understand each other's refusals. Method: a
/// node that speaks the first version of everything, and taps that show which versions were used.
#[test]
fn two_versions_work_together() {
    let report = run().unwrap_or_else(|error| panic!("{error:#}"));
    assert_eq!(
        (report.old_to_new, report.new_to_old, report.new_to_new),
        (vec![1], vec![1], vec![2])
    );
}
