//! What a hostile worker tries. Each attack is one function, run by the same code outside, where it must
//! succeed for its failing to prove anything, and inside.
#![allow(unsafe_code)]

use std::ffi::{c_int, c_long, c_void};
use std::fs::File;
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, TcpStream, ToSocketAddrs, UdpSocket};
use std::os::fd::{AsRawFd, FromRawFd, RawFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram, UnixStream};
use std::path::PathBuf;
use std::process::Command;
use std::ptr;
use std::time::Duration;

/// What there is to attack: all of it really within reach of a process outside.
pub(crate) struct Marks {
    pub(crate) tcp_port: u16,
    pub(crate) udp_port: u16,
    /// An abstract Unix socket.
    pub(crate) unix_name: String,
    /// A directory in which everybody may make files, with a Unix socket `socket` in it.
    pub(crate) directory: PathBuf,
    /// Another process of the same user.
    pub(crate) victim: i32,
    /// Where in its memory [`SECRET`] is.
    pub(crate) address: usize,
    /// A descriptor that was inherited.
    pub(crate) inherited: RawFd,
    /// A file that was handed in, or opened for reading.
    pub(crate) data: File,
    /// This program.
    pub(crate) program: PathBuf,
}

/// In the victim's memory.
pub(crate) static SECRET: [u8; 16] = *b"a patient's name";

/// An attack: what it is called, whether every machine must let it through outside, and the attempt.
pub(crate) struct Attack {
    pub(crate) name: &'static str,
    /// Some machines refuse it to everybody; the test says so then.
    pub(crate) may_fail_outside: bool,
    pub(crate) run: fn(&Marks) -> io::Result<()>,
}

const fn sure(name: &'static str, run: fn(&Marks) -> io::Result<()>) -> Attack {
    Attack { name, may_fail_outside: false, run }
}

const fn perhaps(name: &'static str, run: fn(&Marks) -> io::Result<()>) -> Attack {
    Attack { name, may_fail_outside: true, run }
}

