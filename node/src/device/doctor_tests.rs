use super::*;
use crate::config::{Overrides, load};
use crate::models::Header;
use std::net::TcpListener;

fn header(_: &Path) -> Result<Header, String> {
    Ok(Header { architecture: "llama".into(), quantisation: "Q4_1".into(), ..Header::default() })
}

fn find<'a>(report: &'a Report, name: &str) -> &'a Check {
    report.checks.iter().find(|check| check.name == name).unwrap()
}

fn loaded(assignments: &[&str]) -> Result<Loaded, ConfigError> {
    let mut flags = Overrides::default();
    for assignment in assignments {
        flags.assign(assignment)?;
    }
    load(Path::new("/nonexistent/config.toml"), [], &flags)
}

#[test]
fn an_empty_machine_is_told_what_to_do() {
    let dir = tempfile::tempdir().unwrap();
    let layout = Layout::at(dir.path().join("none"));
    let error = loaded(&["limits.slots=many"]).unwrap_err();
    let report = examine(Subject {
        layout: &layout,
        config: Err(&error),
        read_header: &header,
        extra: vec![Check::new("reachable", Status::Warn, "by nobody")],
    });
    assert_eq!(report.worst(), Status::Fail);
    for name in ["configuration", "data directory", "keys"] {
        let check = find(&report, name);
        assert_eq!(check.status, Status::Fail, "{check:?}");
        assert!(check.hint.is_some());
    }
    assert_eq!(find(&report, "models").status, Status::Skipped);
    assert_eq!(report.checks.last().unwrap().name, "reachable");
    let text = report.table().render(Some(100), false);
    assert!(text.contains("hint: ") && text.contains("FAIL"));
    assert!(!layout.root().exists(), "doctor changes nothing");
}

#[test]
fn a_set_up_machine_is_fine_and_a_taken_port_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let layout = Layout::at(dir.path());
    layout.create().unwrap();
    Identity::load_or_create(&layout.node_key()).unwrap();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let holder = TcpListener::bind(taken).unwrap();
    let listen = format!("control_listen=/ip4/127.0.0.1/tcp/{}", taken.port());
    let loaded = loaded(&[&listen, "bulk_listen=127.0.0.1:0", "storage.reserve_mib=64"]).unwrap();
    let examined = || {
        examine(Subject {
            layout: &layout,
            config: Ok(&loaded),
            read_header: &header,
            extra: Vec::new(),
        })
    };
    let report = examined();
    for name in ["configuration", "data directory", "node key", "bulk port"] {
        assert_eq!(find(&report, name).status, Status::Ok, "{report:?}");
    }
    assert_eq!(find(&report, "control port").status, Status::Fail);
    assert_eq!(find(&report, "models").status, Status::Warn);
    let running = layout.lock_daemon().unwrap().unwrap();
    assert!(find(&examined(), "control port").detail.contains("by the running node"));
    drop((running, holder));
    assert_eq!(find(&examined(), "control port").status, Status::Ok);
}

#[test]
fn an_exposed_key_fails_with_the_command_to_run() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().unwrap();
    let layout = Layout::at(dir.path());
    layout.create().unwrap();
    Identity::load_or_create(&layout.node_key()).unwrap();
    let open = std::fs::Permissions::from_mode(0o644);
    std::fs::set_permissions(layout.node_key(), open).unwrap();
    let checks = keys(&layout);
    assert_eq!(checks[0].status, Status::Fail);
    assert!(checks[0].hint.as_ref().unwrap().starts_with("chmod 600"));
}

#[test]
fn leaking_environments_fail() {
    assert_eq!(environment(true).status, Status::Fail);
    assert_eq!(environment(false).status, Status::Ok);
}

/// Goal: a GPU that is not offered never looks fine, and says why.
#[test]
fn a_gpu_that_does_not_compute_is_told_with_its_reason() {
    use crate::device::Gpu;
    let gpu = |unusable: Option<&str>| Gpu {
        name: "NVIDIA A100".to_owned(),
        memory_mib: None,
        free_mib: None,
        compute_capability: None,
        multiprocessors: None,
        unusable: unusable.map(str::to_owned),
    };
    let found = |gpus| Accelerators::Nvidia { driver: None, gpus };
    assert_eq!(accelerator(&found(vec![gpu(None)]), true).status, Status::Ok);
    let broken = accelerator(&found(vec![gpu(None), gpu(Some("no kernel ran"))]), true);
    assert_eq!(broken.status, Status::Warn);
    assert!(broken.detail.contains("no kernel ran") && broken.hint.is_some());
    let unbuilt = accelerator(&found(vec![gpu(Some("made without CUDA"))]), false);
    assert_eq!(unbuilt.status, Status::Skipped);
    assert!(unbuilt.detail.contains("made without CUDA"));
    assert!(unbuilt.hint.is_some_and(|hint| hint.contains("--features cuda")));
}
