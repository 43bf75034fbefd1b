//! The discrete Mamba-2 mixer (arXiv 2408.10189, section 4 and appendix).
//!
//! Mamba-2 with what attention does not have taken away: no step size, no normalisation before the
//! output projection, no activation after the convolution, one B and C a head, and the decay a
//! projection of the input. `in_proj` emits `[x | B | C | z | A_log]`; x, B and C pass through a
//! short causal convolution; the scan mixes x over time; `D` adds x back; `silu(z + z_bias)` gates.
//!
//! B stands where attention has keys, C where it has queries, x where it has values: the mixer is
//! `y = T x` for the lower-triangular [`mixing_matrix`](TokenMixer::mixing_matrix) `T`, which
//! MOHAWK's first stage turns towards the teacher's attention matrix.

mod config;
mod state;

use std::mem;

use burn::module::{Module, Param};
use burn::tensor::Tensor;
use burn::tensor::backend::Backend;
use kernels::{Epilogue, KernelBackend, ScanInputs, StepParameters, StepState, TransferParts};

pub use config::{Activation, DiscreteMamba2Config};
pub use state::{Mamba2Rows, Mamba2State};

use super::{MixerOptions, MixerRows, MixerState, StateError, StateTensors, TokenMixer};
use crate::config_error::ConfigError;
use crate::init::{Fill, Init};
use crate::layers::Linear;
use crate::precision::{to_dtype, wide, widen};

/// The gate's initial bias: `silu` of it is 1.
const OPEN_GATE: f64 = 1.278464542761;
/// The depth by whose square root the published code divides the output projection.
const PUBLISHED_DEPTH: f64 = 24.0;

/// The depthwise convolution's parameters, shaped as PyTorch's `Conv1d`.
#[derive(Module, Debug)]
pub struct DepthwiseConv<B: Backend> {
    /// `[c, 1, w]`, the last tap on the present.
    pub weight: Param<Tensor<B, 3>>,
    /// `[c]`.
    pub bias: Option<Param<Tensor<B, 1>>>,
}

/// The mixer. Letters in names: b batch, l length, h heads, p head dimension, g groups, n state.
///
/// ```
/// use burn::tensor::{Distribution, Tensor};
/// use burn_flex::Flex;
/// use model::{DiscreteMamba2, DiscreteMamba2Config, TokenMixer};
///
/// let device = Default::default();
/// let options = DiscreteMamba2Config::with_heads(4); // heads of 16 in a width of 64
/// let mixer = DiscreteMamba2::<Flex>::new(&options, 64, 1, &device)?;
/// let u = Tensor::random([2, 10, 64], Distribution::Default, &device);
/// assert_eq!(mixer.forward(u.clone()).dims(), [2, 10, 64]);
/// assert_eq!(mixer.mixing_matrix(u).dims(), [2, 4, 10, 10]);
/// # Ok::<(), model::ConfigError>(())
/// ```
#[derive(Module, Debug)]
pub struct DiscreteMamba2<B: Backend> {
    /// `d_model` to `[x | B | C | z | A_log]`.
    pub in_proj: Linear<B>,
    /// Added to z, `[d_inner]`; present where `in_proj` has no bias.
    pub z_bias: Option<Param<Tensor<B, 1>>>,
    /// Over the channels of x, B and C.
    pub conv1d: DepthwiseConv<B>,
    /// The skip from x to the output, `[h]`; `D` in files.
    pub d: Param<Tensor<B, 1>>,
    /// `d_inner` to `d_model`.
    pub out_proj: Linear<B>,
    #[module(skip)]
    config: DiscreteMamba2Config,
    d_inner: usize,
}

/// A range of the rows of `in_proj`, and of the convolution's channels where it has any.
#[derive(Clone, Copy)]
struct Rows {
    start: usize,
    n: usize,
}

