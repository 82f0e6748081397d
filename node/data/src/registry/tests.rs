//! What the registry promises, also when the power is cut.

use std::os::unix::fs::PermissionsExt;

use allmend_protocol::ids::{MessageId, PublicKey, ResearcherId};
use allmend_protocol::time::Timestamp;
use proptest::prelude::*;

use super::*;
use crate::disk::Fuse;
use crate::error::AddError;
use crate::metadata::tests::metadata;
use crate::source::ReadOptions;

const MARKER: &str = "the-heron-of-anna-flies-at-noon";
const BEFORE: Timestamp = Timestamp::from_ms(1_000);
const AFTER: Timestamp = Timestamp::from_ms(2_000);

struct Place {
    dir: tempfile::TempDir,
}

impl Place {
    fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap() }
    }

    fn datasets(&self) -> PathBuf {
        self.dir.path().join("datasets")
    }

    fn open(&self) -> Registry {
        Registry::open(self.datasets()).unwrap()
    }

    /// A registry that stops after so many steps.
    fn open_until(&self, steps: i64) -> Result<Registry, RegistryError> {
        let disk = Disk { fuse: Fuse::after(steps) };
        Registry::open_with(self.datasets(), disk)
    }

    /// Something that a steward might hand in.
    fn source(&self, lines: &[(&str, &str)]) -> PathBuf {
        let path = self.dir.path().join("source.jsonl");
        let lines: String = lines
            .iter()
            .map(|(subject, text)| {
                serde_json::json!({"text": text, "subject_id": subject}).to_string() + "\n"
            })
            .collect();
        fs::write(&path, lines).unwrap();
        path
    }

    fn letters(&self) -> PathBuf {
        self.source(&[("anna", MARKER), ("berta", "barley"), ("anna", "again"), ("carl", "cheese")])
    }

    /// Whether `needle` is in any file of the registry, in whatever directory.
    fn holds(&self, needle: &str) -> bool {
        fn any(dir: &Path, needle: &[u8]) -> bool {
            fs::read_dir(dir).unwrap().any(|entry| {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    return any(&path, needle);
                }
                fs::read(path).unwrap().windows(needle.len()).any(|part| part == needle)
            })
        }
        any(&self.datasets(), needle.as_bytes())
    }
}

fn name() -> DatasetName {
    "letters".parse().unwrap()
}

fn policy(text: &str) -> Policy {
    Policy::checked(text.to_owned(), |_| Ok(())).unwrap()
}

fn new_dataset() -> NewDataset {
    NewDataset {
        name: name(),
        metadata: metadata(),
        policy: policy("permit(principal, action, resource);"),
        stewards: vec![PublicKey::from_bytes([1; 32]), PublicKey::from_bytes([2; 32])],
        public: true,
        portable: Vec::new(),
        subjects_min: 2,
        runs_max: Some(2),
    }
}

fn add(registry: &Registry, source: &Path) -> Result<Dataset, AddError> {
    let added = registry.add(new_dataset(), source, &ReadOptions::default(), BEFORE)?;
    Ok(added.dataset)
}

fn job(number: u8) -> MessageId {
    MessageId::from_bytes([number; 32])
}

fn requester(number: u8) -> ResearcherId {
    ResearcherId::from_bytes([number; 32])
}

fn adapter(number: u8) -> Digest {
    Digest::from_bytes([number; 32])
}

fn current(dataset: &Dataset) -> Digest {
    dataset.current().unwrap().digest
}

fn release(registry: &Registry, version: &Digest, number: u8) -> Result<Dataset, RegistryError> {
    registry.record_release(version, job(number), adapter(number), requester(1), BEFORE)
}

#[test]
fn what_is_added_is_there_for_another_process() {
    let place = Place::new();
    let added = add(&place.open(), &place.letters()).unwrap();
    let registry = place.open();
    assert_eq!(registry.list().unwrap().datasets, std::slice::from_ref(&added));
    let held = registry.version(&current(&added)).unwrap();
    held.verify().unwrap();
    assert_eq!(held.rows().unwrap().map(Result::unwrap).count(), 4);
    let counts = held.version.counts;
    assert_eq!((counts.text, counts.subjects, counts.unattributed), (4, 3, 0));
    assert_eq!(held.version.file, Digest::of(&fs::read(&held.path).unwrap()));
    for (path, mode) in [
        (place.datasets(), 0o700),
        (place.datasets().join("letters"), 0o700),
        (held.path.clone(), 0o600),
        (place.datasets().join("letters/record.json"), 0o600),
    ] {
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, mode, "{path:?}");
    }
    assert_eq!(fs::read_dir(registry.staging_dir()).unwrap().count(), 0);
    let record = fs::read_to_string(place.datasets().join("letters/record.json")).unwrap();
    assert!(!record.contains("anna") && !record.contains(MARKER), "rows stay in rows");
}

