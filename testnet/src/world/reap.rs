//! Leaves no process behind.
//!
//! Every process started here leads a group of its own. A group is killed when its owner is dropped,
//! which a panic does too, and when this process gets SIGINT or SIGTERM ([`on_signals`]). Should this
//! process be killed outright, nodes end by themselves, since their standard input closes
//! (`node run --with-parent`), and commands end because their node has gone.

use std::collections::BTreeSet;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process_group};

/// Exit code after an interruption.
const INTERRUPTED: i32 = 130;
/// How often a process is looked at that is to end.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// Groups alive, by the process that leads them, and all that ever were.
static GROUPS: Mutex<BTreeSet<i32>> = Mutex::new(BTreeSet::new());
static EVER: Mutex<BTreeSet<i32>> = Mutex::new(BTreeSet::new());
/// Directories to remove with them.
static SCRATCH: Mutex<BTreeSet<PathBuf>> = Mutex::new(BTreeSet::new());

/// A child process with its descendants.
#[derive(Debug)]
pub struct Group {
    child: Child,
    over: Option<ExitStatus>,
}

impl Group {
    /// Starts `command` as the leader of a new group.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn spawn(command: &mut Command) -> std::io::Result<Group> {
        // Under the lock, so that a signal's handler never misses a group that is being made.
        let mut groups = lock(&GROUPS);
        let child = command.process_group(0).spawn()?;
        groups.insert(id(&child));
        lock(&EVER).insert(id(&child));
        Ok(Group { child, over: None })
    }

    /// Its leader, for its pipes.
    pub fn child(&mut self) -> &mut Child {
        &mut self.child
    }

    /// Process id of the leader and of the group.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// How the leader ended, if it has.
    ///
    /// # Errors
    /// Those of the operating system.
    pub fn ended(&mut self) -> std::io::Result<Option<ExitStatus>> {
        if self.over.is_none() {
            // The group's id is free for others once its leader is reaped.
            let mut groups = lock(&GROUPS);
            self.over = self.child.try_wait()?;
            if self.over.is_some() {
                groups.remove(&id(&self.child));
            }
        }
        Ok(self.over)
    }

    /// Sends a signal to the leader alone.
    pub fn signal(&mut self, signal: Signal) {
        if matches!(self.ended(), Ok(None))
            && let Some(pid) = Pid::from_raw(id(&self.child))
        {
            let _ = rustix::process::kill_process(pid, signal);
        }
    }

    /// Waits at most `limit` for the leader's end.
    ///
    /// # Errors
    /// Those of the operating system.
    pub fn wait(&mut self, limit: Duration) -> std::io::Result<Option<ExitStatus>> {
        let since = Instant::now();
        loop {
            let ended = self.ended()?;
            if ended.is_some() || since.elapsed() > limit {
                return Ok(ended);
            }
            std::thread::sleep(LOOK_EVERY);
        }
    }

    /// Kills the leader and its descendants at once (SIGKILL) and waits until the leader is gone.
    pub fn kill(&mut self) {
        if !matches!(self.ended(), Ok(None)) {
            return;
        }
        let mut groups = lock(&GROUPS);
        kill_group(id(&self.child));
        self.over = self.child.wait().ok();
        groups.remove(&id(&self.child));
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        self.kill();
    }
}

/// A directory that is removed when dropped, and on a signal.
#[derive(Debug)]
pub struct Scratch {
    path: PathBuf,
    keep: bool,
}

impl Scratch {
    /// Makes a new directory in the system's place for such.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn new() -> std::io::Result<Scratch> {
        let path = tempfile::Builder::new().prefix("allmend-").tempdir()?.keep();
        lock(&SCRATCH).insert(path.clone());
        Ok(Scratch { path, keep: false })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Leaves it there.
    pub fn keep(&mut self) {
        self.keep = true;
        lock(&SCRATCH).remove(&self.path);
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if !self.keep {
            lock(&SCRATCH).remove(&self.path);
            let _ = std::fs::remove_dir_all(&self.path);
        }
    }
}

