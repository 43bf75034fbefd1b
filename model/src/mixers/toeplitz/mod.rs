//! The Toeplitz mixer: the weight between two tokens depends only on their distance, `T[i, j] = t[i - j]`, not on their
//! content (arXiv 2408.10189, the mixers that the paper compares with the state-space one).
//!
//! It is a causal convolution as long as `t`, of which every channel of a head has the same taps. `in_proj` emits
//! `[x | z]`, `T` mixes x over time, and `silu(z + z_bias)` gates, as in the discrete Mamba-2. That mixer's short
//! convolution and its skip `D` are left out: `t` holds both.

mod config;
mod matrix;
mod state;
mod student;

use burn::module::{Module, Param};
use burn::tensor::Tensor;
use burn::tensor::backend::Backend;
use kernels::{DocumentStarts, KernelBackend};

pub use config::ToeplitzConfig;
pub use matrix::toeplitz_matrix;
pub use state::{ToeplitzRows, ToeplitzState};
pub use student::ToeplitzStudent;

use super::discrete_mamba2::{OPEN_GATE, published_out_proj};
use super::{
    MixerOptions, MixerRows, MixerState, StateError, StateTensors, StepOutput, TokenMixer,
};
use crate::config_error::ConfigError;
use crate::init::{Fill, Init};
use crate::layers::Linear;
use crate::precision::{to_dtype, wide, widen};
use crate::sequences::Sequences;

/// The mixer. Letters in names: b batch, l length, h heads, p head dimension, k taps.
#[derive(Module, Debug)]
pub struct Toeplitz<B: Backend> {
    /// `d_model` to `[x | z]`, each `d_inner` wide.
    pub in_proj: Linear<B>,
    /// Added to z, `[d_inner]`.
    pub z_bias: Param<Tensor<B, 1>>,
    /// The first column of each head's matrix, `[h, k]`: the weight of a token that lies so far back.
    pub taps: Param<Tensor<B, 2>>,
    /// `d_inner` to `d_model`.
    pub out_proj: Linear<B>,
    #[module(skip)]
    config: ToeplitzConfig,
}

impl<B: Backend> Toeplitz<B> {
    /// A mixer for a network `d_model` wide, drawn from `seed`: projections as the discrete Mamba-2's, with an open
    /// gate, and the identity as the matrix of every head.
    ///
    /// # Errors
    /// [`ConfigError::Invalid`] if the sizes do not fit together.
    pub fn new(
        config: &ToeplitzConfig,
        d_model: usize,
        seed: u64,
        device: &B::Device,
    ) -> Result<Self, ConfigError> {
        config.validate(d_model)?;
        Ok(Self::draw(&mut Init::new(seed, device), config, d_model))
    }

    pub(super) fn draw(init: &mut Init<B>, config: &ToeplitzConfig, d_model: usize) -> Self {
        let d_inner = config.d_inner();
        let in_weight = Fill::Parts(vec![
            (d_inner * d_model, Fill::torch_linear(d_model)),
            (d_inner * d_model, Fill::constant(0.0)),
        ]);
        let mut identity = vec![0.0; config.length];
        identity[0] = 1.0;
        let shape = [config.n_heads, config.length];
        Self {
            in_proj: Linear::new(init, [2 * d_inner, d_model], in_weight, None),
            z_bias: init.parameter([d_inner], Fill::constant(OPEN_GATE)),
            taps: init.parameter(shape, Fill::Repeat(identity)),
            out_proj: Linear::new(init, [d_model, d_inner], published_out_proj(d_inner), None),
            config: config.clone(),
        }
    }

    /// The options it was made with.
    pub fn config(&self) -> &ToeplitzConfig {
        &self.config
    }

