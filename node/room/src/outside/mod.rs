//! Building a room, reading its report, and only then handing in what it may see.

mod cgroup;
mod offer;

use std::fs::File;
use std::io::{self, PipeWriter};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, ChildStderr, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fs::{Mode, OFlags};
use rustix::net::{AddressFamily, SocketFlags, SocketType};

use self::cgroup::Cgroup;
pub use self::cgroup::delegated_cgroup;
use self::offer::Offer;
use crate::inside::{SIGNALLED, check_read_only_file};
use crate::wire::{self, DESCRIPTORS_MAX, Opening, Order, Report};
use crate::{Facts, Probe, RoomError, Spec, Strength};

/// The longest name of something handed in.
const NAME_BYTES_MAX: usize = 64;

/// How long a room whose node hangs up may take to end before it is killed. It is killed anyway: this
/// only lets the warden do it, which then knows that it is done.
const ENDING: Duration = Duration::from_secs(5);

/// A sealed room with nothing in it, waiting. Dropping it ends the process.
#[derive(Debug)]
pub struct EmptyRoom {
    held: Held,
    stdout: ChildStdout,
    stderr: ChildStderr,
    facts: Facts,
}

/// A room that computes. Dropping it ends the process.
///
/// What comes out of `stdout` *and* `stderr` was written with the data in view: neither may be logged or
/// passed on before it has been through a gate.
#[derive(Debug)]
pub struct Room {
    held: Held,
    facts: Facts,
    /// To the room's standard input.
    pub stdin: Option<PipeWriter>,
    /// From the room's standard output.
    pub stdout: Option<ChildStdout>,
    /// From the room's standard error.
    pub stderr: Option<ChildStderr>,
}

/// How a room ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// By itself, with this code.
    Code(i32),
    /// By this signal; 9 is also what running out of memory looks like.
    Signal(i32),
}

impl Exit {
    /// Whether it ended by itself and without complaint.
    pub fn success(self) -> bool {
        self == Exit::Code(0)
    }
}

impl EmptyRoom {
    /// Starts `command`, whose program must call [`crate::seal`] first of all, and waits for its report.
    ///
    /// Of the command only program, arguments and directory count: environment and pipes are the room's.
    /// It blocks for as long as sealing takes, some tens of milliseconds, and for `spec.patience` at most.
    ///
    /// # Errors
    /// When the room cannot be built, or is weaker than `spec.least`. No process is left then.
    pub fn build(command: &mut Command, spec: &Spec) -> Result<EmptyRoom, RoomError> {
        spec.check()?;
        let deadline = Instant::now() + spec.patience;
        let mut offer =
            Offer::open().map_err(RoomError::system("offering something to the probes"))?;
        let (ours, theirs) = rustix::net::socketpair(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC,
            None,
        )
        .map_err(RoomError::system("making the room's handshake"))?;
        let child = command
            .env_clear()
            .envs(&spec.environment)
            .stdin(theirs)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            // A terminal's interrupt is for the node, which then decides.
            .process_group(0)
            .spawn();
        // The command would keep the room's end open, and its end would not be seen.
        command.stdin(Stdio::null());
        let mut child = child.map_err(RoomError::system("starting the room's program"))?;
        let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
        let mut held = Held { child, control: Some(ours), cgroup: None };
        let (Some(stdout), Some(stderr)) = (stdout, stderr) else {
            return Err(RoomError::NotSealed("it has no pipes".to_owned()));
        };
        let order = Order {
            memory_max_bytes: spec.memory_max_bytes,
            threads_max: spec.threads_max,
            environment: spec.environment.keys().cloned().collect(),
            without: spec.without.iter().copied().collect(),
            cgroup: held.enter_cgroup(spec),
            targets: offer.targets.clone(),
        };
        let control = held.control()?;
        wire::send(control, &order, &[offer.leak.as_fd()])?;
        let facts = wait_for_report(control, &mut offer, deadline)?;
        let facts = contradicted(facts, &offer);
        let lacking = facts.lacking(spec.least);
        if !lacking.is_empty() {
            return Err(RoomError::TooWeak { wanted: spec.least, has: facts.strength(), lacking });
        }
        Ok(EmptyRoom { held, stdout, stderr, facts })
    }

    /// What it has verified.
    pub fn facts(&self) -> &Facts {
        &self.facts
    }

    /// Its class.
    pub fn strength(&self) -> Strength {
        self.facts.strength()
    }

    /// Hands in files by name and lets the program go on. Each is opened anew for reading only, so that
    /// the room shares neither a position nor a right to write with anybody.
    ///
    /// # Errors
    /// When a name is too long or used twice, there are too many, or a file is no regular file or cannot
    /// be read. The process is ended then.
    pub fn open(self, files: &[(&str, &File)]) -> Result<Room, RoomError> {
        let EmptyRoom { held, stdout, stderr, facts } = self;
        let refuse = |name: &str, why: &str| {
            Err(RoomError::Descriptor { name: name.to_owned(), why: why.to_owned() })
        };
        let mut names: Vec<String> = Vec::new();
        let mut beside = Vec::new();
        let (room_end, stdin) = io::pipe().map_err(RoomError::system("making the room's pipe"))?;
        beside.push(OwnedFd::from(room_end));
        for (name, file) in files {
            if name.is_empty() || name.len() > NAME_BYTES_MAX {
                return refuse(name, "its name is empty or too long");
            }
            if names.iter().any(|other| other == name) {
                return refuse(name, "its name is used twice");
            }
            if beside.len() == DESCRIPTORS_MAX {
                return refuse(name, "there are too many");
            }
            match reopened(file) {
                Ok(descriptor) => beside.push(descriptor),
                Err(why) => return refuse(name, &why),
            }
            names.push((*name).to_owned());
        }
        let borrowed: Vec<_> = beside.iter().map(AsFd::as_fd).collect();
        wire::send(held.control()?, &Opening { names }, &borrowed)?;
        let (stdout, stderr) = (Some(stdout), Some(stderr));
        Ok(Room { held, facts, stdin: Some(stdin), stdout, stderr })
    }
}

