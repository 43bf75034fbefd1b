//! Phi's parallel block around either mixer: `x + mixer(LN x) + mlp(LN x)`.

use burn::module::Module;
use burn::tensor::Tensor;
use burn::tensor::backend::Backend;
use kernels::matvec::{Activation, Projection};
use kernels::{AttentionParts, KernelBackend, TransferParts};

use crate::attention::PhiAttention;
use crate::config::{MixerConfig, NetworkConfig};
use crate::init::Init;
use crate::layers::LayerNorm;
use crate::mixer::DiscreteMamba2;
use crate::mlp::PhiMlp;
use crate::state::MixerState;

/// What mixes tokens in a block.
// Handles of tensors, of which a network has some dozens: what a smaller variant wastes is nothing.
#[allow(clippy::large_enum_variant)]
#[derive(Module, Debug)]
pub enum Mixer<B: Backend> {
    /// The student's.
    DiscreteMamba2(DiscreteMamba2<B>),
    /// The teacher's, and the hybrid's in some layers.
    Attention(PhiAttention<B>),
}

impl<B: Backend> Mixer<B> {
    fn new(init: &mut Init<B>, config: &MixerConfig, d_model: usize) -> Self {
        match config {
            MixerConfig::DiscreteMamba2(config) => {
                Self::DiscreteMamba2(DiscreteMamba2::new(init, config, d_model))
            }
            MixerConfig::Attention(config) => {
                Self::Attention(PhiAttention::new(init, config, d_model))
            }
        }
    }

    /// What decoding `batch` sequences starts from.
    pub fn new_state(&self, batch: usize, device: &B::Device) -> MixerState<B> {
        match self {
            Self::DiscreteMamba2(mixer) => {
                MixerState::DiscreteMamba2(mixer.new_state(batch, device))
            }
            Self::Attention(attention) => MixerState::Attention(attention.new_state()),
        }
    }
}

impl<B: KernelBackend> Mixer<B> {
    /// `u [b, l, d_model]` to the same shape.
    pub fn forward(&self, u: Tensor<B, 3>) -> Tensor<B, 3> {
        match self {
            Self::DiscreteMamba2(mixer) => mixer.forward(u),
            Self::Attention(attention) => attention.forward(u),
        }
    }

    /// `residual + forward(u)`, all `[b, l, d_model]`.
    fn forward_onto(&self, residual: Tensor<B, 3>, u: Tensor<B, 3>) -> Tensor<B, 3> {
        match self {
            Self::DiscreteMamba2(mixer) => mixer.forward_onto(residual, u),
            Self::Attention(attention) => attention.forward_onto(residual, u),
        }
    }

    /// The transfer matrix or the attention matrix, `[b, h, l, l]`.
    pub fn mixing_matrix(&self, u: Tensor<B, 3>) -> Tensor<B, 4> {
        match self {
            Self::DiscreteMamba2(mixer) => mixer.transfer_matrix(u),
            Self::Attention(attention) => attention.attention_matrix(u),
        }
    }

    /// [`forward`](Self::forward) and [`mixing_matrix`](Self::mixing_matrix), shared work done once. The
    /// plain form, for tests and tools: training does without the matrix.
    pub fn forward_with_matrix(&self, u: Tensor<B, 3>) -> (Tensor<B, 3>, Tensor<B, 4>) {
        match self {
            Self::DiscreteMamba2(mixer) => (mixer.forward(u.clone()), mixer.transfer_matrix(u)),
            Self::Attention(attention) => attention.forward_with_matrix(u),
        }
    }

    /// `u [b, l, d_model]`, the tokens after those that `state` holds, which it then holds too.
    ///
    /// # Panics
    /// If `state` is that of the other kind of mixer.
    pub fn prefill(&self, u: Tensor<B, 3>, state: &mut MixerState<B>) -> Tensor<B, 3> {
        match (self, state) {
            (Self::DiscreteMamba2(mixer), MixerState::DiscreteMamba2(state)) => match u.dims()[1] {
                1 => mixer.step(u, state),
                _ => mixer.prefill(u, state),
            },
            (Self::Attention(attention), MixerState::Attention(cache)) => {
                attention.prefill(u, cache)
            }
            _ => panic!("the state belongs to another network: its mixer is of the other kind"),
        }
    }
}

