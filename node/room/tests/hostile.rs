//! A worker that wants out. Goal: whatever it tries fails in a room, and each attempt succeeds outside,
//! so that its failing inside proves something.

#![allow(
    clippy::print_stdout,
    reason = "a table is what it is for, and what a room says goes that way"
)]

#[cfg(target_os = "linux")]
mod support {
    pub(crate) mod attacks;
    mod harness;
    pub(crate) mod world;

    pub(crate) use self::harness::{run, say_what_is_missing, this_as};
}

#[cfg(not(target_os = "linux"))]
fn main() {
    println!("!!! NOT TESTED: rooms need Linux");
}

#[cfg(target_os = "linux")]
fn main() -> std::process::ExitCode {
    match std::env::args().nth(1).as_deref() {
        Some("nothing") => std::process::ExitCode::SUCCESS,
        Some("victim") => support::world::victim(),
        Some("outside") => support::world::outside(),
        Some("inside") => support::world::inside(),
        Some("dump-outside") => support::world::dump(),
        Some("dump-inside") => {
            allmend_room::seal().expect("sealed");
            support::world::dump()
        }
        _ => support::run(linux::TESTS),
    }
}

#[cfg(target_os = "linux")]
mod linux {
    use std::fs::Permissions;
    use std::os::unix::fs::PermissionsExt;
    use std::os::unix::process::ExitStatusExt;
    use std::process::{Command, Stdio};

    use allmend_room::{EmptyRoom, Exit, Layer, Spec, Strength};

    use crate::support::attacks::ATTACKS;
    use crate::support::world::{World, outcome};
    use crate::support::{say_what_is_missing, this_as};

    pub(crate) const TESTS: &[(&str, fn())] = &[
        ("a_hostile_worker_reaches_nothing", hostile_worker),
        ("a_crash_leaves_no_core_file", no_core_file),
    ];

    /// Layers of which the kernel has to know nothing for a room to be confined.
    const NAMESPACES: [Layer; 8] = [
        Layer::UserNamespace,
        Layer::MountNamespace,
        Layer::PrivateRoot,
        Layer::NetworkNamespace,
        Layer::PidNamespace,
        Layer::IpcNamespace,
        Layer::UtsNamespace,
        Layer::CgroupNamespace,
    ];

    /// What namespaces, Landlock and the lesser layers withstand should the filter have a hole.
    const WITHOUT_FILTER: &[&str] = &[
        "connect over TCP",
        "send over UDP",
        "connect to an abstract Unix socket",
        "connect to a Unix socket by path",
        "read /etc/passwd",
        "write elsewhere",
        "make a directory",
        "list a directory",
        "read /proc/self/maps",
        "write its own code through /proc/self/mem",
        "reopen a descriptor through /proc/self/fd",
        "write to a descriptor that it inherited",
        "execute its own program",
        "execute the data by descriptor",
        "make a file in memory and execute it",
        "map memory that can be executed",
        "make written memory executable",
        "trace another process",
        "read another process's memory",
        "read another process's memory through /proc",
        "read another process's environment",
        "take another process's descriptor",
        "enter a namespace",
        "kill another process",
    ];

    /// What Landlock alone withstands in its first version, and in those that know TCP (4) and scopes (6).
    const LANDLOCK_ALONE: &[(i32, &[&str])] = &[
        (
            1,
            &[
                "read /etc/passwd",
                "write elsewhere",
                "make a directory",
                "list a directory",
                "execute its own program",
                "trace another process",
                "read another process's memory",
                "read another process's environment",
            ],
        ),
        (4, &["connect over TCP", "listen on TCP"]),
        (6, &["connect to an abstract Unix socket", "kill another process"]),
    ];

