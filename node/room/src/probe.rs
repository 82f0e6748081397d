//! What a room tries in order to know that it is shut (specs/room.md §3), by name.

use std::fmt;

use serde::{Deserialize, Serialize};

/// One attempt to reach what is outside; made before sealing, where it should succeed, and after.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Probe {
    /// Connect to a TCP port that the node really listens on.
    ConnectTcp,
    /// Ask a name server that really answers, over UDP.
    ResolveName,
    /// Connect to an abstract Unix socket that the node really listens on.
    ConnectUnix,
    /// Make a netlink socket.
    NetlinkSocket,
    /// Make a socket to the hypervisor.
    VsockSocket,
    /// Read a file that everybody may read.
    OpenFile,
    /// Make a file in a directory where everybody may.
    WriteFile,
    /// Execute the room's own program once more, by descriptor.
    Execute,
    /// Start a process.
    NewProcess,
    /// Trace a process of the same user.
    Trace,
    /// Read the memory of a process of the same user.
    ReadMemory,
    /// Read the environment of a process of the same user.
    ReadEnvironment,
    /// Signal a process of the same user.
    Signal,
    /// Write to a descriptor that was left open.
    InheritedDescriptor,
    /// Make a user namespace.
    UserNamespace,
    /// Set up an io_uring.
    IoUring,
    /// Make a file in memory, which could be executed.
    MemoryFile,
    /// Map memory that is executable.
    ExecutableMemory,
}

impl Probe {
    /// All of them, in the order of a report.
    pub const ALL: [Probe; 18] = [
        Probe::ConnectTcp,
        Probe::ResolveName,
        Probe::ConnectUnix,
        Probe::NetlinkSocket,
        Probe::VsockSocket,
        Probe::OpenFile,
        Probe::WriteFile,
        Probe::Execute,
        Probe::NewProcess,
        Probe::Trace,
        Probe::ReadMemory,
        Probe::ReadEnvironment,
        Probe::Signal,
        Probe::InheritedDescriptor,
        Probe::UserNamespace,
        Probe::IoUring,
        Probe::MemoryFile,
        Probe::ExecutableMemory,
    ];

    /// Its word in reports.
    pub fn name(self) -> &'static str {
        match self {
            Probe::ConnectTcp => "connect-tcp",
            Probe::ResolveName => "resolve-name",
            Probe::ConnectUnix => "connect-unix",
            Probe::NetlinkSocket => "netlink-socket",
            Probe::VsockSocket => "vsock-socket",
            Probe::OpenFile => "open-file",
            Probe::WriteFile => "write-file",
            Probe::Execute => "execute",
            Probe::NewProcess => "new-process",
            Probe::Trace => "trace",
            Probe::ReadMemory => "read-memory",
            Probe::ReadEnvironment => "read-environment",
            Probe::Signal => "signal",
            Probe::InheritedDescriptor => "inherited-descriptor",
            Probe::UserNamespace => "user-namespace",
            Probe::IoUring => "io-uring",
            Probe::MemoryFile => "memory-file",
            Probe::ExecutableMemory => "executable-memory",
        }
    }

    /// Whether a machine may refuse it to everybody, so that a room is no worse for the want of a
    /// positive control: a kernel without vsock has no channel there to shut.
    pub fn may_be_absent(self) -> bool {
        matches!(
            self,
            Probe::ConnectUnix
                | Probe::NetlinkSocket
                | Probe::VsockSocket
                | Probe::Trace
                | Probe::ReadMemory
                | Probe::ReadEnvironment
                | Probe::UserNamespace
                | Probe::IoUring
        )
    }
}

impl fmt::Display for Probe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
