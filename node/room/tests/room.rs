//! Rooms as the node uses them: what is reported, what is handed in, what is refused, how they end.

#![allow(
    clippy::print_stdout,
    reason = "a table is what it is for, and what a room says goes that way"
)]

#[cfg(target_os = "linux")]
mod support {
    mod harness;
    pub(crate) mod roles;

    pub(crate) use self::harness::{run, say_what_is_missing, this_as};
}

#[cfg(not(target_os = "linux"))]
fn main() {
    println!("!!! NOT TESTED: rooms need Linux");
}

#[cfg(target_os = "linux")]
fn main() -> std::process::ExitCode {
    match std::env::args().nth(1).as_deref() {
        Some("compute") => support::roles::compute(),
        Some("greedy") => support::roles::greedy(),
        Some("crowded") => support::roles::crowded(),
        Some("obedient") => support::roles::obedient(),
        Some("abort") => support::roles::abort(),
        Some("deaf") => support::roles::deaf(),
        Some("threaded") => support::roles::threaded(),
        Some("parent") => support::roles::parent(),
        _ => support::run(linux::TESTS),
    }
}

#[cfg(target_os = "linux")]
mod linux {
    use std::collections::{BTreeMap, BTreeSet};
    use std::fs::File;
    use std::io::{BufRead, BufReader, Read, Write};
    use std::process::Stdio;
    use std::sync::mpsc;
    use std::time::Duration;

    use allmend_room::{EmptyRoom, Exit, Layer, Probe, RoomError, Spec, Strength};

    use crate::support::roles::{any, build, output};
    use crate::support::{say_what_is_missing, this_as};

    pub(crate) const TESTS: &[(&str, fn())] = &[
        ("reports_what_it_has_verified", reports_what_it_has_verified),
        ("computes_with_threads_memory_and_a_mapped_file", computes),
        ("refuses_memory_beyond_its_share", refuses_memory),
        ("bounds_its_threads", bounds_its_threads),
        ("a_layer_left_off_is_reported_and_weakens", layers_left_off),
        ("a_weaker_room_is_refused_and_ended", weaker_room_is_refused),
        ("hands_in_only_regular_files_for_reading", hands_in_only_files),
        ("environment_is_what_is_named", environment_is_what_is_named),
        ("says_how_it_ended", says_how_it_ended),
        ("ends_when_it_is_dropped_or_killed", ends_when_dropped),
        ("ends_with_its_node", ends_with_its_node),
        ("a_program_that_does_not_seal_is_refused", does_not_seal),
        ("a_program_with_threads_is_refused", has_threads),
        ("survey_agrees_with_a_room", survey_agrees),
    ];

    fn reports_what_it_has_verified() {
        let room = build("obedient", &any());
        let facts = room.facts();
        println!("{} on Linux {}", room.strength(), facts.kernel);
        for fact in &facts.layers {
            println!("  {:22} {:5} {}", fact.layer.name(), fact.held, fact.note);
        }
        for fact in &facts.probes {
            let (control, held) = (fact.control, fact.held);
            println!("  {:22} control {control:5} held {held:5} {}", fact.probe.name(), fact.said);
        }
        say_what_is_missing(facts, Strength::Sealed);
        assert!(facts.layers.iter().map(|fact| fact.layer).eq(Layer::ALL));
        assert!(facts.probes.iter().map(|fact| fact.probe).eq(Probe::ALL));
        // Whatever the machine offers, these need nothing of it.
        for layer in [
            Layer::NoNewPrivileges,
            Layer::NoCapabilities,
            Layer::NotDumpable,
            Layer::NoCoreFiles,
            Layer::Descriptors,
            Layer::Environment,
            Layer::MemoryLimit,
        ] {
            assert!(facts.held(layer), "{layer}");
        }
    }