impl<B: KernelBackend> Mixer<B> {
    /// The projections that read `LN x`.
    fn entry_projections(&self) -> Vec<(Projection<B>, Activation)> {
        let linears = match self {
            Self::DiscreteMamba2(mixer) => vec![&mixer.in_proj],
            Self::Attention(it) => vec![&it.q_proj, &it.k_proj, &it.v_proj],
        };
        let linears = linears.into_iter();
        linears
            .map(|it| (it.projection(), Activation::Identity))
            .collect()
    }

    /// The projection that the residual stream gets.
    fn exit_projection(&self) -> Projection<B> {
        match self {
            Self::DiscreteMamba2(mixer) => mixer.out_proj.projection(),
            Self::Attention(attention) => attention.dense.projection(),
        }
    }

    /// What stands between them, for one token: `[b, d]` each to `[b, d]`.
    fn step(&self, mut projected: Vec<Tensor<B, 2>>, state: &mut MixerState<B>) -> Tensor<B, 2> {
        match (self, state) {
            (Self::DiscreteMamba2(mixer), MixerState::DiscreteMamba2(state)) => {
                mixer.recur(projected.swap_remove(0), state)
            }
            (Self::Attention(attention), MixerState::Attention(cache)) => {
                let [q, k, v] = projected.try_into().expect("queries, keys and values");
                attention.attend(q, k, v, cache)
            }
            _ => panic!("the state belongs to another network: its mixer is of the other kind"),
        }
    }
}

/// One layer of a network.
#[derive(Module, Debug)]
pub struct PhiBlock<B: Backend> {
    /// Before both halves.
    pub input_layernorm: LayerNorm<B>,
    /// Mixes tokens.
    pub mixer: Mixer<B>,
    /// Mixes channels.
    pub mlp: PhiMlp<B>,
}

impl<B: Backend> PhiBlock<B> {
    pub(crate) fn new(init: &mut Init<B>, network: &NetworkConfig, mixer: &MixerConfig) -> Self {
        let d_model = network.d_model;
        Self {
            input_layernorm: LayerNorm::new(init, d_model, network.layer_norm_eps),
            mixer: Mixer::new(init, mixer, d_model),
            mlp: PhiMlp::new(init, d_model, network.intermediate_size),
        }
    }
}

impl<B: KernelBackend> PhiBlock<B> {
    /// `x [b, l, d_model]` to the same shape.
    pub fn forward(&self, x: Tensor<B, 3>) -> Tensor<B, 3> {
        let normed = self.input_layernorm.forward(x.clone());
        let mixed = self.mixer.forward_onto(x, normed.clone());
        self.mlp.forward_onto(mixed, normed)
    }

    /// `mixer(LN x)`, before it joins the residual stream: `[b, l, d_model]`.
    pub fn mixer_output(&self, x: Tensor<B, 3>) -> Tensor<B, 3> {
        self.mixer.forward(self.input_layernorm.forward(x))
    }

    /// The mixing matrix of `LN x`, `[b, h, l, l]`.
    pub fn mixing_matrix(&self, x: Tensor<B, 3>) -> Tensor<B, 4> {
        self.mixer.mixing_matrix(self.input_layernorm.forward(x))
    }

    /// What the transfer matrix of `LN x` is made of; `None` where the mixer is attention.
    pub fn transfer_parts(&self, x: Tensor<B, 3>) -> Option<TransferParts<B>> {
        match &self.mixer {
            Mixer::DiscreteMamba2(mixer) => {
                Some(mixer.transfer_parts(self.input_layernorm.forward(x)))
            }
            Mixer::Attention(_) => None,
        }
    }

    /// What the attention matrix of `LN x` is made of; `None` where the mixer is not attention.
    pub fn attention_parts(&self, x: Tensor<B, 3>) -> Option<AttentionParts<B>> {
        match &self.mixer {
            Mixer::Attention(mixer) => Some(mixer.attention_parts(self.input_layernorm.forward(x))),
            Mixer::DiscreteMamba2(_) => None,
        }
    }

