//! The causal low-rank mixer: each head's matrix is the lower triangle of one of low rank, `T[i, j] = C_i . B_j` for
//! `j <= i` (arXiv 2408.10189, the mixers that the paper compares with the state-space one).
//!
//! It is linear attention without a feature map, or the discrete Mamba-2 without its decay: everything else is as
//! there, so that the two differ in their matrices alone. `in_proj` emits `[x | B | C | z]`; x, B and C pass through
//! a short causal convolution; `D` adds x back; `silu(z + z_bias)` gates. In decoding its state has one size, the sum
//! of `x_j B_j^T` over the tokens that were read.

mod config;
mod state;
mod student;

use burn::module::{Module, Param};
use burn::tensor::Tensor;
use burn::tensor::backend::Backend;
use kernels::scan::causal_conv::{Activation, ConvInputs};
use kernels::{DocumentStarts, Epilogue, KernelBackend, ScanInputs, TransferParts, gated_scan};

pub use config::LowRankConfig;
pub use state::{LowRankRows, LowRankState};
pub use student::LowRankStudent;

use super::discrete_mamba2::{DepthwiseConv, OPEN_GATE, published_out_proj};
use super::{
    MixerOptions, MixerRows, MixerState, StateError, StateTensors, StepOutput, TokenMixer,
};
use crate::config_error::ConfigError;
use crate::init::{Fill, Init};
use crate::layers::Linear;
use crate::precision::{to_dtype, wide, widen};
use crate::sequences::Sequences;

/// The decay `exp(-softplus(A_log))` of this `A_log` is 1 in every dtype.
const NO_DECAY: f64 = -100.0;

/// The mixer. Letters in names: b batch, l length, h heads, p head dimension, n rank, w taps of the convolution.
#[derive(Module, Debug)]
pub struct LowRank<B: Backend> {
    /// `d_model` to `[x | B | C | z]`.
    pub in_proj: Linear<B>,
    /// Added to z, `[d_inner]`.
    pub z_bias: Param<Tensor<B, 1>>,
    /// Over the channels of x, B and C.
    pub conv1d: DepthwiseConv<B>,
    /// The skip from x to the output, `[h]`.
    pub d: Param<Tensor<B, 1>>,
    /// `d_inner` to `d_model`.
    pub out_proj: Linear<B>,
    #[module(skip)]
    config: LowRankConfig,
}

impl<B: Backend> LowRank<B> {
    /// A mixer for a network `d_model` wide, drawn from `seed` as the published discrete Mamba-2: a convolution that
    /// passes its input through, an open gate, and 1 as `D`.
    ///
    /// # Errors
    /// [`ConfigError::Invalid`] if the sizes do not fit together.
    pub fn new(
        config: &LowRankConfig,
        d_model: usize,
        seed: u64,
        device: &B::Device,
    ) -> Result<Self, ConfigError> {
        config.validate(d_model)?;
        Ok(Self::draw(&mut Init::new(seed, device), config, d_model))
    }

    pub(super) fn draw(init: &mut Init<B>, config: &LowRankConfig, d_model: usize) -> Self {
        let (d_inner, conv_dim) = (config.d_inner(), config.conv_dim());
        let in_weight = Fill::Parts(vec![
            (conv_dim * d_model, Fill::torch_linear(d_model)),
            (d_inner * d_model, Fill::constant(0.0)),
        ]);
        let mut taps = vec![0.0; config.d_conv];
        taps[config.d_conv - 1] = 1.0;
        let rows = conv_dim + d_inner;
        Self {
            in_proj: Linear::new(init, [rows, d_model], in_weight, None),
            z_bias: init.parameter([d_inner], Fill::constant(OPEN_GATE)),
            conv1d: DepthwiseConv {
                weight: init.parameter([conv_dim, 1, config.d_conv], Fill::Repeat(taps)),
                bias: Some(init.parameter([conv_dim], Fill::constant(0.0))),
            },
            d: init.parameter([config.n_heads], Fill::constant(1.0)),
            out_proj: Linear::new(init, [d_model, d_inner], published_out_proj(d_inner), None),
            config: config.clone(),
        }
    }

    /// The options it was made with.
    pub fn config(&self) -> &LowRankConfig {
        &self.config
    }

