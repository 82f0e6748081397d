//! Accelerators. NVIDIA's are found through its management library, loaded at run time if present.

use nvml_wrapper::Nvml;
use nvml_wrapper::error::NvmlError;
use serde::Serialize;

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
        /// Why this build cannot compute on them; absent if it can.
        #[serde(skip_serializing_if = "Option::is_none")]
        unusable: Option<String>,
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
}

/// A machine with more is a cluster in one box; the rest is left out.
const GPUS_MAX: u32 = 64;

impl Accelerators {
    /// Asks NVIDIA's library, if it is on this machine.
    #[must_use]
    pub fn probe() -> Self {
        match Nvml::init().and_then(|nvml| Self::ask(&nvml)) {
            Ok(found) => found,
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
            })
        });
        Ok(Self::Nvidia {
            driver: nvml.sys_driver_version().ok(),
            gpus: gpus.collect::<Result<_, NvmlError>>()?,
            unusable: Some("this build of the engine computes on the CPU".to_owned()),
        })
    }

    /// One line for a person.
    #[must_use]
    pub fn in_words(&self) -> String {
        match self {
            Self::None { reason } => format!("none: {reason}"),
            Self::Nvidia { gpus, unusable, .. } => {
                let names: Vec<&str> = gpus.iter().map(|gpu| gpu.name.as_str()).collect();
                let found = names.join(", ");
                unusable.as_ref().map_or(found.clone(), |why| format!("{found} (not used: {why})"))
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
    }
}
