//! A federation across network namespaces (`allmend-testnet netns`).

use allmend_testnet::ordeal::netns::run;

/// Goal: an institution joins by invitation from another host, and serves on when its site lets in
/// nothing and lets out no UDP. Method: hosts as network namespaces, which needs root; without them the
/// test fails unless `ALLMEND_NO_NETNS=1` says that this is known.
#[test]
fn a_node_behind_a_firewall_serves() {
    if std::env::var_os("ALLMEND_NO_NETNS").is_some_and(|set| set == "1") {
        eprintln!("NOT TESTED: ALLMEND_NO_NETNS=1, so no node behind a firewall was tried");
        return;
    }
    let report = run().unwrap_or_else(|error| panic!("{error:#}"));
    assert_eq!(report.shut.len(), 3, "{report:?}");
}
