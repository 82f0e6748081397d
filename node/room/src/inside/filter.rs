//! The allow lists of system calls.
//!
//! A refused call answers "operation not permitted" and the process goes on: a library that asks for
//! something it can do without then does without, and a probe can tell.

use std::collections::BTreeMap;

use libc::c_long;
use rustix::process::Pid;
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule,
};

use crate::sys;

type Rules = BTreeMap<i64, Vec<SeccompRule>>;

/// Calls of a process that computes, whatever their arguments.
const FREE: &[c_long] = &[
    // Memory. Executable memory is refused below, where arguments are looked at.
    libc::SYS_brk,
    libc::SYS_munmap,
    libc::SYS_mremap,
    libc::SYS_madvise,
    // Threads and their waiting.
    libc::SYS_futex,
    libc::SYS_set_robust_list,
    libc::SYS_set_tid_address,
    libc::SYS_rseq,
    libc::SYS_sched_yield,
    libc::SYS_sched_getaffinity,
    libc::SYS_getcpu,
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_restart_syscall,
    // Its own signals.
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sigaltstack,
    // Descriptors that it has. There is no way to a new one but a copy.
    libc::SYS_read,
    libc::SYS_readv,
    libc::SYS_pread64,
    libc::SYS_preadv,
    libc::SYS_write,
    libc::SYS_writev,
    libc::SYS_lseek,
    libc::SYS_fstat,
    libc::SYS_close,
    libc::SYS_dup,
    libc::SYS_dup3,
    libc::SYS_ppoll,
    // Time and chance.
    libc::SYS_clock_gettime,
    libc::SYS_clock_getres,
    libc::SYS_clock_nanosleep,
    libc::SYS_nanosleep,
    libc::SYS_gettimeofday,
    libc::SYS_getrandom,
    // What it is and what it has used.
    libc::SYS_getpid,
    libc::SYS_getppid,
    libc::SYS_gettid,
    libc::SYS_getuid,
    libc::SYS_geteuid,
    libc::SYS_getgid,
    libc::SYS_getegid,
    libc::SYS_getrusage,
    libc::SYS_sysinfo,
    libc::SYS_uname,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_dup2,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_poll,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_time,
];

/// Calls of the warden, whatever their arguments.
const WARDEN_FREE: &[c_long] = &[
    libc::SYS_ppoll,
    libc::SYS_wait4,
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_restart_syscall,
    libc::SYS_rt_sigreturn,
    libc::SYS_munmap,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_poll,
];

/// What a new thread must share with its process, and so what a new process would not.
const THREAD: u64 = (libc::CLONE_VM
    | libc::CLONE_FS
    | libc::CLONE_FILES
    | libc::CLONE_SIGHAND
    | libc::CLONE_THREAD
    | libc::CLONE_SYSVSEM) as u64;

/// What C libraries ask for besides; `CLONE_DETACHED` has no effect, musl sets it.
const THREAD_MAY: u64 = (libc::CLONE_SETTLS
    | libc::CLONE_PARENT_SETTID
    | libc::CLONE_CHILD_SETTID
    | libc::CLONE_CHILD_CLEARTID
    | libc::CLONE_DETACHED) as u64;

