//! One layer: a mixer of tokens and an MLP, each behind a normalisation, in parallel or one after the other.

use burn::module::Module;
use burn::tensor::Tensor;
use burn::tensor::backend::Backend;
use kernels::decode::projections::{Activation, Input, Projection};
use kernels::{AttentionParts, KernelBackend, TransferParts};

use crate::arch::{BlockOrder, NetworkConfig};
use crate::init::Init;
use crate::layers::Norm;
use crate::mixers::{Mixer, MixerConfig, MixerRows, MixerState, StepOutput};
use crate::mlp::Mlp;
use crate::sequences::Sequences;

/// One layer of a network. Below, `LN` is [`input_layernorm`](Self::input_layernorm).
///
/// In parallel, as in Phi, both halves read the same normalised input: `x + mixer(LN x) + mlp(LN x)`. One after
/// the other, as in Llama, the MLP reads the mixer's sum behind a second normalisation:
/// `y = x + mixer(LN x)`, then `y + mlp(LN2 y)`.
#[derive(Module, Debug)]
pub struct Block<B: Backend> {
    /// Before the mixer, and before the MLP of a parallel layer.
    pub input_layernorm: Norm<B>,
    /// Mixes tokens.
    pub mixer: Mixer<B>,
    /// Before the MLP of a sequential layer; a layer without it is parallel.
    pub post_mixer_layernorm: Option<Norm<B>>,
    /// Mixes channels.
    pub mlp: Mlp<B>,
}

impl<B: Backend> Block<B> {
    pub(crate) fn new(init: &mut Init<B>, network: &NetworkConfig, mixer: &MixerConfig) -> Self {
        let d_model = network.d_model;
        let is_sequential = network.block_order == BlockOrder::Sequential;
        Self {
            input_layernorm: Norm::new(init, d_model, network.norm),
            mixer: Mixer::new(init, mixer, d_model),
            post_mixer_layernorm: is_sequential.then(|| Norm::new(init, d_model, network.norm)),
            mlp: Mlp::new(init, d_model, network.mlp),
        }
    }
}

impl<B: KernelBackend> Block<B> {
    /// `LN x`, of the same tokens.
    fn normed(&self, sequences: Sequences<B>) -> Sequences<B> {
        sequences.map(|x| self.input_layernorm.forward(x))
    }

    /// `x [b, l, d_model]` to the same shape.
    pub fn forward(&self, x: impl Into<Sequences<B>>) -> Tensor<B, 3> {
        let sequences = x.into();
        let x = sequences.u.clone();
        let normed = self.normed(sequences);
        let mixed = self.mixer.forward_onto(x, normed.clone());
        self.add_mlp(mixed, normed.u)
    }

    /// For `x [b, l, d_model]`, returns two tensors of the same shape: the tensor that the mixer's output is added to,
    /// and the input of the mixer. In a parallel layer the first already contains the MLP's output: it is the layer's
    /// whole output without the mixer's.
    pub(crate) fn around_mixer(&self, x: Tensor<B, 3>) -> (Tensor<B, 3>, Tensor<B, 3>) {
        let normed = self.input_layernorm.forward(x.clone());
        let beside = match &self.post_mixer_layernorm {
            None => self.mlp.forward_onto(x, normed.clone()),
            Some(_) => x,
        };
        (beside, normed)
    }

    /// The layer's output, from the sum of the mixer's output and of what [`around_mixer`](Self::around_mixer) says.
    pub(crate) fn behind_mixer(&self, sum: Tensor<B, 3>) -> Tensor<B, 3> {
        match &self.post_mixer_layernorm {
            None => sum,
            Some(norm) => self.mlp.forward_onto(sum.clone(), norm.forward(sum)),
        }
    }

    /// `mixer(LN x)`, before it joins the residual stream: `[b, l, d_model]`.
    pub fn mixer_output(&self, x: impl Into<Sequences<B>>) -> Tensor<B, 3> {
        self.mixer.forward_of(self.normed(x.into()))
    }

    /// The mixing matrix of `LN x`, `[b, h, l, l]`.
    pub fn mixing_matrix(&self, x: impl Into<Sequences<B>>) -> Tensor<B, 4> {
        self.mixer.mixing_matrix_of(self.normed(x.into()))
    }

    /// The factors of the mixing matrix of `LN x`; `None` if the mixer is not a state-space mixer
    /// ([`MixerOptions::has_transfer_parts`](crate::mixers::MixerOptions::has_transfer_parts) is false).
    pub fn transfer_parts(&self, x: impl Into<Sequences<B>>) -> Option<TransferParts<B>> {
        self.mixer.transfer_parts_of(self.normed(x.into()))
    }

    /// The factors of the mixing matrix of `LN x`; `None` if the mixer is not softmax attention
    /// ([`MixerOptions::has_attention_parts`](crate::mixers::MixerOptions::has_attention_parts) is false).
    pub fn attention_parts(&self, x: impl Into<Sequences<B>>) -> Option<AttentionParts<B>> {
        self.mixer.attention_parts_of(self.normed(x.into()))
    }

    /// [`forward`](Self::forward) and [`attention_parts`](Self::attention_parts), shared work done
    /// once.
    pub fn forward_with_attention_parts(
        &self,
        x: impl Into<Sequences<B>>,
    ) -> (Tensor<B, 3>, Option<AttentionParts<B>>) {
        let sequences = x.into();
        let x = sequences.u.clone();
        let normed = self.normed(sequences);
        let (mixed, parts) = self.mixer.forward_with_attention_parts(normed.clone());
        (self.add_mlp(sum(mixed, x), normed.u), parts)
    }