#[test]
fn croissant_says_nothing_of_the_rows() {
    let place = Place::new();
    let dataset = add(&place.open(), &place.letters()).unwrap();
    let said = dataset.croissant().unwrap().to_string();
    assert!(said.contains(&current(&dataset).to_string()));
    for private in ["anna", MARKER, "barley"] {
        assert!(!said.contains(private), "{said}");
    }
}

#[test]
fn datasets_are_found_by_name_and_digest() {
    let place = Place::new();
    let registry = place.open();
    let dataset = add(&registry, &place.letters()).unwrap();
    let digest = current(&dataset).to_string();
    for reference in ["letters", &digest, &digest[..6], &digest[..6].to_uppercase()] {
        assert_eq!(registry.find(reference).unwrap().name, name(), "{reference}");
    }
    for reference in ["letter", "", &digest[..3], "../letters", "zzzz"] {
        assert!(matches!(registry.find(reference), Err(RegistryError::NotFound(_))), "{reference}");
    }
    assert!(matches!(
        add(&registry, &place.letters()),
        Err(AddError::Registry(RegistryError::Exists(_)))
    ));
}

#[test]
fn bad_data_leaves_nothing() {
    let place = Place::new();
    let registry = place.open();
    let source = place.dir.path().join("bad.jsonl");
    fs::write(&source, format!("{{\"text\":\"{MARKER}\"}}\nnonsense\n")).unwrap();
    let Err(AddError::Invalid(report)) = add(&registry, &source) else { panic!("added") };
    assert_eq!((report.complaint_count, report.complaints[0].line), (1, 2));
    fs::write(&source, "").unwrap();
    assert!(matches!(add(&registry, &source), Err(AddError::Invalid(_))));
    assert!(!place.holds(MARKER));
    assert_eq!(registry.list().unwrap(), Listing::default());
    assert_eq!(fs::read_dir(registry.staging_dir()).unwrap().count(), 0);
}

#[test]
fn names_and_policies_are_checked() {
    for bad in ["", ".x", "-x", "a/b", "A", "ä", "..", &"a".repeat(65), "a b"] {
        assert!(bad.parse::<DatasetName>().is_err(), "{bad}");
    }
    let check = |text: &str| Policy::checked(text.to_owned(), |_| Err("line 3: no".to_owned()));
    assert_eq!(check(" \n"), Err(PolicyError::Empty));
    assert_eq!(check(&"x".repeat(65 * 1024)), Err(PolicyError::TooLong));
    assert_eq!(check("x"), Err(PolicyError::Invalid("line 3: no".to_owned())));
    let place = Place::new();
    let nobody = NewDataset { stewards: Vec::new(), ..new_dataset() };
    let added = place.open().add(nobody, &place.letters(), &ReadOptions::default(), BEFORE);
    assert!(matches!(added, Err(AddError::Stewards(_))));
}

#[test]
fn runs_are_capped_for_each_requester_and_counted_once() {
    let place = Place::new();
    let registry = place.open();
    let version = current(&add(&registry, &place.letters()).unwrap());
    let run = |number, who| registry.record_run(&version, job(number), requester(who), BEFORE);
    run(1, 1).unwrap();
    run(1, 1).unwrap();
    assert_eq!(run(2, 1).unwrap().runs_of(&requester(1)), 2);
    run(2, 1).expect("a second attempt of a counted job");
    assert!(matches!(run(3, 1), Err(RegistryError::RunsUsed { max: 2, .. })));
    run(3, 2).unwrap();
    let elsewhere = registry.record_run(&adapter(9), job(1), requester(1), BEFORE);
    assert!(matches!(elsewhere, Err(RegistryError::NotFound(_))));
}

/// Goal: of two that race for a requester's last run one gets it.
#[test]
fn a_race_for_the_last_run_has_one_winner() {
    let place = Place::new();
    let version = current(&add(&place.open(), &place.letters()).unwrap());
    place.open().record_run(&version, job(100), requester(1), BEFORE).unwrap();
    let won: usize = std::thread::scope(|scope| {
        let racers: Vec<_> = (0..8)
            .map(|number| {
                let registry = place.open();
                scope.spawn(move || {
                    registry.record_run(&version, job(number), requester(1), BEFORE).is_ok()
                })
            })
            .collect();
        racers.into_iter().map(|racer| usize::from(racer.join().unwrap())).sum()
    });
    assert_eq!(won, 1);
    assert_eq!(place.open().show(&name()).unwrap().runs.len(), 2);
}

