//! A process of the same user that stays outside the room while it is probed: something to trace,
//! signal and read that is not the node itself.

use std::io::{Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::process::Pid;

use crate::RoomError;
use crate::sys::{self, Forked};

/// What the decoy has at this address and nobody else has.
static SECRET: AtomicU64 = AtomicU64::new(0);

/// A running decoy; it ends when every copy of `life` is closed.
pub(super) struct Decoy {
    pub(super) pid: Pid,
    /// Of [`SECRET`], which is the same in both processes.
    pub(super) address: usize,
    /// What is to be read there.
    pub(super) secret: u64,
    pub(super) life: OwnedFd,
}

impl Decoy {
    /// Starts one and waits until its secret is in place.
    pub(super) fn start() -> Result<Decoy, RoomError> {
        let making = "making a pipe to the decoy";
        let (life_end, life) = std::io::pipe().map_err(RoomError::system(making))?;
        let (mut ready, ready_end) = std::io::pipe().map_err(RoomError::system(making))?;
        let secret = 0x00a1_1e4d_0000_0000 | u64::from(std::process::id());
        match sys::fork().map_err(RoomError::system("starting the decoy"))? {
            Forked::Child => live(life_end, ready_end, secret),
            Forked::Parent(pid) => {
                drop(ready_end);
                ready.read_exact(&mut [0]).map_err(RoomError::system("waiting for the decoy"))?;
                let address = std::ptr::from_ref(&SECRET).addr();
                Ok(Decoy { pid, address, secret, life: life.into() })
            }
        }
    }
}

fn live(mut life: std::io::PipeReader, mut ready: std::io::PipeWriter, secret: u64) -> ! {
    SECRET.store(secret, Ordering::SeqCst);
    // Its own copy of the other end would keep it alive for ever; the node's pipes are not its business.
    let kept = sys::close_all_but(&mut [life.as_raw_fd(), ready.as_raw_fd()]);
    if kept.is_ok() && ready.write_all(&[0]).is_ok() {
        let _ = life.read(&mut [0]);
    }
    sys::exit_now(0)
}