impl<B: Backend> DiscreteMamba2<B> {
    /// A mixer for a network `d_model` wide, drawn from `seed` as published (arXiv 2408.10189, the authors'
    /// training code): the convolution passes its input through (last tap 1, the others and the bias 0); the
    /// gate is open (its rows of the input projection 0, and its bias such that `silu` is 1); `D` is 1; the
    /// output projection is drawn as PyTorch's `Linear` and divided by `sqrt(24)`, whatever the number of
    /// layers; everything else as PyTorch's `Linear`. With `D` at 1, the mixing matrix starts near the identity.
    ///
    /// # Errors
    /// [`ConfigError::Invalid`] if the sizes do not fit together.
    pub fn new(
        config: &DiscreteMamba2Config,
        d_model: usize,
        seed: u64,
        device: &B::Device,
    ) -> Result<Self, ConfigError> {
        config.validate(d_model)?;
        Ok(Self::draw(&mut Init::new(seed, device), config, d_model))
    }

    pub(super) fn draw(init: &mut Init<B>, config: &DiscreteMamba2Config, d_model: usize) -> Self {
        let d_inner = config.d_inner(d_model);
        let conv_dim = config.conv_dim(d_model);
        let rows = config.d_in_proj(d_model);
        let default = Fill::torch_linear(d_model);
        // The gate's rows are in the middle: zeros, and with biases its own bias among them.
        let around_gate = |width: usize, gate: Fill| {
            Fill::Parts(vec![
                (conv_dim * width, default.clone()),
                (d_inner * width, gate),
                (config.n_v_heads * width, default.clone()),
            ])
        };
        let in_bias = config
            .bias
            .then(|| around_gate(1, Fill::constant(OPEN_GATE)));
        let in_weight = around_gate(d_model, Fill::constant(0.0));
        let out_bias = config.bias.then(|| Fill::torch_linear(d_inner));
        let out_proj = Fill::Uniform(1.0 / (d_inner as f64 * PUBLISHED_DEPTH).sqrt());
        let mut taps = vec![0.0; config.d_conv];
        taps[config.d_conv - 1] = 1.0;
        Self {
            in_proj: Linear::new(init, [rows, d_model], in_weight, in_bias),
            z_bias: (!config.bias).then(|| init.parameter([d_inner], Fill::constant(OPEN_GATE))),
            conv1d: DepthwiseConv {
                weight: init.parameter([conv_dim, 1, config.d_conv], Fill::Repeat(taps)),
                bias: config
                    .conv_bias
                    .then(|| init.parameter([conv_dim], Fill::constant(0.0))),
            },
            d: init.parameter([config.n_v_heads], Fill::constant(1.0)),
            out_proj: Linear::new(init, [d_model, d_inner], out_proj, out_bias),
            config: config.clone(),
            d_inner,
        }
    }

    fn x_rows(&self) -> Rows {
        let (start, n) = (0, self.d_inner);
        Rows { start, n }
    }

    fn b_rows(&self) -> Rows {
        let (start, n) = (self.d_inner, self.config.d_bc());
        Rows { start, n }
    }

    fn c_rows(&self) -> Rows {
        let start = self.d_inner + self.config.d_bc();
        let n = self.config.d_bc();
        Rows { start, n }
    }

    fn conv_dim(&self) -> usize {
        self.d_inner + 2 * self.config.d_bc()
    }

    fn z_rows(&self) -> Rows {
        let (start, n) = (self.conv_dim(), self.d_inner);
        Rows { start, n }
    }

    fn a_log_rows(&self) -> Rows {
        let start = self.conv_dim() + self.d_inner;
        let n = self.config.n_v_heads;
        Rows { start, n }
    }

    /// The options it was made with.
    pub fn config(&self) -> &DiscreteMamba2Config {
        &self.config
    }

