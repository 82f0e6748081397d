//! Accelerators. NVIDIA's are found through its management library, loaded at run time if present; which of
//! them can be used is found out by having each compute something.

use allmend_engine::GpuProbe;
use nvml_wrapper::Nvml;
use nvml_wrapper::error::NvmlError;
use serde::Serialize;

use super::probe::probe_apart;

/// What was found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case", tag = "found")]
pub enum Accelerators {
    /// No accelerator, or none that can be asked.
    None {
        /// Why, in words.
        reason: String,
    },
    /// NVIDIA GPUs.
    Nvidia {
        /// Version of the driver.
        #[serde(skip_serializing_if = "Option::is_none")]
        driver: Option<String>,
        /// Each of them.
        gpus: Vec<Gpu>,
    },
}

/// One GPU.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Gpu {
    /// Its name.
    pub name: String,
    /// Its memory in MiB.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_mib: Option<u64>,
    /// Of that, free now.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub free_mib: Option<u64>,
    /// CUDA compute capability, such as `8.0`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub compute_capability: Option<String>,
    /// Its multiprocessors, if it has been used.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub multiprocessors: Option<u32>,
    /// Why no job runs on it; absent if it has computed the probe, and rightly.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unusable: Option<String>,
}

/// A machine with more is a cluster in one box; the rest is left out.
const GPUS_MAX: u32 = 64;

impl Accelerators {
    /// Asks NVIDIA's library, if it is on this machine, and tries each GPU that it knows. That takes
    /// seconds for each in a build that can use them, and nothing in one that cannot.
    #[must_use]
    pub fn probe() -> Self {
        match Nvml::init().and_then(|nvml| Self::ask(&nvml)) {
            Ok(found) => found.tried(&probe_apart),
            Err(error) => Self::None { reason: in_words(&error) },
        }
    }

    fn ask(nvml: &Nvml) -> Result<Self, NvmlError> {
        let count = nvml.device_count()?;
        if count == 0 {
            let reason = "the NVIDIA driver is here but finds no GPU".to_owned();
            return Ok(Self::None { reason });
        }
        let gpus = (0..count.min(GPUS_MAX)).map(|index| {
            let device = nvml.device_by_index(index)?;
            let memory = device.memory_info().ok();
            let mib = |bytes: u64| bytes / (1024 * 1024);
            Ok(Gpu {
                name: device.name()?,
                memory_mib: memory.as_ref().map(|memory| mib(memory.total)),
                free_mib: memory.as_ref().map(|memory| mib(memory.free)),
                compute_capability: device
                    .cuda_compute_capability()
                    .ok()
                    .map(|capability| format!("{}.{}", capability.major, capability.minor)),
                multiprocessors: None,
                unusable: Some("it has not been tried".to_owned()),
            })
        });
        Ok(Self::Nvidia {
            driver: nvml.sys_driver_version().ok(),
            gpus: gpus.collect::<Result<_, NvmlError>>()?,
        })
    }

    /// Notes of each GPU what came of trying it, by its index.
    fn tried(mut self, try_one: &dyn Fn(u32) -> Result<GpuProbe, String>) -> Self {
        if let Self::Nvidia { gpus, .. } = &mut self {
            for (index, gpu) in (0..).zip(gpus) {
                let outcome = try_one(index);
                gpu.multiprocessors = outcome.as_ref().ok().and_then(|probe| probe.multiprocessors);
                gpu.unusable = outcome.err();
            }
        }
        self
    }

    /// The number of the GPU that jobs run on: the first that has computed something here.
    #[must_use]
    pub fn first_usable(&self) -> Option<u32> {
        let Self::Nvidia { gpus, .. } = self else { return None };
        let at = gpus.iter().position(|gpu| gpu.unusable.is_none())?;
        u32::try_from(at).ok()
    }

    /// The GPUs that have computed something here.
    pub fn usable(&self) -> impl Iterator<Item = &Gpu> {
        let gpus = match self {
            Self::None { .. } => &[][..],
            Self::Nvidia { gpus, .. } => gpus,
        };
        gpus.iter().filter(|gpu| gpu.unusable.is_none())
    }

    /// One line for a person.
    #[must_use]
    pub fn in_words(&self) -> String {
        match self {
            Self::None { reason } => format!("none: {reason}"),
            Self::Nvidia { gpus, .. } => {
                let told = gpus.iter().map(|gpu| match &gpu.unusable {
                    None => gpu.name.clone(),
                    Some(why) => format!("{} (not used: {why})", gpu.name),
                });
                told.collect::<Vec<_>>().join(", ")
            }
        }
    }
}

fn in_words(error: &NvmlError) -> String {
    match error {
        NvmlError::LibloadingError(_) | NvmlError::LibraryNotFound => {
            "NVIDIA's driver library (libnvidia-ml) is not on this machine".to_owned()
        }
        NvmlError::DriverNotLoaded => "NVIDIA's kernel driver is not loaded".to_owned(),
        NvmlError::NoPermission => "this user may not talk to NVIDIA's driver".to_owned(),
        other => format!("NVIDIA's library says: {other}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn absence_has_a_reason() {
        match Accelerators::probe() {
            Accelerators::None { reason } => assert!(!reason.is_empty()),
            Accelerators::Nvidia { gpus, .. } => assert!(!gpus.is_empty()),
        }
        let none = Accelerators::None { reason: "x".into() };
        assert_eq!(none.in_words(), "none: x");
        assert_eq!(serde_json::to_value(&none).unwrap()["found"], "none");
        assert_eq!(none.usable().count(), 0);
    }

    fn gpu(name: &str) -> Gpu {
        Gpu {
            name: name.to_owned(),
            memory_mib: Some(81_920),
            free_mib: Some(80_000),
            compute_capability: Some("8.0".to_owned()),
            multiprocessors: None,
            unusable: Some("it has not been tried".to_owned()),
        }
    }

    #[test]
    fn only_a_gpu_that_has_computed_is_usable_and_the_others_say_why() {
        let gpus = vec![gpu("first"), gpu("second"), gpu("third")];
        let found = Accelerators::Nvidia { driver: None, gpus };
        assert_eq!(found.usable().count(), 0, "none is usable untried");
        let found = found.tried(&|index| match index {
            1 => Ok(GpuProbe { multiprocessors: Some(108) }),
            0 => Err("out of memory".to_owned()),
            _ => Err("it came out wrong".to_owned()),
        });
        let usable: Vec<&Gpu> = found.usable().collect();
        assert_eq!((usable.len(), usable[0].name.as_str()), (1, "second"));
        assert_eq!(usable[0].multiprocessors, Some(108));
        assert_eq!(
            found.in_words(),
            "first (not used: out of memory), second, third (not used: it came out wrong)"
        );
    }
}
