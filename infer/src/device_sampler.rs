//! Sampling on the device, where the logits are, for a batch whose rows each have a [`Sampler`]. Backends without such
//! an op leave it to the sampler on the host.

use burn::tensor::{DType, Int, Tensor, TensorData};
use kernels::KernelBackend;
use kernels::decode::queued_read::{QueuedRead, queue_read};
use kernels::decode::sample::{Choice, Fault, Warp};

use crate::error::GenerateError;
use crate::sampling::{Sampler, SamplingError, SamplingSettings};

/// The tokens that the device chooses for the rows of a batch. Work on the device that reads them can be queued before
/// the host knows them.
pub(crate) struct Choosing<B: KernelBackend> {
    /// The tokens `[b]` on the device, in the form that a step reads. Negative where there is none.
    pub ids_b: Tensor<B, 1, Int>,
    read: QueuedRead,
}

impl<B: KernelBackend> Choosing<B> {
    /// Waits for each row's token, or for the reason why the logits give none.
    ///
    /// # Errors
    /// [`GenerateError::Device`].
    pub fn wait(self) -> Result<Vec<Result<u32, SamplingError>>, GenerateError> {
        let ids = self.read.wait();
        let ids = ids.map_err(|error| GenerateError::Device(error.to_string()))?;
        let token = |id: i64| match Fault::of(id) {
            None => Ok(id as u32),
            Some(fault) => Err(fault.into()),
        };
        Ok(ids.iter::<i64>().map(token).collect())
    }
}

/// The data that the device needs about the rows' samplers.
pub(crate) struct DeviceSampler<B: KernelBackend> {
    /// `[b, v]`: 1 for the tokens that a row's repetition penalty applies to, else 0. `None` until a row
    /// has a penalty.
    seen_bv: Option<Tensor<B, 2, Int>>,
    /// `[b, v]`: rows, and logits of each.
    shape: [usize; 2],
    /// The number of logits that belong to tokens: the first ones. The rest is padding.
    vocab_size: usize,
    device: B::Device,
}

impl<B: KernelBackend> DeviceSampler<B> {
    /// For `rows` rows of `logits` logits, of which the first `vocab_size` are tokens.
    pub fn new(rows: usize, vocab_size: usize, logits: usize, device: &B::Device) -> Self {
        Self {
            seen_bv: None,
            shape: [rows, logits],
            vocab_size: vocab_size.min(logits),
            device: device.clone(),
        }
    }

    /// Gives the row to the sequence of `sampler`.
    ///
    /// # Panics
    /// If there is no such row and the sampler has a repetition penalty.
    pub fn begin(&mut self, row: usize, sampler: &Sampler) {
        if sampler.settings().repetition_penalty == 1.0 {
            return;
        }
        let [rows, v] = self.shape;
        let flags = |data, rows| {
            let data = TensorData::new(data, [rows, v]);
            Tensor::<B, 2, Int>::from_data(data, (&self.device, DType::I32))
        };
        let mut own = vec![0_i32; v];
        for &token in sampler.seen() {
            if let Some(flag) = own.get_mut(token as usize) {
                *flag = 1;
            }
        }
        let others = self.seen_bv.take();
        let others = others.unwrap_or_else(|| flags(vec![0; rows * v], rows));
        self.seen_bv = Some(others.slice_assign([row..row + 1, 0..v], flags(own, 1)));
    }

    /// Lets the device choose one token for each row of `logits_bv`, by the rows' `choices`. `None` if the backend
    /// cannot, and the host must choose.
    pub fn choose(&mut self, logits_bv: Tensor<B, 2>, choices: &[Choice]) -> Option<Choosing<B>> {
        let seen_bv = self.seen_bv.as_mut();
        let ids_b = kernels::sample(logits_bv, seen_bv, self.vocab_size, choices)?;
        Some(Choosing {
            read: queue_read(ids_b.clone()),
            ids_b,
        })
    }
}

impl From<Fault> for SamplingError {
    fn from(fault: Fault) -> Self {
        match fault {
            Fault::NoScore => Self::NoToken,
            Fault::NotAScore { token, logit } => Self::NotAScore { token, logit },
        }
    }
}

impl From<&SamplingSettings> for Warp {
    fn from(settings: &SamplingSettings) -> Self {
        Self {
            repetition_penalty: settings.repetition_penalty,
            temperature: settings.temperature,
            top_k: settings.top_k,
            top_p: settings.top_p,
            min_p: settings.min_p,
        }
    }
}