    /// Zeros: the convolution's window in the dtype of the parameters, the SSM state never half.
    fn empty_state(&self, batch: usize, device: &B::Device) -> Mamba2State<B> {
        let config = &self.config;
        let p = self.d_inner / config.n_v_heads;
        let dtype = self.d.val().dtype();
        let conv = [batch, self.conv_dim(), config.d_conv];
        let ssm = [batch, config.n_v_heads, p, config.d_state];
        Mamba2State {
            conv: Tensor::zeros(conv, (device, dtype)),
            ssm: Tensor::zeros(ssm, (device, wide(dtype))),
        }
    }
}

impl<B: KernelBackend> DiscreteMamba2<B> {
    /// What the output projection reads, `[b, l, d_inner]`.
    ///
    /// Weights are sliced and not the activations, which are larger: see [`Linear::forward_rows`].
    fn gated(&self, u: Tensor<B, 3>) -> Tensor<B, 3> {
        let x = self.convolved(u.clone(), self.x_rows());
        let b = self.convolved(u.clone(), self.b_rows());
        let c = self.convolved(u.clone(), self.c_rows());
        let z = self.projected(u.clone(), self.z_rows());
        let a_log = self.projected(u, self.a_log_rows());
        let scan = ScanInputs {
            x: self.heads(x),
            a_log,
            b: self.groups(b),
            c: self.groups(c),
            initial_state: None,
        };
        let (gated_blhp, _) = self.gated_scan(scan, z);
        self.joined(gated_blhp)
    }

    /// The factors of the mixing matrix: B, C, A_log and D alone are computed of `u [b, l, d_model]`.
    fn matrix_parts(&self, u: Tensor<B, 3>) -> TransferParts<B> {
        TransferParts {
            b: self.groups(self.convolved(u.clone(), self.b_rows())),
            c: self.groups(self.convolved(u.clone(), self.c_rows())),
            a_log: self.projected(u, self.a_log_rows()),
            d: self.d.val(),
        }
    }

    /// [`TokenMixer::prefill`] of several tokens, by the scan.
    fn scan_onto(&self, u: Tensor<B, 3>, state: &mut Mamba2State<B>) -> Tensor<B, 3> {
        let parts = self.advance_conv(u, state);
        let scan = ScanInputs {
            x: self.heads(parts.x),
            a_log: parts.a_log,
            b: self.groups(parts.b),
            c: self.groups(parts.c),
            initial_state: Some(state.ssm.clone()),
        };
        let (gated_blhp, ssm) = self.gated_scan(scan, parts.z);
        state.ssm = ssm;
        self.out_proj.forward(self.joined(gated_blhp))
    }

    /// [`TokenMixer::prefill`] of one token, by the recurrence.
    fn recur_onto(&self, u: Tensor<B, 3>, state: &mut Mamba2State<B>) -> Tensor<B, 3> {
        let projected = self.in_proj.forward(u);
        let [batch, _, rows] = projected.dims();
        let gated = self.recur(projected.reshape([batch, rows]), state);
        self.out_proj
            .forward(gated.reshape([batch, 1, self.d_inner]))
    }

    /// What stands between the two projections: `projected [b, d_in_proj]`, one token after those that
    /// `state` holds, to `[b, d_inner]`.
    fn recur(&self, projected: Tensor<B, 2>, state: &mut Mamba2State<B>) -> Tensor<B, 2> {
        let d = self.d.val();
        let h = self.config.n_v_heads;
        // Moved out of the state, so that a backend may write where they are.
        let conv = mem::replace(&mut state.conv, d.clone().reshape([1, 1, h]));
        let ssm = mem::replace(&mut state.ssm, d.clone().reshape([1, 1, 1, h]));
        let parameters = StepParameters {
            taps: self.conv1d.weight.val(),
            bias: self.conv1d.bias.as_ref().map(Param::val),
            activation: self.activation(),
            d,
            z_bias: self.z_bias.as_ref().map(Param::val),
        };
        let before = StepState { conv, ssm };
        let (gated, after) = kernels::recurrent_step(projected, parameters, before);
        (state.conv, state.ssm) = (after.conv, after.ssm);
        gated
    }

