//! System calls that have no safe wrapper in the crates that we use, and nothing else. All `unsafe` of
//! this crate is here.
#![allow(unsafe_code)]

use std::ffi::c_long;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::ptr;

use rustix::process::{Pid, WaitOptions};
use rustix::thread::UnshareFlags;

/// A pointer that no process has mapped: the kernel answers `EFAULT` when it gets as far as reading it.
const NOWHERE: usize = 1;

/// Which side of a fork one is on.
pub(crate) enum Forked {
    Child,
    Parent(Pid),
}

/// Forks.
///
/// In a process with several threads the child must not allocate, lock or panic before it ends: only the
/// forking thread exists in it, and another may have held the lock.
pub(crate) fn fork() -> io::Result<Forked> {
    // SAFETY: fork itself has no preconditions; what the child may do is the caller's duty above. Callers
    // are `seal`, which has refused to begin in a process with threads, and `survey`, whose children
    // make system calls and end.
    match unsafe { libc::fork() } {
        0 => Ok(Forked::Child),
        number if number > 0 => {
            Pid::from_raw(number).map(Forked::Parent).ok_or_else(io::Error::last_os_error)
        }
        _ => Err(io::Error::last_os_error()),
    }
}

/// Ends the process at once: no destructors, no buffers, no exit handlers.
pub(crate) fn exit_now(code: i32) -> ! {
    // SAFETY: _exit has no preconditions and does not return.
    unsafe { libc::_exit(code) }
}

/// Runs `work` in a child process and gives the code that it ended with.
///
/// # Errors
/// When there can be no child, or it was killed.
pub(crate) fn in_child(work: impl FnOnce() -> i32) -> io::Result<i32> {
    match fork()? {
        Forked::Child => exit_now(work()),
        Forked::Parent(pid) => loop {
            match rustix::process::waitpid(Some(pid), WaitOptions::empty()) {
                Err(rustix::io::Errno::INTR) | Ok(None) => {}
                Err(error) => return Err(error.into()),
                Ok(Some((_, status))) => {
                    return status.exit_status().ok_or_else(|| io::Error::other("it was killed"));
                }
            }
        },
    }
}

/// Leaves the namespaces that `flags` name for new ones.
pub(crate) fn unshare(flags: UnshareFlags) -> io::Result<()> {
    assert!(!flags.contains(UnshareFlags::FILES), "descriptors are shared with nobody here");
    // SAFETY: unsafe only for FILES, which is refused above.
    unsafe { rustix::thread::unshare_unsafe(flags) }.map_err(Into::into)
}

/// Closes every descriptor but those in `keep`.
///
/// Whoever owns one of the closed must forget it: the numbers may be used again.
pub(crate) fn close_all_but(keep: &mut [RawFd]) -> io::Result<()> {
    keep.sort_unstable();
    let mut from = 0;
    for kept in keep.iter().filter_map(|fd| u32::try_from(*fd).ok()) {
        if from < kept {
            close_range(from, kept - 1)?;
        }
        from = from.max(kept + 1);
    }
    close_range(from, u32::MAX)
}

fn close_range(first: u32, last: u32) -> io::Result<()> {
    // SAFETY: closing is memory-safe; that nobody uses the descriptors afterwards is the duty stated at
    // `close_all_but`.
    check(unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) })
}

/// Whether a descriptor of this number is open.
pub(crate) fn is_open(fd: RawFd) -> bool {
    // SAFETY: F_GETFD only reads, and any number may be asked about.
    unsafe { libc::fcntl(fd, libc::F_GETFD) >= 0 }
}

/// Writes one byte to whatever has this number.
pub(crate) fn write_byte(fd: RawFd) -> io::Result<()> {
    // SAFETY: the buffer is one byte that lives for the whole call.
    check(unsafe { libc::write(fd, [0_u8].as_ptr().cast(), 1) } as c_long)
}

/// Has the kernel refuse memory that is or becomes executable (Linux 6.3), and reads that back.
pub(crate) fn refuse_executable_memory() -> io::Result<()> {
    // SAFETY: both calls take integers only.
    unsafe {
        check(c_long::from(libc::prctl(
            libc::PR_SET_MDWE,
            c_ulong(libc::PR_MDWE_REFUSE_EXEC_GAIN),
            0_u64,
            0_u64,
            0_u64,
        )))?;
        match libc::prctl(libc::PR_GET_MDWE, 0_u64, 0_u64, 0_u64, 0_u64) {
            set if set >= 0 && c_ulong(libc::PR_MDWE_REFUSE_EXEC_GAIN) & set as u64 != 0 => Ok(()),
            _ => Err(io::Error::other("it was set and does not read back")),
        }
    }
}