/// All of them. The last one kills the victim.
pub(crate) const ATTACKS: &[Attack] = &[
    sure("connect over TCP", |m| {
        let address = (Ipv4Addr::LOCALHOST, m.tcp_port).into();
        TcpStream::connect_timeout(&address, Duration::from_secs(5))?.write_all(b"a row")
    }),
    sure("send over UDP", |m| {
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
        socket.send_to(b"a row", (Ipv4Addr::LOCALHOST, m.udp_port)).map(drop)
    }),
    perhaps("resolve a name", |_| ("localhost", 80).to_socket_addrs().map(drop)),
    sure("listen on TCP", |_| std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).map(drop)),
    sure("connect to an abstract Unix socket", |m| {
        UnixStream::connect_addr(&SocketAddr::from_abstract_name(&m.unix_name)?).map(drop)
    }),
    sure("connect to a Unix socket by path", |m| {
        UnixStream::connect(m.directory.join("socket")).map(drop)
    }),
    sure("make a pair of sockets", |_| UnixDatagram::pair().map(drop)),
    sure("ask the kernel over netlink", |_| socket(libc::AF_NETLINK, libc::SOCK_RAW)),
    perhaps("call the hypervisor over vsock", |_| socket(libc::AF_VSOCK, libc::SOCK_STREAM)),
    sure("read /etc/passwd", |_| File::open("/etc/passwd").map(drop)),
    sure("write elsewhere", |m| std::fs::write(m.directory.join("leaked"), b"a row")),
    sure("make a directory", |m| std::fs::create_dir(m.directory.join("leaked-directory"))),
    sure("list a directory", |_| std::fs::read_dir("/etc").map(drop)),
    sure("read /proc/self/maps", |_| std::fs::read("/proc/self/maps").map(drop)),
    sure("write its own code through /proc/self/mem", |_| {
        File::options().write(true).open("/proc/self/mem").map(drop)
    }),
    sure("reopen a descriptor through /proc/self/fd", |m| {
        File::open(format!("/proc/self/fd/{}", m.data.as_raw_fd())).map(drop)
    }),
    sure("write to a descriptor that it inherited", |m| {
        // SAFETY: the number is only written to; it is taken back before anything could close it.
        let mut file = std::mem::ManuallyDrop::new(unsafe { File::from_raw_fd(m.inherited) });
        file.write_all(b"a row")
    }),
    sure("mark the data by its mode", |m| rustix_ok(rustix::fs::fchmod(&m.data, 0o744.into()))),
    sure("mark the data by its times", |m| m.data.set_modified(std::time::SystemTime::now())),
    sure("mark the data by a lock", |m| {
        rustix_ok(rustix::fs::flock(&m.data, rustix::fs::FlockOperation::NonBlockingLockShared))
    }),
    sure("execute its own program", |m| {
        let ended = Command::new(&m.program).arg("nothing").status()?;
        if ended.success() { Ok(()) } else { Err(io::Error::other("it failed")) }
    }),
    sure("execute the data by descriptor", |m| {
        // The kernel goes for the arguments, which are nowhere, only after it has allowed the file.
        // SAFETY: the bad pointers are read by the kernel only.
        let result = unsafe {
            libc::syscall(
                libc::SYS_execveat,
                m.data.as_raw_fd(),
                c"".as_ptr(),
                1_usize,
                1_usize,
                libc::AT_EMPTY_PATH,
            )
        };
        match check(result) {
            Err(error) if error.raw_os_error() == Some(libc::EFAULT) => Ok(()),
            other => other,
        }
    }),
    sure("make a file in memory and execute it", |m| {
        let memory = rustix::fs::memfd_create("worm", rustix::fs::MemfdFlags::CLOEXEC)?;
        let mut memory = File::from(memory);
        io::copy(&mut File::open(&m.program)?, &mut memory)?;
        // Executing a file that is open for writing is refused to everybody.
        let reader = File::open(format!("/proc/self/fd/{}", memory.as_raw_fd()))?;
        drop(memory);
        let ended = Command::new(format!("/proc/{}/fd/{}", std::process::id(), reader.as_raw_fd()))
            .arg("nothing")
            .status()?;
        if ended.success() { Ok(()) } else { Err(io::Error::other("it failed")) }
    }),
    sure("map memory that can be executed", |_| {
        map(libc::PROT_READ | libc::PROT_WRITE | libc::PROT_EXEC, -1).map(drop)
    }),
    sure("make written memory executable", |_| {
        let page = map(libc::PROT_READ | libc::PROT_WRITE, -1)?;
        // SAFETY: the page is from just above and nobody else's.
        check(unsafe { libc::mprotect(page, 4096, libc::PROT_READ | libc::PROT_EXEC) }.into())
    }),
    sure("map the data as code", |m| {
        map(libc::PROT_READ | libc::PROT_EXEC, m.data.as_raw_fd()).map(drop)
    }),
    sure("fork", |_| forked(|| Ok(()))),
    sure("bomb with forks", |_| (0..32).try_for_each(|_| forked(|| Ok(())))),
    sure("start a process with clone3", |_| {
        // `struct clone_args` of linux/sched.h: flags, five pointers and signals, of which only the exit
        // signal is set.
        let mut arguments = [0_u64; 11];
        arguments[4] = libc::SIGCHLD as u64;
        // SAFETY: the kernel reads 88 bytes; without CLONE_VM this is a fork.
        match unsafe { libc::syscall(libc::SYS_clone3, arguments.as_ptr(), 88) } {
            // SAFETY: a child that ends at once.
            0 => unsafe { libc::_exit(0) },
            result => check(result),
        }
    }),
    sure("start a process that shares memory (vfork)", |_| {
        let flags = libc::CLONE_VM | libc::CLONE_VFORK | libc::SIGCHLD;
        let mut stack = vec![0_u8; 64 << 10];
        extern "C" fn nothing(_: *mut c_void) -> c_int {
            0
        }
        // SAFETY: the child runs `nothing` on a stack that outlives it, since this call waits for it.
        let top = unsafe { stack.as_mut_ptr().add(64 << 10) };
        check(unsafe { libc::clone(nothing, top.cast(), flags, ptr::null_mut()) }.into())
    }),
    perhaps("trace another process", |m| {
        let nothing = ptr::null_mut::<c_void>();
        // SAFETY: seizing touches no memory of this process.
        check(unsafe { libc::ptrace(libc::PTRACE_SEIZE, m.victim, nothing, nothing) })
    }),
    perhaps("read another process's memory", |m| {
        let mut read = [0_u8; 16];
        let here = libc::iovec { iov_base: read.as_mut_ptr().cast(), iov_len: 16 };
        let there = libc::iovec { iov_base: ptr::without_provenance_mut(m.address), iov_len: 16 };
        // SAFETY: `here` is `read`; the kernel checks the other side.
        let got = unsafe { libc::process_vm_readv(m.victim, &here, 1, &there, 1, 0) };
        check(got as c_long)?;
        if read == SECRET { Ok(()) } else { Err(io::Error::other("something else was there")) }
    }),
    perhaps("read another process's memory through /proc", |m| {
        File::open(format!("/proc/{}/mem", m.victim)).map(drop)
    }),
    perhaps("read another process's environment", |m| {
        let mut all = String::new();
        File::open(format!("/proc/{}/environ", m.victim))?.read_to_string(&mut all)?;
        if all.contains("TOKEN=secret") { Ok(()) } else { Err(io::Error::other("it is not there")) }
    }),
    perhaps("take another process's descriptor", |m| {
        let pid = rustix::process::Pid::from_raw(m.victim).expect("a number");
        let victim = rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty())?;
        let flags = rustix::process::PidfdGetfdFlags::empty();
        rustix_ok(rustix::process::pidfd_getfd(victim, 0, flags).map(drop))
    }),
    perhaps("make a user namespace", |_| unshare(libc::CLONE_NEWUSER)),
    perhaps("enter a namespace", |_| {
        unshare(libc::CLONE_NEWUSER | libc::CLONE_NEWNET)?;
        let namespace = File::open("/proc/self/ns/net")?;
        // SAFETY: integers only.
        check(unsafe { libc::setns(namespace.as_raw_fd(), libc::CLONE_NEWNET) }.into())
    }),
    perhaps("mount", |m| {
        unshare(libc::CLONE_NEWUSER | libc::CLONE_NEWNS)?;
        let flags = rustix::mount::MountFlags::NOSUID;
        rustix_ok(rustix::mount::mount("x", &m.directory, "tmpfs", flags, None))
    }),
    perhaps("set up an io_uring", |_| {
        let mut parameters = [0_u64; 15];
        // SAFETY: the kernel reads and writes 120 bytes.
        check(unsafe { libc::syscall(libc::SYS_io_uring_setup, 1, parameters.as_mut_ptr()) })
    }),
    perhaps("leave a key in the kernel", |_| {
        // `KEY_SPEC_PROCESS_KEYRING` is -2 (keyctl(2)).
        let (kind, name) = (c"user".as_ptr(), c"row".as_ptr());
        // SAFETY: two strings with their zeros, and five bytes.
        check(unsafe { libc::syscall(libc::SYS_add_key, kind, name, c"a row".as_ptr(), 5, -2) })
    }),
    sure("leave a shared memory segment", |_| {
        // SAFETY: integers only.
        let segment = unsafe { libc::shmget(libc::IPC_PRIVATE, 4096, libc::IPC_CREAT | 0o600) };
        check(segment.into())?;
        // SAFETY: removing takes no buffer.
        check(unsafe { libc::shmctl(segment, libc::IPC_RMID, ptr::null_mut()) }.into())
    }),
    sure("be looked into and dump core", |_| {
        // SAFETY: integers only.
        check(unsafe { libc::prctl(libc::PR_SET_DUMPABLE, 1, 0, 0, 0) }.into())
    }),
    sure("change its priority", |_| {
        // SAFETY: integers only.
        check(unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, 19) }.into())
    }),
    // Last: the victim is needed above.
    sure("kill another process", |m| {
        // SAFETY: integers only.
        check(unsafe { libc::kill(m.victim, libc::SIGKILL) }.into())
    }),
];

