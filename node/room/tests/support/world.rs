//! A hostile worker and all that it is told of.

use std::collections::BTreeSet;
use std::fs::{File, Permissions};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, TcpListener, UdpSocket};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::process::{Child, ExitCode, Stdio};

use allmend_room::{EmptyRoom, Exit, Layer, Spec, Strength};
use rustix::process::{Gid, Resource, Rlimit, Uid};

use super::attacks::{ATTACKS, Marks, SECRET, attempt};
use super::this_as;

const NOBODY: u32 = 65_534;

/// All that an attacker is told of, alive.
pub(crate) struct World {
    tcp: TcpListener,
    udp: UdpSocket,
    _unix: UnixListener,
    _unix_by_path: UnixListener,
    unix_name: String,
    directory: tempfile::TempDir,
    victim: Child,
    address: String,
    inherited: OwnedFd,
    _inherited_end: std::io::PipeReader,
}

impl World {
    pub(crate) fn new() -> World {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path();
        std::fs::set_permissions(path, Permissions::from_mode(0o777)).expect("open to all");
        let program = std::env::current_exe().expect("this program");
        std::fs::copy(program, path.join("program")).expect("a copy");
        std::fs::write(path.join("data"), vec![b'x'; 8192]).expect("data");
        let executable = Permissions::from_mode(0o755);
        std::fs::set_permissions(path.join("data"), executable).expect("executable");
        if rustix::process::geteuid().is_root() {
            // Fails where there is no such user, and where the attacker then stays the owner.
            let _ = std::os::unix::fs::chown(path.join("data"), Some(NOBODY), Some(NOBODY));
        }
        let unix_by_path = UnixListener::bind(path.join("socket")).expect("a socket");
        std::fs::set_permissions(path.join("socket"), Permissions::from_mode(0o777)).expect("open");
        let unix_name = path.file_name().expect("a name").to_str().expect("UTF-8").to_owned();
        let address = SocketAddr::from_abstract_name(&unix_name).expect("an address");
        let mut victim = this_as("victim")
            .env("TOKEN", "secret")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("a victim");
        let mut said = String::new();
        let stdout = victim.stdout.take().expect("its output");
        BufReader::new(stdout).read_line(&mut said).expect("its address");
        let (inherited_end, inherited) = std::io::pipe().expect("a pipe");
        // Beyond the numbers that the attacker's own files get, and left open across exec.
        let inherited = rustix::io::fcntl_dupfd_cloexec(&inherited, 100).expect("a copy");
        rustix::io::fcntl_setfd(&inherited, rustix::io::FdFlags::empty()).expect("left open");
        World {
            tcp: TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port"),
            udp: UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port"),
            _unix: UnixListener::bind_addr(&address).expect("an abstract socket"),
            _unix_by_path: unix_by_path,
            unix_name,
            directory,
            victim,
            address: said.trim().to_owned(),
            inherited,
            _inherited_end: inherited_end,
        }
    }

    fn marks(&self) -> String {
        let marks = [
            self.tcp.local_addr().expect("its port").port().to_string(),
            self.udp.local_addr().expect("its port").port().to_string(),
            self.unix_name.clone(),
            self.directory.path().to_str().expect("UTF-8").to_owned(),
            self.victim.id().to_string(),
            self.address.clone(),
            self.inherited.as_raw_fd().to_string(),
        ];
        marks.join("\t")
    }

    /// Whether the victim still lives; ends it.
    fn victim_lives(mut self) -> bool {
        drop(self.victim.stdin.take());
        self.victim.wait().expect("its end").success()
    }

    /// What came of each attack made by a process that nothing holds.
    pub(crate) fn attacked_from_outside(self) -> Vec<String> {
        let mut attacker = this_as("outside")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("an attacker");
        writeln!(attacker.stdin.take().expect("its input"), "{}", self.marks()).expect("told");
        let mut said = String::new();
        attacker.stdout.take().expect("its output").read_to_string(&mut said).expect("text");
        assert!(attacker.wait().expect("its end").success());
        assert!(!self.victim_lives(), "the control killed nobody");
        outcomes(&said)
    }

