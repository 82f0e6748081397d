//! Leaving the machine's namespaces, one by one, so that a refusal is known for the one it concerns.

use std::ffi::CString;
use std::io;
use std::path::{Path, PathBuf};

use rustix::mount::{MountFlags, MountPropagationFlags, UnmountFlags};
use rustix::thread::UnshareFlags;

use super::layers::Layers;
use crate::{Layer, sys};

/// Leaves all of them. The PID namespace is entered by the next child only, which the caller reports.
///
/// `staging` is a directory that exists outside; the new root is mounted over it for a moment.
pub(super) fn leave(layers: &mut Layers, staging: &Path) {
    let (uid, gid) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
    layers.put_up(Layer::UserNamespace, || {
        enter("user", UnshareFlags::NEWUSER)?;
        // The kernel wants groups fixed before an unprivileged process may map its own.
        let identity = |id: u32| format!("{id} {id} 1");
        let write = |file: &str, text: &str| {
            std::fs::write(format!("/proc/self/{file}"), text)
                .map_err(|error| format!("/proc/self/{file} could not be written: {error}"))
        };
        write("setgroups", "deny")?;
        write("uid_map", &identity(uid))?;
        write("gid_map", &identity(gid)).map(|()| "one user and one group are mapped".to_owned())
    });
    let mounts = layers.put_up(Layer::MountNamespace, || enter("mnt", UnshareFlags::NEWNS));
    layers.put_up(Layer::NetworkNamespace, || enter("net", UnshareFlags::NEWNET));
    layers.put_up(Layer::IpcNamespace, || enter("ipc", UnshareFlags::NEWIPC));
    layers.put_up(Layer::UtsNamespace, || {
        enter("uts", UnshareFlags::NEWUTS)?;
        rustix::system::sethostname(b"room").map_err(|error| error.to_string()).map(|()| "")
    });
    layers.put_up(Layer::CgroupNamespace, || enter("cgroup", UnshareFlags::NEWCGROUP));
    layers.put_up(Layer::PidNamespace, || enter("pid_for_children", UnshareFlags::NEWPID));
    // The last, for /proc is gone with it.
    layers.put_up(Layer::PrivateRoot, || {
        if !mounts {
            return Err("it needs a mount namespace".to_owned());
        }
        private_root(staging).map(|()| "an empty read-only tmpfs".to_owned())
    });
}

/// Unshares, and sees that the namespace of that name is another than before.
fn enter(name: &str, flag: UnshareFlags) -> Result<&'static str, String> {
    let link = PathBuf::from(format!("/proc/self/ns/{name}"));
    let look = || {
        std::fs::read_link(&link).map_err(|error| format!("it cannot be seen in /proc: {error}"))
    };
    let before = look()?;
    sys::unshare(flag).map_err(|error| format!("the kernel refused it: {error}"))?;
    // The children's PID namespace has no name in /proc before there is a child.
    if flag == UnshareFlags::NEWPID || look()? != before {
        Ok("")
    } else {
        Err("the kernel said yes and did nothing".to_owned())
    }
}

/// Makes an empty directory, which is nowhere else, the root of everything.
fn private_root(staging: &Path) -> Result<(), String> {
    let failed = |doing: &'static str| {
        move |error: rustix::io::Errno| format!("{doing}: {}", io::Error::from(error))
    };
    // What is mounted here from now on is seen here only, and what is mounted outside never here.
    let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    rustix::mount::mount_change("/", private).map_err(failed("making mounts private"))?;
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    let options = CString::new("size=4k,nr_inodes=1,mode=0555").map_err(|e| e.to_string())?;
    rustix::mount::mount("room", staging, "tmpfs", flags, options.as_c_str())
        .map_err(failed("mounting the new root"))?;
    rustix::process::chdir(staging).map_err(failed("entering the new root"))?;
    // pivot_root(2), "pivot_root(".", ".")": the old root lands on top of the new one and is taken off.
    rustix::process::pivot_root(".", ".").map_err(failed("changing the root"))?;
    rustix::mount::unmount(".", UnmountFlags::DETACH).map_err(failed("taking off the old root"))?;
    rustix::process::chdir("/").map_err(failed("entering the root"))?;
    let read_only = flags | MountFlags::RDONLY | MountFlags::BIND;
    rustix::mount::mount_remount("/", read_only, "")
        .map_err(failed("making the root read-only"))?;
    match std::fs::read_dir("/").map(|mut entries| entries.next().is_none()) {
        Ok(true) => {}
        Ok(false) => return Err("the new root is not empty".to_owned()),
        Err(error) => return Err(format!("the new root cannot be read: {error}")),
    }
    match std::fs::File::create("/made") {
        Err(_) => Ok(()),
        Ok(_) => Err("the new root can be written".to_owned()),
    }
}
