//! What comes back from the device.

use burn::tensor::Tensor;
use kernels::KernelBackend;
use kernels::backends::synchronise;

use crate::GenerateError;
use crate::generate::read;

/// Waits for logits, and for the word that nothing on the way to them has failed.
///
/// # Errors
///
/// [`GenerateError::Device`].
pub(super) fn read_logits<B: KernelBackend, const D: usize>(
    logits: Tensor<B, D>,
    device: &B::Device,
) -> Result<Vec<f32>, GenerateError> {
    let logits = read(logits)?;
    settle::<B>(device)?;
    Ok(logits)
}

/// Waits for the word that nothing that the device was asked to do has failed.
///
/// # Errors
///
/// [`GenerateError::Device`].
pub(super) fn settle<B: KernelBackend>(device: &B::Device) -> Result<(), GenerateError> {
    synchronise::<B>(device).map_err(|error| GenerateError::Device(error.to_string()))
}