    /// The block's output and what was asked for, shared work done once.
    pub fn forward_tapped(&self, x: impl Into<Sequences<B>>, matrix: bool) -> BlockOutputs<B> {
        let sequences = x.into();
        let x = sequences.u.clone();
        let normed = self.normed(sequences);
        let (mixed, mixing_matrix) = if matrix {
            let (mixed, matrix) = self.mixer.forward_with_matrix(normed.clone());
            (mixed, Some(matrix))
        } else {
            (self.mixer.forward_of(normed.clone()), None)
        };
        BlockOutputs {
            hidden_state: self.add_mlp(sum(mixed.clone(), x), normed.u),
            mixer_output: mixed,
            mixing_matrix,
        }
    }

    /// The output for `x [b, l, d_model]`, in the same shape. `x` are the tokens that follow the tokens in `state`;
    /// they are added to `state`.
    ///
    /// # Panics
    /// If `state` is that of another kind of mixer.
    pub fn prefill(&self, x: Tensor<B, 3>, state: &mut MixerState<B>) -> Tensor<B, 3> {
        let normed = self.input_layernorm.forward(x.clone());
        let mixed = self.mixer.prefill(normed.clone(), state);
        self.add_mlp(sum(mixed, x), normed)
    }

    /// The MLP on top of `mixed`, the input plus the mixer's output; `normed` is what the mixer read.
    pub(crate) fn add_mlp(&self, mixed: Tensor<B, 3>, normed: Tensor<B, 3>) -> Tensor<B, 3> {
        match &self.post_mixer_layernorm {
            None => self.mlp.forward_onto(mixed, normed),
            Some(norm) => {
                let normed = norm.forward(mixed.clone());
                self.mlp.forward_onto(mixed, normed)
            }
        }
    }

    /// The output for `x [b, d_model]`, one token for each sequence, in the same shape. The token follows the tokens in
    /// `state`, and is added to `state`. Computed in f32 or wider, whatever the dtype of the parameters.
    ///
    /// The same sums as [`prefill`](Self::prefill)'s, in as few passes over the weights as possible: into both
    /// halves of a parallel layer, then out of both.
    ///
    /// # Panics
    /// If `state` is that of another kind of mixer.
    pub fn step(&self, x: Tensor<B, 2>, state: &mut MixerState<B>) -> Tensor<B, 2> {
        self.step_with(x, |projected| self.mixer.step(projected, state))
    }

    /// [`step`](Self::step) for the rows of a batch: one token a row, each at its own position.
    pub(crate) fn step_rows(
        &self,
        x: Tensor<B, 2>,
        rows: &mut MixerRows<B>,
        occupied: &[bool],
    ) -> Tensor<B, 2> {
        self.step_with(x, |projected| {
            self.mixer.step_rows(projected, rows, occupied)
        })
    }

    /// The common part of the steps: `mix` computes the mixer between its projections, from `[b, d]` each.
    fn step_with<'a>(
        &'a self,
        x: Tensor<B, 2>,
        mix: impl FnOnce(Vec<Tensor<B, 2>>) -> StepOutput<'a, B>,
    ) -> Tensor<B, 2> {
        let (mixer, mlp) = (&self.mixer, &self.mlp);
        let entries = mixer.entries().into_iter();
        let mut entries: Vec<_> = entries
            .map(|linear| (linear, Activation::Identity))
            .collect();
        match &self.post_mixer_layernorm {
            None => {
                let n = entries.len();
                entries.extend(mlp.entries());
                let mut projected = self.input_layernorm.project(x.clone(), entries);
                let hidden = mlp.hidden_of_step(projected.split_off(n));
                leave(x, mix(projected), Some((hidden, mlp.down.projection())))
            }
            Some(norm) => {
                let projected = self.input_layernorm.project(x.clone(), entries);
                let mixed = leave(x, mix(projected), None);
                let hidden = mlp.hidden_of_step(norm.project(mixed.clone(), mlp.entries()));
                kernels::decode::projections::out_of(mixed, vec![(hidden, mlp.down.projection())])
            }
        }
    }
}

/// The residual stream `x` with what a mixer adds to it, and with what else is added through a projection.
fn leave<B: KernelBackend>(
    x: Tensor<B, 2>,
    output: StepOutput<'_, B>,
    other: Option<(Input<B>, Projection<B>)>,
) -> Tensor<B, 2> {
    let x = match output.plain {
        Some(plain) => x + plain,
        None => x,
    };
    let through = output.through.into_iter();
    let through = through.map(|(y, linear)| (y.into(), linear.projection()));
    let terms: Vec<_> = through.chain(other).collect();
    if terms.is_empty() {
        return x;
    }
    kernels::decode::projections::out_of(x, terms)
}

/// `x + y`, both `[b, l, d_model]`. The sum is computed in one dimension: on CUDA, Burn pads the rows of a new tensor
/// to multiples of 512 bytes, and ops that take all tokens as rows of one matrix would then copy it.
fn sum<B: Backend>(x: Tensor<B, 3>, y: Tensor<B, 3>) -> Tensor<B, 3> {
    let shape = x.dims();
    let [x, y] = [x, y].map(|x| x.reshape([shape.iter().product::<usize>()]));
    (x + y).reshape(shape)
}

/// What [`Block::forward_tapped`] gives.
#[derive(Debug, Clone)]
pub struct BlockOutputs<B: Backend> {
    /// The block's output, `[b, l, d_model]`.
    pub hidden_state: Tensor<B, 3>,
    /// The mixer's, before it joins the residual stream: `[b, l, d_model]`.
    pub mixer_output: Tensor<B, 3>,
    /// `[b, h, l, l]`, where asked for.
    pub mixing_matrix: Option<Tensor<B, 4>>,
}
