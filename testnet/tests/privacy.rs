//! A planted text is found only where it must be (`allmend-testnet privacy`).

use allmend_testnet::ordeal::privacy::run;

/// Goal: a prompt and its answer are read by home, the executing node and the researcher alone, and lie
/// nowhere in clear. Method: a planted word; taps of three nodes, and every file, are searched for it.
#[test]
fn a_planted_text_stays_where_it_belongs() {
    let report = run().unwrap_or_else(|error| panic!("{error:#}"));
    assert!(report.carried >= 3 && report.elsewhere > 0, "{report:?}");
}
