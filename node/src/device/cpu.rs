//! Cores and instruction sets.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::thread;

use serde::Serialize;

/// A processor as this process may use it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Cpu {
    /// Its name, as the kernel tells it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// `x86_64`, `aarch64`, …
    pub architecture: &'static str,
    /// Physical cores of the machine.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub physical: Option<u32>,
    /// Hardware threads of the machine that are online.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub logical: Option<u32>,
    /// Threads this process may keep busy: by affinity and by the quota of its control group.
    pub allowed: u32,
    /// Instruction sets that the engine makes use of.
    pub features: Vec<&'static str>,
}

impl Cpu {
    /// Looks at this machine.
    #[must_use]
    pub fn probe() -> Self {
        let info = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        // The standard library heeds affinity and the quotas of both generations of cgroups.
        let allowed = thread::available_parallelism().map_or(1, |count| count.get());
        Self {
            model: model_name(&info),
            architecture: std::env::consts::ARCH,
            physical: physical_cores(Path::new("/sys/devices/system/cpu")),
            logical: fs::read_to_string("/sys/devices/system/cpu/online")
                .ok()
                .and_then(|list| list_len(&list)),
            allowed: u32::try_from(allowed).unwrap_or(u32::MAX),
            features: features(),
        }
    }
}

fn model_name(cpuinfo: &str) -> Option<String> {
    cpuinfo
        .lines()
        .filter_map(|line| line.split_once(':'))
        .find(|(key, _)| matches!(key.trim(), "model name" | "Model"))
        .map(|(_, name)| name.trim().to_owned())
}

/// Distinct (package, core) pairs of the processors in sysfs.
fn physical_cores(sysfs: &Path) -> Option<u32> {
    let mut cores = BTreeSet::new();
    for entry in fs::read_dir(sysfs).ok()?.flatten() {
        let name = entry.file_name();
        let number = name.to_str().and_then(|name| name.strip_prefix("cpu"));
        if !number.is_some_and(|n| !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit())) {
            continue;
        }
        let read = |file: &str| {
            let text = fs::read_to_string(entry.path().join("topology").join(file)).ok()?;
            Some(text.trim().to_owned())
        };
        if let (Some(package), Some(core)) = (read("physical_package_id"), read("core_id")) {
            cores.insert((package, core));
        }
    }
    u32::try_from(cores.len()).ok().filter(|count| *count > 0)
}

/// How many numbers a kernel list such as `0-3,8` names.
fn list_len(list: &str) -> Option<u32> {
    list.trim().split(',').try_fold(0u32, |sum, range| {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let (first, last): (u32, u32) = (first.parse().ok()?, last.parse().ok()?);
        sum.checked_add(last.checked_sub(first)?.checked_add(1)?)
    })
}

#[cfg(target_arch = "x86_64")]
fn features() -> Vec<&'static str> {
    use std::arch::is_x86_feature_detected as has;
    let known = [
        ("avx2", has!("avx2")),
        ("fma", has!("fma")),
        ("f16c", has!("f16c")),
        ("avx512f", has!("avx512f")),
        ("avx512_vnni", has!("avx512vnni")),
        ("avx512_bf16", has!("avx512bf16")),
        ("avx_vnni", has!("avxvnni")),
    ];
    known.into_iter().filter(|(_, there)| *there).map(|(name, _)| name).collect()
}

#[cfg(target_arch = "aarch64")]
fn features() -> Vec<&'static str> {
    use std::arch::is_aarch64_feature_detected as has;
    let known = [
        ("neon", has!("neon")),
        ("dotprod", has!("dotprod")),
        ("i8mm", has!("i8mm")),
        ("fp16", has!("fp16")),
    ];
    known.into_iter().filter(|(_, there)| *there).map(|(name, _)| name).collect()
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
fn features() -> Vec<&'static str> {
    Vec::new()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn kernel_lists_are_counted() {
        assert_eq!(list_len("0-3,8\n"), Some(5));
        assert_eq!(list_len("0"), Some(1));
        assert_eq!(list_len("3-1"), None);
        assert_eq!(list_len("0-4294967295"), None);
    }

    #[test]
    fn threads_of_one_core_count_once() {
        let dir = tempfile::tempdir().unwrap();
        for (cpu, core) in [("cpu0", "0"), ("cpu1", "1"), ("cpu2", "0"), ("cpu3", "1")] {
            let topology = dir.path().join(cpu).join("topology");
            fs::create_dir_all(&topology).unwrap();
            fs::write(topology.join("physical_package_id"), "0\n").unwrap();
            fs::write(topology.join("core_id"), core).unwrap();
        }
        fs::create_dir(dir.path().join("cpufreq")).unwrap();
        assert_eq!(physical_cores(dir.path()), Some(2));
        assert_eq!(physical_cores(&dir.path().join("none")), None);
    }

    #[test]
    fn the_name_is_found() {
        let info = "processor\t: 0\nmodel name\t: Some CPU @ 2.0GHz\n";
        assert_eq!(model_name(info).as_deref(), Some("Some CPU @ 2.0GHz"));
        assert_eq!(model_name(""), None);
    }

    proptest! {
        #[test]
        fn no_kernel_text_panics(text: String) {
            let _ = (list_len(&text), model_name(&text));
        }
    }
}
