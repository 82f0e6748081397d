//! Which layers this machine could put up, for `allmend doctor`: cheap, and without the node's program.
//! What a room really holds only its own report says.

use crate::Layer;

/// One layer on this machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Surveyed {
    /// Which.
    pub layer: Layer,
    /// Whether this process could have it.
    pub available: bool,
    /// What the system said.
    pub why_not: Option<String>,
    /// What an operator can do about it.
    pub hint: Option<String>,
}

/// Looks for the layers that depend on the machine; those that every Linux has are left out.
#[cfg(target_os = "linux")]
pub fn survey() -> Vec<Surveyed> {
    linux::survey()
}

/// Looks for the layers that depend on the machine: there is none here.
#[cfg(not(target_os = "linux"))]
pub fn survey() -> Vec<Surveyed> {
    let hint = "run sovereign jobs on a node under Linux".to_owned();
    Layer::ALL
        .into_iter()
        .map(|layer| Surveyed {
            layer,
            available: false,
            why_not: Some("this operating system has no such thing".to_owned()),
            hint: Some(hint.clone()),
        })
        .collect()
}

#[cfg(target_os = "linux")]
mod linux {
    use std::io;

    use rustix::mount::{MountFlags, MountPropagationFlags};
    use rustix::thread::UnshareFlags;

    use super::Surveyed;
    use crate::inside::become_nobody_if_root;
    use crate::outside::delegated_cgroup;
    use crate::{Layer, sys};

    pub(super) fn survey() -> Vec<Surveyed> {
        let namespace = |layer, flags| {
            let outcome = in_child(|| enter(flags));
            of(layer, outcome, namespace_hint)
        };
        let root = of(Layer::PrivateRoot, in_child(private_root), namespace_hint);
        let landlock = match sys::landlock_version() {
            0 => Err("the kernel has none, or it is not enabled".to_owned()),
            _ => Ok(()),
        };
        let filters = sys::has_filters().map_err(|error| error.to_string()).and_then(|()| {
            let here = std::env::consts::ARCH;
            let known = seccompiler::TargetArch::try_from(here).is_ok();
            known.then_some(()).ok_or_else(|| format!("there is no filter for {here}"))
        });
        let memory = in_child(sys::refuse_executable_memory);
        vec![
            namespace(Layer::UserNamespace, UnshareFlags::NEWUSER),
            namespace(Layer::MountNamespace, UnshareFlags::NEWNS),
            root,
            namespace(Layer::NetworkNamespace, UnshareFlags::NEWNET),
            namespace(Layer::PidNamespace, UnshareFlags::NEWPID),
            namespace(Layer::IpcNamespace, UnshareFlags::NEWIPC),
            namespace(Layer::UtsNamespace, UnshareFlags::NEWUTS),
            namespace(Layer::CgroupNamespace, UnshareFlags::NEWCGROUP),
            of(Layer::Landlock, landlock, || {
                "needs Linux 5.13 or later with `landlock` in the boot option `lsm=`".to_owned()
            }),
            of(Layer::Seccomp, filters, || {
                "needs a kernel with CONFIG_SECCOMP_FILTER on x86-64, ARM64 or RISC-V 64".to_owned()
            }),
            of(Layer::Cgroup, delegated_cgroup().map(drop), || {
                "under systemd, `Delegate=memory pids` and `DelegateSubgroup=node` in the unit"
                    .to_owned()
            }),
            of(Layer::NoExecutableMemory, memory, || "needs Linux 6.3 or later".to_owned()),
        ]
    }

    fn of(layer: Layer, outcome: Result<(), String>, hint: impl FnOnce() -> String) -> Surveyed {
        let why_not = outcome.err();
        let available = why_not.is_none();
        Surveyed { layer, available, why_not, hint: (!available).then(hint) }
    }

    /// Tries `attempt` in a child of the user that a room has. It may make system calls and nothing else.
    fn in_child(attempt: impl FnOnce() -> io::Result<()>) -> Result<(), String> {
        let ended = sys::in_child(|| {
            if let Err(error) = become_nobody_if_root() {
                return error.raw_os_error();
            }
            match attempt() {
                Ok(()) => 0,
                Err(error) => error.raw_os_error().unwrap_or(libc::EIO),
            }
        });
        match ended {
            Ok(0) => Ok(()),
            Ok(code) => Err(io::Error::from_raw_os_error(code).to_string()),
            Err(error) => Err(error.to_string()),
        }
    }

    /// As a room: from within a user namespace if there can be one, else with what privileges there are.
    fn enter(flags: UnshareFlags) -> io::Result<()> {
        if flags != UnshareFlags::NEWUSER {
            let _ = sys::unshare(UnshareFlags::NEWUSER);
        }
        sys::unshare(flags)
    }

    /// What a room does, in short.
    fn private_root() -> io::Result<()> {
        enter(UnshareFlags::NEWNS)?;
        let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
        rustix::mount::mount_change(c"/", private)?;
        rustix::mount::mount(c"room", c"/tmp", c"tmpfs", MountFlags::NOSUID, None)?;
        rustix::process::chdir(c"/tmp")?;
        rustix::process::pivot_root(c".", c".")?;
        Ok(())
    }

    fn namespace_hint() -> String {
        let says = |file: &str, value: &str| {
            std::fs::read_to_string(format!("/proc/sys/{file}"))
                .is_ok_and(|text| text.trim() == value)
        };
        if says("user/max_user_namespaces", "0") {
            "sysctl user.max_user_namespaces=15000".to_owned()
        } else if says("kernel/unprivileged_userns_clone", "0") {
            "sysctl kernel.unprivileged_userns_clone=1".to_owned()
        } else if says("kernel/apparmor_restrict_unprivileged_userns", "1") {
            "an AppArmor profile with `userns,` for this program, or sysctl \
             kernel.apparmor_restrict_unprivileged_userns=0"
                .to_owned()
        } else {
            "in a container, allow it user namespaces and mounting (its seccomp and AppArmor profiles \
             forbid them by default)"
                .to_owned()
        }
    }
}
