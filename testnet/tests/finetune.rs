//! Fine-tuning where the data lives (`allmend-testnet finetune` does more of it).

use allmend_testnet::ordeal::finetune::faults;

/// Goal: what fails in a training room ends the job with its own reason, and the unused grant goes back.
/// Method: a loss that is no number and one that explodes, in step 7.
#[test]
fn faults_end_a_job_with_their_reason() {
    let only = ["not-finite:7", "loss-times-ten:7"].map(str::to_owned).to_vec();
    let report = faults::run(&faults::Options { only }).unwrap_or_else(|error| panic!("{error:#}"));
    assert_eq!(report.faults.len(), 2, "{report:?}");
    assert!(report.faults.iter().all(|fault| fault.cost_micro < fault.cap_micro), "{report:?}");
}
