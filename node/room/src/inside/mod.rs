//! Sealing, from within the process that is to be sealed.
//!
//! It happens after `exec` and before anything else: by then the program and its libraries are mapped and
//! need no file, and there is one thread, which namespaces, Landlock and filters ask for.

mod attempts;
mod decoy;
mod filter;
mod landlock;
mod layers;
mod namespaces;
mod privileges;
mod warden;

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, IntoRawFd, OwnedFd, RawFd};
use std::path::Path;

use rustix::event::{PollFd, PollFlags};
use rustix::fs::{Mode, OFlags};
use rustix::net::SocketType;
use rustix::process::Signal;

use self::attempts::{Controls, Reach};
use self::decoy::Decoy;
use self::layers::Layers;
use crate::sys::{self, Forked};
use crate::wire::{self, Opening, Order, Report};
use crate::{Facts, Layer, RoomError};

pub(crate) use self::privileges::become_nobody_if_root;
pub(crate) use self::warden::SIGNALLED;

/// Numbers that are looked at for descriptors that should not be there.
const DESCRIPTORS_LOOKED_AT: RawFd = 4096;

/// A sealed process's own view of itself.
#[derive(Debug)]
pub struct Sealed {
    facts: Facts,
    descriptors: BTreeMap<String, File>,
}

impl Sealed {
    /// What was reported to the node.
    pub fn facts(&self) -> &Facts {
        &self.facts
    }

    /// The file that was handed in under `name`, read-only, at its beginning. Each can be taken once.
    pub fn take(&mut self, name: &str) -> Option<File> {
        self.descriptors.remove(name)
    }

    /// The names that have not been taken, in order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.descriptors.keys().map(String::as_str)
    }
}

/// Seals this process as the node ordered, probes, reports, waits until the room is opened, and returns
/// with standard input and output connected to the node.
///
/// Must be the first thing in `main`. Everything that has to be read from a file (settings, libraries
/// loaded on demand) or asked of the system (the number of processors in `/proc`) is out of reach
/// afterwards. It returns in another process than the one that called it.
///
/// # Errors
/// When this process was not started by [`crate::EmptyRoom::build`], has threads, or is refused something
/// without which no room can be. It may be half sealed then and should end. A *layer* that is refused is
/// no error but part of the report, on which the node decides.
pub fn seal() -> Result<Sealed, RoomError> {
    let stdin = std::io::stdin();
    match rustix::net::sockopt::socket_type(&stdin) {
        Ok(SocketType::SEQPACKET) => {}
        _ => return Err(RoomError::NotARoom),
    }
    let (order, beside) = wire::receive::<Order>(&stdin)?.ok_or(RoomError::Silent)?;
    let facts = match enter(order, beside) {
        Ok(facts) => facts,
        Err(error) => {
            let _ = wire::send(&stdin, &Report::Failed(error.to_string()), &[]);
            return Err(error);
        }
    };
    wire::send(&stdin, &Report::Sealed(facts.clone()), &[])?;
    // The node may take its time: a contract is signed between the two.
    let (opening, beside) = wire::receive::<Opening>(&stdin)?.ok_or(RoomError::Silent)?;
    let descriptors = take_in(opening, beside)?;
    Ok(Sealed { facts, descriptors })
}

/// Everything between the order and the report. Returns in the room's process; the caller's becomes the
/// warden.
fn enter(order: Order, beside: Vec<OwnedFd>) -> Result<Facts, RoomError> {
    refuse_threads()?;
    let mut layers = Layers::new(order.without.iter().copied());
    let kernel = rustix::system::uname().release().to_string_lossy().into_owned();
    let program = rustix::fs::open("/proc/self/exe", OFlags::PATH | OFlags::CLOEXEC, Mode::empty())
        .map_err(RoomError::system("opening the room's own program"))?;
    let Ok([leak]) = <[OwnedFd; 1]>::try_from(beside) else {
        return Err(RoomError::Malformed("one descriptor belongs to an order".to_owned()));
    };
    become_nobody_if_root().map_err(RoomError::system("giving up root"))?;
    privileges::go_first_when_memory_runs_out();
    privileges::let_others_go_first();
    // No terminal of the node's is this process's. It fails for a leader of a group, who has none.
    let _ = rustix::process::setsid();
    // Owned by nobody from here on: that it gets closed is what is probed.
    let leak = leak.into_raw_fd();
    let reach = Reach { targets: order.targets.clone(), program, decoy: Decoy::start()?, leak };
    let controls =
        reach.controls().map_err(RoomError::system("trying the probes before sealing"))?;
    layers.put_up(Layer::Environment, || only_these_variables(&order.environment));

    namespaces::leave(&mut layers, Path::new(&order.targets.directory));
    // Here, so that the warden is in the same domain: it may end the room and signal nobody else.
    layers.put_up(Layer::Landlock, landlock::restrict);
    let (life_end, life) = std::io::pipe().map_err(RoomError::system("making a pipe"))?;
    let filtered = !order.without.contains(&Layer::Seccomp);
    match sys::fork().map_err(RoomError::system("starting the room's process"))? {
        Forked::Parent(room) => warden::keep(room, life.into(), filtered),
        Forked::Child => drop(life),
    }
    die_with_the_warden(life_end.into())?;
    inside(&order, layers, kernel, reach, &controls)
}

