//! What a process gives up about itself: privileges, limits, being looked at.

use std::io;

use rustix::process::{DumpableBehavior, Gid, Resource, Rlimit, Uid};
use rustix::thread::{CapabilitySet, CapabilitySets};

use super::layers::Layers;
use crate::wire::Order;
use crate::{Layer, sys};

/// The user and group "nobody" of Linux (`/proc/sys/kernel/overflowuid`).
const NOBODY: u32 = 65_534;

/// How much a room steps back where processors are short, of 19.
const NICE: i32 = 10;

/// Open descriptors at most; a room needs three and what is handed in.
const DESCRIPTORS_MAX: u64 = 64;

/// A room started by root goes on as nobody, so that no file of root's is its own.
///
/// In a container that knows no other user, or may not change to it, the room stays who it is: somebody
/// ordinary outside, or root without a capability, which it will have given up.
pub(crate) fn become_nobody_if_root() -> rustix::io::Result<()> {
    if !rustix::process::geteuid().is_root() {
        return Ok(());
    }
    let (user, group) = (Uid::from_raw(NOBODY), Gid::from_raw(NOBODY));
    let changed = rustix::thread::set_thread_groups(&[])
        .and_then(|()| rustix::thread::set_thread_res_gid(group, group, group))
        .and_then(|()| rustix::thread::set_thread_res_uid(user, user, user));
    match changed {
        Err(rustix::io::Errno::INVAL | rustix::io::Errno::PERM) | Ok(()) => {}
        Err(error) => return Err(error),
    }
    // Having changed its user the process may no longer look into itself, which it must for its
    // namespaces. Nothing worth looking at is in it yet.
    rustix::process::set_dumpable_behavior(DumpableBehavior::Dumpable)
}

/// For the process that will compute.
pub(super) fn shed(layers: &mut Layers, order: &Order, own_users: bool) {
    layers.put_up(Layer::NoNewPrivileges, no_new_privileges);
    layers.put_up(Layer::NoCapabilities, no_capabilities);
    layers.put_up(Layer::NotDumpable, not_dumpable);
    layers.put_up(Layer::NoCoreFiles, || limit(Resource::Core, 0).map(|()| ""));
    layers.put_up(Layer::MemoryLimit, || {
        // Data, not address space: what is mapped read-only from a file is not the room's own memory.
        limit(Resource::Data, order.memory_max_bytes)
            .map(|()| format!("RLIMIT_DATA, {} MiB", order.memory_max_bytes >> 20))
    });
    layers.put_up(Layer::NoExecutableMemory, || sys::refuse_executable_memory().map(|()| ""));
    // No layers of their own; the filter forbids what they bound. Their failing is no reason to stop.
    for (resource, most) in [
        (Resource::Fsize, 0),
        (Resource::Nofile, DESCRIPTORS_MAX),
        (Resource::Memlock, 0),
        (Resource::Msgqueue, 0),
    ] {
        let _ = limit(resource, most);
    }
    if own_users && counts_by_namespace() {
        // Bounds this room and no other process of the user.
        let _ = limit(Resource::Nproc, u64::from(order.threads_max));
    }
}

/// Whether processes are counted within their user namespace, as they are since Linux 5.14; before, all
/// rooms of a node would be counted together.
fn counts_by_namespace() -> bool {
    let release = rustix::system::uname().release().to_string_lossy().into_owned();
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(str::parse::<u32>);
    match (numbers.next(), numbers.next()) {
        (Some(Ok(major)), Some(Ok(minor))) => (major, minor) >= (5, 14),
        _ => false,
    }
}

/// When memory runs out the kernel takes a room before it takes a node (proc(5), `oom_score_adj`).
pub(super) fn go_first_when_memory_runs_out() {
    // Raising needs no privilege. Where it fails the kernel chooses by size, which mostly is the room.
    let _ = std::fs::write("/proc/self/oom_score_adj", "800");
}

/// What the room computes may wait; the node that renews its lease and answers others may not.
pub(super) fn let_others_go_first() {
    // Where it is refused the room competes on equal terms, as any other process.
    let _ = rustix::process::nice(NICE);
}

/// For the warden.
pub(super) fn shed_silently() {
    let _ = no_new_privileges();
    let _ = no_capabilities();
    let _ = not_dumpable();
    let _ = limit(Resource::Core, 0);
    let _ = limit(Resource::Fsize, 0);
}

fn no_new_privileges() -> Result<&'static str, String> {
    rustix::thread::set_no_new_privs(true).map_err(words)?;
    match rustix::thread::no_new_privs() {
        Ok(true) => Ok(""),
        _ => Err("it was set and does not read back".to_owned()),
    }
}

fn no_capabilities() -> Result<&'static str, String> {
    // The bounding set needs a privilege to shrink. Whoever lacks that has no new one to fear, since
    // nothing is gained by executing any more.
    for bit in 0..u64::BITS {
        let one = CapabilitySet::from_bits_retain(1 << bit);
        if rustix::thread::remove_capability_from_bounding_set(one).is_err() {
            break;
        }
    }
    let _ = rustix::thread::clear_ambient_capability_set();
    let none = CapabilitySet::empty();
    let sets = || CapabilitySets { effective: none, permitted: none, inheritable: none };
    rustix::thread::set_capabilities(None, sets()).map_err(words)?;
    match rustix::thread::capabilities(None) {
        Ok(left) if left == sets() => Ok(""),
        _ => Err("they were given up and do not read back as none".to_owned()),
    }
}

fn not_dumpable() -> Result<&'static str, String> {
    rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable).map_err(words)?;
    match rustix::process::dumpable_behavior() {
        Ok(DumpableBehavior::NotDumpable) => Ok(""),
        _ => Err("it was set and does not read back".to_owned()),
    }
}

fn limit(resource: Resource, most: u64) -> Result<(), String> {
    let now = rustix::process::getrlimit(resource);
    let most = now.maximum.map_or(most, |maximum| maximum.min(most));
    let wanted = Rlimit { current: Some(most), maximum: Some(most) };
    rustix::process::setrlimit(resource, wanted).map_err(words)?;
    if rustix::process::getrlimit(resource) == wanted {
        Ok(())
    } else {
        Err("it was set and does not read back".to_owned())
    }
}

fn words(error: rustix::io::Errno) -> String {
    io::Error::from(error).to_string()
}
