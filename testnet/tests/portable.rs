//! Rows of a researcher's own, in a file of its own: its processes would compete with those of other tests.

use allmend_testnet::ordeal::finetune::portable;

/// Goal: portable rows go where they may, are deleted with a signed record, and go nowhere else.
#[test]
fn portable_rows_are_deleted_at_the_end() {
    let report = portable::run().unwrap_or_else(|error| panic!("{error:#}"));
    assert!(report.deleted_bytes > 0 && report.files > 0, "{report:?}");
}