    fn computes() {
        let mut file = tempfile::tempfile().expect("a file");
        let bytes: Vec<u8> = (0..(4_u32 << 20)).map(|n| (n % 251) as u8).collect();
        file.write_all(&bytes).expect("written");
        let mut room = build("compute", &any()).open(&[("model", &file)]).expect("open");
        writeln!(room.stdin.take().expect("its input"), "hello").expect("said");
        let said = output(&mut room);
        let sum: u64 = bytes.iter().map(|b| u64::from(*b)).sum();
        let touched: usize = (0..(1 << 18)).map(|at| at & 0xff).sum();
        let squares = 28 * 999 * 1000 / 2;
        assert_eq!(said.trim(), format!("{sum} {touched} {squares} {} hello", bytes.len()));
        assert_eq!(room.wait().expect("its end"), Exit::Code(0));
    }

    fn refuses_memory() {
        let spec = Spec { memory_max_bytes: 256 << 20, ..any() };
        let mut room = build("greedy", &spec).open(&[]).expect("open");
        let pieces: usize = output(&mut room).trim().parse().expect("it was refused some");
        assert!((8..16).contains(&pieces), "{pieces} pieces of 16 MiB of 256");
    }

    fn bounds_its_threads() {
        let room = build("crowded", &Spec { threads_max: 32, ..any() });
        let bounded = room.facts().held(Layer::UserNamespace) && !stays_root();
        let mut room = room.open(&[]).expect("open");
        let threads: usize = output(&mut room).trim().parse().expect("a number");
        if bounded {
            // The limit counts the warden, the first thread and, until it is gone, the decoy.
            assert!((28..32).contains(&threads), "{threads}");
        } else {
            println!(
                "!!! NOT TESTED HERE: the bound on threads, which needs a user namespace and another user than root"
            );
            assert_eq!(threads, 200);
        }
    }

    /// Whether a room of this process's is root's, whom the kernel lets have any number of threads: it is
    /// root here, and a container of one user.
    fn stays_root() -> bool {
        let map = std::fs::read_to_string("/proc/self/uid_map").expect("a map of users");
        let knows_nobody = map.lines().any(|line| {
            let numbers: Vec<u64> =
                line.split_whitespace().filter_map(|n| n.parse().ok()).collect();
            matches!(numbers[..], [first, _, count] if (first..first + count).contains(&65_534))
        });
        rustix::process::geteuid().is_root() && !knows_nobody
    }

    fn layers_left_off() {
        let strongest = build("obedient", &any()).strength();
        let namespaces = [
            Layer::UserNamespace,
            Layer::MountNamespace,
            Layer::PrivateRoot,
            Layer::NetworkNamespace,
            Layer::PidNamespace,
            Layer::IpcNamespace,
            Layer::UtsNamespace,
            Layer::CgroupNamespace,
        ];
        let without = |layers: &[Layer]| {
            let spec = Spec { without: layers.iter().copied().collect::<BTreeSet<_>>(), ..any() };
            let room = build("obedient", &spec);
            for layer in layers {
                let fact = room.facts().layers.iter().find(|fact| fact.layer == *layer);
                let fact = fact.expect("it is reported");
                assert!(!fact.held && fact.note == "left off by order", "{layer}: {fact:?}");
            }
            room
        };
        if strongest == Strength::Sealed {
            for layer in namespaces.into_iter().filter(|layer| *layer != Layer::CgroupNamespace) {
                let room = without(&[layer]);
                assert_eq!(room.strength(), Strength::Confined, "without {layer}");
            }
            assert_eq!(without(&[Layer::Landlock]).strength(), Strength::Confined);
            assert_eq!(without(&[Layer::CgroupNamespace]).strength(), Strength::Sealed);
        } else {
            println!(
                "!!! NOT TESTED HERE: single layers off, since this machine's rooms are {strongest}"
            );
        }
        let confined = without(&namespaces);
        if strongest.at_least(Strength::Confined) {
            say_what_is_missing(confined.facts(), Strength::Confined);
            assert_eq!(confined.strength(), Strength::Confined);
        }
        // With no layer at all each probe gets out where its control did: they are real attempts.
        let bare = without(&Layer::ALL);
        assert_eq!(bare.strength(), Strength::Process);
        // Only io_uring wants locked memory, of which a room without layers has none either.
        let unlocked = |probe: Probe| probe != Probe::IoUring;
        for fact in bare.facts().probes.iter().filter(|fact| unlocked(fact.probe)) {
            assert_eq!(fact.held, !fact.control, "{}: {}", fact.probe, fact.said);
        }
    }