    /// The inputs of `rows` sequences that have read nothing, `[rows, k, d_inner]`: zeros, never half.
    fn no_inputs(&self, rows: usize, device: &B::Device) -> Tensor<B, 3> {
        let shape = [rows, self.config.length, self.config.d_inner()];
        Tensor::zeros(shape, (device, wide(self.taps.val().dtype())))
    }
}

impl<B: KernelBackend> Toeplitz<B> {
    /// What the output projection reads, from `projected [b, l, 2 d_inner]`, the tokens after those whose inputs of
    /// the matrix are in `before [b, m, d_inner]`: `[b, l, d_inner]`, and the inputs of these tokens, in f32 for half
    /// precision. There is nothing before rows of several documents.
    fn gated(
        &self,
        projected: Tensor<B, 3>,
        documents: &Option<DocumentStarts<B>>,
        before: Option<Tensor<B, 3>>,
    ) -> (Tensor<B, 3>, Tensor<B, 3>) {
        let dtype = projected.dtype();
        let (h, d_inner) = (self.config.n_heads, self.config.d_inner());
        let p = d_inner / h;
        let [x_bld, z_bld] = kernels::split_columns(projected, [d_inner, d_inner]);
        let [b, l, _] = x_bld.dims();
        // Sums over many tokens.
        let x_bld = widen(x_bld);
        let seen = match before {
            Some(before) => Tensor::cat(vec![before, x_bld.clone()], 1),
            None => x_bld.clone(),
        };
        let [_, all, _] = seen.dims();
        let t_hla = toeplitz_matrix(widen(self.taps.val()), l, all);
        let y_blhp = match documents {
            None => {
                let x_habp = seen.reshape([b, all, h, p]).permute([2, 1, 0, 3]);
                let y_hlbp = t_hla.matmul(x_habp.reshape([h, all, b * p]));
                y_hlbp.reshape([h, l, b, p]).permute([2, 1, 0, 3])
            }
            Some(documents) => {
                let x_bhlp = seen.reshape([b, l, h, p]).swap_dims(1, 2);
                within(t_hla, documents).matmul(x_bhlp).swap_dims(1, 2)
            }
        };
        // The gate's op has a skip too, of which this mixer has none.
        let no_skip = Tensor::zeros([h], (&x_bld.device(), x_bld.dtype()));
        let gated = kernels::skip_gate(
            y_blhp,
            x_bld.clone().reshape([b, l, h, p]),
            no_skip,
            widen(z_bld),
            Some(widen(self.z_bias.val())),
        );
        (to_dtype(gated, dtype), x_bld)
    }

    /// What the output projection reads of whole sequences.
    fn gated_whole(&self, sequences: Sequences<B>) -> Tensor<B, 3> {
        let Sequences { u, documents } = sequences;
        self.gated(self.in_proj.forward(u), &documents, None).0
    }

    /// One token a sequence, `projected [b, 2 d_inner]`, after those in `inputs [b, k, d_inner]`, which it joins.
    fn advance(&self, projected: Tensor<B, 2>, inputs: &mut Tensor<B, 3>) -> Tensor<B, 2> {
        let [b, width] = projected.dims();
        let before = inputs.clone();
        let projected = projected.reshape([b, 1, width]);
        let (gated, x) = self.gated(projected, &None, Some(before.clone()));
        *inputs = last(before, x);
        gated.reshape([b, self.config.d_inner()])
    }
}

/// The last inputs, as many as there are in `before [b, k, d]`, of these and of `x [b, l, d]` behind them.
fn last<B: Backend>(before: Tensor<B, 3>, x: Tensor<B, 3>) -> Tensor<B, 3> {
    let ([_, k, _], [_, l, _]) = (before.dims(), x.dims());
    Tensor::cat(vec![before, x], 1).narrow(1, l, k)
}

