//! Memory of the machine, and what this process may take of it.

use std::fs;
use std::path::{Path, PathBuf};

use serde::Serialize;

/// Memory in MiB; absent values could not be found out.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Memory {
    /// Of the machine.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub total_mib: Option<u64>,
    /// What the kernel could give now without swapping.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub available_mib: Option<u64>,
    /// The smallest limit of the control groups this process is in.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cgroup_limit_mib: Option<u64>,
}

impl Memory {
    /// Looks at this machine.
    #[must_use]
    pub fn probe() -> Self {
        let info = fs::read_to_string("/proc/meminfo").unwrap_or_default();
        let groups = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
        let limit = cgroup_limit(Path::new("/sys/fs/cgroup"), &groups);
        let total_mib = meminfo_mib(&info, "MemTotal");
        Self {
            total_mib,
            available_mib: meminfo_mib(&info, "MemAvailable"),
            // "No limit" is written as a number larger than any memory.
            cgroup_limit_mib: limit
                .map(|bytes| bytes / (1024 * 1024))
                .filter(|mib| total_mib.is_none_or(|total| *mib < total)),
        }
    }

    /// What this process may take at most: the machine's memory or its control group's limit.
    #[must_use]
    pub fn allowed_mib(&self) -> u64 {
        let total = self.total_mib.unwrap_or(0);
        self.cgroup_limit_mib.map_or(total, |limit| limit.min(total))
    }
}

fn meminfo_mib(meminfo: &str, key: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib / 1024)
}

/// The smallest limit from the group of this process up to the root, in bytes.
///
/// `groups` is `/proc/self/cgroup`: `0::/path` for version 2, `5:memory:/path` for version 1.
fn cgroup_limit(root: &Path, groups: &str) -> Option<u64> {
    let limits = groups.lines().filter_map(|line| {
        let mut fields = line.splitn(3, ':');
        let (_, controllers, path) = (fields.next()?, fields.next()?, fields.next()?);
        let (base, file) = match controllers {
            "" => (root.to_owned(), "memory.max"),
            names if names.split(',').any(|name| name == "memory") => {
                (root.join("memory"), "memory.limit_in_bytes")
            }
            _ => return None,
        };
        smallest(&base, path, file)
    });
    limits.min()
}

fn smallest(base: &Path, path: &str, file: &str) -> Option<u64> {
    let relative: PathBuf = Path::new(path.trim_start_matches('/')).components().collect();
    // In a container the path may name a group outside of what is mounted; the root then counts.
    relative
        .ancestors()
        .filter_map(|group| fs::read_to_string(base.join(group).join(file)).ok())
        .filter_map(|text| text.trim().parse().ok())
        .min()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn meminfo_is_read_in_mib() {
        let info = "MemTotal:       24576000 kB\nMemAvailable:   1024 kB\n";
        assert_eq!(meminfo_mib(info, "MemTotal"), Some(24_000));
        assert_eq!(meminfo_mib(info, "MemAvailable"), Some(1));
        assert_eq!(meminfo_mib(info, "Mem"), None);
    }

    #[test]
    fn the_smallest_group_limit_counts() {
        let dir = tempfile::tempdir().unwrap();
        let group = dir.path().join("system.slice/allmend.service");
        fs::create_dir_all(&group).unwrap();
        fs::write(dir.path().join("system.slice/memory.max"), "1000\n").unwrap();
        fs::write(group.join("memory.max"), "max\n").unwrap();
        let groups = "0::/system.slice/allmend.service\n";
        assert_eq!(cgroup_limit(dir.path(), groups), Some(1000));
        fs::create_dir_all(dir.path().join("memory")).unwrap();
        fs::write(dir.path().join("memory/memory.limit_in_bytes"), "500").unwrap();
        assert_eq!(cgroup_limit(dir.path(), "5:cpu,memory:/docker/x\n"), Some(500));
        assert_eq!(cgroup_limit(dir.path(), "1:name=systemd:/\n"), None);
    }

    #[test]
    fn a_group_limit_bounds_what_is_allowed() {
        let memory =
            Memory { total_mib: Some(100), available_mib: None, cgroup_limit_mib: Some(40) };
        assert_eq!(memory.allowed_mib(), 40);
        assert_eq!(Memory { cgroup_limit_mib: None, ..memory }.allowed_mib(), 100);
    }

    proptest! {
        #[test]
        fn no_kernel_text_panics(text: String) {
            let _ = meminfo_mib(&text, "MemTotal");
            let _ = cgroup_limit(Path::new("/nonexistent"), &text);
        }
    }
}
