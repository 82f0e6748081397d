//! Who is no member gets nothing (`allmend-testnet strangers`).

use allmend_testnet::ordeal::strangers::run;

/// Goal: strangers, expired members and other federations are disconnected and not believed, and random
/// bytes do no harm. Method: a libp2p program written against the specification, and a second federation.
#[test]
fn strangers_get_nothing() {
    let report = run().unwrap_or_else(|error| panic!("{error:#}"));
    let said = |words: &str| report.refused.iter().any(|why| why.contains(words));
    assert!(said("has no certificate"), "{report:?}");
    assert!(said("certificate not valid"), "{report:?}");
    assert!(said("node of another federation"), "{report:?}");
    assert!(said("message of another federation"), "{report:?}");
    assert!(report.noise_bytes >= 30_000_000, "{report:?}");
}