    fn weaker_room_is_refused() {
        let without = BTreeSet::from([Layer::Seccomp]);
        let spec = Spec { least: Strength::Confined, without, ..any() };
        match EmptyRoom::build(&mut this_as("obedient"), &spec) {
            Err(RoomError::TooWeak { wanted, has, lacking }) => {
                assert_eq!((wanted, has), (Strength::Confined, Strength::Process));
                let named = "the layer seccomp does not hold: left off by order";
                assert!(lacking.iter().any(|l| l == named), "{lacking:?}");
            }
            other => panic!("{other:?}"),
        }
    }

    fn hands_in_only_files() {
        let mut file = tempfile::tempfile().expect("a file");
        file.write_all(b"rows").expect("written");
        // The room starts at the beginning, wherever the node's own position is.
        let mut room = build("obedient", &any()).open(&[("data", &file)]).expect("open");
        drop(room.stdin.take());
        let said = output(&mut room);
        assert!(said.starts_with("data: Ok(\"rows\"), written: false\n"), "{said}");

        let (reader, _writer) = std::io::pipe().expect("a pipe");
        let pipe = File::from(std::os::fd::OwnedFd::from(reader));
        let directory = File::open("/").expect("a directory");
        let null = File::open("/dev/null").expect("a device");
        for (what, file) in [("pipe", &pipe), ("directory", &directory), ("device", &null)] {
            match build("obedient", &any()).open(&[(what, file)]) {
                Err(RoomError::Descriptor { name, why }) => {
                    assert_eq!((name.as_str(), why.as_str()), (what, "it is not a regular file"));
                }
                other => panic!("{what}: {other:?}"),
            }
        }
        let twice = build("obedient", &any()).open(&[("a", &file), ("a", &file)]);
        assert!(matches!(twice, Err(RoomError::Descriptor { .. })), "{twice:?}");
        let many: Vec<String> = (0..32).map(|n| n.to_string()).collect();
        let many: Vec<(&str, &File)> = many.iter().map(|name| (name.as_str(), &file)).collect();
        let all_but_one = build("obedient", &any()).open(&many[1..]);
        assert!(all_but_one.is_ok(), "{all_but_one:?}");
        let too_many = build("obedient", &any()).open(&many);
        assert!(matches!(too_many, Err(RoomError::Descriptor { .. })), "{too_many:?}");
    }

