//! Results that are copied from the device to the host.

use burn::tensor::Tensor;
use kernels::KernelBackend;
use kernels::runtime::{check, synchronise};

use crate::error::GenerateError;

/// Copies logits to the host, as f32 in row-major order, and waits for them.
///
/// # Errors
/// [`GenerateError::Device`] if the copy fails. That a kernel before it has failed is reported by
/// [`settle`] only.
pub(crate) fn read<B: KernelBackend, const D: usize>(
    logits: Tensor<B, D>,
) -> Result<Vec<f32>, GenerateError> {
    let data = logits
        .try_into_data()
        .map_err(|error| GenerateError::Device(error.to_string()))?;
    data.convert::<f32>()
        .into_vec()
        .map_err(|error| GenerateError::Device(format!("{error:?}")))
}

/// [`read`], and then [`settle`].
///
/// # Errors
/// [`GenerateError::Device`].
pub(crate) fn read_settled<B: KernelBackend, const D: usize>(
    logits: Tensor<B, D>,
    device: &B::Device,
) -> Result<Vec<f32>, GenerateError> {
    let logits = read(logits)?;
    settle::<B>(device)?;
    Ok(logits)
}

/// Waits until everything queued on the device is done.
///
/// # Errors
/// [`GenerateError::Device`] if any of it has failed.
pub(crate) fn settle<B: KernelBackend>(device: &B::Device) -> Result<(), GenerateError> {
    synchronise::<B>(device).map_err(|error| GenerateError::Device(error.to_string()))
}

/// Failures on the device that are known so far, without waiting for queued work.
///
/// # Errors
/// [`GenerateError::Device`].
pub(crate) fn check_so_far<B: KernelBackend>(device: &B::Device) -> Result<(), GenerateError> {
    check::<B>(device).map_err(|error| GenerateError::Device(error.to_string()))
}