impl Room {
    /// What it had verified before anything was handed in.
    pub fn facts(&self) -> &Facts {
        &self.facts
    }

    /// The number of its warden with the operating system, for measuring what the two use.
    pub fn pid(&self) -> u32 {
        self.held.child.id()
    }

    /// Waits until the process has ended.
    ///
    /// # Errors
    /// When the operating system cannot say.
    pub fn wait(&mut self) -> io::Result<Exit> {
        self.held.child.wait().map(exit)
    }

    /// How the process has ended, if it has.
    ///
    /// # Errors
    /// When the operating system cannot say.
    pub fn try_wait(&mut self) -> io::Result<Option<Exit>> {
        Ok(self.held.child.try_wait()?.map(exit))
    }

    /// Ends the process, wherever it is.
    ///
    /// # Errors
    /// When the operating system cannot say how it ended.
    pub fn kill(&mut self) -> io::Result<Exit> {
        self.held.end()?;
        self.wait()
    }
}

fn exit(status: std::process::ExitStatus) -> Exit {
    use std::os::unix::process::ExitStatusExt;
    match (status.code(), status.signal()) {
        (Some(code), _) if code > SIGNALLED => Exit::Signal(code - SIGNALLED),
        (Some(code), _) => Exit::Code(code),
        (None, signal) => Exit::Signal(signal.unwrap_or_default()),
    }
}

/// The process, and what keeps it alive.
#[derive(Debug)]
struct Held {
    child: Child,
    /// Closing it ends the room.
    control: Option<OwnedFd>,
    cgroup: Option<Cgroup>,
}

impl Held {
    fn control(&self) -> Result<&OwnedFd, RoomError> {
        self.control.as_ref().ok_or(RoomError::Silent)
    }

    fn enter_cgroup(&mut self, spec: &Spec) -> Result<String, String> {
        let Some(parent) = &spec.cgroup else {
            return Err("no control group was delegated to the node".to_owned());
        };
        let pid = self.child.id();
        let group = Cgroup::make(parent, pid, spec.memory_max_bytes, spec.threads_max)?;
        self.cgroup = Some(group);
        Ok(format!("{} MiB, {} threads", spec.memory_max_bytes >> 20, spec.threads_max))
    }

    fn end(&mut self) -> io::Result<()> {
        self.control = None;
        if self.child.try_wait()?.is_some() {
            return Ok(());
        }
        let pid = rustix::process::Pid::from_child(&self.child);
        let ended = rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty())
            .is_ok_and(|pidfd| {
                let mut watched = [PollFd::new(&pidfd, PollFlags::IN)];
                let patience = timespec(ENDING);
                matches!(rustix::event::poll(&mut watched, Some(&patience)), Ok(1))
            });
        if ended { Ok(()) } else { self.child.kill() }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        // Nothing that fails here could be helped: a process that is gone needs no ending.
        let _ = self.end();
        let _ = self.child.wait();
        self.cgroup = None;
    }
}

/// Waits for the report, and answers the probes' questions meanwhile.
fn wait_for_report(
    control: &OwnedFd,
    offer: &mut Offer,
    deadline: Instant,
) -> Result<Facts, RoomError> {
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let (report, question) = {
            let mut watched = vec![PollFd::new(control, PollFlags::IN)];
            watched.extend(offer.questions().map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN)));
            match rustix::event::poll(&mut watched, Some(&timespec(left))) {
                Ok(0) => return Err(RoomError::Silent),
                Err(rustix::io::Errno::INTR) => continue,
                other => other.map_err(RoomError::system("waiting for the room"))?,
            };
            let is_due = |at: usize| watched.get(at).is_some_and(|fd| !fd.revents().is_empty());
            (is_due(0), is_due(1))
        };
        if question {
            offer.answer();
        }
        if report {
            return match wire::receive::<Report>(control)? {
                Some((Report::Sealed(facts), _)) => Ok(facts),
                Some((Report::Failed(why), _)) => Err(RoomError::NotSealed(why)),
                None => Err(RoomError::Silent),
            };
        }
    }
}

/// The report, put right where the node has seen otherwise.
fn contradicted(mut facts: Facts, offer: &Offer) -> Facts {
    if offer.was_written_to() {
        for fact in facts.probes.iter_mut().filter(|fact| fact.probe == Probe::WriteFile) {
            fact.held = false;
        }
    }
    facts
}

/// The same file, opened anew for reading only.
fn reopened(file: &File) -> Result<OwnedFd, String> {
    let status = rustix::fs::fstat(file).map_err(|error| error.to_string())?;
    // Asked before opening, which for a pipe would wait and for a device might do something.
    if !rustix::fs::FileType::from_raw_mode(status.st_mode).is_file() {
        return Err("it is not a regular file".to_owned());
    }
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOCTTY;
    let descriptor = rustix::fs::open(path, flags, Mode::empty())
        .map_err(|error| format!("it cannot be opened for reading: {}", io::Error::from(error)))?;
    check_read_only_file(&descriptor)?;
    Ok(descriptor)
}

fn timespec(duration: Duration) -> Timespec {
    Timespec {
        tv_sec: i64::try_from(duration.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: duration.subsec_nanos().into(),
    }
}
