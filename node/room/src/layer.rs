//! The layers of a room (specs/room.md §2), by name.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::Strength;

/// One thing that keeps the room shut.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Layer {
    /// Its own users: no capability in it counts outside.
    UserNamespace,
    /// Its own table of mounts.
    MountNamespace,
    /// Its root directory is empty, read-only and nowhere else.
    PrivateRoot,
    /// Its own network, without an interface that is up.
    NetworkNamespace,
    /// It sees no other process.
    PidNamespace,
    /// Its own System V and POSIX queues, semaphores and shared memory.
    IpcNamespace,
    /// Its own host name.
    UtsNamespace,
    /// It does not see where it stands among the machine's control groups.
    CgroupNamespace,
    /// Landlock without one exception: files, TCP, abstract sockets, signals.
    Landlock,
    /// An allow list of system calls.
    Seccomp,
    /// Nothing that it executes could gain a privilege.
    NoNewPrivileges,
    /// It holds no capability and can regain none.
    NoCapabilities,
    /// No process of the same user may look into it, and no core file shows it.
    NotDumpable,
    /// The limit on core files is nothing.
    NoCoreFiles,
    /// It holds the descriptors that are named and no other.
    Descriptors,
    /// It holds the environment variables that are named and no other.
    Environment,
    /// The kernel refuses it memory beyond its share.
    MemoryLimit,
    /// A control group bounds its memory and its threads.
    Cgroup,
    /// The kernel itself refuses it memory that is written and then executed.
    NoExecutableMemory,
}

impl Layer {
    /// All of them, in the order of a report.
    pub const ALL: [Layer; 19] = [
        Layer::UserNamespace,
        Layer::MountNamespace,
        Layer::PrivateRoot,
        Layer::NetworkNamespace,
        Layer::PidNamespace,
        Layer::IpcNamespace,
        Layer::UtsNamespace,
        Layer::CgroupNamespace,
        Layer::Landlock,
        Layer::Seccomp,
        Layer::NoNewPrivileges,
        Layer::NoCapabilities,
        Layer::NotDumpable,
        Layer::NoCoreFiles,
        Layer::Descriptors,
        Layer::Environment,
        Layer::MemoryLimit,
        Layer::Cgroup,
        Layer::NoExecutableMemory,
    ];

    /// Its word in reports.
    pub fn name(self) -> &'static str {
        match self {
            Layer::UserNamespace => "user-namespace",
            Layer::MountNamespace => "mount-namespace",
            Layer::PrivateRoot => "private-root",
            Layer::NetworkNamespace => "network-namespace",
            Layer::PidNamespace => "pid-namespace",
            Layer::IpcNamespace => "ipc-namespace",
            Layer::UtsNamespace => "uts-namespace",
            Layer::CgroupNamespace => "cgroup-namespace",
            Layer::Landlock => "landlock",
            Layer::Seccomp => "seccomp",
            Layer::NoNewPrivileges => "no-new-privileges",
            Layer::NoCapabilities => "no-capabilities",
            Layer::NotDumpable => "not-dumpable",
            Layer::NoCoreFiles => "no-core-files",
            Layer::Descriptors => "descriptors",
            Layer::Environment => "environment",
            Layer::MemoryLimit => "memory-limit",
            Layer::Cgroup => "cgroup",
            Layer::NoExecutableMemory => "no-executable-memory",
        }
    }

    /// The weakest class that cannot do without it; none if it is only reported.
    pub(crate) fn needed_from(self) -> Option<Strength> {
        match self {
            Layer::UserNamespace
            | Layer::MountNamespace
            | Layer::PrivateRoot
            | Layer::NetworkNamespace
            | Layer::PidNamespace
            | Layer::IpcNamespace
            | Layer::UtsNamespace
            | Layer::Landlock => Some(Strength::Sealed),
            Layer::Seccomp
            | Layer::NoNewPrivileges
            | Layer::NoCapabilities
            | Layer::NotDumpable
            | Layer::NoCoreFiles
            | Layer::Descriptors
            | Layer::Environment
            | Layer::MemoryLimit => Some(Strength::Confined),
            // Not every kernel or service manager offers these, and what they add is bounded by others:
            // the memory limit, the system call filter.
            Layer::CgroupNamespace | Layer::Cgroup | Layer::NoExecutableMemory => None,
        }
    }
}

impl fmt::Display for Layer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