    /// [`forward`](Self::forward) and [`attention_parts`](Self::attention_parts), shared work done
    /// once.
    pub fn forward_with_attention_parts(
        &self,
        x: Tensor<B, 3>,
    ) -> (Tensor<B, 3>, Option<AttentionParts<B>>) {
        let normed = self.input_layernorm.forward(x.clone());
        let (mixed, parts) = match &self.mixer {
            Mixer::Attention(mixer) => {
                let (mixed, parts) = mixer.forward_with_parts(normed.clone());
                (mixed, Some(parts))
            }
            Mixer::DiscreteMamba2(mixer) => (mixer.forward(normed.clone()), None),
        };
        (self.sum(x, mixed, normed), parts)
    }

    /// The block's output with what was asked for on the way, shared work done once.
    pub fn forward_tapped(&self, x: Tensor<B, 3>, matrix: bool) -> BlockOutputs<B> {
        let normed = self.input_layernorm.forward(x.clone());
        let (mixed, mixing_matrix) = if matrix {
            let (mixed, matrix) = self.mixer.forward_with_matrix(normed.clone());
            (mixed, Some(matrix))
        } else {
            (self.mixer.forward(normed.clone()), None)
        };
        BlockOutputs {
            hidden_state: self.sum(x, mixed.clone(), normed),
            mixer_output: mixed,
            mixing_matrix,
        }
    }

    /// `x [b, l, d_model]`, the tokens after those that `state` holds, which it then holds too.
    ///
    /// # Panics
    /// If `state` is that of the other kind of mixer.
    pub fn prefill(&self, x: Tensor<B, 3>, state: &mut MixerState<B>) -> Tensor<B, 3> {
        self.forward_with(x, |u| self.mixer.prefill(u, state))
    }

    /// `x [b, d_model]`, one token after those that `state` holds, which it then holds too. In f32, or
    /// wider, whatever the dtype of the parameters.
    ///
    /// The same sums as [`prefill`](Self::prefill)'s, in as few passes over the weights as there can be:
    /// into both halves, then out of both.
    ///
    /// # Panics
    /// If `state` is that of the other kind of mixer.
    pub fn step(&self, x: Tensor<B, 2>, state: &mut MixerState<B>) -> Tensor<B, 2> {
        self.step_with(x, |projected| self.mixer.step(projected, state))
    }

    /// The step around what `mix` makes of the mixer's projections, `[b, d]` each.
    pub(crate) fn step_with(
        &self,
        x: Tensor<B, 2>,
        mix: impl FnOnce(Vec<Tensor<B, 2>>) -> Tensor<B, 2>,
    ) -> Tensor<B, 2> {
        let norm = self.input_layernorm.normalisation();
        let mut into = self.mixer.entry_projections();
        into.push((self.mlp.fc1.projection(), Activation::GeluNew));
        let mut projected = kernels::fan_out(x.clone(), norm, into);
        let hidden = projected.pop().expect("one output a projection");
        let out_of = vec![
            (mix(projected), self.mixer.exit_projection()),
            (hidden, self.mlp.fc2.projection()),
        ];
        kernels::fan_in(x, out_of)
    }

    /// The block around what `mix` makes of `LN x`.
    pub(crate) fn forward_with(
        &self,
        x: Tensor<B, 3>,
        mix: impl FnOnce(Tensor<B, 3>) -> Tensor<B, 3>,
    ) -> Tensor<B, 3> {
        let normed = self.input_layernorm.forward(x.clone());
        let mixed = mix(normed.clone());
        self.sum(x, mixed, normed)
    }

    fn sum(&self, x: Tensor<B, 3>, mixed: Tensor<B, 3>, normed: Tensor<B, 3>) -> Tensor<B, 3> {
        self.mlp.forward_onto(mixed + x, normed)
    }
}

/// What [`PhiBlock::forward_tapped`] gives.
#[derive(Debug, Clone)]
pub struct BlockOutputs<B: Backend> {
    /// The block's output, `[b, l, d_model]`.
    pub hidden_state: Tensor<B, 3>,
    /// The mixer's, before it joins the residual stream: `[b, l, d_model]`.
    pub mixer_output: Tensor<B, 3>,
    /// `[b, h, l, l]`, where asked for.
    pub mixing_matrix: Option<Tensor<B, 4>>,
}
