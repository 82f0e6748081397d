//! What the node really offers to the probes: a listening port, a name server, a socket, a file, a
//! directory. Were they not reachable outside, their being out of reach inside would prove nothing.

use std::fs::Permissions;
use std::io::{self, PipeReader};
use std::net::{Ipv4Addr, TcpListener, UdpSocket};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{SocketAddr, UnixListener};

use tempfile::TempDir;

use crate::wire::{Targets, answer_to};

/// Questions answered at most: one is asked before sealing, none should be after.
const QUESTIONS_MAX: u32 = 16;

/// Held open while a room is built.
pub(super) struct Offer {
    pub(super) targets: Targets,
    /// The room gets this end, and must not have it any more when it is sealed.
    pub(super) leak: OwnedFd,
    names: UdpSocket,
    questions: u32,
    directory: TempDir,
    _tcp: TcpListener,
    _unix: UnixListener,
    _leaked: PipeReader,
}

impl Offer {
    pub(super) fn open() -> io::Result<Offer> {
        let tcp = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let names = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
        names.set_nonblocking(true)?;
        // Everybody may pass through the directory and make files within; nobody else may list it.
        let directory = tempfile::Builder::new()
            .prefix("allmend-room-")
            .permissions(Permissions::from_mode(0o733))
            .tempdir()?;
        // The umask has its say when a directory is made, not when it is changed.
        std::fs::set_permissions(directory.path(), Permissions::from_mode(0o733))?;
        let file = directory.path().join("open");
        let secret =
            directory.path().file_name().unwrap_or_default().to_string_lossy().into_owned();
        std::fs::write(&file, &secret)?;
        std::fs::set_permissions(&file, Permissions::from_mode(0o644))?;
        let unix = UnixListener::bind_addr(&SocketAddr::from_abstract_name(secret.as_bytes())?)?;
        let (leaked, leak) = io::pipe()?;
        let utf8 = |path: &std::path::Path| {
            path.to_str().map(str::to_owned).ok_or_else(|| {
                io::Error::other("the temporary directory's path is not valid UTF-8; set TMPDIR")
            })
        };
        let targets = Targets {
            tcp_port: tcp.local_addr()?.port(),
            udp_port: names.local_addr()?.port(),
            unix_name: secret.clone(),
            directory: utf8(directory.path())?,
            file: utf8(&file)?,
            secret,
        };
        Ok(Offer {
            targets,
            leak: leak.into(),
            names,
            questions: 0,
            directory,
            _tcp: tcp,
            _unix: unix,
            _leaked: leaked,
        })
    }

    /// The name server, to wait for; none when it has answered enough.
    pub(super) fn questions(&self) -> Option<BorrowedFd<'_>> {
        (self.questions < QUESTIONS_MAX).then(|| self.names.as_fd())
    }

    /// Answers one question, if one is there.
    pub(super) fn answer(&mut self) {
        let mut question = [0; 512];
        let Ok((length, from)) = self.names.recv_from(&mut question) else { return };
        self.questions += 1;
        if let Some(answer) = answer_to(&question[..length]) {
            let _ = self.names.send_to(&answer, from);
        }
    }

    /// Whether something was written into the directory from inside, whatever the report says.
    pub(super) fn was_written_to(&self) -> bool {
        self.directory.path().join("inside").exists()
    }
}