/// Runs an attack in a process of its own where there can be one, since it may change its process.
pub(crate) fn attempt(attack: &Attack, marks: &Marks) -> io::Result<()> {
    if forked(|| Ok(())).is_ok() { forked(|| (attack.run)(marks)) } else { (attack.run)(marks) }
}

/// Runs `work` in a child and hands its outcome on.
fn forked(work: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
    // SAFETY: these processes have one thread.
    match unsafe { libc::fork() } {
        0 => {
            let code = match work() {
                Ok(()) => 0,
                Err(error) => error.raw_os_error().unwrap_or(libc::EIO),
            };
            // SAFETY: ends the child.
            unsafe { libc::_exit(code) }
        }
        pid if pid > 0 => {
            let mut status = 0;
            // SAFETY: the status outlives the call.
            check(unsafe { libc::waitpid(pid, &raw mut status, 0) }.into())?;
            match libc::WEXITSTATUS(status) {
                0 if libc::WIFEXITED(status) => Ok(()),
                0 => Err(io::Error::other("it was killed")),
                code => Err(io::Error::from_raw_os_error(code)),
            }
        }
        _ => Err(io::Error::last_os_error()),
    }
}

fn socket(family: c_int, kind: c_int) -> io::Result<()> {
    // SAFETY: integers only.
    check(unsafe { libc::socket(family, kind | libc::SOCK_CLOEXEC, 0) }.into())
}

fn unshare(flags: c_int) -> io::Result<()> {
    // SAFETY: not with CLONE_FILES.
    check(unsafe { libc::unshare(flags) }.into())
}

fn map(protection: c_int, file: RawFd) -> io::Result<*mut c_void> {
    let kind = if file < 0 { libc::MAP_ANONYMOUS } else { 0 };
    // SAFETY: a new mapping at a place of the kernel's choice.
    let page =
        unsafe { libc::mmap(ptr::null_mut(), 4096, protection, libc::MAP_PRIVATE | kind, file, 0) };
    if page == libc::MAP_FAILED { Err(io::Error::last_os_error()) } else { Ok(page) }
}

fn rustix_ok<T>(result: rustix::io::Result<T>) -> io::Result<()> {
    result.map(drop).map_err(Into::into)
}

fn check(result: c_long) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