    fn hostile_worker() {
        let control = World::new().attacked_from_outside();
        let (sealed, sealed_facts) = World::new().attacked_from_inside(&[]);
        let (confined, confined_facts) = World::new().attacked_from_inside(&NAMESPACES);
        let (unfiltered, unfiltered_facts) = World::new().attacked_from_inside(&[Layer::Seccomp]);
        let only_landlock =
            [&NAMESPACES[..], &[Layer::Seccomp, Layer::NoExecutableMemory]].concat();
        let (landlock, landlock_facts) = World::new().attacked_from_inside(&only_landlock);

        let word = |outcome: &str| if outcome == "reached" { "REACHED" } else { "-" }.to_owned();
        let columns =
            ["outside", "sealed", "confined", "no filter", "Landlock", "sealed room said"];
        let [a, b, c, d, e, f] = columns;
        println!("{:46} {a:9} {b:9} {c:9} {d:9} {e:9} {f}", "attack");
        for (at, attack) in ATTACKS.iter().enumerate() {
            let [a, b, c, d, e] = [&control, &sealed, &confined, &unfiltered, &landlock]
                .map(|outcomes| word(&outcomes[at]));
            println!("{:46} {a:9} {b:9} {c:9} {d:9} {e:9} {}", attack.name, sealed[at]);
        }

        for (attack, outside) in ATTACKS.iter().zip(&control) {
            if outside != "reached" {
                println!(
                    "!!! NOT TESTED HERE: {:?}, which fails outside too: {outside}",
                    attack.name
                );
                assert!(attack.may_fail_outside, "{}: {outside}", attack.name);
            }
        }
        for (wanted, facts, outcomes) in [
            (Strength::Sealed, &sealed_facts, &sealed),
            (Strength::Confined, &confined_facts, &confined),
        ] {
            say_what_is_missing(facts, wanted);
            // A room that says it is shut, however weak the machine, must be.
            if facts.strength().at_least(Strength::Confined) {
                for (attack, outcome) in ATTACKS.iter().zip(outcomes) {
                    assert_ne!(
                        outcome,
                        "reached",
                        "{} from a {} room",
                        attack.name,
                        facts.strength()
                    );
                }
            }
        }
        if sealed_facts.strength() == Strength::Sealed {
            assert_eq!(unfiltered_facts.strength(), Strength::Process);
            for name in WITHOUT_FILTER {
                assert_ne!(outcome(name, &unfiltered), "reached", "{name} without the filter");
            }
        }
        let version = sealed_facts.layers.iter().find(|fact| fact.layer == Layer::Landlock);
        let version = version.and_then(|fact| fact.note.strip_prefix("ABI ")).map_or("0", |v| v);
        let version: i32 = version.parse().expect("a number");
        assert_eq!(landlock_facts.strength(), Strength::Process);
        for (since, names) in LANDLOCK_ALONE {
            for name in names.iter() {
                if *since <= version {
                    assert_ne!(outcome(name, &landlock), "reached", "{name} with Landlock alone");
                } else {
                    println!("!!! NOT TESTED HERE: Landlock against {name:?}, since ABI {since}");
                }
            }
        }
    }

    fn no_core_file() {
        let directory = tempfile::tempdir().expect("a directory");
        std::fs::set_permissions(directory.path(), Permissions::from_mode(0o777))
            .expect("open to all");
        let here = |role: &str| -> Command {
            let mut command = this_as(role);
            command.current_dir(directory.path());
            command
        };
        let files = || std::fs::read_dir(directory.path()).expect("a directory").count();
        let spec = Spec { least: Strength::Process, ..Spec::default() };
        let mut room = EmptyRoom::build(&mut here("dump-inside"), &spec)
            .expect("a room")
            .open(&[])
            .expect("open");
        let end = room.wait().expect("its end");
        assert!(matches!(end, Exit::Signal(6 | 11)), "{end:?}");
        assert_eq!(files(), 0, "a core file");
        let control = here("dump-outside").stderr(Stdio::null()).status().expect("its end");
        assert_eq!(control.signal(), Some(6));
        if !control.core_dumped() {
            println!("!!! NOT TESTED HERE: core files, which this machine makes of nothing");
        } else if files() == 0 {
            println!(
                "!!! core files go elsewhere here: that none was made is shown by the limit alone"
            );
        }
    }
}