#[test]
fn withdrawal_blocks_everything_and_names_every_adapter() {
    let place = Place::new();
    let registry = place.open();
    let version = current(&add(&registry, &place.letters()).unwrap());
    release(&registry, &version, 1).unwrap();
    release(&registry, &version, 1).unwrap();
    release(&registry, &version, 2).unwrap();
    assert_eq!(registry.advertised().unwrap().len(), 1);

    let withdrawn = registry.withdraw(&name(), "consent ended", AFTER).unwrap();
    assert_eq!(withdrawn.releases.len(), 2);
    assert_eq!(withdrawn.versions, [version]);
    let again = registry.withdraw(&name(), "another reason", Timestamp::from_ms(9)).unwrap();
    assert_eq!(again, withdrawn, "the first withdrawal stands");

    let is_withdrawn = |error: &RegistryError| matches!(error, RegistryError::Withdrawn { why, .. } if why == "consent ended");
    assert!(is_withdrawn(&registry.version(&version).unwrap_err()));
    assert!(is_withdrawn(&registry.record_run(&version, job(5), requester(5), AFTER).unwrap_err()));
    assert!(is_withdrawn(&release(&registry, &version, 3).unwrap_err()));
    let more = registry.add_version(&name(), &place.letters(), &ReadOptions::default(), AFTER);
    assert!(matches!(more, Err(AddError::Registry(error)) if is_withdrawn(&error)));
    assert_eq!(registry.advertised().unwrap(), []);
    registry.forget(&name(), "anna", AFTER).expect("a right that withdrawal does not end");
    assert!(!place.holds(MARKER));
}

#[test]
fn what_is_not_public_is_not_advertised() {
    let place = Place::new();
    let registry = place.open();
    let private = NewDataset { public: false, ..new_dataset() };
    registry.add(private, &place.letters(), &ReadOptions::default(), BEFORE).unwrap();
    assert_eq!(registry.advertised().unwrap(), []);
}

#[test]
fn forgetting_makes_a_version_without_the_subject_and_destroys_the_others() {
    let place = Place::new();
    let registry = place.open();
    let first = current(&add(&registry, &place.letters()).unwrap());
    release(&registry, &first, 1).unwrap();
    assert!(place.holds(MARKER) && place.holds("anna"), "the search finds what is there");

    let forgotten = registry.forget(&name(), "anna", AFTER).unwrap();
    assert_eq!((forgotten.rows, forgotten.destroyed.as_slice()), (2, &[first][..]));
    assert_eq!(forgotten.affected.len(), 1);
    assert!(forgotten.affected[0].certain);
    assert!(!place.holds(MARKER) && !place.holds("anna"), "gone from every file");
    let held = registry.version(&forgotten.version).unwrap();
    held.verify().unwrap();
    assert_eq!((held.version.counts.text, held.version.counts.subjects), (2, 2));
    assert_eq!((held.ordinal, held.version.parent), (2, Some(first)));
    assert!(matches!(registry.version(&first), Err(RegistryError::Destroyed { .. })));
    assert!(matches!(release(&registry, &first, 2), Err(RegistryError::Destroyed { .. })));
    assert!(matches!(
        registry.forget(&name(), "anna", AFTER),
        Err(RegistryError::NoSuchSubject(_))
    ));

    // A second subject: the first version held them too, as the parent of one that did.
    let forgotten = registry.forget(&name(), "carl", AFTER).unwrap();
    assert!(forgotten.affected.iter().all(|affected| affected.certain));
    assert!(!place.holds("cheese") && place.holds("barley"));
}

#[test]
fn a_worker_with_the_file_open_reads_zeros() {
    let place = Place::new();
    let registry = place.open();
    let version = current(&add(&registry, &place.letters()).unwrap());
    let held = registry.version(&version).unwrap();
    let mut open = File::open(&held.path).unwrap();
    registry.forget(&name(), "anna", AFTER).unwrap();
    let mut left = Vec::new();
    open.read_to_end(&mut left).unwrap();
    assert!(left.iter().all(|byte| *byte == 0));
    assert!(Rows::open(left.as_slice()).is_err());
}