/// Restricts the process that will compute, whose number in its own namespace is `own`. From here on it
/// can neither open nor execute anything.
pub(super) fn restrict_room(own: Pid) -> Result<String, String> {
    let none_of = |bits: i32| SeccompCmpOp::MaskedEq(bits as u64);
    let mut rules: Rules = FREE.iter().map(|call| (*call, Vec::new())).collect();
    let mut allow = |call: c_long, alternatives: Vec<Vec<SeccompCondition>>| {
        let rules_of_it = alternatives.into_iter().map(SeccompRule::new).collect::<Result<_, _>>();
        rules_of_it.map(|of_it| rules.insert(call, of_it)).map_err(|error| error.to_string())
    };
    let not_executable = || Ok::<_, String>(vec![vec![long(2, none_of(libc::PROT_EXEC), 0)?]]);
    allow(libc::SYS_mmap, not_executable()?)?;
    allow(libc::SYS_mprotect, not_executable()?)?;
    // `clone3` hides its flags in memory, where no filter sees them; below it does not exist.
    allow(libc::SYS_clone, vec![vec![long(0, SeccompCmpOp::MaskedEq(!THREAD_MAY), THREAD)?]])?;
    allow(libc::SYS_clone3, vec![vec![long(0, SeccompCmpOp::Ge, 0)?]])?;
    // By descriptor only. Beside the flag there could still be a path: in a sealed room it leads nowhere,
    // in a confined one it may tell that something exists, not what is in it (specs/room.md §1).
    let by_descriptor = |at| {
        let flag = libc::AT_EMPTY_PATH as u64;
        Ok::<_, String>(vec![vec![int(at, SeccompCmpOp::MaskedEq(flag), flag)?]])
    };
    allow(libc::SYS_newfstatat, by_descriptor(3)?)?;
    allow(libc::SYS_statx, by_descriptor(2)?)?;
    // Copies and questions; no locks, leases, notifications or pipe sizes, all of which others can see.
    let questions = [libc::F_GETFD, libc::F_SETFD, libc::F_GETFL, libc::F_DUPFD_CLOEXEC];
    let questions = questions
        .into_iter()
        .map(|which| Ok(vec![int(1, SeccompCmpOp::Eq, which as u64)?]))
        .collect::<Result<Vec<_>, String>>()?;
    allow(libc::SYS_fcntl, questions)?;
    // To itself: how a process aborts.
    let own = own.as_raw_pid() as u64;
    allow(libc::SYS_tgkill, vec![vec![int(0, SeccompCmpOp::Eq, own)?]])?;
    // Asking for its own limits, setting none.
    let own_limits = vec![int(0, SeccompCmpOp::Eq, 0)?, long(2, SeccompCmpOp::Eq, 0)?];
    allow(libc::SYS_prlimit64, vec![own_limits])?;
    let naming = || Ok::<_, String>(vec![int(0, SeccompCmpOp::Eq, libc::PR_SET_NAME as u64)?]);
    allow(libc::SYS_prctl, vec![naming()?])?;
    // The rest of the handshake. When standard input has become a pipe there is no socket to use them on,
    // and no way to make one.
    let handshake = || Ok::<_, String>(vec![vec![int(0, SeccompCmpOp::Eq, 0)?]]);
    allow(libc::SYS_sendmsg, handshake()?)?;
    allow(libc::SYS_recvmsg, handshake()?)?;

    // `clone3` is taken back below.
    let allowed = rules.len() - 1;
    let refused = SeccompAction::Errno(libc::EPERM as u32);
    let main = program(rules, refused, SeccompAction::Allow)?;
    // C libraries fall back to `clone` when `clone3` is not there.
    let missing = SeccompAction::Errno(libc::ENOSYS as u32);
    let clone3 = BTreeMap::from([(libc::SYS_clone3, Vec::new())]);
    let clone3 = program(clone3, SeccompAction::Allow, missing)?;
    // Names of threads can be seen from outside. They are taken (no error) and not set.
    let naming = SeccompRule::new(naming()?).map_err(|error| error.to_string())?;
    let naming = BTreeMap::from([(libc::SYS_prctl, vec![naming])]);
    let naming = program(naming, SeccompAction::Allow, SeccompAction::Errno(0))?;

    sys::personality().map_err(|error| format!("it cannot be verified: {error}"))?;
    for filter in [&clone3, &naming, &main] {
        seccompiler::apply_filter(filter).map_err(|error| error.to_string())?;
    }
    match sys::personality() {
        Err(error) if error.raw_os_error() == Some(libc::EPERM) => {
            Ok(format!("{allowed} system calls"))
        }
        _ => Err("it was set and is not in force".to_owned()),
    }
}

/// Restricts the process that waits for the one that computes.
pub(super) fn restrict_warden(room: Pid) -> Result<(), String> {
    let mut rules: Rules = WARDEN_FREE.iter().map(|call| (*call, Vec::new())).collect();
    let room = vec![int(0, SeccompCmpOp::Eq, room.as_raw_pid() as u64)?];
    let room = SeccompRule::new(room).map_err(|error| error.to_string())?;
    rules.insert(libc::SYS_kill, vec![room]);
    let refused = SeccompAction::Errno(libc::EPERM as u32);
    let filter = program(rules, refused, SeccompAction::Allow)?;
    seccompiler::apply_filter(&filter).map_err(|error| error.to_string())
}

fn program(
    rules: Rules,
    otherwise: SeccompAction,
    on_match: SeccompAction,
) -> Result<BpfProgram, String> {
    let architecture = std::env::consts::ARCH
        .try_into()
        .map_err(|_| format!("there is no filter for {}", std::env::consts::ARCH))?;
    SeccompFilter::new(rules, otherwise, on_match, architecture)
        .and_then(BpfProgram::try_from)
        .map_err(|error| error.to_string())
}

/// A condition on all 64 bits of an argument.
fn long(argument: u8, operator: SeccompCmpOp, value: u64) -> Result<SeccompCondition, String> {
    condition(argument, SeccompCmpArgLen::Qword, operator, value)
}

/// A condition on an argument of which the kernel reads 32 bits.
fn int(argument: u8, operator: SeccompCmpOp, value: u64) -> Result<SeccompCondition, String> {
    condition(argument, SeccompCmpArgLen::Dword, operator, value)
}

fn condition(
    argument: u8,
    length: SeccompCmpArgLen,
    operator: SeccompCmpOp,
    value: u64,
) -> Result<SeccompCondition, String> {
    SeccompCondition::new(argument, length, operator, value).map_err(|error| error.to_string())
}
