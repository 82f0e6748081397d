//! What this machine has: cores, memory, accelerators, model formats; and `doctor`.
//!
//! Probing reads the kernel's files and asks NVIDIA's library if it is there. It never guesses: what
//! could not be found out is absent, with the reason.

mod accelerator;
mod clock;
mod cpu;
mod doctor;
mod memory;
mod ports;
mod probe;

pub use accelerator::{Accelerators, Gpu};
pub use clock::{ClockState, clock_state};
pub use cpu::Cpu;
pub use doctor::{Check, Report, Status, Subject, examine};
pub use memory::Memory;
pub use probe::{PROBE_COMMAND, probe_here};

use std::path::Path;

use allmend_engine::Compute;
use allmend_protocol::advert::{ADVERT_LIST_MAX, DeviceCapacity, DeviceKind};
use serde::Serialize;

use crate::config::Limits;
use crate::storage::{Space, space};

/// Everything that was found on this machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Device {
    /// Processor.
    pub cpu: Cpu,
    /// Memory.
    pub memory: Memory,
    /// Accelerators, or why there are none.
    pub accelerators: Accelerators,
    /// Model formats that the engine reads.
    pub formats: Vec<&'static str>,
    /// Room for data; absent if it could not be measured.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub disk: Option<Space>,
}

/// Characters of a device's name in an advert, which takes 120 bytes; names are ASCII but for oddities.
const NAME_CHARS_MAX: usize = 100;

/// Formats that this build's engine reads.
const FORMATS: &[&str] = &["gguf"];

impl Device {
    /// Looks at this machine; `data_dir` says which disk to measure.
    ///
    /// Takes some milliseconds, more if a GPU driver has to wake up.
    #[must_use]
    pub fn probe(data_dir: &Path) -> Self {
        Self {
            cpu: Cpu::probe(),
            memory: Memory::probe(),
            accelerators: Accelerators::probe(),
            formats: FORMATS.to_vec(),
            disk: space(data_dir).ok(),
        }
    }

    /// Threads that one worker computes with: as configured, or the allowed cores shared among the
    /// workers that may be loaded at once, at least one. Slots do not count: all jobs of a worker are
    /// computed together by all of its threads.
    #[must_use]
    pub fn threads_per_worker(&self, limits: &Limits) -> u32 {
        limits.threads.unwrap_or_else(|| (self.cpu.allowed / limits.models_loaded.max(1)).max(1))
    }

    /// MiB that all workers together may use: as configured, or three quarters of what this process
    /// may use.
    #[must_use]
    pub fn memory_for_workers_mib(&self, limits: &Limits) -> u64 {
        limits.memory_mib.unwrap_or_else(|| self.memory.allowed_mib() / 4 * 3)
    }

    /// MiB that one worker may use: an equal share, so that what is loaded already never decides
    /// whether another model fits.
    #[must_use]
    pub fn memory_per_worker_mib(&self, limits: &Limits) -> u64 {
        self.memory_for_workers_mib(limits) / u64::from(limits.models_loaded.max(1))
    }

    /// The arithmetic that workers compute with, as receipts name it.
    #[must_use]
    pub fn numerics(&self) -> &'static str {
        match self.accelerators.first_usable() {
            Some(number) => Compute::Cuda(number as usize).numerics(),
            None => Compute::default().numerics(),
        }
    }

    /// What the node may say that it computes on: the processor, with the memory of one worker, and those GPUs
    /// that have computed the probe.
    #[must_use]
    pub fn advertised(&self, limits: &Limits) -> Vec<DeviceCapacity> {
        let cpu = DeviceCapacity {
            kind: DeviceKind::Cpu,
            name: short(self.cpu.model.as_deref().unwrap_or(self.cpu.architecture)),
            // A job has one model, and a model no more than its worker's share.
            memory_mib: self.memory_per_worker_mib(limits),
            cores: self.cpu.allowed,
        };
        let gpus = self.accelerators.usable().map(|gpu| DeviceCapacity {
            kind: DeviceKind::Cuda,
            name: short(&gpu.name),
            memory_mib: gpu.free_mib.or(gpu.memory_mib).unwrap_or(0),
            cores: gpu.multiprocessors.unwrap_or(0),
        });
        std::iter::once(cpu).chain(gpus).take(ADVERT_LIST_MAX).collect()
    }
}

fn short(name: &str) -> String {
    let mut short: String = name.chars().take(NAME_CHARS_MAX).collect();
    while short.len() > 120 {
        short.pop();
    }
    short
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits(models_loaded: u32) -> Limits {
        Limits {
            slots: 8,
            models_loaded,
            threads: None,
            memory_mib: None,
            context_tokens_max: 1,
            prompt_bytes_max: 1,
            jobs_open_max: 1,
        }
    }

    #[test]
    fn this_machine_has_a_core_and_memory() {
        let device = Device::probe(Path::new("/"));
        assert!(device.cpu.allowed >= 1);
        assert!(device.memory.total_mib.is_some_and(|mib| mib > 0));
        let json = serde_json::to_value(&device).unwrap();
        assert!(json["cpu"]["allowed"].is_number() && json["formats"][0] == "gguf");
    }

    #[test]
    fn automatic_limits_follow_the_machine() {
        let device = Device::probe(Path::new("/"));
        assert_eq!(device.threads_per_worker(&limits(1)), device.cpu.allowed);
        assert_eq!(device.threads_per_worker(&limits(64)), (device.cpu.allowed / 64).max(1));
        assert_eq!(device.threads_per_worker(&limits(0)), device.cpu.allowed);
        assert!(device.memory_for_workers_mib(&limits(1)) < device.memory.allowed_mib());
        let fixed = Limits { threads: Some(3), memory_mib: Some(5), ..limits(2) };
        assert_eq!(
            (device.threads_per_worker(&fixed), device.memory_for_workers_mib(&fixed)),
            (3, 5)
        );
        assert_eq!(device.memory_per_worker_mib(&fixed), 2, "two models share what there is");
    }

    /// Goal: a GPU is in the advert exactly when the probe ran on it.
    #[test]
    fn what_has_not_computed_is_not_advertised() {
        let gpu = |name: &str, unusable: Option<&str>| Gpu {
            name: name.to_owned(),
            memory_mib: Some(81_920),
            free_mib: Some(80_000),
            compute_capability: None,
            multiprocessors: unusable.is_none().then_some(108),
            unusable: unusable.map(str::to_owned),
        };
        let mut device = Device::probe(Path::new("/"));
        let gpus = vec![gpu("broken", Some("no kernel")), gpu(&"ü".repeat(200), None)];
        device.accelerators = Accelerators::Nvidia { driver: None, gpus };
        let advertised = device.advertised(&limits(1));
        assert_eq!(advertised.len(), 2);
        assert_eq!(advertised[0].kind, DeviceKind::Cpu);
        assert_eq!(advertised[0].memory_mib, device.memory_for_workers_mib(&limits(1)));
        assert_eq!(advertised[1].kind, DeviceKind::Cuda);
        assert_eq!((advertised[1].memory_mib, advertised[1].cores), (80_000, 108));
        assert!(advertised[1].name.len() <= 120 && advertised[1].name.starts_with('ü'));
        device.accelerators = Accelerators::None { reason: "x".to_owned() };
        assert_eq!(device.advertised(&limits(1)).len(), 1);
    }
}