fn c_ulong(value: impl Into<i64>) -> u64 {
    value.into() as u64
}

/// Asks for this process's execution domain: harmless, and on no allow list of this crate.
pub(crate) fn personality() -> io::Result<()> {
    // SAFETY: the argument is the one that only asks.
    check(c_long::from(unsafe { libc::personality(0xffff_ffff) }))
}

/// Goes as far into executing `program` as the kernel lets it without anything happening: the kernel
/// checks whether the program may be executed, and only then reads the arguments, which are nowhere.
/// Success means that it went for the arguments.
pub(crate) fn execute_up_to_arguments(program: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: the path is a string with its zero; the two bad pointers are read by the kernel only, which
    // answers EFAULT for them and leaves this process as it is.
    let result = unsafe {
        libc::syscall(
            libc::SYS_execveat,
            program.as_raw_fd(),
            c"".as_ptr(),
            NOWHERE,
            NOWHERE,
            libc::AT_EMPTY_PATH,
        )
    };
    match check(result) {
        Err(error) if error.raw_os_error() == Some(libc::EFAULT) => Ok(()),
        other => other,
    }
}

/// Begins to trace a process without stopping it.
pub(crate) fn trace(pid: Pid) -> io::Result<()> {
    let nothing = ptr::null_mut::<libc::c_void>();
    // SAFETY: PTRACE_SEIZE reads and writes no memory of this process.
    check(unsafe { libc::ptrace(libc::PTRACE_SEIZE, pid.as_raw_pid(), nothing, nothing) })
}

/// Reads the number at `address` in another process.
pub(crate) fn read_memory(pid: Pid, address: usize) -> io::Result<u64> {
    let mut value = [0_u8; 8];
    let here = libc::iovec { iov_base: value.as_mut_ptr().cast(), iov_len: value.len() };
    let there =
        libc::iovec { iov_base: ptr::without_provenance_mut(address), iov_len: value.len() };
    // SAFETY: `here` covers `value`, which outlives the call; `there` is another process's memory, which
    // the kernel checks.
    let got = unsafe { libc::process_vm_readv(pid.as_raw_pid(), &here, 1, &there, 1, 0) };
    check(got as c_long)?;
    Ok(u64::from_ne_bytes(value))
}

/// Sets up an io_uring and closes it.
pub(crate) fn io_uring() -> io::Result<()> {
    // `struct io_uring_params` is 120 bytes (linux/io_uring.h), all of which may be zero.
    let mut parameters = [0_u64; 15];
    // SAFETY: the kernel reads and writes 120 bytes, aligned to eight.
    let fd = unsafe { libc::syscall(libc::SYS_io_uring_setup, 1, parameters.as_mut_ptr()) };
    check(fd)?;
    // SAFETY: the descriptor is new and nobody else's.
    unsafe { libc::close(fd as RawFd) };
    Ok(())
}

/// Maps a page that can be written and executed, and unmaps it.
pub(crate) fn executable_memory() -> io::Result<()> {
    let protection = libc::PROT_READ | libc::PROT_WRITE | libc::PROT_EXEC;
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
    // SAFETY: an anonymous mapping at a place of the kernel's choice touches nothing that exists.
    let page = unsafe { libc::mmap(ptr::null_mut(), 4096, protection, flags, -1, 0) };
    if page == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: it is the mapping from above, which nobody has seen.
    unsafe { libc::munmap(page, 4096) };
    Ok(())
}

fn check(result: c_long) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// The version of Landlock that the kernel has; zero for none.
pub(crate) fn landlock_version() -> i32 {
    /// `LANDLOCK_CREATE_RULESET_VERSION` (linux/landlock.h).
    const VERSION: c_long = 1;
    let nothing = ptr::null::<libc::c_void>();
    // SAFETY: asked for the version the kernel reads no attributes, of which there are none.
    let version = unsafe { libc::syscall(libc::SYS_landlock_create_ruleset, nothing, 0, VERSION) };
    i32::try_from(version).unwrap_or(0).max(0)
}

/// Whether the kernel knows filters that answer with an error.
pub(crate) fn has_filters() -> io::Result<()> {
    let action: u32 = libc::SECCOMP_RET_ERRNO;
    // SAFETY: the kernel reads four bytes, which live for the whole call.
    check(unsafe {
        libc::syscall(libc::SYS_seccomp, libc::SECCOMP_GET_ACTION_AVAIL, 0, &raw const action)
    })
}
