//! Softmax attention: the teachers' mixer, and a hybrid's in the layers that keep it.

mod cache;
mod config;
mod forward;
mod heads;

use burn::module::{Module, Param};
use burn::tensor::Tensor;
use burn::tensor::backend::Backend;
use kernels::{AttentionParts, KernelBackend, Window};

pub use cache::{KvCache, KvCaches};
pub use config::AttentionConfig;
pub(crate) use heads::kv_heads;

use super::rotary::Positions;
use super::{
    MixerOptions, MixerRows, MixerState, StateError, StateTensors, StepOutput, TokenMixer,
};
use crate::config_error::ConfigError;
use crate::init::Init;
use crate::layers::{Linear, Norm, NormConfig, NormKind};
use crate::sequences::Sequences;

/// Positions whose angles are made at once, for the steps of decoding.
const ANGLES: usize = 256;

/// Causal self-attention with rotary embedding and grouped key and value heads, over all tokens or a window of the
/// last ones.
///
/// ```
/// use burn::tensor::{Distribution, Tensor};
/// use burn_flex::Flex;
/// use model::{Attention, AttentionConfig, TokenMixer};
///
/// let device = Default::default();
/// let options = AttentionConfig { n_kv_heads: 2, ..AttentionConfig::with_heads(4) };
/// let attention = Attention::<Flex>::new(&options, 64, 1, &device)?;
/// let u = Tensor::random([2, 10, 64], Distribution::Default, &device);
/// let mut state = attention.new_state(2, &device);
/// assert_eq!(attention.prefill(u, &mut state).dims(), [2, 10, 64]);
/// assert_eq!(state.bytes(), 2 * 10 * 2 * 2 * 16 * 4); // keys and values of 2 heads of 16, f32
/// # Ok::<(), model::ConfigError>(())
/// ```
#[derive(Module, Debug)]
pub struct Attention<B: Backend> {
    /// `d_model` to `h * p`.
    pub q_proj: Linear<B>,
    /// `d_model` to `g * p`, `g` the key and value heads.
    pub k_proj: Linear<B>,
    /// `d_model` to `g * p`.
    pub v_proj: Linear<B>,
    /// `h * p` to `d_model`.
    pub dense: Linear<B>,
    /// Of each query's `p` dimensions, before the rotation.
    pub q_norm: Option<Norm<B>>,
    /// Of each key's.
    pub k_norm: Option<Norm<B>>,
    /// The first three in one, where they are [fused](TokenMixer::fuse_projections).
    qkv_proj: Option<Linear<B>>,
    #[module(skip)]
    config: AttentionConfig,
    /// Dimensions of a head.
    p: usize,
    rotary_dim: usize,
}

impl<B: Backend> Attention<B> {
    /// Attention for a network `d_model` wide, drawn from `seed` as Hugging Face's Phi: normal weights of
    /// deviation 0.02, biases 0.
    ///
    /// # Errors
    /// [`ConfigError::Invalid`] if the sizes do not fit together.
    pub fn new(
        config: &AttentionConfig,
        d_model: usize,
        seed: u64,
        device: &B::Device,
    ) -> Result<Self, ConfigError> {
        config.validate(d_model)?;
        Ok(Self::draw(&mut Init::new(seed, device), config, d_model))
    }

    pub(super) fn draw(init: &mut Init<B>, config: &AttentionConfig, d_model: usize) -> Self {
        let p = config.head_dim(d_model);
        let (queries, keys) = (config.n_heads * p, config.n_kv_heads * p);
        let (qkv, dense) = (config.qkv_bias, config.dense_bias);
        let norm = |epsilon| NormConfig {
            kind: NormKind::RmsNorm,
            epsilon,
        };
        let mut norm = || Some(Norm::new(init, p, norm(config.qk_norm?)));
        let (q_norm, k_norm) = (norm(), norm());
        Self {
            q_proj: Linear::normal(init, [queries, d_model], qkv),
            k_proj: Linear::normal(init, [keys, d_model], qkv),
            v_proj: Linear::normal(init, [keys, d_model], qkv),
            dense: Linear::normal(init, [d_model, queries], dense),
            q_norm,
            k_norm,
            qkv_proj: None,
            config: config.clone(),
            p,
            rotary_dim: config.rotary_dim(d_model),
        }
    }

    /// Dimensions of a head.
    pub(crate) fn head_dim(&self) -> usize {
        self.p
    }

    /// The options it was made with.
    pub fn config(&self) -> &AttentionConfig {
        &self.config
    }
}

/// What [`Attention::step`] is given, by name.
fn queries_keys_values<B: Backend>(projected: Vec<Tensor<B, 2>>) -> [Tensor<B, 2>; 3] {
    projected.try_into().expect("queries, keys and values")
}

impl<B: KernelBackend> TokenMixer<B> for Attention<B> {
    fn new_state(&self, _batch: usize, _device: &B::Device) -> MixerState<B> {
        MixerState::Attention(KvCache::default())
    }

    fn new_rows(&self, rows: usize, _device: &B::Device) -> MixerRows<B> {
        MixerRows::Attention(KvCaches(vec![KvCache::default(); rows]))
    }

