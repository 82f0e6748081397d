//! Storage against a real file system: what is evicted, and what the daemon is told.

use std::fs;
use std::path::Path;

use allmend_node::config::{self, Layout};
use allmend_node::models::{Header, PullOptions, Source};
use allmend_node::storage::{DrainReason, Part, Storage, StorageState};
use allmend_protocol::ids::{Digest, MessageId};
use allmend_protocol::time::Timestamp;

const MIB: usize = 1 << 20;
const HOUR_MS: u64 = 3_600_000;

fn settings() -> config::Storage {
    config::Storage {
        models_cap_mib: 3,
        spool_cap_mib: 2,
        log_cap_mib: 10,
        reserve_mib: 0,
        retention_hours: 1,
    }
}

fn open(dir: &Path) -> Storage {
    let layout = Layout::at(dir.join("data"));
    layout.create().unwrap();
    Storage::open(&layout, &settings()).unwrap()
}

fn pull(storage: &Storage, dir: &Path, name: &str, mib: usize) -> Digest {
    let path = dir.join(format!("{name}.gguf"));
    fs::write(&path, [name.as_bytes(), &vec![0; mib * MIB]].concat()).unwrap();
    let header = |_: &Path| Ok(Header::default());
    let pulled =
        storage.models().pull(&Source::Path(path), &PullOptions::default(), &header, &()).unwrap();
    pulled.model.meta.digest
}

fn now() -> Timestamp {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    Timestamp::from_ms(u64::try_from(since.as_millis()).unwrap())
}

#[test]
fn models_beyond_the_cap_go_by_last_use() {
    let dir = tempfile::tempdir().unwrap();
    let storage = open(dir.path());
    let old = pull(&storage, dir.path(), "old", 1);
    let pinned = pull(&storage, dir.path(), "pinned", 1);
    assert_eq!(storage.tend(now()).unwrap(), StorageState::Ok);
    let _pin = storage.models().pin(&pinned, &()).unwrap();
    let new = pull(&storage, dir.path(), "new", 2);
    let state = storage.tend(now()).unwrap();
    assert!(matches!(state, StorageState::Evicted { items: 1.., .. }), "{state:?}");
    assert!(storage.models().model(&old).is_err());
    assert!(storage.models().model(&pinned).is_ok());
    // Both together are over the cap by the few bytes of their names.
    assert!(storage.models().model(&new).is_err());
}

#[test]
fn the_spool_forgets_after_retention_and_drains_when_full() {
    let dir = tempfile::tempdir().unwrap();
    let storage = open(dir.path());
    let (open_job, settled) = (MessageId::from_bytes([1; 32]), MessageId::from_bytes([2; 32]));
    storage.spool().write(&open_job, Part::Input, &vec![1; MIB]).unwrap();
    storage.spool().write(&settled, Part::Output, &vec![2; MIB]).unwrap();
    let full = StorageState::MustDrain { why: DrainReason::SpoolFull };
    assert_eq!(storage.tend(now()).unwrap(), full);
    let at = Timestamp::from_ms(now().as_ms());
    storage.spool().mark_settled(&settled, at).unwrap();
    assert_eq!(storage.tend(Timestamp::from_ms(at.as_ms() + HOUR_MS - 1)).unwrap(), full);
    let after = storage.tend(Timestamp::from_ms(at.as_ms() + HOUR_MS)).unwrap();
    assert_eq!(after, StorageState::Evicted { items: 1, bytes: MIB as u64 });
    assert!(storage.spool().read(&open_job, Part::Input, MIB as u64).is_ok());
    assert!(storage.spool().len(&settled, Part::Output).is_none());
}

#[test]
fn a_growing_log_warns_then_drains_and_the_report_shows_it() {
    let dir = tempfile::tempdir().unwrap();
    let storage = open(dir.path());
    let journal = dir.path().join("data/journal/0");
    fs::write(&journal, vec![1; 9 * MIB + MIB / 2]).unwrap();
    let soon = storage.tend(now()).unwrap();
    assert!(matches!(soon, StorageState::LogFullSoon { .. }), "{soon:?}");
    fs::write(&journal, vec![1; 11 * MIB]).unwrap();
    let report = storage.report(now()).unwrap();
    assert_eq!(report.state, StorageState::MustDrain { why: DrainReason::LogFull });
    let json = serde_json::to_value(&report).unwrap();
    assert_eq!(json["state"]["why"], "log_full");
    let table = report.table().render(None, false);
    assert!(table.lines().nth(3).unwrap().starts_with("log"), "{table}");
}
