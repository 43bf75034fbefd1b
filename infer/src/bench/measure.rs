//! The measurements.

use std::path::Path;
use std::time::Instant;

use burn::module::{Module, ModuleMapper, Param};
use burn::tensor::{DType, Distribution, Int, Tensor, TensorData};
use kernels::KernelBackend;
use kernels::backends::synchronise;
use model::{CausalLm, ModelConfig, State};
use serde::Serialize;

use crate::chooser::Chooser;
use crate::cli::CliError;
use crate::generate::{PREFILL_TOKENS, read};
use crate::memory::Memories;
use crate::precision::Precision;
use crate::{GenerateError, Sampler, SamplingError, SamplingSettings};

/// Bytes a second that a copy reads and writes.
#[derive(Clone, Copy, Debug, Serialize)]
#[serde(transparent)]
pub struct Bandwidth(pub f64);

impl Bandwidth {
    /// The best of several copies of a tensor that no cache holds.
    pub fn measure<B: KernelBackend>(device: &B::Device) -> Result<Self, CliError> {
        // On a GPU a copy of this takes a fraction of a millisecond, on a CPU tens of them.
        let count = if B::lanes() == 1 { 1 << 27 } else { 1 << 25 };
        let x = Tensor::<B, 1>::ones([count], device);
        let mut best = f64::INFINITY;
        for _ in 0..10 {
            synchronise::<B>(device)?;
            let begun = Instant::now();
            let copies: Vec<_> = (0..4).map(|_| drop(x.clone() + 1.0)).collect();
            synchronise::<B>(device)?;
            best = best.min(begun.elapsed().as_secs_f64() / copies.len() as f64);
        }
        Ok(Self(2.0 * 4.0 * count as f64 / best))
    }
}

/// A row of the table.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    pub model: String,
    /// `student`, `hybrid` or `teacher`, by its mixers.
    pub kind: &'static str,
    pub dtype: String,
    pub batch: usize,
    pub prompt_tokens: usize,
    pub prefill_tokens_per_second: f64,
    pub decode_tokens_per_second: f64,
    pub step_milliseconds: f64,
    /// Of one sequence after the prompt.
    pub state_bytes: usize,
    /// What a step must read and write.
    pub step_bytes: usize,
    pub share_of_bandwidth: f64,
}

/// A model to be timed.
pub struct Subject<'d, B: KernelBackend> {
    name: String,
    kind: &'static str,
    dtype: String,
    model: CausalLm<B>,
    device: &'d B::Device,
}

impl<'d, B: KernelBackend> Subject<'d, B> {
    /// Loads a folder's model, or makes one of `config.json` alone.
    pub fn new(
        name: &Path,
        folder: &Path,
        precision: Precision,
        device: &'d B::Device,
    ) -> Result<Self, CliError> {
        let (config, model) = match folder.is_file() {
            true => random(folder, precision, device)?,
            false => precision.load(folder, device)?,
        };
        let float = model.backbone.embedding.weight.val().dtype();
        let float = format!("{float:?}").to_lowercase();
        Ok(Self {
            name: name.display().to_string(),
            kind: Memories::of(&config).architecture,
            dtype: match precision {
                Precision::Int8 => format!("int8, {float}"),
                _ => float,
            },
            model,
            device,
        })
    }

    /// Times `batch` prompts of `prompt` tokens, and `tokens` steps after them.
    pub fn measure(
        &self,
        batch: usize,
        prompt: usize,
        tokens: usize,
        bandwidth: Bandwidth,
    ) -> Result<Row, CliError> {
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
        Ok(Row {
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
    fn read(&self, batch: usize, prompt: usize) -> Result<(State<B>, Tensor<B, 2>), CliError> {
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
        synchronise::<B>(self.device)?;
        Ok((state, logits))
    }

    /// Seconds of a step.
    fn write(&self, batch: usize, tokens: usize, mut state: State<B>) -> Result<f64, CliError> {
        const WARM: usize = 5;
        let logits = self.model.vocab_size();
        let greedy = SamplingSettings::default();
        let mut sampler = Sampler::new(greedy, logits, &[]).map_err(GenerateError::from)?;
        let mut chooser = Chooser::new(batch, logits, logits, self.device);
        let choices = vec![sampler.next_choice(); batch];
        let mut ids_b = Tensor::<B, 1, Int>::zeros([batch], self.device);
        let mut steps = Vec::with_capacity(tokens);
        for i in 0..WARM + tokens {
            let begun = Instant::now();
            let logits_bv = self.model.step(ids_b, &mut state);
            let chosen = chooser.choose(logits_bv.clone(), &choices)?;
            ids_b = match chosen.on_device {
                Some(ids_b) => ids_b,
                None => {
                    let mut logits_bv = read(logits_bv)?;
                    let rows = logits_bv.chunks_mut(logits);
                    let ids = rows.map(|row| sampler.choose_at(row, 0.0).map(|id| id as i32));
                    let ids: Result<Vec<_>, SamplingError> = ids.collect();
                    let ids = ids.map_err(GenerateError::from)?;
                    Tensor::from_data(TensorData::new(ids, [batch]), self.device)
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

/// The architecture that `config` describes with weights that are drawn on the device: a step takes as long
/// with any.
fn random<B: KernelBackend>(
    config: &Path,
    precision: Precision,
    device: &B::Device,
) -> Result<(ModelConfig, CausalLm<B>), CliError> {
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
    match precision {
        Precision::Int8 => Ok((config, model.to_int8())),
        _ => Ok((config, model)),
    }
}
