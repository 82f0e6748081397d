//! Nodes are killed at random instants during jobs (`allmend-testnet crash` does it fifty times).

use allmend_testnet::ordeal::crash::{Options, run};

/// Goal: nothing acknowledged is lost and nothing is settled twice. Method: six `kill -9` of home nodes
/// and executing nodes, each followed by a plain start.
#[test]
fn killed_nodes_lose_nothing() {
    let seed = std::env::var("SEED").ok().and_then(|seed| seed.parse().ok());
    let report = run(&Options { kills: 6, seed }).unwrap_or_else(|error| panic!("{error:#}"));
    assert!(report.kills_as_home > 0, "no kill met a home of open jobs: {report:?}");
    assert_eq!(report.reckoning.receipts, report.reckoning.leases, "{report:?}");
    assert_eq!(report.reckoning.settlements, report.reckoning.grants, "{report:?}");
}
