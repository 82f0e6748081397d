//! The probes themselves: each attempt is made once before sealing and once after, by the same code.

use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpStream, UdpSocket};
use std::os::fd::{AsFd, OwnedFd, RawFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use rustix::net::{AddressFamily, SocketFlags, SocketType};
use rustix::thread::UnshareFlags;

use super::decoy::Decoy;
use crate::facts::bounded;
use crate::wire::Targets;
use crate::{Probe, ProbeFact, sys};

/// How long an answer over loopback may take on a busy machine.
const ANSWER: Duration = Duration::from_secs(5);

/// What there is to be reached.
pub(super) struct Reach {
    pub(super) targets: Targets,
    /// The room's own program.
    pub(super) program: OwnedFd,
    pub(super) decoy: Decoy,
    /// A descriptor that must not survive.
    pub(super) leak: RawFd,
}

/// What came of the attempts before sealing; zero stands for success.
pub(super) struct Controls(Vec<(Probe, i32)>);

/// Which time it is.
#[derive(Clone, Copy)]
enum Stage {
    Before,
    Inside,
}

impl Reach {
    /// The positive controls. Each is made in a process of its own, so that none changes this one.
    pub(super) fn controls(&self) -> io::Result<Controls> {
        let made = Probe::ALL.into_iter().map(|probe| {
            sys::in_child(|| code(self.attempt(probe, Stage::Before))).map(|code| (probe, code))
        });
        made.collect::<io::Result<Vec<_>>>().map(Controls)
    }

    /// The same attempts after sealing, set against their controls.
    pub(super) fn probes(&self, controls: &Controls) -> Vec<ProbeFact> {
        controls
            .0
            .iter()
            .map(|(probe, before)| {
                let inside = self.inside(*probe);
                let said = match (*before, inside) {
                    (0, 0) => String::new(),
                    (0, code) | (code, _) => io::Error::from_raw_os_error(code).to_string(),
                };
                ProbeFact {
                    probe: *probe,
                    control: *before == 0,
                    held: inside != 0,
                    said: bounded(said),
                }
            })
            .collect()
    }

    /// Where there can be a child the attempt is its own, since it might succeed.
    fn inside(&self, probe: Probe) -> i32 {
        let attempt = || code(self.attempt(probe, Stage::Inside));
        if matches!(probe, Probe::NewProcess) {
            return attempt();
        }
        sys::in_child(attempt).unwrap_or_else(|_| attempt())
    }

    fn attempt(&self, probe: Probe, stage: Stage) -> io::Result<()> {
        match probe {
            Probe::ConnectTcp => {
                let address = SocketAddr::from((Ipv4Addr::LOCALHOST, self.targets.tcp_port));
                TcpStream::connect_timeout(&address, ANSWER).map(drop)
            }
            Probe::ResolveName => self.resolve(),
            Probe::ConnectUnix => {
                let name = self.targets.unix_name.as_bytes();
                let address = std::os::unix::net::SocketAddr::from_abstract_name(name)?;
                UnixStream::connect_addr(&address).map(drop)
            }
            Probe::NetlinkSocket => socket(AddressFamily::NETLINK, SocketType::RAW),
            Probe::VsockSocket => socket(AddressFamily::VSOCK, SocketType::STREAM),
            Probe::OpenFile => {
                let read = std::fs::read_to_string(&self.targets.file)?;
                same(read == self.targets.secret)
            }
            Probe::WriteFile => {
                let name = match stage {
                    Stage::Before => "before",
                    Stage::Inside => "inside",
                };
                let path = Path::new(&self.targets.directory).join(name);
                std::fs::File::create_new(path).map(drop)
            }
            Probe::Execute => sys::execute_up_to_arguments(self.program.as_fd()),
            Probe::NewProcess => sys::in_child(|| 0).map(drop),
            Probe::Trace => sys::trace(self.decoy.pid),
            Probe::ReadMemory => {
                let read = sys::read_memory(self.decoy.pid, self.decoy.address)?;
                same(read == self.decoy.secret)
            }
            Probe::ReadEnvironment => {
                let pid = self.decoy.pid.as_raw_pid();
                std::fs::read(format!("/proc/{pid}/environ")).map(drop)
            }
            Probe::Signal => Ok(rustix::process::test_kill_process(self.decoy.pid)?),
            Probe::InheritedDescriptor => sys::write_byte(self.leak),
            Probe::UserNamespace => sys::unshare(UnshareFlags::NEWUSER),
            Probe::IoUring => sys::io_uring(),
            Probe::MemoryFile => {
                let flags = rustix::fs::MemfdFlags::CLOEXEC;
                rustix::fs::memfd_create(c"room", flags).map(drop).map_err(Into::into)
            }
            Probe::ExecutableMemory => sys::executable_memory(),
        }
    }

    /// Asks the node's name server and waits for the answer. A library's resolver would first look into
    /// files of its own, and might answer for a well-known name without asking anybody.
    fn resolve(&self) -> io::Result<()> {
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
        socket.set_read_timeout(Some(ANSWER))?;
        socket.send_to(&question(), (Ipv4Addr::LOCALHOST, self.targets.udp_port))?;
        let mut answer = [0; 512];
        let length = socket.recv(&mut answer)?;
        same(crate::wire::answer_to(&question()).is_some_and(|a| a == answer[..length]))
    }
}

/// Asks for the address of `room.invalid` (RFC 1035 §4.1; the name is reserved by RFC 6761 §6.4).
fn question() -> Vec<u8> {
    let mut bytes = vec![0xa1, 0x1e, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in ["room", "invalid"] {
        bytes.push(label.len() as u8);
        bytes.extend_from_slice(label.as_bytes());
    }
    bytes.extend_from_slice(&[0, 0, 1, 0, 1]);
    bytes
}

fn socket(family: AddressFamily, kind: SocketType) -> io::Result<()> {
    rustix::net::socket_with(family, kind, SocketFlags::CLOEXEC, None).map(drop).map_err(Into::into)
}

fn same(same: bool) -> io::Result<()> {
    if same { Ok(()) } else { Err(io::Error::from_raw_os_error(libc::EBADMSG)) }
}

/// An outcome as the exit code of a process: zero, or the system's error number.
fn code(outcome: io::Result<()>) -> i32 {
    match outcome {
        Ok(()) => 0,
        // An error without a number (a timeout) is one all the same.
        Err(error) => error.raw_os_error().filter(|n| (1..=255).contains(n)).unwrap_or(libc::EIO),
    }
}
