//! The measurements.

use std::path::Path;
use std::time::Instant;

use burn::module::{Module, ModuleMapper, Param};
use burn::tensor::{DType, Distribution, Int, Tensor, TensorData};
use kernels::KernelBackend;
use model::{CausalLm, ModelConfig, State, WeightForm};
use serde::Serialize;

use crate::device::{read, settle};
use crate::device_sampler::DeviceSampler;
use crate::error::GenerateError;
use crate::generate::PREFILL_TOKENS;
use crate::precision::{Precision, PrecisionError, form_name};
use crate::sampling::{Sampler, SamplingError, SamplingSettings};
use crate::state_size::StateSizes;

/// Passes that are timed together.
const PASSES: usize = 4;

/// Bytes per second that a pass over a tensor on the device reads and writes.
#[derive(Clone, Copy, Debug, Serialize)]
#[serde(transparent)]
pub(crate) struct Bandwidth(pub f64);

impl Bandwidth {
    /// The best of several passes, in place, over a tensor that is larger than any cache. In place, because on a CPU a
    /// new tensor of this size is new memory, and the first access to its pages takes several times as long as the
    /// copy.
    ///
    /// # Errors
    /// [`GenerateError::Device`].
    pub fn measure<B: KernelBackend>(device: &B::Device) -> Result<Self, GenerateError> {
        // On a GPU a pass over this takes a fraction of a millisecond, on a CPU tens of them.
        let count = if B::lanes() == 1 { 1 << 27 } else { 1 << 25 };
        let mut x = Tensor::<B, 1>::ones([count], device);
        let mut best = f64::INFINITY;
        for _ in 0..10 {
            settle::<B>(device)?;
            let begun = Instant::now();
            for _ in 0..PASSES {
                x = x + 1.0;
            }
            settle::<B>(device)?;
            best = best.min(begun.elapsed().as_secs_f64() / PASSES as f64);
        }
        Ok(Self(2.0 * 4.0 * count as f64 / best))
    }
}

/// What was measured of one model, for one size of batch and one length of prompts.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Timing {
    pub model: String,
    /// `student`, `hybrid` or `teacher`, by its mixers.
    pub kind: &'static str,
    pub dtype: String,
    pub batch: usize,
    pub prompt_tokens: usize,
    pub prefill_tokens_per_second: f64,
    pub decode_tokens_per_second: f64,
    pub step_milliseconds: f64,
    /// Bytes of the state of one sequence after the prompt.
    pub state_bytes: usize,
    /// The fewest bytes that a step must read and write.
    pub step_bytes: usize,
    /// `step_bytes` divided by the time of a step, as a share of the [`Bandwidth`].
    pub share_of_bandwidth: f64,
}

/// A model to be timed.
pub(crate) struct Subject<'d, B: KernelBackend> {
    name: String,
    kind: &'static str,
    dtype: String,
    model: CausalLm<B>,
    device: &'d B::Device,
}

impl<'d, B: KernelBackend> Subject<'d, B> {
    /// Loads the model in `folder`; if that is a file but no GGUF file, it is a `config.json`, and the weights are
    /// random.
    ///
    /// # Errors
    /// Every [`PrecisionError`].
    pub fn new(
        name: &Path,
        folder: &Path,
        precision: Precision,
        device: &'d B::Device,
    ) -> Result<Self, PrecisionError> {
        let (config, model) = if !model::is_model(folder) {
            // Allocated like a model that is read from files: see [`Precision::load`].
            B::memory_persistent_allocations(device, (), |()| random(folder, precision, device))?
        } else {
            precision.load(folder, device)?
        };
        let float = model.backbone.embedding.weight.val().dtype();
        let float = format!("{float:?}").to_lowercase();
        Ok(Self {
            name: name.display().to_string(),
            kind: StateSizes::of(&config).architecture,
            dtype: match model.form() {
                WeightForm::Float => float,
                form => format!("{}, {float}", form_name(form)),
            },
            model,
            device,
        })
    }

    /// Times `batch` prompts of `prompt` tokens, and `tokens` steps after them.
    ///
    /// # Errors
    /// [`GenerateError::Device`] and [`GenerateError::Sampling`].
    pub fn measure(
        &self,
        batch: usize,
        prompt: usize,
        tokens: usize,
        bandwidth: Bandwidth,
    ) -> Result<Timing, GenerateError> {
        let mut state = self.read(batch, prompt)?.0;
        let mut prefill = Vec::new();
        for _ in 0..3 {
            drop(state);
            let begun = Instant::now();
            state = self.read(batch, prompt)?.0;
            prefill.push(begun.elapsed().as_secs_f64());
        }
        let state_bytes = state.bytes() / batch;
        let step_bytes = self.model.step_bytes() + state.step_traffic();
        let step = self.write(batch, tokens, state)?;
        Ok(Timing {
            model: self.name.clone(),
            kind: self.kind,
            dtype: self.dtype.clone(),
            batch,
            prompt_tokens: prompt,
            prefill_tokens_per_second: (batch * prompt) as f64 / median(prefill),
            decode_tokens_per_second: batch as f64 / step,
            step_milliseconds: 1e3 * step,
            state_bytes,
            step_bytes,
            share_of_bandwidth: step_bytes as f64 / step / bandwidth.0,
        })
    }