    /// Some outputs of `in_proj`, `[b, l, n]`.
    fn projected(&self, u: Tensor<B, 3>, rows: Rows) -> Tensor<B, 3> {
        self.in_proj.forward_rows(u, rows.start, rows.n)
    }

    /// Some outputs of `in_proj` through the convolution and the activation, `[b, l, n]`.
    fn convolved(&self, u: Tensor<B, 3>, rows: Rows) -> Tensor<B, 3> {
        let taps = self.taps().narrow(0, rows.start, rows.n);
        let bias = self.conv1d.bias.as_ref();
        let bias = bias.map(|bias| bias.val().narrow(0, rows.start, rows.n));
        let projected = self.projected(u, rows);
        kernels::causal_conv(projected, taps, bias, None, self.activation())
    }

    /// The convolution's weight as `[c, w]`.
    fn taps(&self) -> Tensor<B, 2> {
        self.conv1d
            .weight
            .val()
            .reshape([self.conv_dim(), self.config.d_conv])
    }

    /// What follows the convolution.
    fn activation(&self) -> kernels::scan::causal_conv::Activation {
        match self.config.activation {
            Activation::Identity => kernels::scan::causal_conv::Activation::Identity,
            Activation::Silu => kernels::scan::causal_conv::Activation::Silu,
        }
    }

    /// `[b, l, d_inner]` to `[b, l, h, p]`.
    fn heads(&self, x: Tensor<B, 3>) -> Tensor<B, 4> {
        let [b, l, d_inner] = x.dims();
        let h = self.config.n_v_heads;
        x.reshape([b, l, h, d_inner / h])
    }

    /// `[b, l, g * n]` to `[b, l, g, n]`.
    fn groups(&self, x: Tensor<B, 3>) -> Tensor<B, 4> {
        let [b, l, _] = x.dims();
        x.reshape([b, l, self.config.n_qk_heads, self.config.d_state])
    }

    /// `[b, l, h, p]` to `[b, l, d_inner]`.
    fn joined(&self, y_blhp: Tensor<B, 4>) -> Tensor<B, 3> {
        let [b, l, _, _] = y_blhp.dims();
        y_blhp.reshape([b, l, self.d_inner])
    }

    /// The scan, skip and gate, and the scan's last state.
    fn gated_scan(&self, scan: ScanInputs<B>, z: Tensor<B, 3>) -> (Tensor<B, 4>, Tensor<B, 4>) {
        let epilogue = Epilogue {
            d: Some(self.d.val()),
            z: Some(z),
            z_bias: self.z_bias.as_ref().map(Param::val),
        };
        kernels::gated_scan(scan, epilogue, self.config.chunk_size)
    }

    /// Projects `u` and moves the convolution's window over it. Nothing here is differentiated, so
    /// the one wide projection is sliced.
    fn advance_conv(&self, u: Tensor<B, 3>, state: &mut Mamba2State<B>) -> Parts<B> {
        let (l, w, c) = (u.dims()[1], self.config.d_conv, self.conv_dim());
        let projected = self.in_proj.forward(u);
        let part = |x: &Tensor<B, 3>, rows: Rows| x.clone().narrow(2, rows.start, rows.n);
        let xbc_blc = projected.clone().narrow(2, 0, c);
        let window_bwc = to_dtype(state.conv.clone().swap_dims(1, 2), xbc_blc.dtype());
        let history = (w > 1).then(|| window_bwc.clone().narrow(1, 1, w - 1));
        let latest = if l >= w {
            xbc_blc.clone().narrow(1, l - w, w)
        } else {
            Tensor::cat(vec![window_bwc.narrow(1, l, w - l), xbc_blc.clone()], 1)
        };
        state.conv = latest.swap_dims(1, 2);
        let bias = self.conv1d.bias.as_ref().map(Param::val);
        let convolved =
            kernels::causal_conv(xbc_blc, self.taps(), bias, history, self.activation());
        Parts {
            x: part(&convolved, self.x_rows()),
            b: part(&convolved, self.b_rows()),
            c: part(&convolved, self.c_rows()),
            z: part(&projected, self.z_rows()),
            a_log: part(&projected, self.a_log_rows()),
        }
    }
}