    fn state_from_tensors(
        &self,
        position: usize,
        tensors: &mut StateTensors<'_>,
        device: &B::Device,
    ) -> Result<MixerState<B>, StateError> {
        if position == 0 {
            return Ok(self.new_state(1, device));
        }
        let dtype = self.k_proj.weight.val().dtype();
        let window = self.config.window;
        let kept = window.map_or(position, |window| position.min(window.tokens()));
        let shape = [1, kept, self.config.n_kv_heads, self.p];
        let keys = tensors.take("keys", shape, dtype, device)?;
        let values = tensors.take("values", shape, dtype, device)?;
        Ok(MixerState::Attention(KvCache::after(
            position, keys, values,
        )))
    }

    fn entries(&self) -> Vec<&Linear<B>> {
        vec![&self.q_proj, &self.k_proj, &self.v_proj]
    }

    fn linears_mut(&mut self) -> Vec<&mut Linear<B>> {
        vec![
            &mut self.q_proj,
            &mut self.k_proj,
            &mut self.v_proj,
            &mut self.dense,
        ]
    }

    /// From now on queries, keys and values come from one product, whose weight has the rows of all three.
    fn fuse_projections(&mut self) {
        self.qkv_proj = Linear::stack([&mut self.q_proj, &mut self.k_proj, &mut self.v_proj]);
    }

    fn forward_of(&self, sequences: Sequences<B>) -> Tensor<B, 3> {
        self.merge(self.context(sequences))
    }

    fn forward_onto(&self, residual: Tensor<B, 3>, sequences: Sequences<B>) -> Tensor<B, 3> {
        self.merge_onto(residual, self.context(sequences))
    }

    /// The softmaxed attention of every head.
    fn mixing_matrix_of(&self, sequences: Sequences<B>) -> Tensor<B, 4> {
        let parts = self.matrix_parts(sequences);
        let visible = parts.visible();
        kernels::attention_matrix_within(parts.q, parts.k, visible)
    }

    fn forward_with_matrix(&self, sequences: Sequences<B>) -> (Tensor<B, 3>, Tensor<B, 4>) {
        let Sequences { u, documents } = sequences;
        let (q, k, v) = self.project(u, Positions::of(&documents));
        let visible = self.visible(documents);
        let matrix = kernels::attention_matrix_within(q.clone(), k.clone(), visible.clone());
        let y_blhp = kernels::attention_within(q, k, v, visible);
        (self.merge(y_blhp), matrix)
    }

    fn attention_parts_of(&self, sequences: Sequences<B>) -> Option<AttentionParts<B>> {
        Some(self.matrix_parts(sequences))
    }

    fn forward_with_attention_parts(
        &self,
        sequences: Sequences<B>,
    ) -> (Tensor<B, 3>, Option<AttentionParts<B>>) {
        let Sequences { u, documents } = sequences;
        let (q, k, v) = self.project(u, Positions::of(&documents));
        let visible = self.visible(documents.clone());
        let y_blhp = kernels::attention_within(q.clone(), k.clone(), v, visible);
        let parts = AttentionParts {
            q,
            k,
            window: self.config.window,
            documents,
        };
        (self.merge(y_blhp), Some(parts))
    }

    fn prefill(&self, u: Tensor<B, 3>, state: &mut MixerState<B>) -> Tensor<B, 3> {
        let cache = KvCache::within(state);
        let (q, k, v) = self.project(u, Positions::From(cache.position()));
        let (k, v) = cache.append(k, v, self.config.window);
        self.merge(kernels::attention_within(q, k, v, self.config.window))
    }

    fn step(&self, projected: Vec<Tensor<B, 2>>, state: &mut MixerState<B>) -> StepOutput<'_, B> {
        let [q, k, v] = queries_keys_values(projected);
        let y = self.attend(q, k, v, KvCache::within(state));
        StepOutput::through(y, &self.dense)
    }

    /// As many steps as the cache has room for and the table of angles covers; 0 if the next step must make a new
    /// table.
    fn steps_alike(&self, state: &MixerState<B>) -> usize {
        let MixerState::Attention(cache) = state else {
            return 0;
        };
        let angle = cache.position() % ANGLES;
        if angle == 0 {
            // That step makes the table of angles, which cannot be recorded.
            return 0;
        }
        (ANGLES - angle).min(cache.steps_alike(self.config.window))
    }

    /// A row that is not `occupied` gives zeros and caches nothing.
    fn step_rows(
        &self,
        projected: Vec<Tensor<B, 2>>,
        rows: &mut MixerRows<B>,
        occupied: &[bool],
    ) -> StepOutput<'_, B> {
        let [q, k, v] = queries_keys_values(projected);
        let row = |x: &Tensor<B, 2>, i: usize| x.clone().narrow(0, i, 1);
        let caches = KvCaches::within(rows).0.iter_mut().zip(occupied);
        let attended = caches.enumerate().map(|(i, (cache, occupied))| {
            if *occupied {
                self.attend(row(&q, i), row(&k, i), row(&v, i), cache)
            } else {
                row(&q, i).zeros_like()
            }
        });
        StepOutput::through(Tensor::cat(attended.collect(), 0), &self.dense)
    }

    fn softmax(&self) -> Option<&Attention<B>> {
        Some(self)
    }

    fn narrow_attention(&mut self, window: Window) -> bool {
        self.config.window = self.narrowed(window);
        true
    }

    /// The output projection becomes zeros without a bias.
    fn silence_attention(&mut self) -> bool {
        let stored = self.dense.weight.val();
        let shape = [self.dense.d_out(), self.config.n_heads * self.p];
        let zeros = Tensor::zeros(shape, (&stored.device(), stored.dtype()));
        self.dense = Linear::of(Param::initialized(self.dense.weight.id, zeros));
        true
    }
}