    /// The state after a prompt, and its last logits.
    fn read(&self, batch: usize, prompt: usize) -> Result<(State<B>, Tensor<B, 2>), GenerateError> {
        let vocab_size = self.model.vocab_size();
        let mut state = self.model.new_state(batch, self.device);
        let mut logits = Tensor::zeros([1, 1], self.device);
        let mut at = 0;
        while at < prompt {
            let l = (prompt - at).min(PREFILL_TOKENS);
            let id = |i: usize| ((at + i) * 7919 % vocab_size) as i32;
            let ids: Vec<i32> = (0..batch).flat_map(|_| (0..l).map(id)).collect();
            let ids_bl = TensorData::new(ids, [batch, l]);
            let ids_bl = Tensor::<B, 2, Int>::from_data(ids_bl, self.device);
            logits = self.model.prefill(ids_bl, &mut state);
            at += l;
        }
        settle::<B>(self.device)?;
        Ok((state, logits))
    }

    /// Seconds from one token on the host to the next, the median of `tokens` tokens. If the device chooses the tokens,
    /// a step is queued before the token that it reads is on the host, as in a generation.
    fn write(
        &self,
        batch: usize,
        tokens: usize,
        mut state: State<B>,
    ) -> Result<f64, GenerateError> {
        const WARM: usize = 5;
        let v = self.model.vocab_size();
        let mut sampler = Sampler::new(SamplingSettings::default(), v, &[])?;
        let mut device_sampler = DeviceSampler::new(batch, v, v, self.device);
        let choices = vec![sampler.next_choice(); batch];
        let mut step = |ids_b: Tensor<B, 1, Int>| {
            let logits_bv = self.model.step(ids_b, &mut state);
            let choosing = device_sampler.choose(logits_bv.clone(), &choices);
            (logits_bv, choosing)
        };
        let mut next = step(Tensor::zeros([batch], self.device));
        let mut steps = Vec::with_capacity(tokens);
        for i in 0..WARM + tokens {
            let begun = Instant::now();
            next = match next {
                (logits_bv, Some(choosing)) => {
                    // Frees their memory for the logits of the next step.
                    drop(logits_bv);
                    let next = step(choosing.ids_b.clone());
                    let tokens = choosing.wait()?.into_iter();
                    tokens.collect::<Result<Vec<_>, _>>()?;
                    next
                }
                (logits_bv, None) => {
                    let mut logits_bv = read(logits_bv)?;
                    let rows = logits_bv.chunks_mut(v);
                    let ids = rows.map(|row| sampler.choose_at(row, 0.0).map(|id| id as i32));
                    let ids = ids.collect::<Result<Vec<_>, SamplingError>>()?;
                    step(Tensor::from_data(
                        TensorData::new(ids, [batch]),
                        self.device,
                    ))
                }
            };
            if i >= WARM {
                steps.push(begun.elapsed().as_secs_f64());
            }
        }
        Ok(median(steps))
    }
}

fn median(mut seconds: Vec<f64>) -> f64 {
    seconds.sort_by(f64::total_cmp);
    seconds[seconds.len() / 2]
}

/// The model that the file `config` describes, with random weights that are drawn on the device: the time
/// of a step does not depend on them.
fn random<B: KernelBackend>(
    config: &Path,
    precision: Precision,
    device: &B::Device,
) -> Result<(ModelConfig, CausalLm<B>), PrecisionError> {
    struct Draw<'d, B: KernelBackend>(DType, &'d B::Device);
    impl<B: KernelBackend> ModuleMapper<B> for Draw<'_, B> {
        fn map_float<const D: usize>(
            &mut self,
            parameter: Param<Tensor<B, D>>,
        ) -> Param<Tensor<B, D>> {
            let small = Distribution::Normal(0.0, 0.02);
            let x = Tensor::<B, D>::random(parameter.lazy_shape(), small, self.1);
            Param::initialized(parameter.id, x.cast(self.0))
        }
    }
    let dtype = precision.dtype::<B>(None, device)?;
    let config = model::read_config_file(config)?;
    let model = CausalLm::init(&config, 0, device).map(&mut Draw(dtype, device));
    let model = match precision.form() {
        Some(form) => model.to_form(form),
        None => model,
    };
    Ok((config, model.without_padding()))
}