/// In the process that will compute.
fn inside(
    order: &Order,
    mut layers: Layers,
    kernel: String,
    reach: Reach,
    controls: &Controls,
) -> Result<Facts, RoomError> {
    if !order.without.contains(&Layer::Descriptors) {
        let (program, life) = (reach.program.as_raw_fd(), reach.decoy.life.as_raw_fd());
        sys::close_all_but(&mut [0, 1, 2, program, life])
            .map_err(RoomError::system("closing descriptors"))?;
    }
    let own_users = !order.without.contains(&Layer::UserNamespace);
    privileges::shed(&mut layers, order, own_users);
    layers.put_up(Layer::Cgroup, || order.cgroup.clone());
    let own = rustix::process::getpid();
    layers.put_up(Layer::Seccomp, || filter::restrict_room(own));
    let probes = reach.probes(controls);
    // With these two the last descriptors go that are nobody's, and the decoy ends.
    drop(reach);
    layers.put_up(Layer::Descriptors, only_standard_descriptors);
    let layers = layers.into_facts();
    let environment = order.environment.clone();
    Ok(Facts { kernel, memory_max_bytes: order.memory_max_bytes, environment, layers, probes })
}

fn refuse_threads() -> Result<(), RoomError> {
    let tasks =
        std::fs::read_dir("/proc/self/task").map_err(RoomError::system("counting threads"))?;
    match tasks.count() {
        1 => Ok(()),
        _ => Err(RoomError::NotSealed(
            "the process has threads already; seal() must come first in main".to_owned(),
        )),
    }
}

fn only_these_variables(named: &[String]) -> Result<&'static str, &'static str> {
    let mut here: Vec<_> = std::env::vars_os().map(|(name, _)| name).collect();
    here.sort();
    if here.iter().eq(named.iter().map(OsStr::new)) {
        Ok("")
    } else {
        Err("there are others than those named")
    }
}

fn only_standard_descriptors() -> Result<&'static str, String> {
    match (0..DESCRIPTORS_LOOKED_AT).find(|fd| sys::is_open(*fd) != (*fd <= 2)) {
        None => Ok("the three standard ones"),
        Some(fd) if fd <= 2 => Err(format!("{fd} is closed")),
        Some(fd) => Err(format!("{fd} is open")),
    }
}

/// Has the kernel end this process when the warden ends, and makes sure that it has not already.
fn die_with_the_warden(life: OwnedFd) -> Result<(), RoomError> {
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))
        .map_err(RoomError::system("tying the room to its warden"))?;
    let mut watched = [PollFd::new(&life, PollFlags::empty())];
    let at_once = rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 };
    rustix::event::poll(&mut watched, Some(&at_once))
        .map_err(RoomError::system("looking for the warden"))?;
    if watched[0].revents().is_empty() { Ok(()) } else { sys::exit_now(1) }
}

/// Takes what was handed in, if it is what it should be: the node has checked, and is checked.
fn take_in(opening: Opening, beside: Vec<OwnedFd>) -> Result<BTreeMap<String, File>, RoomError> {
    let mut beside = beside.into_iter();
    let (Some(stdin), true) = (beside.next(), beside.len() == opening.names.len()) else {
        return Err(RoomError::Malformed("names and descriptors do not match".to_owned()));
    };
    // The last copy of the handshake's socket in this process is closed by this.
    rustix::stdio::dup2_stdin(&stdin).map_err(RoomError::system("connecting standard input"))?;
    let mut taken = BTreeMap::new();
    for (name, descriptor) in opening.names.into_iter().zip(beside) {
        check_read_only_file(&descriptor)
            .map_err(|why| RoomError::Descriptor { name: name.clone(), why })?;
        taken.insert(name, File::from(descriptor));
    }
    Ok(taken)
}

/// Whether a descriptor is one through which a file's contents come in and nothing goes out.
pub(crate) fn check_read_only_file(descriptor: impl AsFd) -> Result<(), String> {
    let flags = rustix::fs::fcntl_getfl(&descriptor).map_err(|error| error.to_string())?;
    if flags.intersects(OFlags::WRONLY | OFlags::RDWR | OFlags::PATH) {
        return Err("it is not open for reading only".to_owned());
    }
    let status = rustix::fs::fstat(&descriptor).map_err(|error| error.to_string())?;
    if rustix::fs::FileType::from_raw_mode(status.st_mode).is_file() {
        Ok(())
    } else {
        Err("it is not a regular file".to_owned())
    }
}