    /// The state of `batch` sequences that have read nothing: zeros, never half.
    fn empty_state(&self, batch: usize, device: &B::Device) -> LowRankState<B> {
        let config = &self.config;
        let options = (device, wide(self.d.val().dtype()));
        let sums = [batch, config.n_heads, config.head_dim, config.d_state];
        LowRankState {
            conv: Tensor::zeros([batch, config.d_conv, config.conv_dim()], options),
            sums: Tensor::zeros(sums, options),
            position: 0,
        }
    }
}

impl<B: KernelBackend> LowRank<B> {
    /// `xbc [b, l, c]`, some channels from `start` on, through the convolution; `history [b, w - 1, c]` came before.
    fn convolved(
        &self,
        xbc: Tensor<B, 3>,
        start: usize,
        history: Option<Tensor<B, 3>>,
        documents: &Option<DocumentStarts<B>>,
    ) -> Tensor<B, 3> {
        let [_, _, c] = xbc.dims();
        let weight = self.conv1d.weight.val().narrow(0, start, c);
        let taps = weight.reshape([c, self.config.d_conv]);
        let bias = self.conv1d.bias.as_ref();
        let bias = bias.map(|bias| bias.val().narrow(0, start, c));
        kernels::causal_conv_of(ConvInputs {
            x: xbc,
            weight: taps,
            bias,
            history,
            activation: Activation::Identity,
            documents: documents.clone(),
        })
    }

    /// `[b, l, h * n]` to `[b, l, h, n]`.
    fn heads(&self, x: Tensor<B, 3>) -> Tensor<B, 4> {
        let ([b, l, d], h) = (x.dims(), self.config.n_heads);
        x.reshape([b, l, h, d / h])
    }

    /// What the scan reads in place of A_log for `x [b, l, ..]`: no decay within a document.
    fn no_decay(&self, x: &Tensor<B, 3>, documents: &Option<DocumentStarts<B>>) -> Tensor<B, 3> {
        let [b, l, _] = x.dims();
        let shape = [b, l, self.config.n_heads];
        let a_log = Tensor::full(shape, NO_DECAY, (&x.device(), x.dtype()));
        match documents {
            Some(documents) => documents.cut(a_log),
            None => a_log,
        }
    }

    /// What the output projection reads, from `projected [b, l, conv_dim + d_inner]`, the tokens after those that
    /// `state` holds, which then holds them too: `[b, l, d_inner]`. Rows of several documents have no state.
    fn gated(
        &self,
        projected: Tensor<B, 3>,
        documents: &Option<DocumentStarts<B>>,
        state: Option<&mut LowRankState<B>>,
    ) -> Tensor<B, 3> {
        let config = &self.config;
        let (d_inner, d_bc, w) = (config.d_inner(), config.d_bc(), config.d_conv);
        let [xbc, z] = kernels::split_columns(projected, [config.conv_dim(), d_inner]);
        let [b, l, _] = xbc.dims();
        let history = state.as_ref().filter(|_| w > 1).map(|state| {
            let history = state.conv.clone().narrow(1, 1, w - 1);
            to_dtype(history, xbc.dtype())
        });
        let convolved = self.convolved(xbc.clone(), 0, history, documents);
        let [x, b_bld, c_bld] = kernels::split_columns(convolved, [d_inner, d_bc, d_bc]);
        let scan = ScanInputs {
            a_log: self.no_decay(&x, documents),
            x: self.heads(x),
            b: self.heads(b_bld),
            c: self.heads(c_bld),
            initial_state: state.as_ref().map(|state| state.sums.clone()),
        };
        let epilogue = Epilogue {
            d: Some(self.d.val()),
            z: Some(z),
            z_bias: Some(self.z_bias.val()),
        };
        let (gated_blhp, sums) = gated_scan(scan, epilogue, config.chunk_size);
        if let Some(state) = state {
            let window = vec![state.conv.clone(), widen(xbc)];
            state.conv = Tensor::cat(window, 1).narrow(1, l, w);
            state.sums = sums;
            state.position += l;
        }
        gated_blhp.reshape([b, l, d_inner])
    }