/// From now on SIGINT, SIGTERM and SIGHUP kill every group, remove scratch directories and end this
/// process.
///
/// # Errors
/// When signals cannot be caught.
pub fn on_signals() -> anyhow::Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (mut interrupt, mut terminate, mut hang_up) = {
        let _inside = runtime.enter();
        (
            signal(SignalKind::interrupt())?,
            signal(SignalKind::terminate())?,
            signal(SignalKind::hangup())?,
        )
    };
    std::thread::spawn(move || {
        runtime.block_on(async {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
                _ = hang_up.recv() => {}
            }
        });
        // Held until the end: nothing new is started meanwhile.
        let groups = lock(&GROUPS);
        groups.iter().copied().for_each(kill_group);
        for path in lock(&SCRATCH).iter() {
            let _ = std::fs::remove_dir_all(path);
        }
        std::process::exit(INTERRUPTED);
    });
    Ok(())
}

/// Processes of groups whose owner is gone: none, if everything was ended as it should.
pub(super) fn left_behind() -> Vec<String> {
    let (alive, ever) = (lock(&GROUPS).clone(), lock(&EVER).clone());
    let mut found = Vec::new();
    let numbered = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    for pid in numbered.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok()) {
        let proc = |name: &str| std::fs::read_to_string(format!("/proc/{pid}/{name}"));
        let Some(group) = proc("stat").ok().and_then(|stat| group_and_life(&stat)) else {
            continue;
        };
        if ever.contains(&group) && !alive.contains(&group) {
            let words = proc("cmdline").unwrap_or_default().replace('\0', " ");
            found.push(format!("process {pid} still runs: {}", words.trim_end()));
        }
    }
    found
}

/// The group of a process by its `/proc/PID/stat`; none for one that has ended and waits for its parent.
fn group_and_life(stat: &str) -> Option<i32> {
    // Counted after the name in parentheses, which may itself hold blanks: state, parent, group.
    let mut fields = stat.rsplit(')').next()?.split_whitespace();
    let state = fields.next()?;
    let group = fields.nth(1)?.parse().ok()?;
    (state != "Z").then_some(group)
}

fn kill_group(leader: i32) {
    if let Some(group) = Pid::from_raw(leader) {
        let _ = kill_process_group(group, Signal::KILL);
    }
}

fn id(child: &Child) -> i32 {
    i32::try_from(child.id()).unwrap_or_default()
}

/// A panic elsewhere must not keep us from killing what is left.
fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use super::*;

    /// Goal: killing a group kills what its leader started, and what escapes is seen.
    #[test]
    fn a_dropped_group_takes_its_descendants_along() {
        let _alone = crate::world::FORKS.lock();
        let mut command = Command::new("sh");
        command.stdout(std::process::Stdio::piped());
        let script = "sleep 60 & sleep 60 & echo started; wait";
        let mut group = Group::spawn(command.args(["-c", script])).unwrap();
        let leader = id(&group.child);
        let mut said = [0; 7];
        group.child.stdout.take().unwrap().read_exact(&mut said).unwrap();
        assert_eq!(&said, b"started");
        // The leader alone is killed: what it started is left behind.
        group.signal(Signal::KILL);
        group.wait(Duration::from_secs(10)).unwrap().unwrap();
        assert!(!left_behind().is_empty());
        kill_group(leader);
        let mut command = Command::new("sh");
        let mut group = Group::spawn(command.args(["-c", "sleep 61 & sleep 61 & wait"])).unwrap();
        assert!(group.ended().unwrap().is_none());
        drop(group);
        let since = Instant::now();
        while !left_behind().is_empty() {
            assert!(since.elapsed() < Duration::from_secs(10), "{:?}", left_behind());
        }
    }
}
