//! Whether a GPU really computes with this build: a small product on it, compared with the processor's.
//!
//! A driver that lists a GPU is no proof: the build may lack CUDA or kernels for that generation, another
//! program may hold all of its memory, the card may be broken. What has not computed here is not offered.

use candle_core::{Device, Tensor};
use serde::{Deserialize, Serialize};
use thiserror::Error;

/// A GPU on which the probe ran and came out right.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GpuProbe {
    /// Its multiprocessors, where the driver says.
    pub multiprocessors: Option<u32>,
}

/// Why a GPU is not to be used.
#[derive(Debug, Error)]
pub enum ProbeError {
    /// The feature `cuda` was off.
    #[error("this build of the engine was made without CUDA")]
    NotBuilt,
    /// The device or a kernel did not start.
    #[error("the probe did not run on GPU {index}: {problem}")]
    NotRun {
        /// Which one, as CUDA counts them.
        index: usize,
        /// What the driver or a library says.
        problem: String,
    },
    /// The kernel ran and came out wrong.
    #[error("the probe ran on GPU {index} and came out wrong: {wrong} of {values} values")]
    Wrong {
        /// Which one, as CUDA counts them.
        index: usize,
        /// Values that differ from the processor's.
        wrong: usize,
        /// Values computed.
        values: usize,
    },
}

/// Whether this build can compute on NVIDIA GPUs at all.
#[must_use]
pub fn built_with_cuda() -> bool {
    candle_core::utils::cuda_is_available()
}

/// Computes on one GPU and compares with the processor.
///
/// The driver may hang on a broken card, and whoever has asked holds some of its memory until the process
/// ends: ask from a process that can be ended.
///
/// # Errors
/// [`ProbeError`] says why the GPU is not to be used.
pub fn probe_gpu(index: usize) -> Result<GpuProbe, ProbeError> {
    if !built_with_cuda() {
        return Err(ProbeError::NotBuilt);
    }
    let not_run = |problem: String| ProbeError::NotRun { index, problem };
    // The CUDA bindings panic where a library is missing or too old.
    std::panic::catch_unwind(|| {
        let device = Device::new_cuda(index).map_err(|error| not_run(error.to_string()))?;
        let found = sample(&device).map_err(|error| not_run(error.to_string()))?;
        let expected = sample(&Device::Cpu).map_err(|error| not_run(error.to_string()))?;
        judge(index, &found, &expected)?;
        Ok(GpuProbe { multiprocessors: multiprocessors(&device) })
    })
    .unwrap_or_else(|_| Err(not_run("the CUDA bindings gave up".to_owned())))
}

/// A product through the vendor's library, then candle's own kernels on it. All numbers are small integers
/// or halves, exact in every float type and order that a GPU might use, so results are equal or wrong.
///
/// # Shapes
/// (48, 96) by (96, 80); returns the 48 × 80 values in row-major order.
fn sample(device: &Device) -> candle_core::Result<Vec<f32>> {
    const ROWS: usize = 48;
    const INNER: usize = 96;
    const COLUMNS: usize = 80;
    let values = |count: usize, step: usize| -> Vec<f32> {
        (0..count).map(|at| ((at * step) % 17) as f32 - 8.0).collect()
    };
    let left = Tensor::from_vec(values(ROWS * INNER, 5), (ROWS, INNER), device)?;
    let right = Tensor::from_vec(values(INNER * COLUMNS, 7), (INNER, COLUMNS), device)?;
    left.matmul(&right)?.affine(0.5, 1.0)?.relu()?.flatten_all()?.to_vec1()
}

fn judge(index: usize, found: &[f32], expected: &[f32]) -> Result<(), ProbeError> {
    let agree = found.iter().zip(expected).filter(|(a, b)| a == b).count();
    let values = found.len().max(expected.len());
    if agree == values && values > 0 {
        Ok(())
    } else {
        Err(ProbeError::Wrong { index, wrong: values - agree, values })
    }
}

#[cfg(feature = "cuda")]
fn multiprocessors(device: &Device) -> Option<u32> {
    use candle_core::cuda_backend::cudarc::driver::sys::CUdevice_attribute;
    let stream = device.as_cuda_device().ok()?.cuda_stream();
    let attribute = CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT;
    stream.context().attribute(attribute).ok()?.try_into().ok()
}

#[cfg(not(feature = "cuda"))]
fn multiprocessors(_: &Device) -> Option<u32> {
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: the probe's numbers are exact, so that comparing for equality is fair to every GPU.
    #[test]
    fn the_sample_is_exact_in_the_coarsest_arithmetic_of_a_gpu() {
        let sample = sample(&Device::Cpu).unwrap();
        assert_eq!(sample.len(), 48 * 80);
        assert!(sample.iter().any(|value| *value > 0.0), "relu must leave something to compare");
        let inner: Vec<f64> = (0..48 * 80)
            .map(|at| {
                let (row, column) = (at / 80, at % 80);
                let value = |at: usize, step: usize| ((at * step) % 17) as f64 - 8.0;
                (0..96).map(|k| value(row * 96 + k, 5) * value(k * 80 + column, 7)).sum()
            })
            .collect();
        for (found, exact) in sample.iter().zip(&inner) {
            assert_eq!(f64::from(*found), (exact * 0.5 + 1.0).max(0.0));
            // Below 2^11 × 8 even a sum of half-precision products has no rounding to do in F32.
            assert!(exact.abs() < 16_384.0);
        }
    }

    #[test]
    fn one_wrong_value_or_none_at_all_is_refused() {
        let right = sample(&Device::Cpu).unwrap();
        assert!(judge(0, &right, &right).is_ok());
        let mut wrong = right.clone();
        wrong[77] = f32::NAN;
        wrong[78] += 1.0;
        assert!(matches!(
            judge(3, &wrong, &right),
            Err(ProbeError::Wrong { index: 3, wrong: 2, .. })
        ));
        assert!(matches!(judge(0, &[], &[]), Err(ProbeError::Wrong { .. })));
        assert!(matches!(judge(0, &right[1..], &right), Err(ProbeError::Wrong { .. })));
    }

    #[test]
    fn without_cuda_or_without_a_gpu_the_probe_says_so() {
        let error = probe_gpu(0).map(|_| ()).err();
        if built_with_cuda() {
            // A machine with a working GPU may also pass.
            assert!(matches!(error, None | Some(ProbeError::NotRun { index: 0, .. })));
        } else {
            assert!(matches!(error, Some(ProbeError::NotBuilt)));
        }
    }
}