    /// One token a sequence, `projected [b, conv_dim + d_inner]`, after those that `state` holds: `[b, d_inner]`.
    fn advance(&self, projected: Tensor<B, 2>, state: &mut LowRankState<B>) -> Tensor<B, 2> {
        let [b, width] = projected.dims();
        // A step's vectors are in f32 whatever the dtype of the parameters.
        let (own, dtype) = (self.d.val().dtype(), projected.dtype());
        let projected = to_dtype(projected, own).reshape([b, 1, width]);
        let gated = self.gated(projected, &None, Some(state));
        to_dtype(gated.reshape([b, self.config.d_inner()]), dtype)
    }

    /// The factors of the matrix, of which only B and C are computed.
    fn matrix_parts(&self, sequences: Sequences<B>) -> TransferParts<B> {
        let Sequences { u, documents } = sequences;
        let (d_inner, d_bc) = (self.config.d_inner(), self.config.d_bc());
        let bc = self.in_proj.forward_rows(u, d_inner, 2 * d_bc);
        let convolved = self.convolved(bc, d_inner, None, &documents);
        let [b, c] = kernels::split_columns(convolved, [d_bc, d_bc]);
        TransferParts {
            a_log: self.no_decay(&b, &documents),
            b: self.heads(b),
            c: self.heads(c),
            d: self.d.val(),
        }
    }
}

impl<B: KernelBackend> TokenMixer<B> for LowRank<B> {
    fn new_state(&self, batch: usize, device: &B::Device) -> MixerState<B> {
        MixerState::LowRank(self.empty_state(batch, device))
    }

    fn new_rows(&self, rows: usize, device: &B::Device) -> MixerRows<B> {
        MixerRows::LowRank(LowRankRows {
            state: self.empty_state(rows, device),
        })
    }

    fn state_from_tensors(
        &self,
        position: usize,
        tensors: &mut StateTensors<'_>,
        device: &B::Device,
    ) -> Result<MixerState<B>, StateError> {
        let LowRankState { conv, sums, .. } = self.empty_state(1, device);
        Ok(MixerState::LowRank(LowRankState {
            conv: tensors.take("conv", conv.dims(), conv.dtype(), device)?,
            sums: tensors.take("sums", sums.dims(), sums.dtype(), device)?,
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
        let Sequences { u, documents } = sequences;
        let gated = self.gated(self.in_proj.forward(u), &documents, None);
        self.out_proj.forward(gated)
    }

    fn forward_onto(&self, residual: Tensor<B, 3>, sequences: Sequences<B>) -> Tensor<B, 3> {
        let Sequences { u, documents } = sequences;
        let gated = self.gated(self.in_proj.forward(u), &documents, None);
        self.out_proj.forward_onto(residual, gated)
    }

    /// `T` with `y = T x` before the gate: `C_i . B_j`, plus `D` on the diagonal.
    fn mixing_matrix_of(&self, sequences: Sequences<B>) -> Tensor<B, 4> {
        kernels::transfer_matrix(self.matrix_parts(sequences))
    }

    fn transfer_parts_of(&self, sequences: Sequences<B>) -> Option<TransferParts<B>> {
        Some(self.matrix_parts(sequences))
    }

    fn prefill(&self, u: Tensor<B, 3>, state: &mut MixerState<B>) -> Tensor<B, 3> {
        let projected = self.in_proj.forward(u);
        let gated = self.gated(projected, &None, Some(LowRankState::within(state)));
        self.out_proj.forward(gated)
    }

    fn step(
        &self,
        mut projected: Vec<Tensor<B, 2>>,
        state: &mut MixerState<B>,
    ) -> StepOutput<'_, B> {
        let state = LowRankState::within(state);
        let gated = self.advance(projected.swap_remove(0), state);
        StepOutput::through(gated, &self.out_proj)
    }

    fn step_rows(
        &self,
        mut projected: Vec<Tensor<B, 2>>,
        rows: &mut MixerRows<B>,
        _occupied: &[bool],
    ) -> StepOutput<'_, B> {
        let rows = LowRankRows::within(rows);
        let gated = self.advance(projected.swap_remove(0), &mut rows.state);
        StepOutput::through(gated, &self.out_proj)
    }
}
