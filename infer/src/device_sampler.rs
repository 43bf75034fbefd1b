//! Sampling on the device, where the logits are, for the rows of a batch that each have a [`Sampler`]. What
//! the device cannot choose is left to the sampler on the host.

use burn::tensor::{DType, Int, Tensor, TensorData};
use kernels::KernelBackend;
use kernels::decode::sample::{Choice, Warp};

use crate::error::GenerateError;
use crate::sampling::{Sampler, SamplingSettings};

/// The tokens that the device has chosen for the rows of a batch.
pub(crate) struct Chosen<B: KernelBackend> {
    /// Each row's token; `None` where the host must choose, or find out what is wrong with the logits.
    pub tokens: Vec<Option<u32>>,
    /// The tokens `[b]` on the device; `None` if any is missing.
    pub on_device: Option<Tensor<B, 1, Int>>,
}

/// What the device needs to know of the rows' samplers.
pub(crate) struct DeviceSampler<B: KernelBackend> {
    /// `[b, v]`: 1 for the tokens that a row's repetition penalty applies to, else 0. `None` until a row
    /// has a penalty.
    seen_bv: Option<Tensor<B, 2, Int>>,
    /// `[b, v]`: rows, and logits of each.
    shape: [usize; 2],
    /// How many of the logits are tokens: the first ones. The rest is padding.
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

    /// Chooses one token for each row of `logits_bv` by the rows' `choices`, and waits for them.
    ///
    /// # Errors
    /// [`GenerateError::Device`].
    pub fn choose(
        &mut self,
        logits_bv: Tensor<B, 2>,
        choices: &[Choice],
    ) -> Result<Chosen<B>, GenerateError> {
        let ids_b = kernels::sample(logits_bv, self.seen_bv.as_mut(), self.vocab_size, choices);
        let Some(ids_b) = ids_b else {
            return Ok(Chosen {
                tokens: vec![None; choices.len()],
                on_device: None,
            });
        };
        let data = ids_b.clone().try_into_data();
        let data = data.map_err(|error| GenerateError::Device(error.to_string()))?;
        let tokens: Vec<_> = data
            .iter::<i64>()
            .map(|id| u32::try_from(id).ok())
            .collect();
        let all = tokens.iter().all(Option::is_some);
        Ok(Chosen {
            tokens,
            on_device: all.then_some(ids_b),
        })
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