    /// What came of each attack made from a room without some layers, and that room's report.
    pub(crate) fn attacked_from_inside(
        self,
        without: &[Layer],
    ) -> (Vec<String>, allmend_room::Facts) {
        let spec = Spec {
            least: Strength::Process,
            memory_max_bytes: 1 << 30,
            without: without.iter().copied().collect::<BTreeSet<_>>(),
            ..Spec::default()
        };
        let empty = EmptyRoom::build(&mut this_as("inside"), &spec).expect("a room");
        let data = File::options().read(true).write(true).open(self.directory.path().join("data"));
        let mut room = empty.open(&[("data", &data.expect("the data"))]).expect("open");
        writeln!(room.stdin.take().expect("its input"), "{}", self.marks()).expect("told");
        let (mut said, mut complaints) = (String::new(), String::new());
        room.stdout.take().expect("its output").read_to_string(&mut said).expect("text");
        room.stderr.take().expect("its errors").read_to_string(&mut complaints).expect("text");
        let end = room.wait().expect("its end");
        assert_eq!(end, Exit::Code(0), "{said}{complaints}");
        let facts = room.facts().clone();
        let outcomes = outcomes(&said);
        let killed = outcomes.last().is_some_and(|last| last == "reached");
        let leaked = self.directory.path().join("leaked").exists();
        assert_eq!(leaked, outcome("write elsewhere", &outcomes) == "reached");
        assert_eq!(self.victim_lives(), !killed);
        (outcomes, facts)
    }
}

fn outcomes(said: &str) -> Vec<String> {
    let outcomes: Vec<String> = said.lines().map(str::to_owned).collect();
    assert_eq!(outcomes.len(), ATTACKS.len(), "{said}");
    outcomes
}

pub(crate) fn outcome<'a>(name: &str, outcomes: &'a [String]) -> &'a str {
    let at = ATTACKS.iter().position(|attack| attack.name == name);
    &outcomes[at.unwrap_or_else(|| panic!("no attack is called {name:?}"))]
}

/// A process of the room's user, with something worth stealing.
pub(crate) fn victim() -> ExitCode {
    become_nobody_if_root();
    println!("{}", SECRET.as_ptr().addr());
    // Lives until it is let go, and says by its exit code that it was not killed.
    std::io::stdin().read_to_end(&mut Vec::new()).expect("its input");
    ExitCode::SUCCESS
}

/// The attacker where nothing holds it.
pub(crate) fn outside() -> ExitCode {
    become_nobody_if_root();
    attack(|directory| File::open(format!("{directory}/data")).expect("the data"))
}

/// The attacker in a room.
pub(crate) fn inside() -> ExitCode {
    let mut sealed = allmend_room::seal().expect("sealed");
    let data = sealed.take("data").expect("the data");
    attack(|_| data)
}

/// Is told of its marks, tries everything, and says what came of it, a line for each attack.
fn attack(data: impl FnOnce(&str) -> File) -> ExitCode {
    let mut line = String::new();
    std::io::stdin().read_line(&mut line).expect("marks");
    let [tcp, udp, unix_name, directory, victim, address, inherited] =
        line.trim().split('\t').collect::<Vec<_>>()[..]
    else {
        panic!("malformed marks")
    };
    let marks = Marks {
        tcp_port: tcp.parse().expect("a number"),
        udp_port: udp.parse().expect("a number"),
        unix_name: unix_name.to_owned(),
        victim: victim.parse().expect("a number"),
        address: address.parse().expect("a number"),
        inherited: inherited.parse().expect("a number"),
        data: data(directory),
        program: format!("{directory}/program").into(),
        directory: directory.into(),
    };
    for attack in ATTACKS {
        match attempt(attack, &marks) {
            Ok(()) => println!("reached"),
            Err(error) => println!("{error}"),
        }
    }
    ExitCode::SUCCESS
}

fn become_nobody_if_root() {
    if rustix::process::geteuid().is_root() {
        let (user, group) = (Uid::from_raw(NOBODY), Gid::from_raw(NOBODY));
        // As the room does: a container may know no other user.
        let _ = rustix::thread::set_thread_groups(&[])
            .and_then(|()| rustix::thread::set_thread_res_gid(group, group, group))
            .and_then(|()| rustix::thread::set_thread_res_uid(user, user, user));
    }
    // Not so after a change of user, and not what is tested here.
    let dumpable = rustix::process::DumpableBehavior::Dumpable;
    rustix::process::set_dumpable_behavior(dumpable).expect("dumpable");
}

/// Wants a core file and crashes.
pub(crate) fn dump() -> ! {
    let most = rustix::process::getrlimit(Resource::Core).maximum;
    let _ = rustix::process::setrlimit(Resource::Core, Rlimit { current: most, maximum: most });
    let dumpable = rustix::process::DumpableBehavior::Dumpable;
    let _ = rustix::process::set_dumpable_behavior(dumpable);
    std::process::abort()
}