/// The matrices `[h, l, l]` in each row, without the tokens before its document: `[b, h, l, l]`.
fn within<B: Backend>(t_hll: Tensor<B, 3>, documents: &DocumentStarts<B>) -> Tensor<B, 4> {
    let ([h, l, _], [b, _]) = (t_hll.dims(), documents.dims());
    let hidden_bll = documents.hidden();
    let hidden = hidden_bll.unsqueeze_dim::<4>(1).expand([b, h, l, l]);
    let t_bhll = t_hll.unsqueeze_dim::<4>(0).expand([b, h, l, l]);
    t_bhll.mask_fill(hidden, 0.0)
}

impl<B: KernelBackend> TokenMixer<B> for Toeplitz<B> {
    fn new_state(&self, batch: usize, device: &B::Device) -> MixerState<B> {
        MixerState::Toeplitz(ToeplitzState {
            inputs: self.no_inputs(batch, device),
            position: 0,
        })
    }

    fn new_rows(&self, rows: usize, device: &B::Device) -> MixerRows<B> {
        MixerRows::Toeplitz(ToeplitzRows {
            inputs: self.no_inputs(rows, device),
        })
    }

    fn state_from_tensors(
        &self,
        position: usize,
        tensors: &mut StateTensors<'_>,
        device: &B::Device,
    ) -> Result<MixerState<B>, StateError> {
        let empty = self.no_inputs(1, device);
        Ok(MixerState::Toeplitz(ToeplitzState {
            inputs: tensors.take("inputs", empty.dims(), empty.dtype(), device)?,
            position,
        }))
    }

    fn entries(&self) -> Vec<&Linear<B>> {
        vec![&self.in_proj]
    }

    fn linears_mut(&mut self) -> Vec<&mut Linear<B>> {
        vec![&mut self.in_proj, &mut self.out_proj]
    }

    fn forward_of(&self, sequences: Sequences<B>) -> Tensor<B, 3> {
        self.out_proj.forward(self.gated_whole(sequences))
    }

    fn forward_onto(&self, residual: Tensor<B, 3>, sequences: Sequences<B>) -> Tensor<B, 3> {
        self.out_proj
            .forward_onto(residual, self.gated_whole(sequences))
    }

    /// The same for every sequence, but for what lies between documents.
    fn mixing_matrix_of(&self, sequences: Sequences<B>) -> Tensor<B, 4> {
        let [b, l, _] = sequences.u.dims();
        let t_hll = toeplitz_matrix(widen(self.taps.val()), l, l);
        let h = self.config.n_heads;
        match &sequences.documents {
            None => t_hll.unsqueeze_dim::<4>(0).expand([b, h, l, l]),
            Some(documents) => within(t_hll, documents),
        }
    }

    fn prefill(&self, u: Tensor<B, 3>, state: &mut MixerState<B>) -> Tensor<B, 3> {
        let state = ToeplitzState::within(state);
        let [_, l, _] = u.dims();
        let k = self.config.length;
        // The zeros before the first token add nothing.
        let m = state.position.min(k);
        let before = (m > 0).then(|| state.inputs.clone().narrow(1, k - m, m));
        let (gated, x) = self.gated(self.in_proj.forward(u), &None, before);
        state.inputs = last(state.inputs.clone(), x);
        state.position += l;
        self.out_proj.forward(gated)
    }

    fn step(
        &self,
        mut projected: Vec<Tensor<B, 2>>,
        state: &mut MixerState<B>,
    ) -> StepOutput<'_, B> {
        let state = ToeplitzState::within(state);
        let gated = self.advance(projected.swap_remove(0), &mut state.inputs);
        state.position += 1;
        StepOutput::through(gated, &self.out_proj)
    }

    fn step_rows(
        &self,
        mut projected: Vec<Tensor<B, 2>>,
        rows: &mut MixerRows<B>,
        _occupied: &[bool],
    ) -> StepOutput<'_, B> {
        let rows = ToeplitzRows::within(rows);
        let gated = self.advance(projected.swap_remove(0), &mut rows.inputs);
        StepOutput::through(gated, &self.out_proj)
    }
}
