//! The worker dies under several jobs (`allmend-testnet worker`).

use allmend_testnet::ordeal::worker::run;

/// Goal: the death of a worker is a failed attempt of each of its jobs and nothing else: the node lives, a
/// new worker goes on with all of them, and every answer is what it would have been. Method: `kill -9` of
/// the worker while it writes three answers; the audit counts every lease once.
#[test]
fn a_killed_worker_costs_an_attempt_of_each_of_its_jobs() {
    let report = run().unwrap_or_else(|error| panic!("{error:#}"));
    assert_eq!((report.jobs, report.attempts), (3, vec![2; 3]));
}
