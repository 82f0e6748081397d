//! The process that waits for the room's: it hands on how that ended, and ends it when the node is gone.
//!
//! The room is the first process of its PID namespace, which its maker cannot be. The warden is as shut
//! in as the room, holds nothing of the data, and can do nothing but wait and kill that one process.

use std::os::fd::{AsFd, AsRawFd, IntoRawFd, OwnedFd};

use rustix::event::{PollFd, PollFlags};
use rustix::process::{Pid, PidfdFlags, Signal, WaitOptions};

use super::{filter, privileges};
use crate::sys;

/// Added to a signal's number in an exit code, as shells do.
pub(crate) const SIGNALLED: i32 = 128;

/// The exit code of a warden that could not wait.
const LOST: i32 = 125;

/// Waits for `room` and ends as it ended. `life` is the descriptor whose closing tells the room that its
/// warden is gone; standard input is the node's.
pub(super) fn keep(room: Pid, life: OwnedFd, filtered: bool) -> ! {
    let Ok(ending) = rustix::process::pidfd_open(room, PidfdFlags::empty()) else {
        // Linux before 5.3. The room dies with its maker.
        sys::exit_now(LOST);
    };
    privileges::shed_silently();
    let mut kept = [0, ending.as_raw_fd(), life.into_raw_fd()];
    let shut = sys::close_all_but(&mut kept);
    if shut.is_err() || (filtered && filter::restrict_warden(room).is_err()) {
        sys::exit_now(LOST);
    }
    let stdin = std::io::stdin();
    loop {
        // The node sends nothing that is for the warden; only its hanging up is news.
        let node = PollFd::from_borrowed_fd(stdin.as_fd(), PollFlags::empty());
        let mut watched = [PollFd::new(&ending, PollFlags::IN), node];
        match rustix::event::poll(&mut watched, None) {
            Ok(_) if !watched[0].revents().is_empty() => break,
            Ok(_) if !watched[1].revents().is_empty() => {
                let _ = rustix::process::kill_process(room, Signal::KILL);
                break;
            }
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(_) => sys::exit_now(LOST),
        }
    }
    loop {
        match rustix::process::waitpid(Some(room), WaitOptions::empty()) {
            Ok(Some((_, status))) => {
                let signal = status.terminating_signal().map(|signal| SIGNALLED + signal);
                sys::exit_now(status.exit_status().or(signal).unwrap_or(LOST));
            }
            Ok(None) | Err(rustix::io::Errno::INTR) => {}
            Err(_) => sys::exit_now(LOST),
        }
    }
}