#[test]
fn forgetting_reaches_older_versions_and_spares_those_without_the_subject() {
    let place = Place::new();
    let registry = place.open();
    let first = current(&add(&registry, &place.letters()).unwrap());
    let update = |lines: &[(&str, &str)]| {
        let source = place.source(lines);
        let added =
            registry.add_version(&name(), &source, &ReadOptions::default(), BEFORE).unwrap();
        current(&added.dataset)
    };
    let second = update(&[("berta", "beans"), ("carl", "chestnuts")]);
    let third = update(&[("berta", "berries")]);
    for (number, version) in [(1, first), (2, second), (3, third)] {
        release(&registry, &version, number).unwrap();
    }
    // Anna is only in the first: the present version stays as it is.
    let forgotten = registry.forget(&name(), "anna", AFTER).unwrap();
    assert_eq!((forgotten.version, forgotten.rows), (third, 0));
    assert_eq!(forgotten.destroyed, [first]);
    assert_eq!(forgotten.dataset.versions.len(), 3);
    let of = |forgotten: &Forgotten| -> Vec<(Digest, bool)> {
        forgotten.affected.iter().map(|a| (a.release.adapter, a.certain)).collect()
    };
    assert_eq!(of(&forgotten), [(adapter(1), true)]);
    // Carl is in the second; whether he was in the first nobody can tell any more.
    let forgotten = registry.forget(&name(), "carl", AFTER).unwrap();
    assert_eq!(of(&forgotten), [(adapter(1), false), (adapter(2), true)]);
    registry.version(&third).unwrap().verify().unwrap();
    assert!(!place.holds(MARKER) && !place.holds("chestnuts") && place.holds("berries"));
}

#[test]
fn everybody_may_be_forgotten() {
    let place = Place::new();
    let registry = place.open();
    add(&registry, &place.source(&[("anna", MARKER)])).unwrap();
    let forgotten = registry.forget(&name(), "anna", AFTER).unwrap();
    let held = registry.version(&forgotten.version).unwrap();
    held.verify().unwrap();
    assert_eq!(held.version.counts.rows(), 0);
    assert!(!place.holds(MARKER));
}

#[test]
fn damage_is_told_apart_and_nothing_of_it_is_destroyed() {
    let place = Place::new();
    let registry = place.open();
    let version = current(&add(&registry, &place.letters()).unwrap());
    let held = registry.version(&version).unwrap();
    let mut rows = fs::read(&held.path).unwrap();
    let middle = rows.len() / 2;
    rows[middle] ^= 1;
    fs::write(&held.path, &rows).unwrap();
    assert!(matches!(held.verify(), Err(RegistryError::Rows { .. })));
    let refused = registry.forget(&name(), "berta", AFTER);
    assert!(matches!(refused, Err(RegistryError::Rows { .. })), "no version from damaged rows");

    let record = place.datasets().join("letters/record.json");
    let text = fs::read_to_string(&record).unwrap();
    for damaged in [
        text.replace("permit(", "forbid("),
        text.replace("\"name\": \"letters\"", "\"name\": \"others\""),
        text.replace("\"format\": 1", "\"format\": 2"),
        text[..text.len() / 2].to_owned(),
    ] {
        assert_ne!(damaged, text);
        fs::write(&record, damaged).unwrap();
        let listing = place.open().list().unwrap();
        assert_eq!((listing.datasets.len(), listing.damaged.len()), (0, 1));
        assert!(place.holds("barley"), "what a damaged record names is not known");
    }
}

#[test]
fn a_policy_is_replaced_with_its_digest() {
    let place = Place::new();
    let registry = place.open();
    let before = add(&registry, &place.letters()).unwrap();
    let after =
        registry.set_policy(&name(), policy("forbid(principal, action, resource);")).unwrap();
    assert_ne!(after.policy.digest, before.policy.digest);
    assert_eq!(current(&after), current(&before), "a policy is no new version");
}

/// Goal: whatever step is the last before the power is cut, a dataset is there whole or not at all,
/// and after the next start nothing of a half one is.
#[test]
fn adding_survives_a_power_cut_at_every_step() {
    let mut cut = 0;
    for steps in 0.. {
        let place = Place::new();
        let source = place.letters();
        let added = place
            .open_until(steps)
            .map_err(AddError::from)
            .and_then(|registry| add(&registry, &source));
        if added.is_ok() {
            break;
        }
        cut += 1;
        let registry = place.open();
        let listing = registry.list().unwrap();
        assert_eq!(listing.damaged, [], "step {steps}");
        match listing.datasets.as_slice() {
            [] => assert!(!place.holds(MARKER), "step {steps}"),
            [whole] => registry.version(&current(whole)).unwrap().verify().unwrap(),
            _ => panic!("step {steps}"),
        }
        assert_eq!(fs::read_dir(registry.staging_dir()).unwrap().count(), 0, "step {steps}");
        if listing.datasets.is_empty() {
            add(&registry, &source).expect("as if nothing had been");
        }
    }
    assert!(cut >= 8, "only {cut} steps were cut");
}