    fn environment_is_what_is_named() {
        let environment = BTreeMap::from([("RAYON_NUM_THREADS".to_owned(), "2".to_owned())]);
        let mut command = this_as("obedient");
        command.env("SECRET_TOKEN", "of the node");
        let room = EmptyRoom::build(&mut command, &Spec { environment, ..any() }).expect("a room");
        assert!(room.facts().held(Layer::Environment));
        assert_eq!(room.facts().environment, ["RAYON_NUM_THREADS"]);
        let mut room = room.open(&[]).expect("open");
        drop(room.stdin.take());
        assert_eq!(output(&mut room).trim(), r#"[("RAYON_NUM_THREADS", "2")]"#);
        for (name, value) in [("", "x"), ("A=B", "x"), ("A", "a\nb"), ("A", &"x".repeat(300))] {
            let environment = BTreeMap::from([(name.to_owned(), value.to_owned())]);
            let spec = Spec { environment, ..any() };
            let refused = EmptyRoom::build(&mut this_as("obedient"), &spec);
            assert!(matches!(refused, Err(RoomError::Spec(_))), "{refused:?}");
        }
    }

    fn says_how_it_ended() {
        let mut room = build("obedient", &any()).open(&[]).expect("open");
        writeln!(room.stdin.as_mut().expect("its input"), "exit 7").expect("said");
        assert_eq!(room.wait().expect("its end"), Exit::Code(7));
        let mut room = build("obedient", &any()).open(&[]).expect("open");
        writeln!(room.stdin.as_mut().expect("its input"), "panic").expect("said");
        assert_eq!(room.wait().expect("its end"), Exit::Code(101));
        let mut room = build("abort", &any()).open(&[]).expect("open");
        let end = room.wait().expect("its end");
        assert!(matches!(end, Exit::Signal(6 | 11)), "{end:?}");
    }

    /// Everything that holds a room's output open is in the room, so its end is the end of all of it.
    fn ends_when_dropped() {
        let mut room = build("obedient", &any()).open(&[]).expect("open");
        assert_eq!(room.try_wait().expect("asked"), None);
        assert_eq!(room.kill().expect("its end"), Exit::Signal(9));
        let mut room = build("obedient", &any()).open(&[]).expect("open");
        let (mut stdout, stdin) = (room.stdout.take().expect("its output"), room.stdin.take());
        drop(room);
        assert_ends(move || stdout.read_to_end(&mut Vec::new()).map(drop));
        drop(stdin);
    }

    fn ends_with_its_node() {
        let mut node =
            this_as("parent").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("a node");
        let mut line = String::new();
        let mut said = BufReader::new(node.stdout.take().expect("its output"));
        said.read_line(&mut line).expect("a line");
        let warden =
            line.trim().parse().ok().and_then(rustix::process::Pid::from_raw).expect("a number");
        let flags = rustix::process::PidfdFlags::empty();
        let warden = rustix::process::pidfd_open(warden, flags).expect("it lives");
        node.kill().expect("killed");
        node.wait().expect("its end");
        // The warden ends after the room has.
        assert_ends(move || {
            let mut watched = [rustix::event::PollFd::new(&warden, rustix::event::PollFlags::IN)];
            rustix::event::poll(&mut watched, None).map(drop).map_err(Into::into)
        });
    }

    /// Waits for `ending` with a deadline that only a failure reaches.
    fn assert_ends(ending: impl FnOnce() -> std::io::Result<()> + Send + 'static) {
        let (sender, receiver) = mpsc::sync_channel(1);
        std::thread::spawn(move || sender.send(ending()));
        receiver.recv_timeout(Duration::from_secs(60)).expect("it ends").expect("without an error");
    }

    fn does_not_seal() {
        let refused = EmptyRoom::build(&mut this_as("deaf"), &any());
        assert!(
            matches!(refused, Err(RoomError::Silent | RoomError::System { .. })),
            "{refused:?}"
        );
        let refused = EmptyRoom::build(&mut std::process::Command::new("/nowhere/at/all"), &any());
        assert!(matches!(refused, Err(RoomError::System { .. })), "{refused:?}");
        // The other way round: a program that seals, started without a room.
        let ended = this_as("obedient").stdin(Stdio::null()).status().expect("started");
        assert_eq!(ended.code(), Some(3));
    }

    fn has_threads() {
        match EmptyRoom::build(&mut this_as("threaded"), &any()) {
            Err(RoomError::NotSealed(why)) => assert!(why.contains("threads"), "{why}"),
            other => panic!("{other:?}"),
        }
    }

    fn survey_agrees() {
        let room = build("obedient", &any());
        for surveyed in allmend_room::survey() {
            assert_eq!(surveyed.available, surveyed.why_not.is_none());
            assert_eq!(surveyed.available, surveyed.hint.is_none());
            if surveyed.layer == Layer::Cgroup {
                // The test orders none.
                println!("control group: {:?}", surveyed.why_not);
            } else {
                assert_eq!(surveyed.available, room.facts().held(surveyed.layer), "{surveyed:?}");
            }
        }
    }
}
