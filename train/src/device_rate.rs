//! How fast the device multiplies matrices, as the reference for the rate of a run's steps.

use std::hint::black_box;
use std::time::{Duration, Instant};

use burn::tensor::{DType, Int, Tensor};
use kernels::KernelBackend;
use kernels::runtime::synchronise;

use crate::error::TrainError;

/// The side of the first matrices, which have the dtype of a run: their product takes a few milliseconds on a CPU.
const SMALL: usize = 512;
/// The side of larger matrices, which fill a GPU. They are measured if the first product took no longer than `SOON`.
const LARGE: usize = 4096;
const SOON: Duration = Duration::from_millis(5);
/// Products of each size, of which the fastest counts; the first ones prepare kernels and memory.
const ROUNDS: usize = 5;

/// Floating-point operations a second of a product of two square matrices in `dtype`, measured in some milliseconds.
/// Larger products, which `train bench` measures, may be faster by some percent.
///
/// # Errors
/// [`TrainError::Device`] if the device fails.
pub(crate) fn device_rate<B: KernelBackend>(
    dtype: DType,
    device: &B::Device,
) -> Result<f64, TrainError> {
    let small = best::<B>(SMALL, dtype, device)?;
    let operations = |n: usize, seconds: f64| 2.0 * (n * n * n) as f64 / seconds;
    if B::queues() && small <= SOON.as_secs_f64() {
        let large = best::<B>(LARGE, dtype, device)?;
        return Ok(operations(LARGE, large));
    }
    Ok(operations(SMALL, small))
}

/// Seconds of the fastest product of two matrices of `n x n`.
fn best<B: KernelBackend>(n: usize, dtype: DType, device: &B::Device) -> Result<f64, TrainError> {
    // The values differ, since a device may need less time and power for equal ones. They come from a sine, not from a
    // random generator.
    let x = Tensor::<B, 1, Int>::arange(0..(n * n) as i64, device);
    let x: Tensor<B, 2> = x.float().sin().reshape([n, n]).cast(dtype);
    let mut best = f64::INFINITY;
    for _ in 0..ROUNDS {
        synchronise::<B>(device)?;
        let begun = Instant::now();
        black_box(kernels::linear(x.clone(), x.clone(), None));
        synchronise::<B>(device)?;
        best = best.min(begun.elapsed().as_secs_f64());
    }
    // A clock that does not advance would make the rate infinite.
    Ok(best.max(1e-9))
}

#[cfg(all(test, feature = "flex"))]
mod tests {
    use kernels::runtime::Flex;

    use super::*;

    /// Between a thousandth and a thousand times what a core of today does.
    #[test]
    fn a_rate_is_measured() {
        let rate = device_rate::<Flex>(DType::F32, &Default::default()).unwrap();
        assert!((1e7..1e15).contains(&rate), "{rate}");
    }
}
