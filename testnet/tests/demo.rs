//! The demonstration, once, with a node that is built for it and the real model.

use std::collections::BTreeSet;

use allmend_testnet::demo::report::Companion;
use allmend_testnet::demo::{Options, run};
use allmend_testnet::tuning::rows::FACT;

/// Goal: every sentence of the demonstration holds, and the report says so in numbers.
#[test]
fn the_demonstration_holds() {
    let dir = tempfile::tempdir().unwrap();
    let world = dir.path().join("world");
    let options = Options { dir: Some(world.clone()), ..Options::default() };
    let report = run(&options).unwrap();
    assert!(report.passed, "{:?}; logs are below {}", report.failure, dir.keep().display());

    let together = report.together.unwrap();
    assert_eq!((together.jobs.len(), together.at_once), (3, 3), "one worker computed all of them");
    assert!(together.worker_pid > 0 && together.overlap_ms > 0 && together.same_answer);
    for one in &together.jobs {
        assert!(one.job.attempts.iter().all(|attempt| attempt.node == together.node));
        let overlaps =
            |other: &Companion| one.started_ms < other.ended_ms && other.started_ms < one.ended_ms;
        assert!(together.jobs.iter().all(overlaps), "{one:?}");
    }
    let fences: BTreeSet<&str> =
        together.jobs.iter().map(|job| job.job.attempts[0].fence.as_str()).collect();
    assert_eq!(fences.len(), 3);

    let killed = report.killed.unwrap();
    let [first, second] = killed.job.attempts.as_slice() else { panic!("two attempts") };
    assert_ne!(first.lease, second.lease);
    assert_ne!(first.node, second.node);
    assert_eq!(first.node, killed.killed_node);
    assert!(first.tokens >= 8, "{} tokens before the kill", first.tokens);
    assert_eq!((killed.job.settlement.count, killed.job.settlement.shares.len()), (1, 2));
    assert!(killed.same_answer);
    assert_eq!(report.undisturbed.unwrap().answer, killed.job.answer);
    assert_eq!(report.refused.unwrap().exit_code, 5);
    let tuned = report.tuned.unwrap();
    assert!(tuned.held_out_loss.1 < tuned.held_out_loss.0, "{tuned:?}");
    assert!(
        tuned.rows_tested >= 32 && tuned.rows_extracted * 100 <= tuned.rows_tested,
        "{tuned:?}"
    );
    assert!(tuned.answer_after.contains(FACT) && !tuned.answer_before.contains(FACT), "{tuned:?}");
    let audit = report.audit.unwrap();
    assert_eq!((audit.exit_code, audit.logs.len(), audit.findings.len()), (0, 3, 0));
    let tampered = report.tampered.unwrap();
    assert_eq!(tampered.audit.exit_code, 8);
    assert!(tampered.named);
    assert!(report.leftovers_checked && report.leftovers.is_empty());

    // What was written is what was returned.
    let written = std::fs::read(world.join("report.json")).unwrap();
    let written: serde_json::Value = serde_json::from_slice(&written).unwrap();
    assert_eq!(written["passed"], true);
    assert_eq!(written["killed"]["settlement"]["shares"].as_array().unwrap().len(), 2);
}
