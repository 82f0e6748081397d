//! A control group (cgroup v2) of the room's own, in a directory that was delegated to the node.

use std::path::{Path, PathBuf};

/// A group with its bounds set. Dropping it removes the directory, which needs its processes gone.
#[derive(Debug)]
pub(super) struct Cgroup {
    directory: PathBuf,
}

impl Cgroup {
    /// Makes one in `parent` and moves the process `pid` there.
    ///
    /// # Errors
    /// In words, naming the file that refused.
    pub(super) fn make(
        parent: &Path,
        pid: u32,
        memory_max_bytes: u64,
        threads_max: u32,
    ) -> Result<Cgroup, String> {
        let directory = parent.join(format!("allmend-room-{pid}"));
        std::fs::create_dir(&directory)
            .map_err(|error| format!("no group can be made there: {error}"))?;
        let group = Cgroup { directory };
        group.bound(memory_max_bytes, threads_max)?;
        group.write("cgroup.procs", &pid.to_string())?;
        Ok(group)
    }

    fn bound(&self, memory_max_bytes: u64, threads_max: u32) -> Result<(), String> {
        // Pages of what is handed in count here too, but can be dropped again.
        self.set("memory.max", memory_max_bytes)?;
        // Memory that is swapped out would be data on a disk. Absent where there is no swap.
        if self.directory.join("memory.swap.max").exists() {
            self.set("memory.swap.max", 0)?;
        }
        // The warden is in the group as well, and while it is probed the decoy.
        self.set("pids.max", u64::from(threads_max) + 2)
    }

    /// Sets a bound and reads it back; the kernel rounds down to pages.
    fn set(&self, file: &str, value: u64) -> Result<(), String> {
        self.write(file, &value.to_string())?;
        let read = std::fs::read_to_string(self.directory.join(file))
            .map_err(|error| format!("{file} cannot be read: {error}"))?;
        match read.trim().parse::<u64>() {
            Ok(read) if read <= value => Ok(()),
            _ => Err(format!("{file} was set and does not read back")),
        }
    }

    fn write(&self, file: &str, text: &str) -> Result<(), String> {
        // Never made: where the controller is not delegated the file is not there.
        std::fs::OpenOptions::new()
            .write(true)
            .open(self.directory.join(file))
            .and_then(|mut file| std::io::Write::write_all(&mut file, text.as_bytes()))
            .map_err(|error| format!("{file} cannot be written: {error}"))
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        // Left behind empty if it fails, which costs nothing and is seen by the operator.
        let _ = std::fs::remove_dir(&self.directory);
    }
}

/// A cgroup v2 directory in which this process may make groups that bound memory and threads: where it
/// is itself, or one above (a group with processes in it may not have bounded ones below).
///
/// # Errors
/// In words, when there is none.
pub fn delegated_cgroup() -> Result<PathBuf, String> {
    let read = |file: &str| {
        std::fs::read_to_string(file).map_err(|error| format!("{file} cannot be read: {error}"))
    };
    let own = own_group(&read("/proc/self/cgroup")?, &read("/proc/self/mountinfo")?)
        .ok_or("cgroup v2 is not mounted")?;
    own.ancestors()
        .take(2)
        .find(|directory| is_delegated(directory))
        .map(Path::to_owned)
        .ok_or_else(|| "no memory and pids controllers are delegated to this process".to_owned())
}

/// Where a process's group is in the file system, from its `cgroup` and `mountinfo` (cgroups(7), proc(5)).
fn own_group(cgroup: &str, mountinfo: &str) -> Option<PathBuf> {
    let group = cgroup.lines().find_map(|line| line.strip_prefix("0::/"))?;
    let mount = mountinfo.lines().find_map(|line| {
        let (left, right) = line.split_once(" - ")?;
        let is_v2 = right.split(' ').next() == Some("cgroup2");
        is_v2.then(|| left.split(' ').nth(4)).flatten()
    })?;
    // `Path::join` would let a group that begins with a slash replace the mount point.
    Some(Path::new(mount).join(group.trim_start_matches('/')))
}

fn is_delegated(directory: &Path) -> bool {
    let controllers = std::fs::read_to_string(directory.join("cgroup.subtree_control"));
    let bounded = controllers.is_ok_and(|controllers| {
        ["memory", "pids"].iter().all(|wanted| controllers.split_whitespace().any(|c| c == *wanted))
    });
    bounded && rustix::fs::access(directory, rustix::fs::Access::WRITE_OK).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_its_group_on_pure_and_hybrid_machines() {
        let pure = "30 23 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n";
        let group = "0::/user.slice/allmend.service/node\n";
        let found = own_group(group, pure).unwrap();
        assert_eq!(found, Path::new("/sys/fs/cgroup/user.slice/allmend.service/node"));
        let hybrid = "30 23 0:26 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n\
                      31 23 0:27 / /sys/fs/cgroup/unified rw shared:9 - cgroup2 cgroup2 rw\n";
        let found = own_group("4:memory:/job\n0::/\n", hybrid).unwrap();
        assert_eq!(found, Path::new("/sys/fs/cgroup/unified"));
        assert_eq!(own_group("4:memory:/job\n", hybrid), None);
        assert_eq!(own_group(group, ""), None);
    }

    /// On plain files: what is written where. That the kernel heeds it needs a machine that delegates.
    #[test]
    fn bounds_memory_swap_and_threads() {
        let parent = tempfile::tempdir().unwrap();
        let group = Cgroup { directory: parent.path().join("group") };
        std::fs::create_dir(&group.directory).unwrap();
        for file in ["memory.max", "memory.swap.max", "pids.max"] {
            std::fs::write(group.directory.join(file), "").unwrap();
        }
        group.bound(1 << 30, 8).unwrap();
        let read = |file| std::fs::read_to_string(group.directory.join(file)).unwrap();
        assert_eq!(read("memory.max"), "1073741824");
        assert_eq!(read("memory.swap.max"), "0");
        assert_eq!(read("pids.max"), "10");
        std::fs::write(parent.path().join("cgroup.subtree_control"), "cpu memory pids\n").unwrap();
        assert!(is_delegated(parent.path()));
        std::fs::write(parent.path().join("cgroup.subtree_control"), "cpu memory\n").unwrap();
        assert!(!is_delegated(parent.path()));
    }

    #[test]
    fn a_group_without_its_controllers_is_an_error_and_leaves_nothing() {
        let parent = tempfile::tempdir().unwrap();
        assert!(!is_delegated(parent.path()));
        let why = Cgroup::make(parent.path(), 1, 1 << 30, 8).unwrap_err();
        assert!(why.starts_with("memory.max cannot be written"), "{why}");
        assert_eq!(std::fs::read_dir(parent.path()).unwrap().count(), 0);
    }
}