/// Goal: as above for forgetting: the state before with all rows, or the state after without a byte of
/// the subject; readers meanwhile see one of both.
#[test]
fn forgetting_survives_a_power_cut_at_every_step() {
    let (mut before, mut after) = (0, 0);
    for steps in 0.. {
        let place = Place::new();
        let first = current(&add(&place.open(), &place.letters()).unwrap());
        release(&place.open(), &first, 1).unwrap();
        let forgotten =
            place.open_until(steps).and_then(|registry| registry.forget(&name(), "anna", AFTER));
        if forgotten.is_ok() {
            break;
        }
        // A daemon that was running all the time has swept nothing.
        let running = Registry { dir: place.datasets(), disk: Disk::default() };
        let seen = running.show(&name()).unwrap();
        running.version(&current(&seen)).unwrap().verify().unwrap();

        let registry = place.open();
        let dataset = registry.show(&name()).unwrap();
        let held = registry.version(&current(&dataset)).unwrap();
        held.verify().unwrap();
        if held.version.digest == first {
            before += 1;
            assert_eq!(held.version.counts.rows(), 4, "step {steps}");
            registry.forget(&name(), "anna", AFTER).expect("again");
        } else {
            after += 1;
        }
        assert!(!place.holds(MARKER) && !place.holds("anna"), "step {steps}");
        assert_eq!(registry.show(&name()).unwrap().releases.len(), 1);
    }
    assert!(before >= 5 && after >= 2, "cut {before} times before and {after} after the record");
}

/// Goal: the same for the changes of a record alone.
#[test]
fn records_survive_a_power_cut_at_every_step() {
    type Change = fn(&Registry, &Digest) -> Result<Dataset, RegistryError>;
    let changes: [Change; 3] = [
        |registry, version| release(registry, version, 1),
        |registry, version| registry.record_run(version, job(1), requester(1), AFTER),
        |registry, _| registry.set_policy(&name(), policy("forbid(principal, action, resource);")),
    ];
    for change in changes {
        for steps in 0.. {
            let place = Place::new();
            let before = add(&place.open(), &place.letters()).unwrap();
            let changed =
                place.open_until(steps).and_then(|registry| change(&registry, &current(&before)));
            let now = place.open().show(&name()).unwrap();
            if let Ok(after) = changed {
                assert_eq!(now, after);
                break;
            }
            let again = change(&place.open(), &current(&now)).expect("again");
            assert!(now == before || now == again, "step {steps}: neither before nor after");
        }
    }
}

#[test]
fn a_dataset_being_made_is_not_swept_by_others() {
    let place = Place::new();
    let registry = place.open();
    let staging = registry.stage().unwrap();
    place.open();
    assert!(staging.dir().is_dir());
    drop(staging);
    assert_eq!(fs::read_dir(registry.staging_dir()).unwrap().count(), 0);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// Whoever is forgotten, in whatever order: nothing of them is left, and everything of the others.
    #[test]
    fn forgetting_removes_one_and_keeps_the_rest(
        owners in prop::collection::vec(0_usize..4, 1..12),
        order in Just([0_usize, 1, 2, 3]).prop_shuffle(),
    ) {
        let place = Place::new();
        let registry = place.open();
        let rows: Vec<(String, String)> = owners
            .iter()
            .enumerate()
            .map(|(at, owner)| (format!("person-{owner}-id"), format!("said-{at}-by-{owner}-here")))
            .collect();
        let lines: Vec<(&str, &str)> =
            rows.iter().map(|(owner, text)| (owner.as_str(), text.as_str())).collect();
        add(&registry, &place.source(&lines)).unwrap();
        let mut gone = Vec::new();
        for owner in order {
            let forgotten = registry.forget(&name(), &format!("person-{owner}-id"), AFTER);
            let had = owners.contains(&owner);
            prop_assert_eq!(forgotten.is_ok(), had);
            gone.push(owner);
            for (at, owner) in owners.iter().enumerate() {
                let there = place.holds(&format!("said-{at}-by-{owner}-here"));
                prop_assert_eq!(there, !gone.contains(owner));
            }
            let dataset = registry.show(&name()).unwrap();
            registry.version(&current(&dataset)).unwrap().verify().unwrap();
        }
    }
}