/// What the scan and the gate read, each `[b, l, ..]`.
struct Parts<B: Backend> {
    x: Tensor<B, 3>,
    b: Tensor<B, 3>,
    c: Tensor<B, 3>,
    z: Tensor<B, 3>,
    a_log: Tensor<B, 3>,
}

impl<B: KernelBackend> TokenMixer<B> for DiscreteMamba2<B> {
    fn new_state(&self, batch: usize, device: &B::Device) -> MixerState<B> {
        MixerState::DiscreteMamba2(self.empty_state(batch, device))
    }

    fn new_rows(&self, rows: usize, device: &B::Device) -> MixerRows<B> {
        let Mamba2State { conv, ssm } = self.empty_state(rows, device);
        // As steps leave it: in f32 whatever the dtype of the parameters.
        let conv = widen(conv);
        MixerRows::DiscreteMamba2(Mamba2Rows(Mamba2State { conv, ssm }))
    }

    fn state_from_tensors(
        &self,
        _position: usize,
        tensors: &mut StateTensors<'_>,
        device: &B::Device,
    ) -> Result<MixerState<B>, StateError> {
        let Mamba2State { conv, ssm } = self.empty_state(1, device);
        Ok(MixerState::DiscreteMamba2(Mamba2State {
            conv: tensors.take("conv", conv.dims(), conv.dtype(), device)?,
            ssm: tensors.take("ssm", ssm.dims(), ssm.dtype(), device)?,
        }))
    }

    fn entries(&self) -> Vec<&Linear<B>> {
        vec![&self.in_proj]
    }

    fn exit(&self) -> &Linear<B> {
        &self.out_proj
    }

    fn linears_mut(&mut self) -> Vec<&mut Linear<B>> {
        vec![&mut self.in_proj, &mut self.out_proj]
    }

    fn forward(&self, u: Tensor<B, 3>) -> Tensor<B, 3> {
        self.out_proj.forward(self.gated(u))
    }

    fn forward_onto(&self, residual: Tensor<B, 3>, u: Tensor<B, 3>) -> Tensor<B, 3> {
        self.out_proj.forward_onto(residual, self.gated(u))
    }

    /// `T` with `y = T x` before the gate: at `(l, s)` the product of `C_l . B_s` and the decays in
    /// `(s, l]`, plus `D` on the diagonal.
    fn mixing_matrix(&self, u: Tensor<B, 3>) -> Tensor<B, 4> {
        kernels::transfer_matrix(self.matrix_parts(u))
    }

    fn transfer_parts(&self, u: Tensor<B, 3>) -> Option<TransferParts<B>> {
        Some(self.matrix_parts(u))
    }

    fn prefill(&self, u: Tensor<B, 3>, state: &mut MixerState<B>) -> Tensor<B, 3> {
        let state = Mamba2State::within(state);
        match u.dims()[1] {
            1 => self.recur_onto(u, state),
            _ => self.scan_onto(u, state),
        }
    }

    fn step(&self, mut projected: Vec<Tensor<B, 2>>, state: &mut MixerState<B>) -> Tensor<B, 2> {
        self.recur(projected.swap_remove(0), Mamba2State::within(state))
    }

    fn step_rows(
        &self,
        mut projected: Vec<Tensor<B, 2>>,
        rows: &mut MixerRows<B>,
        _occupied: &[bool],
    ) -> Tensor<B, 2> {
        self.recur(projected.swap_remove(0), &mut Mamba2Rows::within(rows).0)
    }
}
