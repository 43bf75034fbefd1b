//! Tokens chosen where their logits are: on the device if the backend can, or else on the host.

use burn::tensor::{DType, Int, Tensor, TensorData};
use kernels::KernelBackend;
use kernels::choice::Warp;

use crate::generate::read;
use crate::sampling::Sampler;
use crate::{GenerateError, SamplingSettings};

/// A token, and its id on the device if it was chosen there: so it need not come back.
pub(crate) struct Chosen<B: KernelBackend> {
    pub id: u32,
    pub on_device: Option<Tensor<B, 1, Int>>,
}

/// A [`Sampler`] and its memory on the device.
pub(crate) struct Chooser<B: KernelBackend> {
    sampler: Sampler,
    /// `[v]`, 1 for the tokens that the repetition penalty is for; there if it is on.
    seen: Option<Tensor<B, 1, Int>>,
}

impl<B: KernelBackend> Chooser<B> {
    /// For a model with `logits` of them, of which the first `vocab_size` are tokens.
    ///
    /// # Errors
    ///
    /// [`SamplingError::Setting`](crate::SamplingError::Setting).
    pub fn new(
        settings: SamplingSettings,
        vocab_size: usize,
        logits: usize,
        prompt: &[u32],
        device: &B::Device,
    ) -> Result<Self, GenerateError> {
        let sampler = Sampler::new(settings, vocab_size.min(logits), prompt)?;
        let seen = (settings.repetition_penalty != 1.0).then(|| {
            let mut seen = vec![0_i32; logits];
            for &token in prompt {
                seen[token as usize] = 1;
            }
            Tensor::from_data(TensorData::new(seen, [logits]), (device, DType::I32))
        });
        Ok(Self { sampler, seen })
    }

    /// Chooses from `logits [v]`, and waits for the choice.
    ///
    /// # Errors
    ///
    /// [`GenerateError::Sampling`] and [`GenerateError::Device`].
    pub fn choose(&mut self, logits: Tensor<B, 1>) -> Result<Chosen<B>, GenerateError> {
        let point = self.sampler.point();
        let (seen, vocab_size) = (self.seen.as_mut(), self.sampler.vocab_size());
        let warp = Warp::from(self.sampler.settings());
        if let Some(chosen) = kernels::choose(logits.clone(), seen, vocab_size, warp, point) {
            let data = chosen.clone().try_into_data();
            let data = data.map_err(|error| GenerateError::Device(error.to_string()))?;
            let id = data.iter::<i64>().next().unwrap_or(-1);
            if let Ok(id) = u32::try_from(id) {
                self.sampler.saw(id);
                let on_device = Some(chosen);
                return Ok(Chosen { id, on_device });
            }
            // What is wrong with the logits, the host says.
        }
        let id = self.sampler.choose_at(&mut read(logits)?, point)?;
        Ok(Chosen {
            id,
            on_device: None,
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
